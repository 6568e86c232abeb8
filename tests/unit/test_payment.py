"""Payments: authorized, incremented, captured, voided, expired and refunded, and where the money is in between."""

from datetime import timedelta

import pytest
from domain import (
    INSTANT,
    MOST,
    START,
    Ledger,
    Line,
    amounts,
    authorize,
    capture,
    capture_and_keep,
    close,
    eur,
    expire,
    freeze,
    increment,
    leg,
    names,
    open_account,
    refund,
    set_limit,
    transfer,
    unfreeze,
    void,
)

from ledger.domain.commands import Command
from ledger.domain.errors import (
    AmountExceedsCapturable,
    AmountExceedsRefundable,
    AmountNotGreater,
    CurrencyMismatch,
    EffectiveInFuture,
    InsufficientFunds,
    PaymentNotFound,
    TooManyChanges,
)
from ledger.domain.events import (
    AccountKind,
    AuthorizationExpired,
    AuthorizationIncremented,
    Cause,
    CauseKind,
    FundsCredited,
    FundsDebited,
    FundsReleased,
    FundsReserved,
    PaymentAmounts,
    PaymentCaptured,
    PaymentRefunded,
    PaymentVoided,
)
from ledger.domain.payment_state import PaymentState, payment_state

HOLD = timedelta(days=7)


@pytest.fixture
def ledger() -> Ledger:
    """Alice, who has 1,000; the shop, which has nothing."""
    return Ledger(alice=1_000, shop=0)


@pytest.fixture
def authorized(ledger: Ledger) -> Ledger:
    """The same, with an authorization of 100."""
    ledger.do(authorize(100))
    return ledger


# --- the state, a function of the amounts ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "state"),
    [
        (amounts(), "DECLINED"),
        (amounts(authorized=9, capturable=9), "AUTHORIZED"),
        (amounts(authorized=9, capturable=5, captured=4), "PARTIALLY_CAPTURED"),
        (amounts(authorized=9, capturable=5, captured=4, refunded=4), "PARTIALLY_CAPTURED"),
        (amounts(authorized=9, captured=9), "CAPTURED"),
        (amounts(authorized=9, captured=9, refunded=9), "CAPTURED"),
        (amounts(authorized=9, captured=4, released=5), "CAPTURED"),
        (amounts(authorized=9, captured=4, expired=5), "CAPTURED"),
        (amounts(authorized=9, released=9), "VOIDED"),
        (amounts(authorized=9, expired=9), "EXPIRED"),
    ],
)
def test_the_state_is_read_off_the_amounts(where: PaymentAmounts, state: str) -> None:
    """Amounts are the truth: nothing else decides the state, and refunds never change it."""
    assert payment_state(where) is PaymentState(state)


@pytest.mark.parametrize(
    ("lines", "where", "alice", "shop"),
    [
        ([], amounts(authorized=100, capturable=100), (1_000, 100), 0),
        ([(capture("c"), "CAPTURED")], amounts(authorized=100, captured=100), (900, 0), 100),
        ([(capture("c", 100), "CAPTURED")], amounts(authorized=100, captured=100), (900, 0), 100),
        ([(capture("c", 40), "CAPTURED")], amounts(authorized=100, captured=40, released=60), (960, 0), 40),
        (
            [(capture_and_keep("c", 40), "PARTIALLY_CAPTURED")],
            amounts(authorized=100, captured=40, capturable=60),
            (960, 60),
            40,
        ),
        ([(capture_and_keep("c", 100), "CAPTURED")], amounts(authorized=100, captured=100), (900, 0), 100),
        ([(capture_and_keep("c"), "CAPTURED")], amounts(authorized=100, captured=100), (900, 0), 100),
        (
            [
                (capture_and_keep("c", 1), "PARTIALLY_CAPTURED"),
                (capture_and_keep("d", 98), "PARTIALLY_CAPTURED"),
                (capture_and_keep("e", 1), "CAPTURED"),
            ],
            amounts(authorized=100, captured=100),
            (900, 0),
            100,
        ),
        (
            [(capture_and_keep("c", 40), "PARTIALLY_CAPTURED"), (capture("d"), "CAPTURED")],
            amounts(authorized=100, captured=100),
            (900, 0),
            100,
        ),
        (
            [(capture_and_keep("c", 40), "PARTIALLY_CAPTURED"), (capture("d", 10), "CAPTURED")],
            amounts(authorized=100, captured=50, released=50),
            (950, 0),
            50,
        ),
        ([(void(), "VOIDED")], amounts(authorized=100, released=100), (1_000, 0), 0),
        (
            [(capture_and_keep("c", 40), "PARTIALLY_CAPTURED"), (void(), "CAPTURED")],
            amounts(authorized=100, captured=40, released=60),
            (960, 0),
            40,
        ),
        (
            [(increment("i", 150), "AUTHORIZED"), (capture("c"), "CAPTURED")],
            amounts(authorized=150, captured=150),
            (850, 0),
            150,
        ),
        (
            [(capture_and_keep("c", 40), "PARTIALLY_CAPTURED"), (increment("i", 150), "PARTIALLY_CAPTURED")],
            amounts(authorized=150, captured=40, capturable=110),
            (960, 110),
            40,
        ),
        (
            [(increment("i", 101), "AUTHORIZED"), (increment("j", 103), "AUTHORIZED")],
            amounts(authorized=103, capturable=103),
            (1_000, 103),
            0,
        ),
        (
            [(capture("c"), "CAPTURED"), (refund("r"), "CAPTURED")],
            amounts(authorized=100, captured=100, refunded=100),
            (1_000, 0),
            0,
        ),
        (
            [
                (capture("c"), "CAPTURED"),
                (refund("r", 1), "CAPTURED"),
                (refund("s", 60), "CAPTURED"),
                (refund("t"), "CAPTURED"),
            ],
            amounts(authorized=100, captured=100, refunded=100),
            (1_000, 0),
            0,
        ),
        (
            [
                (capture_and_keep("c", 40), "PARTIALLY_CAPTURED"),
                (refund("r", 30), "PARTIALLY_CAPTURED"),
                (capture("d", 50), "CAPTURED"),
                (refund("s"), "CAPTURED"),
            ],
            amounts(authorized=100, captured=90, released=10, refunded=90),
            (1_000, 0),
            0,
        ),
    ],
)
def test_a_payment_through_its_life(
    authorized: Ledger, lines: list[Line], where: PaymentAmounts, alice: tuple[int, int], shop: int
) -> None:
    """An authorization of 100 by Alice, who has 1,000, and where its money is in the end."""
    authorized.expect(*lines)
    assert authorized.payment().amounts == where
    assert (authorized.balance("alice"), authorized.balance("shop")) == (alice, (shop, 0))


