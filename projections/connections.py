"""Connections for reads: a few, made when they are needed, and given up at once when the database is away."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final, LiteralString, TypeAlias

import psycopg
from psycopg import AsyncConnection

from ledger.postgres import Role, connection_settings
from projections.errors import ReadsUnavailable

CONNECTIONS_MOST: Final = 4
STATEMENT_TIMEOUT_S: Final = 10

Rows: TypeAlias = list[tuple[Any, ...]]


class Connections:
    """Runs statements, each on a connection that nobody else uses meanwhile.

    A pool that connects behind the scenes lets everybody wait for a database that is away. Here whoever needs a
    connection makes it, and is told at once.
    """

    def __init__(self, dsn: str, ledger: str, *, name: str = "ledger-reads", most: int = CONNECTIONS_MOST) -> None:
        """At most `most` connections, which the database knows by `name`."""
        self._settings: Final = connection_settings(dsn, ledger, name, Role.AUDITOR)
        self._settings["options"] += f" -c statement_timeout={STATEMENT_TIMEOUT_S}s"
        self._turns: Final = asyncio.Semaphore(most)
        self._free: list[AsyncConnection[Any]] = []
        self._running: set[asyncio.Task[Rows]] = set()
        self._closed = False

    async def rows(
        self, statement: LiteralString, params: Mapping[str, Any] | None = None, *, prepare: bool | None = None
    ) -> Rows:
        """The rows of a query, which must be one that can be run again. Raises ReadsUnavailable.

        With `prepare=False` it is planned for these parameters each time, where much hangs on what they are.

        A caller that goes away doesn't cancel what runs already: that would cost more than the rest of it.
        """
        await self._turns.acquire()
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
        self._closed = True
        for task in self._running:
            task.cancel()
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
            cursor = await connection.execute(statement, params, prepare=prepare, binary=True)
            return await cursor.fetchall()
        finally:
            if connection.closed or self._closed:
                await connection.close()
            else:
                self._free.append(connection)

    def _ended(self, task: asyncio.Task[Rows]) -> None:
        self._running.discard(task)
        self._turns.release()
        if not task.cancelled():
            task.exception()  # Its caller may have gone: then nobody else looks at it.
