"""From the requests of the API to commands. What can't be a command is raised as InvalidCommand."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, TypeAlias

from google.protobuf.message import Message

from ledger.card_numbers import refuse_card_numbers
from ledger.domain.commands import (
    AuthorizePayment,
    CapturePayment,
    CloseAccount,
    Command,
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
from ledger.domain.errors import FieldViolation, InvalidCommand
from ledger.domain.events import AccountKind, FreezeScope, TransferLeg
from ledger.domain.money import Money
from ledger.v1 import account_pb2, batch_pb2, ledger_pb2, payment_pb2, transfer_pb2
from ledger.wire import duration, moment

ToCommand: TypeAlias = Callable[[Any], Command]

_ACCOUNT_KINDS: Final = {
    account_pb2.ACCOUNT_KIND_UNSPECIFIED: AccountKind.CUSTOMER,
    account_pb2.ACCOUNT_KIND_CUSTOMER: AccountKind.CUSTOMER,
    account_pb2.ACCOUNT_KIND_EXTERNAL: AccountKind.EXTERNAL,
}
_FREEZE_SCOPES: Final = {
    account_pb2.FREEZE_SCOPE_UNSPECIFIED: FreezeScope.ALL,
    account_pb2.FREEZE_SCOPE_DEBITS: FreezeScope.DEBITS,
    account_pb2.FREEZE_SCOPE_CREDITS: FreezeScope.CREDITS,
    account_pb2.FREEZE_SCOPE_ALL: FreezeScope.ALL,
}


def command_of(request: Message) -> Command:
    """The command that a write request asks for."""
    command = TO_COMMAND[type(request)](request)
    refuse_card_numbers(command)
    return command


def batch_commands(request: batch_pb2.ExecuteBatchRequest) -> list[Command | InvalidCommand]:
    """The commands of a batch in order, or in a command's place what is wrong with it (its fields as it names them)."""
    return [_batch_command(number, each) for number, each in enumerate(request.commands)]


def _batch_command(number: int, entry: batch_pb2.BatchCommand) -> Command | InvalidCommand:
    name = entry.WhichOneof("command")
    if name is None:
        return InvalidCommand(FieldViolation(f"commands[{number}]", "must be set to one of the requests"))
    request = getattr(entry, name)
    if request.ledger:
        return InvalidCommand(FieldViolation("ledger", "must be empty: the batch names the ledger"))
    if request.validate_only:
        return InvalidCommand(FieldViolation("validate_only", "must be unset: the batch says it for all"))
    try:
        return command_of(request)
    except InvalidCommand as invalid:
        return invalid


def _open_account(request: account_pb2.OpenAccountRequest) -> OpenAccount:
    return OpenAccount(
        account_id=request.account_id,
        currency_code=request.currency_code,
        kind=_enum(_ACCOUNT_KINDS, request.kind, "kind"),
        credit_limit=_money(request.credit_limit) if request.HasField("credit_limit") else None,
        metadata=dict(request.metadata),
        **_common(request),
    )


def _set_credit_limit(request: account_pb2.SetCreditLimitRequest) -> SetCreditLimit:
    return SetCreditLimit(
        account_id=request.account_id,
        credit_limit=_money(request.credit_limit),
        reason=request.reason,
        **_common(request),
    )


def _freeze_account(request: account_pb2.FreezeAccountRequest) -> FreezeAccount:
    return FreezeAccount(
        account_id=request.account_id,
        scope=_enum(_FREEZE_SCOPES, request.scope, "scope"),
        reason=request.reason,
        **_common(request),
    )


def _unfreeze_account(request: account_pb2.UnfreezeAccountRequest) -> UnfreezeAccount:
    return UnfreezeAccount(account_id=request.account_id, reason=request.reason, **_common(request))


def _close_account(request: account_pb2.CloseAccountRequest) -> CloseAccount:
    return CloseAccount(account_id=request.account_id, reason=request.reason, **_common(request))


