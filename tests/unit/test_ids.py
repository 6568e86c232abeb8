"""Ids are idempotency keys: the same id again is the first outcome again, or it is refused."""

from dataclasses import dataclass
from datetime import timedelta

import pytest
from domain import (
    INSTANT,
    START,
    Ledger,
    as_seen,
    at_version,
    authorize,
    capture,
    capture_and_keep,
    close,
    eur,
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

from ledger.domain.account import Account
from ledger.domain.commands import HOLD_FOR_DEFAULT, Command
from ledger.domain.decisions import Outcome
from ledger.domain.errors import IdAlreadyUsed
from ledger.domain.events import AccountKind
from ledger.domain.money import Money
from ledger.domain.payment_state import PaymentState

THEN = START - timedelta(days=1)


def a_ledger() -> Ledger:
    """Alice, Bob and the shop in euros, Yumi and Zoe in yen, all with money, and a payment `q` of 100, 40 captured."""
    ledger = Ledger(alice=1_000, bob=1_000, shop=1_000)
    ledger.do(open_account("yen-bank", currency_code="JPY", kind=AccountKind.EXTERNAL))
    for account_id in ("yumi", "zoe"):
        ledger.do(open_account(account_id, currency_code="JPY"))
        ledger.fund(account_id, 1_000, bank="yen-bank")
    ledger.do(authorize(100, payment_id="q"))
    ledger.do(capture_and_keep("before", 40, payment_id="q"))
    return ledger


@dataclass
class Request:
    """A command under an id, and the same with one field changed: by the name of that field."""

    command: Command
    others: dict[str, Command]


LEG = leg("alice", "shop", 10)

# Every command that has an id, with every field of it that is compared, set, unset and set to another value.
REQUESTS = {
    "open": Request(
        open_account("new"),
        {
            "currency_code": open_account("new", currency_code="JPY"),
            "kind": open_account("new", kind=AccountKind.EXTERNAL),
            "credit_limit": open_account("new", limit=5),
            "credit_limit 0": open_account("new", limit=0),
            "metadata": open_account("new", metadata={"a": "1"}),
        },
    ),
    "open, all set": Request(
        open_account("new", limit=5, metadata={"a": "1", "b": "2"}),
        {
            "credit_limit": open_account("new", limit=6, metadata={"a": "1", "b": "2"}),
            "credit_limit unset": open_account("new", metadata={"a": "1", "b": "2"}),
            "metadata": open_account("new", limit=5, metadata={"a": "1", "b": "3"}),
            "metadata less": open_account("new", limit=5, metadata={"a": "1"}),
            "metadata more": open_account("new", limit=5, metadata={"a": "1", "b": "2", "c": ""}),
            "metadata unset": open_account("new", limit=5),
        },
    ),
    "authorize": Request(
        authorize(10),
        {
            "payer_account_id": authorize(10, payer="bob"),
            "payee_account_id": authorize(10, payee="bob"),
            "amount": authorize(11),
            "amount currency": authorize(10, currency_code="JPY"),
            "hold_for": authorize(10, hold_for=timedelta(days=8)),
            "hold_for default": authorize(10, hold_for=HOLD_FOR_DEFAULT),
            "reference": authorize(10, reference="x"),
            "metadata": authorize(10, metadata={"a": "1"}),
            "effective_at": authorize(10, effective_at=THEN),
            "effective_at recorded_at": authorize(10, effective_at=START),
        },
    ),
    "authorize, all set": Request(
        authorize(10, hold_for=HOLD_FOR_DEFAULT, reference="x", metadata={"a": "1"}, effective_at=THEN),
        {
            "hold_for": authorize(
                10, hold_for=HOLD_FOR_DEFAULT + INSTANT, reference="x", metadata={"a": "1"}, effective_at=THEN
            ),
            "hold_for unset": authorize(10, reference="x", metadata={"a": "1"}, effective_at=THEN),
            "reference": authorize(
                10, hold_for=HOLD_FOR_DEFAULT, reference="X", metadata={"a": "1"}, effective_at=THEN
            ),
            "reference unset": authorize(10, hold_for=HOLD_FOR_DEFAULT, metadata={"a": "1"}, effective_at=THEN),
            "metadata": authorize(10, hold_for=HOLD_FOR_DEFAULT, reference="x", metadata={"A": "1"}, effective_at=THEN),
            "metadata unset": authorize(10, hold_for=HOLD_FOR_DEFAULT, reference="x", effective_at=THEN),
            "effective_at": authorize(
                10, hold_for=HOLD_FOR_DEFAULT, reference="x", metadata={"a": "1"}, effective_at=THEN + INSTANT
            ),
            "effective_at unset": authorize(10, hold_for=HOLD_FOR_DEFAULT, reference="x", metadata={"a": "1"}),
        },
    ),
    "authorize, declined": Request(
        authorize(1_001),
        {
            "payer_account_id": authorize(1_001, payer="bob"),
            "payee_account_id": authorize(1_001, payee="bob"),
            "amount": authorize(1_000),
            "hold_for default": authorize(1_001, hold_for=HOLD_FOR_DEFAULT),
            "reference": authorize(1_001, reference="x"),
            "metadata": authorize(1_001, metadata={"a": "1"}),
            "effective_at recorded_at": authorize(1_001, effective_at=START),
        },
    ),
    "increment": Request(
        increment("i", 150, payment_id="q"),
        {
            "amount": increment("i", 151, payment_id="q"),
            "amount currency": increment("i", 150, payment_id="q", currency_code="JPY"),
        },
    ),
    "capture": Request(
        capture("c", payment_id="q"),
        {
            "amount all": capture("c", 60, payment_id="q"),
            "amount": capture("c", 10, payment_id="q"),
            "keep_remainder": capture_and_keep("c", payment_id="q"),
            "effective_at recorded_at": capture("c", payment_id="q", effective_at=START),
        },
    ),
    "capture, all set": Request(
        capture_and_keep("c", 10, payment_id="q", effective_at=THEN),
        {
            "amount": capture_and_keep("c", 11, payment_id="q", effective_at=THEN),
            "amount currency": capture_and_keep("c", 10, currency_code="JPY", payment_id="q", effective_at=THEN),
            "amount unset": capture_and_keep("c", payment_id="q", effective_at=THEN),
            "keep_remainder": capture("c", 10, payment_id="q", effective_at=THEN),
            "effective_at": capture_and_keep("c", 10, payment_id="q", effective_at=START),
            "effective_at unset": capture_and_keep("c", 10, payment_id="q"),
        },
    ),
    "refund": Request(
        refund("r", payment_id="q"),
        {
            "amount all": refund("r", 40, payment_id="q"),
            "amount": refund("r", 10, payment_id="q"),
            "effective_at recorded_at": refund("r", payment_id="q", effective_at=START),
        },
    ),
    "refund, all set": Request(
        refund("r", 10, payment_id="q", effective_at=THEN),
        {
            "amount": refund("r", 11, payment_id="q", effective_at=THEN),
            "amount currency": refund("r", 10, payment_id="q", currency_code="JPY", effective_at=THEN),
            "amount unset": refund("r", payment_id="q", effective_at=THEN),
            "effective_at": refund("r", 10, payment_id="q", effective_at=START),
            "effective_at unset": refund("r", 10, payment_id="q"),
        },
    ),
    "transfer": Request(
        transfer("t", LEG, leg("bob", "shop", 20)),
        {
            "legs amount": transfer("t", LEG, leg("bob", "shop", 21)),
            "legs currency": transfer("t", LEG, leg("bob", "shop", 20, "JPY")),
            "legs payer": transfer("t", LEG, leg("alice", "shop", 20)),
            "legs payee": transfer("t", LEG, leg("bob", "alice", 20)),
            "legs order": transfer("t", leg("bob", "shop", 20), LEG),
            "legs less": transfer("t", LEG),
            "legs more": transfer("t", LEG, leg("bob", "shop", 20), LEG),
            "reference": transfer("t", LEG, leg("bob", "shop", 20), reference="x"),
            "metadata": transfer("t", LEG, leg("bob", "shop", 20), metadata={"a": "1"}),
            "effective_at recorded_at": transfer("t", LEG, leg("bob", "shop", 20), effective_at=START),
        },
    ),
    "transfer, all set": Request(
        transfer("t", LEG, reference="x", metadata={"a": "1"}, effective_at=THEN),
        {
            "legs": transfer("t", leg("alice", "shop", 11), reference="x", metadata={"a": "1"}, effective_at=THEN),
            "reference": transfer("t", LEG, reference="y", metadata={"a": "1"}, effective_at=THEN),
            "reference unset": transfer("t", LEG, metadata={"a": "1"}, effective_at=THEN),
            "metadata": transfer("t", LEG, reference="x", metadata={"a": "2"}, effective_at=THEN),
            "metadata unset": transfer("t", LEG, reference="x", effective_at=THEN),
            "effective_at": transfer("t", LEG, reference="x", metadata={"a": "1"}, effective_at=START),
            "effective_at unset": transfer("t", LEG, reference="x", metadata={"a": "1"}),
        },
    ),
    "transfer, declined": Request(
        transfer("t", leg("alice", "shop", 1_001)),
        {
            "legs": transfer("t", leg("alice", "shop", 1_000)),
            "reference": transfer("t", leg("alice", "shop", 1_001), reference="x"),
            "metadata": transfer("t", leg("alice", "shop", 1_001), metadata={"a": "1"}),
            "effective_at recorded_at": transfer("t", leg("alice", "shop", 1_001), effective_at=START),
        },
    ),
}
VOID = void("q", reason="why")

REPLAYED = {name: request.command for name, request in REQUESTS.items()} | {"void": VOID}

ID_FIELDS = {
    "OpenAccount": "account_id",
    "AuthorizePayment": "payment_id",
    "IncrementAuthorization": "increment_id",
    "CapturePayment": "capture_id",
    "RefundPayment": "refund_id",
    "PostTransfer": "transfer_id",
}


def same(first: Outcome, again: Outcome) -> bool:
    """Whether the second is the first one's replay."""
    return (
        (again.replayed, first.replayed) == (True, False)
        and (again.position, again.recorded_at) == (first.position, first.recorded_at)
        and (as_seen(again.thing), again.decline) == (as_seen(first.thing), first.decline)
    )


# --- the same id with the same fields --------------------------------------------------------------------------------


@pytest.mark.parametrize("command", REPLAYED.values(), ids=REPLAYED)
def test_the_same_again_is_the_first_outcome_again(command: Command) -> None:
    """Nothing is recorded; the thing, the position and the time are the first one's, and `replayed` says so."""
    ledger = a_ledger()
    first = ledger.do(command)
    head = ledger.head
    ledger.wait(days=1)
    again = ledger.do(command)
    assert same(first, again)
    assert (again.position, again.recorded_at, ledger.head) == (head, START, head)


@pytest.mark.parametrize("command", REPLAYED.values(), ids=REPLAYED)
def test_a_replay_shows_the_thing_as_it_was_right_after_the_first_time(command: Command) -> None:
    """Whatever happened since to accounts and payments: captures, refunds, a void, expiry, limits, freezes, closing."""
    ledger = a_ledger()
    first = ledger.do(command)
    seen = as_seen(first.thing)
    ledger.wait(days=1)
    for later in (
        *(increment(f"more:{payment_id}", 500, payment_id=payment_id) for payment_id in "pq"),
        *(capture_and_keep(f"one:{payment_id}", 1, payment_id=payment_id) for payment_id in "pq"),
        *(refund(f"one-back:{payment_id}", 1, payment_id=payment_id) for payment_id in "pq"),
        set_limit("new", 77),
        set_limit("alice", 77),
        authorize(1, payment_id="another"),
        void("p"),
        void("q"),
        freeze("new"),
        freeze("alice"),
        unfreeze("alice"),
        close("new"),
        freeze("shop"),
    ):
        ledger.answer(later)
    assert ledger.head > first.position
    again = ledger.do(command)
    assert same(first, again)
    assert as_seen(again.thing) == seen
    ledger.wait(days=365)
    assert same(first, ledger.do(command))


def test_a_replay_of_an_early_step_shows_none_of_the_later_ones() -> None:
    """Step by step through one payment: each replay answers with its own state, amounts and version."""
    ledger = Ledger(alice=1_000, shop=0)
    steps = [
        (authorize(100), PaymentState.AUTHORIZED, 1, 100, 0, 0),
        (increment("i", 120), PaymentState.AUTHORIZED, 2, 120, 0, 0),
        (capture_and_keep("c", 50), PaymentState.PARTIALLY_CAPTURED, 3, 120, 50, 0),
        (refund("r", 20), PaymentState.PARTIALLY_CAPTURED, 4, 120, 50, 20),
        (capture_and_keep("d", 30), PaymentState.PARTIALLY_CAPTURED, 5, 120, 80, 20),
        (void(), PaymentState.CAPTURED, 6, 120, 80, 20),
        (refund("s"), PaymentState.CAPTURED, 7, 120, 80, 80),
    ]
    firsts = []
    for command, *_ in steps:
        ledger.wait(hours=1)
        firsts.append(ledger.do(command))
    for (command, state, version, authorized, captured, refunded), first in zip(steps, firsts, strict=True):
        again = ledger.do(command)
        assert same(first, again)
        payment = again.thing
        assert (payment.state, payment.version) == (state, version)
        amounts = payment.amounts
        assert (amounts.authorized, amounts.captured, amounts.refunded) == (authorized, captured, refunded)


def test_a_payment_as_it_was_is_what_its_events_up_to_then_fold_to() -> None:
    """All that it is, whichever of its events it is asked for."""
    ledger = Ledger(alice=1_000, shop=0)
    for command in (authorize(100), increment("i", 120), capture_and_keep("c", 50), refund("r", 20), void()):
        ledger.wait(hours=1)
        ledger.do(command)
    payment = ledger.payment()
    folded = payment.at(payment.history[0])
    for event in payment.history:
        if event.originator_version > 1:
            event.mutate(folded)
        past = payment.as_after(event)
        assert vars(past) == vars(folded)


def test_the_replay_of_opening_shows_the_account_as_it_was_opened() -> None:
    """At zero, open, with its first limit and version 1, though it has money and is frozen by now."""
    ledger = Ledger()
    first = ledger.do(open_account("alice", limit=5))
    ledger.fund("alice", 100)
    ledger.do(set_limit("alice", 9))
    ledger.do(freeze("alice"))
    account = ledger.do(open_account("alice", limit=5)).thing
    assert isinstance(account, Account)
    assert (account.version, account.state) == (1, first.thing.state)
    assert (account.state.posted, account.state.credit_limit, account.state.freeze_scope) == (0, 5, None)


@pytest.mark.parametrize("command", REPLAYED.values(), ids=REPLAYED)
def test_validate_only_and_preconditions_are_not_compared(command: Command) -> None:
    """They say how to ask, not what: a retry with others is a replay, and one that would fail now does not."""
    ledger = a_ledger()
    first = ledger.do(command)
    for asked in (
        {"validate_only": True},
        {"preconditions": at_version(alice=99)},
        {"preconditions": at_version(nobody=1)},
    ):
        again = type(command)(**dict(command) | asked)
        assert same(first, ledger.do(again))


@pytest.mark.parametrize("command", REPLAYED.values(), ids=REPLAYED)
def test_a_command_that_asked_with_a_precondition_is_replayed_without_it(command: Command) -> None:
    """Also the other way round: the retry may leave the precondition out."""
    ledger = a_ledger()
    version = ledger.account("alice").version
    first = ledger.do(type(command)(**dict(command) | {"preconditions": at_version(alice=version)}))
    assert same(first, ledger.do(command))


def test_metadata_in_another_order_is_the_same_metadata() -> None:
    """A map has no order."""
    ledger = a_ledger()
    first = ledger.do(authorize(10, metadata={"a": "1", "b": "2"}))
    assert same(first, ledger.do(authorize(10, metadata={"b": "2", "a": "1"})))


@pytest.mark.parametrize("reason", ["", "another", "why"])
def test_a_second_void_is_a_replay_whatever_its_reason(reason: str) -> None:
    """The first reason stays."""
    ledger = a_ledger()
    first = ledger.do(VOID)
    again = ledger.do(void("q", reason=reason))
    assert same(first, again)
    assert again.thing.history[-1].reason == "why"


# --- the same id with another field ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "other", "field"),
    [
        pytest.param(request.command, other, changed.split()[0], id=f"{name}: {changed}")
        for name, request in REQUESTS.items()
        for changed, other in request.others.items()
    ],
)
def test_the_same_id_with_another_field_is_refused_and_the_field_is_named(
    command: Command, other: Command, field: str
) -> None:
    """Compared is every field as the client set it: unset is not the same as its default written out."""
    ledger = a_ledger()
    first = ledger.do(command)
    ledger.wait(days=1)
    refusal = ledger.refusal(other)
    assert isinstance(refusal, IdAlreadyUsed)
    assert refusal.details["field"] == field
    id_field = ID_FIELDS[type(command).__name__]
    assert (refusal.details["id_field"], refusal.details["id"]) == (id_field, getattr(command, id_field))
    assert same(first, ledger.do(command))


