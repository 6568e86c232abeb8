"""`ledger token`: who may call a server that asks for tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ledger.callers import Role
from ledger.database import reached
from ledger.exits import EXIT_FAILED, fail
from ledger.flags import DataDir, Dsn, settings_of
from ledger.migrations import require_migrated
from ledger.settings import Settings
from ledger.tables import screen, table_of
from ledger.terminal import quoted

if TYPE_CHECKING:
    from ledger.tokens import Tokens

app = typer.Typer(
    help=(
        "Who may call: make, list and revoke tokens.\n\n"
        "They are kept in the database, hashed, and a server with LEDGER_TOKENS=true asks every caller for one. So "
        "these commands need --dsn or --data-dir, and no server; a server knows of what they did within a second."
    ),
    no_args_is_help=True,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")]

_TIME: Final = re.compile(r"([1-9][0-9]{0,4})([hd])").fullmatch
_UNITS: Final = {"h": timedelta(hours=1), "d": timedelta(days=1)}


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Who it is for: the actor on every event that comes of it.")],
    roles: Annotated[
        list[Role],
        typer.Option("--role", help="What they are here for: docs/security.md has who may what. Can be repeated."),
    ],
    ledgers: Annotated[
        list[str] | None,
        typer.Option("--ledger", metavar="NAME", help="A ledger that it is for. Can be repeated.  \\[main]"),
    ] = None,
    expires_in: Annotated[str, typer.Option("--expires-in", metavar="TIME", help="Such as 90d or 12h.")] = "90d",
    dsn: Dsn = None,
    data_dir: DataDir = None,
) -> None:
    """Make a token and print it, once: it is kept nowhere.

    Several tokens may have one name: to change one, make another, put it in place, and revoke the first.
    """
    valid_for = _valid_for(expires_in)
    settings = settings_of(dsn=dsn, data_dir=data_dir)
    with _tokens(settings) as tokens:
        typer.echo(tokens.create(name, roles, ledgers or [settings.ledger], valid_for))


@app.command(name="list")
def list_(dsn: Dsn = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Show every token that was ever made, oldest first; none can be used from what is shown."""
    with _tokens(settings_of(dsn=dsn, data_dir=data_dir)) as tokens:
        listed = tokens.list()
    if as_json:
        typer.echo(json.dumps([each.as_json() for each in listed]))
        return
    table = table_of("id", "name", "roles", "ledgers", "state", "created", "by", "expires", words=8)
    for each in listed:
        moments = f"{each.created_at:%Y-%m-%d %H:%M}", each.created_by, f"{each.expires_at:%Y-%m-%d %H:%M}"
        table.add_row(each.token_id, each.name, ",".join(each.roles), ",".join(each.ledgers), each.state, *moments)
    screen().print(table)


@app.command()
def revoke(
    token: Annotated[str, typer.Argument(help="Its id, as `ledger token list` shows it, or the token itself.")],
    dsn: Dsn = None,
    data_dir: DataDir = None,
) -> None:
    """End a token, for good. Servers refuse it within a second."""
    with _tokens(settings_of(dsn=dsn, data_dir=data_dir)) as tokens:
        revoked = tokens.revoke(token)
    typer.echo("ledger: revoked" if revoked else "ledger: it was revoked before")


def _valid_for(text: str) -> timedelta:
    found = _TIME(text)
    if not found:
        raise typer.BadParameter(f"{quoted(text)} is not a time such as 90d or 12h.", param_hint="--expires-in")
    return int(found[1]) * _UNITS[found[2]]


@contextmanager
def _tokens(settings: Settings) -> Iterator[Tokens]:
    """The tokens of a database that is migrated. What can't be done with them ends the command."""
    from ledger.tokens import Tokens, TokenUnusable

    with reached(settings) as database:
        require_migrated(database, settings.ledger, callers=True)
        try:
            yield Tokens(database, settings.ledger)
        except TokenUnusable as error:
            fail(str(error), EXIT_FAILED)
