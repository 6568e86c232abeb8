"""Arrivals: who waits for which position, and is told at once when the checkpoint has come there."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Callable


class Arrivals:
    """Between one thread (or task) that reports how far the checkpoint has come, and coroutines of any event loop."""

    def __init__(self, on_wait: Callable[[int], None]) -> None:
        """`on_wait` is called whenever somebody begins to wait, with the position; from any thread."""
        self._on_wait = on_wait
        self._lock = threading.Lock()
        self._waiting: dict[asyncio.Future[None], int] = {}
        self._position = 0
        self._asked_for = 0
        self.awaited = threading.Event()
        """Set while somebody waits."""

    @property
    def position(self) -> int:
        """The last position reported."""
        return self._position

    async def wait_for(self, position: int) -> None:
        """Return when the checkpoint has reached `position`, or when waiting has become pointless (`release`)."""
        future = asyncio.get_running_loop().create_future()
        with self._lock:
            if position <= self._position:
                return
            self._waiting[future] = position
            self.awaited.set()
        self._on_wait(position)
        try:
            await future
        finally:
            with self._lock:
                self._forget([future])

    def reached(self, position: int) -> None:
        """Report that the checkpoint stands at `position`; from any thread. Costs next to nothing when nobody waits."""
        with self._lock:
            self._position = position
            if self._waiting or self._asked_for:
                self._tell([future for future, wanted in self._waiting.items() if wanted <= position])

    def ask_for(self, position: int) -> None:
        """Say that somebody waits for `position` elsewhere, and is not to be told here."""
        with self._lock:
            if position > self._position:
                self._asked_for = max(self._asked_for, position)
                self.awaited.set()

    def at_head(self) -> None:
        """Report that there is nothing more in the log: what was asked for elsewhere is not there, or not yet."""
        with self._lock:
            self._asked_for = 0
            self._tell([])

    def release(self) -> None:
        """Let everybody go who waits: the checkpoint will not move, and they had better look why."""
        with self._lock:
            self._tell(list(self._waiting))

    def _tell(self, futures: list[asyncio.Future[None]]) -> None:
        self._forget(futures)
        by_loop = defaultdict(list)
        for future in futures:
            by_loop[future.get_loop()].append(future)
        for loop, those in by_loop.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_finish, those)

    def _forget(self, futures: list[asyncio.Future[None]]) -> None:
        for future in futures:
            self._waiting.pop(future, None)
        if not self._waiting and self._asked_for <= self._position:
            self._asked_for = 0
            self.awaited.clear()


def _finish(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
