"""The story of one stream: each event of an account, a payment or a transfer as a line for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from eventsourcing.persistence import StoredEvent

from ledger.console.happenings import happening
from ledger.console.rows import amount_of, money
from ledger.domain.events import (
    AccountEvent,
    FundsDebited,
    FundsEvent,
    LedgerEvent,
    PaymentAuthorized,
    PaymentChange,
    PaymentRequested,
    TransferEvent,
)
from ledger.upcasters import EventMapper, UnreadableEvent
from ledger.v1.audit_pb2 import Event

NUMBERS: Final[Mapping[str, Sequence[str]]] = {
    "account": ("amount", "posted", "reserved", "available"),
    "payment": ("authorized", "captured", "capturable", "released", "expired", "refunded"),
    "transfer": (),
}
"""What the numbers of a line are, for each kind of stream."""


class Line(NamedTuple):
    """One event: who did it, what happened, with which other account, and what the numbers are after it."""

    by: str
    what: str
    counterparty: str
    numbers: Sequence[str]


class Story:
    """Some events of one stream, in order; `first` is its first, which tells what those after it don't repeat."""

    def __init__(self, first: Event, events: Iterable[Event]) -> None:
        self._mapper: Final = EventMapper()
        self._events: Final = [(each.topic, self._typed(each)) for each in events]
        opening = self._typed(first)
        self._payment_currency: Final = opening.amount.currency_code if isinstance(opening, PaymentRequested) else ""

    def lines(self) -> Iterator[Line]:
        for topic, event in self._events:
            if event is None:
                yield Line("", f"{topic}, which this program can't read", "", ())
            else:
                what = happening(event, self._payment_currency)
                yield Line(event.actor, what, getattr(event, "counterparty", ""), list(self._numbers(event)))

    def legs(self) -> Iterator[tuple[str, ...]]:
        """Number, accounts and amount of every leg of a transfer."""
        for _, event in self._events:
            for number, leg in enumerate(event.legs if isinstance(event, TransferEvent) else ()):
                amount = money(leg.amount.minor_units, leg.amount.currency_code)
                yield str(number), leg.from_account_id, leg.to_account_id, amount

    def _typed(self, event: Event) -> LedgerEvent | None:
        """The event as its class of today; None if a newer release wrote it, or nobody's."""
        stored = StoredEvent(
            originator_id=event.stream, originator_version=event.version, topic=event.topic, state=event.state
        )
        try:
            return self._mapper.to_domain_event(stored)
        except UnreadableEvent:
            return None

    def _numbers(self, event: LedgerEvent) -> Iterator[str]:
        """As NUMBERS says."""
        if isinstance(event, AccountEvent):
            after, code = event.after, event.after.currency_code
            yield _moved(event)
            yield money(after.posted, code)
            yield amount_of(after.reserved, code)
            yield amount_of(after.available, code)
        elif isinstance(event, PaymentRequested | PaymentChange):
            first, *others = _amounts(event)
            yield money(first, self._payment_currency)
            yield from (amount_of(each, self._payment_currency) for each in others)


def _moved(event: AccountEvent) -> str:
    """The amount that was moved, reserved or released, if one was; below zero where it left the account."""
    if not isinstance(event, FundsEvent):
        return ""
    sign = -1 if isinstance(event, FundsDebited) else 1
    return amount_of(sign * event.amount, event.after.currency_code)


def _amounts(event: PaymentRequested | PaymentChange) -> list[int]:
    if isinstance(event, PaymentChange):
        return [getattr(event.after, name) for name in NUMBERS["payment"]]
    authorized = event.amount.minor_units if isinstance(event, PaymentAuthorized) else 0
    return [authorized, 0, authorized, 0, 0, 0]
