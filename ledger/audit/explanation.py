"""Explanations: where what is recorded departs from what the rules decide, and how to say it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import msgspec
from eventsourcing.persistence import StoredEvent

from ledger.audit.findings import Finding, Kind
from ledger.audit.replay import begins_command
from ledger.audit.snapshot import EPOCH, US, Row
from ledger.audit.wording import amount_text, currency_of, done_text, in_short, refused_text, time_text, unreadable_text
from ledger.domain.commands import LEGS_MOST
from ledger.domain.events import (
    AccountOpened,
    LedgerEvent,
    PaymentDeclined,
    PaymentRequested,
    TransferDeclined,
    TransferEvent,
    account_stream,
    class_version,
    payment_stream,
    transfer_stream,
)
from ledger.terminal import printable
from ledger.upcasters import EventMapper, UnreadableEvent

COMMAND_MOST_EVENTS: Final = 1 + 2 * LEGS_MOST
"""The most events that one command can have."""

_AMOUNTS: Final = frozenset(
    {"amount", "authorized", "capturable", "captured", "credit_limit", "expired", "minor_units", "posted", "refunded"}
    | {"released", "reserved"}
)


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of deciding a command again: its events, or why there are none."""

    events: Sequence[LedgerEvent]
    error: Exception | None = None


class Explained(NamedTuple):
    """What is wrong, if anything is; how many rows are the command's, and the events in them that can be read."""

    finding: Finding | None
    rows: int
    recorded: list[LedgerEvent]


class Recorded(NamedTuple):
    """A row of the log and its event, or why it can't be read."""

    row: Row
    event: LedgerEvent | None
    why_unreadable: str = ""

    def finding(self, kind: Kind, what: str) -> Finding:
        position, stream, version = self.row[:3]
        return Finding(kind, what, position, printable(stream), version)

    def unreadable(self) -> Finding:
        return self.finding(Kind.UNREADABLE, f"{in_short(self.row[3])} can't be read: {self.why_unreadable}")


def explain(rows: Sequence[Row], place: int, tried: Tried, mapper: EventMapper) -> Explained:
    """Why the command whose first event stands at a place among the rows is not as it was decided again."""
    group = list(_group(rows, place, mapper))
    finding = _wrong_alone(group[0]) or Explanation(rows[place:], group, tried, mapper).finding()
    return Explained(finding, len(group), [each.event for each in group if each.event is not None])


def _group(rows: Sequence[Row], place: int, mapper: EventMapper) -> Iterator[Recorded]:
    """The rows from a place on that say that they are of one command."""
    first = _recorded(rows[place], mapper)
    yield first
    for row in rows[place + 1 : place + COMMAND_MOST_EVENTS]:
        recorded = _recorded(row, mapper)
        if first.event is None or recorded.event is None:
            break
        if recorded.event.command_position not in {first.event.command_position} - {row[0]}:
            break
        yield recorded


def _recorded(row: Row, mapper: EventMapper) -> Recorded:
    _, stream, version, topic, _, state = row
    try:
        return Recorded(row, mapper.to_domain_event(StoredEvent(stream, version, topic, state)))
    except UnreadableEvent as error:
        return Recorded(row, None, unreadable_text(error.__cause__ or error))


# --- what is wrong whatever the rules say ----------------------------------------------------------------------------


def _wrong_alone(first: Recorded) -> Finding | None:
    """What is wrong with the first event of a command, looked at alone."""
    position, stream, _, topic, recorded_at, _ = first.row
    event = first.event
    if event is None:
        return first.unreadable()
    own_stream = _stream_inside(event)
    if own_stream not in (None, stream):
        return first.finding(Kind.COLUMNS, f"its state is one of {printable(str(own_stream))}")
    if event.command_position != position:
        what = f"{topic} says that it belongs to a command at position {event.command_position:,}, where it does not"
        return first.finding(Kind.COLUMNS, what)
    if (event.timestamp - EPOCH) // US != recorded_at:
        what = f"recorded_at is {time_text(recorded_at)}, and its state says {event.timestamp.isoformat()}"
        return first.finding(Kind.COLUMNS, what)
    if not begins_command(type(event)):
        return first.finding(Kind.DECISION, f"{topic} stands alone: no command begins with it")
    return None


def _stream_inside(event: LedgerEvent) -> str | None:
    """The stream that an event names in its state, if it does."""
    if isinstance(event, AccountOpened):
        return account_stream(event.account_id)
    if isinstance(event, PaymentRequested):
        return payment_stream(event.payment_id)
    return transfer_stream(event.transfer_id) if isinstance(event, TransferEvent) else None


