"""What may stand in the way of a command, by the words of the protos. Each function raises Refusal or lets pass."""

from __future__ import annotations

from typing import Any, Final

from refused import Refusal
from wellformed import MOST, violations
from world import Key, World, changed

from ledger.v1.account_pb2 import (
    ACCOUNT_KIND_CUSTOMER,
    ACCOUNT_KIND_EXTERNAL,
    ACCOUNT_STATUS_CLOSED,
    FREEZE_SCOPE_ALL,
    FREEZE_SCOPE_CREDITS,
    FREEZE_SCOPE_DEBITS,
    FreezeScope,
)
from ledger.v1.ledger_pb2 import DeclineReason
from ledger.v1.payment_pb2 import PAYMENT_STATE_DECLINED

_NOT_COMPARED: Final = {"ledger", "validate_only", "preconditions"}


def forbidden(reason: str, **metadata: object) -> Refusal:
    """The state of the thing forbids it."""
    return Refusal("FAILED_PRECONDITION", reason, **metadata)


def require_same(first: Any, request: Any, id_field: str) -> None:
    """The request is the one that used the id up."""
    field = id_field if type(first) is not type(request) else _difference(first, request)
    if field is not None:
        names = {"id_field": id_field, "id": getattr(request, id_field), "field": field}
        raise Refusal("ALREADY_EXISTS", "ID_ALREADY_USED", **names)


def _difference(first: Any, request: Any) -> str | None:
    """The first field in which two requests differ, as they were sent."""
    one, other = _as_kept(first), _as_kept(request)
    for field in one.DESCRIPTOR.fields:
        if field.name not in _NOT_COMPARED and _sent(one, field) != _sent(other, field):
            return str(field.name)
    return None


def _sent(request: Any, field: Any) -> Any:
    if field.is_repeated:
        values = getattr(request, field.name)
        return dict(values) if hasattr(values, "items") else list(values)
    if field.has_presence and not request.HasField(field.name):
        return None
    return getattr(request, field.name)


def _as_kept(request: Any) -> Any:
    """Times and durations to the microsecond; a kind that is left out is CUSTOMER."""
    fields: dict[str, Any] = {}
    for name in ("effective_at", "hold_for"):
        if name in request.DESCRIPTOR.fields_by_name and request.HasField(name):
            value = getattr(request, name)
            fields[name] = changed(value, nanos=value.nanos // 1000 * 1000)
    if request.DESCRIPTOR.name == "OpenAccountRequest":
        fields["kind"] = request.kind or ACCOUNT_KIND_CUSTOMER
    return changed(request, **fields)


def require_known(world: World, *account_ids: str) -> None:
    for account_id in account_ids:
        if account_id not in world.accounts:
            raise Refusal("NOT_FOUND", "ACCOUNT_NOT_FOUND", account_id=account_id)


def require_met(world: World, request: Any, *account_ids: str) -> None:
    """All accounts that the request names are there, and its preconditions hold."""
    require_known(world, *account_ids, *(each.account_id for each in request.preconditions))
    for each in request.preconditions:
        version = world.accounts[each.account_id].version
        if version != each.expected_version:
            versions = {"version": version, "expected_version": each.expected_version}
            raise Refusal("ABORTED", "VERSION_MISMATCH", account_id=each.account_id, **versions)


def require_currency(money: Any, *accounts: Any) -> None:
    for account in accounts:
        if account.currency_code != money.currency_code:
            codes = {"account_currency": account.currency_code, "currency_code": money.currency_code}
            raise forbidden("CURRENCY_MISMATCH", account_id=account.account_id, **codes)


def require_not_closed(*accounts: Any) -> None:
    for account in accounts:
        if account.status == ACCOUNT_STATUS_CLOSED:
            raise forbidden("ACCOUNT_CLOSED", account_id=account.account_id)


def require_usable(payer: Any, payee: Any) -> None:
    """Neither is closed, or frozen for its part."""
    require_not_closed(payer, payee)
    for account, scope in ((payer, FREEZE_SCOPE_DEBITS), (payee, FREEZE_SCOPE_CREDITS)):
        if account.freeze_scope in (scope, FREEZE_SCOPE_ALL):
            name = FreezeScope.Name(account.freeze_scope).removeprefix("FREEZE_SCOPE_")
            raise forbidden("ACCOUNT_FROZEN", account_id=account.account_id, freeze_scope=name)


def void_of(payment_id: str) -> Key:
    """By what the first void of a payment is found."""
    return ("void", payment_id)


def require_capturable(world: World, payment: Any) -> None:
    """Something is, or it is said why nothing is any more."""
    if payment.state == PAYMENT_STATE_DECLINED:
        reason = "PAYMENT_DECLINED"
    elif world.has_expired(payment) or (payment.amount_expired and not payment.amount_capturable):
        reason = "PAYMENT_EXPIRED"
    elif payment.amount_capturable:
        return
    else:
        reason = "PAYMENT_VOIDED" if void_of(payment.payment_id) in world.firsts else "PAYMENT_CAPTURED"
    raise forbidden(reason, payment_id=payment.payment_id)


def require_reservable(payer: Any, amount: int) -> None:
    if payer.reserved + amount > MOST or _is_spent(payer, amount):
        raise forbidden("BALANCE_LIMIT", account_id=payer.account_id)
    require_funds(payer, amount)


def require_movable(payer: Any, payee: Any, amount: int) -> None:
    if _is_spent(payer, amount):
        raise forbidden("BALANCE_LIMIT", account_id=payer.account_id)
    require_receivable(payee, amount)
    require_funds(payer, amount)


def _is_spent(payer: Any, amount: int) -> bool:
    """Whether an EXTERNAL account would go too far below zero, with all that it has promised."""
    return payer.kind == ACCOUNT_KIND_EXTERNAL and payer.available - amount < -MOST


def require_receivable(payee: Any, amount: int) -> None:
    if payee.posted + amount > MOST:
        raise forbidden("BALANCE_LIMIT", account_id=payee.account_id)


def require_funds(payer: Any, amount: int) -> None:
    if payer.kind == ACCOUNT_KIND_CUSTOMER and payer.available < amount:
        amounts = {"available": payer.available, "amount": amount}
        raise forbidden("INSUFFICIENT_FUNDS", account_id=payer.account_id, **amounts)


def require_well_formed(request: Any, path: str) -> None:
    """Nothing is malformed. Inside a batch there is a path to a command, and the batch says what holds for all."""
    wrong = violations(request)
    wrong += [name for name in ("ledger", "validate_only") if path and getattr(request, name)]
    if wrong:
        raise Refusal("INVALID_ARGUMENT", "INVALID_REQUEST", [path + each for each in wrong])


def require_past(world: World, request: Any, path: str) -> None:
    """What it says took effect is not in the future."""
    if world.effective_at(request) > world.now:
        raise Refusal("INVALID_ARGUMENT", "EFFECTIVE_AT_IN_FUTURE", [f"{path}effective_at"])


def decline(thing: Any, refusal: Refusal) -> None:
    """Say on a payment or transfer why the accounts refuse it."""
    thing.decline_reason = DeclineReason.Value(f"DECLINE_REASON_{refusal.refused.reason}")
    thing.declined_account_id = refusal.refused.metadata["account_id"]
