"""How this ledger speaks to Postgres: connections with the settings it relies on, and SQL kept in .sql files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from importlib.resources import files
from types import SimpleNamespace
from typing import Any, Final, LiteralString, cast

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow

LEDGER_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,40}").fullmatch
CONNECT_TIMEOUT_S: Final = 5


class Role(StrEnum):
    """Who a session acts as. Every ledger has roles of its own; ledger/roles.py says what each may do."""

    OWNER = "owner"
    WRITER = "writer"
    PROJECTOR = "projector"
    SIGNER = "signer"
    AUDITOR = "auditor"
    ANALYST = "analyst"


def role_name(ledger: str, role: Role) -> str:
    """The Postgres role; 58 bytes at most, of the 63 that a name can have."""
    return f"{schema_of(ledger)}_{role}"


def schema_of(ledger: str) -> str:
    """The Postgres schema of a ledger; raises ValueError if that can't be a ledger's name."""
    if not LEDGER_NAME(ledger):
        raise ValueError(f"{ledger!r} can't be a ledger's name: that is a letter, then at most 40 of a-z, 0-9 and _")
    return f"ledger_{ledger}"


def connection_settings(dsn: str, ledger: str, application_name: str, role: Role | None = None) -> dict[str, Any]:
    """Keyword arguments for psycopg.connect: the DSN's own, with the ledger's schema and what is durable pinned.

    With a role the session acts as that from its first statement on, whatever else its login may do; without one it
    acts as the login.

    Keepalives and tcp_user_timeout bound how long a dead server can look alive.
    """
    own = {key: value for key, value in conninfo_to_dict(dsn).items() if value is not None}
    options = f"-c search_path={schema_of(ledger)} -c synchronous_commit=on -c timezone=UTC"
    if role is not None:
        options += f" -c role={role_name(ledger, role)}"
    return {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "keepalives_idle": 10,
        "keepalives_interval": 3,
        "keepalives_count": 3,
        "tcp_user_timeout": 20_000,
        **own,
        "options": f"{own.get('options', '')} {options}".strip(),
        "application_name": application_name,
    }


def connect(dsn: str, ledger: str, application_name: str, role: Role | None = None) -> psycopg.Connection[TupleRow]:
    """A connection in autocommit mode whose unqualified names are the ledger's tables."""
    return psycopg.connect(autocommit=True, **connection_settings(dsn, ledger, application_name, role))


@contextmanager
def as_login(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """A transaction as the login itself: only to that does the server tell about its sessions, and end them for it."""
    with connection.transaction():
        connection.execute("SET LOCAL ROLE NONE", prepare=False)
        yield


_BLOCK: Final = re.compile(r"^-- (\w+):.*$", re.MULTILINE)


def sql_blocks(package: str, name: str) -> SimpleNamespace:
    """The statements of a .sql file in a package, as attributes.

    A block starts with a line `-- name: what it does` and goes on to the next such line.
    """
    parts = _BLOCK.split(files(package).joinpath(name).read_text(encoding="utf-8"))
    return SimpleNamespace(
        **{block: cast(LiteralString, text.strip()) for block, text in zip(parts[1::2], parts[2::2], strict=True)}
    )
