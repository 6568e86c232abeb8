"""Deciding: what a batch of commands comes to at one head of the log, and what has to be recorded for that to hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import structlog
from msgspec.structs import replace

from ledger.domain.aggregate import LedgerAggregate, Stamp
from ledger.domain.book import Book
from ledger.domain.commands import Command
from ledger.domain.decisions import ACCOUNT_COMMANDS, Outcome, decide
from ledger.domain.errors import BatchAborted, DeclinedInBatch, Refusal
from ledger.domain.events import TransferDeclined
from ledger.domain.funds import net_of
from ledger.memory import Memory
from ledger.outages import DeadlinePassed, Internal, Outage
from ledger.ticket import Chunk, Mode, Result, Ticket
from ledger.upcasters import EventMapper, LogRow
from ledger.writer import Head, Wanted

_NOTHING: Final[Mapping[str, LedgerAggregate]] = {}

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Decided:
    """What a batch came to: the results by chunk, and what has to be recorded for them to hold."""

    chunks: Sequence[Chunk]
    results: list[list[Result]]
    book: Book
    rows: list[LogRow]
    before: Head
    """Where the log ends as this was decided: there and nowhere else it may be recorded."""
    after: Head
    """Where it ends then: `before`, if there is nothing to record."""
    at: datetime
    """The time that it was decided by."""
    checked: bool
    """Whether the log was seen to end at `before` meanwhile."""
    assumed_new: bool
    """Whether an id was taken to be new without a look at the log."""


class Decider:
    """Decides on a layer over the memory, and leaves the memory as it is."""

    def __init__(
        self,
        memory: Memory,
        mapper: EventMapper,
        clock: Callable[[], datetime],
        load: Callable[[Wanted], bool],
        ledger: str,
    ) -> None:
        """`load` brings what is wanted into the memory, and says whether it saw the log end at the memory's head."""
        self._memory, self._mapper = memory, mapper
        self._clock, self._load, self._ledger = clock, load, ledger

    def decide(self, chunks: Sequence[Chunk], *, assume_new: bool = False) -> Decided:
        """Decide at the memory's head, having loaded all that it takes.

        With `assume_new`, an id that is not in memory is taken to be new without a look at the log, if nothing else has
        to be loaded. What is decided then begins the id's stream, so an append of it is refused if the id is used; when
        there is nothing to append it says nothing.
        """
        commands = _commands(chunks)
        wanted = self._memory.lacks(commands, _NOTHING)
        assumed_new = assume_new and bool(wanted.whole) and not wanted.last
        if assumed_new:
            self._memory.take_for_missing(wanted.whole)
            wanted = Wanted()
        checked = self._load_all(commands, wanted, _NOTHING)
        head = self._memory.head
        return self._decide(chunks, Book(self._memory, head.position), head, checked, assumed_new)

    def prepare(self, chunks: Sequence[Chunk], upon: Decided) -> None:
        """Load what `decide_ahead` looks at and neither the memory nor `upon` has."""
        commands, changed = _commands(chunks), upon.book.changed
        self._load_all(commands, self._memory.lacks(commands, changed), changed)

    def _load_all(self, commands: Sequence[Command], wanted: Wanted, upon: Mapping[str, LedgerAggregate]) -> bool:
        """Load what is wanted and what is behind it; whether the log was seen to end at the memory's head."""
        checked = self._load(wanted)
        return self._load(self._memory.lacks_behind(commands, upon)) or checked

    def can_go_ahead(self, chunks: Sequence[Chunk], upon: Decided) -> bool:
        """Whether `chunks` can be decided upon decisions that are not recorded yet.

        A command on an account may need the account's first event, which an account that just changed may not have. And
        where the first part of a batch failed, the next is not to be decided.
        """
        failed = [
            chunk.ticket
            for chunk, results in zip(upon.chunks, upon.results, strict=True)
            if isinstance(results[-1], Outage)
        ]
        return not any(chunk.ticket in failed for chunk in chunks) and not any(
            type(command) in ACCOUNT_COMMANDS for command in _commands(chunks)
        )

    def decide_ahead(self, chunks: Sequence[Chunk], upon: Decided) -> Decided:
        """Decide what `prepare` was called for, as if `upon` were recorded: it holds only once that is so."""
        below = Book(self._memory, upon.before.position)
        below.merge(upon.book)
        return self._decide(chunks, Book(below, upon.after.position), upon.after, checked=False, assumed_new=False)

    def _decide(self, chunks: Sequence[Chunk], book: Book, before: Head, checked: bool, assumed_new: bool) -> Decided:
        now = max(self._clock(), before.recorded_at).astimezone(UTC)
        results = [self._decide_chunk(chunk, book, now) for chunk in chunks]
        rows = [self._mapper.to_row(event) for event in book.events]
        after = Head(before.position + len(rows), now) if rows else before
        return Decided(chunks, results, book, rows, before, after, now, checked, assumed_new)

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
        stamp = Stamp(now, ticket.actor, ticket.correlation_id, layer.next_position)
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


def _commands(chunks: Sequence[Chunk]) -> list[Command]:
    return [command for chunk in chunks for command in chunk.commands]


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
