"""Taking a ledger home: the log and what was signed about it, read at one moment and written as a bundle."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, TypeAlias

from psycopg import Connection, IsolationLevel
from psycopg.adapt import Buffer, Loader
from psycopg.pq import Format

from ledger.audit.bundle import BundleWriter, Row
from ledger.audit.note import Note
from ledger.postgres import Role, connect, sql_blocks

SQL: Final = sql_blocks("ledger.audit", "export.sql")

ROWS_AT_A_TIME: Final = 2_000
_POSTGRES_EPOCH_US: Final = int(datetime(2000, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
_BREAK_SIZE_LINE: Final = 3

Progress: TypeAlias = Callable[[str, int, int], None]
"""Is told what is being done, how much of it is done, and of how much."""


class CannotExport(Exception):
    """There is no bundle, and the message says why."""


class HeadNotSigned(CannotExport):
    """No head was signed of that size."""


class FileInTheWay(CannotExport):
    """There is a file already where the bundle is to go, or a folder, which nothing replaces."""


class LogHasGap(CannotExport):
    """An event that a signed head covers is not there."""


class Head(NamedTuple):
    """A signed head: up to where a bundle goes."""

    number: int
    tree_size: int
    signed_at: datetime


class _Microseconds(Loader):
    """Reads a timestamptz as microseconds since 1970: exactly, and faster than by way of a datetime."""

    format = Format.BINARY

    def load(self, data: Buffer) -> int:
        return int.from_bytes(data, signed=True) + _POSTGRES_EPOCH_US


def export(
    dsn: str, ledger: str, to: Path, *, tree_size: int | None = None, force: bool = False, progress: Progress
) -> int:
    """Write a bundle of the log up to the newest signed head, or up to the one of `tree_size`; return how many events.

    The file is there when it is complete, and not before. One that is there already is replaced with `force` only.
    Raises CannotExport.
    """
    try:
        with _at_one_moment(dsn, ledger) as connection, _new_file(to, force=force) as file:
            head = _head(connection, tree_size)
            with BundleWriter(file, _public_keys(connection, head)) as writer:
                _write(connection, head, writer, progress)
                writer.end(ledger)
            return head.tree_size
    except OSError as error:
        raise CannotExport(f"can't write {to}: {error.strerror}") from error


@contextmanager
def _at_one_moment(dsn: str, ledger: str) -> Iterator[Connection[Any]]:
    with connect(dsn, ledger, "ledger-export", Role.AUDITOR) as connection:
        connection.isolation_level = IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        with connection.transaction():
            yield connection


@contextmanager
def _new_file(to: Path, *, force: bool) -> Iterator[BinaryIO]:
    """A file that gets its name when it is complete; what is not complete is removed."""
    _require_free(to, force=force)
    unfinished = to.with_name(f".{to.name}.{secrets.token_hex(4)}")
    try:
        with unfinished.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _require_free(to, force=force)
        unfinished.replace(to)
    finally:
        unfinished.unlink(missing_ok=True)


def _require_free(to: Path, *, force: bool) -> None:
    if to.is_dir() or not to.name:
        raise FileInTheWay(f"{to} is a folder: name the file that is to be written")
    if to.exists() and not force:
        raise FileInTheWay(f"{to} is there already; --force replaces it")


def _head(connection: Connection[Any], tree_size: int | None) -> Head:
    if tree_size is None:
        row = connection.execute(SQL.newest_head).fetchone()
        if row is None:
            raise CannotExport("nothing was signed yet: a bundle goes up to a signed head")
        return Head(*row)
    row = connection.execute(SQL.head_of_size, {"tree_size": tree_size}).fetchone()
    if row is None:
        raise HeadNotSigned(f"no head was signed of size {tree_size}")
    return Head(*row)


def _public_keys(connection: Connection[Any], head: Head) -> list[str]:
    keys = [key for (key,) in connection.execute(SQL.keys, {"number": head.number})]
    if not keys:
        raise CannotExport("the key that signed is recorded with the next head: try again when one was signed")
    return keys


def _write(connection: Connection[Any], head: Head, writer: BundleWriter, progress: Progress) -> None:
    """Everything in its order: the events, each head after the last one that it covers, each break before the heads."""
    rows = _rows(connection, head, progress)
    breaks = _breaks(connection)
    written = 0
    with connection.cursor("heads") as heads:
        heads.itersize = ROWS_AT_A_TIME
        heads.execute(SQL.heads, {"number": head.number})
        for tree_size, signed_at, note in heads:
            while breaks and breaks[0][:2] < (tree_size, signed_at):
                size, _, break_note = breaks.pop(0)
                writer.add_events(islice(rows, size - written))
                writer.add_break(break_note)
                written = size
            writer.add_events(islice(rows, tree_size - written))
            writer.add_head(note)
            written = tree_size


def _breaks(connection: Connection[Any]) -> list[tuple[int, datetime, str]]:
    """The size from which the log goes on after each, when it was recorded, and its note."""
    rows = connection.execute(SQL.breaks).fetchall()
    return [(int(Note.parse(note).text.split("\n")[_BREAK_SIZE_LINE]), at, note) for at, note in rows]


def _rows(connection: Connection[Any], head: Head, progress: Progress) -> Iterator[Row]:
    """The log up to the head. Raises LogHasGap."""
    last = 0
    with connection.cursor("events", binary=True) as cursor:
        cursor.adapters.register_loader("timestamptz", _Microseconds)
        cursor.execute(SQL.events, {"tree_size": head.tree_size})
        while rows := cursor.fetchmany(ROWS_AT_A_TIME):
            progress("events", rows[-1][0], head.tree_size)
            for row in rows:
                last += 1
                if row[0] != last:
                    raise LogHasGap(f"the log has no event at position {last}, which was there when it was signed")
                yield row
    if last < head.tree_size:
        raise LogHasGap(f"the log ends at position {last}, and had {head.tree_size} events when it was signed")
