"""Migrations: frozen once released, from anywhere to the same schema, and refused where they do not fit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from psycopg import sql

from ledger.embedded import binaries
from ledger.migrations import SchemaError, migrate, migrations, require_migrated, require_read_models
from ledger.postgres import Role, connect, schema_of
from projections.read_models import create_tables

RELEASED: Final = {
    1: "bd0b3412ec4bb6fa07a38fea82048c5290fc58829f2b0779b48e21bf6ccf4738",
    2: "58316c08f7b1bfedc1749cc0ac3285f1d4ebc9e9024df7abc2947d30d97486fb",
    3: "c9f82cfbcffda0a0fa09b51f34c7cf223a6e4e7ad9c0cbfc18b7576b2d971af5",
    4: "acb84c12b605a75cbcdd4ea5b64dee8a9a3eb881fae09f867f62f031507a3641",
    5: "98b2cf9d0b7a2831baec76d5faf9d301594db33136a2a1e4c013af2a5d0f7cd0",
}
"""Every migration as it was released. A line is added for a new one; none is ever changed."""

NEW_SCHEMA: Final = """
CREATE SCHEMA {0};
CREATE TABLE {0}.migrations (
    number     int         PRIMARY KEY,
    name       text        NOT NULL,
    checksum   text        NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
)"""


def test_a_released_migration_is_never_changed() -> None:
    """Ledgers that have applied it would be refused by a program that ships another text under its number."""
    assert {each.number: each.checksum for each in migrations()} == RELEASED


def test_every_release_is_migrated_to_the_schema_of_a_new_ledger(dsn: str, new_ledger: Callable[[], str]) -> None:
    """To the last name, owner and right: what a ledger began with can't be seen in it."""
    fresh = new_ledger()
    with connect(dsn, fresh, "test") as connection:
        create_tables(connection)
    expected = dumped(dsn, fresh)
    assert expected.count("CREATE TABLE") == 13
    for start in range(1, len(migrations())):
        ledger = new_ledger()
        as_released(dsn, ledger, start)
        assert migrate(dsn, ledger) == migrations()[start:]
        with connect(dsn, ledger, "test") as connection:
            create_tables(connection)
        assert dumped(dsn, ledger) == expected


def as_released(dsn: str, ledger: str, last: int) -> None:
    """Leave of a ledger what a release had that knew the migrations up to `last`, made by a superuser without roles."""
    schema = sql.Identifier(schema_of(ledger))
    with psycopg.connect(dsn, autocommit=True, options=f"-c search_path={schema_of(ledger)}") as connection:
        connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(schema))
        connection.execute(sql.SQL(NEW_SCHEMA).format(schema))
        for each in migrations()[:last]:
            connection.execute(each.text.encode())
            add = "INSERT INTO migrations (number, name, checksum) VALUES (%s, %s, %s)"
            connection.execute(add, (each.number, each.name, each.checksum))


def dumped(dsn: str, ledger: str) -> str:
    """The schema of a ledger as pg_dump writes it, without the ledger's name and what differs from run to run."""
    command = [binaries() / "pg_dump", "--schema-only", "--schema", schema_of(ledger), "--dbname", dsn]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout.replace(ledger, "NAME")
    return "\n".join(line for line in text.splitlines() if "restrict" not in line)


# --- what is refused -------------------------------------------------------------------------------------------------

UNFIT: Final = {
    "of a newer release": "INSERT INTO migrations (number, name, checksum) VALUES (9999, 'of_tomorrow', 'x')",
    "is not the one that this release ships": "UPDATE migrations SET checksum = 'altered' WHERE number = 2",
    "is half migrated": "DELETE FROM migrations WHERE number = 2",
    "is not migrated": "DELETE FROM migrations WHERE number = (SELECT max(number) FROM migrations)",
}
"""What is said of a schema, and how it came to be like that."""

COMMANDS: Final = (
    ("serve", "--listen", "127.0.0.1:0"),
    ("follow",),
    ("projections", "status"),
    ("projections", "rebuild"),
    ("audit", "verify"),
    ("audit", "digest"),
    ("audit", "export", "--to", "x.bundle"),
)


