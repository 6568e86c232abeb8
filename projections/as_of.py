"""As of: accounts and payments as they were at an earlier position, folded from the log by the read models' own folds.

A read model holds what is so now. What was so is in the log for ever: the last event of an account says it all, and a
payment has at most about a thousand.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, Final, LiteralString, NamedTuple

from ledger.domain.errors import FieldViolation, InvalidCommand
from ledger.domain.events import payment_stream
from ledger.postgres import sql_blocks
from ledger.upcasters import EventMapper
from ledger.wire import moment
from projections import payments
from projections.balances import Balance, standing
from projections.batch import CannotApply, LoggedEvent, LoggedRow, decode
from projections.connections import Connections, Rows
from projections.freshness import within
from projections.log_head import LogHead
from projections.payments import Payment

SQL: Final = sql_blocks("projections", "as_of.sql")


class LastUntil(NamedTuple):
    """The last position recorded up to or before a time (0 if none was), and the head when that was looked up."""

    head: int
    position: int


class AsOf:
    """Looks at the past of one ledger. All raise ReadsUnavailable."""

    def __init__(self, connections: Connections, log_head: LogHead) -> None:
        """`log_head` is of the log itself: on a standby that is behind it ends early."""
        self._connections: Final = connections
        self._log_head: Final = log_head
        self._mapper: Final = EventMapper()

    async def known_at(self, request: Any, remaining_s: float | None) -> int | None:
        """The position that a request's `known_at` stands for; None if it asks for now. Raises InvalidCommand."""
        asked = request.WhichOneof("known_at")
        if asked is None:
            return None
        if asked == "recorded_at":
            recorded_at = moment(request.recorded_at, "recorded_at")
            last = await within(remaining_s, self._last_until(recorded_at, self._connections.rows))
            if last.position == last.head:  # Where commands are recorded there may be more from before that time.
                last = await within(remaining_s, self._last_until(recorded_at, self._log_head.rows))
            return last.position
        if request.at_position < 1:
            raise InvalidCommand(FieldViolation("at_position", "must be 1 or more"))
        position: int = request.at_position
        return position

    async def whole_until(self, position: int) -> int:
        """The end of the last command of which no event is after `position`.

        Between the events of a command its debits are not yet its credits.
        """
        rows = await self._connections.rows(SQL.next, {"position": position})
        try:
            for event in decode([LoggedRow(*row) for row in rows], self._mapper):
                return min(position, int(event.fields["command_position"]) - 1)
        except CannotApply:
            pass  # Following stops there, and nothing behind it will ever be shown: it belongs to no command before it.
        return position

    async def last_before(self, time: datetime) -> LastUntil:
        """The last position that was recorded before `time`."""
        (row,) = await self._connections.rows(SQL.last_until, {"time": time, "inclusive": False})
        return LastUntil(*row)

    async def accounts(self, rows: Sequence[Balance], at: int) -> list[Balance]:
        """Accounts that were opened up to the position `at`, as they were there."""
        changed = [row.account_id for row in rows if row.position > at]
        last = {event.id: event for event in await self._events(SQL.last, changed, at)}
        return [standing(row, last[row.account_id]) if row.account_id in last else row for row in rows]

    async def payments(self, payment_ids: Sequence[str], at: int) -> dict[str, Payment]:
        """Those of the payments that existed at the position `at`, as they were there, by id."""
        events = await self._events(SQL.whole, [payment_stream(each) for each in payment_ids], at)
        return {change.last.id: payments.as_row(change) for change in payments.fold(events)}

    async def _last_until(self, time: datetime, rows: Callable[..., Awaitable[Rows]]) -> LastUntil:
        """The last position that was recorded up to `time`, inclusive, where `rows` runs statements."""
        (row,) = await rows(SQL.last_until, {"time": time, "inclusive": True})
        return LastUntil(*row)

    async def _events(self, statement: LiteralString, names: list[str], at: int) -> list[LoggedEvent]:
        if not names:
            return []
        rows: list[tuple[Any, ...]] = await self._connections.rows(statement, {"names": names, "at": at})
        return decode([LoggedRow(*row) for row in rows], self._mapper)
