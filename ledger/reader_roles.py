"""Roles that may read an embedded Postgres and change nothing, for psql and BI tools."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Final

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

READ_MODELS: Final = ("balances", "payments", "transfers", "entries", "checkpoints")
READABLE: Final = {
    "analyst": READ_MODELS,
    "auditor": (*READ_MODELS, "events", "migrations"),
}
"""What each role may read, in the schema of every ledger. The auditor reads the log as well."""


def reader_dsn(owner_dsn: str, data_dir: Path, role: str) -> str:
    """The connection string of a reading role; the role and its rights are made if they aren't there.

    Its password is kept in `data_dir`, readable by the owner only.
    """
    name = f"ledger_{role}"
    password = _password(data_dir / f"{role}.password")
    with psycopg.connect(owner_dsn, autocommit=True) as connection, connection.transaction():
        _grant(connection, name, password, READABLE[role])
    return make_conninfo(owner_dsn, user=name, password=password)


def _password(file: Path) -> str:
    file.touch(mode=0o600)
    if not file.read_text():
        file.write_text(secrets.token_urlsafe(24))
    return file.read_text()


def _grant(
    connection: psycopg.Connection[tuple[object, ...]], name: str, password: str, tables: tuple[str, ...]
) -> None:
    role = sql.Identifier(name)
    if connection.execute("SELECT FROM pg_roles WHERE rolname = %s", (name,)).fetchone() is None:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
        connection.execute(sql.SQL("ALTER ROLE {} SET default_transaction_read_only = on").format(role))
    connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(role, sql.Literal(password)))
    found = connection.execute(
        "SELECT schemaname, tablename FROM pg_tables WHERE schemaname LIKE 'ledger\\_%%' AND tablename = ANY (%s)",
        (list(tables),),
    )
    for schema, table in found.fetchall():
        where = sql.Identifier(str(schema))
        connection.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(where, role))
        what = sql.Identifier(str(schema), str(table))
        connection.execute(sql.SQL("GRANT SELECT ON {} TO {}").format(what, role))
