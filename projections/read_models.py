"""The read models that one follower keeps under one checkpoint, so that every query sees one position."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Final, Protocol

from psycopg import Connection, Cursor

from ledger.roles import act_as_owner, grant
from projections import balances, checkpoint, entries, payments, transfers
from projections.batch import LoggedEvent
from projections.views import create_views


class ReadModel(Protocol):
    """What the module of a read model has: a pure fold, and the statements that write what comes of it."""

    @property
    def SQL(self) -> SimpleNamespace: ...  # noqa: N802

    def fold(self, events: Sequence[LoggedEvent], /) -> Any: ...

    def write(self, cursor: Cursor[Any], folded: Any, /) -> None: ...


READ_MODELS: Final[tuple[ReadModel, ...]] = (balances, payments, transfers, entries)


def create_tables(connection: Connection[Any]) -> None:
    """Create the tables of all read models, the checkpoint and the views on them, where they don't exist.

    They are the owner's, and the roles get their rights. The ledger has to be migrated.
    """
    with connection.transaction():
        act_as_owner(connection)
        connection.execute("LOCK TABLE migrations IN EXCLUSIVE MODE")  # Who does the same at this time waits.
        create_bare_tables(connection)
        create_views(connection)
        grant(connection)


def create_bare_tables(connection: Connection[Any]) -> None:
    """Create the tables alone, in the first schema that is searched."""
    connection.execute(checkpoint.SQL.create)
    for model in READ_MODELS:
        connection.execute(model.SQL.create)


def fold(events: Sequence[LoggedEvent]) -> list[Any]:
    """What the events come to in each read model."""
    return [model.fold(events) for model in READ_MODELS]


def write(cursor: Cursor[Any], folded: list[Any]) -> None:
    """Bring every read model from before the events to after them, in the transaction of `cursor`."""
    for model, changes in zip(READ_MODELS, folded, strict=True):
        model.write(cursor, changes)
