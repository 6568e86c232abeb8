"""How a command ends that can't go on: one line on stderr, and an exit code."""

from __future__ import annotations

import sys
from typing import Final, NoReturn

import typer

from ledger.redaction import redacted

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_CANNOT_START: Final = 3


def fail(message: str, code: int = EXIT_CANNOT_START) -> NoReturn:
    """End the program, and say why."""
    typer.echo(f"ledger: {redacted(message)}", err=True)
    sys.exit(code)
