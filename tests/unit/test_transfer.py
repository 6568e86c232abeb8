"""Transfers: money moved at once, all legs or none, in order."""

from datetime import timedelta

import pytest
from domain import INSTANT, MOST, START, Ledger, authorize, close, eur, freeze, leg, names, open_account, transfer

from ledger.domain.commands import Command
from ledger.domain.errors import AccountNotFound, CurrencyMismatch, EffectiveInFuture
from ledger.domain.events import (
    AccountKind,
    Cause,
    CauseKind,
    DeclineReason,
    FreezeScope,
    FundsCredited,
    FundsDebited,
    TransferDeclined,
    TransferLeg,
    TransferPosted,
)

EXTERNAL = AccountKind.EXTERNAL
CLOSED, FROZEN = DeclineReason.ACCOUNT_CLOSED, DeclineReason.ACCOUNT_FROZEN
BOUND, FUNDS = DeclineReason.BALANCE_LIMIT, DeclineReason.INSUFFICIENT_FUNDS


@pytest.fixture
def ledger() -> Ledger:
    """Alice has 100, Bob and Carol nothing; Yumi has 100 yen; the exchange has accounts of both currencies."""
    ledger = Ledger(alice=100, bob=0, carol=0)
    ledger.do(open_account("exchange-eur", kind=EXTERNAL))
    ledger.do(open_account("exchange-jpy", kind=EXTERNAL, currency_code="JPY"))
    ledger.do(open_account("yumi", currency_code="JPY"))
    ledger.fund("yumi", 100, bank="exchange-jpy")
    return ledger


def test_a_transfer_says_what_was_asked_and_then_moves_each_leg(ledger: Ledger) -> None:
    """TransferPosted with the legs as sent, and for each leg a debit and a credit that name it."""
    legs = (leg("alice", "bob", 60), leg("bob", "carol", 20))
    posted, *movements = ledger.emitted(transfer("t", *legs, reference="rent", metadata={"month": "May"}))

    assert isinstance(posted, TransferPosted)
    assert (posted.stream, posted.originator_version, posted.transfer_id) == ("transfer/t", 1, "t")
    assert (posted.legs, posted.reference, posted.metadata) == (legs, "rent", {"month": "May"})
    assert posted.effective_at is None

    assert names(movements) == ["FundsDebited", "FundsCredited", "FundsDebited", "FundsCredited"]
    facts = [(each.stream, each.counterparty, each.amount, each.after.posted) for each in movements]
    assert facts == [
        ("account/alice", "bob", 60, 40),
        ("account/bob", "alice", 60, 60),
        ("account/bob", "carol", 20, 40),
        ("account/carol", "bob", 20, 20),
    ]
    assert [each.cause for each in movements] == [
        Cause(kind=CauseKind.TRANSFER, transfer_id="t", leg=number) for number in (0, 0, 1, 1)
    ]
    assert not any(each.from_reserved for each in movements if isinstance(each, FundsDebited))
    assert {each.command_position for each in movements} == {posted.command_position}


@pytest.mark.parametrize(
    ("legs", "outcome"),
    [
        ([leg("alice", "bob", 100)], "POSTED"),
        ([leg("alice", "bob", 101)], "DECLINED INSUFFICIENT_FUNDS"),
        ([leg("bob", "carol", 1)], "DECLINED INSUFFICIENT_FUNDS"),
        ([leg("bank", "carol", 1)], "POSTED"),
        ([leg("alice", "bob", 100), leg("bob", "carol", 100), leg("carol", "alice", 100)], "POSTED"),
        ([leg("bob", "carol", 100), leg("alice", "bob", 100)], "DECLINED INSUFFICIENT_FUNDS"),
        ([leg("alice", "bob", 60), leg("alice", "carol", 40)], "POSTED"),
        ([leg("alice", "bob", 60), leg("alice", "carol", 41)], "DECLINED INSUFFICIENT_FUNDS"),
        ([leg("alice", "bob", 50), leg("alice", "bob", 50)], "POSTED"),
        ([leg("alice", "bank", 100), leg("bank", "alice", 100)] * 500, "POSTED"),
        ([leg("alice", "bob", 100), leg("yumi", "exchange-jpy", 100, "JPY")], "POSTED"),
        ([leg("alice", "exchange-eur", 9), leg("exchange-jpy", "yumi", 1_500, "JPY")], "POSTED"),
        ([leg("alice", "exchange-eur", 9), leg("exchange-jpy", "bob", 9)], "refused CURRENCY_MISMATCH"),
        ([leg("alice", "yumi", 9)], "refused CURRENCY_MISMATCH"),
        ([leg("alice", "bob", 9, "JPY")], "refused CURRENCY_MISMATCH"),
        ([leg("alice", "bob", 101), leg("alice", "yumi", 1)], "refused CURRENCY_MISMATCH"),
        ([leg("alice", "nobody", 1)], "refused ACCOUNT_NOT_FOUND"),
        ([leg("nobody", "alice", 1)], "refused ACCOUNT_NOT_FOUND"),
        ([leg("alice", "yumi", 101), leg("alice", "nobody", 1)], "refused ACCOUNT_NOT_FOUND"),
        ([leg("exchange-eur", "bob", MOST)], "POSTED"),
        ([leg("exchange-eur", "alice", MOST - 100)], "POSTED"),
        ([leg("exchange-eur", "alice", MOST - 99)], "DECLINED BALANCE_LIMIT"),
        ([leg("exchange-eur", "bob", MOST), leg("exchange-eur", "carol", 1)], "DECLINED BALANCE_LIMIT"),
    ],
    ids=lambda value: f"{len(value)} legs" if isinstance(value, list) else None,
)
def test_legs_apply_in_order_and_each_sees_those_before_it(
    ledger: Ledger, legs: list[TransferLeg], outcome: str
) -> None:
    """Money that a leg brings can be spent by the next, and no leg is done unless all are."""
    before = {account_id: ledger.balance(account_id) for account_id in ("alice", "bob", "carol", "yumi")}
    ledger.expect((transfer("t", *legs), outcome))
    if outcome != "POSTED":
        assert {account_id: ledger.balance(account_id) for account_id in before} == before