OTHERS_REQUESTS = {name: request.command for name, request in REQUESTS.items()} | {
    f"{name}: {changed}": other for name, request in REQUESTS.items() for changed, other in request.others.items()
}


@pytest.mark.parametrize("name", OTHERS_REQUESTS)
def test_the_id_of_another_caller_is_refused_for_that_and_nothing_else_is_told(name: str) -> None:
    """Be the request the same or another: who has not asked first learns neither the outcome nor what differs."""
    ledger = a_ledger()
    first = ledger.do(REQUESTS[name.partition(": ")[0]].command, actor="mallory")
    asked = OTHERS_REQUESTS[name]
    refusal = ledger.refusal(asked, actor="alice-app")
    assert isinstance(refusal, IdAlreadyUsed)
    id_field = ID_FIELDS[type(asked).__name__]
    assert refusal.details == {"id_field": id_field, "id": getattr(asked, id_field), "field": "actor"}
    assert same(first, ledger.do(REQUESTS[name.partition(": ")[0]].command, actor="mallory"))


def test_a_change_of_another_kind_by_another_caller_is_refused_for_the_caller() -> None:
    """That the id is one of a capture and not of a refund is the other caller's business, too."""
    ledger = a_ledger()
    ledger.do(capture_and_keep("x", 1, payment_id="q"), actor="mallory")
    assert ledger.refusal(refund("x", 1, payment_id="q"), actor="alice-app").details["field"] == "actor"
    assert ledger.refusal(refund("x", 1, payment_id="q"), actor="mallory").details["field"] == "refund_id"


