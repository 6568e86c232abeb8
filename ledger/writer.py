"""A committer's own connection to the log: loading what decisions need, and appending exactly where they hold."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Final, LiteralString, cast

import psycopg
from psycopg.abc import RV, PQGen
from psycopg.errors import Diagnostic, UniqueViolation
from psycopg.rows import TupleRow
from psycopg.waiting import Wait

from ledger.event_log import SQL, RecordedEvent, recorded_event
from ledger.postgres import Role, as_login, connection_settings
from ledger.upcasters import LogRow

READ_ONLY: Final = "25006"
"""read_only_sql_transaction: the server is a standby, or was told to take no writes."""

NOT_WRITTEN: Final = frozenset(
    {
        "23505",  # unique_violation: somebody else appended
        READ_ONLY,
        "40001",  # serialization_failure
        "40P01",  # deadlock_detected
        "42501",  # insufficient_privilege
        "42P01",  # undefined_table: the ledger is not migrated
        "53100",  # disk_full
        "53200",  # out_of_memory
        "55P03",  # lock_not_available
    }
)
"""SQLSTATEs given only to a statement that the server has undone. After any other error the outcome is unknown."""

_LOAD: Final = {"last": SQL.load_last, "first": SQL.load_first, "whole": SQL.load_whole}
_SYNC_REP_CANCELLED: Final = "01000"
_NEED_NO_QUOTES: Final = re.compile(r"[A-Za-z0-9._:/,-]+").fullmatch
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class HeadMoved(Exception):
    """Somebody else appended since the decisions were made: they have to be made again."""


class LogLostTail(Exception):
    """The log ends before an event that it has held: it was restored from an old copy, or cut."""


class NotWritten(Exception):
    """The append failed, and is known to have left nothing in the log."""


class AppendUnknown(Exception):
    """The append may or may not be in the log: `settle` has to find out."""


class NotReplicated(Exception):
    """The append is in this server's log, but the wait for its synchronous standby was cancelled."""


@dataclass(frozen=True, slots=True)
class Head:
    """The end of the log: the last position (0 when empty) and when it was recorded."""

    position: int = 0
    recorded_at: datetime = _EPOCH


