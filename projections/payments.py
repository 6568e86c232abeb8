"""Payments: every payment as it stands, with its captures, refunds and increments."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple

from psycopg import Cursor

from ledger.domain.events import (
    AuthorizationIncremented,
    PaymentAmounts,
    PaymentAuthorized,
    PaymentCaptured,
    PaymentRefunded,
    PaymentRequested,
    PaymentVoided,
)
from ledger.domain.money import minor_digits
from ledger.domain.payment_state import payment_state
from ledger.postgres import sql_blocks
from projections.batch import PAYMENT_EVENTS, LoggedEvent
from projections.rows import Row, copy_rows, json_text, require_successor, update_rows

SQL: Final = sql_blocks("projections", "payments.sql")


class Payment(NamedTuple):
    """A payment as queries read it (select_payments, list_columns)."""

    payment_id: str
    payer_account_id: str
    payee_account_id: str
    currency_code: str
    state: str
    amount_requested: int
    amount_authorized: int
    amount_captured: int
    amount_capturable: int
    amount_released: int
    amount_expired: int
    amount_refunded: int
    authorized_at: datetime
    expires_at: datetime | None
    version: int
    effective_at: datetime
    reference: str
    metadata: dict[str, str]
    captures: list[dict[str, Any]]
    refunds: list[dict[str, Any]]
    increments: list[dict[str, Any]]
    decline_reason: str | None
    declined_account_id: str | None
    void_reason: str | None


@dataclass(slots=True)
class PaymentChange:
    """What a batch does to one payment. `requested` is its first event, if that is in the batch."""

    version_before: int
    requested: LoggedEvent | None
    last: LoggedEvent
    captures: list[dict[str, Any]] = field(default_factory=list)
    refunds: list[dict[str, Any]] = field(default_factory=list)
    increments: list[dict[str, Any]] = field(default_factory=list)
    void_reason: str | None = None


def fold(events: Iterable[LoggedEvent]) -> list[PaymentChange]:
    """What the events do to each payment. Every change carries the amounts after it, so the last one says it all."""
    changes: dict[str, PaymentChange] = {}
    for event in events:
        if event.kind not in PAYMENT_EVENTS:
            continue
        change = changes.get(event.stream)
        if change is None:
            requested = event if issubclass(event.kind, PaymentRequested) else None
            changes[event.stream] = PaymentChange(event.version - 1, requested, event)
        else:
            require_successor(event, change.last.version)
            change.last = event
        _add(changes[event.stream], event)
    return list(changes.values())


def write(cursor: Cursor[Any], changes: list[PaymentChange]) -> None:
    copy_rows(cursor, SQL.insert_requested, [new_row(each) for each in changes if each.requested])
    changed = [(each.last.id, each.version_before, *_standing(each)) for each in changes if not each.requested]
    # In one order, so that row locks are always taken in it.
    update_rows(cursor, SQL.update_changed, sorted(changed, key=lambda row: row[0]))


def new_row(change: PaymentChange) -> Row:
    """The payment that a change comes to which begins with its first event, in the order of `insert_requested`."""
    assert change.requested is not None
    return *_asked(change.requested), *_standing(change)


def as_row(change: PaymentChange) -> Payment:
    """The payment that a change comes to which begins with its first event."""
    assert change.requested is not None
    fields, amounts = change.requested.fields, _amounts(change.last)
    expires_at = fields.get("expires_at")
    return Payment(
        payment_id=fields["payment_id"],
        payer_account_id=fields["payer_account_id"],
        payee_account_id=fields["payee_account_id"],
        currency_code=fields["amount"]["currency_code"],
        state=payment_state(amounts),
        amount_requested=fields["amount"]["minor_units"],
        amount_authorized=amounts.authorized,
        amount_captured=amounts.captured,
        amount_capturable=amounts.capturable,
        amount_released=amounts.released,
        amount_expired=amounts.expired,
        amount_refunded=amounts.refunded,
        authorized_at=datetime.fromisoformat(change.requested.recorded_at),
        expires_at=datetime.fromisoformat(expires_at) if expires_at else None,
        version=change.last.version,
        effective_at=datetime.fromisoformat(change.requested.effective_at),
        reference=fields["reference"],
        metadata=fields["metadata"],
        captures=change.captures,
        refunds=change.refunds,
        increments=change.increments,
        decline_reason=fields.get("decline_reason"),
        declined_account_id=fields.get("declined_account_id"),
        void_reason=change.void_reason,
    )


def _add(change: PaymentChange, event: LoggedEvent) -> None:
    """Note what the event adds to the lists of its payment."""
    fields = event.fields
    if event.kind is PaymentCaptured:
        change.captures.append(
            {
                "capture_id": fields["capture_id"],
                "amount": fields["after"]["captured"] - fields["before"]["captured"],
                "amount_released": fields["after"]["released"] - fields["before"]["released"],
                "recorded_at": event.recorded_at,
                "effective_at": event.effective_at,
            }
        )
    elif event.kind is PaymentRefunded:
        change.refunds.append(
            {
                "refund_id": fields["refund_id"],
                "amount": fields["after"]["refunded"] - fields["before"]["refunded"],
                "recorded_at": event.recorded_at,
                "effective_at": event.effective_at,
            }
        )
    elif event.kind is AuthorizationIncremented:
        change.increments.append(
            {
                "increment_id": fields["increment_id"],
                "amount": fields["after"]["authorized"],
                "recorded_at": event.recorded_at,
            }
        )
    elif event.kind is PaymentVoided:
        change.void_reason = fields["reason"]


def _asked(requested: LoggedEvent) -> Row:
    """The columns of `insert_requested` that never change."""
    fields = requested.fields
    currency_code = fields["amount"]["currency_code"]
    return (
        fields["payment_id"],
        fields["payer_account_id"],
        fields["payee_account_id"],
        currency_code,
        minor_digits(currency_code),
        fields["amount"]["minor_units"],
        requested.recorded_at,
        requested.position,
        fields.get("expires_at"),
        requested.effective_at,
        fields["reference"],
        json_text(fields["metadata"]),
        fields.get("decline_reason"),
        fields.get("declined_account_id"),
    )


def _standing(change: PaymentChange) -> Row:
    """The columns that `insert_requested` and `update_changed` have in common, from `state` on."""
    amounts, last = _amounts(change.last), change.last
    return (
        payment_state(amounts),
        amounts.authorized,
        amounts.captured,
        amounts.capturable,
        amounts.released,
        amounts.expired,
        amounts.refunded,
        json_text(change.captures),
        json_text(change.refunds),
        json_text(change.increments),
        change.void_reason,
        last.version,
        last.position,
        last.recorded_at,
    )


def _amounts(event: LoggedEvent) -> PaymentAmounts:
    """Where the money of the payment is after the event."""
    if issubclass(event.kind, PaymentRequested):
        authorized = event.fields["amount"]["minor_units"] if event.kind is PaymentAuthorized else 0
        after = {
            "authorized": authorized,
            "capturable": authorized,
            "captured": 0,
            "expired": 0,
            "refunded": 0,
            "released": 0,
        }
    else:
        after = event.fields["after"]
    return PaymentAmounts(**after)
