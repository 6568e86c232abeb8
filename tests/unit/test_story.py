"""The story: every kind of event has its words, and what can't be read does no harm."""

from __future__ import annotations

from datetime import timedelta

from domain import Ledger, authorize, capture, close, expire, freeze, leg, open_account, set_limit, transfer, unfreeze

from ledger.console import happenings
from ledger.console.story import NUMBERS, Line, Story
from ledger.domain.events import TOPICS, FreezeScope, LedgerEvent
from ledger.upcasters import EventMapper
from ledger.v1.audit_pb2 import Event


def as_sent(event: LedgerEvent) -> Event:
    """The event as a server sends it."""
    stored = EventMapper().to_stored_event(event)
    return Event(stream=stored.originator_id, version=stored.originator_version, topic=stored.topic, state=stored.state)


def told(ledger: Ledger, stream: str) -> list[Line]:
    events = [as_sent(each) for each in ledger.book.events if each.stream == stream]
    return list(Story(events[0], events).lines())


def test_there_are_words_for_every_kind_of_event() -> None:
    """One that is added needs them too."""
    assert set(happenings._phrase.registry) == {object, *TOPICS.values()}


def test_the_life_of_an_account_in_words() -> None:
    """Freezes say for what, changes why, and movements when they count if that is not when they were recorded."""
    ledger = Ledger(alice=100_00, shop=0)
    past = ledger.now - timedelta(days=31)
    ledger.do(transfer("t", leg("alice", "shop", 7), effective_at=past))
    ledger.do(authorize(10, hold_for=timedelta(minutes=5)))
    ledger.wait(minutes=6)
    ledger.do(expire())
    for scope in FreezeScope:
        ledger.do(freeze("alice", scope, reason="a dispute" if scope is FreezeScope.ALL else ""))
    ledger.do(unfreeze("alice"))
    ledger.do(set_limit("alice", 500))
    ledger.do(open_account("pocket", limit=0))
    ledger.do(close("pocket", reason="not needed"))

    words = [(line.what, line.counterparty, *line.numbers) for line in told(ledger, "account/alice")[2:]]
    assert words == [
        ("paid: transfer t, leg 0 (effective 2025-12-01T12:00:00Z)", "shop", "-0.07", "99.93 EUR", "0.00", "99.93"),
        ("reserved: authorization of payment p", "", "0.10", "99.93 EUR", "0.10", "99.83"),
        ("released: expiry of payment p", "", "0.10", "99.93 EUR", "0.00", "99.93"),
        ("frozen for debits", "", "", "99.93 EUR", "0.00", "99.93"),
        ("frozen for credits", "", "", "99.93 EUR", "0.00", "99.93"),
        ("frozen for all: a dispute", "", "", "99.93 EUR", "0.00", "99.93"),
        ("unfrozen", "", "", "99.93 EUR", "0.00", "99.93"),
        ("credit limit set to 5.00 EUR", "", "", "99.93 EUR", "0.00", "104.93"),
    ]
    assert [line.what for line in told(ledger, "account/pocket")] == [
        "opened, with a credit limit of 0.00 EUR",
        "closed: not needed",
    ]
    assert told(ledger, "account/bank")[0].what == "opened, for the world outside"
    assert told(ledger, "payment/p")[-1].what == "expired, and released 0.10 EUR"
    assert {len(line.numbers) for line in told(ledger, "account/alice")} == {len(NUMBERS["account"])}


def test_what_this_program_can_not_read_is_named() -> None:
    """An event of a newer release, in the middle of a payment or at its beginning: the others are told."""
    ledger = Ledger(alice=100_00, shop=0)
    ledger.do(authorize(10))
    ledger.do(capture("c"))
    first, last = (as_sent(each) for each in ledger.book.events if each.stream == "payment/p")
    newer = Event(stream="payment/p", version=1, topic="PaymentPondered", state=b"{}")

    lines = list(Story(first, [first, newer, last]).lines())
    assert [line.what for line in lines[1:]] == [
        "PaymentPondered, which this program can't read",
        "captured 0.10 EUR: capture c",
    ]
    assert lines[1].numbers == ()
    assert [line.what for line in Story(newer, [newer, last]).lines()][1].startswith("captured 10 minor units of")