# --- capture ---------------------------------------------------------------------------------------------------------


def test_a_full_capture_debits_what_was_reserved_and_credits_the_payee(authorized: Ledger) -> None:
    """Three events: the capture as asked (no amount), the payer's debit of reserved money, the payee's credit."""
    captured, debited, credited = authorized.emitted(capture("c"))
    assert isinstance(captured, PaymentCaptured)
    assert (captured.stream, captured.originator_version, captured.capture_id) == ("payment/p", 2, "c")
    assert (captured.amount, captured.keep_remainder, captured.amount_captured) == (None, False, 100)
    assert captured.before == amounts(authorized=100, capturable=100)
    assert captured.after == amounts(authorized=100, captured=100)

    cause = Cause(kind=CauseKind.CAPTURE, payment_id="p", capture_id="c")
    assert isinstance(debited, FundsDebited)
    assert (debited.stream, debited.counterparty, debited.amount) == ("account/alice", "shop", 100)
    assert (debited.cause, debited.from_reserved) == (cause, True)
    assert (debited.after.posted, debited.after.reserved) == (900, 0)
    assert isinstance(credited, FundsCredited)
    assert (credited.stream, credited.counterparty, credited.amount) == ("account/shop", "alice", 100)
    assert (credited.cause, credited.after.posted) == (cause, 100)


def test_a_partial_capture_releases_the_rest_in_the_same_command(authorized: Ledger) -> None:
    """A fourth event gives back to the payer what the capture left, with the capture as its cause."""
    captured, debited, _, released = authorized.emitted(capture("c", 40))
    assert isinstance(captured, PaymentCaptured)
    assert (captured.amount, captured.amount_captured) == (eur(40), 40)
    assert isinstance(released, FundsReleased)
    assert (released.stream, released.amount) == ("account/alice", 60)
    assert released.cause == Cause(kind=CauseKind.CAPTURE, payment_id="p", capture_id="c")
    assert (released.after.posted, released.after.reserved) == (960, 0)
    assert released.command_position == debited.command_position == captured.command_position


@pytest.mark.parametrize(
    "command", [capture("c", 100), capture_and_keep("c"), capture_and_keep("c", 40), capture_and_keep("c", 100)]
)
def test_nothing_is_released_by_a_capture_that_leaves_or_keeps_all(authorized: Ledger, command: Command) -> None:
    """keep_remainder leaves the rest capturable, and a rest of zero is no event."""
    assert names(authorized.emitted(command)) == ["PaymentCaptured", "FundsDebited", "FundsCredited"]


