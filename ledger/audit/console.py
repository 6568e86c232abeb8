"""`ledger audit`: what an auditor does, and what the keeper of the signing key does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from ledger.database import reached
from ledger.exits import EXIT_FAILED, fail
from ledger.flags import DataDir, Dsn, LedgerName, settings_of

app = typer.Typer(help="Verify the history, prove a fact, take it home.", no_args_is_help=True)

TreeKey = Annotated[
    Path | None, typer.Option("--tree-key", help="The file of the signing key.  \\[tree.key in --data-dir]")
]


# --- the signing key -------------------------------------------------------------------------------------------------


@app.command(name="public-key")
def public_key(data_dir: DataDir = None, ledger: LedgerName = None, tree_key: TreeKey = None) -> None:
    """Print the public key that heads are signed with, for auditors to keep."""
    from ledger.audit.keys import KeyFiles, KeyUnusable

    path, origin = _key(data_dir=data_dir, ledger=ledger, tree_key=tree_key)
    try:
        typer.echo(KeyFiles(path, origin).key().public)
    except KeyUnusable as error:
        fail(str(error))


@app.command(name="make-key")
def make_key(data_dir: DataDir = None, ledger: LedgerName = None, tree_key: TreeKey = None) -> None:
    """Make the first signing key, and print its public half. Back it up, and keep it off the database's machine."""
    from ledger.audit.keys import KeyFiles, KeyUnusable

    path, origin = _key(data_dir=data_dir, ledger=ledger, tree_key=tree_key)
    try:
        typer.echo(KeyFiles(path, origin).make().public)
    except KeyUnusable as error:
        fail(str(error), EXIT_FAILED)


@app.command(name="rotate-key")
def rotate_key(data_dir: DataDir = None, ledger: LedgerName = None, tree_key: TreeKey = None) -> None:
    """Make the next signing key. The next head that the server signs is signed by both, and introduces it."""
    from ledger.audit.keys import KeyFiles, KeyUnusable

    path, origin = _key(data_dir=data_dir, ledger=ledger, tree_key=tree_key)
    try:
        typer.echo(KeyFiles(path, origin).prepare_next().public)
    except KeyUnusable as error:
        fail(str(error))


@app.command(name="accept-restore")
def accept_restore_command(
    reason: Annotated[str, typer.Option("--reason", help="Why, for all who read the record.")],
    dsn: Dsn = None,
    data_dir: DataDir = None,
    ledger: LedgerName = None,
    tree_key: TreeKey = None,
) -> None:
    """Let signing go on from a database that was restored from an older copy. It is recorded openly, for ever."""
    from ledger.audit.keys import KeyFiles, KeyUnusable
    from ledger.audit.restore import NothingToAccept, accept_restore
    from ledger.audit.signer import SigningRefused
    from ledger.committer import utc_now

    if not reason.strip():
        raise typer.BadParameter("must say why", param_hint="--reason")
    settings = settings_of(dsn=dsn, data_dir=data_dir, ledger=ledger, tree_key=tree_key)
    path = settings.key_path or _no_key()
    with reached(settings) as database:
        try:
            note = accept_restore(database, settings.ledger, KeyFiles(path, settings.origin), reason, utc_now())
        except NothingToAccept as error:
            fail(str(error), EXIT_FAILED)
        except (KeyUnusable, SigningRefused) as error:
            fail(str(error))
    typer.echo(note, nl=False)


def _key(**flags: Path | str | None) -> tuple[Path, str]:
    """The file of the key, and the name under which it signs."""
    settings = settings_of(**flags)
    return settings.key_path or _no_key(), settings.origin


def _no_key() -> NoReturn:
    fail("with a DSN there is no default: name the key's file with --tree-key or LEDGER_TREE_KEY")
