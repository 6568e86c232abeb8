"""Connections for reads: a few, made when they are needed, and given up at once when the database is away."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final, LiteralString, TypeAlias
from weakref import WeakKeyDictionary

import psycopg
from psycopg import AsyncConnection

from ledger.deadlines import time_left_s
from ledger.postgres import Role, connection_settings, sql_blocks
from projections.errors import ReadsUnavailable

CONNECTIONS_MOST: Final = 4
CLOSE_PATIENCE_S: Final = 0.5
TIMEOUTS_S: Final = (1, 2, 5, 10)
"""How long a statement may take: the first of these that is not less than the time that is left for the call.

Few values, since to change a connection's is a statement as well; and the last however long the caller would wait.
"""

Rows: TypeAlias = list[tuple[Any, ...]]

SQL: Final = sql_blocks("projections", "connections.sql")


class Connections:
    """Runs statements, each on a connection that nobody else uses meanwhile.

    A pool that connects behind the scenes lets everybody wait for a database that is away. Here whoever needs a
    connection makes it, and is told at once.
    """

    def __init__(self, dsn: str, ledger: str, *, name: str = "ledger-reads", most: int = CONNECTIONS_MOST) -> None:
        """At most `most` connections, which the database knows by `name`."""
        self._settings: Final = connection_settings(dsn, ledger, name, Role.AUDITOR)
        self._settings["options"] += f" -c statement_timeout={TIMEOUTS_S[-1]}s"
        self.name: Final = name
        self.most: Final = most
        self.awaited = 0
        """How many callers wait for a connection."""
        self._turns: Final = asyncio.Semaphore(most)
        self._free: list[AsyncConnection[Any]] = []
        self._timeouts_s: Final[WeakKeyDictionary[AsyncConnection[Any], int]] = WeakKeyDictionary()
        """Of connections that have another than the last of TIMEOUTS_S."""
        self._running: set[asyncio.Task[Rows]] = set()
        self._closed = False

    @property
    def busy(self) -> int:
        """How many connections are in use."""
        return len(self._running)

    @property
    def idle(self) -> int:
        """How many connections are there for the next who needs one."""
        return len(self._free)

    async def rows(
        self, statement: LiteralString, params: Mapping[str, Any] | None = None, *, prepare: bool | None = None
    ) -> Rows:
        """The rows of a query, which must be one that can be run again. Raises ReadsUnavailable.

        With `prepare=False` it is planned for these parameters each time, where much hangs on what they are.

        A caller that goes away doesn't cancel what runs already: that would cost more than the rest of it.
        """
        self.awaited += 1
        try:
            await self._turns.acquire()
        finally:
            self.awaited -= 1
        task = asyncio.create_task(self._rows(statement, params, prepare))
        self._running.add(task)
        task.add_done_callback(self._ended)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise ReadsUnavailable from None  # It was closed.
            raise

    async def close(self) -> None:
        """End what runs. A database that does not answer when it is told so is not waited for."""
        self._closed = True
        for _ in range(2):  # The first time psycopg tells the database, the second time it gives the connection up.
            if running := list(self._running):
                for task in running:
                    task.cancel()
                await asyncio.wait(running, timeout=CLOSE_PATIENCE_S)
        await asyncio.gather(*self._running, return_exceptions=True)
        while self._free:
            await self._free.pop().close()

    async def _rows(self, statement: LiteralString, params: Mapping[str, Any] | None, prepare: bool | None) -> Rows:
        try:
            while self._free:
                connection = self._free.pop()
                try:
                    return await self._run(connection, statement, params, prepare)
                except psycopg.OperationalError:
                    if not connection.closed:
                        raise  # Else it had died while it was free: another one may do.
            return await self._run(await self._connect(), statement, params, prepare)
        except psycopg.OperationalError as error:
            raise ReadsUnavailable from error

    async def _connect(self) -> AsyncConnection[Any]:
        return await AsyncConnection.connect(autocommit=True, **self._settings)

    async def _run(
        self,
        connection: AsyncConnection[Any],
        statement: LiteralString,
        params: Mapping[str, Any] | None,
        prepare: bool | None,
    ) -> Rows:
        try:
            await self._limit(connection)
            cursor = await connection.execute(statement, params, prepare=prepare, binary=True)
            return await cursor.fetchall()
        finally:
            if connection.closed or self._closed:
                await connection.close()
            else:
                self._free.append(connection)

    async def _limit(self, connection: AsyncConnection[Any]) -> None:
        """Have the database give up a statement that nobody waits for any more."""
        left_s = time_left_s()
        timeout_s = next((each for each in TIMEOUTS_S if left_s is not None and left_s <= each), TIMEOUTS_S[-1])
        if timeout_s != self._timeouts_s.get(connection, TIMEOUTS_S[-1]):
            await connection.execute(SQL.set_timeout, {"timeout": f"{timeout_s}s"})
            self._timeouts_s[connection] = timeout_s

    def _ended(self, task: asyncio.Task[Rows]) -> None:
        self._running.discard(task)
        self._turns.release()
        if not task.cancelled():
            task.exception()  # Its caller may have gone: then nobody else looks at it.
