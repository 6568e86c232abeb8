"""A committer's memory: aggregates as they are at one position of the log, the least recently used forgotten."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Final

from ledger.domain.account import Account
from ledger.domain.aggregate import LedgerAggregate
from ledger.domain.commands import Command
from ledger.domain.decisions import ACCOUNT_COMMANDS, CHANGES_OF_PAYMENTS, streams_behind, streams_of
from ledger.domain.events import AccountOpened, LedgerEvent, payment_stream
from ledger.domain.payment import Payment
from ledger.domain.transfer import Transfer
from ledger.event_log import RecordedEvent
from ledger.upcasters import EventMapper
from ledger.writer import Head, Loaded, Wanted

_LEGS_MOST: Final = 16
"""A transfer of more is forgotten by `tidy`: only a retry asks for it, and a bound in streams must be one in bytes."""


class Memory:
    """The log up to `head`, as far as it is remembered.

    A stream that was looked for and has no events is remembered as such only until `tidy`: most new commands
    create what was missing.
    """

    def __init__(self, mapper: EventMapper, most_streams: int) -> None:
        self.head = Head()
        self._mapper = mapper
        self._most = most_streams
        self._known: OrderedDict[str, LedgerAggregate] = OrderedDict()
        self._missing: set[str] = set()
        self._large: set[str] = set()
        """Streams of transfers with many legs among those that are known."""

    def __len__(self) -> int:
        return len(self._known)

    def knows(self, stream: str) -> bool:
        return stream in self._known or stream in self._missing

    def lacks(self, commands: Iterable[Command], upon: Mapping[str, LedgerAggregate]) -> Wanted:
        """What is to be loaded before the commands can be decided on, as far as the commands alone tell.

        Streams in `upon` are there already: what was decided and is not in this memory yet.
        """
        wanted, known, missing = Wanted(), self._known, self._missing
        for command in commands:
            streams = streams_of(command)
            for stream in streams:
                if stream not in known and stream not in missing and stream not in upon:
                    (wanted.last if stream.startswith("account/") else wanted.whole).add(stream)
            if type(command) in ACCOUNT_COMMANDS:
                stream = streams[0]
                if stream in wanted.last:
                    wanted.first.add(stream)
                elif isinstance(account := self.get(stream), Account) and account.opening is None:
                    wanted.last.add(stream)
                    wanted.first.add(stream)
        return wanted

    def lacks_behind(self, commands: Iterable[Command], upon: Mapping[str, LedgerAggregate]) -> Wanted:
        """The same for the accounts of their payments, which are only known when the payments are."""
        wanted = Wanted()
        for command in commands:
            if type(command) in CHANGES_OF_PAYMENTS:
                stream = payment_stream(command.payment_id)  # type: ignore[attr-defined]
                payment = upon.get(stream) or self.get(stream)
                if isinstance(payment, Payment):
                    wanted.last.update(
                        each for each in streams_behind(payment) if not self.knows(each) and each not in upon
                    )
        return wanted

    def get(self, stream: str) -> LedgerAggregate | None:
        """The aggregate of a stream, or None if it has no events. The stream has to be one that is known."""
        found = self._known.get(stream)
        assert found is not None or stream in self._missing, f"{stream} was decided on without having been loaded"
        return found

    def learn(self, wanted: Wanted, loaded: Loaded) -> None:
        """Take in what was loaded at this memory's head."""
        openings = {event.originator_id: self._read(event) for event in loaded.first}
        for recorded in loaded.last:
            account = Account.at(self._read(recorded))
            opening = openings.get(account.id)
            if isinstance(opening, AccountOpened):
                account.opening = opening
            self._known[account.id] = account
        histories: dict[str, list[LedgerEvent]] = {}
        for recorded in loaded.whole:
            event = self._read(recorded)
            histories.setdefault(event.stream, []).append(event)
        for stream, history in histories.items():
            self._remember(stream, _refolded(stream, history))
        self._missing |= wanted.last - {event.originator_id for event in loaded.last}
        self._missing |= wanted.whole - histories.keys()

    def recorded(self, changed: Mapping[str, LedgerAggregate], head: Head) -> None:
        """Take over what was decided and recorded; the log now ends at `head`."""
        self.head = head
        for stream, aggregate in changed.items():
            aggregate.let_go()
            self._remember(stream, aggregate)
            self._known.move_to_end(stream)

    def _remember(self, stream: str, aggregate: LedgerAggregate) -> None:
        self._known[stream] = aggregate
        if isinstance(aggregate, Transfer) and len(aggregate.outcome.legs) > _LEGS_MOST:
            self._large.add(stream)

    def move_to(self, head: Head, moved: Iterable[str]) -> None:
        """Others appended: forget the streams that `moved`, and be at the new head."""
        self._missing.clear()
        for stream in moved:
            self._known.pop(stream, None)
        self.head = head

    def take_for_missing(self, streams: Iterable[str]) -> None:
        """Remember streams as having no events, without having looked."""
        self._missing.update(streams)

    def forget_missing(self) -> None:
        self._missing.clear()

    def tidy(self) -> None:
        """Between batches: forget what was missing, what is large, and what was not used for longest."""
        self.forget_missing()
        while self._large:
            self._known.pop(self._large.pop(), None)
        while len(self._known) > self._most:
            self._known.popitem(last=False)

    def forget_all(self) -> None:
        self._missing.clear()
        self._known.clear()
        self._large.clear()

    def _read(self, recorded: RecordedEvent) -> LedgerEvent:
        return self._mapper.to_domain_event(recorded)


def _refolded(stream: str, history: list[LedgerEvent]) -> LedgerAggregate:
    kind: type[LedgerAggregate] = Payment if stream.startswith("payment/") else Transfer
    aggregate = kind.at(history[0])
    for event in history[1:]:
        event.mutate(aggregate)
    return aggregate
