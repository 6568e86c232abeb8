"""Rows: how a batch's worth of them is written, each kind in one statement, and never fewer than asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, LiteralString, TypeAlias

from psycopg import Cursor
from pydantic_core import to_json

from projections.batch import LoggedEvent

Row: TypeAlias = tuple[Any, ...]

_EMPTY: Final = {dict: "{}", list: "[]"}


class RowsDisagree(Exception):
    """The read models are not what the log says they must be: {what}."""

    def __init__(self, what: str) -> None:
        super().__init__(what)


def copy_rows(cursor: Cursor[Any], statement: LiteralString, rows: Sequence[Row]) -> None:
    """Add new rows: `statement` is a COPY ... FROM STDIN in text format.

    Half the price of unnest from 100 rows up. Text, because the times in an event are text and can stay it.
    """
    if rows:
        with cursor.copy(statement) as copy:
            for row in rows:
                copy.write_row(row)


def update_rows(cursor: Cursor[Any], statement: LiteralString, rows: Sequence[Row]) -> None:
    """Change rows that are there: `statement` is an UPDATE from unnest, with one array per column of `rows`.

    Raises RowsDisagree unless each of them was found.
    """
    if rows:
        cursor.execute(statement, [list(column) for column in zip(*rows, strict=True)])
        if cursor.rowcount != len(rows):
            raise RowsDisagree(f"{len(rows)} rows were to change, {cursor.rowcount} were found at the version before")


def require_successor(event: LoggedEvent, version_before: int) -> None:
    """Raise RowsDisagree unless the event is the next one of its stream."""
    if event.version != version_before + 1:
        raise RowsDisagree(f"{event.stream} has version {event.version} right after {version_before}")


def json_text(value: dict[str, Any] | list[Any]) -> str:
    """A value for a jsonb column."""
    return to_json(value).decode() if value else _EMPTY[type(value)]
