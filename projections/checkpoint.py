"""The checkpoint of the read models: the last position they include, and why following stopped there, if it did."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from psycopg import Connection, Cursor
from psycopg.rows import args_row

from ledger.postgres import sql_blocks

SQL: Final = sql_blocks("projections", "checkpoint.sql")

FOLLOWER: Final = "read_models"
"""The name under which the follower of the read models has its checkpoint."""


class Checkpoint(NamedTuple):
    position: int
    failure: str | None


class FollowerStatus(NamedTuple):
    """How far a follower has come (`position`), and how far it is behind the head: `lag_s` is the age of what waits."""

    name: str
    position: int
    failure: str | None
    head: int
    lag_s: float

    @property
    def lag_events(self) -> int:
        return self.head - self.position


class CheckpointMoved(Exception):
    """Another follower has moved the checkpoint: what was made of the events after it is not to be written."""


def read_checkpoint(connection: Connection[Any]) -> Checkpoint:
    with connection.cursor(row_factory=args_row(Checkpoint)) as cursor:
        found = cursor.execute(SQL.select).fetchone()
    assert found is not None, "create_tables puts the row there"
    return found


def read_status(connection: Connection[Any]) -> list[FollowerStatus]:
    """Every follower, by name."""
    rows = connection.execute(SQL.status).fetchall()
    return [FollowerStatus(name, at, failure, head, float(lag_s)) for name, at, failure, head, lag_s in rows]


def move_checkpoint(cursor: Cursor[Any], before: int, after: int) -> None:
    """Compare and set, as the first statement of the transaction that applies the events in between.

    Another follower that has the same batch waits here, for the row, and then finds that the checkpoint has moved.
    Raises CheckpointMoved.
    """
    cursor.execute(SQL.move, {"before": before, "after": after})
    if cursor.rowcount != 1:
        raise CheckpointMoved


def record_failure(connection: Connection[Any], position: int, failure: str) -> None:
    """Let every reader know why following stopped, unless another follower got further."""
    connection.execute(SQL.fail, {"position": position, "failure": failure})
