"""Explanations: events of older class versions are compared by what they say, those of today by their bytes."""

from __future__ import annotations

from datetime import timedelta

import pytest
from domain import START, Ledger, altered, authorize, close, open_account
from msgspec.structs import asdict

from ledger.audit import replay
from ledger.audit.explanation import Tried, explain
from ledger.audit.findings import Kind
from ledger.audit.snapshot import EPOCH, US, Row
from ledger.domain.events import AccountClosed, LedgerEvent
from ledger.upcasters import EventMapper


class NextClosed(AccountClosed, kw_only=True, tag=2):
    """As if the next class version had come."""


def next_release() -> EventMapper:
    """With an upcaster that adds nothing."""
    return EventMapper({"AccountClosed": NextClosed}, {("AccountClosed", 1): dict})


def closing() -> LedgerEvent:
    ledger = Ledger()
    ledger.do(open_account("a"))
    (event,) = ledger.emitted(close("a", reason="done"))
    return event


def row_of(event: LedgerEvent, state: bytes) -> Row:
    return event.command_position, event.stream, event.originator_version, "AccountClosed", (START - EPOCH) // US, state


def test_an_event_of_an_older_class_version_is_right_if_it_says_the_right_thing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its bytes can't be those of today."""
    monkeypatch.setitem(replay._REBUILD, NextClosed, replay._REBUILD[AccountClosed])
    event, mapper = closing(), next_release()
    decided = NextClosed(**asdict(event)).standing(event.stream, event.originator_version)
    row = row_of(event, EventMapper().to_stored_event(event).state)
    assert explain([row], 0, Tried([decided]), mapper).finding is None
    other = altered(decided, reason="another")
    finding = explain([row], 0, Tried([other]), mapper).finding
    assert finding is not None
    assert (finding.kind, finding.what) == (Kind.DECISION, "reason is done, and another by the rules")


def test_an_event_of_today_has_to_have_the_bytes_of_today() -> None:
    """The same said in another way is another leaf of the tree."""
    event, mapper = closing(), EventMapper()
    state = mapper.to_stored_event(event).state
    row = row_of(event, state.replace(b'":', b'": '))
    finding = explain([row], 0, Tried([event]), mapper).finding
    assert finding is not None
    assert (finding.kind, finding.position) == (Kind.BYTES, event.command_position)
    assert explain([row_of(event, state)], 0, Tried([event]), mapper).finding is None


@pytest.mark.parametrize(
    ("stored", "wrong", "why"),
    [
        (b'"PT1H"', b'"an hour"', "hold_for: not a length of time, like P7D"),
        (b'"minor_units":5', b'"minor_units":5.0', "amount.minor_units: expected `int`, got `float`"),
        (b'"payment_id":"p",', b"", "object missing required field `payment_id`"),
    ],
)
def test_what_can_not_be_read_is_named_by_its_field(stored: bytes, wrong: bytes, why: str) -> None:
    """In words for an auditor, not for whoever wrote the class."""
    event, *_ = Ledger(alice=100, shop=0).emitted(authorize(5, hold_for=timedelta(hours=1)))
    state = EventMapper().to_stored_event(event).state
    assert stored in state
    row = (
        event.command_position,
        event.stream,
        1,
        "PaymentAuthorized",
        (START - EPOCH) // US,
        state.replace(stored, wrong),
    )
    finding = explain([row], 0, Tried([event]), EventMapper()).finding
    assert finding is not None
    assert (finding.kind, finding.what) == (Kind.UNREADABLE, f"PaymentAuthorized can't be read: {why}")
