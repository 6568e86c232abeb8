"""Rebuild: the read models made anew from the log, beside those that serve; compared with them, and put in their place.

The new tables stand in a schema of their own until they are swapped in, so they are made by just the statements that
made the old ones. What serves goes on serving: followers and readers wait only while the tables change places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import sleep
from typing import Any, Final, LiteralString, NamedTuple, TypeAlias

import psycopg
from psycopg import Connection, sql

from ledger.postgres import Role, as_login, connect, schema_of, sql_blocks
from ledger.upcasters import EventMapper
from projections import read_models, views
from projections.batch import LoggedEvent, decode, read_batch, whole_commands
from projections.checkpoint import move_checkpoint, read_checkpoint

SQL: Final = sql_blocks("projections", "rebuild.sql")

TABLES: Final = ("balances", "payments", "transfers", "transfer_accounts", "entries")
BATCH_EVENTS: Final = 10_000
DIFFERENCES_SHOWN: Final = 20
_FETCH_ROWS: Final = 5_000
_SWAP_TRIES: Final = 30
_SWAP_PAUSE_S: Final = 0.5

Progress: TypeAlias = Callable[[str, int, int], None]
"""Told what is done now, how far it has come, and how far there is to go."""


class RebuildImpossible(Exception):
    """Why the read models can't be rebuilt now; what serves is as it was."""


class Difference(NamedTuple):
    """A row of a live table that is not what the log says: `live` or `rebuilt` is None where there is no such row."""

    table: str
    key: str
    live: str | None
    rebuilt: str | None


@dataclass(slots=True)
class Comparison:
    """The live tables beside the rebuilt ones, both at one position."""

    position: int = 0
    rows: int = 0
    different: int = 0
    differences: list[Difference] = field(default_factory=list)
    """The first of those that differ."""


