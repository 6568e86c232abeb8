"""What happened, in words: a phrase for each kind of event."""

from __future__ import annotations

from datetime import datetime
from functools import singledispatch
from typing import Any, Final

from ledger.console.rows import money
from ledger.domain.events import (
    AccountClosed,
    AccountFrozen,
    AccountKind,
    AccountOpened,
    AccountUnfrozen,
    AuthorizationExpired,
    AuthorizationIncremented,
    Cause,
    CauseKind,
    CreditLimitChanged,
    FreezeScope,
    FundsCredited,
    FundsDebited,
    FundsReleased,
    FundsReserved,
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
from ledger.domain.money import Money

_FROZEN_FOR: Final = {FreezeScope.DEBITS: "debits", FreezeScope.CREDITS: "credits", FreezeScope.ALL: "all"}


def happening(event: LedgerEvent, currency_code: str) -> str:
    """A phrase for an event; `currency_code` is that of the payment, if it is one's, which changes don't repeat."""
    return f"{_phrase(event, currency_code)}{_effective(event)}"


@singledispatch
def _phrase(event: LedgerEvent, _code: str) -> str:
    raise AssertionError(f"no words for {type(event).__name__}")


# --- accounts --------------------------------------------------------------------------------------------------------


@_phrase.register
def _(event: AccountOpened, _code: str) -> str:
    outside = ", for the world outside" if event.kind is AccountKind.EXTERNAL else ""
    limit = f", with a credit limit of {_money(event.credit_limit)}" if event.credit_limit else ""
    return f"opened{outside}{limit}"


@_phrase.register
def _(event: FundsReserved, _code: str) -> str:
    return f"reserved: {_cause(event.cause)}"


@_phrase.register
def _(event: FundsReleased, _code: str) -> str:
    return f"released: {_cause(event.cause)}"


@_phrase.register
def _(event: FundsDebited, _code: str) -> str:
    return f"paid: {_cause(event.cause)}"


@_phrase.register
def _(event: FundsCredited, _code: str) -> str:
    return f"received: {_cause(event.cause)}"


@_phrase.register
def _(event: CreditLimitChanged, _code: str) -> str:
    return f"credit limit set to {money(event.credit_limit, event.after.currency_code)}{_why(event.reason)}"


@_phrase.register
def _(event: AccountFrozen, _code: str) -> str:
    return f"frozen for {_FROZEN_FOR[event.scope]}{_why(event.reason)}"


@_phrase.register
def _(event: AccountUnfrozen, _code: str) -> str:
    return f"unfrozen{_why(event.reason)}"


@_phrase.register
def _(event: AccountClosed, _code: str) -> str:
    return f"closed{_why(event.reason)}"


# --- payments --------------------------------------------------------------------------------------------------------


@_phrase.register
def _(event: PaymentAuthorized, _code: str) -> str:
    return f"authorized {_asked(event)}, until {_second(event.expires_at)}"


@_phrase.register
def _(event: PaymentDeclined, _code: str) -> str:
    return f"declined {_asked(event)}: {_refused(event)}"


@_phrase.register
def _(event: AuthorizationIncremented, code: str) -> str:
    return f"raised to {money(event.after.authorized, code)}: increment {event.increment_id}"


@_phrase.register
def _(event: PaymentCaptured, code: str) -> str:
    released = event.after.released - event.before.released
    rest = f", and released {money(released, code)}" if released else ""
    return f"captured {money(event.amount_captured, code)}{rest}: capture {event.capture_id}"


@_phrase.register
def _(event: PaymentVoided, code: str) -> str:
    return f"voided, and released {money(event.after.released - event.before.released, code)}{_why(event.reason)}"


@_phrase.register
def _(event: AuthorizationExpired, code: str) -> str:
    return f"expired, and released {money(event.after.expired - event.before.expired, code)}"


@_phrase.register
def _(event: PaymentRefunded, code: str) -> str:
    return f"refunded {money(event.amount_refunded, code)}: refund {event.refund_id}"


# --- transfers -------------------------------------------------------------------------------------------------------


@_phrase.register
def _(event: TransferPosted, _code: str) -> str:
    return f"posted {_legs(event)}"


@_phrase.register
def _(event: TransferDeclined, _code: str) -> str:
    leg = f", in leg {event.declined_leg}" if len(event.legs) > 1 else ""
    return f"declined {_legs(event)}: {_refused(event)}{leg}"


# --- parts of phrases ------------------------------------------------------------------------------------------------


def _cause(cause: Cause) -> str:
    """Which command it was: "capture parcel-1 of payment order-17"."""
    if cause.kind is CauseKind.TRANSFER:
        return f"transfer {cause.transfer_id}, leg {cause.leg}"
    part = cause.capture_id or cause.refund_id or cause.increment_id
    words = filter(None, [cause.kind.lower(), part, "of payment", cause.payment_id])
    return " ".join(words)


def _asked(event: PaymentRequested) -> str:
    return f"{_money(event.amount)} from {event.payer_account_id} to {event.payee_account_id}"


def _legs(event: TransferEvent) -> str:
    """The only leg in full; of several, how many there are."""
    if len(event.legs) > 1:
        return f"{len(event.legs)} legs"
    return "; ".join(f"{_money(leg.amount)} from {leg.from_account_id} to {leg.to_account_id}" for leg in event.legs)


def _refused(event: PaymentDeclined | TransferDeclined) -> str:
    return f"{event.decline_reason.lower().replace('_', ' ')} on account {event.declined_account_id}"


def _money(amount: Money) -> str:
    return money(amount.minor_units, amount.currency_code)


def _why(reason: str) -> str:
    return f": {reason}" if reason else ""


def _effective(event: Any) -> str:
    """When it counts in reports, where that is not when it was recorded."""
    effective_at = getattr(event, "effective_at", None) or event.timestamp
    return "" if effective_at == event.timestamp else f" (effective {_second(effective_at)})"


def _second(moment: datetime) -> str:
    return f"{moment.isoformat()[:19]}Z"
