"""Answers: the messages of the API, made from the rows of the read models."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp

from ledger.domain.events import AccountKind, AccountStatus, DeclineReason, FreezeScope
from ledger.domain.payment_state import PaymentState
from ledger.v1 import account_pb2, ledger_pb2, payment_pb2, transfer_pb2
from ledger.wire import ACCOUNT_KIND, ACCOUNT_STATUS, DECLINE_REASON, FREEZE_SCOPE, PAYMENT_STATE, timestamp
from projections.balances import Balance, KnownBalance
from projections.entries import Entry
from projections.payments import Payment
from projections.transfers import Transfer

TRANSFER_STATE: Final = {
    "POSTED": transfer_pb2.TRANSFER_STATE_POSTED,
    "DECLINED": transfer_pb2.TRANSFER_STATE_DECLINED,
}

ENTRY_KIND: Final = {
    "OPENED": account_pb2.ENTRY_KIND_OPENING,
    "AUTHORIZED": account_pb2.ENTRY_KIND_AUTHORIZATION,
    "INCREMENTED": account_pb2.ENTRY_KIND_INCREMENT,
    "CAPTURED": account_pb2.ENTRY_KIND_CAPTURE,
    "VOIDED": account_pb2.ENTRY_KIND_VOID,
    "EXPIRED": account_pb2.ENTRY_KIND_EXPIRY,
    "REFUNDED": account_pb2.ENTRY_KIND_REFUND,
    "TRANSFERRED": account_pb2.ENTRY_KIND_TRANSFER,
    "CREDIT_LIMIT_CHANGED": account_pb2.ENTRY_KIND_CREDIT_LIMIT,
    "FROZEN": account_pb2.ENTRY_KIND_FREEZE,
    "UNFROZEN": account_pb2.ENTRY_KIND_UNFREEZE,
    "CLOSED": account_pb2.ENTRY_KIND_CLOSING,
}


def account_message(row: Balance) -> account_pb2.Account:
    return account_pb2.Account(
        account_id=row.account_id,
        currency_code=row.currency_code,
        kind=ACCOUNT_KIND[AccountKind(row.kind)],
        status=ACCOUNT_STATUS[AccountStatus(row.status)],
        freeze_scope=FREEZE_SCOPE[FreezeScope(row.freeze_scope) if row.freeze_scope else None],
        posted=row.posted,
        reserved=row.reserved,
        credit_limit=row.credit_limit,
        available=row.available,
        version=row.version,
        opened_at=timestamp(row.opened_at),
        metadata=row.metadata,
    )


def balance_message(row: Balance | KnownBalance) -> account_pb2.AccountBalance:
    return account_pb2.AccountBalance(
        account_id=row.account_id,
        currency_code=row.currency_code,
        posted=row.posted,
        reserved=row.reserved,
        available=row.available,
        credit_limit=row.credit_limit,
        version=row.version,
        position=row.position,
    )


def payment_message(row: Payment) -> payment_pb2.Payment:
    return payment_pb2.Payment(
        payment_id=row.payment_id,
        payer_account_id=row.payer_account_id,
        payee_account_id=row.payee_account_id,
        currency_code=row.currency_code,
        state=PAYMENT_STATE[PaymentState(row.state)],
        amount_requested=row.amount_requested,
        amount_authorized=row.amount_authorized,
        amount_captured=row.amount_captured,
        amount_capturable=row.amount_capturable,
        amount_released=row.amount_released,
        amount_expired=row.amount_expired,
        amount_refunded=row.amount_refunded,
        authorized_at=timestamp(row.authorized_at),
        expires_at=timestamp(row.expires_at) if row.expires_at else None,
        version=row.version,
        effective_at=timestamp(row.effective_at),
        reference=row.reference,
        metadata=row.metadata,
        captures=[payment_pb2.Capture(**_with_times(each)) for each in row.captures],
        refunds=[payment_pb2.Refund(**_with_times(each)) for each in row.refunds],
        increments=[payment_pb2.Increment(**_with_times(each)) for each in row.increments],
        decline_reason=_decline_reason(row.decline_reason),
        declined_account_id=row.declined_account_id or "",
        void_reason=row.void_reason or "",
    )


def transfer_message(row: Transfer) -> transfer_pb2.Transfer:
    return transfer_pb2.Transfer(
        transfer_id=row.transfer_id,
        state=TRANSFER_STATE[row.state],
        legs=[_leg(each) for each in row.legs],
        reference=row.reference,
        metadata=row.metadata,
        recorded_at=timestamp(row.recorded_at),
        effective_at=timestamp(row.effective_at),
        decline_reason=_decline_reason(row.decline_reason),
        declined_leg=row.declined_leg,
        declined_account_id=row.declined_account_id or "",
    )


def entry_message(row: Entry) -> account_pb2.Entry:
    return account_pb2.Entry(
        position=row.position,
        version=row.version,
        recorded_at=timestamp(row.recorded_at),
        effective_at=timestamp(row.effective_at),
        kind=ENTRY_KIND[row.kind],
        amount=row.posted_change,
        reserved_change=row.reserved_change,
        posted=row.posted,
        reserved=row.reserved,
        available=row.available,
        credit_limit=row.credit_limit,
        account_id=row.account_id,
        currency_code=row.currency_code,
        counterparty_account_id=row.counterparty_account_id or "",
        payment_id=row.payment_id or "",
        transfer_id=row.transfer_id or "",
        leg=row.leg,
        capture_id=row.capture_id or "",
        refund_id=row.refund_id or "",
        increment_id=row.increment_id or "",
        reference=row.reference,
        reason=row.reason or "",
    )


def _decline_reason(reason: str | None) -> ledger_pb2.DeclineReason.ValueType:
    return DECLINE_REASON[DeclineReason(reason)] if reason else ledger_pb2.DECLINE_REASON_UNSPECIFIED


def _leg(leg: dict[str, Any]) -> transfer_pb2.TransferLeg:
    return transfer_pb2.TransferLeg(
        from_account_id=leg["from_account_id"],
        to_account_id=leg["to_account_id"],
        amount=ledger_pb2.Money(currency_code=leg["currency_code"], minor_units=leg["minor_units"]),
    )


def _with_times(item: dict[str, Any]) -> dict[str, Any]:
    """An item of a jsonb list, its times as messages."""
    return {key: _time(value) if key.endswith("_at") else value for key, value in item.items()}


def _time(text: str) -> Timestamp:
    return timestamp(datetime.fromisoformat(text))
