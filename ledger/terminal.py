"""Standard streams, and text from anywhere as it may stand on a terminal: nothing in it can pass for something else."""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper
from typing import Final

_QUOTED_LENGTH: Final = 60


def quoted(text: str) -> str:
    """The text as an ASCII literal, cut short."""
    return ascii(text) if len(text) <= _QUOTED_LENGTH else f"{text[:_QUOTED_LENGTH]!a}..."


def printable(text: str) -> str:
    """The whole text on one line: what can't be printed is escaped, the rest stays as it is."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def have_standard_streams() -> None:
    """Give a program that was started without one of the three (as by `2>&-`) one that leads nowhere.

    Else the next file or connection that it opens would take the number, and have lines for people written into it.
    And let none of them lack a letter: what was done must not end like a failure because of how a terminal writes.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # It takes the lowest number that is free. Programs that this one starts are to have it as well.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # As stderr does by itself.


def lose_output() -> None:
    """Have nothing more written to stdout: what could not be would be tried again as the program ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
