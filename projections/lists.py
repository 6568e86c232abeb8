"""Lists: pages of accounts, payments, transfers and entries, all of one list read at the position of its first page.

What a list is sorted by, the position at which a thing came to be, never changes. What else changes is looked up in the
log for those few rows that changed after the first page was read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Generic, LiteralString, NamedTuple, TypeVar

from google.protobuf.message import Message

from ledger.domain.errors import AccountNotFound, InvalidCommand
from ledger.postgres import sql_blocks
from ledger.v1 import account_pb2, payment_pb2, transfer_pb2
from ledger.wire import ACCOUNT_KIND, ACCOUNT_STATUS, PAYMENT_STATE
from projections import balances, entries, payments, transfers
from projections.answers import (
    ENTRY_KIND,
    TRANSFER_STATE,
    account_message,
    entry_message,
    payment_message,
    transfer_message,
)
from projections.as_of import AsOf
from projections.balances import Balance
from projections.connections import Connections
from projections.entries import Entry
from projections.filters import Filters
from projections.freshness import Freshness
from projections.lookups import Found, Lookup
from projections.pages import POSITION_MOST, Paging, next_page_token, paging_of
from projections.payments import Payment
from projections.transfers import Transfer

SQL: Final = sql_blocks("projections", "lists.sql")

PAGE_MOST_BYTES: Final = 3 * 2**20
"""A page that comes to more is cut here: gRPC's usual limit is 4 MiB, and a transfer can have 0.3."""

FETCH_MOST: Final = 250

_ACCOUNT_KINDS: Final = {value: name for name, value in ACCOUNT_KIND.items()}
_ACCOUNT_STATUSES: Final = {value: name for name, value in ACCOUNT_STATUS.items()}
_PAYMENT_STATES: Final = {value: name for name, value in PAYMENT_STATE.items()}
_TRANSFER_STATES: Final = {value: name for name, value in TRANSFER_STATE.items()}
_ENTRY_KINDS: Final = {value: name for name, value in ENTRY_KIND.items()}

Row = TypeVar("Row")
Item = TypeVar("Item", bound=Message)


class Placed(NamedTuple, Generic[Row]):
    """A row and its place in the list."""

    place: int
    row: Row


class Page(NamedTuple, Generic[Item]):
    """What a page holds; the token is empty when nothing follows."""

    items: list[Item]
    position: int
    next_page_token: str


@dataclass(slots=True)
class Scan:
    """A list on its way: its statement, and between which places the rest of it is (`low` exclusive, `high` inclusive).

    `at` is the position that it is read at, once that is known.
    """

    statement: LiteralString
    parameters: dict[str, Any]
    paging: Paging
    since: datetime | None
    until: datetime | None
    at: int | None = field(init=False)
    low: int = 0
    high: int = POSITION_MOST
    is_bounded: bool = False
    is_done: bool = False

    def __post_init__(self) -> None:
        after, self.at = self.paging.after, self.paging.at
        if self.at is not None:
            self.high = self.at
        if after is not None:
            self.pass_by(after)

    @property
    def limit(self) -> int:
        return min(self.paging.size + 1, FETCH_MOST)

    @property
    def all_parameters(self) -> dict[str, Any]:
        at = POSITION_MOST if self.at is None else self.at
        return {**self.parameters, "low": self.low, "high": self.high, "at": at, "limit": self.limit}

    def pass_by(self, place: int) -> None:
        """Go on behind a place."""
        if self.paging.newest_first:
            self.high = min(self.high, place - 1)
        else:
            self.low = max(self.low, place)


