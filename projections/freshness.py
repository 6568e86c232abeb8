"""Freshness: reads that see what they must have seen, or say why they can't."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, TypeVar

from projections import checkpoint
from projections.arrivals import Arrivals
from projections.connections import Connections
from projections.errors import ReadModelBehind, ReadModelStopped, ReadsUnavailable
from projections.lag import Lag
from projections.log_head import LogHead
from projections.lookups import Found

WAIT_MOST_S: Final = 5.0
GLANCE_S: Final = 0.05
"""How long a position is waited for before asking whether the log has it at all: mostly it is on its way."""

POLL_S: Final = 0.01
WATCH_S: Final = 0.5
TRAVEL_S: Final = 0.05
"""What is kept of a deadline for the answer to travel."""

Row = TypeVar("Row")


class Freshness:
    """Repeats a read until it has seen a position, for as long as it may take.

    With a follower of the server's own a read that waits is told at once. Without, the checkpoint is polled while
    somebody waits. Either way it is what the read itself saw that counts: it may come from a replica.
    """

    def __init__(self, connections: Connections, arrivals: Arrivals | None, log_head: LogHead) -> None:
        """`arrivals` are told by a follower of this server's, if it has one.

        `log_head` is of the log itself: on a standby that lags or hangs it ends early, as the read models do.
        """
        self._connections: Final = connections
        self._polls: Final = arrivals is None
        self._awaited = awaited = asyncio.Event()  # Arrivals know the event only: not this, or its task would last.
        self._arrivals: Final = arrivals or Arrivals(on_wait=lambda _: awaited.set())
        self._watching: asyncio.Task[None] | None = None
        self._log_head: Final = log_head
        self.failure: str | None = "the read models have not been looked at yet"
        """Why reads are not answered as they should be, if so; at most a second old."""
        self.position = 0
        """The last position that reads were seen to include, as old as that."""
        self.stopped = False
        """Whether following had stopped by then."""
        self.lag: Final = Lag()

    def open(self) -> None:
        self._watching = asyncio.create_task(self._watch())

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
            self._watching = None  # With what ended it: a connection that was being made is let go of only then.

    async def seen(
        self, read: Callable[[], Awaitable[Found[Row]]], min_position: int, remaining_s: float | None
    ) -> Found[Row]:
        """What `read` finds, once it has seen `min_position`; at most for 5 s, and for what remains.

        Where following has stopped, only reads that ask for no more than was applied are answered. Raises
        ReadModelBehind, ReadModelStopped, PositionAheadOfHead and ReadsUnavailable.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + _patience_s(remaining_s)
        if min_position > self._arrivals.position:
            await self._arrival(min_position, min(clock() + GLANCE_S, deadline))
        found = await _by(deadline, read())
        if found.position < min_position and found.failure is None:
            await _by(deadline, self._log_head.require(min_position))
        while found.position < min_position:
            if found.failure is not None or clock() + POLL_S >= deadline:
                raise ReadModelBehind(position=found.position, min_position=min_position)
            await self._arrival(min_position, deadline)
            with suppress(ReadsUnavailable):
                found = await _by(deadline, read())
        if found.failure is not None and min_position == 0:
            raise ReadModelStopped(position=found.position)
        return found

    async def _arrival(self, position: int, deadline: float) -> None:
        """Wait until the checkpoint has come to `position`. If it has, and the read lags behind it, wait a moment."""
        if position <= self._arrivals.position:
            await asyncio.sleep(POLL_S)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await self._arrivals.wait_for(position)

    # --- watching the checkpoint -------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            known_head = self._log_head.known()
            try:
                ((position, failure, head, waiting_s),) = await self._connections.rows(checkpoint.SQL.watch)
            except Exception as error:  # Whatever it is, reads fail for the same reason.
                self.failure = str(error)
            else:
                self.lag.see(max(head, known_head), position, waiting_s)
                self.position, self.failure, self.stopped = position, failure, failure is not None
                self._report(position)
            await self._pause()

    def _report(self, position: int) -> None:
        if self._polls:
            self._arrivals.reached(position)
            if self.failure is not None:
                self._arrivals.release()

    async def _pause(self) -> None:
        if self._polls and self._arrivals.awaited.is_set():
            await asyncio.sleep(POLL_S)
            return
        self._awaited.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(WATCH_S):
                await self._awaited.wait()


def _patience_s(remaining_s: float | None) -> float:
    if remaining_s is None:
        return WAIT_MOST_S
    return min(WAIT_MOST_S, max(0.0, remaining_s - min(TRAVEL_S, remaining_s / 10)))


async def within(remaining_s: float | None, answer: Awaitable[Row]) -> Row:
    """What a read answers that need not have seen any position. Raises ReadsUnavailable when time is over."""
    return await _by(asyncio.get_running_loop().time() + _patience_s(remaining_s), answer)


async def _by(deadline: float, answer: Awaitable[Row]) -> Row:
    """Raises ReadsUnavailable when the deadline passes first."""
    try:
        async with asyncio.timeout_at(deadline):
            return await answer
    except TimeoutError:
        raise ReadsUnavailable from None
