"""The comparison: every row of the read models beside what the log comes to at their checkpoint, by their own folds.

Both sides come in the order of the ids, so that they pass each other like the two sides of a zip; neither is kept.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from psycopg import Connection

from ledger.audit.findings import Finding, Findings, Kind
from ledger.audit.snapshot import EPOCH, batches, reading
from ledger.audit.wording import amount_text, in_short, time_text
from ledger.domain.events import AccountOpened
from ledger.postgres import sql_blocks
from projections import balances, entries, payments, transfers
from projections.batch import ACCOUNT_EVENTS, PAYMENT_EVENTS, TRANSFER_EVENTS, LoggedEvent
from projections.rows import RowsDisagree

SQL: Final = sql_blocks("ledger.audit", "comparison.sql")

_AMOUNTS: Final = frozenset({"posted", "reserved", "credit_limit", "available", "posted_change", "reserved_change"})
_TIMES: Final = frozenset({"recorded_at", "effective_at", "opened_at", "authorized_at", "expires_at"})
_JSON: Final = frozenset({"metadata", "captures", "refunds", "increments", "legs"})


class Table:
    """The stored rows of one read model in the order of their keys, held against those that the log comes to."""

    def __init__(self, connection: Connection[Any], name: str, findings: Findings, *, keys: int = 1) -> None:
        """The first `keys` of the columns are the key."""
        cursor = reading(connection, name, getattr(SQL, name))
        self._name, self._keys, self._findings = name, keys, findings
        self._columns = [each.name for each in cursor.description or ()]
        self._times = [place for place, column in enumerate(self._columns) if column in _TIMES]
        self._rows = (row for rows in batches(cursor) for row in rows)
        self._stored: tuple[Any, ...] | None = None
        self._next()

    def expect(self, *row: Any) -> None:
        """Hold a row of the log's against the stored one. The rows have to come in the order of their keys."""
        expected = list(row)
        for place in self._times:
            if expected[place] is not None:
                expected[place] = _microseconds(expected[place])
        keys, stored = self._keys, self._stored
        while stored is not None and stored[:keys] < row[:keys]:
            self._surplus(stored)
            stored = self._stored
        if stored is None or stored[:keys] != row[:keys]:
            self._add(row, self._position_in(row), "this row is missing")
            return
        if stored != tuple(expected):
            self._compare(stored, expected)
        self._next()

    def finish(self) -> None:
        """What is left comes from nothing."""
        while self._stored is not None:
            self._surplus(self._stored)

    def _next(self) -> None:
        self._stored = next(self._rows, None)
        while self._stored is not None and None in self._stored[: self._keys]:
            self._surplus(self._stored)

    def _surplus(self, row: tuple[Any, ...]) -> None:
        self._add(row, None, "this row comes from nothing in the log")
        self._stored = next(self._rows, None)

    def _compare(self, stored: tuple[Any, ...], expected: list[Any]) -> None:
        """Name the first column that differs, if one does: JSON can be the same in other words."""
        for column, found, must in zip(self._columns, stored, expected, strict=True):
            if found == must or (column in _JSON and _canonical(found) == _canonical(must)):
                continue
            found, must = self._shown(column, found, expected), self._shown(column, must, expected)
            self._add(expected, self._position_in(expected), f"{column} is {found}, and {must} by the log")
            return

    def _shown(self, column: str, value: Any, row: list[Any]) -> str:
        """A value for people."""
        if value is None:
            return "NULL"
        if column in _TIMES:
            return time_text(value)
        if column in _AMOUNTS or column.startswith("amount_"):
            return amount_text(value, row[self._columns.index("currency_code")])
        return in_short(str(value))

    def _position_in(self, row: Sequence[Any]) -> int:
        position: int = row[self._columns.index("position")]
        return position

    def _add(self, row: Sequence[Any], position: int | None, what: str) -> None:
        key = " ".join(in_short(str(each)) for each in row[: self._keys])
        self._findings.add(Finding(Kind.READ_MODEL, what, position, place=f"{self._name}, {key}"))


class Comparison:
    """Takes the events of the log up to the checkpoint stream by stream, and compares what they come to."""

    def __init__(self, connection: Connection[Any], findings: Findings) -> None:
        self._findings = findings
        self._balances = Table(connection, "balances", findings)
        self._entries = Table(connection, "entries", findings, keys=2)
        self._payments = Table(connection, "payments", findings)
        self._transfers = Table(connection, "transfers", findings)
        self._transfer_accounts = Table(connection, "transfer_accounts", findings, keys=2)
        self._first: LoggedEvent | None = None
        self._last: LoggedEvent | None = None
        self._of_payment: list[LoggedEvent] = []

    def take(self, event: LoggedEvent) -> None:
        """The next event of a stream."""
        if event.kind in ACCOUNT_EVENTS:
            if self._first is None:
                self._first = event
            self._last = event
            for row in entries.fold([event]):
                self._entries.expect(*row, _available(row[10], row[11], row[12]))
        elif event.kind in PAYMENT_EVENTS:
            self._of_payment.append(event)
        elif event.kind in TRANSFER_EVENTS:
            new = transfers.fold([event])
            for row in new.transfers:
                self._transfers.expect(*row)
            for account_id, position in sorted(new.accounts):
                self._transfer_accounts.expect(event.id, account_id, position)

    def end_stream(self) -> None:
        """That was the last event of a stream."""
        if self._first is not None and self._last is not None and self._first.kind is AccountOpened:
            row = balances.new_row(self._first, self._last)
            self._balances.expect(*row, _available(row[6], row[7], row[8]))
        self._first = self._last = None
        if self._of_payment:
            self._end_payment()
            self._of_payment = []

    def finish(self) -> None:
        """That was the last stream."""
        for table in (self._balances, self._entries, self._payments, self._transfers, self._transfer_accounts):
            table.finish()

    def _end_payment(self) -> None:
        try:
            (change,) = payments.fold(self._of_payment)
        except RowsDisagree:
            return  # Versions are missing in the log, which is found where that is looked at.
        if change.requested is not None:
            self._payments.expect(*payments.new_row(change))


def _available(posted: int, reserved: int, credit_limit: int | None) -> int:
    return posted - reserved + (credit_limit or 0)


def _microseconds(text: str) -> int:
    since = datetime.fromisoformat(text) - EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def _canonical(text: str) -> str:
    """JSON in one form. 5, 5.0 and true stay apart."""
    return json.dumps(json.loads(text), sort_keys=True)
