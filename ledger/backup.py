"""Backups: a ledger at one moment in a folder, with what proves that a restored copy is the same ledger.

`pg_dump` and `pg_restore` do the copying. The manifest beside the dump says what the ledger came to in the very
snapshot that was dumped: its last position, its digest, the root of the Merkle tree over the log, and the newest
signed head. A restored copy is served only after it has been found to come to the same.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import psycopg
from psycopg import Connection, sql
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from ledger.audit.digest import NoDigest, digest
from ledger.audit.signer import SQL as TREE
from ledger.audit.snapshot import head_of, opened, share
from ledger.audit.tiles import Edge
from ledger.migrations import migrations
from ledger.postgres import Role, connect, role_name, schema_of, sql_blocks
from ledger.postgres_programs import contents_of, program, run
from ledger.roles import act_as_owner, grant, make_roles

SQL: Final = sql_blocks("ledger.sql", "backup.sql")

DUMP: Final = "ledger.dump"
MANIFEST: Final = "manifest.json"
_LEAVES_AT_A_TIME: Final = 5_000

Progress = Callable[[str, int, int], None]
"""Told what is done now, how far it has come, and how far there is to go."""


class CannotBackUp(Exception):
    """No backup was made, and nothing is left of it."""


class CannotRestore(Exception):
    """Nothing was restored: what was there is as it was."""


class NotTheSame(Exception):
    """What was restored is not what was backed up. It was removed again."""


class Manifest(BaseModel):
    """What a backup is of, and what proves it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["ledger/backup/1"] = "ledger/backup/1"
    ledger: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,40}$")]
    taken_at: AwareDatetime
    position: int
    digest: str
    root: str
    """Of the Merkle tree over the log up to the position, in hexadecimal."""
    newest_head: str | None
    """The note that was signed last, which may cover less than the log."""
    migration: int
    postgres: str
    pg_dump: int
    """The major version of the program that wrote the dump. It can be restored into a Postgres as new."""
    dump_bytes: int
    dump_sha256: str


class Proof(BaseModel):
    """What a ledger comes to."""

    model_config = ConfigDict(frozen=True)

    position: int
    digest: str
    root: str
    newest_head: str | None


