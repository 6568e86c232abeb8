"""Python's garbage collector, set for programs that keep much in memory and make no cycles."""

from __future__ import annotations

import gc
from typing import Final

_THRESHOLDS: Final = (100_000, 20, 100)


def settle() -> None:
    """Call it once all is imported. As the collector comes set, its passes take a third of the time of a decision.

    What is loaded by now stays, and is not looked at again. What decisions and folds make is freed by reference counts.
    """
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
