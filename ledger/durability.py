"""Whether what the database has committed survives a crash: settings without which nobody should keep money in it."""

from __future__ import annotations

from typing import Any, Final

import structlog
from psycopg import Connection

from ledger.postgres import connect

UNSAFE: Final = {"fsync": "off", "synchronous_commit": "off"}
"""Settings that make a commit something that a crash can undo, although it was acknowledged."""

log = structlog.get_logger(__name__)


class UnsafeDurability(Exception):
    """The database may lose what it has acknowledged."""


def unsafe_settings(connection: Connection[Any]) -> list[str]:
    """Those of the settings that are unsafe in this session, as `name=value`."""
    query = "SELECT name, setting FROM pg_settings WHERE name = ANY (%s) ORDER BY name"
    return [f"{name}={value}" for name, value in connection.execute(query, [list(UNSAFE)]) if value == UNSAFE[name]]


def require_durable(dsn: str, ledger: str, *, told: bool) -> None:
    """Raise UnsafeDurability if sessions of ours would lose commits in a crash, unless it was `told` to be so."""
    with connect(dsn, ledger, "ledger-start") as connection:
        unsafe = unsafe_settings(connection)
    if not unsafe:
        return
    if not told:
        raise UnsafeDurability(
            f"the database has {' and '.join(unsafe)}: a crash of its machine can undo answered payments, and "
            "damage the rest. Turn it on, or set LEDGER_UNSAFE_DURABILITY=true where nothing is worth keeping"
        )
    log.warning("unsafe_durability", settings=unsafe)
