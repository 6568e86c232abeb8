"""Flags that several commands have, and the settings that follow from them."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from ledger.exits import EXIT_USAGE, fail
from ledger.settings import Settings, variable

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


def _problem(error: Any, flags: Container[str]) -> str:
    """What is wrong, of the flag or the variable that it was given in."""
    message: str = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:
        return message  # It names what it is about.
    field = str(error["loc"][0])
    name = f"--{field.replace('_', '-')}" if field in flags else variable(field)
    return f"{name}: {message[:1].lower()}{message[1:]}"
