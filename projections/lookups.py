"""Look-ups: rows by id, many callers to a statement."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Any, Final, Generic, LiteralString, NamedTuple, TypeVar

from projections.connections import Connections

Row = TypeVar("Row")


class Found(NamedTuple, Generic[Row]):
    """What a query saw: the position it was read at, why following stopped there if it did, and the row if any."""

    position: int
    failure: str | None
    row: Row | None


class Lookup(Generic[Row]):
    """Finds rows by id. What is asked for while a statement runs goes together into the next one.

    A statement of its own for each caller would cost more than the rest of the call. So a lone caller never waits for
    company, and under load each statement answers many; every caller gets one that began after it asked.
    """

    def __init__(
        self, connections: Connections, statement: LiteralString, row: Callable[[tuple[Any, ...]], Row]
    ) -> None:
        self._connections: Final = connections
        self._statement: Final[LiteralString] = statement
        self._row: Final = row
        self._asked: dict[str, list[asyncio.Future[Found[Row]]]] = {}
        self._task: asyncio.Task[None] | None = None

    async def find(self, id: str) -> Found[Row]:  # noqa: A002
        """Raises ReadsUnavailable."""
        future: asyncio.Future[Found[Row]] = asyncio.get_running_loop().create_future()
        self._asked.setdefault(id, []).append(future)
        if self._task is None or self._task.done():
            # In a context of its own: the time limits of who asks first are not those of the others.
            self._task = asyncio.create_task(self._answer(), context=Context())
        return await future

    async def _answer(self) -> None:
        while self._asked:
            asked, self._asked = self._asked, {}
            try:
                rows = await self._connections.rows(self._statement, {"ids": list(asked)})
            except Exception as error:
                for future in _waiting(asked):
                    future.set_exception(error)
            else:
                self._deliver(rows, asked)

    def _deliver(self, rows: list[tuple[Any, ...]], asked: dict[str, list[asyncio.Future[Found[Row]]]]) -> None:
        position, failure = rows[0][:2]
        found = {row[2]: self._row(row[2:]) for row in rows if row[2] is not None}
        for each, futures in asked.items():
            answer = Found(position, failure, found.get(each))
            for future in futures:
                if not future.done():
                    future.set_result(answer)


def _waiting(asked: dict[str, list[asyncio.Future[Found[Row]]]]) -> list[asyncio.Future[Found[Row]]]:
    return [future for futures in asked.values() for future in futures if not future.done()]
