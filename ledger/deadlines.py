"""Until when the call that runs here is waited for. What it asks of the database takes its time limits from that."""

from __future__ import annotations

from contextvars import ContextVar
from time import monotonic
from typing import Final

DEADLINE: Final[ContextVar[float | None]] = ContextVar("deadline", default=None)
"""In seconds of the monotonic clock; None where nobody waits, or for ever."""


def time_left_s() -> float | None:
    """The seconds that remain, below zero when it is over."""
    deadline = DEADLINE.get()
    return None if deadline is None else deadline - monotonic()