@pytest.mark.parametrize(
    ("lines", "capturable"),
    [
        ([(capture("c", 101), "refused AMOUNT_EXCEEDS_CAPTURABLE")], 100),
        ([(capture_and_keep("c", MOST), "refused AMOUNT_EXCEEDS_CAPTURABLE")], 100),
        (
            [
                (capture_and_keep("c", 60), "PARTIALLY_CAPTURED"),
                (capture("d", 60), "refused AMOUNT_EXCEEDS_CAPTURABLE"),
                (capture("d", 41), "refused AMOUNT_EXCEEDS_CAPTURABLE"),
            ],
            40,
        ),
        ([(capture("c", 60), "CAPTURED"), (capture("d", 40), "refused PAYMENT_CAPTURED")], 0),
        ([(capture("c"), "CAPTURED"), (capture("d"), "refused PAYMENT_CAPTURED")], 0),
        ([(capture_and_keep("c"), "CAPTURED"), (capture("d", 1), "refused PAYMENT_CAPTURED")], 0),
        ([(void(), "VOIDED"), (capture("c"), "refused PAYMENT_VOIDED")], 0),
        (
            [
                (capture_and_keep("c", 60), "PARTIALLY_CAPTURED"),
                (void(), "CAPTURED"),
                (capture("d"), "refused PAYMENT_VOIDED"),
            ],
            0,
        ),
    ],
)
def test_never_more_is_captured_than_is_capturable(authorized: Ledger, lines: list[Line], capturable: int) -> None:
    """Of two captures for the same money one wins; the refusal of the other says why nothing is left, if nothing is."""
    authorized.expect(*lines)
    assert authorized.payment().amounts.capturable == capturable == authorized.balance("alice")[1]


def test_a_capture_of_too_much_is_told_what_is_capturable(authorized: Ledger) -> None:
    """The refusal carries both amounts."""
    authorized.do(capture_and_keep("c", 60))
    refusal = authorized.refusal(capture("d", 41))
    assert isinstance(refusal, AmountExceedsCapturable)
    assert (refusal.details["capturable"], refusal.details["amount"]) == (40, 41)


def test_a_capture_never_takes_the_payee_beyond_the_bound() -> None:
    """It is refused, not declined, and can be made when there is room; the money stays reserved."""
    ledger = Ledger(alice=100, shop=0)
    ledger.do(open_account("mint", kind=AccountKind.EXTERNAL))
    ledger.do(authorize(100))
    ledger.fund("shop", MOST - 99, bank="mint")
    ledger.expect(
        (capture("c"), "refused BALANCE_LIMIT"),
        (capture("c", 100), "refused BALANCE_LIMIT"),
        (capture_and_keep("c", 99), "PARTIALLY_CAPTURED"),
        (capture("d"), "refused BALANCE_LIMIT"),
        (transfer("t", leg("shop", "mint", 1)), "POSTED"),
        (capture("d"), "CAPTURED"),
    )
    assert ledger.balance("shop") == (MOST, 0)


def test_what_was_promised_is_captured_whatever_became_of_the_accounts(authorized: Ledger) -> None:
    """Neither a freeze of both accounts nor a payer without another unit stops a capture."""
    authorized.expect(
        (transfer("t", leg("alice", "bank", 900)), "POSTED"),
        (freeze("alice"), "FROZEN ALL"),
        (freeze("shop"), "FROZEN ALL"),
        (capture("c"), "CAPTURED"),
    )
    assert authorized.balance("alice") == (0, 0)


# --- increment -------------------------------------------------------------------------------------------------------


def test_an_increment_reserves_the_difference_and_leaves_the_time(authorized: Ledger) -> None:
    """The amount asked is the new total; `expires_at` stays."""
    expires_at = authorized.payment().expires_at
    authorized.wait(days=3)
    incremented, reserved = authorized.emitted(increment("i", 150))
    assert isinstance(incremented, AuthorizationIncremented)
    assert (incremented.increment_id, incremented.amount) == ("i", eur(150))
    assert incremented.before == amounts(authorized=100, capturable=100)
    assert incremented.after == amounts(authorized=150, capturable=150)
    assert isinstance(reserved, FundsReserved)
    assert (reserved.stream, reserved.amount, reserved.after.reserved) == ("account/alice", 50, 150)
    assert reserved.cause == Cause(kind=CauseKind.INCREMENT, payment_id="p", increment_id="i")
    assert reserved.effective_at == authorized.now
    assert authorized.payment().expires_at == expires_at == START + HOLD


