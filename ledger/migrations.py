"""Bringing a schema up to date, a ledger's or that of tokens: numbered SQL files, forward only, one at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow

from ledger.postgres import Role, connect, schema_of
from ledger.roles import absent, found, found_callers, grant, grant_callers, require_member


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

    Roles are made, and given their rights, as well. Safe to run from several places at once: they take turns.
    Raises SchemaError on a schema that a newer or a changed release made, RoleMissing where the login may not do it.
    """
    with connect(dsn, ledger, "ledger-migrate") as connection:
        applied = _take_turns(_migrate, connection, ledger, Target.of(ledger))
        _take_turns(_migrate_callers, connection, ledger, CALLERS)
        return applied


def _take_turns(
    step: Callable[[psycopg.Connection[TupleRow], str], list[Migration]],
    connection: psycopg.Connection[TupleRow],
    ledger: str,
    target: Target,
) -> list[Migration]:
    for _ in range(_TRIES):
        try:
            return step(connection, ledger)
        except _MADE_MEANWHILE as error:
            # Several are making the same role, schema or table, and another was first: look again.
            last = error
    drop = f"run `DROP SCHEMA {target.schema} CASCADE`"
    advice = f"if they hold nothing, {drop} and migrate again"
    if target != CALLERS:  # Tokens are in no backup.
        advice = f"if a restore was broken off, {drop}, then restore again; if there never was one: {advice}"
    what = f"{target.title} has tables that its migrations don't know of: {last.diag.message_primary}"
    raise SchemaError(f"{what}. What to do: {advice}")


def require_migrated(dsn: str, ledger: str, *roles: Role, callers: bool = False) -> None:
    """Raise SchemaError unless the ledger's schema, and with `callers` that of tokens, is just what this works with.

    Raises RoleMissing unless the login may act as each of the roles.
    """
    with connect(dsn, ledger, "ledger-migrate") as connection:
        require_member(connection, ledger, roles)
    with connect(dsn, ledger, "ledger-migrate", *roles[:1]) as connection:
        for target in (Target.of(ledger), CALLERS)[: 1 + callers]:
            _use(connection, target)
            applied = _applied(connection) if _has_table(connection) else {}
            if _missing(applied, target):
                raise SchemaError(f"{target.title} is not migrated: run {target.hint} first")


def require_read_models(dsn: str, ledger: str, role: Role) -> None:
    """Raise SchemaError unless the read models' tables and views are there, which `ledger migrate` makes last.

    What only reads the log can do without. The ledger has to be migrated, and the login to act as the role.
    """
    with connect(dsn, ledger, "ledger-migrate", role) as connection:
        if missing := absent(connection):
            target = Target.of(ledger)
            raise SchemaError(f"{target.title} is migrated in part, without {missing[0]}: run {target.hint} again")


def _migrate(connection: psycopg.Connection[TupleRow], ledger: str) -> list[Migration]:
    with connection.transaction():
        found(connection, ledger)
        applied = _apply(connection, Target.of(ledger))
        grant(connection)
        return applied


def _migrate_callers(connection: psycopg.Connection[TupleRow], ledger: str) -> list[Migration]:
    """The schema of tokens, and the right of this ledger's writer to read them."""
    with connection.transaction():
        found_callers(connection)
        applied = _apply(connection, CALLERS)
        grant_callers(connection, ledger)
        return applied


def _apply(connection: psycopg.Connection[TupleRow], target: Target) -> list[Migration]:
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
    """Search that schema first, until the transaction ends; outside of one for good."""
    local = connection.info.transaction_status is not TransactionStatus.IDLE
    connection.execute("SELECT set_config('search_path', %s, %s)", (target.schema, local))


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
    missing = [each for each in known.values() if each.number not in applied]
    if missing and applied and missing[0].number < max(applied):
        raise SchemaError(
            f"{target.title} is half migrated: it has migration {max(applied)} and not {missing[0].number}. Nothing "
            f"is done to it. Run `ALTER SCHEMA {target.schema} RENAME TO old_{target.schema}`, then restore a backup"
        )
    return missing
