"""Python's garbage collector, kept from looking at a large memory over and over."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_at_rest() -> Iterator[None]:
    """No search for cycles meanwhile.

    What an audit remembers has none, and is large: to look through it for them again and again took two fifths of the
    time. All else is freed when the last reference goes, as ever.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
