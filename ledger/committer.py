"""The committer: takes the commands that wait, decides them in memory, records all their events in one append, answers.

One per ledger and process, in a thread of its own. Nothing is answered before all that it was decided on is durable,
replays and refusals included: a batch that records nothing still checks that the log ends where its decisions hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import InvalidStateError
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from threading import Thread
from time import monotonic, sleep
from typing import Any, Final

import psycopg
import structlog

from ledger.deciding import Decided, Decider
from ledger.domain.commands import AuthorizePayment, PostTransfer
from ledger.limits import MEMORY_MOST_STREAMS, QUEUE_MOST_COMMANDS
from ledger.memory import Memory
from ledger.outages import (
    DatabaseUnavailable,
    Internal,
    NotRecorded,
    Outage,
    OutcomeUnknown,
    ShuttingDown,
    WritesStopped,
)
from ledger.priority import go_first
from ledger.ticket import Chunk, Queue, Result, Ticket
from ledger.upcasters import EventMapper, UnreadableEvent
from ledger.writer import (
    READ_ONLY,
    AppendUnknown,
    Head,
    HeadMoved,
    Loaded,
    LogLostTail,
    NotReplicated,
    NotWritten,
    Wanted,
    Writer,
)

CLOCK_OFF_S: Final = 5.0
SETTLE_S: Final = 5.0
STOP_S: Final = 2.5
_MOVED_MOST: Final = 100_000
_WARM_EVENTS: Final = 50_000
CHECK_S: Final = 5.0
_IDLE_CHECK_S: Final = 1.0
_RECONNECT_S: Final = 0.2

log = structlog.get_logger(__name__)


def utc_now() -> datetime:
    return datetime.now(UTC)


def hand_out(tickets: Sequence[Ticket]) -> None:
    """Tell everybody what came of their commands."""
    for ticket in tickets:
        try:
            ticket.waiter.set_result(ticket.results)
        except InvalidStateError:
            log.debug("result_not_waited_for")  # Whoever waited gave up.
        except Exception:
            log.exception("result_not_handed_out")  # And the others still have theirs to get.


@dataclass(slots=True)
class Work:
    """What goes into one append, and what it came to if that was decided ahead."""

    chunks: list[Chunk]
    ahead: Decided | None = None


class Committer:
    """Decides and records for one ledger. `submit` from any thread; waiters are told results in the committer's."""

    def __init__(
        self,
        dsn: str,
        ledger: str = "main",
        *,
        appended: Callable[[int], None] = lambda _: None,
        clock: Callable[[], datetime] = utc_now,
        clock_off_most_s: float = CLOCK_OFF_S,
        queue_most: int = QUEUE_MOST_COMMANDS,
        memory_most: int = MEMORY_MOST_STREAMS,
        committed: Callable[[Sequence[Sequence[Result]], float], None] = lambda _results, _took_s: None,
    ) -> None:
        """`appended` is told the head after every append is answered, `committed` results and how long it took.

        Both are called in the committer's thread.
        """
        self._dsn, self._ledger = dsn, ledger
        self._clock, self._clock_off_most_s = clock, clock_off_most_s
        self._appended, self._committed = appended, committed
        mapper = EventMapper()
        self._memory = Memory(mapper, memory_most)
        self._decider = Decider(self._memory, mapper, clock, self._load, ledger)
        self._queue = Queue(queue_most)
        self._next: Work | None = None
        """What was taken from the queue ahead of its turn."""
        self._writer: Writer | None = None
        self._outage: Outage | None = DatabaseUnavailable()
        self._stopped_for_good = False
        self._stopping = False
        self._next_check = 0.0
        self._thread = Thread(target=self._run, name=f"committer-{ledger}", daemon=True)
        self.lost_races = 0
        """How many batches were decided twice because somebody else appended first."""
        self.decided_ahead = 0
        """How many batches were recorded as they had been decided while the one before was being recorded."""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Take nothing more, finish what waits, and end; but don't wait for ever on a database that doesn't answer.

        What is left then is as after a crash: it may be recorded or not, and the same ids tell.
        """
        self._stopping = True
        self._queue.interrupt()
        self._thread.join(STOP_S)
        if self._thread.is_alive():
            log.error("commit_left_behind", ledger=self._ledger)

    def submit(self, ticket: Ticket) -> None:
        """Queue a ticket. Raises the Outage that stands in the way, at once, if one does."""
        if self._stopping:
            raise ShuttingDown
        if self._outage is not None:
            raise self._outage.again()
        self._queue.put(ticket)

    @property
    def outage(self) -> Outage | None:
        """Why commands are refused now, or None while they are served."""
        return self._outage

    @property
    def head(self) -> Head:
        """The end of the log, as far as this committer has seen it."""
        return self._memory.head

    @property
    def waiting(self) -> int:
        """How many commands wait."""
        return len(self._queue)

    @property
    def remembered(self) -> int:
        """How many accounts, payments and transfers are in memory."""
        return len(self._memory)

    @property
    def clock_offset_s(self) -> float | None:
        """How far this machine's clock is ahead of the database's, when last compared; None without a database."""
        writer = self._writer
        return None if writer is None else writer.clock_offset_s

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        goes_first = go_first()
        log.debug("committer_started", ledger=self._ledger, goes_first=goes_first)
        while self._next or self.waiting or not self._stopping:
            try:
                self._serve_once()
            except Exception:  # If the thread just ended, callers would wait, and health would call it well.
                log.exception("committer_failed", ledger=self._ledger)
                self._memory.forget_all()
                self._lose_database()
                sleep(_RECONNECT_S)
        self._queue.close()
        self._refuse_all()  # What slipped in just now. Nothing does any more.
        self._disconnect()

    def _serve_once(self) -> None:
        """Commit what waits, and look now and then whether all is well."""
        if self._writer is None and not self._connect():
            self._refuse_all()
            if not self._stopping:
                sleep(_RECONNECT_S)
            return
        work, self._next = self._next or Work(self._queue.take(_IDLE_CHECK_S)), None
        if work.chunks:
            self._commit(work)
        if not self._stopping and (not work.chunks or monotonic() > self._next_check):
            self._guard(self._check)

    def _commit(self, work: Work) -> None:
        """Decide, record and answer. Whatever fails, every chunk is answered."""
        began, before, chunks = monotonic(), self._memory.head, work.chunks
        try:
            results = self._decide_and_record_somehow(work)
        except NotWritten as error:
            log.error("append_failed", ledger=self._ledger, why=str(error))
            if str(error) == READ_ONLY:
                self._lose_database()  # the primary may be elsewhere by now
            elif self._writer is not None and self._writer.is_lost:
                self._disconnect()
            results = _all(chunks, NotRecorded())
        except NotReplicated:
            log.error("append_not_replicated", ledger=self._ledger)
            self._lose_database()
            results = _all(chunks, OutcomeUnknown())
        except OutcomeUnknown as outage:
            log.error("append_stays_unknown", ledger=self._ledger)
            results = _all(chunks, outage)
        except LogLostTail as error:
            self._stop_writing(str(error))
            results = _all(chunks, WritesStopped(why=str(error)))
        except psycopg.Error as error:
            log.warning("database_lost", ledger=self._ledger, error=str(error).strip())
            self._lose_database()
            results = _all(chunks, DatabaseUnavailable())
        except Exception:
            log.exception("commit_failed", ledger=self._ledger)
            self._memory.forget_all()
            self._disconnect()
            results = _all(chunks, Internal())
        self._answer(chunks, results)
        # What others are told, and what is tidied up, is not waited for by whoever asked.
        self._tell(self._committed, results, monotonic() - began)
        if self._memory.head != before:
            self._tell(self._appended, self._memory.head.position)
        self._memory.tidy()

    def _tell(self, listener: Callable[..., None], *news: Any) -> None:
        try:
            listener(*news)
        except Exception:
            log.exception("listener_failed", ledger=self._ledger)

    def _answer(self, chunks: Sequence[Chunk], results: Sequence[list[Result]]) -> None:
        for chunk, more in zip(chunks, results, strict=True):
            chunk.ticket.results += more
        hand_out([chunk.ticket for chunk in chunks if chunk.ticket.is_done])

    # --- deciding and recording --------------------------------------------------------------------------------------

    def _decide_and_record_somehow(self, work: Work) -> list[list[Result]]:
        """Decide and record. A connection that turns out to be lost before anything was sent is replaced once."""
        try:
            return self._decide_and_record(work)
        except psycopg.OperationalError:
            self._lose_database()
            if not self._connect():
                raise
            return self._decide_and_record(work) if self._outage is None else _all(work.chunks, self._outage.again())

    def _decide_and_record(self, work: Work) -> list[list[Result]]:
        """Two tries at most: if somebody else appends first, the second try is made in our turn, when nobody can."""
        writer = self._connected()
        try:
            decided = self._decide(work)
            if decided.rows:
                self._append(writer, decided)
            elif not decided.checked:
                self._require_head(writer.head())
        except HeadMoved:
            decided = self._decide_in_turn(writer, work.chunks)
        self._remember(decided)
        self.decided_ahead += decided is work.ahead and bool(decided.rows)
        return decided.results

    def _decide(self, work: Work) -> Decided:
        """What the commands come to: as it was decided ahead, if that holds, and else as it is now."""
        ahead = work.ahead
        # What it was decided upon must have been recorded as it was, and nothing since. No other head is the same one.
        if ahead and ahead.before is self._memory.head and not any(chunk.ticket.is_late() for chunk in work.chunks):
            return ahead
        decided = self._decider.decide(work.chunks, assume_new=_is_lone(work.chunks))
        if decided.assumed_new and not decided.rows:
            self._memory.forget_missing()
            decided = self._decider.decide(work.chunks)
        return decided

    def _append(self, writer: Writer, decided: Decided) -> None:
        """Record what was decided; meanwhile decide what comes next, if that is a batch."""
        ahead = self._take_ahead(decided)
        meanwhile = partial(self._decide_ahead, ahead, decided) if ahead else None
        try:
            writer.append(decided.before, decided.rows, decided.after.recorded_at, meanwhile)
        except AppendUnknown as error:
            self._settle(writer, decided, error)

    def _take_ahead(self, upon: Decided) -> Work | None:
        """What comes next, if it is a batch that can be decided upon what is about to be recorded: all is loaded."""
        if self._next is None and (chunks := self._queue.take_ahead()):
            self._next = Work(chunks)
        if self._next is None or not self._decider.can_go_ahead(self._next.chunks, upon):
            return None
        try:
            self._decider.prepare(self._next.chunks, upon)
        except (HeadMoved, LogLostTail, psycopg.OperationalError):
            raise  # That holds for what is about to be recorded as well.
        except Exception:
            log.exception("loading_ahead_failed", ledger=self._ledger)  # It shows again in its turn.
            return None
        return self._next

    def _decide_ahead(self, work: Work, upon: Decided) -> None:
        try:
            work.ahead = self._decider.decide_ahead(work.chunks, upon)
        except Exception:
            log.exception("deciding_ahead_failed", ledger=self._ledger)  # It shows again in its turn.

    def _decide_in_turn(self, writer: Writer, chunks: list[Chunk]) -> Decided:
        decided, before = None, self._memory.head
        self._memory.forget_missing()
        try:
            with writer.turn():
                self._catch_up(writer)
                self.lost_races += self._memory.head != before
                decided = self._decider.decide(chunks)
                if decided.rows:
                    writer.append(decided.before, decided.rows, decided.after.recorded_at)
        except AppendUnknown as error:
            assert decided is not None
            self._settle(writer, decided, error)
        return decided

    def _settle(self, lost: Writer, decided: Decided, error: AppendUnknown) -> None:
        """Return if what was decided is in the log after all; raise NotWritten if it isn't."""
        head = decided.before.position
        log.warning("append_unknown", ledger=self._ledger, head=head, error=repr(error.__cause__))
        if not self._landed(lost, decided):
            raise NotWritten("not in the log") from error

    def _landed(self, lost: Writer, decided: Decided) -> bool:
        """Whether what was decided is in the log; raise OutcomeUnknown if the database stays away."""
        self._lose_database()
        give_up = monotonic() + SETTLE_S
        while True:
            fresh = None
            try:
                fresh = Writer(self._dsn, self._ledger, self._clock)
                landed = fresh.settle(lost, decided.before, decided.rows)
            except (psycopg.Error, AppendUnknown, NotReplicated, NotWritten) as error:
                if fresh is not None:
                    fresh.close()
                if monotonic() > give_up:
                    raise OutcomeUnknown from error
                sleep(_RECONNECT_S)
            else:
                self._writer, self._outage = fresh, None
                log.info("append_settled", ledger=self._ledger, head=decided.before.position, recorded=landed)
                return landed

    def _remember(self, decided: Decided) -> None:
        if decided.rows:
            self._memory.recorded(decided.book.changed, decided.after)

    def _load(self, wanted: Wanted) -> bool:
        """Load what is wanted, if anything; whether the head was seen to be the memory's."""
        if not wanted:
            return False
        loaded = self._connected().load(wanted)
        self._require_head(loaded.head)
        self._memory.learn(wanted, loaded)
        return True

    # --- the log's head ----------------------------------------------------------------------------------------------

    def _require_head(self, head: Head) -> None:
        """Raise LogLostTail if the log ends before the memory's head or with another event, HeadMoved if after it."""
        known = self._memory.head
        if head.position < known.position:
            raise LogLostTail(f"the log ends at position {head.position}, and this server has seen {known.position}")
        if head.position > known.position:
            raise HeadMoved
        if head.recorded_at != known.recorded_at:
            raise LogLostTail(f"position {known.position} of the log is not the event that this server has seen there")

    def _catch_up(self, writer: Writer) -> None:
        """Be at the head of the log: forget what others changed since."""
        try:
            self._require_head(head := writer.head())
        except HeadMoved:
            known = self._memory.head
            if not writer.holds(known):
                why = f"position {known.position} of the log is not the event that this server has seen there"
                raise LogLostTail(why) from None
            if head.position - known.position > _MOVED_MOST:
                self._memory.forget_all()
                self._memory.move_to(head, ())
            else:
                self._memory.move_to(head, writer.moved_since(known.position))

    # --- the connection ----------------------------------------------------------------------------------------------

    def _connected(self) -> Writer:
        assert self._writer is not None
        return self._writer

    def _connect(self) -> bool:
        """Connect and begin to serve, if all is well; whether it is."""
        return not self._stopped_for_good and self._guard(self._begin)

    def _begin(self) -> None:
        self._writer, newest = Writer(self._dsn, self._ledger, self._clock), None
        is_first = not self._memory.head.position
        with self._writer.turn():
            # A commit proves that this server takes writes, and that what is in the log is where it has to be: after
            # a wait for a synchronous standby that was cancelled, the next one waits for all before it.
            self._catch_up(self._writer)
            if is_first:
                newest = self._writer.load_newest(_WARM_EVENTS)
        if newest:
            self._warm_up(newest)
        self._check_clock()

    def _warm_up(self, newest: Loaded) -> None:
        """Remember the accounts that moved last, before the first command asks for them."""
        try:
            self._memory.learn(Wanted(), newest)
            self._memory.tidy()
        except UnreadableEvent as error:  # Whoever asks for that account is told; others are served.
            log.warning("warm_up_ended", ledger=self._ledger, why=str(error))

    def _check(self) -> None:
        """Now and then: whether the database is there, the log whole and the clock right."""
        self._next_check = monotonic() + CHECK_S
        if self._writer is not None:
            self._writer.check_clock()
            self._catch_up(self._writer)
            self._check_clock()

    def _check_clock(self) -> None:
        """Serve only while this machine's clock is near the database's and not behind the log's."""
        offset = self._connected().clock_offset_s
        behind = (self._memory.head.recorded_at - self._clock()).total_seconds()
        if abs(offset) > self._clock_off_most_s:
            self._outage = WritesStopped(why=f"its clock is {offset:+.1f} s off the database's")
        elif behind > self._clock_off_most_s:
            self._outage = WritesStopped(why=f"its clock is {behind:.1f} s behind the last event of the log")
        else:
            if self._outage is not None:
                log.info("serving_writes", ledger=self._ledger, head=self._memory.head.position)
            self._outage = None

    def _guard(self, step: Callable[[], None]) -> bool:
        """Do a step in which nothing is recorded; on an error give the connection up. Whether it went well."""
        try:
            step()
        except LogLostTail as error:
            self._stop_writing(str(error))
        except (psycopg.Error, AppendUnknown, NotReplicated) as error:
            if not isinstance(self._outage, DatabaseUnavailable) or self._writer is not None:
                log.warning("database_unavailable", ledger=self._ledger, error=str(error).strip())
            self._lose_database()
        else:
            return True
        return False

    def _lose_database(self) -> None:
        if not self._stopped_for_good:
            self._outage = DatabaseUnavailable()
        self._disconnect()

    def _stop_writing(self, why: str) -> None:
        log.critical("writes_stopped", ledger=self._ledger, why=why)
        self._outage = WritesStopped(why=why)
        self._stopped_for_good = True
        self._disconnect()

    def _disconnect(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _refuse_all(self) -> None:
        outage = ShuttingDown() if self._stopping else (self._outage or DatabaseUnavailable()).again()
        if self._next:
            self._answer(self._next.chunks, _all(self._next.chunks, outage))
            self._next = None
        tickets = self._queue.clear()
        for ticket in tickets:
            ticket.results += [outage] * (len(ticket.commands) - len(ticket.results))
        hand_out(tickets)


def _is_lone(chunks: Sequence[Chunk]) -> bool:
    """Whether there is just one command, which begins a stream: it need not wait for a look at the log.

    Among others it has to: a retry of a used id must not make theirs be decided twice.
    """
    if len(chunks) > 1 or len(chunks[0].commands) > 1:
        return False
    command = chunks[0].commands[0]
    return isinstance(command, AuthorizePayment | PostTransfer) and not (
        command.validate_only or chunks[0].ticket.validate_only
    )


def _all(chunks: Sequence[Chunk], result: Result) -> list[list[Result]]:
    return [[result] * len(chunk.commands) for chunk in chunks]
