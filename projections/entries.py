"""Entries: the history of every account, a line per event, with the balances after it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final, NamedTuple

from psycopg import Cursor

from ledger.domain.events import (
    AccountClosed,
    AccountFrozen,
    AccountOpened,
    AccountUnfrozen,
    CauseKind,
    CreditLimitChanged,
    FundsCredited,
    FundsDebited,
    FundsReleased,
    FundsReserved,
    LedgerEvent,
)
from ledger.domain.money import minor_digits
from ledger.postgres import sql_blocks
from projections.balances import credit_limit
from projections.batch import ACCOUNT_EVENTS, LoggedEvent
from projections.rows import Row, copy_rows

SQL: Final = sql_blocks("projections", "entries.sql")


class Entry(NamedTuple):
    """A line as queries read it (list_all)."""

    position: int
    version: int
    recorded_at: datetime
    effective_at: datetime
    kind: str
    posted_change: int
    reserved_change: int
    posted: int
    reserved: int
    available: int
    credit_limit: int | None
    account_id: str
    currency_code: str
    counterparty_account_id: str | None
    payment_id: str | None
    transfer_id: str | None
    leg: int | None
    capture_id: str | None
    refund_id: str | None
    increment_id: str | None
    reference: str
    reason: str | None


KIND_OF_CAUSE: Final[dict[str, str]] = {
    CauseKind.AUTHORIZATION: "AUTHORIZED",
    CauseKind.INCREMENT: "INCREMENTED",
    CauseKind.CAPTURE: "CAPTURED",
    CauseKind.VOID: "VOIDED",
    CauseKind.EXPIRY: "EXPIRED",
    CauseKind.REFUND: "REFUNDED",
    CauseKind.TRANSFER: "TRANSFERRED",
}
KIND_WITHOUT_CAUSE: Final[dict[type[LedgerEvent], str]] = {
    AccountOpened: "OPENED",
    CreditLimitChanged: "CREDIT_LIMIT_CHANGED",
    AccountFrozen: "FROZEN",
    AccountUnfrozen: "UNFROZEN",
    AccountClosed: "CLOSED",
}


def fold(events: Iterable[LoggedEvent]) -> list[Row]:
    """A row per event on an account, in the order of `insert`."""
    return [_row(event) for event in events if event.kind in ACCOUNT_EVENTS]


def write(cursor: Cursor[Any], rows: list[Row]) -> None:
    copy_rows(cursor, SQL.insert, rows)


def _row(event: LoggedEvent) -> Row:
    fields = event.fields
    after, cause = fields["after"], fields.get("cause", {})
    posted_change, reserved_change = _changes(event)
    return (
        event.id,
        event.position,
        event.version,
        event.recorded_at,
        event.effective_at,
        KIND_OF_CAUSE[cause["kind"]] if cause else KIND_WITHOUT_CAUSE[event.kind],
        after["currency_code"],
        minor_digits(after["currency_code"]),
        posted_change,
        reserved_change,
        after["posted"],
        after["reserved"],
        credit_limit(after),
        fields.get("counterparty"),
        cause.get("payment_id"),
        cause.get("capture_id"),
        cause.get("refund_id"),
        cause.get("increment_id"),
        cause.get("transfer_id"),
        cause.get("leg"),
        fields.get("reason"),
    )


def _changes(event: LoggedEvent) -> tuple[int, int]:
    """What an event did to posted and to reserved."""
    kind, amount = event.kind, event.fields.get("amount", 0)
    if kind is FundsReserved:
        return 0, amount
    if kind is FundsReleased:
        return 0, -amount
    if kind is FundsCredited:
        return amount, 0
    if kind is FundsDebited:
        return -amount, -amount if event.fields["from_reserved"] else 0
    return 0, 0
