"""`ledger audit`: what an auditor does, and what the keeper of the signing key does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer

from ledger.bars import Bars
from ledger.database import reached
from ledger.exits import EXIT_FAILED, EXIT_USAGE, fail, undo_when_told_to_end
from ledger.flags import DataDir, Dsn, LedgerName, TrustedKey, settings_of, trusted_key
from ledger.migrations import require_migrated
from ledger.postgres import Role
from ledger.terminal import quoted

if TYPE_CHECKING:
    from ledger.audit.records import KeptHead

app = typer.Typer(help="Verify the history, prove a fact, take it home.", no_args_is_help=True)

PROGRAM: Final = Path(__file__).with_name("verify_bundle.py")
"""In a checkout a link to contrib/verify_bundle.py, in an installed package the file itself."""

TreeKey = Annotated[
    Path | None, typer.Option("--tree-key", help="The file of the signing key.  \\[tree.key in --data-dir]")
]
KeptHeads = Annotated[
    list[Path] | None,
    typer.Option("--head", metavar="FILE", help="A tree head that you have kept. Can be repeated."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")]


# --- the history -----------------------------------------------------------------------------------------------------


@app.command()
def verify(
    dsn: Dsn = None,
    data_dir: DataDir = None,
    ledger: LedgerName = None,
    public_key: TrustedKey = None,
    heads: KeptHeads = None,
    read_models: Annotated[
        bool, typer.Option("--read-models/--no-read-models", help="Compare the read models too.  \\[yes]")
    ] = True,
    as_json: Json = False,
) -> None:
    """Check the whole history: its order, every decision, what was signed, and the read models.

    It only reads, as the role `auditor` may. Exits with 1 if anything is wrong, and names the first position that is.
    """
    from ledger.audit.beside import SecondProcessEnded
    from ledger.audit.verify import verify

    settings = settings_of(dsn=dsn, data_dir=data_dir, ledger=ledger)
    key = None if public_key is None else trusted_key(public_key)
    kept = [_kept_head(each) for each in heads or ()]
    with reached(settings) as database, Bars() as bars:
        require_migrated(database, settings.ledger, Role.AUDITOR)
        try:
            report = verify(database, settings.ledger, key=key, kept=kept, read_models=read_models, progress=bars.show)
        except KeyboardInterrupt:
            fail("stopped before the end: nothing is known")
        except SecondProcessEnded as error:
            fail(str(error))
    typer.echo(json.dumps(report.as_json()) if as_json else "\n".join(report.lines()))
    if not report.is_sound:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def digest(
    at: Annotated[
        int | None, typer.Option("--at", min=0, metavar="POSITION", help="As of this position.  \\[the head]")
    ] = None,
    dsn: Dsn = None,
    data_dir: DataDir = None,
    ledger: LedgerName = None,
    as_json: Json = False,
) -> None:
    """Print a fingerprint of all that the log comes to at a position: the same wherever and whenever it is made."""
    from ledger.audit.digest import FORMAT, AboveHead, NoDigest, digest

    settings = settings_of(dsn=dsn, data_dir=data_dir, ledger=ledger)
    with reached(settings) as database, Bars() as bars:
        require_migrated(database, settings.ledger, Role.AUDITOR)
        try:
            made = digest(database, settings.ledger, at, lambda done, total: bars.show("log", done, total))
        except AboveHead as error:
            fail(str(error), EXIT_USAGE)
        except NoDigest as error:
            fail(str(error), EXIT_FAILED)
    typer.echo(json.dumps({"format": FORMAT, **made._asdict()}) if as_json else made.line)


def _kept_head(file: Path) -> KeptHead:
    """A note from a file, which has to be that of a tree head."""
    from ledger.audit.note import Note, NoteInvalid, TreeHead

    note = _read(file)
    try:
        TreeHead.parse(Note.parse(note).text)
    except NoteInvalid as error:
        raise typer.BadParameter(f"{quoted(str(file))}: {error}.", param_hint="--head") from None
    return str(file), note


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        raise typer.BadParameter(f"{quoted(str(file))}: {why}.") from None


# --- taking the history home -----------------------------------------------------------------------------------------


@app.command(name="export")
def export_command(
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="Where the bundle goes.")],
    head: Annotated[
        int | None, typer.Option("--head", metavar="SIZE", help="Up to the head of this size.  \\[the newest]")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there already.")] = False,
    dsn: Dsn = None,
    data_dir: DataDir = None,
    ledger: LedgerName = None,
) -> None:
    """Write the whole history up to a signed head into one file, for auditors to take home.

    It takes no more than what `ledger dsn --role auditor` allows, and is read at one moment beside running servers.
    """
    from ledger.audit.export import CannotExport, FileInTheWay, HeadNotSigned, LogHasGap, export

    settings = settings_of(dsn=dsn, data_dir=data_dir, ledger=ledger)
    undo_when_told_to_end()
    with reached(settings) as database, Bars() as bars:
        require_migrated(database, settings.ledger, Role.AUDITOR)
        try:
            events = export(database, settings.ledger, to, tree_size=head, force=force, progress=bars.show)
        except LogHasGap as error:
            fail(str(error), EXIT_FAILED)
        except (FileInTheWay, HeadNotSigned) as error:
            fail(str(error), EXIT_USAGE)
        except CannotExport as error:
            fail(str(error))
        except KeyboardInterrupt:
            fail("stopped; nothing was written", EXIT_FAILED)
    size = to.stat().st_size / 2**20
    typer.echo(f"ledger: {events:,} events of ledger {settings.ledger} in {to} ({size:,.1f} MiB)")


@app.command(name="check")
def check(
    bundle: Annotated[Path, typer.Argument(metavar="FILE", help="A bundle, as `ledger audit export` writes it.")],
    public_key: TrustedKey = None,
    head: Annotated[Path | None, typer.Option("--head", metavar="FILE", help="A signed head that you kept.")] = None,
    save_head: Annotated[
        Path | None, typer.Option("--save-head", metavar="FILE", help="Keep the last head here, if all is verified.")
    ] = None,
    inclusion: Annotated[
        int | None, typer.Option("--inclusion", metavar="POSITION", help="Show this event, and the proof of it.")
    ] = None,
) -> None:
    """Verify a bundle, without a database: runs contrib/verify_bundle.py, which needs nothing else of the ledger.

    Exits with 0 if all is well, and with 1 if something is wrong.
    """
    key = None if public_key is None else trusted_key(public_key)
    options = {"--public-key": key, "--head": head, "--save-head": save_head, "--inclusion": inclusion}
    given = [f"{name}={value}" for name, value in options.items() if value is not None]
    # -P: nothing that stands beside it, here or where it is installed, can take the place of what it imports.
    command = [sys.executable, "-P", str(PROGRAM), *given, "--", str(bundle)]
    raise typer.Exit(subprocess.run(command, check=False).returncode)  # noqa: S603


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
        require_migrated(database, settings.ledger, Role.SIGNER)
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
