"""The follower: keeps the read models up with the log, exactly once, whoever else does the same."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any, Final

import psycopg
import structlog
from psycopg import Connection

from ledger.postgres import Role, connect, sql_blocks
from ledger.upcasters import EventMapper
from projections import read_models
from projections.arrivals import Arrivals
from projections.batch import CannotApply, CannotFollow, LoggedRow, decode, read_batch, whole_commands
from projections.checkpoint import CheckpointMoved, move_checkpoint, read_checkpoint, record_failure
from projections.read_ahead import Prepared, ReadAhead

SQL: Final = sql_blocks("projections", "follower.sql")

BATCH_EVENTS: Final = 4_000
"""More than the most events that one command can have: 2,001, a transfer of 1,000 legs."""

PACE_S: Final = 0.02
"""While nobody waits, small batches begin at most this often: each costs milliseconds, however small it is."""

REST: Final = 4
"""Where nobody has waited of late, it rests so many times as long as it worked: what it takes, payments lack."""

REST_MOST_S: Final = 0.1
LATELY_S: Final = 1.0

GIVE_WAY_MOST_S: Final = 0.3
BACKOFF_LEAST_S: Final = 0.05
BACKOFF_MOST_S: Final = 2.0
STOP_PATIENCE_S: Final = 3.0
REMEDY_POLL_S: Final = 0.5
"""How often a follower that has stopped looks whether it may go on."""

PASSING_SQLSTATES: Final = frozenset(
    {
        "08",  # connection lost
        "25",  # not the primary, or idle in the transaction for too long
        "40",  # deadlock or serialization failure
        "53",  # out of memory, disk or connections
        "55",  # a lock that somebody else holds
        "57",  # shut down, starting up, or cancelled by an operator
        "58",  # the system under the database
    }
)

log = structlog.get_logger()


class Follower:
    """Reads the log after the checkpoint in batches, and writes what they come to together with the new checkpoint.

    A batch and its checkpoint are one transaction, and the checkpoint moves by compare-and-set: of two followers that
    have the same batch one wins, the other rolls back and reads the checkpoint again. Nothing else keeps them apart.
    An event that can't be applied stops it, right before that event; nothing is ever skipped. Its thread goes on when
    that is taken back, as `ledger projections rebuild` does, or another follower has got further.
    """

    def __init__(
        self,
        dsn: str,
        ledger: str,
        *,
        poll_s: float = 0.1,
        batch_events: int = BATCH_EVENTS,
        arrivals: Arrivals | None = None,
        standby_reads: bool = False,
    ) -> None:
        """With `standby_reads`, for queries that a standby answers, each batch is flushed as it is committed.

        Else it would reach the standby when Postgres' WAL writer comes by, 0.2 s later or more.
        """
        self._dsn = dsn
        self._ledger = ledger
        self._poll_s = poll_s
        self._batch_events = batch_events
        self._standby_reads = standby_reads
        self._mapper = EventMapper()
        self._connection: Connection[Any] | None = None
        self._ahead: Final = ReadAhead(self._connect, self._read)
        self._checkpoint: int | None = None
        self._races_lost = 0
        self._awaited_at = 0.0
        self._failure: str | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._woken = threading.Event()
        self._log = log.bind(ledger=ledger)
        self.arrivals: Final = arrivals or Arrivals(on_wait=lambda _: self._woken.set())
        """Tells coroutines in this process when the checkpoint has passed a position."""

    @property
    def position(self) -> int:
        """The last checkpoint seen."""
        return self.arrivals.position

    @property
    def failure(self) -> str | None:
        """Why it stopped, if it did and has not gone on since."""
        return self._failure

    def start(self) -> None:
        """Follow in a thread of its own, until `stop`."""
        self._thread = threading.Thread(target=self._follow, name=f"follower-{self._ledger}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Return when the thread has ended. A batch in hand is finished, or given up as a whole if that takes long.

        A database that does not even answer that is not waited for: what it was told ends with this process.
        """
        self._stopping.set()
        self._woken.set()
        thread, connection = self._thread, self._connection
        if thread is None:
            self._disconnect()
            return
        thread.join(STOP_PATIENCE_S)
        if thread.is_alive() and connection is not None:
            try:
                connection.cancel_safe(timeout=STOP_PATIENCE_S)
                self._ahead.cancel(STOP_PATIENCE_S)
            except psycopg.Error as error:
                self._log.error("batch_left_behind", error=str(error))
                return
        thread.join()

    def wake(self) -> None:
        """Say that there may be something new; from any thread."""
        self._woken.set()

    def run_once(self) -> int:
        """Apply the next batch and return how many events it had: 0 when there are no more.

        Raises CannotFollow when the log or an event is not as it must be, having said so everywhere, and psycopg's
        errors when the database is away.
        """
        try:
            return self._apply_next()
        except CannotFollow as failure:
            self._fail(failure)
            raise

    # --- one batch ---------------------------------------------------------------------------------------------------

    def _apply_next(self) -> int:
        """Apply the next batch, or so much of it as can be applied; raise CannotApply when that is nothing."""
        limit = self._batch_events
        while True:
            connection = self._connected()
            checkpoint = self._known_checkpoint(connection)
            prepared = self._ahead.take(checkpoint)
            # Where there was nothing, there may be something by now.
            rows = (prepared and prepared.rows) or read_batch(connection, checkpoint, limit)
            if not rows:
                return 0
            try:
                if prepared is None or rows is not prepared.rows:
                    prepared = self._prepared(rows)
                return self._apply(connection, checkpoint, prepared)
            except CheckpointMoved:
                self._checkpoint = None
                self._known_checkpoint(connection)
                self._give_way()
            except Exception as error:
                if will_pass(error, connection):
                    raise
                if len(rows) == 1:
                    raise cannot_apply(rows[0], error) from error
                limit = len(rows) // 2  # Halve until the culprit stands alone, right after the checkpoint.

    def _read(self, connection: Connection[Any], checkpoint: int) -> Prepared:
        return self._prepared(read_batch(connection, checkpoint, self._batch_events))

    def _prepared(self, rows: list[LoggedRow]) -> Prepared:
        """Raises CannotApply for an event that can't be read, and whatever folding one comes to."""
        events = decode(rows, self._mapper)
        whole = whole_commands(events) if self._is_full(rows) else events
        return Prepared(rows, whole, read_models.fold(whole))

    def _is_full(self, rows: Sequence[LoggedRow]) -> bool:
        """Whether there may be more behind them."""
        return len(rows) == self._batch_events

    def _apply(self, connection: Connection[Any], checkpoint: int, batch: Prepared) -> int:
        last = batch.events[-1].position
        if self._is_full(batch.rows):
            self._ahead.begin(last)
        else:
            self._ahead.close()
        with connection.transaction(), connection.cursor() as cursor:
            move_checkpoint(cursor, checkpoint, last)
            read_models.write(cursor, batch.folded)
        self._checkpoint = last
        self._races_lost = 0
        self.arrivals.reached(last)
        return len(batch.events)

    def _known_checkpoint(self, connection: Connection[Any]) -> int:
        if self._checkpoint is None:
            self._checkpoint = read_checkpoint(connection).position
            self.arrivals.reached(self._checkpoint)
        return self._checkpoint

    def _connected(self) -> Connection[Any]:
        if self._connection is None or self._connection.closed:
            self._disconnect()
            self._connection = self._connect()
        return self._connection

    def _connect(self) -> Connection[Any]:
        connection = connect(self._dsn, self._ledger, "ledger-follower", Role.PROJECTOR)
        connection.execute(SQL.settle)
        if self._standby_reads:
            connection.execute(SQL.flush)
        return connection

    def _disconnect(self) -> None:
        """Whether the last commit came through is then not known, and the checkpoint is read again."""
        self._checkpoint = None
        self._ahead.close()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # --- the thread --------------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        backoff_s = BACKOFF_LEAST_S
        while not self._stopping.is_set():
            self._woken.clear()
            began = time.monotonic()
            try:
                applied = self.run_once()
            except CannotFollow:
                self._wait_for_remedy()
            except psycopg.Error as error:
                self._disconnect()
                self._log.warning("follower_waits_for_database", error=str(error), retry_in_s=backoff_s)
                self._stopping.wait(backoff_s)
                backoff_s = min(2 * backoff_s, BACKOFF_MOST_S)
            except Exception as error:  # Ours, then; a thread that just ended would be noticed by nobody.
                self._failure = f"{type(error).__name__}: {error}"
                self._log.exception("follower_broke")
                break
            else:
                backoff_s = BACKOFF_LEAST_S
                self._rest(applied, time.monotonic() - began)
        self._disconnect()

    def _wait_for_remedy(self) -> None:
        """Return when its failure stands in the checkpoint no longer, or it is to stop.

        Reads are answered again from then on: without a follower they would fall behind, and nobody would say so.
        """
        while not self._stopping.wait(REMEDY_POLL_S):
            try:
                position, failure = read_checkpoint(self._connected())
            except psycopg.Error:
                self._disconnect()
                continue
            if failure is None:
                self._checkpoint = self._failure = None
                self._log.info("follower_goes_on", position=position)
                return

    def _rest(self, applied: int, took_s: float) -> None:
        """Wait until there may be something to do. Not after a full batch: there is more behind it."""
        if applied == 0:
            self.arrivals.at_head()
            self._woken.wait(self._poll_s)
        elif applied < self._batch_events / 2:
            rest_s = max(PACE_S - took_s, 0.0)
            if time.monotonic() > self._awaited_at + LATELY_S:
                rest_s = min(max(rest_s, REST * took_s), REST_MOST_S)
            if self.arrivals.awaited.wait(rest_s):
                self._awaited_at = time.monotonic()

    def _give_way(self) -> None:
        """Somebody else follows as well: let them do it, longer with every race lost, unless somebody here waits."""
        self.arrivals.awaited.wait(min(PACE_S * 2**self._races_lost, GIVE_WAY_MOST_S))
        self._races_lost += 1

    def _fail(self, failure: CannotFollow) -> None:
        """Say why it stops, to everybody: the log, this process, and through the checkpoint every reader."""
        self._failure = str(failure)
        self._log.error("follower_stopped", position=failure.position, stream=failure.stream, why=self._failure)
        connection = self._connected()
        record_failure(connection, self._known_checkpoint(connection), self._failure)
        self.arrivals.release()


def will_pass(error: Exception, connection: Connection[Any]) -> bool:
    """Whether the database failed, rather than what it was asked to do."""
    if not isinstance(error, psycopg.Error):
        return False
    if error.sqlstate is None:
        return connection.closed or isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return connection.closed or error.sqlstate[:2] in PASSING_SQLSTATES


def cannot_apply(row: LoggedRow, error: Exception) -> CannotApply:
    if isinstance(error, CannotApply):
        return error
    return CannotApply(f"{type(error).__name__}: {error}", row.position, row.stream)
