"""From outcomes and refusals to the replies of the API."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from google.protobuf.message import Message

from ledger.domain.account import Account
from ledger.domain.decisions import Outcome
from ledger.domain.errors import InvalidCommand, Refusal
from ledger.domain.events import (
    AuthorizationIncremented,
    PaymentAuthorized,
    PaymentCaptured,
    PaymentDeclined,
    PaymentEvent,
    PaymentRefunded,
    PaymentVoided,
    TransferDeclined,
)
from ledger.domain.payment import Payment
from ledger.domain.transfer import Transfer
from ledger.status import status_of
from ledger.ticket import Result
from ledger.v1 import account_pb2, batch_pb2, payment_pb2, transfer_pb2
from ledger.wire import (
    ACCOUNT_KIND,
    ACCOUNT_STATUS,
    DECLINE_REASON,
    FREEZE_SCOPE,
    PAYMENT_STATE,
    credit_limit,
    set_timestamp,
    timestamp,
)

RESPONSE_OF: Final[dict[type[Message], type[Any]]] = {
    account_pb2.OpenAccountRequest: account_pb2.OpenAccountResponse,
    account_pb2.SetCreditLimitRequest: account_pb2.SetCreditLimitResponse,
    account_pb2.FreezeAccountRequest: account_pb2.FreezeAccountResponse,
    account_pb2.UnfreezeAccountRequest: account_pb2.UnfreezeAccountResponse,
    account_pb2.CloseAccountRequest: account_pb2.CloseAccountResponse,
    payment_pb2.AuthorizePaymentRequest: payment_pb2.AuthorizePaymentResponse,
    payment_pb2.IncrementAuthorizationRequest: payment_pb2.IncrementAuthorizationResponse,
    payment_pb2.CapturePaymentRequest: payment_pb2.CapturePaymentResponse,
    payment_pb2.VoidPaymentRequest: payment_pb2.VoidPaymentResponse,
    payment_pb2.RefundPaymentRequest: payment_pb2.RefundPaymentResponse,
    transfer_pb2.PostTransferRequest: transfer_pb2.PostTransferResponse,
}


class _Shown:
    """What the results before have shown, for those that show it again: to copy it costs a fraction of making it."""

    def __init__(self) -> None:
        self.payments: Final[dict[str, payment_pb2.Payment]] = {}
        """As last shown, by id. Of a payment with a thousand changes, each of a thousand results lists all before."""

        self._frames: Final[dict[tuple[str, datetime, datetime | None, datetime | None], payment_pb2.Payment]] = {}

    def frame_of(self, request: PaymentAuthorized | PaymentDeclined) -> payment_pb2.Payment:
        """What payments that were asked for together have in common: their currency, and times."""
        expires_at = request.expires_at if isinstance(request, PaymentAuthorized) else None
        key = (request.amount.currency_code, request.timestamp, request.effective_at, expires_at)
        frame = self._frames.get(key)
        if frame is None:
            frame = self._frames[key] = payment_pb2.Payment(currency_code=request.amount.currency_code)
            set_timestamp(frame.authorized_at, request.timestamp)
            set_timestamp(frame.effective_at, request.effective_at or request.timestamp)
            if expires_at is not None:
                set_timestamp(frame.expires_at, expires_at)
        return frame


def response_to(request: Message, outcome: Outcome) -> Any:
    """The response of the request's rpc."""
    response = RESPONSE_OF[type(request)]()
    _fill(response, outcome, _Shown())
    return response


def batch_response(request: batch_pb2.ExecuteBatchRequest, results: list[Result]) -> batch_pb2.ExecuteBatchResponse:
    """One result per command, in order."""
    response = batch_pb2.ExecuteBatchResponse()
    shown, last = _Shown(), 0
    for number, (entry, result) in enumerate(zip(request.commands, results, strict=True)):
        message = response.results.add()
        name = entry.WhichOneof("command")
        if isinstance(result, InvalidCommand):
            message.error.CopyFrom(status_of(result.inside(f"commands[{number}].{name}." if name else "")))
        elif isinstance(result, Refusal):
            message.error.CopyFrom(status_of(result))
        else:
            assert name is not None
            _fill(getattr(message, name), result, shown)
            last = max(last, result.position)
    response.position = last
    return response


def _fill(response: Any, outcome: Outcome, shown: _Shown) -> None:
    """Fill a write response in place: in a batch, a message that is made apart would be copied twice."""
    thing = outcome.thing
    if isinstance(thing, Payment):
        fill_payment(response.payment, thing, shown)
    elif isinstance(thing, Transfer):
        fill_transfer(response.transfer, thing)
    else:
        fill_account(response.account, thing)
    response.position = outcome.position
    set_timestamp(response.recorded_at, outcome.recorded_at)
    if outcome.replayed:
        response.replayed = True
    if outcome.accounts:
        response.balances.extend(map(balance_message, outcome.accounts))