@pytest.mark.parametrize("says", UNFIT)
def test_a_schema_that_does_not_fit_is_not_worked_with(
    says: str, dsn: str, ledger: str, session: psycopg.Connection[Any]
) -> None:
    """Nothing is repaired by guessing, and nothing is changed."""
    session.execute(UNFIT[says].encode())
    before = session.execute("TABLE migrations").fetchall()
    for step in (require_migrated, *([] if says == "is not migrated" else [migrate])):
        with pytest.raises(SchemaError, match=says):
            step(dsn, ledger)
    assert session.execute("TABLE migrations").fetchall() == before


def test_tables_that_no_migration_knows_of_are_left_alone(
    dsn: str, ledger: str, session: psycopg.Connection[Any]
) -> None:
    """A schema without a record of its migrations ends in a line that says so, and not in trying for ever."""
    session.execute("DELETE FROM migrations")
    with pytest.raises(SchemaError, match="tables that its migrations don't know of"):
        migrate(dsn, ledger)


def test_tables_in_the_schema_of_tokens_are_not_taken_for_the_ledgers(
    dsn: str, ledger: str, session: psycopg.Connection[Any]
) -> None:
    """Who drops what is named must not lose a ledger that is well."""
    kept = session.execute("SELECT number, name, checksum FROM callers.migrations").fetchall()
    session.execute("DELETE FROM callers.migrations")
    try:
        with pytest.raises(SchemaError, match=r"the schema of tokens has tables .* `DROP SCHEMA callers CASCADE`"):
            migrate(dsn, ledger)
    finally:
        add = "INSERT INTO callers.migrations (number, name, checksum) VALUES (%s, %s, %s)"
        session.cursor().executemany(add, kept)


def test_a_half_migrated_schema_is_moved_aside_by_what_is_said(
    dsn: str, ledger: str, session: psycopg.Connection[Any]
) -> None:
    """Nothing is restored over a ledger. Its events stay, under another name."""
    session.execute("DELETE FROM migrations WHERE number = 2")
    with pytest.raises(SchemaError) as refused:
        migrate(dsn, ledger)
    session.execute(str(refused.value).split("`")[1].encode())
    session.execute(f"DROP SCHEMA old_{schema_of(ledger)} CASCADE".encode())
    assert migrate(dsn, ledger) == migrations()


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_says_in_one_line_that_the_schema_does_not_fit(
    command: tuple[str, ...], dsn: str, ledger: str, session: psycopg.Connection[Any], tmp_path: Path
) -> None:
    """Before it does anything, and with the exit code for what can't start."""
    session.execute("INSERT INTO migrations (number, name, checksum) VALUES (9999, 'of_tomorrow', 'x')")
    newest = len(migrations())
    says = f"ledger: ledger '{ledger}' is at migration 9999 of a newer release; this one knows {newest}: update it\n"
    assert run(tmp_path, *command, "--dsn", dsn, "--ledger", ledger) == (3, "", says)


@pytest.mark.parametrize("command", COMMANDS[:2], ids=" ".join)
def test_a_migration_that_was_killed_before_it_came_to_the_read_models_is_to_be_run_again(
    command: tuple[str, ...], dsn: str, ledger: str, tmp_path: Path
) -> None:
    """They come last, in a transaction of their own: this ledger has none yet."""
    where = "--dsn", dsn, "--ledger", ledger
    advice = f"run `ledger migrate --ledger {ledger}` again"
    says = f"ledger: ledger '{ledger}' is migrated in part, without balances: {advice}\n"
    assert run(tmp_path, *command, *where) == (3, "", says)
    assert run(tmp_path, "migrate", *where)[0] == 0
    require_read_models(dsn, ledger, Role.PROJECTOR)


def run(folder: Path, *command: str) -> tuple[int, str, str]:
    """The exit code of a command, and what it says."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LEDGER_")}
    ended = subprocess.run(
        [sys.executable, "-m", "ledger.cli", *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return ended.returncode, ended.stdout, ended.stderr
