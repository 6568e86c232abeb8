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
from ledger.link import RECONNECT_S, Link
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
from ledger.upcasters import EventMapper
from ledger.writer import (
    READ_ONLY,
    AppendUnknown,
    Head,
    HeadMoved,
    LogLostTail,
    NotReplicated,
    NotWritten,
)

CLOCK_OFF_S: Final = 5.0
STOP_S: Final = 2.5
_IDLE_CHECK_S: Final = 1.0

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
        self._ledger = ledger
        self._appended, self._committed = appended, committed
        mapper = EventMapper()
        self._memory = Memory(mapper, memory_most)
        self._link = Link(dsn, ledger, self._memory, clock, clock_off_most_s)
        self._decider = Decider(self._memory, mapper, clock, self._link.load, ledger)
        self._queue = Queue(queue_most)
        self._next: Work | None = None
        """What was taken from the queue ahead of its turn."""
        self._busy_since: float | None = None
        """Since when the thread has been about one thing; None while it waits for commands."""
        self._stopping = False
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
        outage = self._link.outage
        if outage is not None:
            raise outage.again()
        self._queue.put(ticket)

    @property
    def outage(self) -> Outage | None:
        """Why commands are refused now, or None while they are served."""
        return self._link.outage

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
    def waits_s(self) -> float:
        """For how long commands have been waiting for what the thread is about, which is the database's to end.

        That is a commit, or a look whether all is well. 0 at rest, and while commands are refused at once.
        """
        since = self._busy_since
        return 0.0 if since is None or self._link.outage is not None else monotonic() - since

    @property
    def clock_offset_s(self) -> float | None:
        """How far this machine's clock is ahead of the database's, when last compared; None without a database."""
        return self._link.clock_offset_s

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        goes_first = go_first()
        log.debug("committer_started", ledger=self._ledger, goes_first=goes_first)
        while self._next or self.waiting or not self._stopping:
            self._busy_since = monotonic()
            try:
                self._serve_once()
            except Exception:  # If the thread just ended, callers would wait, and health would call it well.
                log.exception("committer_failed", ledger=self._ledger)
                self._memory.forget_all()
                self._link.lose()
                sleep(RECONNECT_S)
        self._queue.close()
        self._refuse_all()  # What slipped in just now. Nothing does any more.
        self._link.disconnect()

    def _serve_once(self) -> None:
        """Commit what waits, and look now and then whether all is well."""
        if not self._link.is_up and not self._link.connect():
            self._refuse_all()
            if not self._stopping:
                sleep(RECONNECT_S)
            return
        work, self._next = self._next or Work(self._take()), None
        if work.chunks:
            self._commit(work)
        if not self._stopping:
            self._link.check(at_leisure=not work.chunks)

    def _take(self) -> list[Chunk]:
        """What waits, or nothing after a while. Nowhere else is the thread at rest."""
        self._busy_since = None
        chunks = self._queue.take(_IDLE_CHECK_S)
        self._busy_since = monotonic()
        return chunks

    def _commit(self, work: Work) -> None:
        """Decide, record and answer. Whatever fails, every chunk is answered."""
        began, before, chunks = monotonic(), self._memory.head, work.chunks
        try:
            results = self._decide_and_record_somehow(work)
        except NotWritten as error:
            log.error("append_failed", ledger=self._ledger, why=str(error))
            if str(error) == READ_ONLY:
                self._link.lose()  # the primary may be elsewhere by now
            elif self._link.is_up and self._link.writer.is_lost:
                self._link.disconnect()
            results = _all(chunks, NotRecorded())
        except NotReplicated:
            log.error("append_not_replicated", ledger=self._ledger)
            self._link.lose()
            results = _all(chunks, OutcomeUnknown())
        except OutcomeUnknown as outage:
            log.error("append_stays_unknown", ledger=self._ledger)
            results = _all(chunks, outage)
        except Outage as outage:
            results = _all(chunks, outage)
        except LogLostTail as error:
            self._link.stop_writing(str(error))
            results = _all(chunks, WritesStopped(why=str(error)))
        except psycopg.Error as error:
            log.warning("database_lost", ledger=self._ledger, error=str(error).strip())
            self._link.lose()
            results = _all(chunks, DatabaseUnavailable())
        except Exception:
            log.exception("commit_failed", ledger=self._ledger)
            self._memory.forget_all()
            self._link.disconnect()
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
            self._link.lose()
            if not self._link.connect():
                raise
            return self._decide_and_record(work)

    def _decide_and_record(self, work: Work) -> list[list[Result]]:
        """Two tries at most: if somebody else appends first, the second try is made in our turn, when nobody can.

        Raises the Outage that stands in the way, such as a wrong clock: what waits then was let in before it was seen.
        """
        self._link.require_no_outage()
        try:
            decided = self._decide(work)
            self._link.require_time(decided.at)
            if decided.rows:
                self._append(decided)
            elif not decided.checked:
                self._link.require_head()
        except HeadMoved:
            decided = self._decide_in_turn(work.chunks)
        self._remember(decided)
        self.decided_ahead += decided is work.ahead and bool(decided.rows)
        return decided.results

    def _decide(self, work: Work) -> Decided:
        """What the commands come to: as it was decided ahead, if that holds, and else as it is now."""
        ahead, is_late = work.ahead, any(chunk.ticket.is_late() for chunk in work.chunks)
        # What it was decided upon must have been recorded as it was, and nothing since. No other head is the same one.
        # And it must still be that time: the clock may have been wrong just then, or the database slow since.
        if ahead and ahead.before is self._memory.head and not is_late and self._link.is_near(ahead.at):
            return ahead
        decided = self._decider.decide(work.chunks, assume_new=_is_lone(work.chunks))
        if decided.assumed_new and not decided.rows:
            self._memory.forget_missing()
            decided = self._decider.decide(work.chunks)
        return decided

    def _append(self, decided: Decided) -> None:
        """Record what was decided; meanwhile decide what comes next, if that is a batch."""
        ahead = self._take_ahead(decided)
        meanwhile = partial(self._decide_ahead, ahead, decided) if ahead else None
        try:
            self._link.writer.append(decided.before, decided.rows, decided.after.recorded_at, meanwhile)
        except AppendUnknown as error:
            self._link.settle(decided, error)

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

    def _decide_in_turn(self, chunks: list[Chunk]) -> Decided:
        decided, before, writer = None, self._memory.head, self._link.writer
        self._memory.forget_missing()
        try:
            with writer.turn():
                self._link.catch_up()
                self.lost_races += self._memory.head != before
                decided = self._decider.decide(chunks)
                self._link.require_time(decided.at)
                if decided.rows:
                    writer.append(decided.before, decided.rows, decided.after.recorded_at)
        except AppendUnknown as error:
            assert decided is not None
            self._link.settle(decided, error)
        return decided

    def _remember(self, decided: Decided) -> None:
        if decided.rows:
            self._memory.recorded(decided.book.changed, decided.after)

    def _refuse_all(self) -> None:
        outage = ShuttingDown() if self._stopping else (self._link.outage or DatabaseUnavailable()).again()
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
