"""A committer's link to its log: the connection, what stands in the way of using it, and the head both agree on.

It is used by the committer's thread alone; what stands in the way may be asked from any.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from time import monotonic, sleep
from typing import Final

import psycopg
import structlog

from ledger.deciding import Decided
from ledger.memory import Memory
from ledger.outages import DatabaseUnavailable, Outage, OutcomeUnknown, WritesStopped
from ledger.upcasters import UnreadableEvent
from ledger.writer import AppendUnknown, Head, HeadMoved, Loaded, LogLostTail, NotReplicated, NotWritten, Wanted, Writer

CHECK_S: Final = 5.0
RECONNECT_S: Final = 0.2
SETTLE_S: Final = 5.0
_MOVED_MOST: Final = 100_000
_WARM_EVENTS: Final = 50_000

log = structlog.get_logger(__name__)


class Link:
    """Begins without a connection; `connect` makes one."""

    def __init__(
        self, dsn: str, ledger: str, memory: Memory, clock: Callable[[], datetime], clock_off_most_s: float
    ) -> None:
        self._dsn, self._ledger = dsn, ledger
        self._memory = memory
        self._clock, self._clock_off_most_s = clock, clock_off_most_s
        self._writer: Writer | None = None
        self._outage: Outage | None = DatabaseUnavailable()
        self._stopped_for_good = False
        self._next_check = 0.0
        self._lost_why: str | None = None
        """Why the last step failed, if it did: it is told once, not five times a second."""

    @property
    def outage(self) -> Outage | None:
        """Why nothing may be decided now, or None."""
        return self._outage

    def require_no_outage(self) -> None:
        """Raise the Outage that stands in the way, if one does."""
        if self._outage is not None:
            raise self._outage.again()

    @property
    def is_up(self) -> bool:
        """Whether there is a connection."""
        return self._writer is not None

    @property
    def writer(self) -> Writer:
        """The connection that there is."""
        assert self._writer is not None
        return self._writer

    @property
    def clock_offset_s(self) -> float | None:
        """How far this machine's clock is ahead of the database's, when last compared; None without a connection."""
        writer = self._writer
        return None if writer is None else writer.clock_offset_s

    # --- up and down -------------------------------------------------------------------------------------------------

    def connect(self) -> bool:
        """Connect and be at the head of the log, if all is well; whether it is."""
        return not self._stopped_for_good and self._guard(self._begin)

    def check(self, *, at_leisure: bool) -> None:
        """Look whether the database is there, the log whole and the clock right: at leisure, or when it is time."""
        if at_leisure or monotonic() > self._next_check:
            self._guard(self._check)

    def lose(self) -> None:
        """The database is gone, or not what it was: nothing is decided until there is a new connection."""
        if not self._stopped_for_good:
            self._outage = DatabaseUnavailable()
        self.disconnect()

    def stop_writing(self, why: str) -> None:
        """Nothing is decided any more in this process."""
        log.critical("writes_stopped", ledger=self._ledger, why=why)
        self._outage = WritesStopped(why=why)
        self._stopped_for_good = True
        self.disconnect()

    def disconnect(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _begin(self) -> None:
        self._writer, newest = Writer(self._dsn, self._ledger, self._clock), None
        is_first = not self._memory.head.position
        with self._writer.turn():
            # A commit proves that this server takes writes, and that what is in the log is where it has to be: after
            # a wait for a synchronous standby that was cancelled, the next one waits for all before it.
            self.catch_up()
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
        self._next_check = monotonic() + CHECK_S
        if self._writer is not None:
            self._writer.check_clock()
            self.catch_up()
            self._check_clock()

    def require_time(self, moment: datetime) -> None:
        """Raise an Outage if it can't be `moment` now. To be called before anybody is told what was decided by it, and
        before it is recorded, which can't be taken back.

        A clock is compared with the database's every few seconds, and may be set between. How long that is ago says
        what time it is there; for a moment that is too far from it they are compared at once.
        Raises HeadMoved if the log was seen to go on meanwhile: what was decided has to be decided again.
        """
        if not self.is_near(moment):
            head = self._memory.head
            self.check(at_leisure=True)
            self.require_no_outage()
            if self._memory.head is not head:
                raise HeadMoved
            # That the clock is right now says nothing of when it was asked. The head's time is recorded already.
            if moment > head.recorded_at and self._ahead_s(moment) > self._clock_off_most_s:
                raise WritesStopped(why="its clock was set back while the command was decided")

    def is_near(self, moment: datetime) -> bool:
        """Whether it may be `moment` now, by the database's clock as it was when last compared."""
        return abs(self._ahead_s(moment)) <= self._clock_off_most_s

    def _ahead_s(self, moment: datetime) -> float:
        return moment.timestamp() - self.writer.database_time_s

    def _check_clock(self) -> None:
        """Serve only while this machine's clock is near the database's and not behind the log's."""
        now, offset = self._clock(), self.writer.clock_offset_s
        behind = (self._memory.head.recorded_at - now).total_seconds()
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
            self.stop_writing(str(error))
        except (psycopg.Error, AppendUnknown, NotReplicated) as error:
            why = str(error).strip()
            if why != self._lost_why:
                log.warning("database_unavailable", ledger=self._ledger, error=why)
            self._lost_why = why
            self.lose()
        else:
            self._lost_why = None
            return True
        return False

    # --- the log's head ----------------------------------------------------------------------------------------------

    def load(self, wanted: Wanted) -> bool:
        """Bring what is wanted, if anything, into the memory; whether the log was seen to end at the memory's head.

        Raises what `require_head` does.
        """
        if not wanted:
            return False
        loaded = self.writer.load(wanted)
        self._require(loaded.head)
        self._memory.learn(wanted, loaded)
        return True

    def require_head(self) -> None:
        """Raise LogLostTail if the log ends before the memory's head or with another event, HeadMoved if after it."""
        self._require(self.writer.head())

    def catch_up(self) -> None:
        """Be at the head of the log: forget what others changed since. Raises LogLostTail."""
        head = self.writer.head()
        try:
            self._require(head)
        except HeadMoved:
            known = self._memory.head
            if not self.writer.holds(known):
                why = f"position {known.position} of the log is not the event that this server has seen there"
                raise LogLostTail(why) from None
            if head.position - known.position > _MOVED_MOST:
                self._memory.forget_all()
                self._memory.move_to(head, ())
            else:
                self._memory.move_to(head, self.writer.moved_since(known.position))

    def _require(self, head: Head) -> None:
        known = self._memory.head
        if head.position < known.position:
            raise LogLostTail(f"the log ends at position {head.position}, and this server has seen {known.position}")
        if head.position > known.position:
            raise HeadMoved
        if head.recorded_at != known.recorded_at:
            raise LogLostTail(f"position {known.position} of the log is not the event that this server has seen there")

    # --- what came of an append --------------------------------------------------------------------------------------

    def settle(self, decided: Decided, error: AppendUnknown) -> None:
        """Return if what was decided is in the log after all; raise NotWritten if it isn't.

        Raises OutcomeUnknown if the database stays away, and LogLostTail.
        """
        head = decided.before.position
        log.warning("append_unknown", ledger=self._ledger, head=head, error=repr(error.__cause__))
        if not self._landed(decided):
            raise NotWritten("not in the log") from error

    def _landed(self, decided: Decided) -> bool:
        lost = self.writer
        self.lose()
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
                sleep(RECONNECT_S)
            else:
                self._writer = fresh
                self._check_clock()
                log.info("append_settled", ledger=self._ledger, head=decided.before.position, recorded=landed)
                return landed
