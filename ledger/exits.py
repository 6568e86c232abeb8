"""How a command ends that can't go on, or is not to: one line on stderr, and an exit code."""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from typing import Final, NoReturn

import typer

from ledger.redaction import redacted

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_CANNOT_START: Final = 3


def fail(message: str, code: int = EXIT_CANNOT_START) -> NoReturn:
    """End the program, and say why. Where that can't be written, the exit code still tells."""
    with suppress(OSError):
        typer.echo(f"ledger: {redacted(message)}", err=True)
    sys.exit(code)


def undo_when_told_to_end() -> None:
    """Have SIGTERM do what Ctrl-C does from now on: a timer or a container that ends a command sends no other signal.

    By itself it would end this process alone, at once: what it had begun would stay, and programs that it runs go on.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
