"""Views: what analysts read by SQL. Names and columns are kept; what has to change gets a new name."""

from __future__ import annotations

from typing import Any, Final

from psycopg import Connection

from ledger.postgres import sql_blocks

SQL: Final = sql_blocks("projections", "views.sql")


def create_views(connection: Connection[Any]) -> None:
    """Create the views over the tables of the read models and the log, where they don't all exist.

    To create one anew would wait for every query that reads it.
    """
    (missing,) = connection.execute(SQL.missing).fetchone() or (True,)
    if missing:
        connection.execute(SQL.create_over_read_models)
        connection.execute(SQL.create_over_log)