def fill_account(message: account_pb2.Account, account: Account) -> None:
    state, limit = account.state, credit_limit(account.state)
    message.account_id = account.account_id
    message.currency_code = state.currency_code
    message.kind = ACCOUNT_KIND[state.kind]
    message.status = ACCOUNT_STATUS[state.status]
    message.freeze_scope = FREEZE_SCOPE[state.freeze_scope]
    message.posted = state.posted
    message.reserved = state.reserved
    if limit is not None:
        message.credit_limit = limit
    message.available = state.available
    message.version = account.version
    if account.opening is not None:
        set_timestamp(message.opened_at, account.opening.timestamp)
        message.metadata.update(account.opening.metadata)


def balance_message(account: Account) -> account_pb2.AccountBalance:
    """The balance that an account would have: it has a version, but no position."""
    state = account.state
    return account_pb2.AccountBalance(
        account_id=account.account_id,
        currency_code=state.currency_code,
        posted=state.posted,
        reserved=state.reserved,
        available=state.available,
        credit_limit=credit_limit(state),
        version=account.version,
    )


def fill_payment(message: payment_pb2.Payment, payment: Payment, shown: _Shown | None = None) -> None:
    shown = shown or _Shown()
    request, amounts = payment.request, payment.amounts
    earlier = shown.payments.get(request.payment_id)
    if earlier is not None and earlier.version <= payment.version:
        message.CopyFrom(earlier)
        listed = earlier.version
    else:
        listed = 1
        message.CopyFrom(shown.frame_of(request))
        message.payment_id = request.payment_id
        message.payer_account_id = request.payer_account_id
        message.payee_account_id = request.payee_account_id
        message.amount_requested = request.amount.minor_units
        if request.reference:
            message.reference = request.reference
        if request.metadata:
            message.metadata.update(request.metadata)
        if isinstance(request, PaymentDeclined):
            message.decline_reason = DECLINE_REASON[request.decline_reason]
            message.declined_account_id = request.declined_account_id
    if len(payment.history) > listed:
        _add_changes(message, payment.history[listed:])
    message.state = PAYMENT_STATE[payment.state]
    message.version = payment.version
    message.amount_authorized = amounts.authorized
    message.amount_capturable = amounts.capturable
    # These only grow: where one is 0, it was before.
    if amounts.captured:
        message.amount_captured = amounts.captured
    if amounts.released:
        message.amount_released = amounts.released
    if amounts.expired:
        message.amount_expired = amounts.expired
    if amounts.refunded:
        message.amount_refunded = amounts.refunded
    shown.payments[request.payment_id] = message


def _add_changes(message: payment_pb2.Payment, events: Sequence[PaymentEvent]) -> None:
    for event in events:
        recorded_at = timestamp(event.timestamp)
        if isinstance(event, PaymentCaptured):
            message.captures.add(
                capture_id=event.capture_id,
                amount=event.amount_captured,
                amount_released=event.after.released - event.before.released,
                recorded_at=recorded_at,
                effective_at=timestamp(event.effective_at) if event.effective_at else recorded_at,
            )
        elif isinstance(event, PaymentRefunded):
            message.refunds.add(
                refund_id=event.refund_id,
                amount=event.amount_refunded,
                recorded_at=recorded_at,
                effective_at=timestamp(event.effective_at) if event.effective_at else recorded_at,
            )
        elif isinstance(event, AuthorizationIncremented):
            message.increments.add(
                increment_id=event.increment_id, amount=event.after.authorized, recorded_at=recorded_at
            )
        elif isinstance(event, PaymentVoided):
            message.void_reason = event.reason


def fill_transfer(message: transfer_pb2.Transfer, transfer: Transfer) -> None:
    event = transfer.outcome
    message.transfer_id = event.transfer_id
    message.state = transfer_pb2.TRANSFER_STATE_POSTED
    for leg in event.legs:
        moved = message.legs.add(from_account_id=leg.from_account_id, to_account_id=leg.to_account_id)
        moved.amount.currency_code = leg.amount.currency_code
        moved.amount.minor_units = leg.amount.minor_units
    message.reference = event.reference
    if event.metadata:
        message.metadata.update(event.metadata)
    set_timestamp(message.recorded_at, event.timestamp)
    set_timestamp(message.effective_at, event.effective_at or event.timestamp)
    if isinstance(event, TransferDeclined):
        message.state = transfer_pb2.TRANSFER_STATE_DECLINED
        message.decline_reason = DECLINE_REASON[event.decline_reason]
        message.declined_leg = event.declined_leg
        message.declined_account_id = event.declined_account_id
