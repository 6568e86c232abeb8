"""The command `ledger`."""

from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import psycopg
import typer
from rich.console import Console

from ledger import log_output, token_commands
from ledger.audit import console as audit
from ledger.bars import Bars
from ledger.console import accounts, payments, tls, transfers
from ledger.console import audit as history
from ledger.durability import UnsafeDurability
from ledger.embedded import EmbeddedPostgres, EmbeddedPostgresError, running_dsn
from ledger.exits import EXIT_FAILED, EXIT_USAGE, fail, undo_when_told_to_end
from ledger.flags import DataDir, Dsn, LedgerName, Server, settings_of
from ledger.migrations import SchemaError, migrate, require_migrated
from ledger.postgres import Role
from ledger.read_database import WrongReadDatabase
from ledger.roles import RoleMissing
from ledger.settings import Settings
from ledger.terminal import have_standard_streams, lose_output
from projections import console as read_models

_CANNOT_WRITE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})

app = typer.Typer(
    name="ledger",
    help=(
        "An event-sourced payment ledger on Postgres, spoken to over gRPC.\n\n"
        "Without --dsn it runs a Postgres of its own in --data-dir. Every option can also be set in the environment "
        "or in a file .env as LEDGER_...; see .env.example.\n\n"
        "Exit codes: 0 done; 1 refused or declined, if only in part; 2 wrong usage; 3 it could not start, reach what "
        "it needs, or write what came of it."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(accounts.app, name="account")
app.add_typer(payments.app, name="payment")
app.add_typer(transfers.app, name="transfer")
app.add_typer(token_commands.app, name="token")
app.add_typer(read_models.app, name="projections")
audit.app.add_typer(history.app)
app.add_typer(audit.app, name="audit")
app.add_typer(tls.app, name="tls")


def main() -> None:
    """Run the command line; problems that have a known cause end in one line and an exit code."""
    have_standard_streams()
    # Before gRPC is imported, which only then looks. Its core logs what it is sent, unescaped and line by line: whoever
    # can connect could forge lines of the log, or fill a disk with it.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # Else what is still to be written would fail where nobody can tell any more.
    except (EmbeddedPostgresError, SchemaError, RoleMissing, UnsafeDurability, WrongReadDatabase) as error:
        fail(str(error))
    except psycopg.OperationalError as error:
        fail(f"can't reach the database: {' '.join(str(error).split())}")
    except psycopg.Error as error:
        fail(f"the database refused: {' '.join(str(error).split())}")
    except BrokenPipeError:
        lose_output()
        sys.exit(EXIT_FAILED)  # Who read it has gone, and wants to know no more.
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        lose_output()
        # Not EXIT_FAILED: what was asked for may well be done, and is neither refused nor declined.
        fail(f"can't write what came of it: {error.strerror}")


@app.command()
def serve(
    listen: Annotated[str | None, typer.Option("--listen", help="HOST:PORT to serve on.  \\[127.0.0.1:50051]")] = None,
    dsn: Dsn = None,
    data_dir: DataDir = None,
    ledger: LedgerName = None,
    follower: Annotated[
        bool | None,
        typer.Option("--follower/--no-follower", help="Keep the read models too, in a process beside it.  \\[yes]"),
    ] = None,
) -> None:
    """Serve the ledger over gRPC until SIGTERM or Ctrl-C."""
    from ledger.scraping import CannotServeMetrics
    from ledger.server import CannotListen, run
    from ledger.tls import TlsUnusable

    settings = _settings(listen=listen, dsn=dsn, data_dir=data_dir, ledger=ledger, follower=follower)
    if settings.unsafe_listen:
        fail(settings.unsafe_listen, EXIT_USAGE)

    def ready(address: str) -> None:
        where = "the database of the DSN" if settings.dsn else f"an embedded Postgres in {settings.data_dir}"
        ways = "".join([", TLS" * (settings.tls_cert is not None), ", tokens" * settings.tokens])
        print(f"ledger: serving on {address} (ledger {settings.ledger}, {where}{ways})", flush=True)

    with _database(settings) as database:
        _require_key(settings)
        try:
            run(settings, database, ready)
        except (CannotListen, CannotServeMetrics, TlsUnusable) as error:
            fail(str(error))


@app.command()
def follow(dsn: Dsn = None, ledger: LedgerName = None) -> None:
    """Keep the read models up to date, beside servers that run with --no-follower."""
    from ledger.following import FollowerStopped, run
    from ledger.scraping import CannotServeMetrics

    settings = _settings(dsn=dsn, ledger=ledger)
    if settings.dsn is None:
        fail("follow needs --dsn (`ledger dsn` prints that of an embedded Postgres)", EXIT_USAGE)
    try:
        run(settings, settings.dsn, lambda: print(f"ledger: following ledger {settings.ledger}", flush=True))
    except CannotServeMetrics as error:
        fail(str(error))
    except FollowerStopped as error:
        fail(str(error), EXIT_FAILED)


@app.command()
def healthcheck(
    server: Server = None,
    service: Annotated[
        str,
        typer.Option(
            "--service", help="ledger.v1.write, ledger.v1.read, or the full name of a service.  \\[ledger.v1.write]"
        ),
    ] = "ledger.v1.write",
) -> None:
    """Ask a server whether it serves: exit code 0 if so, else 1. For containers; it needs no token."""
    from ledger.healthcheck import NotServing, require_serving

    settings = settings_of(server=server)
    try:
        require_serving(settings, service)
    except NotServing as error:
        fail(str(error), EXIT_FAILED)
    print(f"ledger: {service} at {settings.server} is SERVING")


@app.command(name="migrate")
def migrate_command(dsn: Dsn = None, data_dir: DataDir = None, ledger: LedgerName = None) -> None:
    """Create or update a ledger's schema. Safe to run again, and from several places at once."""
    settings = _settings(dsn=dsn, data_dir=data_dir, ledger=ledger)
    with _database(settings, migrated=False) as database:
        applied = prepare(database, settings.ledger)
    names = ", ".join(f"{each:04}" for each in applied) or "nothing to do"
    print(f"ledger: {settings.ledger} is up to date ({names})")


@app.command()
def doctor(
    dsn: Dsn = None,
    data_dir: DataDir = None,
    ledger: LedgerName = None,
    allow_unsafe: Annotated[
        bool | None,
        typer.Option("--allow-unsafe", help="Only warn of settings that lose acknowledged commits in a crash."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")] = False,
) -> None:
    """Check whether a database is fit to keep a ledger, and say what to do. Exits with 1 if it is not.

    It looks at the server, its durability, the connection, and the ledger's roles, rights and triggers; it changes
    nothing. --dsn is best the one that servers use.
    """
    from ledger.database import reached
    from ledger.doctor import Check, Verdict, examine

    settings = settings_of(dsn=dsn, data_dir=data_dir, ledger=ledger, unsafe_durability=allow_unsafe)
    checks: list[Check] = []
    with reached(settings) as database:
        told, embedded = settings.unsafe_durability, settings.dsn is None
        for check in examine(database, settings.ledger, allow_unsafe=told, is_embedded=embedded):
            checks.append(check)
            if not as_json:
                print(check.lines, flush=True)
    if as_json:
        print(json.dumps([each._asdict() for each in checks]))
    failed = [each.name for each in checks if each.verdict is Verdict.FAIL]
    if failed:
        fail(f"not fit: {', '.join(failed)}", EXIT_FAILED)


@app.command()
def backup(
    to: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the backup goes; it must not be there yet.")],
    dsn: Dsn = None,
    data_dir: DataDir = None,
    ledger: LedgerName = None,
) -> None:
    """Write a ledger as it is at one moment into a folder, with what proves a restored copy. Servers go on meanwhile.

    The signing key is not in it, and no other schema: back up tree.key yourself, elsewhere.
    """
    from ledger.backup import CannotBackUp, back_up
    from ledger.database import reached
    from ledger.postgres_programs import ProgramFailed

    settings = settings_of(dsn=dsn, data_dir=data_dir, ledger=ledger)
    undo_when_told_to_end()
    with reached(settings) as database, Bars() as bars:
        require_migrated(database, settings.ledger, Role.AUDITOR)
        try:
            made = back_up(database, settings.ledger, to, bars.show)
        except (CannotBackUp, ProgramFailed) as error:
            fail(str(error), EXIT_FAILED)
        except KeyboardInterrupt:
            fail("stopped; nothing was written", EXIT_FAILED)
    size = made.dump_bytes / 2**20
    print(f"ledger: {made.ledger} up to position {made.position:,} is in {to} ({size:,.1f} MiB)\n  {made.digest}")


@app.command()
def restore(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A backup, as `ledger backup` writes it.")],
    dsn: Dsn = None,
    data_dir: DataDir = None,
    drill: Annotated[
        bool, typer.Option("--drill", help="Restore into a Postgres that is thrown away, to know that it can be done.")
    ] = False,
) -> None:
    """Restore a backup where there is no ledger of its name, and prove that it is the same: log, state and tree head.

    What is not the same is removed again, and ends with 1.
    """
    from ledger.backup import CannotRestore, NotTheSame
    from ledger.backup import restore as restore_backup
    from ledger.postgres_programs import ProgramFailed

    settings = _settings(dsn=dsn, data_dir=data_dir)
    undo_when_told_to_end()
    started = time.monotonic()
    with ExitStack() as stack:
        if drill:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ledger-drill-")))
            database = stack.enter_context(EmbeddedPostgres(scratch)).dsn
        else:
            database = stack.enter_context(_database(settings, migrated=False))
        bars = stack.enter_context(Bars())
        try:
            made = restore_backup(database, folder, bars.show)
        except (CannotRestore, NotTheSame, ProgramFailed) as error:
            fail(str(error), EXIT_FAILED)
        except KeyboardInterrupt:
            fail("stopped; what was restored by then was removed again", EXIT_FAILED)
        prepare(database, made.ledger)
    done = f"{'can be restored' if drill else 'is restored'}: it took {time.monotonic() - started:,.1f} s"
    print(f"ledger: {made.ledger} up to position {made.position:,} ({made.taken_at:%Y-%m-%d %H:%M:%S} UTC) {done}")
    print(f"  {made.digest}\n  tree root {made.root}")


class Reader(StrEnum):
    """Who a connection string is for."""

    OWNER = "owner"
    AUDITOR = "auditor"
    ANALYST = "analyst"


@app.command(name="dsn")
def dsn_command(
    data_dir: DataDir = None,
    role: Annotated[
        Reader,
        typer.Option(
            "--role", help="owner may do anything, auditor reads the log and read models, analyst these only."
        ),
    ] = Reader.OWNER,
) -> None:
    """Print the connection string of a running embedded Postgres, for psql and BI tools."""
    from ledger.reader_roles import reader_dsn

    folder = _settings(data_dir=data_dir).data_dir
    dsn = running_dsn(folder)
    print(dsn if role is Reader.OWNER else reader_dsn(dsn, folder, Role(role)))


@app.command(name="import")
def import_command(
    accounts: Annotated[Path, typer.Argument(help="CSV: account_id,currency,kind,credit_limit")],
    movements: Annotated[
        Path, typer.Argument(help="CSV: id,effective_at,kind,from_account,to_account,amount,reference")
    ],
    server: Server = None,
    ledger: LedgerName = None,
) -> None:
    """Bring a history along: accounts and movements from CSV files. Can be stopped and run again."""
    from ledger.client import NoAnswer, Target
    from ledger.importer import CannotImport, run_import
    from ledger.rejects import RejectsUnwritable

    settings = settings_of(server=server, ledger=ledger)
    undo_when_told_to_end()
    try:
        summary = run_import(accounts, movements, target=Target.of(settings), ledger=settings.ledger, console=Console())
    except CannotImport as error:
        fail(str(error), EXIT_USAGE)
    except (NoAnswer, RejectsUnwritable) as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("stopped; run it again to go on where it stopped", EXIT_FAILED)
    raise typer.Exit(0 if summary.complete else EXIT_FAILED)


@app.command()
def demo() -> None:
    """Show the main job: a server on an embedded Postgres, accounts, payments, and the numbers from two sides."""
    import grpc

    from ledger.client import NoAnswer
    from ledger.demo import DemoFailed, ServerDidNotStart, run_demo_with_server

    with tempfile.TemporaryDirectory(prefix="ledger-demo-") as folder:
        try:
            run_demo_with_server(Console(), Path(folder))
        except ServerDidNotStart as error:
            fail(f"the demo failed: {error}")
        except (DemoFailed, NoAnswer, grpc.RpcError) as error:
            fail(f"the demo failed: {error}", EXIT_FAILED)


# --- what commands share ---------------------------------------------------------------------------------------------


def prepare(dsn: str, ledger: str) -> list[int]:
    """Bring a ledger's schema up to date, its read models' tables included; return the migrations applied."""
    from ledger.postgres import connect
    from projections.read_models import create_tables

    applied = [each.number for each in migrate(dsn, ledger)]
    with connect(dsn, ledger, "ledger-migrate") as connection:
        create_tables(connection)
    return applied


def _require_key(settings: Settings) -> None:
    """Have a key to sign with where one is wanted. With an embedded Postgres it is made on first use."""
    from ledger.audit.keys import KeyFiles, KeyUnusable

    if settings.key_path is None:
        return
    files = KeyFiles(settings.key_path, settings.origin)
    try:
        if settings.tree_key is None and not settings.key_path.exists():
            files.make()
        files.key()
    except KeyUnusable as error:
        fail(str(error))


@contextmanager
def _database(settings: Settings, *, migrated: bool = True) -> Iterator[str]:
    """The connection string to use. An embedded Postgres is started, kept running and stopped, and migrated."""
    if settings.dsn is not None:
        yield settings.dsn
        return
    with EmbeddedPostgres(settings.data_dir) as postgres:
        if migrated:
            prepare(postgres.dsn, settings.ledger)
        done = threading.Event()
        keeper = threading.Thread(target=_keep_running, args=(postgres, done), name="postgres-keeper", daemon=True)
        keeper.start()
        try:
            yield postgres.dsn
        finally:
            done.set()
            keeper.join()


def _keep_running(postgres: EmbeddedPostgres, done: threading.Event) -> None:
    """Start the embedded Postgres again if it dies."""
    import structlog

    log = structlog.get_logger(__name__)
    while not done.wait(0.3):
        if not postgres.running:
            log.error("embedded_postgres_died")
            try:
                postgres.start()
                log.info("embedded_postgres_restarted")
            except EmbeddedPostgresError as error:
                log.error("embedded_postgres_not_restarted", error=str(error))


def _settings(**flags: Any) -> Settings:
    """The settings of a command that logs."""
    settings = settings_of(**flags)
    log_output.configure(settings.log_level, settings.log_format)
    return settings


if __name__ == "__main__":
    main()
