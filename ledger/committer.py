"""The committer: takes the commands that wait, decides them in memory, records all their events in one append, answers.

One per ledger and process, in a thread of its own. Nothing is answered before all that it was decided on is durable,
replays and refusals included: a batch that records nothing still checks that the log ends where its decisions hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import InvalidStateError
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Thread
from time import monotonic, sleep
from typing import Any, Final

import psycopg
import structlog
from msgspec.structs import replace

from ledger.domain.aggregate import Stamp
from ledger.domain.book import Book
from ledger.domain.commands import AuthorizePayment, Command, PostTransfer
from ledger.domain.decisions import Outcome, decide
from ledger.domain.errors import BatchAborted, DeclinedInBatch, Refusal
from ledger.domain.events import TransferDeclined
from ledger.domain.funds import net_of
from ledger.limits import MEMORY_MOST_STREAMS, QUEUE_MOST_COMMANDS
from ledger.memory import Memory
from ledger.outages import (
    DatabaseUnavailable,
    DeadlinePassed,
    Internal,
    NotRecorded,
    Outage,
    OutcomeUnknown,
    ShuttingDown,
    WritesStopped,
)
from ledger.ticket import Chunk, Mode, Queue, Result, Ticket
from ledger.upcasters import EventMapper, LogRow
from ledger.writer import (
    READ_ONLY,
    AppendUnknown,
    Head,
    HeadMoved,
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


@dataclass(frozen=True, slots=True)
class Decided:
    """What a batch came to, at one head: the results by chunk, and what has to be recorded for them to hold."""

    results: list[list[Result]]
    book: Book
    rows: list[LogRow]
    recorded_at: datetime
    checked: bool
    """Whether the log was seen to end where the decisions hold while they were made."""
    assumed_new: bool
    """Whether an id was taken to be new without a look at the log."""


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
        self._mapper = EventMapper()
        self._memory = Memory(self._mapper, memory_most)
        self._queue = Queue(queue_most)
        self._writer: Writer | None = None
        self._outage: Outage | None = DatabaseUnavailable()
        self._stopped_for_good = False
        self._stopping = False
        self._next_check = 0.0
        self._thread = Thread(target=self._run, name=f"committer-{ledger}", daemon=True)
        self.lost_races = 0
        """How many batches were decided twice because somebody else appended first."""

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
        else:
            self._refuse_all()  # what slipped in while the thread ended

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
        while not (self._stopping and not len(self._queue)):
            try:
                self._serve_once()
            except Exception:  # If the thread just ended, callers would wait, and health would call it well.
                log.exception("committer_failed", ledger=self._ledger)
                self._memory.forget_all()
                self._lose_database()
                sleep(_RECONNECT_S)
        self._disconnect()

    def _serve_once(self) -> None:
        """Commit what waits, and look now and then whether all is well."""
        if self._writer is None and not self._connect():
            self._refuse_all()
            if not self._stopping:
                sleep(_RECONNECT_S)
            return
        chunks = self._queue.take(_IDLE_CHECK_S)
        if chunks:
            self._commit(chunks)
        if not self._stopping and (not chunks or monotonic() > self._next_check):
            self._guard(self._check)

    def _commit(self, chunks: list[Chunk]) -> None:
        """Decide, record and answer. Whatever fails, every chunk is answered."""
        began, before = monotonic(), self._memory.head
        try:
            results = self._decide_and_record_somehow(chunks)
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

    def _decide_and_record_somehow(self, chunks: list[Chunk]) -> list[list[Result]]:
        """Decide and record. A connection that turns out to be lost before anything was sent is replaced once."""
        try:
            return self._decide_and_record(chunks)
        except psycopg.OperationalError:
            self._lose_database()
            if not self._connect():
                raise
            return self._decide_and_record(chunks) if self._outage is None else _all(chunks, self._outage.again())

    def _decide_and_record(self, chunks: list[Chunk]) -> list[list[Result]]:
        """Two tries at most: if somebody else appends first, the second try is made in our turn, when nobody can."""
        writer = self._connected()
        try:
            decided = self._decide(chunks, assume_new=_is_lone(chunks))
            if decided.assumed_new and not decided.rows:
                self._memory.forget_missing()
                decided = self._decide(chunks)
            if decided.rows:
                self._append(writer, decided)
            elif not decided.checked:
                self._require_head(writer.head())
        except HeadMoved:
            decided = self._decide_in_turn(writer, chunks)
        self._remember(decided)
        return decided.results

    def _append(self, writer: Writer, decided: Decided) -> None:
        try:
            writer.append(self._memory.head, decided.rows, decided.recorded_at)
        except AppendUnknown as error:
            self._settle(writer, decided, error)

    def _decide_in_turn(self, writer: Writer, chunks: list[Chunk]) -> Decided:
        decided, before = None, self._memory.head
        self._memory.forget_missing()
        try:
            with writer.turn():
                self._catch_up(writer)
                self.lost_races += self._memory.head != before
                decided = self._decide(chunks)
                if decided.rows:
                    writer.append(self._memory.head, decided.rows, decided.recorded_at)
        except AppendUnknown as error:
            assert decided is not None
            self._settle(writer, decided, error)
        return decided

    def _settle(self, lost: Writer, decided: Decided, error: AppendUnknown) -> None:
        """Return if what was decided is in the log after all; raise NotWritten if it isn't."""
        head = self._memory.head
        log.warning("append_unknown", ledger=self._ledger, head=head.position, error=repr(error.__cause__))
        if not self._landed(lost, head, decided):
            raise NotWritten("not in the log") from error

    def _landed(self, lost: Writer, head: Head, decided: Decided) -> bool:
        """Whether what was decided is in the log; raise OutcomeUnknown if the database stays away."""
        self._lose_database()
        give_up = monotonic() + SETTLE_S
        while True:
            fresh = None
            try:
                fresh = Writer(self._dsn, self._ledger, self._clock)
                landed = fresh.settle(lost, head, decided.rows)
            except (psycopg.Error, AppendUnknown, NotReplicated, NotWritten) as error:
                if fresh is not None:
                    fresh.close()
                if monotonic() > give_up:
                    raise OutcomeUnknown from error
                sleep(_RECONNECT_S)
            else:
                self._writer, self._outage = fresh, None
                log.info("append_settled", ledger=self._ledger, head=head.position, recorded=landed)
                return landed

    def _remember(self, decided: Decided) -> None:
        if decided.rows:
            head = Head(self._memory.head.position + len(decided.rows), decided.recorded_at)
            self._memory.recorded(decided.book.changed, head)

    def _decide(self, chunks: Sequence[Chunk], *, assume_new: bool = False) -> Decided:
        """Decide on a layer over the memory, having loaded all that it takes; raise HeadMoved if that is behind.

        With `assume_new`, an id that is not in memory is taken to be new without a look at the log, if nothing else has
        to be loaded. What is decided then begins the id's stream, so an append of it is refused if the id is used; when
        there is nothing to append it says nothing.
        """
        commands = [command for chunk in chunks for command in chunk.commands]
        wanted = self._memory.lacks(commands)
        assumed_new = assume_new and bool(wanted.whole) and not wanted.last
        if assumed_new:
            self._memory.take_for_missing(wanted.whole)
            wanted = Wanted()
        checked = self._load(wanted)
        checked = self._load(self._memory.lacks_behind(commands)) or checked
        now = max(self._clock(), self._memory.head.recorded_at).astimezone(UTC)
        book = Book(self._memory, self._memory.head.position)
        results = [self._decide_chunk(chunk, book, now) for chunk in chunks]
        rows = [self._mapper.to_row(event) for event in book.events]
        return Decided(results, book, rows, now, checked, assumed_new)

    def _load(self, wanted: Wanted) -> bool:
        """Load what is wanted, if anything; whether the head was seen to be the memory's."""
        if not wanted:
            return False
        loaded = self._connected().load(wanted)
        self._require_head(loaded.head)
        self._memory.learn(wanted, loaded)
        return True

    def _decide_chunk(self, chunk: Chunk, book: Book, now: datetime) -> list[Result]:
        ticket = chunk.ticket
        if ticket.is_late():
            return [DeadlinePassed()] * len(chunk.commands)
        if ticket.results and isinstance(ticket.results[-1], Outage):
            # What came before is not recorded. To go on without it would decline what only lacks it.
            return [ticket.results[-1]] * len(chunk.commands)
        if ticket.mode is Mode.INDEPENDENT and not ticket.validate_only:
            return [self._decide_one(command, ticket, book, now) for command in chunk.commands]
        layer = book.layer()
        results: list[Result] = []
        for number, command in enumerate(chunk.commands):
            result = self._decide_one(command, ticket, layer, now)
            failure = _failure(result) if ticket.mode is Mode.ATOMIC else None
            if failure is not None:
                results = [BatchAborted(failed=number)] * len(chunk.commands)
                results[number] = failure
                return results
            results.append(result)
        if not ticket.validate_only:
            book.merge(layer)
        return results

    def _decide_one(self, command: Command, ticket: Ticket, book: Book, now: datetime) -> Result:
        layer = book.layer()
        stamp = Stamp(now, ticket.actor, ticket.correlation_id, book.next_position)
        try:
            outcome = decide(command, layer, stamp)
            net = net_of(layer.events)
            assert not any(net.values()), f"debits and credits differ by {net}"  # Money is never made or lost.
        except Refusal as refusal:
            return refusal.with_traceback(None)
        except Exception:
            whose = {"correlation_id": ticket.correlation_id, "actor": ticket.actor}
            log.exception("decision_failed", ledger=self._ledger, command=type(command).__name__, **whose)
            return Internal()
        if command.validate_only or ticket.validate_only:
            outcome = _as_if(outcome, layer)
        if not command.validate_only:
            book.merge(layer)
        return outcome

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
        self._writer = Writer(self._dsn, self._ledger, self._clock)
        with self._writer.turn():
            # A commit proves that this server takes writes, and that what is in the log is where it has to be: after
            # a wait for a synchronous standby that was cancelled, the next one waits for all before it.
            self._catch_up(self._writer)
        self._check_clock()

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


def _failure(result: Result) -> Refusal | None:
    """What makes an ATOMIC batch fail: a refusal, or a decline, first or replayed."""
    if isinstance(result, Refusal):
        return result
    event = result.decline
    if event is None:
        return None
    leg = {"declined_leg": event.declined_leg} if isinstance(event, TransferDeclined) else {}
    return DeclinedInBatch(str(event.decline_reason), account_id=event.declined_account_id, **leg)


def _as_if(outcome: Outcome, book: Book) -> Outcome:
    """The outcome of a command that was only validated: it has no position, and shows its accounts as they would be."""
    accounts = [book.account(account_id) for account_id in sorted(outcome.account_ids)]
    return replace(outcome, accounts=tuple(accounts), position=0)


def _all(chunks: Sequence[Chunk], result: Result) -> list[list[Result]]:
    return [[result] * len(chunk.commands) for chunk in chunks]