@pytest.mark.parametrize(
    ("before", "total", "outcome"),
    [
        ([], 101, "AUTHORIZED"),
        ([], 1_000, "AUTHORIZED"),
        ([], 1_001, "refused INSUFFICIENT_FUNDS"),
        ([], MOST, "refused INSUFFICIENT_FUNDS"),
        ([], 100, "refused AMOUNT_NOT_GREATER"),
        ([], 1, "refused AMOUNT_NOT_GREATER"),
        ([set_limit("alice", 50)], 1_050, "AUTHORIZED"),
        ([set_limit("alice", 50)], 1_051, "refused INSUFFICIENT_FUNDS"),
        ([set_limit("alice", MOST)], MOST, "AUTHORIZED"),
        ([increment("h", 200)], 200, "refused AMOUNT_NOT_GREATER"),
        ([increment("h", 200)], 150, "refused AMOUNT_NOT_GREATER"),
        ([capture_and_keep("c", 60)], 100, "refused AMOUNT_NOT_GREATER"),
        ([capture_and_keep("c", 60)], 101, "PARTIALLY_CAPTURED"),
        ([capture_and_keep("c", 60)], 1_000, "PARTIALLY_CAPTURED"),
        ([capture_and_keep("c", 60)], 1_001, "refused INSUFFICIENT_FUNDS"),
        ([capture("c", 60)], 200, "refused PAYMENT_CAPTURED"),
        ([capture("c")], 200, "refused PAYMENT_CAPTURED"),
        ([void()], 200, "refused PAYMENT_VOIDED"),
        ([capture_and_keep("c", 60), void()], 200, "refused PAYMENT_VOIDED"),
        ([set_limit("alice", MOST), authorize(MOST - 200, payment_id="q")], 200, "AUTHORIZED"),
        ([set_limit("alice", MOST), authorize(MOST - 200, payment_id="q")], 201, "refused BALANCE_LIMIT"),
    ],
)
def test_an_increment_names_a_greater_total_and_needs_the_funds(
    authorized: Ledger, before: list[Command], total: int, outcome: str
) -> None:
    """Strictly greater than what is authorized; only the difference must be there; if refused, all stays as it was."""
    for command in before:
        authorized.do(command)
    earlier = authorized.payment().amounts
    authorized.expect((increment("i", total), outcome))
    if outcome.startswith("refused"):
        assert authorized.payment().amounts == earlier
    else:
        assert authorized.payment().amounts.authorized == total


def test_an_increment_that_is_refused_says_what_is_there(authorized: Ledger) -> None:
    """The refusal for funds names what is available; the one for the total names what is authorized."""
    short = authorized.refusal(increment("i", 1_001))
    assert isinstance(short, InsufficientFunds)
    assert (short.details["account_id"], short.details["available"], short.details["amount"]) == ("alice", 900, 901)
    low = authorized.refusal(increment("i", 100))
    assert isinstance(low, AmountNotGreater)
    assert low.details["authorized"] == 100


# --- void ------------------------------------------------------------------------------------------------------------


def test_a_void_releases_all_that_is_not_captured(authorized: Ledger) -> None:
    """PaymentVoided with its reason, and FundsReleased on the payer; what was captured stays with the payee."""
    authorized.do(capture_and_keep("c", 40))
    voided, released = authorized.emitted(void(reason="out of stock"))
    assert isinstance(voided, PaymentVoided)
    assert (voided.reason, voided.before.capturable) == ("out of stock", 60)
    assert voided.after == amounts(authorized=100, captured=40, released=60)
    assert isinstance(released, FundsReleased)
    assert (released.stream, released.amount) == ("account/alice", 60)
    assert released.cause == Cause(kind=CauseKind.VOID, payment_id="p")
    assert (authorized.balance("alice"), authorized.balance("shop")) == ((960, 0), (40, 0))


@pytest.mark.parametrize(
    ("before", "outcome"),
    [
        ([], "VOIDED"),
        ([increment("i", 150)], "VOIDED"),
        ([capture_and_keep("c", 40)], "CAPTURED"),
        ([capture_and_keep("c", 40), refund("r")], "CAPTURED"),
        ([capture("c", 40)], "refused PAYMENT_CAPTURED"),
        ([capture("c")], "refused PAYMENT_CAPTURED"),
        ([capture("c"), refund("r")], "refused PAYMENT_CAPTURED"),
        ([void()], "replayed VOIDED"),
        ([void(reason="another")], "replayed VOIDED"),
        ([capture_and_keep("c", 40), void()], "replayed CAPTURED"),
        ([close("shop")], "VOIDED"),
        ([freeze("alice"), freeze("shop")], "VOIDED"),
    ],
)
def test_a_void_needs_something_to_release(authorized: Ledger, before: list[Command], outcome: str) -> None:
    """A second void is a replay; after the last capture a void is refused; no freeze and no closed payee stops one."""
    for command in before:
        authorized.do(command)
    authorized.expect((void(), outcome))
    assert authorized.balance("alice")[1] == 0


# --- refund ----------------------------------------------------------------------------------------------------------


def test_a_refund_takes_from_the_payee_and_gives_to_the_payer(authorized: Ledger) -> None:
    """Three events: the refund as asked, the payee's debit (of money that was not reserved), the payer's credit."""
    authorized.do(capture("c"))
    refunded, debited, credited = authorized.emitted(refund("r", 30))
    assert isinstance(refunded, PaymentRefunded)
    assert (refunded.refund_id, refunded.amount, refunded.amount_refunded) == ("r", eur(30), 30)
    assert refunded.before == amounts(authorized=100, captured=100)
    assert refunded.after == amounts(authorized=100, captured=100, refunded=30)
    cause = Cause(kind=CauseKind.REFUND, payment_id="p", refund_id="r")
    assert isinstance(debited, FundsDebited)
    assert (debited.stream, debited.counterparty, debited.amount) == ("account/shop", "alice", 30)
    assert (debited.cause, debited.from_reserved, debited.after.posted) == (cause, False, 70)
    assert isinstance(credited, FundsCredited)
    assert (credited.stream, credited.counterparty, credited.amount) == ("account/alice", "shop", 30)
    assert (credited.cause, credited.after.posted) == (cause, 930)


