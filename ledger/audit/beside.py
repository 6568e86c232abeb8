"""The reading of the records, here or in a second process beside the retrial. Both see the same snapshot."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection as Pipe
from typing import Any, Protocol

import psycopg
from psycopg import Connection

from ledger.audit.collector import collector_at_rest
from ledger.audit.records import RecordsSeen, Told, Wanted, check_records
from ledger.audit.snapshot import opened, share


class SecondProcessEnded(Exception):
    """The process that read the records ended before it was through."""

    def __init__(self) -> None:
        super().__init__("the second process ended before it was through: it was killed, or ran out of memory")


class Reading(Protocol):
    """A reading of the records, under way or to come."""

    def hear(self) -> None:
        """Pass on how far it has come."""

    def result(self) -> RecordsSeen:
        """Wait for what was seen."""


class ReadingHere:
    """Reads when it is asked for the result."""

    def __init__(self, connection: Connection[Any], wanted: Wanted, told: Told) -> None:
        self._connection, self._wanted, self._told = connection, wanted, told

    def hear(self) -> None:
        pass

    def result(self) -> RecordsSeen:
        return check_records(self._connection, self._wanted, self._told)


class ReadingBeside:
    """Reads in another process, which tells through a pipe how far it has come, and at last what it saw."""

    def __init__(self, pipe: Pipe, told: Told) -> None:
        self._pipe, self._told = pipe, told
        self._seen: RecordsSeen | None = None

    def hear(self) -> None:
        while self._seen is None and self._pipe.poll():
            self._listen()

    def result(self) -> RecordsSeen:
        while self._seen is None:
            self._listen()
        return self._seen

    def _listen(self) -> None:
        """Wait for what comes next. Raises the psycopg error that ended the process, if one did."""
        try:
            said = self._pipe.recv()
        except (EOFError, OSError):
            raise SecondProcessEnded from None
        if isinstance(said, psycopg.Error):
            raise said
        if isinstance(said, RecordsSeen):
            self._seen = said
        else:
            self._told(*said)


@contextmanager
def reading_beside(
    dsn: str, ledger: str, connection: Connection[Any], wanted: Wanted, told: Told
) -> Iterator[ReadingBeside]:
    """A process that reads what `connection` sees. It ends with the context, whether or not it is through."""
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    arguments = (theirs, dsn, ledger, share(connection), wanted)
    process = context.Process(target=_read, args=arguments, name="ledger-audit-records", daemon=True)
    process.start()
    theirs.close()  # It has its own: when that is gone, there is an end to read here.
    try:
        yield ReadingBeside(ours, told)
    finally:
        process.terminate()
        process.join()
        ours.close()


def _read(pipe: Pipe, dsn: str, ledger: str, shared: str, wanted: Wanted) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one.
    try:
        with opened(dsn, ledger, shared) as connection, collector_at_rest():
            pipe.send(check_records(connection, wanted, lambda what, done: pipe.send((what, done))))
    except psycopg.Error as error:
        pipe.send(error)
