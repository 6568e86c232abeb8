"""The trial balance: what all accounts add up to at one position, and every account in it.

It is read page by page, and no snapshot is held in between: the lines of an account up to a position never change. So
it takes the same memory however many accounts there are, and a client may read it as slowly as it likes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, LiteralString

from ledger.domain.errors import FieldViolation, InvalidCommand
from ledger.postgres import sql_blocks
from ledger.v1 import audit_pb2
from ledger.wire import moment
from projections.answers import balance_message
from projections.as_of import AsOf
from projections.balances import KnownBalance, known_balance, require_representable
from projections.connections import Connections, Rows
from projections.filters import Filters
from projections.freshness import Freshness, within
from projections.lookups import Found

SQL: Final = sql_blocks("projections", "trial_balance.sql")

ALL_PAGE: Final = 20_000
"""How many accounts one statement adds up."""

EFFECTIVE_PAGE: Final = 1_000
"""The same by effective time, where it looks at every line of each."""

MESSAGE_PAGE: Final = 2_000
"""How many accounts a message has: well below gRPC's usual 4 MiB."""


class TrialBalances:
    """Answers GetTrialBalance for one ledger."""

    def __init__(self, connections: Connections, freshness: Freshness, as_of: AsOf) -> None:
        self._connections: Final = connections
        self._freshness: Final = freshness
        self._as_of: Final = as_of

    async def get_trial_balance(
        self, request: audit_pb2.GetTrialBalanceRequest, remaining_s: float | None
    ) -> AsyncGenerator[audit_pb2.GetTrialBalanceResponse, None]:
        """The totals, then the accounts. Each response is made when it is asked for.

        Raises InvalidCommand, what `Freshness.seen` raises, and BalanceNotRepresentable when it comes to an account
        whose balance by effective time doesn't fit into the API's int64; the totals count it all the same.
        """
        asked = await self._asked(request, remaining_s)
        begun = await self._freshness.seen(self._begin, max(request.min_position, asked.at or 0), remaining_s)
        at = await within(remaining_s, self._as_of.whole_until(begun.position if asked.at is None else asked.at))
        accounts = Accounts(self._connections, self._freshness, asked, at)
        of_all: dict[str, Any] = {"position": at, "head": begun.row}
        yield audit_pb2.GetTrialBalanceResponse(totals=await accounts.totals(remaining_s), **of_all)
        async with aclosing(accounts.pages(remaining_s)) as pages:
            async for page in pages:
                yield audit_pb2.GetTrialBalanceResponse(accounts=map(balance_message, page), **of_all)

    async def _asked(self, request: audit_pb2.GetTrialBalanceRequest, remaining_s: float | None) -> Asked:
        """What is asked for. Raises InvalidCommand, with all that is wrong."""
        filters = Filters(request, SQL)
        filters.currency()
        violations, at, effective_at = filters.violations, None, None
        if request.min_position < 0:
            violations.append(FieldViolation("min_position", "must not be negative"))
        try:
            at = await self._as_of.known_at(request, remaining_s)
        except InvalidCommand as invalid:
            violations += invalid.violations
        try:
            effective_at = moment(request.effective_at, "effective_at") if request.HasField("effective_at") else None
        except InvalidCommand as invalid:
            violations += invalid.violations
        if violations:
            raise InvalidCommand(*violations)
        return Asked(at, effective_at, filters)

    async def _begin(self) -> Found[int]:
        (row,) = await self._connections.rows(SQL.begin)
        return Found(*row)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for: `at` is the position if it asks for one."""

    at: int | None
    effective_at: datetime | None
    filters: Filters


@dataclass(slots=True)
class Total:
    """What accounts of one currency add up to. Sums of int64 may be beyond one."""

    accounts: int = 0
    debits: int = 0
    credits: int = 0
    reserved: int = 0

    def add(self, accounts: int, *sums: Any) -> None:
        debits, credits_, reserved = map(int, sums)  # They are numeric in Postgres.
        self.accounts += accounts
        self.debits += debits
        self.credits += credits_
        self.reserved += reserved


class Accounts:
    """The accounts of a trial balance as they were at a position, in byte order of their ids.

    All methods raise what `Freshness.seen` raises.
    """

    def __init__(self, connections: Connections, freshness: Freshness, asked: Asked, at: int) -> None:
        self._connections: Final = connections
        self._freshness: Final = freshness
        self._at: Final = at
        self._parameters: Final = {**asked.filters.parameters, "at": at, "effective_at": asked.effective_at}
        is_known = asked.effective_at is None
        balance: LiteralString = SQL.known if is_known else SQL.effective
        self._balances: Final[LiteralString] = "\n".join(
            [SQL.standing, *asked.filters.conditions, SQL.standing_end, balance]
        )
        self._most: Final = ALL_PAGE if is_known else EFFECTIVE_PAGE

    async def totals(self, remaining_s: float | None) -> list[audit_pb2.TrialBalanceTotal]:
        """What they add up to, by currency."""
        totals: defaultdict[str, Total] = defaultdict(Total)
        after, has_more = "", self._at > 0
        while has_more:
            rows = await self._page(SQL.totals, after, self._most, remaining_s)
            for currency_code, accounts, *sums, _ in rows:
                totals[currency_code].add(accounts, *sums)
            has_more = sum(accounts for _, accounts, *_ in rows) == self._most
            after = max((last for *_, last in rows), default="")
        return [_message(currency_code, total) for currency_code, total in sorted(totals.items())]

    async def pages(self, remaining_s: float | None) -> AsyncGenerator[list[KnownBalance], None]:
        """All of them, page by page. Raises BalanceNotRepresentable too."""
        after, has_more = "", self._at > 0
        limit = min(self._most, MESSAGE_PAGE)
        while has_more:
            rows = await self._page(SQL.accounts, after, limit, remaining_s)
            page = list(map(known_balance, rows))
            for balance in page:
                require_representable(balance)
            if page:
                yield page
                after = page[-1].account_id
            has_more = len(page) == limit

    async def _page(self, end: LiteralString, after: str, limit: int, remaining_s: float | None) -> Rows:
        """The rows of a statement on the accounts after one."""
        statement: LiteralString = f"{self._balances}\n{end}"
        parameters = {**self._parameters, "after": after, "limit": limit}

        async def read() -> Found[Rows]:
            rows = await self._connections.rows(statement, parameters, prepare=False)
            position, failure = rows[0][:2]
            return Found(position, failure, [row[2:] for row in rows if row[2] is not None])

        return (await self._freshness.seen(read, self._at, remaining_s)).row or []


def _message(currency_code: str, total: Total) -> audit_pb2.TrialBalanceTotal:
    return audit_pb2.TrialBalanceTotal(
        currency_code=currency_code,
        accounts=total.accounts,
        debits=str(total.debits),
        credits=str(total.credits),
        reserved=str(total.reserved),
    )
