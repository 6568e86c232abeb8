"""Batches: the events of the log that follow a checkpoint, decoded as far as folding needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from psycopg import Connection
from psycopg.rows import args_row

from ledger.domain.events import TOPICS, AccountEvent, LedgerEvent, PaymentEvent, TransferEvent
from ledger.postgres import sql_blocks
from ledger.upcasters import EventMapper

SQL: Final = sql_blocks("projections", "batch.sql")


class CannotFollow(Exception):
    """Following stops, right before a position."""

    def __init__(self, why: str, position: int, stream: str | None = None) -> None:
        self.position: Final = position
        self.stream: Final = stream
        where = f"position {position} ({stream})" if stream else f"position {position}"
        super().__init__(f"{where}: {why}")


class LogHasGap(CannotFollow):
    """An event is missing in the log, or none is left where one was applied."""


class CannotApply(CannotFollow):
    """An event can't be read, or not be applied to the read models."""


class LoggedRow(NamedTuple):
    """A row of the log."""

    position: int
    stream: str
    version: int
    topic: str
    state: bytes


ACCOUNT_EVENTS: Final = frozenset(each for each in TOPICS.values() if issubclass(each, AccountEvent))
PAYMENT_EVENTS: Final = frozenset(each for each in TOPICS.values() if issubclass(each, PaymentEvent))
TRANSFER_EVENTS: Final = frozenset(each for each in TOPICS.values() if issubclass(each, TransferEvent))


class LoggedEvent(NamedTuple):
    """An event of the log: its class of today, and its fields as JSON has them. `id` is the account's, payment's own.

    Typed events would be nicer to fold, but cost twice as much to make, and have times where rows take text as it is.
    """

    position: int
    stream: str
    id: str
    version: int
    kind: type[LedgerEvent]
    recorded_at: str
    fields: dict[str, Any]

    @property
    def effective_at(self) -> str:
        """When it counts in reports: when it was recorded, unless the request said otherwise."""
        return self.fields.get("effective_at") or self.recorded_at


def read_batch(connection: Connection[Any], checkpoint: int, limit: int) -> list[LoggedRow]:
    """At most `limit` events right after the checkpoint, as they stand at one moment, up to a gap if there is one.

    Raises LogHasGap if the gap is right there, or the event at the checkpoint is gone.
    """
    with connection.cursor(binary=True, row_factory=args_row(LoggedRow)) as cursor:
        found = cursor.execute(SQL.read, {"checkpoint": checkpoint, "limit": limit}).fetchall()
    first = checkpoint or 1
    rows = [row for expected, row in enumerate(found, start=first) if row.position == expected]
    if checkpoint and not rows:
        raise LogHasGap("the log has lost this event, which was applied", checkpoint)
    if checkpoint:
        del rows[0], found[0]
    if found and not rows:
        raise LogHasGap(f"the log has no event here, but one at {found[0].position}", checkpoint + 1)
    return rows[:limit]


def decode(rows: Sequence[LoggedRow], mapper: EventMapper) -> list[LoggedEvent]:
    """Raises CannotApply for the first event that can't be decoded."""
    events = []
    for position, stream, version, topic, state in rows:
        try:
            kind, fields = mapper.fields_of(topic, state)
            id_ = stream.partition("/")[2]
            events.append(LoggedEvent(position, stream, id_, version, kind, fields["timestamp"], fields))
        except (ValueError, KeyError, TypeError) as error:
            raise CannotApply(f"it can't be read: {error}", position, stream) from error
    return events


def whole_commands(events: Sequence[LoggedEvent]) -> Sequence[LoggedEvent]:
    """The events without those of the last command, which may be cut off; all of them if there is no other.

    So what readers see is balanced: a transfer never shows with one leg done and the next not.
    """
    uncut = events[-1].fields["command_position"] - events[0].position
    return events[:uncut] if uncut > 0 else events
