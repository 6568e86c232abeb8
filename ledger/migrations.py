"""Bringing a ledger's schema up to date: numbered SQL files, forward only, one at a time."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

import psycopg
from psycopg.rows import TupleRow

from ledger.postgres import Role, connect
from ledger.roles import found, grant, require_member


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
    psycopg.errors.InternalError_,  # "tuple concurrently updated": roles and databases belong to all ledgers
)
_TRIES: Final = 20

_TABLE: Final = """
CREATE TABLE IF NOT EXISTS migrations (
    number     int         PRIMARY KEY,
    name       text        NOT NULL,
    checksum   text        NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
)"""


def migrations() -> list[Migration]:
    """All migrations, in order."""
    found = []
    for file in files("ledger.sql").joinpath("migrations").iterdir():
        if file.name.endswith(".sql"):
            number, _, name = file.name.removesuffix(".sql").partition("_")
            found.append(Migration(int(number), name, file.read_text(encoding="utf-8")))
    return sorted(found, key=lambda each: each.number)


def migrate(dsn: str, ledger: str) -> list[Migration]:
    """Create the ledger's schema if it isn't there, apply what is missing, and return that.

    Its roles are made, and given their rights, as well. Safe to run from several places at once: they take turns.
    Raises SchemaError on a schema that a newer or a changed release made, RoleMissing where the login may not do it.
    """
    with connect(dsn, ledger, "ledger-migrate") as connection:
        for _ in range(_TRIES):
            try:
                return _migrate(connection, ledger)
            except _MADE_MEANWHILE as error:
                # Several are making the same role, schema or table, and another was first: look again.
                last = error
        raise SchemaError(
            f"ledger {ledger!r} has tables that its migrations don't know of, left by hand or by a restore that was "
            f"broken off: {last.diag.message_primary}. If they hold nothing, drop the schema and migrate again"
        )


def require_migrated(dsn: str, ledger: str, *roles: Role) -> None:
    """Raise SchemaError unless the ledger's schema is just what this program works with.

    Raises RoleMissing unless the login may act as each of the roles.
    """
    with connect(dsn, ledger, "ledger-migrate") as connection:
        require_member(connection, ledger, roles)
    with connect(dsn, ledger, "ledger-migrate", *roles[:1]) as connection:
        applied = _applied(connection) if _has_table(connection) else {}
        missing = _missing(applied, ledger)
        if missing:
            raise SchemaError(f"ledger {ledger!r} is not migrated: run `ledger migrate --ledger {ledger}` first")


def _migrate(connection: psycopg.Connection[TupleRow], ledger: str) -> list[Migration]:
    with connection.transaction():
        found(connection, ledger)
        connection.execute(_TABLE)
        connection.execute("LOCK TABLE migrations IN EXCLUSIVE MODE")
        missing = _missing(_applied(connection), ledger)
        for each in missing:
            connection.execute(each.text.encode())
            connection.execute(
                "INSERT INTO migrations (number, name, checksum) VALUES (%s, %s, %s)",
                (each.number, each.name, each.checksum),
            )
        grant(connection)
        return missing


def _has_table(connection: psycopg.Connection[TupleRow]) -> bool:
    row = connection.execute("SELECT to_regclass('migrations') IS NOT NULL").fetchone()
    return bool(row and row[0])


def _applied(connection: psycopg.Connection[TupleRow]) -> dict[int, str]:
    rows = connection.execute("SELECT number, checksum FROM migrations ORDER BY number")
    return dict(rows.fetchall())


def _missing(applied: dict[int, str], ledger: str) -> list[Migration]:
    known = {each.number: each for each in migrations()}
    for number, checksum in applied.items():
        if number not in known:
            raise SchemaError(
                f"ledger {ledger!r} is at migration {number} of a newer release; this one knows {max(known)}: update it"
            )
        if known[number].checksum != checksum:
            raise SchemaError(f"migration {number} of ledger {ledger!r} is not the one that this release ships")
    missing = [each for each in known.values() if each.number not in applied]
    if missing and applied and missing[0].number < max(applied):
        raise SchemaError(
            f"ledger {ledger!r} is half migrated: it has migration {max(applied)} and not {missing[0].number}. Nothing "
            "is done to it; restore it from a backup (`ledger restore`)"
        )
    return missing
