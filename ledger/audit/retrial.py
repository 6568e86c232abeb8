"""The retrial: every command of the log is decided again by the rules, and must come to just the bytes recorded.

The first event of a command tells what was asked. Decided again, on aggregates as they were and at the same time, it
must bring forth the same events: so nothing can be in the log that the rules would not have put there. Overdrafts,
captures beyond an authorization, a wrong decline or balances that don't add up all end in other bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from psycopg import Connection

from ledger.audit.explanation import COMMAND_MOST_EVENTS, Tried, explain
from ledger.audit.findings import Finding, Findings, Kind
from ledger.audit.past import Past
from ledger.audit.replay import begins_command, command_of
from ledger.audit.snapshot import SQL, Row, batches, moment, reading
from ledger.domain.aggregate import Stamp
from ledger.domain.book import Book
from ledger.domain.commands import AuthorizePayment, Command, PostTransfer
from ledger.domain.decisions import decide, streams_of
from ledger.domain.events import TOPICS, LedgerEvent
from ledger.domain.funds import net_of

_TOPICS: Final = frozenset(topic for topic, kind in TOPICS.items() if begins_command(kind))


def try_again(connection: Connection[Any], past: Past, findings: Findings, progress: Callable[[int], None]) -> None:
    """Decide every command of the log again. `progress` is told how many events are done."""
    retrial, done = Retrial(past, findings), 0
    for rows in batches(reading(connection, "decisions", SQL.log)):
        # Rows that lack something are found where the positions are looked at.
        retrial.take(rows if not any(None in row for row in rows) else [row for row in rows if None not in row])
        done += len(rows)
        progress(done)
    retrial.finish()


class Asked(NamedTuple):
    """What the first event of a command tells of it."""

    command: Command
    actor: str
    correlation_id: str


class Retrial:
    """Goes through the log from its beginning. Rows come in through `take`, and at the end `finish`."""

    def __init__(self, past: Past, findings: Findings) -> None:
        self._past, self._mapper, self._findings = past, past.mapper, findings
        self._rows: list[Row] = []
        self._asked: list[Asked | Exception | None] = []
        self._moments: dict[int, datetime] = {}

    def take(self, rows: Sequence[Row]) -> None:
        """Try the commands that are whole with these rows."""
        asked = [self._read(row) for row in rows]
        self._look_up(rows, asked)
        self._rows += rows
        self._asked += asked
        self._try_until(len(self._rows) - COMMAND_MOST_EVENTS)
        self._past.tidy(keep={row[1] for row in self._rows})

    def finish(self) -> None:
        """Try what is left: the log ends here."""
        self._try_until(len(self._rows))

    # --- commands, from their first events ---------------------------------------------------------------------------

    def _read(self, row: Row) -> Asked | Exception | None:
        """What was asked, if the row is the first of a command; an exception if it must be but is not in order."""
        _, stream, _, topic, _, state = row
        if topic not in _TOPICS:
            return None
        try:
            kind, fields = self._mapper.fields_of(topic, state)
            return Asked(command_of(kind, stream, fields), fields["actor"], fields["correlation_id"])
        except Exception as error:  # Whatever it is, it is no command; why not is told when its turn comes.
            return error

    def _look_up(self, rows: Sequence[Row], asked: Sequence[Asked | Exception | None]) -> None:
        """Have ready what more rows need, all of it in a query or two."""
        waiting = {row[1] for row in self._rows}
        accounts: list[str] = []
        payments: dict[str, int] = {}
        for row, each in zip(rows, asked, strict=True):
            stream, version = row[1], row[2]
            if stream.startswith("account/"):
                accounts.append(stream)
            elif stream.startswith("payment/") and stream not in waiting:
                payments.setdefault(stream, version)
            if isinstance(each, Asked) and isinstance(each.command, AuthorizePayment | PostTransfer):
                accounts += streams_of(each.command)
        self._past.look_up(accounts, {stream: version for stream, version in payments.items() if version > 1})

    # --- trying ------------------------------------------------------------------------------------------------------

    def _try_until(self, stop: int) -> None:
        place = 0
        while place < stop:
            place += self._try(place)
        del self._rows[:place], self._asked[:place]
        self._moments.clear()

    def _try(self, place: int) -> int:
        """Decide the command that begins here again; return how many rows are its."""
        asked = self._asked[place]
        if not isinstance(asked, Asked):
            return self._object(place, Tried([], asked))
        row = self._rows[place]
        book = Book(self._past, row[0] - 1)
        try:
            stamp = Stamp(self._moment(row[4]), asked.actor, asked.correlation_id, row[0])
            decide(asked.command, book, stamp)
        except Exception as error:  # A refusal, or the rules break on what they would never have come to.
            return self._object(place, Tried([], error))
        events = book.events
        if not events or not self._is_recorded(events, place):
            return self._object(place, Tried(events))
        self._past.learn(book.changed)
        net = net_of(events)
        if any(net.values()):
            what = f"debits and credits of this command differ by {net}"
            self._findings.add(Finding(Kind.SUMS, what, row[0], row[1], row[2]))
        return len(events)

    def _is_recorded(self, events: Sequence[LedgerEvent], place: int) -> bool:
        """Whether just these events stand from here on."""
        rows, to_row = self._rows, self._mapper.to_row
        if place + len(events) > len(rows):
            return False
        recorded_at = rows[place][4]
        for number, event in enumerate(events, place):
            _, stream, version, topic, at, state = rows[number]
            if at != recorded_at or (stream, version, topic, state) != to_row(event):
                return False
        return True

    def _object(self, place: int, tried: Tried) -> int:
        """Say what is wrong, if anything is, take what is recorded for fact, and return how many rows that is."""
        explained = explain(self._rows, place, tried, self._mapper)
        if explained.finding is not None:
            self._findings.add(explained.finding)
        for event in explained.recorded:
            self._past.accept(event)
        return explained.rows

    def _moment(self, microseconds: int) -> datetime:
        found = self._moments.get(microseconds)
        if found is None:
            found = self._moments[microseconds] = moment(microseconds)
        return found