@pytest.mark.parametrize(
    ("before", "amount", "outcome"),
    [
        ([], None, "refused NOTHING_TO_REFUND"),
        ([], 1, "refused NOTHING_TO_REFUND"),
        ([void()], 1, "refused NOTHING_TO_REFUND"),
        ([capture("c")], 100, "CAPTURED"),
        ([capture("c")], 101, "refused AMOUNT_EXCEEDS_REFUNDABLE"),
        ([capture("c")], MOST, "refused AMOUNT_EXCEEDS_REFUNDABLE"),
        ([capture("c"), refund("r", 60)], 40, "CAPTURED"),
        ([capture("c"), refund("r", 60)], 41, "refused AMOUNT_EXCEEDS_REFUNDABLE"),
        ([capture("c"), refund("r")], 1, "refused NOTHING_TO_REFUND"),
        ([capture("c"), refund("r")], None, "refused NOTHING_TO_REFUND"),
        ([capture("c", 40)], 40, "CAPTURED"),
        ([capture("c", 40)], 41, "refused AMOUNT_EXCEEDS_REFUNDABLE"),
        ([capture_and_keep("c", 40)], None, "PARTIALLY_CAPTURED"),
        ([capture_and_keep("c", 40)], 41, "refused AMOUNT_EXCEEDS_REFUNDABLE"),
        ([capture_and_keep("c", 40), void()], None, "CAPTURED"),
        ([capture_and_keep("c", 40), refund("r"), capture("d")], 60, "CAPTURED"),
        ([capture_and_keep("c", 40), refund("r"), capture("d")], 61, "refused AMOUNT_EXCEEDS_REFUNDABLE"),
    ],
)
def test_refunds_together_are_never_more_than_captured(
    authorized: Ledger, before: list[Command], amount: int | None, outcome: str
) -> None:
    """Many partial refunds up to what was captured; no amount means all that is left to refund."""
    for command in before:
        authorized.do(command)
    authorized.expect((refund("last", amount), outcome))


def test_a_refund_of_too_much_is_told_what_is_refundable(authorized: Ledger) -> None:
    """The refusal carries both amounts."""
    authorized.do(capture("c"))
    authorized.do(refund("r", 30))
    refusal = authorized.refusal(refund("s", 71))
    assert isinstance(refusal, AmountExceedsRefundable)
    assert (refusal.details["refundable"], refusal.details["amount"]) == (70, 71)


@pytest.mark.parametrize(
    ("before", "amount", "outcome"),
    [
        ([], 100, "CAPTURED"),
        ([transfer("t", leg("shop", "bank", 1))], 99, "CAPTURED"),
        ([transfer("t", leg("shop", "bank", 1))], 100, "refused INSUFFICIENT_FUNDS"),
        ([transfer("t", leg("shop", "bank", 1))], None, "refused INSUFFICIENT_FUNDS"),
        ([transfer("t", leg("shop", "bank", 1)), set_limit("shop", 1)], 100, "CAPTURED"),
        ([authorize(1, payment_id="q", payer="shop", payee="alice")], 99, "CAPTURED"),
        ([authorize(1, payment_id="q", payer="shop", payee="alice")], 100, "refused INSUFFICIENT_FUNDS"),
    ],
)
def test_the_payee_must_have_what_is_refunded(
    authorized: Ledger, before: list[Command], amount: int | None, outcome: str
) -> None:
    """Available is what counts: without what the payee has reserved, with its credit limit."""
    authorized.do(capture("c"))
    for command in before:
        authorized.do(command)
    authorized.expect((refund("r", amount), outcome))


def test_a_refund_never_takes_the_payer_beyond_the_bound() -> None:
    """It is refused, and can be made when there is room again."""
    ledger = Ledger(alice=100, shop=0)
    ledger.do(open_account("mint", kind=AccountKind.EXTERNAL))
    ledger.do(authorize(100))
    ledger.do(capture("c"))
    ledger.fund("alice", MOST - 99, bank="mint")
    ledger.expect(
        (refund("r"), "refused BALANCE_LIMIT"),
        (refund("r", 99), "CAPTURED"),
        (refund("s"), "refused BALANCE_LIMIT"),
        (transfer("t", leg("alice", "mint", 1)), "POSTED"),
        (refund("s"), "CAPTURED"),
    )


