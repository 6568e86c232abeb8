"""The head of the log where commands are recorded: where reads look, on a standby, the log may end before it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from projections import checkpoint
from projections.connections import Rows
from projections.errors import PositionAheadOfHead


class LogHead:
    """Tells a position that is yet to come from one that has not come to where reads look."""

    def __init__(self, rows: Callable[..., Awaitable[Rows]], known: Callable[[], int] = lambda: 0) -> None:
        """`rows` runs statements where commands are recorded; `known` is what this process knows of the head anyway."""
        self.rows: Final = rows
        self.known: Final = known

    async def require(self, position: int) -> None:
        """Return if the position is in the log. Raises PositionAheadOfHead if it isn't, and ReadsUnavailable."""
        if position > self.known():
            ((head,),) = await self.rows(checkpoint.SQL.head)
            if position > head:
                raise PositionAheadOfHead(min_position=position, head=head)
