"""Replay: the command that an event was the answer to. Every event tells its request as it was asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import msgspec

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
    RefundPayment,
    SetCreditLimit,
    UnfreezeAccount,
    VoidPayment,
)
from ledger.domain.events import (
    AccountClosed,
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
    PaymentVoided,
    TransferDeclined,
    TransferLeg,
    TransferPosted,
)
from ledger.domain.money import Money

Fields: TypeAlias = dict[str, Any]


def begins_command(kind: type[LedgerEvent]) -> bool:
    """Whether a command's first event is of this kind. Money reserved or moved on an account is never the first."""
    return kind in _REBUILD


def command_of(kind: type[LedgerEvent], stream: str, fields: Fields) -> Command:
    """The command whose first event has these fields, as JSON has them.

    What the answer did not depend on is not recorded and not in it: `validate_only` and preconditions.
    Raises InvalidCommand if the request was malformed, KeyError if the event does not tell all of it, TypeError or
    msgspec's ValidationError if an amount is none.
    """
    return _REBUILD[kind](stream, fields)


def _asked(fields: Fields, *names: str) -> Fields:
    """What was asked; a field that is not there was unset."""
    return {name: _VALUES[name](fields[name]) if name in _VALUES else fields[name] for name in names if name in fields}


def _open_account(_: str, fields: Fields) -> Command:
    after = fields["after"]
    asked = _asked(fields, "account_id", "credit_limit", "metadata")
    return OpenAccount(currency_code=after["currency_code"], kind=after["kind"], **asked)


def _set_credit_limit(stream: str, fields: Fields) -> Command:
    limit = Money(fields["after"]["currency_code"], fields["credit_limit"])
    return SetCreditLimit(account_id=_id(stream), credit_limit=limit, reason=fields["reason"])


def _freeze_account(stream: str, fields: Fields) -> Command:
    return FreezeAccount(account_id=_id(stream), scope=fields["scope"], reason=fields["reason"])


def _unfreeze_account(stream: str, fields: Fields) -> Command:
    return UnfreezeAccount(account_id=_id(stream), reason=fields["reason"])


def _close_account(stream: str, fields: Fields) -> Command:
    return CloseAccount(account_id=_id(stream), reason=fields["reason"])


def _authorize_payment(_: str, fields: Fields) -> Command:
    return AuthorizePayment(**_asked(fields, "payment_id", *AuthorizePayment.compared))


def _increment_authorization(stream: str, fields: Fields) -> Command:
    return IncrementAuthorization(payment_id=_id(stream), **_asked(fields, "increment_id", "amount"))


def _capture_payment(stream: str, fields: Fields) -> Command:
    asked = _asked(fields, "capture_id", *CapturePayment.compared)
    return CapturePayment(payment_id=_id(stream), **asked)


def _void_payment(stream: str, fields: Fields) -> Command:
    return VoidPayment(payment_id=_id(stream), reason=fields["reason"])


def _expire_authorization(stream: str, _: Fields) -> Command:
    return ExpireAuthorization(payment_id=_id(stream))


def _refund_payment(stream: str, fields: Fields) -> Command:
    return RefundPayment(payment_id=_id(stream), **_asked(fields, "refund_id", *RefundPayment.compared))


def _post_transfer(_: str, fields: Fields) -> Command:
    return PostTransfer(**_asked(fields, "transfer_id", *PostTransfer.compared))


def _id(stream: str) -> str:
    return stream.partition("/")[2]


def _money(field: Any) -> Money | None:
    return msgspec.convert(field, Money | None)


def _legs(field: Any) -> tuple[TransferLeg, ...]:
    return msgspec.convert(field, tuple[TransferLeg, ...])


_VALUES: Final[dict[str, Callable[[Any], Any]]] = {"amount": _money, "credit_limit": _money, "legs": _legs}
"""Fields that a command takes as values, and not as JSON has them."""

_REBUILD: Final[dict[type[LedgerEvent], Callable[[str, Fields], Command]]] = {
    AccountOpened: _open_account,
    CreditLimitChanged: _set_credit_limit,
    AccountFrozen: _freeze_account,
    AccountUnfrozen: _unfreeze_account,
    AccountClosed: _close_account,
    PaymentAuthorized: _authorize_payment,
    PaymentDeclined: _authorize_payment,
    AuthorizationIncremented: _increment_authorization,
    PaymentCaptured: _capture_payment,
    PaymentVoided: _void_payment,
    AuthorizationExpired: _expire_authorization,
    PaymentRefunded: _refund_payment,
    TransferPosted: _post_transfer,
    TransferDeclined: _post_transfer,
}
