"""A ticket: commands of one caller on their way through the committer, and what came of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from threading import Condition
from time import monotonic
from typing import Final, Protocol, TypeAlias

from ledger.domain.commands import Command, PostTransfer
from ledger.domain.decisions import Outcome
from ledger.domain.errors import Refusal
from ledger.outages import QueueFull, ShuttingDown

Result: TypeAlias = Outcome | Refusal

EVENTS_PER_APPEND: Final = 2_000
"""About how many events go into one append: a bigger batch is cut here, and others go between."""

_KEPT_AFTER_CLIENTS: Final = EVENTS_PER_APPEND // 4
"""As much is appended for the ledger itself however much clients want: they must not put it off for ever."""

_LINGER_S_EACH: Final = 0.000_25
_LINGER_MOST_S: Final = 0.005
_LINGER_BELOW: Final = 128


class Mode(Enum):
    """How the commands of a ticket hang together."""

    INDEPENDENT = "INDEPENDENT"
    """Each for itself, in order; they may come into several appends."""

    ATOMIC = "ATOMIC"
    """All or none, in one append."""


class Waiter(Protocol):
    """Who waits for the results, and is told them in the committer's thread, to which nothing is to be raised."""

    def set_result(self, results: list[Result], /) -> None: ...


@dataclass(slots=True, eq=False)
class Ticket:
    """Commands of one caller, in order, each seeing those before it.

    With `validate_only` they are answered as if, and nothing is recorded. `deadline` is in seconds of the monotonic
    clock; a command is not decided after it.
    """

    commands: Sequence[Command]
    waiter: Waiter
    correlation_id: str
    actor: str = "anonymous"
    mode: Mode = Mode.INDEPENDENT
    validate_only: bool = False
    deadline: float | None = None
    after_clients: bool = False
    """The ledger's own commands: they let all that clients wait for go before them, and take no client's place."""
    results: list[Result] = field(default_factory=list)
    taken: int = 0
    """How many of the commands were taken from the queue."""

    @property
    def is_done(self) -> bool:
        return len(self.results) == len(self.commands)

    def is_late(self) -> bool:
        return self.deadline is not None and monotonic() > self.deadline


@dataclass(frozen=True, slots=True)
class Chunk:
    """The commands of a ticket that go into one append: the next ones that were not taken yet."""

    ticket: Ticket
    commands: Sequence[Command]


class Queue:
    """The tickets that wait. Single commands go before batches, batches take turns, the ledger's own go last.

    Bounded in commands of clients: the ledger's own are few, and neither refused nor a reason to refuse a client. Where
    no client waits a batch is let in however large it is: there would never be more room for it.
    """

    def __init__(self, most_commands: int) -> None:
        self._most = most_commands
        self._waiting = 0
        self._waiting_after = 0
        self._singles: deque[Ticket] = deque()
        self._batches: deque[Ticket] = deque()
        self._after_clients: deque[Ticket] = deque()
        self._changed = Condition()
        self._closed = False
        self._taken = 0
        self._enough = 1
        """With how many commands `take` is woken: a thread that is woken for each would cost more than it decides."""

    def __len__(self) -> int:
        """How many commands wait."""
        return self._waiting + self._waiting_after

    def put(self, ticket: Ticket) -> None:
        """Queue a ticket; raise QueueFull if there is no room for it beside those that wait, ShuttingDown if closed."""
        with self._changed:
            if self._closed:
                raise ShuttingDown
            if ticket.after_clients:
                self._waiting_after += len(ticket.commands)
                self._after_clients.append(ticket)
                self._changed.notify()
                return
            if self._waiting and self._waiting + len(ticket.commands) > self._most:
                raise QueueFull(waiting=self._waiting)
            self._waiting += len(ticket.commands)
            (self._singles if len(ticket.commands) == 1 else self._batches).append(ticket)
            if self._waiting >= self._enough or self._batches:
                self._changed.notify()

    def close(self) -> None:
        """Let nothing in any more. What waits is still there."""
        with self._changed:
            self._closed = True

    def interrupt(self) -> None:
        """Make `take` return, with nothing if nothing waits."""
        with self._changed:
            self._changed.notify()

    def take(self, timeout_s: float) -> list[Chunk]:
        """About an append's worth of what waits, or nothing after `timeout_s`.

        A lone caller is served at once. When others came while the last append was under way, more are waited for, the
        longer the more there were: an append costs nearly the same for one as for many.
        """
        with self._changed:
            if not len(self):
                self._changed.wait(timeout_s)
            if self._taken > 1 and self._waiting < _LINGER_BELOW and not self._batches:
                linger_s = min(_LINGER_S_EACH * self._taken, _LINGER_MOST_S)
                self._enough = _LINGER_BELOW
                self._changed.wait(linger_s)
                self._enough = 1
            chunks = list(self._chunks())
            self._taken = len(chunks)
            return chunks

    def take_ahead(self) -> list[Chunk]:
        """About an append's worth of what waits, if a batch does: single commands are better off in more company."""
        with self._changed:
            return list(self._chunks()) if self._batches else []

    def clear(self) -> list[Ticket]:
        """Take out all tickets."""
        with self._changed:
            tickets = [*self._singles, *self._batches, *self._after_clients]
            for lane in (self._singles, self._batches, self._after_clients):
                lane.clear()
            self._waiting = self._waiting_after = 0
            return tickets

    def _chunks(self) -> Iterator[Chunk]:
        room = EVENTS_PER_APPEND
        keep_for_batches = EVENTS_PER_APPEND // 2 if self._batches else 0
        while self._singles and room > keep_for_batches:
            ticket = self._singles.popleft()
            room -= _events_of(ticket.commands[0])
            self._waiting -= 1
            yield Chunk(ticket, ticket.commands)
        for _ in range(len(self._batches)):
            if room <= 0:
                break
            chunk = _next_of(self._batches, room)
            room -= sum(map(_events_of, chunk.commands))
            self._waiting -= len(chunk.commands)
            yield chunk
        if self._after_clients:
            chunk = _next_of(self._after_clients, max(room, _KEPT_AFTER_CLIENTS))
            self._waiting_after -= len(chunk.commands)
            yield chunk


def _next_of(tickets: deque[Ticket], room: int) -> Chunk:
    """As many commands of the first ticket as there is room for; if it has more, it is the last ticket from then on."""
    ticket = tickets.popleft()
    commands = _worth(ticket, room)
    ticket.taken += len(commands)
    if ticket.taken < len(ticket.commands):
        tickets.append(ticket)
    return Chunk(ticket, commands)


def _worth(ticket: Ticket, room: int) -> Sequence[Command]:
    """The next commands of a batch, as many as there is room for (at least one); of those that stand together, all."""
    if ticket.mode is Mode.ATOMIC or ticket.validate_only:
        return ticket.commands
    start = stop = ticket.taken
    while stop < len(ticket.commands) and (stop == start or room > 0):
        room -= _events_of(ticket.commands[stop])
        stop += 1
    return ticket.commands[start:stop]


def _events_of(command: Command) -> int:
    """About how many events a command comes to."""
    return 1 + 2 * len(command.legs) if type(command) is PostTransfer else 2