def back_up(dsn: str, ledger: str, folder: Path, progress: Progress = lambda *_: None) -> Manifest:
    """Write a backup into a folder, which is there when it is complete and not before.

    Servers go on meanwhile. Raises CannotBackUp, ProgramFailed and psycopg's errors.
    """
    try:
        with _new_folder(folder) as unfinished, opened(dsn, ledger) as connection:
            ((taken_at, postgres, major),) = connection.execute(SQL.server).fetchall()
            snapshot = share(connection)
            dump = unfinished / DUMP
            pg_dump = program("pg_dump", major)
            _dump(dsn, ledger, pg_dump.place, snapshot, dump)
            proof = _proof(dsn, ledger, connection, snapshot, progress)
            ((migration,),) = connection.execute(SQL.migration).fetchall()
            manifest = Manifest(
                **proof.model_dump(),
                ledger=ledger,
                taken_at=taken_at,
                migration=migration,
                postgres=postgres,
                pg_dump=pg_dump.major,
                dump_bytes=dump.stat().st_size,
                dump_sha256=_sha256(dump),
            )
            _write_durably(unfinished / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
            return manifest
    except OSError as error:
        raise CannotBackUp(f"can't write {folder}: {error.strerror}") from error
    except NoDigest as error:
        raise CannotBackUp(f"{error}: find out what happened to the log with `ledger audit verify`") from error


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a backup, whose dump is the one that was written. Raises CannotRestore."""
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_text(encoding="utf-8"))
        is_whole = _sha256(folder / DUMP) == manifest.dump_sha256
    except OSError as error:
        raise CannotRestore(f"{folder} is no backup: {error.filename}: {error.strerror}") from error
    except (ValidationError, UnicodeDecodeError) as error:
        raise CannotRestore(f"{folder / MANIFEST} is not a manifest of this release") from error
    if not is_whole:
        raise CannotRestore(f"{folder / DUMP} is not the file that was written: its SHA-256 is another")
    return manifest


def restore(dsn: str, folder: Path, progress: Progress = lambda *_: None) -> Manifest:
    """Restore a backup into a database that has no ledger of its name, and prove that it is the same.

    Until that is proven no process of ours serves it: the record of its migrations comes last. Raises CannotRestore,
    NotTheSame, RoleMissing, ProgramFailed and psycopg's errors.
    """
    manifest = read_manifest(folder)
    ledger = manifest.ledger
    if manifest.migration > (known := migrations()[-1].number):
        raise CannotRestore(
            f"the backup is of a newer release: its schema is at migration {manifest.migration}, and this one knows "
            f"{known}. Update it"
        )
    with connect(dsn, ledger, "ledger-restore") as connection:
        ((is_there,),) = connection.execute(SQL.is_there, {"schema": schema_of(ledger)}).fetchall()
        if is_there:
            raise CannotRestore(_in_the_way(connection, ledger))
        ((_, _, major),) = connection.execute(SQL.server).fetchall()
        if major < manifest.pg_dump:
            raise CannotRestore(
                f"the backup was written by pg_dump {manifest.pg_dump}, for a Postgres as new: this is {major}"
            )
        pg_restore = program("pg_restore", major).place
        with connection.transaction():
            make_roles(connection, ledger)
        _load(dsn, ledger, pg_restore, folder / DUMP)
        try:
            with connection.transaction():
                act_as_owner(connection)
                grant(connection)
                _analyze(connection)
            _require_same(dsn, manifest, progress)
            _load_migrations(dsn, ledger, pg_restore, folder / DUMP)
        except BaseException:
            connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema_of(ledger))))
            raise
    return manifest


def _in_the_way(connection: Connection[Any], ledger: str) -> str:
    """What is there already: a ledger, or what a restore left that was killed."""
    schema = sql.Identifier(schema_of(ledger))
    try:
        ((is_recorded,),) = connection.execute(sql.SQL("SELECT EXISTS (SELECT FROM {}.migrations)").format(schema))
    except psycopg.errors.UndefinedTable:
        is_recorded = False
    except psycopg.errors.InsufficientPrivilege:
        is_recorded = True  # Nobody is told to drop what we can't look at.
    if is_recorded:
        return f"there is a ledger {ledger!r} already, and nothing is ever restored over one"
    return (
        f"the schema {schema_of(ledger)} has no record of migrations, as a restore leaves it that is under way or was "
        f"broken off. If it was broken off, run `DROP SCHEMA {schema_of(ledger)} CASCADE`, then restore again"
    )


def _require_same(dsn: str, manifest: Manifest, progress: Progress) -> None:
    try:
        with opened(dsn, manifest.ledger) as connection:
            found = _proof(dsn, manifest.ledger, connection, share(connection), progress)
    except (NoDigest, CannotBackUp) as error:
        raise NotTheSame(f"what was restored can't be understood, and was removed again: {error}") from error
    for name, value in found:
        if value != getattr(manifest, name):
            raise NotTheSame(
                f"what was restored is not what was backed up, and was removed again: {name} is {value}, and should be "
                f"{getattr(manifest, name)}"
            )


# --- what a ledger comes to ------------------------------------------------------------------------------------------


def _proof(dsn: str, ledger: str, connection: Connection[Any], snapshot: str, progress: Progress) -> Proof:
    position = head_of(connection)
    made = digest(dsn, ledger, position, lambda done, total: progress("digest", done, total), shared=snapshot)
    head = connection.execute(SQL.newest_head).fetchone()
    root = _root(connection, position, progress)
    return Proof(position=position, digest=made.line, root=root.hex(), newest_head=head[0] if head else None)


def _root(connection: Connection[Any], position: int, progress: Progress) -> bytes:
    """The root of the tree over every byte of the log. Postgres hashes the leaves, as for the signer."""
    edge = Edge()
    while edge.size < position:
        wanted = {"after": edge.size, "limit": min(_LEAVES_AT_A_TIME, position - edge.size)}
        ((_, count, last, leaves),) = connection.execute(TREE.leaves, wanted, binary=True).fetchall()
        if last != edge.size + count:
            raise CannotBackUp(f"the log has a gap after position {edge.size}: see `ledger audit verify`")
        edge.extend(leaves)
        edge.taken()
        progress("tree", edge.size, position)
    return edge.root()


# --- dumping and loading ---------------------------------------------------------------------------------------------


def _dump(dsn: str, ledger: str, pg_dump: Path, snapshot: str, to: Path) -> None:
    run(
        pg_dump,
        dsn,
        "--format=custom",
        f"--schema={schema_of(ledger)}",
        f"--snapshot={snapshot}",
        f"--role={role_name(ledger, Role.AUDITOR)}",
        # Owners and rights are not the backup's to say: ledger/roles.py gives them.
        "--no-owner",
        "--no-privileges",
        f"--file={to}",
    )
    to.chmod(0o600)


def _load(dsn: str, ledger: str, pg_restore: Path, dump: Path) -> None:
    """Load all but the record of migrations, in one transaction."""
    contents = contents_of(pg_restore, dump)
    parts = [line for line in contents.splitlines() if f"TABLE DATA {schema_of(ledger)} migrations " not in line]
    with tempfile.NamedTemporaryFile("w", suffix=".list") as listed:
        listed.write("\n".join(parts))
        listed.flush()
        run(pg_restore, dsn, *_as_owner(ledger), f"--use-list={listed.name}", str(dump))


def _load_migrations(dsn: str, ledger: str, pg_restore: Path, dump: Path) -> None:
    run(pg_restore, dsn, *_as_owner(ledger), "--data-only", "--table=migrations", str(dump))


def _as_owner(ledger: str) -> tuple[str, ...]:
    return "--single-transaction", "--no-owner", "--no-privileges", f"--role={role_name(ledger, Role.OWNER)}"


def _analyze(connection: Connection[Any]) -> None:
    """Let the planner know the tables: until autovacuum comes by, a dump leaves it with guesses."""
    tables = [sql.Identifier(name) for (name,) in connection.execute(SQL.tables)]
    connection.execute(sql.SQL("ANALYZE {}").format(sql.SQL(", ").join(tables)))


# --- files -----------------------------------------------------------------------------------------------------------


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A folder that gets its name when it is complete; what is not complete is removed."""
    _require_free(folder)
    unfinished = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    unfinished.mkdir(mode=0o700, parents=True)
    try:
        yield unfinished
        _sync(unfinished)
        _require_free(folder)
        unfinished.rename(folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _require_free(folder: Path) -> None:
    if folder.exists():
        raise CannotBackUp(f"{folder} is there already: a backup never takes the place of another")


def _write_durably(file: Path, text: str) -> None:
    with file.open("x", encoding="utf-8") as opened_file:
        opened_file.write(text)
        opened_file.flush()
        os.fsync(opened_file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened_file:
        return hashlib.file_digest(opened_file, "sha256").hexdigest()
