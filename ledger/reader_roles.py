"""Roles that may read an embedded Postgres and change nothing, for psql and BI tools."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Final

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

VIEWS: Final = ("accounts_v1", "balances_v1", "payments_v1", "transfers_v1", "entries_v1", "events_v1")
TABLES: Final = ("balances", "payments", "transfers", "transfer_accounts", "entries", "checkpoints")
LOG_AND_TREE: Final = ("events", "migrations", "tree_tiles", "tree_heads", "tree_breaks", "tree_keys")
READABLE: Final = {
    "analyst": VIEWS,
    "auditor": (*VIEWS, *TABLES, *LOG_AND_TREE),
}
"""What each role may read, in the schema of every ledger: an analyst the views, an auditor also what is under them."""


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
    connection: psycopg.Connection[tuple[object, ...]], name: str, password: str, readable: tuple[str, ...]
) -> None:
    """Let a role read what is `readable` in the schemas of all ledgers, and nothing else."""
    role = sql.Identifier(name)
    if connection.execute("SELECT FROM pg_roles WHERE rolname = %s", (name,)).fetchone() is None:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
        connection.execute(sql.SQL("ALTER ROLE {} SET default_transaction_read_only = on").format(role))
    connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(role, sql.Literal(password)))
    schemas = connection.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'ledger\\_%'").fetchall()
    for (schema,) in schemas:
        where = sql.Identifier(str(schema))
        connection.execute(sql.SQL("REVOKE ALL ON ALL TABLES IN SCHEMA {} FROM {}").format(where, role))
        connection.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(where, role))
        relations = "SELECT relname FROM pg_class WHERE relnamespace = %s::regnamespace AND relname = ANY (%s)"
        for (name_there,) in connection.execute(relations, (f'"{schema}"', list(readable))).fetchall():
            what = sql.Identifier(str(schema), str(name_there))
            connection.execute(sql.SQL("GRANT SELECT ON {} TO {}").format(what, role))
