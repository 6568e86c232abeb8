"""Snapshots: one state of the database, read by as many connections as it takes. Nothing is created or changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final, LiteralString, TypeAlias

from psycopg import Connection, IsolationLevel, ServerCursor, sql
from psycopg.adapt import Buffer, Loader
from psycopg.errors import UndefinedTable
from psycopg.pq import Format

from ledger.postgres import Role, connect, sql_blocks

SQL: Final = sql_blocks("ledger.audit", "snapshot.sql")

ROWS_AT_A_TIME: Final = 4_000
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
US: Final = timedelta(microseconds=1)
_POSTGRES_EPOCH_US: Final = (datetime(2000, 1, 1, tzinfo=UTC) - EPOCH) // US

MOMENTS: Final = (datetime.min.replace(tzinfo=UTC) - EPOCH) // US, (datetime.max.replace(tzinfo=UTC) - EPOCH) // US
"""The least and the most microseconds since 1970 that are a time: the years 1 to 9999."""

Row: TypeAlias = tuple[int, str, int, str, int, bytes]
"""A row of the log: position, stream, version, topic, recorded_at in microseconds since 1970, state."""


class Microseconds(Loader):
    """Reads a timestamptz as microseconds since 1970: whatever stands there, the year 300000 and infinity too."""

    format = Format.BINARY

    def load(self, data: Buffer) -> int:
        return int.from_bytes(data, signed=True) + _POSTGRES_EPOCH_US


def moment(microseconds: int) -> datetime:
    """The time so many microseconds after 1970. Raises OverflowError unless it is one of the years 1 to 9999."""
    return EPOCH + timedelta(microseconds=microseconds)


@contextmanager
def opened(dsn: str, ledger: str, shared: str | None = None) -> Iterator[Connection[Any]]:
    """A connection that sees one state of a ledger's tables, and may only read. They keep their places meanwhile.

    `shared` is what `share` told about the snapshot of another connection: that one is seen here too.
    """
    with connect(dsn, ledger, "ledger-audit", Role.AUDITOR) as connection:
        connection.isolation_level = IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        with connection.transaction():
            # Before there is a snapshot: in one that is older than tables that a rebuild puts in place, they are empty.
            with suppress(UndefinedTable), connection.transaction():  # No read models were made yet.
                connection.execute(SQL.hold_read_models)
            if shared is not None:
                connection.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(shared)))
            # All rows are wanted, not the first few: plan for that.
            connection.execute("SET LOCAL cursor_tuple_fraction = 1")
            yield connection


def share(connection: Connection[Any]) -> str:
    """The name by which others can see the same state, as long as this connection is open."""
    (name,) = connection.execute(SQL.share).fetchone() or ("",)
    return str(name)


def reading(
    connection: Connection[Any], name: str, query: LiteralString, parameters: Mapping[str, Any] | None = None
) -> ServerCursor[Any]:
    """A cursor over the rows of a query, which stay with the server until they are wanted. Times are Microseconds."""
    cursor = connection.cursor(name, binary=True)
    cursor.adapters.register_loader("timestamptz", Microseconds)
    return cursor.execute(query, parameters)


def batches(cursor: ServerCursor[Any], at_a_time: int = ROWS_AT_A_TIME) -> Iterator[list[Any]]:
    """The rows, so many at a time: memory does not grow with them."""
    with cursor:
        while rows := cursor.fetchmany(at_a_time):
            yield rows


def head_of(connection: Connection[Any]) -> int:
    """The last position of the log."""
    (position,) = connection.execute(SQL.head).fetchone() or (0,)
    return int(position or 0)
