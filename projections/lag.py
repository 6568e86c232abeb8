"""Lag: how far something is behind the log, in events and in seconds."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Final

MARKS_MOST: Final = 256


class Lag:
    """Told now and then how long the log is and how much of it is applied, tells how far the latter is behind.

    The seconds are counted here, from when a head was first seen that is not applied yet: so they don't depend on
    anybody's clock, and grow too when nothing can be asked any more. Told by one thread, read by any.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock: Final = clock
        self._marks: list[tuple[int, float]] = []
        """Heads that are not applied, with when each was first seen."""
        self._since: float | None = None
        self.events = 0

    @property
    def seconds(self) -> float:
        """For how long the oldest event that is not applied has been waiting; 0 when all are."""
        since = self._since
        return 0.0 if since is None else self._clock() - since

    def see(self, head: int, applied: int, waiting_s: float = 0.0) -> None:
        """The log ends at `head`, `applied` of it is applied; what comes next has waited for `waiting_s` at least."""
        now = self._clock()
        self._marks = [(mark, at) for mark, at in self._marks if mark > applied]
        if head > max(applied, self._marks[-1][0] if self._marks else 0):
            self._marks.append((head, now))
        if len(self._marks) > MARKS_MOST:
            del self._marks[1::2]  # The first one counts most; of the others some will do.
        self._since = min(self._marks[0][1], now - waiting_s) if self._marks else None
        self.events = max(head - applied, 0)