def test_a_refund_asks_what_is_posted_and_not_what_is_reserved_to_keep_its_bounds() -> None:
    """A payee that has 10^18 and has promised as much on credit pays back: no balance of it would leave the bounds."""
    ledger = Ledger(alice=100)
    ledger.do(open_account("mint", kind=AccountKind.EXTERNAL))
    ledger.do(open_account("shop", limit=MOST))
    ledger.do(authorize(100))
    ledger.do(capture("c"))
    ledger.fund("shop", MOST - 100, bank="mint")
    ledger.expect(
        (authorize(MOST, payment_id="q", payer="shop", payee="alice"), "AUTHORIZED"), (refund("r"), "CAPTURED")
    )
    assert ledger.balance("shop") == (MOST - 100, MOST)


def test_an_external_payee_refunds_below_zero() -> None:
    """The world outside needs no funds to pay back."""
    ledger = Ledger(alice=100)
    ledger.do(open_account("scheme", kind=AccountKind.EXTERNAL))
    ledger.expect(
        (authorize(100, payee="scheme"), "AUTHORIZED"),
        (capture("c"), "CAPTURED"),
        (transfer("t", leg("scheme", "bank", 70)), "POSTED"),
        (refund("r"), "CAPTURED"),
    )
    assert ledger.balance("scheme") == (-70, 0)


# --- expiry ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hold_for", [None, INSTANT, timedelta(hours=1), timedelta(days=7), timedelta(days=31)])
def test_an_authorization_holds_for_seven_days_or_as_asked(ledger: Ledger, hold_for: timedelta | None) -> None:
    """`expires_at` is recorded_at + hold_for, to the microsecond; `hold_for` is kept as it was sent."""
    ledger.wait(days=1)
    ledger.do(authorize(100, hold_for=hold_for))
    assert ledger.payment().expires_at == ledger.now + (hold_for or HOLD)
    assert ledger.payment().request.hold_for == hold_for


def test_an_authorization_of_the_past_holds_from_when_it_was_recorded(ledger: Ledger) -> None:
    """`effective_at` is for reports: it moves no deadline."""
    ledger.do(authorize(100, effective_at=START - timedelta(days=365)))
    assert ledger.payment().expires_at == START + HOLD


@pytest.mark.parametrize("captured_before", [0, 40])
@pytest.mark.parametrize(
    ("moment", "swept", "answers"),
    [
        (HOLD - INSTANT, False, ("{open}", "CAPTURED", "{void}", "{none}")),
        (HOLD, False, ("refused PAYMENT_EXPIRED", "refused PAYMENT_EXPIRED", "refused PAYMENT_EXPIRED", "{expired}")),
        (HOLD, True, ("refused PAYMENT_EXPIRED", "refused PAYMENT_EXPIRED", "refused PAYMENT_EXPIRED", "{none}")),
        (
            timedelta(days=365),
            False,
            ("refused PAYMENT_EXPIRED", "refused PAYMENT_EXPIRED", "refused PAYMENT_EXPIRED", "{expired}"),
        ),
        (
            timedelta(days=365),
            True,
            ("refused PAYMENT_EXPIRED", "refused PAYMENT_EXPIRED", "refused PAYMENT_EXPIRED", "{none}"),
        ),
    ],
    ids=["an instant before", "at expires_at", "at expires_at, swept", "a year later", "a year later, swept"],
)
def test_from_expires_at_on_every_command_sees_the_payment_as_expired(
    moment: timedelta, swept: bool, answers: tuple[str, ...], captured_before: int
) -> None:
    """Increment, capture, void and expire, each on a payment of its own: what was recorded by then makes no difference.

    `{none}` stands for nothing recorded.
    """
    fill = {
        "{open}": "PARTIALLY_CAPTURED" if captured_before else "AUTHORIZED",
        "{void}": "CAPTURED" if captured_before else "VOIDED",
        "{expired}": "CAPTURED" if captured_before else "EXPIRED",
    }
    for command, answer in zip((increment("i", 150), capture("c2"), void(), expire()), answers, strict=True):
        ledger = Ledger(alice=1_000, shop=0)
        ledger.do(authorize(100))
        if captured_before:
            ledger.do(capture_and_keep("c", captured_before))
        ledger.now += moment
        if swept:
            ledger.do(expire())
        if answer == "{none}":
            assert ledger.emitted(command) == []
        else:
            ledger.expect((command, fill.get(answer, answer)))


def test_the_last_unit_expires_like_any_other_amount(authorized: Ledger) -> None:
    """One unit that is left is refused as expired at `expires_at`, and after the expiry for the same reason."""
    authorized.do(capture_and_keep("c", 99))
    authorized.now += HOLD
    authorized.expect(
        (capture("d"), "refused PAYMENT_EXPIRED"),
        (expire(), "CAPTURED"),
        (capture("d"), "refused PAYMENT_EXPIRED"),
        (void(), "refused PAYMENT_EXPIRED"),
    )
    assert authorized.payment().amounts == amounts(authorized=100, captured=99, expired=1)


