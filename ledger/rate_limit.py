"""How much each caller may ask for: a token bucket per name (RFC 2697 calls its size the burst)."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Final

from ledger.domain.errors import Refusal


class RateExceeded(Refusal):
    """Caller {actor} asks for more than {rate_per_s} commands and queries a second. Nothing was recorded."""

    code = "RATE_EXCEEDED"


class RateLimit:
    """Commands and queries per second and caller, with a burst that may be used at once after a pause.

    Whoever has anything left is let in, and what is asked for is then taken off, below zero too: a batch of 5,000
    passes however small the burst is, and is paid for by the time after it.
    """

    def __init__(self, per_s: float, burst: float, clock: Callable[[], float] = monotonic) -> None:
        self._per_s: Final = per_s
        self._burst: Final = burst
        self._clock: Final = clock
        self._levels: dict[str, tuple[float, float]] = {}
        """By caller: what was left, and when that was. There are as many as names of tokens."""

    def take(self, caller: str, amount: int) -> None:
        """Take that much off; raise RateExceeded, and take nothing, if the caller has nothing left."""
        now = self._clock()
        level, then = self._levels.get(caller, (self._burst, now))
        level = min(self._burst, level + (now - then) * self._per_s)
        if level <= 0:
            raise RateExceeded(actor=caller, rate_per_s=f"{self._per_s:g}")
        self._levels[caller] = (level - amount, now)
