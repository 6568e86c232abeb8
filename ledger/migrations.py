"""Bringing a schema up to date, a ledger's or that of tokens: numbered SQL files, forward only, one at a time."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from ledger.postgres import connect, schema_of


class SchemaError(Exception):
    """The schema in the database is not the one that this program works with. The text says what to do."""


@dataclass(frozen=True, slots=True)
class Migration:
    number: int
    name: str
    text: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


_MADE_MEANWHILE: Final = (
    psycopg.errors.UniqueViolation,
    psycopg.errors.DuplicateObject,
    psycopg.errors.DuplicateSchema,
    psycopg.errors.DuplicateTable,
)

_TABLE: Final = """
CREATE TABLE IF NOT EXISTS migrations (
    number     int         PRIMARY KEY,
    name       text        NOT NULL,
    checksum   text        NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
)"""


@dataclass(frozen=True, slots=True)
class Target:
    """A schema, and the folder of its migrations."""

    schema: str
    folder: str
    title: str
    hint: str
    """How to have it migrated."""

    @classmethod
    def of(cls, ledger: str) -> Target:
        return cls(schema_of(ledger), "migrations", f"ledger {ledger!r}", f"`ledger migrate --ledger {ledger}`")


CALLERS: Final = Target("callers", "callers", "the schema of tokens", "`ledger migrate`")
"""One for all ledgers of a database."""


def migrations(folder: str = "migrations") -> list[Migration]:
    """All migrations of a ledger's schema, or those in another folder, in order."""
    found = []
    for file in files("ledger.sql").joinpath(folder).iterdir():
        if file.name.endswith(".sql"):
            number, _, name = file.name.removesuffix(".sql").partition("_")
            found.append(Migration(int(number), name, file.read_text(encoding="utf-8")))
    return sorted(found, key=lambda each: each.number)


def migrate(dsn: str, ledger: str) -> list[Migration]:
    """Create the ledger's schema if it isn't there, apply what is missing, and return that. The same for tokens.

    Safe to run from several places at once: they take turns. Raises SchemaError on a schema that a newer or a changed
    release made.
    """
    with connect(dsn, ledger, "ledger-migrate") as connection:
        _migrate(connection, CALLERS)
        return _migrate(connection, Target.of(ledger))


def require_migrated(dsn: str, ledger: str, *, callers: bool = False) -> None:
    """Raise SchemaError unless the ledger's schema, and with `callers` that of tokens, is just what this works with."""
    with connect(dsn, ledger, "ledger-migrate") as connection:
        for target in (Target.of(ledger), CALLERS)[: 1 + callers]:
            _use(connection, target)
            applied = _applied(connection) if _has_table(connection) else {}
            if _missing(applied, target):
                raise SchemaError(f"{target.title} is not migrated: run {target.hint} first")


def _migrate(connection: psycopg.Connection[TupleRow], target: Target) -> list[Migration]:
    while True:
        try:
            return _migrate_once(connection, target)
        except _MADE_MEANWHILE:
            # Several are making the same schema or table, and another was first: look again.
            continue


def _migrate_once(connection: psycopg.Connection[TupleRow], target: Target) -> list[Migration]:
    with connection.transaction():
        connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(target.schema)))
        _use(connection, target)
        connection.execute(_TABLE)
        connection.execute("LOCK TABLE migrations IN EXCLUSIVE MODE")
        missing = _missing(_applied(connection), target)
        for each in missing:
            connection.execute(each.text.encode())
            connection.execute(
                "INSERT INTO migrations (number, name, checksum) VALUES (%s, %s, %s)",
                (each.number, each.name, each.checksum),
            )
        return missing


def _use(connection: psycopg.Connection[TupleRow], target: Target) -> None:
    connection.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(target.schema)))


def _has_table(connection: psycopg.Connection[TupleRow]) -> bool:
    row = connection.execute("SELECT to_regclass('migrations') IS NOT NULL").fetchone()
    return bool(row and row[0])


def _applied(connection: psycopg.Connection[TupleRow]) -> dict[int, str]:
    rows = connection.execute("SELECT number, checksum FROM migrations ORDER BY number")
    return dict(rows.fetchall())


def _missing(applied: dict[int, str], target: Target) -> list[Migration]:
    known = {each.number: each for each in migrations(target.folder)}
    for number, checksum in applied.items():
        if number not in known:
            raise SchemaError(
                f"{target.title} is at migration {number} of a newer release; this one knows {max(known)}: update it"
            )
        if known[number].checksum != checksum:
            raise SchemaError(f"migration {number} of {target.title} is not the one that this release ships")
    return [each for each in known.values() if each.number not in applied]