class Rebuild:
    """One rebuild of one ledger's read models. Use it as a context manager: what it leaves unfinished is removed."""

    def __init__(self, dsn: str, ledger: str, progress: Progress = lambda *_: None) -> None:
        """Raises RebuildImpossible when another rebuild of this ledger is under way, and psycopg's errors."""
        self._progress = progress
        self._mapper = EventMapper()
        self._ledger_schema, self._scratch, self._old = schema_of(ledger), f"rebuild_{ledger}", f"rebuilt_{ledger}"
        self._dsn, self._ledger = dsn, ledger
        self._connection: Connection[Any] = connect(dsn, ledger, f"rebuild-{ledger}", Role.OWNER)
        self._indexes: list[LiteralString] = []
        self.position = 0
        """The last position that the new tables include."""

    def __enter__(self) -> Rebuild:
        with as_login(self._connection):
            others = self._connection.execute(SQL.others, {"name": f"rebuild-{self._ledger}"}).fetchall()
        if others:
            self._connection.close()
            raise RebuildImpossible(f"another rebuild of ledger {self._ledger!r} is under way")
        self._drop_scratch()
        self._create_tables()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._connection.closed:
            self._drop_scratch()
            self._connection.close()

    # --- building ----------------------------------------------------------------------------------------------------

    def catch_up(self) -> int:
        """Build up to where the live read models stand, and return that position."""
        while True:
            live = self._live_position()
            if live == self.position:
                self._create_indexes()
                return live
            start = self.position
            while self.position < live:
                self._apply(min(BATCH_EVENTS, live - self.position))
                self._progress("building", self.position - start, live - start)

    def _create_indexes(self) -> None:
        """Make the indexes that building did without: made in one go they cost a fraction."""
        for definition in self._indexes:
            self._connection.execute(definition)
        self._indexes = []

    def _apply(self, limit: int) -> None:
        rows = read_batch(self._connection, self.position, limit)
        events: Sequence[LoggedEvent] = decode(rows, self._mapper)
        if len(events) == BATCH_EVENTS:
            events = whole_commands(events)
        last = events[-1].position
        with self._connection.transaction(), self._connection.cursor() as cursor:
            move_checkpoint(cursor, self.position, last)
            read_models.write(cursor, read_models.fold(events))
        self.position = last

    def _live_position(self) -> int:
        with self._as_live():
            return read_checkpoint(self._connection).position

    # --- comparing ---------------------------------------------------------------------------------------------------

    def compare(self) -> Comparison:
        """Hold the live tables against the new ones, row by row, at one position."""
        with connect(self._dsn, self._ledger, "rebuild-compares", Role.OWNER) as live, live.transaction():
            live.execute(SQL.snapshot)
            comparison = Comparison(read_checkpoint(live).position)
            while self.position < comparison.position:
                self._apply(min(BATCH_EVENTS, comparison.position - self.position))
            with self._connection.transaction():
                for number, table in enumerate(TABLES):
                    self._progress("comparing", number, len(TABLES))
                    self._compare_table(table, live, comparison)
        self._progress("comparing", len(TABLES), len(TABLES))
        return comparison

    def _compare_table(self, table: str, live: Connection[Any], comparison: Comparison) -> None:
        theirs, ours = _rows(live, table), _rows(self._connection, table)
        for key, was, is_now in _side_by_side(theirs, ours):
            comparison.rows += is_now is not None
            if was != is_now:
                comparison.different += 1
                if len(comparison.differences) < DIFFERENCES_SHOWN:
                    comparison.differences.append(Difference(table, key, was, is_now))

    # --- swapping ----------------------------------------------------------------------------------------------------

    def swap(self) -> None:
        """Put the new tables in the place of the live ones, in one transaction, at the live ones' position.

        Raises RebuildImpossible when somebody reads the old ones for longer than others can be kept waiting, or has
        built on them what would be lost with them.
        """
        for _ in range(_SWAP_TRIES):
            self.catch_up()
            try:
                self._swap()
            except (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled, psycopg.errors.DeadlockDetected):
                sleep(_SWAP_PAUSE_S)
            else:
                self._connection.execute(SQL.analyze)
                return
        raise RebuildImpossible("somebody reads the tables without a pause: end that query, or try again later")

    def _swap(self) -> None:
        before = self.position
        try:
            with self._connection.transaction():
                self._swap_in_transaction()
        except BaseException as error:
            self.position = before
            if not isinstance(error, psycopg.errors.DependentObjectsStillExist):
                raise
            what = (error.diag.message_detail or "").replace(f"{self._old}.", f"{self._ledger_schema}.")
            raise RebuildImpossible(f"{what}: build that on the views (balances_v1 ...), which stay") from error

    def _swap_in_transaction(self) -> None:
        connection = self._connection
        connection.execute(SQL.patience)
        with self._as_live():
            ((live,),) = connection.execute(SQL.lock_checkpoint).fetchall()
        while self.position < live:
            self._apply(min(BATCH_EVENTS, live - self.position))
        with self._as_live():
            connection.execute(SQL.brief)
            connection.execute(SQL.lock)
            connection.execute(SQL.as_before)
            grants = connection.execute(SQL.grants, {"tables": list(TABLES)}).fetchall()
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(self._old)))
        for table in TABLES:
            self._move(table, self._ledger_schema, self._old)
            self._move(table, self._scratch, self._ledger_schema)
        with self._as_live():
            connection.execute(views.SQL.create_over_read_models)
            for (grant,) in grants:
                connection.execute(grant)
            connection.execute(SQL.set_checkpoint, {"position": self.position})
        tables = sql.SQL(", ").join(sql.Identifier(self._old, table) for table in TABLES)
        connection.execute(sql.SQL("DROP TABLE {}").format(tables))
        connection.execute(sql.SQL("DROP SCHEMA {}").format(sql.Identifier(self._old)))

    def _move(self, table: str, origin: str, to: str) -> None:
        what, where = sql.Identifier(origin, table), sql.Identifier(to)
        self._connection.execute(sql.SQL("ALTER TABLE {} SET SCHEMA {}").format(what, where))

    # --- the scratch schema ------------------------------------------------------------------------------------------

    def _create_tables(self) -> None:
        """The same tables once more, found first from now on; the log is found behind them. All of that or nothing."""
        with self._connection.transaction():
            self._connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(self._scratch)))
            self._search(self._scratch, self._ledger_schema)
            self._connection.execute("SET synchronous_commit = off")  # it can all be made again
            read_models.create_bare_tables(self._connection)
            for drop, definition in self._connection.execute(SQL.indexes, {}).fetchall():
                self._connection.execute(drop)
                self._indexes.append(definition)

    def _drop_scratch(self) -> None:
        """What this rebuild, or one that was broken off, has left."""
        self._search(self._ledger_schema)
        self._connection.execute(
            sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(self._scratch)), prepare=False
        )

    @contextmanager
    def _as_live(self) -> Iterator[None]:
        """Find the live tables meanwhile."""
        self._search(self._ledger_schema)
        yield
        self._search(self._scratch, self._ledger_schema)

    def _search(self, *schemas: str) -> None:
        path = sql.SQL(", ").join(map(sql.Identifier, schemas))
        self._connection.execute(sql.SQL("SET search_path = {}").format(path))


def _rows(connection: Connection[Any], table: str) -> Iterator[tuple[str, str]]:
    with connection.cursor(name=f"rows_of_{table}") as cursor:
        cursor.itersize = _FETCH_ROWS
        yield from cursor.execute(getattr(SQL, f"rows_{table}"))


def _side_by_side(
    live: Iterator[tuple[str, str]], rebuilt: Iterator[tuple[str, str]]
) -> Iterator[tuple[str, str | None, str | None]]:
    """Both sides by key, in its order; None where one side has no such row."""
    theirs, ours = next(live, None), next(rebuilt, None)
    while theirs or ours:
        if ours is None or (theirs is not None and theirs[0] < ours[0]):
            assert theirs is not None
            yield theirs[0], theirs[1], None
            theirs = next(live, None)
        elif theirs is None or ours[0] < theirs[0]:
            yield ours[0], None, ours[1]
            ours = next(rebuilt, None)
        else:
            yield ours[0], theirs[1], ours[1]
            theirs, ours = next(live, None), next(rebuilt, None)
