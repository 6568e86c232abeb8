"""Tables for people."""

from __future__ import annotations

from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table

_WIDE: Final = 10_000


def screen() -> Console:
    """Where tables are printed: a row is one line, whole, wherever it goes. A terminal breaks it where it has to."""
    return Console(highlight=False, width=_WIDE)


def table_of(*columns: str, words: int = 1) -> Table:
    """A table whose columns after the first few are numbers. Every row is one line."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number < words else "right", no_wrap=True)
    return table