# --- what is wrong by the rules --------------------------------------------------------------------------------------


class Explanation:
    """What to say of a command whose first event is in order by itself."""

    def __init__(self, rows: Sequence[Row], group: Sequence[Recorded], tried: Tried, mapper: EventMapper) -> None:
        self._rows, self._group, self._tried, self._mapper = rows, group, tried, mapper
        recorded = [each.event for each in group if each.event is not None]
        self._first, self._first_event = group[0], recorded[0]
        self._currency_code = currency_of([*recorded, *tried.events])

    def finding(self) -> Finding | None:
        """The first thing that is wrong. Nothing is, if the events are only of older class versions."""
        first, event = self._first, self._first_event
        if self._tried.error is not None:
            return first.finding(Kind.DECISION, refused_text(event, self._tried.error, self._currency_code))
        if not self._tried.events:
            done = done_text(event, self._currency_code)
            return first.finding(Kind.DECISION, f"{done} a second time: it was so already")
        return next(filter(None, map(self._departure, range(len(self._tried.events)))), None)

    def _departure(self, number: int) -> Finding | None:
        """What is wrong with one event of the command, the first ones being right."""
        decided = self._tried.events[number]
        if number >= len(self._rows):
            what = f"the log ends within a command: {type(decided).__name__} is missing"
            return Finding(Kind.DECISION, what, self._rows[-1][0] + 1, decided.stream, decided.originator_version)
        within = number < len(self._group)
        recorded = self._group[number] if within else _recorded(self._rows[number], self._mapper)
        if recorded.event is None:
            return recorded.unreadable()
        if not within or type(recorded.event) is not type(decided) or recorded.event.stream != decided.stream:
            return recorded.finding(Kind.DECISION, self._another(recorded.event, decided, within))
        return self._wrong_columns(recorded, decided) or self._wrong_state(recorded, decided)

    def _another(self, event: LedgerEvent, decided: LedgerEvent, within: bool) -> str:
        """What to say of an event where another one belongs."""
        if within and isinstance(decided, PaymentDeclined | TransferDeclined):
            done, whose = done_text(event, self._currency_code), f"{decided.declined_account_id!r}"
            return f"{done}, which had to be declined for {decided.decline_reason} of account {whose}"
        if within and isinstance(event, PaymentDeclined | TransferDeclined):
            return f"{done_text(event, self._currency_code)} for {event.decline_reason}, where nothing stood in the way"
        belongs = f"{type(decided).__name__} of {printable(decided.stream)} belongs"
        where = f"of the command at position {self._first.row[0]:,}"
        return f"{type(event).__name__} stands where {belongs}, {where}"

    def _wrong_columns(self, recorded: Recorded, decided: LedgerEvent) -> Finding | None:
        _, _, version, _, recorded_at, _ = recorded.row
        if version != decided.originator_version:
            return recorded.finding(Kind.VERSIONS, f"version {decided.originator_version:,} of this stream comes next")
        if recorded_at != self._first.row[4]:
            of_first = time_text(self._first.row[4])
            what = f"recorded_at is {time_text(recorded_at)}, and {of_first} for the first event of its command"
            return recorded.finding(Kind.COLUMNS, what)
        return None

    def _wrong_state(self, recorded: Recorded, decided: LedgerEvent) -> Finding | None:
        state, stored = recorded.row[5], self._mapper.to_stored_event(decided)
        if state == stored.state:
            return None
        if recorded.event == decided:
            is_older = msgspec.json.decode(state)["class_version"] < class_version(type(decided))
            return None if is_older else recorded.finding(Kind.BYTES, "it says the right thing in other bytes")
        _, stands = self._mapper.fields_of(recorded.row[3], state)
        path, found, expected = _first_difference(stands, msgspec.json.decode(stored.state))
        found, expected = self._shown(path, found), self._shown(path, expected)
        return recorded.finding(Kind.DECISION, f"{path} is {found}, and {expected} by the rules")

    def _shown(self, path: str, value: Any) -> str:
        if value is None:
            return "unset"
        if path.rpartition(".")[2] in _AMOUNTS and type(value) is int:
            return amount_text(value, self._currency_code)
        return in_short(str(value))


def _first_difference(found: Any, expected: Any, path: str = "") -> tuple[str, Any, Any]:
    """The first field in which two events differ: its path, and both values."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for name in sorted(found.keys() | expected.keys()):
            if found.get(name) != expected.get(name):
                return _first_difference(found.get(name), expected.get(name), f"{path}.{name}".lstrip("."))
    return path, found, expected