def test_foreign_exchange_is_two_legs_through_exchange_accounts(ledger: Ledger) -> None:
    """Each currency keeps its own sum: the exchange has the euros that Alice sold, and owes Yumi's yen."""
    ledger.do(transfer("fx", leg("alice", "exchange-eur", 9), leg("exchange-jpy", "yumi", 1_500, "JPY")))
    assert (ledger.balance("alice"), ledger.balance("exchange-eur")) == ((91, 0), (9, 0))
    assert (ledger.balance("yumi"), ledger.balance("exchange-jpy")) == ((1_600, 0), (-1_600, 0))


@pytest.mark.parametrize(
    ("before", "legs", "number", "account_id", "reason"),
    [
        ([], [leg("alice", "bob", 101)], 0, "alice", FUNDS),
        ([], [leg("alice", "bob", 50), leg("bob", "carol", 51)], 1, "bob", FUNDS),
        ([], [leg("alice", "bob", 50), leg("bob", "carol", 51), leg("bob", "carol", 99)], 1, "bob", FUNDS),
        ([close("bob")], [leg("alice", "bob", 1)], 0, "bob", CLOSED),
        ([close("bob")], [leg("bob", "alice", 1)], 0, "bob", CLOSED),
        ([close("bob")], [leg("alice", "carol", 1), leg("bob", "carol", 1)], 1, "bob", CLOSED),
        ([close("bob")], [leg("alice", "carol", 101), leg("bob", "carol", 1)], 0, "alice", FUNDS),
        ([close("bob")], [leg("alice", "bob", 101)], 0, "bob", CLOSED),
        ([close("bob"), freeze("alice")], [leg("alice", "bob", 101)], 0, "bob", CLOSED),
        ([freeze("alice")], [leg("alice", "bob", 101)], 0, "alice", FROZEN),
        ([freeze("alice"), freeze("bob")], [leg("alice", "bob", 101)], 0, "alice", FROZEN),
        ([freeze("bob")], [leg("alice", "bob", 101)], 0, "bob", FROZEN),
        ([freeze("bob", FreezeScope.DEBITS)], [leg("alice", "bob", 9), leg("bob", "carol", 9)], 1, "bob", FROZEN),
        ([authorize(60, payee="bob")], [leg("alice", "bob", 41)], 0, "alice", FUNDS),
        ([], [leg("exchange-eur", "alice", MOST)], 0, "alice", BOUND),
        ([], [leg("exchange-eur", "bob", MOST), leg("exchange-eur", "carol", 1)], 1, "exchange-eur", BOUND),
        ([], [leg("alice", "carol", 1), leg("exchange-eur", "carol", MOST)], 1, "carol", BOUND),
    ],
)
def test_a_declined_transfer_names_its_first_failing_leg(
    ledger: Ledger, before: list[Command], legs: list[TransferLeg], number: int, account_id: str, reason: DeclineReason
) -> None:
    """One event, TransferDeclined: leg (counted from 0), account and reason; nothing is moved."""
    for command in before:
        ledger.do(command)
    (declined,) = ledger.emitted(transfer("t", *legs, reference="rent"))
    assert isinstance(declined, TransferDeclined)
    assert (declined.declined_leg, declined.declined_account_id) == (number, account_id)
    assert declined.decline_reason is reason
    assert (declined.legs, declined.reference) == (tuple(legs), "rent")