def test_every_field_of_every_command_with_an_id_is_compared_here() -> None:
    """The table above leaves no field out: all but the ids that find the thing, and how it is asked."""
    not_compared = {"validate_only", "preconditions", "account_id", "payment_id", "transfer_id"}
    not_compared |= {"increment_id", "capture_id", "refund_id"}
    changed: dict[type[Command], set[str]] = {}
    for request in REQUESTS.values():
        fields = changed.setdefault(type(request.command), set())
        fields |= {each.split()[0] for each in request.others}
    for command_class, fields in changed.items():
        assert fields == set(command_class.model_fields) - not_compared
    assert {command_class.__name__ for command_class in changed} == set(ID_FIELDS)


def test_a_used_id_is_found_before_anything_else_is_looked_at() -> None:
    """A request that differs is refused for its id also when it would be declined or refused if the id were new."""
    ledger = a_ledger()
    ledger.do(authorize(10))
    ledger.expect(
        (authorize(10**18), "refused ID_ALREADY_USED"),
        (authorize(10, payer="nobody"), "refused ID_ALREADY_USED"),
        (authorize(10, currency_code="JPY"), "refused ID_ALREADY_USED"),
        (authorize(10), "replayed AUTHORIZED"),
    )


# --- one id space for increments, captures and refunds ---------------------------------------------------------------

