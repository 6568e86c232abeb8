"""Replay: from the first event of a command follows the command, as it was asked."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
import pytest
from domain import (
    MOST,
    START,
    Ledger,
    at_version,
    authorize,
    capture,
    capture_and_keep,
    close,
    expire,
    freeze,
    increment,
    leg,
    open_account,
    refund,
    set_limit,
    transfer,
    unfreeze,
    void,
)
from hypothesis import given
from hypothesis import strategies as st

from ledger.audit.replay import begins_command, command_of
from ledger.domain.commands import HOLD_FOR_MOST, Command
from ledger.domain.errors import InvalidCommand
from ledger.domain.events import TOPICS, AccountKind, FreezeScope
from ledger.upcasters import EventMapper

MAPPER = EventMapper()

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
moments = st.none() | st.datetimes(max_value=START.replace(tzinfo=None)).map(
    lambda each: each.replace(tzinfo=START.tzinfo)
)
lengths = st.none() | st.timedeltas(timedelta(microseconds=1), HOLD_FOR_MOST)
metadata = st.dictionaries(texts.filter(bool), texts, max_size=3)
amounts = st.integers(1, 1_000) | st.just(MOST)


def replayed(ledger: Ledger, command: Command) -> Command:
    """The command, told by the stored bytes of the first event that it comes to."""
    stored = MAPPER.to_stored_event(ledger.emitted(command)[0])
    kind, fields = MAPPER.fields_of(stored.topic, stored.state)
    return command_of(kind, stored.originator_id, fields)


def check(ledger: Ledger, *commands: Command) -> None:
    for command in commands:
        assert replayed(ledger, command) == command


def test_every_command_of_an_account_is_told() -> None:
    """With what was given and what was left out."""
    check(
        Ledger(),
        open_account("a"),
        open_account("b", currency_code="JPY", limit=0, metadata={"z": "", "a": "Zoë"}),
        open_account("c", kind=AccountKind.EXTERNAL),
        set_limit("a", 5),
        set_limit("b", MOST, currency_code="JPY", reason="a\nb"),
        *(freeze("a", scope, reason=str(scope)) for scope in FreezeScope),
        unfreeze("a", reason="€"),
        close("a", reason=""),
    )


def test_every_command_of_a_payment_is_told() -> None:
    """Declined ones too; an amount that was left out stays so."""
    ledger = Ledger(alice=1_000, shop=0)
    check(
        ledger,
        authorize(10),
        increment("i", 20),
        capture_and_keep("c1", 5, effective_at=START),
        capture("c2"),
        refund("r1", 1, effective_at=START),
        refund("r2"),
        authorize(1_001, payment_id="declined"),
        authorize(10, payment_id="voided"),
        void("voided", reason="why not"),
        authorize(10, payment_id="expired", hold_for=timedelta(microseconds=1)),
    )
    ledger.wait(days=1)
    check(ledger, expire("expired"))


def test_transfers_are_told_posted_or_declined() -> None:
    """All legs, in order."""
    check(
        Ledger(alice=10, shop=0),
        transfer("one", leg("alice", "shop", 3), leg("shop", "alice", 2), reference="x", metadata={"b": "", "a": "1"}),
        transfer("two", leg("alice", "shop", 3), leg("alice", "shop", 3_000)),
    )


def test_preconditions_are_not_told() -> None:
    """They decide whether, not what."""
    command = freeze("alice", preconditions=at_version(alice=1))
    assert replayed(Ledger(alice=0), command) == freeze("alice")


@given(amount=amounts, hold_for=lengths, reference=texts, metadata=metadata, effective_at=moments)
def test_whatever_is_asked_is_told_to_the_last_bit(amount: int, **asked: Any) -> None:
    """Lengths of time and moments to the microsecond, texts in any script."""
    ledger = Ledger(alice=0, shop=0)
    check(ledger, authorize(amount, **asked))
    del asked["hold_for"]
    check(ledger, transfer("t", leg("bank", "alice", amount), **asked))


@pytest.mark.parametrize("kind", TOPICS.values())
def test_what_happens_to_an_account_in_passing_begins_nothing(kind: Any) -> None:
    """Money reserved, released or moved is a consequence."""
    assert begins_command(kind) == (not kind.__name__.startswith("Funds"))


def test_a_malformed_request_is_no_command() -> None:
    """A forged event may tell of one."""
    command = transfer("t", leg("bank", "alice", 1))
    stored = MAPPER.to_stored_event(Ledger(alice=0).emitted(command)[0])
    kind, fields = MAPPER.fields_of(stored.topic, stored.state.replace(b'"minor_units":1', b'"minor_units":-1'))
    with pytest.raises(InvalidCommand, match="minor_units"):
        command_of(kind, stored.originator_id, fields)


def test_null_is_unset() -> None:
    """No release writes it; whose bytes they are is for others to say."""
    fields = {"capture_id": "all", "amount": None, "keep_remainder": False, "effective_at": None}
    assert command_of(TOPICS["PaymentCaptured"], "payment/p", fields) == capture("all")
    with pytest.raises(msgspec.ValidationError, match="minor_units"):
        command_of(TOPICS["PaymentCaptured"], "payment/p", {**fields, "amount": {"currency_code": "EUR"}})
