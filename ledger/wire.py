"""Between the domain's values and protobuf's, both ways: times, money, enums, and the messages made of facts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from ledger.domain.errors import FieldViolation, InvalidCommand
from ledger.domain.events import (
    AccountKind,
    AccountState,
    AccountStatus,
    DeclineReason,
    FreezeScope,
)
from ledger.domain.money import Money
from ledger.domain.payment_state import PaymentState
from ledger.v1 import account_pb2, ledger_pb2, payment_pb2

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

ACCOUNT_KIND: Final = {
    AccountKind.CUSTOMER: account_pb2.ACCOUNT_KIND_CUSTOMER,
    AccountKind.EXTERNAL: account_pb2.ACCOUNT_KIND_EXTERNAL,
}
ACCOUNT_STATUS: Final = {
    AccountStatus.OPEN: account_pb2.ACCOUNT_STATUS_OPEN,
    AccountStatus.FROZEN: account_pb2.ACCOUNT_STATUS_FROZEN,
    AccountStatus.CLOSED: account_pb2.ACCOUNT_STATUS_CLOSED,
}
FREEZE_SCOPE: Final = {
    None: account_pb2.FREEZE_SCOPE_UNSPECIFIED,
    FreezeScope.DEBITS: account_pb2.FREEZE_SCOPE_DEBITS,
    FreezeScope.CREDITS: account_pb2.FREEZE_SCOPE_CREDITS,
    FreezeScope.ALL: account_pb2.FREEZE_SCOPE_ALL,
}
DECLINE_REASON: Final = {
    DeclineReason.ACCOUNT_CLOSED: ledger_pb2.DECLINE_REASON_ACCOUNT_CLOSED,
    DeclineReason.ACCOUNT_FROZEN: ledger_pb2.DECLINE_REASON_ACCOUNT_FROZEN,
    DeclineReason.INSUFFICIENT_FUNDS: ledger_pb2.DECLINE_REASON_INSUFFICIENT_FUNDS,
    DeclineReason.BALANCE_LIMIT: ledger_pb2.DECLINE_REASON_BALANCE_LIMIT,
}
PAYMENT_STATE: Final = {
    PaymentState.DECLINED: payment_pb2.PAYMENT_STATE_DECLINED,
    PaymentState.AUTHORIZED: payment_pb2.PAYMENT_STATE_AUTHORIZED,
    PaymentState.PARTIALLY_CAPTURED: payment_pb2.PAYMENT_STATE_PARTIALLY_CAPTURED,
    PaymentState.CAPTURED: payment_pb2.PAYMENT_STATE_CAPTURED,
    PaymentState.VOIDED: payment_pb2.PAYMENT_STATE_VOIDED,
    PaymentState.EXPIRED: payment_pb2.PAYMENT_STATE_EXPIRED,
}


def timestamp(moment: datetime) -> Timestamp:
    """A moment in UTC, to the microsecond."""
    message = Timestamp()
    set_timestamp(message, moment)
    return message


def set_timestamp(message: Timestamp, moment: datetime) -> None:
    """Set a Timestamp in place."""
    since = moment - _EPOCH
    message.seconds = since.days * 86_400 + since.seconds
    message.nanos = since.microseconds * 1_000


def moment(message: Timestamp, field: str) -> datetime:
    """The moment of a Timestamp, cut to the microsecond; raises InvalidCommand if it is none of the years 1 to 9999."""
    try:
        if not 0 <= message.nanos < 1_000_000_000:
            raise OverflowError
        return _EPOCH + timedelta(seconds=message.seconds, microseconds=message.nanos // 1_000)
    except OverflowError:
        raise InvalidCommand(
            FieldViolation(field, "must be a time from year 1 to 9999, nanos 0 to 999999999")
        ) from None


def duration(message: Duration, field: str) -> timedelta:
    """The length of a Duration, cut to the microsecond; raises InvalidCommand if it is malformed or negative."""
    try:
        if message.seconds < 0 or not 0 <= message.nanos < 1_000_000_000:
            raise OverflowError
        return timedelta(seconds=message.seconds, microseconds=message.nanos // 1_000)
    except OverflowError:
        raise InvalidCommand(FieldViolation(field, "must be a duration that is not negative")) from None


def money(amount: Money) -> ledger_pb2.Money:
    return ledger_pb2.Money(currency_code=amount.currency_code, minor_units=amount.minor_units)


def credit_limit(state: AccountState) -> int | None:
    """An EXTERNAL account has none."""
    return None if state.kind is AccountKind.EXTERNAL else state.credit_limit