def test_an_expiry_releases_what_is_not_captured(authorized: Ledger) -> None:
    """AuthorizationExpired with the amounts, and FundsReleased on the payer: what was captured stays captured."""
    authorized.do(capture_and_keep("c", 40))
    authorized.now += HOLD
    expired, released = authorized.emitted(expire())
    assert isinstance(expired, AuthorizationExpired)
    assert expired.before == amounts(authorized=100, captured=40, capturable=60)
    assert expired.after == amounts(authorized=100, captured=40, expired=60)
    assert isinstance(released, FundsReleased)
    assert (released.stream, released.amount, released.after.reserved) == ("account/alice", 60, 0)
    assert released.cause == Cause(kind=CauseKind.EXPIRY, payment_id="p")


@pytest.mark.parametrize("before", [[void()], [capture("c")], [capture("c", 40)], [capture("c", 40), refund("r")]])
def test_a_payment_with_nothing_capturable_does_not_expire(authorized: Ledger, before: list[Command]) -> None:
    """The hold of a voided or captured payment ends without an event, and its reason stays what it was."""
    for command in before:
        authorized.do(command)
    state, why = authorized.payment().state, authorized.answer(capture("late"))
    authorized.now += HOLD
    assert authorized.emitted(expire()) == []
    assert (authorized.payment().state, authorized.answer(capture("late"))) == (state, why)


@pytest.mark.parametrize("swept", [False, True])
def test_what_was_captured_before_the_expiry_can_be_refunded_after_it(authorized: Ledger, swept: bool) -> None:
    """Refunds know no deadline."""
    authorized.do(capture_and_keep("c", 40))
    authorized.wait(days=365)
    if swept:
        authorized.do(expire())
    authorized.do(refund("r", 10))
    authorized.do(refund("s"))
    assert authorized.payment().amounts.refunded == 40
    authorized.expect((refund("t", 1), "refused NOTHING_TO_REFUND"))


def test_neither_a_freeze_nor_a_closed_payee_stops_an_expiry(authorized: Ledger) -> None:
    """Expiry always works."""
    authorized.now += HOLD
    authorized.expect((freeze("alice"), "FROZEN ALL"), (close("shop"), "CLOSED"), (expire(), "EXPIRED"))
    assert authorized.balance("alice") == (1_000, 0)


# --- what no state of a payment allows -------------------------------------------------------------------------------

ON_A_PAYMENT = [increment("i", 150), capture("c"), capture("c", 1), void(), refund("r"), refund("r", 1)]


@pytest.mark.parametrize("command", ON_A_PAYMENT)
def test_nothing_can_be_done_with_a_declined_payment(ledger: Ledger, command: Command) -> None:
    """It is final: nothing was ever reserved."""
    ledger.expect((authorize(1_001), "DECLINED INSUFFICIENT_FUNDS"), (command, "refused PAYMENT_DECLINED"))


def test_a_declined_payment_does_not_expire(ledger: Ledger) -> None:
    """It has no deadline, and the sweeper has nothing to record."""
    ledger.do(authorize(1_001))
    ledger.wait(days=365)
    assert ledger.emitted(expire()) == []


@pytest.mark.parametrize("command", ON_A_PAYMENT)
def test_a_command_on_an_unknown_payment_names_it(ledger: Ledger, command: Command) -> None:
    """The refusal is PAYMENT_NOT_FOUND with the id."""
    refusal = ledger.refusal(command)
    assert isinstance(refusal, PaymentNotFound)
    assert refusal.details == {"payment_id": "p"}


@pytest.mark.parametrize(
    "command",
    [
        increment("i", 150, currency_code="JPY"),
        capture("c", 1, currency_code="JPY"),
        refund("r", 1, currency_code="JPY"),
    ],
)
def test_amounts_are_in_the_currency_of_the_payment(authorized: Ledger, command: Command) -> None:
    """Another currency is CURRENCY_MISMATCH with both codes."""
    authorized.do(capture_and_keep("first", 10))
    refusal = authorized.refusal(command)
    assert isinstance(refusal, CurrencyMismatch)
    assert (refusal.details["account_currency"], refusal.details["currency_code"]) == ("EUR", "JPY")


# --- effective_at ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ago", [timedelta(0), INSTANT, timedelta(days=365)])
def test_a_capture_and_a_refund_count_when_they_say(authorized: Ledger, ago: timedelta) -> None:
    """`effective_at` stands on the event as sent and on all that the command does to accounts; it decides nothing."""
    authorized.wait(days=1)
    then = authorized.now - ago
    for command in (capture("c", 40, effective_at=then), refund("r", 10, effective_at=then)):
        fact, *movements = authorized.emitted(command)
        assert isinstance(fact, PaymentCaptured | PaymentRefunded)
        assert fact.effective_at == then
        assert [event.effective_at for event in movements] == [then] * len(movements)
        assert {event.timestamp for event in (fact, *movements)} == {authorized.now}


def test_without_effective_at_movements_count_when_recorded_and_the_request_stays_unset(authorized: Ledger) -> None:
    """Unset means recorded_at for the accounts; on the payment's event unset stays unset, as it is compared."""
    authorized.wait(days=1)
    for command in (capture("c", 40), refund("r", 10)):
        fact, *movements = authorized.emitted(command)
        assert isinstance(fact, PaymentCaptured | PaymentRefunded)
        assert fact.effective_at is None
        assert {event.effective_at for event in movements} == {authorized.now}


