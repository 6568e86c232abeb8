"""The book: the aggregates that decisions look at and change, in layers that are merged or thrown away."""

from __future__ import annotations

from typing import Protocol

from ledger.domain.account import Account
from ledger.domain.aggregate import LedgerAggregate
from ledger.domain.errors import AccountNotFound
from ledger.domain.events import LedgerEvent, account_stream, payment_stream, transfer_stream
from ledger.domain.payment import Payment
from ledger.domain.transfer import Transfer


class Streams(Protocol):
    """What a book stands on: the aggregates of the log, by stream, None where a stream has no events."""

    def get(self, stream: str) -> LedgerAggregate | None: ...


class Book:
    """A layer over other streams: what is looked at is copied, what changes is only here until it is merged.

    Everything that must not happen (a refused command, a dry run, an append that was lost) is a layer thrown away.
    """

    __slots__ = ("_below", "_head_position", "_here", "events")

    def __init__(self, below: Streams, head_position: int = 0) -> None:
        """`head_position`: after which position of the log this layer's events would stand."""
        self._below = below
        self._head_position = head_position
        self._here: dict[str, LedgerAggregate] = {}
        self.events: list[LedgerEvent] = []

    def get(self, stream: str) -> LedgerAggregate | None:
        """The aggregate as it is here. It is not to be changed: layers on top of this one take copies."""
        return self._here.get(stream) or self._below.get(stream)

    def _take(self, stream: str) -> LedgerAggregate | None:
        """The aggregate as this layer's own, which may be changed."""
        found = self._here.get(stream)
        if found is None:
            below = self._below.get(stream)
            if below is not None:
                found = self._here[stream] = below.copy(self.events)
        return found

    def add(self, aggregate: LedgerAggregate) -> None:
        """Put in an aggregate that was born in this layer."""
        self._here[aggregate.id] = aggregate

    @property
    def next_position(self) -> int:
        """The position that the next event would have."""
        return self._head_position + len(self.events) + 1

    def layer(self) -> Book:
        return Book(self, self._head_position + len(self.events))

    def merge(self, layer: Book) -> None:
        """Take over what a layer on top of this one has come to. The layer is not to be used any more."""
        self._here.update(layer._here)
        self.events += layer.events

    @property
    def changed(self) -> dict[str, LedgerAggregate]:
        """The aggregates that were taken or added here, as they are now."""
        return self._here

    # --- by kind -----------------------------------------------------------------------------------------------------

    def account(self, account_id: str) -> Account:
        return _account(self._take(account_stream(account_id)), account_id)

    def peek(self, account_id: str) -> Account:
        """An account that is looked at only: it is not to be changed."""
        return _account(self.get(account_stream(account_id)), account_id)

    def find_payment(self, payment_id: str) -> Payment | None:
        found = self._take(payment_stream(payment_id))
        assert found is None or isinstance(found, Payment)
        return found

    def find_transfer(self, transfer_id: str) -> Transfer | None:
        found = self._take(transfer_stream(transfer_id))
        assert found is None or isinstance(found, Transfer)
        return found


def _account(found: LedgerAggregate | None, account_id: str) -> Account:
    if found is None:
        raise AccountNotFound(account_id=account_id)
    assert isinstance(found, Account)
    return found
