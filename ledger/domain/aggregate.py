"""What accounts, payments and transfers share: one stream each, born from its first event, cheap to copy."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Self

from eventsourcing.domain import BaseAggregate
from msgspec import Struct

from ledger.domain.events import LedgerEvent


class Stamp(Struct, frozen=True):
    """What the events of one command have in common: when, by whom, for which request, and where in the log."""

    timestamp: datetime
    actor: str
    correlation_id: str
    command_position: int

    @property
    def fields(self) -> dict[str, Any]:
        return {
            "timestamp": self.timestamp,
            "actor": self.actor,
            "correlation_id": self.correlation_id,
            "command_position": self.command_position,
        }


class LedgerAggregate(BaseAggregate[str]):
    """An aggregate whose whole state is values that are replaced and never changed, so that a copy may share them.

    The aggregates of one decision share one list of pending events: its order is the order in the log.
    """

    @classmethod
    def at(cls, event: LedgerEvent, pending: list[LedgerEvent] | None = None) -> Self:
        """The aggregate right after `event`, when that event alone tells its state (or is its first)."""
        aggregate = cls.__new__(cls)
        # What the library's __base_init__ does; to call it costs as much again.
        aggregate._id, aggregate._version = event.originator_id, event.originator_version
        aggregate._created_on = aggregate._modified_on = event.timestamp
        aggregate._pending_events = [] if pending is None else pending  # type: ignore[assignment]
        aggregate.__init__()  # type: ignore[misc]
        event.apply(aggregate)
        return aggregate

    @classmethod
    def born(cls, stream: str, event: LedgerEvent, pending: list[LedgerEvent]) -> Self:
        """A new aggregate; its event, the first of the stream, joins the `pending` ones."""
        aggregate = cls.at(event.standing(stream, 1), pending)
        pending.append(event)
        return aggregate

    def record(self, event: LedgerEvent) -> None:
        """Apply what just happened to this aggregate: it is the next event of the stream, and joins the pending ones.

        In place of the library's `trigger_event`, which would give the event its place among its fields, and of its
        `mutate`, which looks whether that is the next one.
        """
        version = self._version + 1
        event.standing(self._id, version).apply(self)
        self._version, self._modified_on = version, event.timestamp
        self._pending_events.append(event)

    def copy(self, pending: list[LedgerEvent]) -> Self:
        """A copy whose events go to `pending`; what happens to it leaves the original as it is.

        By name: what is given a whole `__dict__` is larger, and slower whenever an attribute is looked up.
        """
        twin = self.__class__.__new__(self.__class__)
        twin._id, twin._version = self._id, self._version
        twin._created_on, twin._modified_on = self._created_on, self._modified_on
        twin._pending_events = pending  # type: ignore[assignment]
        twin._share(self)
        return twin

    def let_go(self) -> None:
        """Hold on to the events of the command no longer: they are recorded, and what changes next is a copy."""
        self._pending_events = []

    def _share(self, other: Self) -> None:
        """Have the state that the other one has: what a subclass adds to the library's attributes."""
        raise NotImplementedError
