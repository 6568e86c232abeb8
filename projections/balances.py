"""Balances: every account as it stands."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final, NamedTuple

from psycopg import Cursor

from ledger.domain.events import AccountKind, AccountOpened
from ledger.domain.money import minor_digits
from ledger.postgres import sql_blocks
from projections.batch import ACCOUNT_EVENTS, LoggedEvent
from projections.errors import BalanceNotRepresentable
from projections.rows import Row, copy_rows, json_text, require_successor, update_rows

SQL: Final = sql_blocks("projections", "balances.sql")

INT64_MOST: Final = 2**63 - 1


class Balance(NamedTuple):
    """An account as queries read it (select_accounts, list_all). `credit_limit` is None for EXTERNAL ones."""

    account_id: str
    kind: str
    status: str
    freeze_scope: str | None
    currency_code: str
    posted: int
    reserved: int
    credit_limit: int | None
    available: int
    version: int
    position: int
    opened_at: datetime
    metadata: dict[str, str]


class KnownBalance(NamedTuple):
    """The balance of an account as it was known at a position (select_known, select_effective)."""

    account_id: str
    currency_code: str
    posted: int
    reserved: int
    credit_limit: int | None
    available: int
    version: int
    position: int


class BalanceChanges(NamedTuple):
    """What a batch does to balances, by account: the event that opened it, the version before it, its last event."""

    opened: dict[str, LoggedEvent]
    version_before: dict[str, int]
    last: dict[str, LoggedEvent]


def fold(events: Iterable[LoggedEvent]) -> BalanceChanges:
    """Every account event carries the state after it, so the last one of an account in a batch says it all."""
    changes = BalanceChanges({}, {}, {})
    for event in events:
        if event.kind not in ACCOUNT_EVENTS:
            continue
        account_id = event.id
        if event.kind is AccountOpened:
            changes.opened[account_id] = event
        before = changes.last.get(account_id)
        if before is None:
            changes.version_before[account_id] = event.version - 1
        else:
            require_successor(event, before.version)
        changes.last[account_id] = event
    return changes


def write(cursor: Cursor[Any], changes: BalanceChanges) -> None:
    copy_rows(cursor, SQL.insert_opened, [new_row(event, changes.last[each]) for each, event in changes.opened.items()])
    changed = changes.last.keys() - changes.opened.keys()
    # In one order, so that row locks are always taken in it.
    update_rows(
        cursor,
        SQL.update_changed,
        [_changed_row(changes.version_before[each], changes.last[each]) for each in sorted(changed)],
    )


def standing(row: Balance, last: LoggedEvent) -> Balance:
    """The account of `row` as it was right after its event `last`."""
    after = last.fields["after"]
    limit = credit_limit(after)
    return row._replace(
        status=after["status"],
        freeze_scope=after.get("freeze_scope"),
        posted=after["posted"],
        reserved=after["reserved"],
        credit_limit=limit,
        available=after["posted"] - after["reserved"] + (limit or 0),
        version=last.version,
        position=last.position,
    )


def credit_limit(after: dict[str, Any]) -> int | None:
    """The limit in an account's stored state: an EXTERNAL account has none."""
    limit: int = after["credit_limit"]
    return None if after["kind"] == AccountKind.EXTERNAL else limit


def known_balance(columns: Iterable[Any]) -> KnownBalance:
    """The balance in a row. Sums are numeric in Postgres: they may be beyond any one balance."""
    balance = KnownBalance._make(columns)
    return balance._replace(posted=int(balance.posted), available=int(balance.available))


def require_representable(balance: Balance | KnownBalance) -> None:
    """Raise BalanceNotRepresentable if what was effective at a time doesn't fit into the API's int64."""
    if max(abs(balance.posted), abs(balance.available)) > INT64_MOST:
        raise BalanceNotRepresentable(account_id=balance.account_id)


def new_row(opened: LoggedEvent, last: LoggedEvent) -> Row:
    """An account from its first event and its last, in the order of `insert_opened`."""
    after = last.fields["after"]
    return (
        opened.id,
        after["kind"],
        after["status"],
        after.get("freeze_scope"),
        after["currency_code"],
        minor_digits(after["currency_code"]),
        after["posted"],
        after["reserved"],
        credit_limit(after),
        last.version,
        last.position,
        last.recorded_at,
        opened.recorded_at,
        opened.position,
        json_text(opened.fields["metadata"]),
    )


def _changed_row(version_before: int, last: LoggedEvent) -> Row:
    """In the order of `update_changed`."""
    after = last.fields["after"]
    return (
        last.id,
        version_before,
        after["status"],
        after.get("freeze_scope"),
        after["posted"],
        after["reserved"],
        credit_limit(after),
        last.version,
        last.position,
        last.recorded_at,
    )