@dataclass(slots=True)
class Wanted:
    """Which streams to load: of accounts the last event (and the first, where metadata is needed), of others all."""

    last: set[str] = field(default_factory=set)
    first: set[str] = field(default_factory=set)
    whole: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.last or self.first or self.whole)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was found, all at one moment: the head then, and events by what they were wanted as."""

    head: Head
    last: list[RecordedEvent]
    first: list[RecordedEvent]
    whole: list[RecordedEvent]


class _Connection(psycopg.Connection[TupleRow]):
    """A connection that has something done while the database is at work, in the thread that waits for it."""

    meanwhile: Callable[[], None] | None = None
    """Called once, as soon as a statement has been sent."""

    def wait(self, gen: PQGen[RV], *options: Any, **more: Any) -> RV:
        meanwhile, self.meanwhile = self.meanwhile, None
        return super().wait(gen if meanwhile is None else _sent(gen, meanwhile), *options, **more)


def _sent(steps: PQGen[RV], meanwhile: Callable[[], None]) -> PQGen[RV]:
    """The same steps, with a call before an answer is first waited for: all is sent then, and nothing to be read."""
    try:
        state = next(steps)
        while state != Wait.R:
            state = steps.send((yield state))
    except StopIteration as ended:
        return cast(RV, ended.value)
    meanwhile()
    return (yield from steps)  # It is not told that anything is ready, and says again what it waits for.


class Writer:
    """One connection. Any psycopg error other than those documented means that the connection is to be given up."""

    def __init__(self, dsn: str, ledger: str, clock: Callable[[], datetime]) -> None:
        self._dsn, self._ledger = dsn, ledger
        settings = connection_settings(dsn, ledger, "ledger-writer", Role.WRITER)
        self._connection: _Connection = _Connection.connect(autocommit=True, **settings)
        self._clock = clock
        self.clock_offset_s = 0.0
        """How far this machine's clock is ahead of the database's, when last compared."""
        self._compared = 0.0, 0.0
        """When that was: by the database's clock, since 1970, and by the monotonic one."""
        self._warned = False
        try:
            self._pid, self._backend_start = self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def _prepare(self) -> tuple[int, datetime]:
        self._connection.prepare_threshold = 2
        self._connection.add_notice_handler(self._notice)
        # Planning the statements anew each time would cost more than running them.
        self._connection.execute("SET plan_cache_mode = force_generic_plan")
        # A writer that freezes in its turn must not stop the others for ever.
        self._connection.execute("SET idle_in_transaction_session_timeout = '10s'")
        self.check_clock()
        with as_login(self._connection):
            ((pid, backend_start),) = self._connection.execute(SQL.session).fetchall()
        return pid, backend_start

    def check_clock(self) -> None:
        """Compare the clocks."""
        before = self._clock()
        ((database_time,),) = self._connection.execute(SQL.clock).fetchall()
        self._compared = database_time.timestamp(), monotonic()
        self.clock_offset_s = (before + (self._clock() - before) / 2 - database_time).total_seconds()

    @property
    def database_time_s(self) -> float:
        """What the database's clock says by now, since 1970, if it went on as the monotonic one did."""
        at_database, at_monotonic = self._compared
        return at_database + monotonic() - at_monotonic

    @property
    def backend_pid(self) -> int:
        """The server process behind this connection."""
        return self._pid

    @property
    def is_lost(self) -> bool:
        """Whether the connection is known to be of no more use."""
        return self._connection.closed

    def close(self) -> None:
        self._connection.close()

    def head(self) -> Head:
        row = self._connection.execute(SQL.head).fetchone()
        return Head(*row) if row else Head()

    def holds(self, head: Head) -> bool:
        """Whether the log still has the event that it once ended with."""
        row = self._connection.execute(SQL.holds, _columns(head)).fetchone()
        return head.position == 0 or bool(row and row[0])

    def load(self, wanted: Wanted) -> Loaded:
        """What is wanted and the head, read at one moment. Streams without events are simply not in it."""
        columns = {"last": list(wanted.last), "first": list(wanted.first), "whole": list(wanted.whole)}
        return self._loaded([_LOAD[part] for part in columns if columns[part]], columns)

    def load_newest(self, newest: int) -> Loaded:
        """The last events of the accounts that so many of the newest events are about, in order of position."""
        loaded = self._loaded([SQL.load_newest], {"newest": newest})
        loaded.last.sort(key=lambda event: event.id)
        return loaded

    def _loaded(self, parts: Sequence[LiteralString], columns: dict[str, Any]) -> Loaded:
        rows = self._connection.execute("\nUNION ALL\n".join([SQL.load_head, *parts]), columns, binary=True)
        head = Head()
        found: tuple[list[RecordedEvent], ...] = ([], [], [], [])
        for part, position, stream, version, topic, recorded_at, state in rows:
            if part == 0:
                head = Head(position, recorded_at)
            else:
                found[part].append(recorded_event(position, stream, version, topic, recorded_at, state))
        return Loaded(head, *found[1:])

    def moved_since(self, position: int) -> set[str]:
        """The streams that got events after `position`."""
        return {stream for (stream,) in self._connection.execute(SQL.moved, {"after": position})}

    def append(
        self,
        head: Head,
        rows: Sequence[LogRow],
        recorded_at: datetime,
        meanwhile: Callable[[], None] | None = None,
    ) -> None:
        """Record events, at least one, at the positions right after `head`, in one statement.

        `meanwhile` is called when they are on their way, and before what came of it is read. It must not raise, nor use
        this writer.

        Raises HeadMoved if somebody else appended after `head`, LogLostTail if `head` is not in the log any more,
        NotWritten if it failed without a trace, AppendUnknown if that can't be told. Inside `turn()`, what was appended
        is recorded when the turn ends.
        """
        self._warned = False
        columns = _append_columns(rows) | _columns(head) | {"recorded_at": recorded_at}
        self._connection.meanwhile = meanwhile
        try:
            recorded = self._connection.execute(SQL.append, columns).rowcount
        except UniqueViolation as error:
            raise HeadMoved from error
        except psycopg.Error as error:
            if error.sqlstate in NOT_WRITTEN:
                raise NotWritten(error.sqlstate) from error
            raise AppendUnknown from error
        finally:
            self._connection.meanwhile = None
        if self._warned:
            raise NotReplicated
        if recorded != len(rows):
            raise LogLostTail(f"the event seen at position {head.position} is gone, or log_turn lost its row")

    @contextmanager
    def turn(self) -> Iterator[None]:
        """A transaction in which nobody else can append. Left by an exception, it is rolled back.

        Raises AppendUnknown if the commit's outcome can't be told.
        """
        self._warned = False
        self._connection.execute("BEGIN", prepare=False)
        try:
            self._connection.execute(SQL.take_turn)
            yield
        except BaseException as error:
            with suppress(psycopg.Error):
                self._connection.execute("ROLLBACK", prepare=False)
            if isinstance(error, AppendUnknown):
                raise NotWritten("the transaction was never committed") from error
            raise
        try:
            self._connection.execute("COMMIT", prepare=False)
        except psycopg.Error as error:
            raise AppendUnknown from error
        if self._warned:
            raise NotReplicated

    def settle(self, lost: Writer, head: Head, rows: Sequence[LogRow]) -> bool:
        """Whether an append whose outcome `lost` could not tell is in the log, and what it was decided upon as well.

        Without rows, of decisions that record nothing, that is all there is to tell.

        The lost session is ended first: what it had not committed by then it can't commit later. Then the log is read
        under the turn, which waits for whoever is still committing.
        """
        lost.close()
        session = {"pid": lost._pid, "backend_start": lost._backend_start}
        with as_login(self._connection):
            self._connection.execute(SQL.end_session, session)
        with self.turn():
            there = self.holds(head)
            found = self._connection.execute(SQL.tail, {"after": head.position, "limit": len(rows)}).fetchall()
        is_same = [(stream, version, topic, bytes(state)) for _, stream, version, topic, _, state in found] == [*rows]
        return there and is_same

    def _notice(self, notice: Diagnostic) -> None:
        self._warned = self._warned or notice.sqlstate == _SYNC_REP_CANCELLED


def _columns(head: Head) -> dict[str, Any]:
    return {"head": head.position, "head_recorded_at": head.recorded_at}


def _append_columns(rows: Sequence[LogRow]) -> dict[str, Any]:
    """The rows as one array per column. Raises ValueError if a stream or topic has characters that none of ours has.

    Psycopg makes an array element by element. As text one is joined at once, where nothing in it has to be quoted.
    """
    streams, versions, topics, states = zip(*rows, strict=True)
    return {
        "streams": _array(streams),
        "versions": _array([*map(str, versions)]),
        "topics": _array(topics),
        "states": list(states),
    }


def _array(texts: Sequence[str]) -> str:
    joined = ",".join(texts)
    if not _NEED_NO_QUOTES(joined) or joined.count(",") != len(texts) - 1:
        raise ValueError("a stream or topic that is to be recorded has characters that none of ours has")
    return f"{{{joined}}}"
