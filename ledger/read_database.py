"""Whether the database that queries go to, by LEDGER_READ_DSN, holds the log that commands are recorded in."""

from __future__ import annotations

from typing import Final

import psycopg
import structlog

from ledger.migrations import SchemaError, require_migrated
from ledger.postgres import Role, connect, sql_blocks
from ledger.roles import RoleMissing

SQL: Final = sql_blocks("ledger.sql", "log.sql")

log = structlog.get_logger(__name__)


class WrongReadDatabase(Exception):
    """Queries there would be refused, or answered from another log."""


def require_same_log(dsn: str, read_dsn: str, ledger: str) -> None:
    """Raise WrongReadDatabase unless queries at `read_dsn` are about the log at `dsn`, or what it was a while ago.

    One that can't be reached is only reported: queries are UNAVAILABLE until it is back, and commands don't need it.
    """
    try:
        require_migrated(read_dsn, ledger, Role.AUDITOR)
        with connect(read_dsn, ledger, "ledger-start", Role.AUDITOR) as reads:
            head = reads.execute(SQL.head).fetchone()
    except (SchemaError, RoleMissing) as error:
        raise WrongReadDatabase(f"LEDGER_READ_DSN does not lead to a copy of this ledger: {error}") from error
    except psycopg.OperationalError as error:
        log.warning("read_database_unavailable", ledger=ledger, error=str(error).strip())
        return
    if head is None:
        return
    position, recorded_at = head
    with connect(dsn, ledger, "ledger-start", Role.AUDITOR) as writes:
        ((is_there,),) = writes.execute(SQL.holds, {"head": position, "head_recorded_at": recorded_at}).fetchall()
    if not is_there:
        raise WrongReadDatabase(
            f"LEDGER_READ_DSN leads to another log: the event at its end, position {position}, is not in the log of "
            "LEDGER_DSN. It has to be a standby of that database"
        )