def test_nothing_takes_effect_in_the_future(authorized: Ledger) -> None:
    """One microsecond after recorded_at is malformed, with the field named; the id is not used up."""
    later = authorized.now + INSTANT
    for command in (authorize(1, payment_id="q", effective_at=later), capture_and_keep("c", 1, effective_at=later)):
        refusal = authorized.refusal(command)
        assert isinstance(refusal, EffectiveInFuture)
        assert [violation.field for violation in refusal.violations] == ["effective_at"]
    authorized.do(capture_and_keep("c", 1, effective_at=authorized.now))
    refusal = authorized.refusal(refund("r", 1, effective_at=later))
    assert isinstance(refusal, EffectiveInFuture)
    authorized.now = later
    authorized.expect((refund("r", 1, effective_at=later), "PARTIALLY_CAPTURED"))


# --- at most 1,000 changes -------------------------------------------------------------------------------------------


def _with_changes(count: int) -> Ledger:
    """A payment of 2,000, of which 1 was captured `count` times."""
    ledger = Ledger(alice=10_000, shop=0)
    ledger.do(authorize(2_000))
    for number in range(count):
        ledger.do(capture_and_keep(f"c{number}", 1))
    return ledger


def test_a_payment_takes_a_thousand_changes_and_no_more() -> None:
    """Increments, captures and refunds count together; replays, the void and the expiry work on."""
    ledger = _with_changes(998)
    ledger.expect(
        (increment("i", 2_001), "PARTIALLY_CAPTURED"),
        (refund("r", 1), "PARTIALLY_CAPTURED"),
        (increment("j", 2_002), "refused TOO_MANY_CHANGES"),
        (capture("c"), "refused TOO_MANY_CHANGES"),
        (capture_and_keep("c", 1), "refused TOO_MANY_CHANGES"),
        (refund("s"), "refused TOO_MANY_CHANGES"),
        (capture_and_keep("c0", 1), "replayed PARTIALLY_CAPTURED"),
        (refund("r", 1), "replayed PARTIALLY_CAPTURED"),
        (capture_and_keep("c0", 2), "refused ID_ALREADY_USED"),
    )
    refusal = ledger.refusal(refund("s"))
    assert isinstance(refusal, TooManyChanges)
    assert refusal.details["limit"] == 1_000
    ledger.expect((void(), "CAPTURED"), (refund("s"), "refused TOO_MANY_CHANGES"))


def test_a_void_is_not_one_of_the_thousand_changes() -> None:
    """Counted are increments, captures and refunds: after 999 of them and a void there is room for one refund."""
    ledger = _with_changes(999)
    ledger.expect((void(), "CAPTURED"), (refund("r", 1), "CAPTURED"), (refund("s", 1), "refused TOO_MANY_CHANGES"))


def test_an_expiry_is_not_one_of_the_thousand_changes() -> None:
    """After 1,000 captures the payment expires all the same, and after 999 it takes a refund besides."""
    full, nearly = _with_changes(1_000), _with_changes(999)
    full.now += HOLD
    full.expect((expire(), "CAPTURED"), (refund("r", 1), "refused TOO_MANY_CHANGES"))
    nearly.now += HOLD
    nearly.expect((expire(), "CAPTURED"), (refund("r", 1), "CAPTURED"))


# --- both ends of a payment ------------------------------------------------------------------------------------------


def test_payments_that_cross_are_paid_out_of_what_each_other_brought() -> None:
    """What a capture credits can be authorized and refunded again: the order of commands is the order of the log."""
    ledger = Ledger(alice=100, shop=0)
    ledger.expect(
        (authorize(100, payment_id="p"), "AUTHORIZED"),
        (authorize(100, payment_id="q", payer="shop", payee="alice"), "DECLINED INSUFFICIENT_FUNDS"),
        (capture("c", payment_id="p"), "CAPTURED"),
        (authorize(100, payment_id="r", payer="shop", payee="alice"), "AUTHORIZED"),
        (refund("r", payment_id="p"), "refused INSUFFICIENT_FUNDS"),
        (void("r"), "VOIDED"),
        (refund("r", payment_id="p"), "CAPTURED"),
    )
    assert (ledger.balance("alice"), ledger.balance("shop")) == ((100, 0), (0, 0))


def test_a_freeze_that_ended_leaves_no_trace_on_payments(authorized: Ledger) -> None:
    """Refusals use no id up: the same increment goes through after the freeze."""
    authorized.expect(
        (freeze("alice"), "FROZEN ALL"),
        (increment("i", 150), "refused ACCOUNT_FROZEN"),
        (unfreeze("alice"), "OPEN"),
        (increment("i", 150), "AUTHORIZED"),
    )
