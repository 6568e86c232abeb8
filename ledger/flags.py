"""Flags that several commands have, and the settings that follow from them."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from ledger.exits import EXIT_USAGE, fail
from ledger.settings import Settings, variable
from ledger.terminal import quoted

if TYPE_CHECKING:
    from ledger.audit.note import PublicKey

Dsn = Annotated[
    str | None, typer.Option("--dsn", help="Connection string of a Postgres 16 or newer, instead of an embedded one.")
]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Where the embedded Postgres keeps its data.  \\[.data]")
]
LedgerName = Annotated[str | None, typer.Option("--ledger", metavar="NAME", help="The ledger's name.  \\[main]")]
Server = Annotated[
    str | None,
    typer.Option("--server", metavar="HOST:PORT", help="Where a server listens.  \\[127.0.0.1:50051]"),
]
TrustedKey = Annotated[
    str | None, typer.Option("--public-key", metavar="TEXT|FILE", help="The ledger's public key, which you trust.")
]


def settings_of(**flags: Any) -> Settings:
    """The settings, where these flags outdo all else; None is a flag that was not given. Ends if any is wrong."""
    given = {name: value for name, value in flags.items() if value is not None}
    if "data_dir" in given and "dsn" not in given:
        # A flag outdoes the environment: --data-dir asks for the embedded Postgres, and for nothing else.
        given["dsn"] = given["read_dsn"] = None
    try:
        return Settings(**given)
    except ValidationError as error:
        fail("; ".join(_problem(each, flags=given) for each in error.errors()), EXIT_USAGE)


def trusted_key(given: str) -> PublicKey:
    """The key that is given as text, or in a file. One that is none is wrong usage."""
    from ledger.audit.note import NoteInvalid, PublicKey

    try:
        is_text = not given.strip() or ("+" in given and not Path(given).is_file())
        text = given if is_text else Path(given).read_text(encoding="utf-8")
        if text.strip():
            return PublicKey.parse(text)
        # An unset variable of a shell, or a file that was never filled, must not pass for a key that wasn't given.
        why = "the key is empty"
    except NoteInvalid as error:
        why = str(error)
    except UnicodeDecodeError:
        why = "is not UTF-8"
    except OSError as error:
        why = str(error.strerror)
    raise typer.BadParameter(f"{quoted(given)}: {why}.", param_hint="--public-key")


def _problem(error: Any, flags: Container[str]) -> str:
    """What is wrong, of the flag or the variable that it was given in."""
    message: str = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:
        return message  # It names what it is about.
    field = str(error["loc"][0])
    name = f"--{field.replace('_', '-')}" if field in flags else variable(field)
    return f"{name}: {message[:1].lower()}{message[1:]}"