CHANGES = {
    "increment_id": increment("x", 150, payment_id="q"),
    "capture_id": capture_and_keep("x", 10, payment_id="q"),
    "refund_id": refund("x", 10, payment_id="q"),
}


@pytest.mark.parametrize("first", CHANGES)
@pytest.mark.parametrize("second", CHANGES)
def test_increments_captures_and_refunds_of_a_payment_share_one_id_space(first: str, second: str) -> None:
    """An id that one of them has used is used for the others too."""
    ledger = a_ledger()
    ledger.do(CHANGES[first])
    if first == second:
        ledger.expect((CHANGES[second], "replayed PARTIALLY_CAPTURED"))
        return
    refusal = ledger.refusal(CHANGES[second])
    assert isinstance(refusal, IdAlreadyUsed)
    assert (refusal.details["id_field"], refusal.details["id"]) == (second, "x")
    assert refusal.details["field"]


def test_other_payments_may_use_the_same_id() -> None:
    """The id space is the payment's own; and accounts, payments and transfers don't share one either."""
    Ledger(x=1_000, y=1_000).expect(
        (authorize(100, payment_id="x", payer="x", payee="y"), "AUTHORIZED"),
        (authorize(100, payment_id="y", payer="y", payee="x"), "AUTHORIZED"),
        (transfer("x", leg("x", "y", 1)), "POSTED"),
        (capture_and_keep("x", 10, payment_id="x"), "PARTIALLY_CAPTURED"),
        (capture_and_keep("x", 10, payment_id="y"), "PARTIALLY_CAPTURED"),
        (increment("y", 150, payment_id="x"), "PARTIALLY_CAPTURED"),
        (refund("y", 5, payment_id="y"), "PARTIALLY_CAPTURED"),
    )


