"""As of: accounts and payments as they were at an earlier position, folded from the log by the read models' own folds.

A read model holds what is so now. What was so is in the log for ever: the last event of an account says it all, and a
payment has at most about a thousand.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, LiteralString, NamedTuple

from ledger.domain.events import account_stream, payment_stream
from ledger.postgres import sql_blocks
from ledger.upcasters import EventMapper
from projections import payments
from projections.balances import Balance, standing
from projections.batch import LoggedEvent, LoggedRow, decode
from projections.connections import Connections
from projections.payments import Payment

SQL: Final = sql_blocks("projections", "as_of.sql")


class LastUntil(NamedTuple):
    """The last position recorded up to or before a time (0 if none was), and the head when that was looked up."""

    head: int
    position: int


class AsOf:
    """Looks at the past of one ledger. All raise ReadsUnavailable."""

    def __init__(self, connections: Connections) -> None:
        self._connections: Final = connections
        self._mapper: Final = EventMapper()

    async def last_until(self, moment: datetime) -> LastUntil:
        """The last position that was recorded up to `moment`, inclusive."""
        return await self._last(moment, inclusive=True)

    async def last_before(self, moment: datetime) -> LastUntil:
        """The last position that was recorded before `moment`."""
        return await self._last(moment, inclusive=False)

    async def accounts(self, rows: Sequence[Balance], at: int) -> list[Balance]:
        """Accounts that were opened up to the position `at`, as they were there."""
        changed = [account_stream(row.account_id) for row in rows if row.position > at]
        last = {event.id: event for event in await self._events(SQL.last, changed, at)}
        return [standing(row, last[row.account_id]) if row.account_id in last else row for row in rows]

    async def payments(self, payment_ids: Sequence[str], at: int) -> dict[str, Payment]:
        """Those of the payments that existed at the position `at`, as they were there, by id."""
        events = await self._events(SQL.whole, [payment_stream(each) for each in payment_ids], at)
        return {change.last.id: payments.as_row(change) for change in payments.fold(events)}

    async def _last(self, moment: datetime, *, inclusive: bool) -> LastUntil:
        (row,) = await self._connections.rows(SQL.last_until, {"moment": moment, "inclusive": inclusive})
        return LastUntil(*row)

    async def _events(self, statement: LiteralString, streams: list[str], at: int) -> list[LoggedEvent]:
        if not streams:
            return []
        rows: list[tuple[Any, ...]] = await self._connections.rows(statement, {"streams": streams, "at": at})
        return decode([LoggedRow(*row) for row in rows], self._mapper)
