"""The past: aggregates as they were right before each position, while an audit goes through the log."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Set
from itertools import islice
from typing import Any, Final

from eventsourcing.persistence import StoredEvent
from psycopg import Connection

from ledger.domain.account import Account
from ledger.domain.aggregate import LedgerAggregate
from ledger.domain.decisions import streams_behind
from ledger.domain.events import AccountEvent, LedgerEvent, PaymentEvent, PaymentRequested
from ledger.domain.payment import Payment
from ledger.domain.transfer import Transfer
from ledger.postgres import sql_blocks
from ledger.upcasters import EventMapper, UnreadableEvent

SQL: Final = sql_blocks("ledger.audit", "past.sql")

PAST_MOST_STREAMS: Final = 16_384


class Past:
    """What decisions looked at. The least recently used are forgotten, and read again when they are wanted.

    Of every account its version is remembered, so that it is read again as it was, not as it is. A payment that is not
    remembered is looked for when the log goes on with it, not when the log begins one: that each begins once is for
    those to check who read the log stream by stream.
    """

    def __init__(
        self, connection: Connection[Any], mapper: EventMapper | None = None, most_streams: int = PAST_MOST_STREAMS
    ) -> None:
        self._connection, self._most = connection, most_streams
        self.mapper: Final = mapper or EventMapper()
        self._known: OrderedDict[str, LedgerAggregate] = OrderedDict()
        self._account_versions: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._known)

    @property
    def accounts(self) -> int:
        """How many accounts there are so far."""
        return len(self._account_versions)

    def get(self, stream: str) -> LedgerAggregate | None:
        """The aggregate of a stream, or None if it has had no events."""
        found = self._known.get(stream)
        if found is None and stream in self._account_versions:
            self._read_accounts([stream])
            found = self._known.get(stream)
        return found

    def look_up(self, wanted: Iterable[str], payments: Mapping[str, int]) -> None:
        """Have these accounts, those that exist, and these payments as they were before a version, ready."""
        missing = {each: before for each, before in payments.items() if each not in self._known}
        behind = self._read_payments(missing) if missing else []
        versions = self._account_versions
        forgotten = [each for each in {*wanted, *behind} if each in versions and each not in self._known]
        if forgotten:
            self._read_accounts(forgotten)

    def learn(self, changed: Mapping[str, LedgerAggregate]) -> None:
        """Take over what a decision has come to."""
        known = self._known
        for stream, aggregate in changed.items():
            if isinstance(aggregate, Transfer):
                continue  # Nothing ever looks at it again.
            if isinstance(aggregate, Account):
                aggregate.opening = None  # It holds the metadata, which decide nothing.
                self._account_versions[stream] = aggregate.version
            known[stream] = aggregate
            known.move_to_end(stream)

    def accept(self, event: LedgerEvent) -> None:
        """Take an event for a fact, whether or not it should have been recorded."""
        if isinstance(event, AccountEvent):
            self.learn({event.stream: Account.at(event)})
        elif isinstance(event, PaymentRequested):
            self.learn({event.stream: Payment.at(event)})
        elif isinstance(event, PaymentEvent):
            payment = self.get(event.stream)
            if isinstance(payment, Payment):
                twin = payment.copy([])
                event.apply(twin)
                twin.version = event.originator_version
                self.learn({event.stream: twin})

    def tidy(self, keep: Set[str] = frozenset()) -> None:
        """Forget what was not used for longest, but not what is to be kept."""
        surplus = len(self._known) - self._most
        if surplus > 0:
            for stream in [each for each in islice(self._known, surplus) if each not in keep]:
                del self._known[stream]

    def _read_accounts(self, streams: list[str]) -> None:
        versions = [self._account_versions[stream] for stream in streams]
        for event in self._read(SQL.accounts, streams, versions):
            if isinstance(event, AccountEvent):
                self._known[event.stream] = Account.at(event)

    def _read_payments(self, before: Mapping[str, int]) -> list[str]:
        """Read payments, and return the accounts behind them."""
        behind = []
        for event in self._read(SQL.payments, list(before), list(before.values())):
            if isinstance(event, PaymentRequested):
                payment = self._known[event.stream] = Payment.at(event)
                behind += streams_behind(payment)
            else:
                self.accept(event)
        return behind

    def _read(self, query: Any, streams: list[str], versions: list[int]) -> list[LedgerEvent]:
        rows = self._connection.execute(query, {"streams": streams, "versions": versions}, binary=True)
        events = []
        for stream, version, topic, state in rows:
            try:
                events.append(self.mapper.to_domain_event(StoredEvent(stream, version, topic, state)))
            except UnreadableEvent:
                continue  # It has been found to be so when the log came to it.
        return events
