"""From outcomes and refusals to the replies of the API."""

from __future__ import annotations

from typing import Any, Final

from google.protobuf.message import Message

from ledger.domain.account import Account
from ledger.domain.decisions import Outcome
from ledger.domain.errors import Refusal
from ledger.domain.events import (
    AuthorizationIncremented,
    PaymentCaptured,
    PaymentDeclined,
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
    money,
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


def response_to(request: Message, outcome: Outcome) -> Any:
    """The response of the request's rpc."""
    thing = outcome.thing
    common = {
        "position": outcome.position,
        "recorded_at": timestamp(outcome.recorded_at),
        "replayed": outcome.replayed,
        "balances": [balance_message(account) for account in outcome.accounts],
    }
    response = RESPONSE_OF[type(request)]
    if isinstance(thing, Payment):
        return response(payment=payment_message(thing), **common)
    if isinstance(thing, Transfer):
        return response(transfer=transfer_message(thing), **common)
    return response(account=account_message(thing), **common)


def batch_response(request: batch_pb2.ExecuteBatchRequest, results: list[Result]) -> batch_pb2.ExecuteBatchResponse:
    """One result per command, in order."""
    response = batch_pb2.ExecuteBatchResponse()
    for entry, result in zip(request.commands, results, strict=True):
        if isinstance(result, Refusal):
            response.results.append(batch_pb2.BatchResult(error=status_of(result)))
        else:
            name = entry.WhichOneof("command")
            assert name is not None
            reply = response_to(getattr(entry, name), result)
            response.results.append(batch_pb2.BatchResult(**{name: reply}))
            response.position = max(response.position, result.position)
    return response


def account_message(account: Account) -> account_pb2.Account:
    state = account.state
    message = account_pb2.Account(
        account_id=account.account_id,
        currency_code=state.currency_code,
        kind=ACCOUNT_KIND[state.kind],
        status=ACCOUNT_STATUS[state.status],
        freeze_scope=FREEZE_SCOPE[state.freeze_scope],
        posted=state.posted,
        reserved=state.reserved,
        credit_limit=credit_limit(state),
        available=state.available,
        version=account.version,
    )
    if account.opening is not None:
        message.opened_at.CopyFrom(timestamp(account.opening.timestamp))
        message.metadata.update(account.opening.metadata)
    return message


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


def payment_message(payment: Payment) -> payment_pb2.Payment:
    request, amounts = payment.request, payment.amounts
    authorized_at = timestamp(request.timestamp)
    message = payment_pb2.Payment(
        payment_id=request.payment_id,
        payer_account_id=request.payer_account_id,
        payee_account_id=request.payee_account_id,
        currency_code=request.amount.currency_code,
        state=PAYMENT_STATE[payment.state],
        amount_requested=request.amount.minor_units,
        amount_authorized=amounts.authorized,
        amount_captured=amounts.captured,
        amount_capturable=amounts.capturable,
        amount_released=amounts.released,
        amount_expired=amounts.expired,
        amount_refunded=amounts.refunded,
        authorized_at=authorized_at,
        effective_at=timestamp(request.effective_at) if request.effective_at else authorized_at,
        version=payment.version,
        reference=request.reference,
        metadata=request.metadata,
    )
    if isinstance(request, PaymentDeclined):
        message.decline_reason = DECLINE_REASON[request.decline_reason]
        message.declined_account_id = request.declined_account_id
    else:
        message.expires_at.CopyFrom(timestamp(request.expires_at))
    if len(payment.history) > 1:
        _add_changes(message, payment)
    return message


def _add_changes(message: payment_pb2.Payment, payment: Payment) -> None:
    for event in payment.history[1:]:
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


def transfer_message(transfer: Transfer) -> transfer_pb2.Transfer:
    event = transfer.outcome
    recorded_at = timestamp(event.timestamp)
    message = transfer_pb2.Transfer(
        transfer_id=event.transfer_id,
        state=transfer_pb2.TRANSFER_STATE_POSTED,
        legs=[
            transfer_pb2.TransferLeg(
                from_account_id=leg.from_account_id, to_account_id=leg.to_account_id, amount=money(leg.amount)
            )
            for leg in event.legs
        ],
        reference=event.reference,
        metadata=event.metadata,
        recorded_at=recorded_at,
        effective_at=timestamp(event.effective_at) if event.effective_at else recorded_at,
    )
    if isinstance(event, TransferDeclined):
        message.state = transfer_pb2.TRANSFER_STATE_DECLINED
        message.decline_reason = DECLINE_REASON[event.decline_reason]
        message.declined_leg = event.declined_leg
        message.declined_account_id = event.declined_account_id
    return message
