"""Wording: amounts, times and what was done, in words for a person."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from msgspec import ValidationError

from ledger.audit.snapshot import moment
from ledger.domain.errors import (
    AmountExceedsCapturable,
    AmountExceedsRefundable,
    IdAlreadyUsed,
    InsufficientFunds,
    InvalidCommand,
    LimitBelowUse,
    Refusal,
)
from ledger.domain.events import (
    AccountClosed,
    AccountEvent,
    AccountFrozen,
    AccountOpened,
    AccountUnfrozen,
    AuthorizationExpired,
    AuthorizationIncremented,
    CreditLimitChanged,
    LedgerEvent,
    PaymentAuthorized,
    PaymentCaptured,
    PaymentDeclined,
    PaymentRefunded,
    PaymentRequested,
    PaymentVoided,
    TransferDeclined,
    TransferEvent,
    TransferPosted,
)
from ledger.domain.money import UnknownCurrency, format_amount
from ledger.terminal import printable

_SHORT_LENGTH: Final = 100

_DONE: Final[dict[type[LedgerEvent], str]] = {
    AccountOpened: "opened the account",
    CreditLimitChanged: "changed the credit limit",
    AccountFrozen: "froze the account",
    AccountUnfrozen: "unfroze the account",
    AccountClosed: "closed the account",
    PaymentAuthorized: "authorized",
    PaymentDeclined: "declined",
    AuthorizationIncremented: "raised the authorization to",
    PaymentCaptured: "captured",
    PaymentVoided: "voided the payment",
    AuthorizationExpired: "expired the authorization",
    PaymentRefunded: "refunded",
    TransferPosted: "posted the transfer",
    TransferDeclined: "declined the transfer",
}


def amount_text(minor_units: int, currency_code: str) -> str:
    """An amount as people write it: 50.00 EUR."""
    try:
        return f"{format_amount(minor_units, currency_code, grouping=True)} {currency_code}"
    except UnknownCurrency:
        return f"{minor_units:,} minor units"


def time_text(microseconds: int) -> str:
    """A time so many microseconds after 1970."""
    try:
        return moment(microseconds).isoformat().replace("+00:00", "Z")
    except OverflowError:
        return "no time"


def in_short(text: str) -> str:
    """Text from anywhere, on one line and cut short."""
    shown = printable(text)
    return shown if len(shown) <= _SHORT_LENGTH else f"{shown[:_SHORT_LENGTH]}..."


def unreadable_text(error: BaseException) -> str:
    """Why an event can't be read."""
    if isinstance(error, ValidationError):
        what, _, where = str(error).partition(" - at `$.")
        what = "not a length of time, like P7D" if " matching regex " in what else what[:1].lower() + what[1:]
        return in_short(f"{where.rstrip('`')}: {what}" if where else what)
    return in_short(str(error))


def currency_of(events: Iterable[LedgerEvent]) -> str:
    """The currency that the events are about, if one of them tells."""
    for event in events:
        if isinstance(event, AccountEvent):
            return event.after.currency_code
        if isinstance(event, PaymentRequested):
            return event.amount.currency_code
        if isinstance(event, TransferEvent) and event.legs:
            return event.legs[0].amount.currency_code
    return ""


def done_text(event: LedgerEvent, currency_code: str) -> str:
    """What was done: `captured 50.00 EUR`."""
    amount = _amount_of(event)
    done = _DONE.get(type(event), type(event).__name__)
    return done if amount is None else f"{done} {amount_text(amount, currency_code)}"


def _amount_of(event: LedgerEvent) -> int | None:
    if isinstance(event, PaymentCaptured):
        return event.amount_captured
    if isinstance(event, PaymentRefunded):
        return event.amount_refunded
    if isinstance(event, PaymentRequested | AuthorizationIncremented):
        return event.amount.minor_units
    return None


def refused_text(event: LedgerEvent, error: Exception, currency_code: str) -> str:
    """What was done though it can't be done: `captured 50.00 EUR of an authorization of which 30.00 EUR was left`."""
    done = done_text(event, currency_code)
    if isinstance(error, InvalidCommand):
        wrong = "; ".join(f"{each.field} {each.description}" for each in error.violations)
        return f"{done} for a request that is malformed: {in_short(wrong)}"
    if isinstance(error, IdAlreadyUsed):
        return f"{done} for an id that was used before: {error}"
    if isinstance(error, Refusal):
        return f"{done} {_in_spite_of(error, currency_code)}"
    if isinstance(event, AccountOpened) and isinstance(error, AssertionError):
        return f"{done}, which was open already"
    return f"{done}, where the rules can't be applied: {in_short(f'{type(error).__name__}: {error}')}"


def _in_spite_of(refusal: Refusal, currency_code: str) -> str:
    """What stood in the way."""
    details: dict[str, Any] = {
        name: amount_text(value, currency_code) if isinstance(value, int) else value
        for name, value in refusal.details.items()
    }
    match refusal:
        case AmountExceedsCapturable():
            return "of an authorization of which {capturable} was left".format_map(details)
        case AmountExceedsRefundable():
            return "of a payment of which {refundable} could be refunded".format_map(details)
        case InsufficientFunds():
            return "though account {account_id!r} had {available} available".format_map(details)
        case LimitBelowUse():
            return "though account {account_id!r} used {used} of credit".format_map(details)
    return f"though it had to be refused: {refusal}"
