"""A look at how far the read models are behind, on a connection of its own: for who does not read from them."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import Connection

from ledger.postgres import connect
from projections.checkpoint import SQL
from projections.lag import Lag


class LagWatch:
    """What was seen when last looked. Told to look by one thread, read by any."""

    def __init__(self, dsn: str, ledger: str) -> None:
        self._dsn, self._ledger = dsn, ledger
        self._connection: Connection[Any] | None = None
        self.head = 0
        self.position = 0
        self.stopped = False
        """Whether following had stopped at an event that can't be applied."""
        self.lag = Lag()

    def look(self) -> None:
        """Look. While the database is away, what was seen last stays, and the lag in seconds grows."""
        try:
            if self._connection is None or self._connection.closed:
                self._connection = connect(self._dsn, self._ledger, "ledger-lag-watch")
            row = self._connection.execute(SQL.watch).fetchone()
        except psycopg.Error:
            self.close()
            return
        assert row is not None, "create_tables puts the row there"
        self.position, failure, self.head, waiting_s = row
        self.stopped = failure is not None
        self.lag.see(self.head, self.position, waiting_s)

    def close(self) -> None:
        """Give the connection up; the next look makes another one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