# --- declines and refusals -------------------------------------------------------------------------------------------


def test_a_declined_payment_stays_declined() -> None:
    """Money that arrives later helps a new id only."""
    ledger = Ledger(alice=0, shop=0)
    first = ledger.do(authorize(100))
    ledger.fund("alice", 100)
    again = ledger.do(authorize(100))
    assert same(first, again)
    assert again.decline is not None
    ledger.expect(
        (authorize(100), "replayed DECLINED INSUFFICIENT_FUNDS"),
        (authorize(99), "refused ID_ALREADY_USED"),
        (authorize(100, payment_id="new"), "AUTHORIZED"),
    )


def test_a_declined_transfer_stays_declined() -> None:
    """With its leg, its account and its reason, though all of them could pay by now."""
    ledger = Ledger(alice=1, bob=0)
    first = ledger.do(transfer("t", leg("alice", "bob", 1), leg("alice", "bob", 1)))
    ledger.fund("alice", 100)
    again = ledger.do(transfer("t", leg("alice", "bob", 1), leg("alice", "bob", 1)))
    assert same(first, again)
    assert again.decline.declined_leg == 1
    ledger.expect(
        (transfer("t", leg("alice", "bob", 1)), "refused ID_ALREADY_USED"),
        (transfer("u", leg("alice", "bob", 1), leg("alice", "bob", 1)), "POSTED"),
    )


