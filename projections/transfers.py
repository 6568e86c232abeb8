"""Transfers: what was asked, and what came of it. A transfer is one event and never changes."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final, NamedTuple

from psycopg import Cursor

from ledger.domain.events import TransferPosted
from ledger.domain.money import minor_digits
from ledger.postgres import sql_blocks
from projections.batch import TRANSFER_EVENTS, LoggedEvent
from projections.rows import Row, copy_rows, json_text

SQL: Final = sql_blocks("projections", "transfers.sql")


class Transfer(NamedTuple):
    """A transfer as queries read it (select_transfers, list_columns)."""

    transfer_id: str
    state: str
    legs: list[dict[str, Any]]
    reference: str
    metadata: dict[str, str]
    recorded_at: datetime
    effective_at: datetime
    decline_reason: str | None
    declined_leg: int | None
    declined_account_id: str | None


class NewTransfers(NamedTuple):
    """A row per transfer, in the order of `insert`, and one per account of each, in the order of `insert_accounts`."""

    transfers: list[Row]
    accounts: list[Row]


def fold(events: Iterable[LoggedEvent]) -> NewTransfers:
    new = NewTransfers([], [])
    for event in events:
        if event.kind in TRANSFER_EVENTS:
            new.transfers.append(_row(event))
            new.accounts.extend((account_id, event.position) for account_id in _accounts(event))
    return new


def write(cursor: Cursor[Any], new: NewTransfers) -> None:
    copy_rows(cursor, SQL.insert, new.transfers)
    copy_rows(cursor, SQL.insert_accounts, new.accounts)


def _row(event: LoggedEvent) -> Row:
    fields = event.fields
    return (
        fields["transfer_id"],
        "POSTED" if event.kind is TransferPosted else "DECLINED",
        json_text([_leg(leg) for leg in fields["legs"]]),
        fields["reference"],
        json_text(fields["metadata"]),
        event.recorded_at,
        event.effective_at,
        fields.get("decline_reason"),
        fields.get("declined_leg"),
        fields.get("declined_account_id"),
        event.version,
        event.position,
    )


def _accounts(event: LoggedEvent) -> set[str]:
    legs = event.fields["legs"]
    return {leg["from_account_id"] for leg in legs} | {leg["to_account_id"] for leg in legs}


def _leg(leg: dict[str, Any]) -> dict[str, Any]:
    amount = leg["amount"]
    return {
        "from_account_id": leg["from_account_id"],
        "to_account_id": leg["to_account_id"],
        "currency_code": amount["currency_code"],
        "minor_digits": minor_digits(amount["currency_code"]),
        "minor_units": amount["minor_units"],
    }
