"""The domain in a test's own words: given accounts, when commands, then answers. The clock is the test's."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from msgspec.structs import replace

from ledger.domain.account import Account
from ledger.domain.aggregate import Stamp
from ledger.domain.book import Book
from ledger.domain.commands import (
    AuthorizePayment,
    CapturePayment,
    CloseAccount,
    Command,
    ExpireAuthorization,
    FreezeAccount,
    IncrementAuthorization,
    OpenAccount,
    PostTransfer,
    Precondition,
    RefundPayment,
    SetCreditLimit,
    UnfreezeAccount,
    VoidPayment,
)
from ledger.domain.decisions import Outcome, decide
from ledger.domain.errors import Refusal
from ledger.domain.events import AccountKind, AccountState, FreezeScope, LedgerEvent, PaymentAmounts, TransferLeg
from ledger.domain.money import MAX_MINOR_UNITS, Money
from ledger.domain.payment import Payment
from ledger.domain.transfer import Transfer

START: Final = datetime(2026, 1, 1, 12, tzinfo=UTC)
INSTANT: Final = timedelta(microseconds=1)
MOST: Final = MAX_MINOR_UNITS

Line = tuple[Command, str]


class Ledger:
    """A ledger that forgets when the test ends: `Ledger(alice=100)` has a customer `alice` with 1 euro, from `bank`."""

    def __init__(self, **funds: int) -> None:
        self.now = START
        self.book = Book({})
        self.do(open_account("bank", kind=AccountKind.EXTERNAL))
        for account_id, amount in funds.items():
            self.do(open_account(account_id))
            if amount:
                self.fund(account_id, amount)

    # --- given -------------------------------------------------------------------------------------------------------

    def fund(self, account_id: str, amount: int, bank: str = "bank") -> None:
        """Bring money in from outside."""
        currency_code = self.state(account_id).currency_code
        count = len(self.book.events)
        outcome = self.do(transfer(f"fund:{account_id}:{count}", leg(bank, account_id, amount, currency_code)))
        assert outcome.decline is None, outcome.decline

    def wait(self, **time: float) -> None:
        self.now += timedelta(**time)

    # --- when --------------------------------------------------------------------------------------------------------

    def do(self, command: Command, actor: str = "anonymous") -> Outcome:
        """Run a command and keep what it did. A Refusal is raised, and leaves everything as it was."""
        layer = self.book.layer()
        outcome = decide(command, layer, Stamp(self.now, actor, "test", layer.next_position))
        self.book.merge(layer)
        return outcome

    def refusal(self, command: Command, actor: str = "anonymous") -> Refusal:
        """The refusal that the command must meet. Nothing may have been recorded."""
        before = self.head
        try:
            outcome = self.do(command, actor)
        except Refusal as refusal:
            assert self.head == before
            return refusal
        raise AssertionError(f"{command!r} was not refused but answered {in_words(outcome)!r}")

    def emitted(self, command: Command) -> list[LedgerEvent]:
        """The events that the command adds to the log."""
        before = self.head
        self.do(command)
        return self.book.events[before:]

    # --- then --------------------------------------------------------------------------------------------------------

    def answer(self, command: Command) -> str:
        """In words: `CAPTURED`, `DECLINED ACCOUNT_CLOSED`, `replayed FROZEN ALL`, `refused PAYMENT_VOIDED`."""
        try:
            return in_words(self.do(command))
        except Refusal as refusal:
            return f"refused {refusal.code}"

    def expect(self, *lines: Line) -> None:
        """Run a table, one command per line, its answer in the last column, and compare all the answers."""
        answers = [(command, expected, self.answer(command)) for command, expected in lines]
        wrong = [
            f"line {number}: {command!r}\n    answered {answer!r}, expected {expected!r}"
            for number, (command, expected, answer) in enumerate(answers, 1)
            if answer != expected
        ]
        assert not wrong, "\n" + "\n".join(wrong)

    @property
    def head(self) -> int:
        return len(self.book.events)

    def account(self, account_id: str) -> Account:
        return self.book.account(account_id)

    def state(self, account_id: str) -> AccountState:
        return self.account(account_id).state

    def balance(self, account_id: str) -> tuple[int, int]:
        """Posted and reserved."""
        state = self.state(account_id)
        return state.posted, state.reserved

    def payment(self, payment_id: str = "p") -> Payment:
        payment = self.book.find_payment(payment_id)
        assert payment is not None
        return payment


def in_words(outcome: Outcome) -> str:
    thing = outcome.thing
    if isinstance(thing, Account):
        scope = thing.state.freeze_scope
        words = f"{thing.state.status} {scope}" if scope else str(thing.state.status)
    else:
        words = f"{thing.state} {outcome.decline.decline_reason}" if outcome.decline else str(thing.state)
    return f"replayed {words}" if outcome.replayed else words


def as_seen(thing: Account | Payment | Transfer) -> dict[str, Any]:
    """All that a client can be shown of a thing, to compare two answers by."""
    facts: dict[str, Any] = {"stream": thing.id, "version": thing.version}
    if isinstance(thing, Account):
        return facts | {"state": thing.state, "opening": thing.opening}
    if isinstance(thing, Payment):
        return facts | {"state": thing.state, "amounts": thing.amounts, "history": thing.history}
    return facts | {"state": thing.state, "outcome": thing.outcome}


def amounts(**those_not_zero: int) -> PaymentAmounts:
    nothing = dict.fromkeys(("authorized", "capturable", "captured", "expired", "refunded", "released"), 0)
    return PaymentAmounts(**nothing | those_not_zero)


# --- commands, with what most tests don't care about filled in -------------------------------------------------------


def eur(minor_units: int) -> Money:
    return Money("EUR", minor_units)


def at_version(**versions: int) -> tuple[Precondition, ...]:
    return tuple(Precondition(account_id, version) for account_id, version in versions.items())


def open_account(account_id: str, *, currency_code: str = "EUR", limit: int | None = None, **more: Any) -> OpenAccount:
    credit_limit = None if limit is None else Money(currency_code, limit)
    return OpenAccount(account_id=account_id, currency_code=currency_code, credit_limit=credit_limit, **more)


def set_limit(account_id: str, limit: int, *, currency_code: str = "EUR", **more: Any) -> SetCreditLimit:
    return SetCreditLimit(account_id=account_id, credit_limit=Money(currency_code, limit), **more)


def freeze(account_id: str, scope: FreezeScope = FreezeScope.ALL, **more: Any) -> FreezeAccount:
    return FreezeAccount(account_id=account_id, scope=scope, **more)


def unfreeze(account_id: str, **more: Any) -> UnfreezeAccount:
    return UnfreezeAccount(account_id=account_id, **more)


def close(account_id: str, **more: Any) -> CloseAccount:
    return CloseAccount(account_id=account_id, **more)


def authorize(
    amount: int,
    *,
    payment_id: str = "p",
    payer: str = "alice",
    payee: str = "shop",
    currency_code: str = "EUR",
    **more: Any,
) -> AuthorizePayment:
    return AuthorizePayment(
        payment_id=payment_id,
        payer_account_id=payer,
        payee_account_id=payee,
        amount=Money(currency_code, amount),
        **more,
    )


def increment(
    increment_id: str, amount: int, *, payment_id: str = "p", currency_code: str = "EUR", **more: Any
) -> IncrementAuthorization:
    return IncrementAuthorization(
        payment_id=payment_id, increment_id=increment_id, amount=Money(currency_code, amount), **more
    )


def capture(
    capture_id: str, amount: int | None = None, *, payment_id: str = "p", currency_code: str = "EUR", **more: Any
) -> CapturePayment:
    money = None if amount is None else Money(currency_code, amount)
    return CapturePayment(payment_id=payment_id, capture_id=capture_id, amount=money, **more)


def capture_and_keep(capture_id: str, amount: int | None = None, **more: Any) -> CapturePayment:
    return capture(capture_id, amount, keep_remainder=True, **more)


def refund(
    refund_id: str, amount: int | None = None, *, payment_id: str = "p", currency_code: str = "EUR", **more: Any
) -> RefundPayment:
    money = None if amount is None else Money(currency_code, amount)
    return RefundPayment(payment_id=payment_id, refund_id=refund_id, amount=money, **more)


def void(payment_id: str = "p", **more: Any) -> VoidPayment:
    return VoidPayment(payment_id=payment_id, **more)


def expire(payment_id: str = "p") -> ExpireAuthorization:
    return ExpireAuthorization(payment_id=payment_id)


def leg(payer: str, payee: str, amount: int, currency_code: str = "EUR") -> TransferLeg:
    return TransferLeg(from_account_id=payer, to_account_id=payee, amount=Money(currency_code, amount))


def transfer(transfer_id: str, *legs: TransferLeg, **more: Any) -> PostTransfer:
    return PostTransfer(transfer_id=transfer_id, legs=legs, **more)


def names(events: Iterable[LedgerEvent]) -> list[str]:
    return [type(event).__name__ for event in events]


def altered(event: LedgerEvent, **fields: Any) -> Any:
    """Another event in the same place of the log."""
    return replace(event, **fields).standing(event.originator_id, event.originator_version)
