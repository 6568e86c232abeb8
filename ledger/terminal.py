"""Text from anywhere, as it may stand on a terminal: nothing in it can move the cursor or pass for something else."""

from __future__ import annotations

from typing import Final

_QUOTED_LENGTH: Final = 60


def quoted(text: str) -> str:
    """The text as an ASCII literal, cut short."""
    return ascii(text) if len(text) <= _QUOTED_LENGTH else f"{text[:_QUOTED_LENGTH]!a}..."


def printable(text: str) -> str:
    """The whole text on one line: what can't be printed is escaped, the rest stays as it is."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
