"""What accounts, payments and transfers share: how they are copied, and remembered."""

from __future__ import annotations

from typing import Any, Final

import pytest
from domain import Ledger, authorize, capture_and_keep, leg, open_account, transfer

from ledger.domain.account import Account
from ledger.domain.aggregate import LedgerAggregate
from ledger.domain.events import LedgerEvent
from ledger.domain.payment import Payment
from ledger.domain.transfer import Transfer
from ledger.event_log import RecordedEvent, recorded_event
from ledger.memory import Memory
from ledger.upcasters import EventMapper
from ledger.writer import Head, Loaded, Wanted

KINDS: Final[dict[str, type[LedgerAggregate]]] = {
    "account/alice": Account,
    "payment/p": Payment,
    "transfer/t": Transfer,
}


@pytest.fixture(params=KINDS)
def original(request: pytest.FixtureRequest) -> LedgerAggregate:
    """One that was never copied, made of its history alone; where it can, it has had more than its first event."""
    ledger = Ledger(alice=100)
    ledger.do(open_account("shop"))
    ledger.do(authorize(30))
    ledger.do(transfer("t", leg("alice", "shop", 5)))
    ledger.wait(hours=1)
    ledger.do(capture_and_keep("c", 10))
    first, *later = (event for event in ledger.book.events if event.stream == request.param)
    made = KINDS[request.param].at(first)
    for event in later:
        event.mutate(made)
    return made


def attributes(aggregate: LedgerAggregate) -> dict[str, Any]:
    return {name: each for name, each in vars(aggregate).items() if name != "_pending_events"}


def test_a_copy_has_all_that_the_original_has(original: LedgerAggregate) -> None:
    """But for its events, which go where it is told. What a class has more one day must not be left behind."""
    pending: list[LedgerEvent] = []
    twin = original.copy(pending)
    assert attributes(twin) == attributes(original)
    assert twin.pending_events is pending


def recorded(event: LedgerEvent) -> RecordedEvent:
    """The event as it is read from the log."""
    stream, version, topic, state = EventMapper().to_row(event)
    return recorded_event(event.command_position, stream, version, topic, event.timestamp, state)


def test_what_is_remembered_lets_go_of_the_events_of_its_command() -> None:
    """A transfer of a thousand legs would keep all its events in memory, for as long as one account is remembered."""
    ledger, memory = Ledger(alice=100, shop=0), Memory(EventMapper(), most_streams=100)
    ledger.do(transfer("few", leg("alice", "shop", 1)))
    ledger.do(transfer("many", *(leg("alice", "shop", 1) for _ in range(17))))
    outcome = ledger.do(authorize(30))
    memory.recorded(ledger.book.changed, Head(ledger.head, ledger.now))
    assert memory.knows("transfer/many"), "until the batch is done"
    memory.tidy()
    for stream in ("account/alice", "account/shop", "payment/p", "transfer/few"):
        remembered = memory.get(stream)
        assert remembered is not None
        assert not remembered.pending_events
    assert memory.get("payment/p") is outcome.thing
    assert not memory.knows("transfer/many"), "as large as all of its legs, and asked for by a retry alone"
    retried = [recorded(event) for event in ledger.book.events if event.stream == "transfer/many"]
    memory.learn(Wanted(whole={"transfer/many"}), Loaded(memory.head, [], [], retried))
    assert isinstance(memory.get("transfer/many"), Transfer)
    memory.tidy()
    assert not memory.knows("transfer/many"), "nor after that"
