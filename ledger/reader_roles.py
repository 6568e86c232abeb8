"""Logins that may read an embedded Postgres and change nothing, for psql and BI tools."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Final

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from ledger.postgres import Role, sql_blocks

SQL: Final = sql_blocks("ledger.sql", "reader_roles.sql")


def reader_dsn(owner_dsn: str, data_dir: Path, role: Role) -> str:
    """The connection string of a login that is a member of this role of every ledger; it is made if it isn't there.

    Its password is kept in `data_dir`, readable by the owner only. What the role may read, ledger/roles.py says.
    """
    name = f"ledger_{role}"
    password = _password(data_dir / f"{role}.password")
    with psycopg.connect(owner_dsn, autocommit=True) as connection, connection.transaction():
        _make(connection, name, password)
        _join(connection, name, role)
    return make_conninfo(owner_dsn, user=name, password=password)


def _password(file: Path) -> str:
    file.touch(mode=0o600)
    if not file.read_text():
        file.write_text(secrets.token_urlsafe(24))
    return file.read_text()


def _make(connection: psycopg.Connection[tuple[object, ...]], name: str, password: str) -> None:
    login = sql.Identifier(name)
    if connection.execute("SELECT FROM pg_roles WHERE rolname = %s", (name,)).fetchone() is None:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(login))
        connection.execute(sql.SQL("ALTER ROLE {} SET default_transaction_read_only = on").format(login))
    connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(login, sql.Literal(password)))


def _join(connection: psycopg.Connection[tuple[object, ...]], name: str, role: Role) -> None:
    """Make the login a member of the role of each ledger, and take away what an older release gave to it directly."""
    for (schema,) in connection.execute(SQL.ledgers, {"role": role}).fetchall():
        there, login = sql.Identifier(str(schema)), sql.Identifier(name)
        connection.execute(sql.SQL("REVOKE ALL ON ALL TABLES IN SCHEMA {} FROM {}").format(there, login))
        connection.execute(sql.SQL("REVOKE ALL ON SCHEMA {} FROM {}").format(there, login))
        connection.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(f"{schema}_{role}"), login))