@pytest.mark.parametrize(
    ("legs", "blamed"),
    [
        ([leg("alice", "yumi", 1)], "yumi"),
        ([leg("yumi", "alice", 1)], "yumi"),
        ([leg("alice", "bob", 1, "JPY")], "alice"),
        ([leg("alice", "bob", 1), leg("alice", "bob", 1), leg("exchange-jpy", "bob", 1, "JPY")], "bob"),
    ],
)
def test_an_account_of_another_currency_refuses_the_whole_transfer(
    ledger: Ledger, legs: list[TransferLeg], blamed: str
) -> None:
    """It is no decline: nothing is recorded, and the id may be used for another transfer."""
    refusal = ledger.refusal(transfer("t", *legs))
    assert isinstance(refusal, CurrencyMismatch)
    assert refusal.details["account_id"] == blamed
    ledger.expect((transfer("t", leg("alice", "bob", 1)), "POSTED"))


def test_an_unknown_account_refuses_the_whole_transfer(ledger: Ledger) -> None:
    """The refusal names the account, on whichever side of whichever leg it stands."""
    refusal = ledger.refusal(transfer("t", leg("alice", "bob", 1), leg("bob", "nobody", 1)))
    assert isinstance(refusal, AccountNotFound)
    assert refusal.details == {"account_id": "nobody"}
    ledger.do(open_account("nobody"))
    ledger.expect((transfer("t", leg("alice", "bob", 1), leg("bob", "nobody", 1)), "POSTED"))


def test_a_thousand_legs_are_one_command(ledger: Ledger) -> None:
    """The most that is allowed: 2,001 events under one command_position, and the last one's position is answered."""
    legs = [leg("alice", "bob", 1), leg("bob", "alice", 1)] * 500
    head = ledger.head
    outcome = ledger.do(transfer("t", *legs))
    events = ledger.book.events[head:]
    assert len(events) == 2_001
    assert {event.command_position for event in events} == {head + 1}
    assert outcome.position == head + 2_001
    assert (ledger.balance("alice"), ledger.account("alice").version) == ((100, 0), 2 + 1_000)


# --- effective_at ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ago", [timedelta(0), INSTANT, timedelta(days=10_000)])
def test_a_transfer_counts_when_it_says(ledger: Ledger, ago: timedelta) -> None:
    """`effective_at` stands on all of its events; recorded_at is when it was recorded all the same."""
    then = START - ago
    posted, *movements = ledger.emitted(transfer("t", leg("alice", "bob", 1), effective_at=then))
    assert isinstance(posted, TransferPosted)
    assert posted.effective_at == then
    assert {event.effective_at for event in movements} == {then}
    assert {event.timestamp for event in (posted, *movements)} == {START}


def test_without_effective_at_a_transfer_counts_when_recorded(ledger: Ledger) -> None:
    """On the transfer it stays unset, as it is compared; on the accounts it is recorded_at."""
    posted, debited, credited = ledger.emitted(transfer("t", leg("alice", "bob", 1)))
    assert isinstance(posted, TransferPosted)
    assert isinstance(debited, FundsDebited)
    assert isinstance(credited, FundsCredited)
    assert (posted.effective_at, debited.effective_at, credited.effective_at) == (None, START, START)


def test_no_transfer_takes_effect_in_the_future(ledger: Ledger) -> None:
    """One microsecond after recorded_at is malformed, and nothing is recorded."""
    refusal = ledger.refusal(transfer("t", leg("alice", "bob", 1), effective_at=START + INSTANT))
    assert isinstance(refusal, EffectiveInFuture)
    assert [violation.field for violation in refusal.violations] == ["effective_at"]


def test_what_a_transfer_does_is_there_for_the_next_command(ledger: Ledger) -> None:
    """Commands see each other's effects in the order of the log."""
    ledger.expect(
        (authorize(1, payer="bob", payee="carol", payment_id="p"), "DECLINED INSUFFICIENT_FUNDS"),
        (transfer("t", leg("alice", "bob", 100)), "POSTED"),
        (authorize(100, payer="bob", payee="carol", payment_id="q"), "AUTHORIZED"),
        (transfer("u", leg("bob", "alice", 1)), "DECLINED INSUFFICIENT_FUNDS"),
    )
    assert ledger.state("bob").available == eur(0).minor_units
