"""Reading ahead: the next batch is read, decoded and folded while the one before it is being written."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import structlog
from psycopg import Connection

from projections.batch import LoggedEvent, LoggedRow

log = structlog.get_logger(__name__)


class Prepared(NamedTuple):
    """A batch, as far as it can be had without the read models."""

    rows: list[LoggedRow]
    events: Sequence[LoggedEvent]
    """Those of whole commands."""
    folded: list[Any]
    """What they come to in each read model."""


class ReadAhead:
    """Prepares one batch at a time, in a thread and on a connection of its own.

    It has no say: what can't be prepared here is tried again by whoever needs it, and fails there.
    """

    def __init__(
        self, connect: Callable[[], Connection[Any]], prepare: Callable[[Connection[Any], int], Prepared]
    ) -> None:
        """`prepare` makes the batch after a position."""
        self._connect: Final = connect
        self._prepare: Final = prepare
        self._connection: Connection[Any] | None = None
        self._thread: threading.Thread | None = None
        self._after = 0
        self._prepared: Prepared | None = None

    def begin(self, after: int) -> None:
        """Prepare the batch after a position. What was begun before has to be taken first."""
        assert self._thread is None
        self._after = after
        self._thread = threading.Thread(target=self._run, name="read-ahead", daemon=True)
        self._thread.start()

    def take(self, after: int) -> Prepared | None:
        """The batch after that position, waited for; None if it was not begun, or could not be prepared."""
        thread, self._thread = self._thread, None
        if thread is None:
            return None
        thread.join()
        prepared, self._prepared = self._prepared, None
        return prepared if self._after == after else None

    def cancel(self, within_s: float) -> None:
        """End what the database does for it; from any thread."""
        connection = self._connection
        if connection is not None:
            connection.cancel_safe(timeout=within_s)

    def close(self) -> None:
        """Give back what it holds, having waited for what it does."""
        self.take(0)
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _run(self) -> None:
        try:
            if self._connection is None or self._connection.closed:
                self._connection = self._connect()
            self._prepared = self._prepare(self._connection, self._after)
        except Exception as error:
            log.debug("not_read_ahead", after=self._after, error=repr(error))