class Lists:
    """The lists of one ledger. Each takes the request and the seconds that remain for it, and returns the response.

    All raise InvalidCommand for a malformed request, a changed filter or a bad token, and what `Freshness.seen` raises.
    """

    def __init__(self, connections: Connections, freshness: Freshness, as_of: AsOf, accounts: Lookup[Balance]) -> None:
        self._connections: Final = connections
        self._freshness: Final = freshness
        self._as_of: Final = as_of
        self._accounts: Final = accounts

    async def list_accounts(
        self, request: account_pb2.ListAccountsRequest, remaining_s: float | None
    ) -> account_pb2.ListAccountsResponse:
        filters = Filters(request, balances.SQL)
        filters.any_of("kinds", _ACCOUNT_KINDS)
        filters.any_of("statuses", _ACCOUNT_STATUSES)
        filters.currency()
        since, until = filters.time("opened_since", "since"), filters.time("opened_until", "until")
        scan = _scan(request, balances.SQL.list_all, filters, since, until)

        async def as_it_was(found: list[tuple[Any, ...]], at: int) -> list[Placed[Balance]]:
            rows = await self._as_of.accounts([Balance._make(columns) for _, *columns in found], at)
            wanted = filters.parameters.get("statuses")
            placed = [Placed(place, row) for (place, *_), row in zip(found, rows, strict=True)]
            return [each for each in placed if wanted is None or each.row.status in wanted]

        page = await self._page(request, scan, as_it_was, account_message, remaining_s)
        return account_pb2.ListAccountsResponse(
            accounts=page.items, position=page.position, next_page_token=page.next_page_token
        )

    async def list_payments(
        self, request: payment_pb2.ListPaymentsRequest, remaining_s: float | None
    ) -> payment_pb2.ListPaymentsResponse:
        sql = payments.SQL
        filters = Filters(request, sql)
        filters.ids("payer_account_id", "payee_account_id")
        filters.any_of("states", _PAYMENT_STATES)
        filters.currency()
        filters.reference()
        since, until = filters.time("authorized_since", "since"), filters.time("authorized_until", "until")
        scan = _scan(request, f"{sql.list_columns}\n{_source(sql, filters, request)}", filters, since, until)

        async def as_it_was(found: list[tuple[Any, ...]], at: int) -> list[Placed[Payment]]:
            changed = [payment_id for _, payment_id, *_, position in found if position > at]
            then = await self._as_of.payments(changed, at)
            wanted = filters.parameters.get("states")
            rows = [Placed(place, then.get(row[0]) or Payment._make(row)) for place, *row, _ in found]
            return [each for each in rows if wanted is None or each.row.state in wanted]

        page = await self._page(request, scan, as_it_was, payment_message, remaining_s)
        return payment_pb2.ListPaymentsResponse(
            payments=page.items, position=page.position, next_page_token=page.next_page_token
        )

    async def list_transfers(
        self, request: transfer_pb2.ListTransfersRequest, remaining_s: float | None
    ) -> transfer_pb2.ListTransfersResponse:
        sql = transfers.SQL
        filters = Filters(request, sql)
        filters.any_of("states", _TRANSFER_STATES)
        filters.currency()
        filters.reference()
        since, until = filters.time("recorded_since", "since"), filters.time("recorded_until", "until")
        scan = _scan(request, f"{sql.list_columns}\n{_source(sql, filters, request)}", filters, since, until)

        async def as_it_was(found: list[tuple[Any, ...]], _at: int) -> list[Placed[Transfer]]:
            return [Placed(place, Transfer._make(row)) for place, *row in found]

        page = await self._page(request, scan, as_it_was, transfer_message, remaining_s)
        return transfer_pb2.ListTransfersResponse(
            transfers=page.items, position=page.position, next_page_token=page.next_page_token
        )

    async def list_entries(
        self, request: account_pb2.ListEntriesRequest, remaining_s: float | None
    ) -> account_pb2.ListEntriesResponse:
        """Raises AccountNotFound."""
        filters = Filters(request, entries.SQL)
        if filters.has_id("account_id"):
            filters.parameters["account_id"] = request.account_id
        filters.any_of("kinds", _ENTRY_KINDS)
        filters.reference()
        effective_since = filters.time("effective_since", "effective_since")
        filters.time("effective_until", "effective_until")
        since, until = filters.time("recorded_since", "since"), filters.time("recorded_until", "until")
        # Nothing is effective later than it was recorded: what is effective since then was recorded since then.
        since = max((each for each in (since, effective_since) if each is not None), default=None)
        scan = _scan(request, entries.SQL.list_all, filters, since, until)
        await self._require_account(request, remaining_s)

        async def as_it_was(found: list[tuple[Any, ...]], _at: int) -> list[Placed[Entry]]:
            return [Placed(row[0], Entry._make(row)) for row in found]

        page = await self._page(request, scan, as_it_was, entry_message, remaining_s)
        return account_pb2.ListEntriesResponse(
            entries=page.items, position=page.position, next_page_token=page.next_page_token
        )

    # --- pages -------------------------------------------------------------------------------------------------------

    async def _require_account(self, request: account_pb2.ListEntriesRequest, remaining_s: float | None) -> None:
        if not request.page_token:
            account_id = request.account_id
            found = await self._freshness.seen(
                lambda: self._accounts.find(account_id), request.min_position, remaining_s
            )
            if found.row is None:
                raise AccountNotFound(account_id=account_id)

    async def _page(
        self,
        request: Any,
        scan: Scan,
        as_it_was: Callable[[list[tuple[Any, ...]], int], Awaitable[Sequence[Placed[Row]]]],
        message: Callable[[Row], Item],
        remaining_s: float | None,
    ) -> Page[Item]:
        """One page; `as_it_was` turns what a statement found into the rows of the list as they were at a position."""
        clock = asyncio.get_running_loop().time
        deadline = None if remaining_s is None else clock() + remaining_s
        items: list[Item] = []
        last, size = 0, 0
        while not scan.is_done:
            found = await self._fetch(scan, request.min_position, None if deadline is None else deadline - clock())
            assert scan.at is not None
            for place, row in await as_it_was(found, scan.at):
                if items and (len(items) == scan.paging.size or size > PAGE_MOST_BYTES):
                    return Page(items, scan.at, next_page_token(request, scan.at, last))
                items.append(message(row))
                last, size = place, size + items[-1].ByteSize()
        assert scan.at is not None
        return Page(items, scan.at, "")

    async def _fetch(self, scan: Scan, min_position: int, remaining_s: float | None) -> list[tuple[Any, ...]]:
        """The next rows of a list, in order, each beginning with its place."""
        found = await self._freshness.seen(lambda: self._read(scan), max(min_position, scan.at or 0), remaining_s)
        rows = found.row or []
        if scan.at is None:
            scan.at = found.position
            scan.high = min(scan.high, scan.at)
        scan.is_done = len(rows) < scan.limit
        if rows:
            scan.pass_by(rows[-1][0])
        return rows

    async def _read(self, scan: Scan) -> Found[list[tuple[Any, ...]]]:
        if not scan.is_bounded:
            await self._bound(scan)
        rows = await self._connections.rows(scan.statement, scan.all_parameters, prepare=False)
        position, failure = rows[0][:2]
        found = [row[2:] for row in rows if row[2] is not None]
        return Found(position, failure, sorted(found, key=lambda row: row[0], reverse=scan.paging.newest_first))

    async def _bound(self, scan: Scan) -> None:
        """Turn bounds of time into bounds of place, which an index finds at once. The exact filters stay."""
        if scan.since is not None:
            scan.low = max(scan.low, (await self._as_of.last_before(scan.since)).position)
        if scan.until is not None:
            head, position = await self._as_of.last_before(scan.until)
            if position < head:  # Else there may be more to come from before it.
                scan.high = min(scan.high, position)
        scan.is_bounded = True


def _source(sql: Any, filters: Filters, request: Any) -> LiteralString:
    """Where a list reads from: all rows, or those of one account."""
    if not request.account_id:
        all_rows: LiteralString = sql.from_all
        return all_rows
    if filters.has_id("account_id"):
        filters.parameters["account_id"] = request.account_id
    of_account: LiteralString = sql.from_account_id
    return of_account


def _scan(
    request: Any, source: LiteralString, filters: Filters, since: datetime | None, until: datetime | None
) -> Scan:
    """Raises InvalidCommand, with all that is wrong with the request."""
    violations = list(filters.violations)
    try:
        paging = paging_of(request)
    except InvalidCommand as invalid:
        violations += invalid.violations
    if violations:
        raise InvalidCommand(*violations)
    order = SQL.newest_first if paging.newest_first else SQL.oldest_first
    statement = "\n".join([SQL.begin, source, *filters.conditions, order, SQL.end])
    return Scan(statement, filters.parameters, paging, since, until)