@pytest.mark.parametrize(
    ("refused", "code", "help_", "same_id"),
    [
        (authorize(1, payee="new"), "ACCOUNT_NOT_FOUND", open_account("new"), authorize(2)),
        (authorize(1, currency_code="JPY"), "CURRENCY_MISMATCH", None, authorize(1)),
        (authorize(1, preconditions=at_version(alice=99)), "VERSION_MISMATCH", None, authorize(2)),
        (transfer("t", leg("alice", "new", 1)), "ACCOUNT_NOT_FOUND", None, transfer("t", leg("alice", "bob", 1))),
        (capture("c", 61, payment_id="q"), "AMOUNT_EXCEEDS_CAPTURABLE", None, capture("c", 60, payment_id="q")),
        (capture("c", 61, payment_id="q"), "AMOUNT_EXCEEDS_CAPTURABLE", None, refund("c", 1, payment_id="q")),
        (increment("i", 100, payment_id="q"), "AMOUNT_NOT_GREATER", None, increment("i", 101, payment_id="q")),
        (refund("r", 41, payment_id="q"), "AMOUNT_EXCEEDS_REFUNDABLE", None, refund("r", 40, payment_id="q")),
        (capture("c"), "PAYMENT_NOT_FOUND", authorize(1), capture("c", 1)),
    ],
)
def test_a_refusal_uses_no_id_up(refused: Command, code: str, help_: Command | None, same_id: Command) -> None:
    """Nothing was recorded, so another request may have the id."""
    ledger = a_ledger()
    ledger.expect((refused, f"refused {code}"))
    if help_ is not None:
        ledger.do(help_)
    assert not ledger.do(same_id).replayed


def test_amounts_of_another_currency_differ_though_the_number_is_the_same() -> None:
    """Compared is the money, not its number."""
    assert eur(10) != Money("JPY", 10)
    ledger = a_ledger()
    ledger.do(authorize(10, payer="yumi", payee="zoe", currency_code="JPY"))
    refusal = ledger.refusal(authorize(10, payer="yumi", payee="zoe"))
    assert refusal.details["field"] == "amount"