def _authorize_payment(request: payment_pb2.AuthorizePaymentRequest) -> AuthorizePayment:
    fields = _described(request)
    if request.HasField("hold_for"):
        fields["hold_for"] = duration(request.hold_for, "hold_for")
    return AuthorizePayment(
        payment_id=request.payment_id,
        payer_account_id=request.payer_account_id,
        payee_account_id=request.payee_account_id,
        amount=_money(request.amount),
        **fields,
    )


def _increment_authorization(request: payment_pb2.IncrementAuthorizationRequest) -> IncrementAuthorization:
    return IncrementAuthorization(
        payment_id=request.payment_id,
        increment_id=request.increment_id,
        amount=_money(request.amount),
        **_common(request),
    )


def _capture_payment(request: payment_pb2.CapturePaymentRequest) -> CapturePayment:
    return CapturePayment(
        payment_id=request.payment_id,
        capture_id=request.capture_id,
        amount=_money(request.amount) if request.HasField("amount") else None,
        keep_remainder=request.keep_remainder,
        effective_at=_effective_at(request),
        **_common(request),
    )


def _void_payment(request: payment_pb2.VoidPaymentRequest) -> VoidPayment:
    return VoidPayment(payment_id=request.payment_id, reason=request.reason, **_common(request))


def _refund_payment(request: payment_pb2.RefundPaymentRequest) -> RefundPayment:
    return RefundPayment(
        payment_id=request.payment_id,
        refund_id=request.refund_id,
        amount=_money(request.amount) if request.HasField("amount") else None,
        effective_at=_effective_at(request),
        **_common(request),
    )


def _post_transfer(request: transfer_pb2.PostTransferRequest) -> PostTransfer:
    return PostTransfer(
        transfer_id=request.transfer_id,
        legs=tuple(
            TransferLeg(from_account_id=leg.from_account_id, to_account_id=leg.to_account_id, amount=_money(leg.amount))
            for leg in request.legs
        ),
        **_described(request),
    )


def _common(request: Any) -> dict[str, Any]:
    """The fields of every command, where they are set."""
    common: dict[str, Any] = {}
    if request.validate_only:
        common["validate_only"] = True
    if request.preconditions:
        common["preconditions"] = tuple(
            Precondition(each.account_id, each.expected_version) for each in request.preconditions
        )
    return common


def _described(request: Any) -> dict[str, Any]:
    """The same, and those that say more of what is to be done. What is not passed on has nothing to be validated."""
    fields = _common(request)
    if request.reference:
        fields["reference"] = request.reference
    if request.metadata:
        fields["metadata"] = dict(request.metadata)
    if effective_at := _effective_at(request):
        fields["effective_at"] = effective_at
    return fields


def _money(message: ledger_pb2.Money) -> Money:
    return Money(message.currency_code, message.minor_units)


def _effective_at(request: Any) -> datetime | None:
    return moment(request.effective_at, "effective_at") if request.HasField("effective_at") else None


def _enum(values: dict[Any, Any], value: int, field: str) -> Any:
    try:
        return values[value]
    except KeyError:
        raise InvalidCommand(FieldViolation(field, f"{value} is not a value of this enum")) from None


TO_COMMAND: Final[dict[type[Message], ToCommand]] = {
    account_pb2.OpenAccountRequest: _open_account,
    account_pb2.SetCreditLimitRequest: _set_credit_limit,
    account_pb2.FreezeAccountRequest: _freeze_account,
    account_pb2.UnfreezeAccountRequest: _unfreeze_account,
    account_pb2.CloseAccountRequest: _close_account,
    payment_pb2.AuthorizePaymentRequest: _authorize_payment,
    payment_pb2.IncrementAuthorizationRequest: _increment_authorization,
    payment_pb2.CapturePaymentRequest: _capture_payment,
    payment_pb2.VoidPaymentRequest: _void_payment,
    payment_pb2.RefundPaymentRequest: _refund_payment,
    transfer_pb2.PostTransferRequest: _post_transfer,
}
