"""The head watch: tells those who follow the log when it has grown."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

from ledger.outages import ShuttingDown
from ledger.postgres import sql_blocks
from projections.arrivals import Arrivals
from projections.connections import Connections

SQL: Final = sql_blocks("ledger.audit", "log_batches.sql")

POLL_S: Final = 0.05


class HeadWatch:
    """Looks at the head of the log for all who wait, and hears of it at once where a committer is in the same process.

    However many follow, it is one small query every 50 ms, and none while nobody waits.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections: Final = connections
        self._awaited = awaited = asyncio.Event()  # Arrivals know the event only: not this, or its task would last.
        self._arrivals: Final = Arrivals(on_wait=lambda _: awaited.set())
        self._watching: asyncio.Task[None] | None = None
        self._draining = False

    def open(self) -> None:
        self._watching = asyncio.create_task(self._watch())

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
            self._watching = None  # With what ended it: a connection that was being made is let go of only then.

    def appended(self, head: int) -> None:
        """Say that the log has grown up to `head`; from any thread."""
        self._arrivals.reached(head)

    def drain(self) -> None:
        """Let everybody go who waits, now and later, with ShuttingDown."""
        self._draining = True
        self._arrivals.release()

    async def beyond(self, position: int, until: float) -> None:
        """Return when the head is beyond `position`, at the loop's time `until`, or when the head can't be looked at.

        Raises ShuttingDown.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                if not self._draining:
                    await self._arrivals.wait_for(position + 1)
        if self._draining:
            raise ShuttingDown

    async def _watch(self) -> None:
        while True:
            try:
                ((head,),) = await self._connections.rows(SQL.head)
            except Exception:  # Whatever it is, those who wait will meet it themselves, and can tell their clients.
                self._arrivals.release()
            else:
                self._arrivals.reached(head)
            await self._pause()

    async def _pause(self) -> None:
        if self._arrivals.awaited.is_set():
            await asyncio.sleep(POLL_S)
            return
        self._awaited.clear()
        await self._awaited.wait()
