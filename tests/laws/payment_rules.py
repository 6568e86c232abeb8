"""What commands on payments do and answer, by the words of payment.proto."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from obstacles import (
    decline,
    forbidden,
    require_capturable,
    require_currency,
    require_met,
    require_movable,
    require_not_closed,
    require_receivable,
    require_reservable,
    require_usable,
    void_of,
)
from refused import Refusal
from replies import done, replay_of, respond
from world import World, changed, stamp, time_of

from ledger.v1 import account_pb2, payment_pb2

HOLD: Final = timedelta(days=7)
CHANGES_MOST: Final = 1000


def authorize_payment(world: World, request: Any) -> Any:
    key = ("payment", request.payment_id)
    if replay := replay_of(world, key, request, "payment_id"):
        return replay
    require_met(world, request, request.payer_account_id, request.payee_account_id)
    payer, payee = world.accounts[request.payer_account_id], world.accounts[request.payee_account_id]
    require_currency(request.amount, payer, payee)
    amount = request.amount.minor_units
    payment = payment_pb2.Payment(
        payment_id=request.payment_id,
        payer_account_id=payer.account_id,
        payee_account_id=payee.account_id,
        currency_code=payer.currency_code,
        amount_requested=amount,
        authorized_at=stamp(world.now),
        effective_at=stamp(world.effective_at(request)),
        reference=request.reference,
        metadata=request.metadata,
    )
    try:
        require_usable(payer, payee)
        require_reservable(payer, amount)
    except Refusal as refusal:
        decline(payment, refusal)
        world.live(payment)
    else:
        held = time_of(request.hold_for) if request.HasField("hold_for") else HOLD
        world.live(changed(payment, expires_at=stamp(world.now + held)), authorized=amount, capturable=amount)
        world.reserve(payment, amount, account_pb2.ENTRY_KIND_AUTHORIZATION, effective_at=payment.effective_at)
    return done(world, request, world.payments[request.payment_id], key)


def _payment(world: World, request: Any) -> Any:
    if request.payment_id not in world.payments:
        raise Refusal("NOT_FOUND", "PAYMENT_NOT_FOUND", payment_id=request.payment_id)
    return world.payments[request.payment_id]


def _sides(world: World, payment: Any) -> tuple[Any, Any]:
    return world.accounts[payment.payer_account_id], world.accounts[payment.payee_account_id]


def _require_room(payment: Any) -> None:
    """One more change can be kept."""
    if len(payment.captures) + len(payment.refunds) + len(payment.increments) >= CHANGES_MOST:
        raise forbidden("TOO_MANY_CHANGES", payment_id=payment.payment_id, limit=CHANGES_MOST)


def increment_authorization(world: World, request: Any) -> Any:
    payment, key = _payment(world, request), ("change", request.payment_id, request.increment_id)
    if replay := replay_of(world, key, request, "increment_id"):
        return replay
    require_met(world, request)
    require_capturable(world, payment)
    _require_room(payment)
    payer, payee = _sides(world, payment)
    require_currency(request.amount, payer, payee)
    require_usable(payer, payee)
    total, authorized = request.amount.minor_units, payment.amount_authorized
    if total <= authorized:
        raise forbidden("AMOUNT_NOT_GREATER", payment_id=payment.payment_id, authorized=authorized)
    more = total - authorized
    require_reservable(payer, more)
    when = {"recorded_at": stamp(world.now)}
    increment = payment_pb2.Increment(increment_id=request.increment_id, amount=total, **when)
    world.live(payment, authorized=more, capturable=more, increments=increment)
    world.reserve(payment, more, account_pb2.ENTRY_KIND_INCREMENT, increment_id=request.increment_id)
    return done(world, request, world.payments[request.payment_id], key)


def capture_payment(world: World, request: Any) -> Any:
    payment, key = _payment(world, request), ("change", request.payment_id, request.capture_id)
    if replay := replay_of(world, key, request, "capture_id"):
        return replay
    require_met(world, request)
    require_capturable(world, payment)
    _require_room(payment)
    payer, payee = _sides(world, payment)
    if request.HasField("amount"):
        require_currency(request.amount, payer, payee)
    require_not_closed(payee)
    capturable = payment.amount_capturable
    amount = request.amount.minor_units if request.HasField("amount") else capturable
    if amount > capturable:
        amounts = {"capturable": capturable, "amount": amount}
        raise forbidden("AMOUNT_EXCEEDS_CAPTURABLE", payment_id=payment.payment_id, **amounts)
    require_receivable(payee, amount)
    rest = 0 if request.keep_remainder else capturable - amount
    when = _when(world, request)
    capture = payment_pb2.Capture(capture_id=request.capture_id, amount=amount, amount_released=rest, **when)
    world.live(payment, captured=amount, capturable=-amount - rest, released=rest, captures=capture)
    cause = _cause(world, payment, account_pb2.ENTRY_KIND_CAPTURE, request, capture_id=request.capture_id)
    world.move(payer.account_id, payee.account_id, amount, cause, reserved=amount)
    if rest:
        world.write(world.accounts[payer.account_id], reserved_change=-rest, **cause)
    return done(world, request, world.payments[request.payment_id], key)


def void_payment(world: World, request: Any) -> Any:
    payment, key = _payment(world, request), void_of(request.payment_id)
    if key in world.firsts:
        return respond(world.firsts[key], replayed=True)
    require_met(world, request)
    require_capturable(world, payment)
    world.release(changed(payment, void_reason=request.reason), "released", account_pb2.ENTRY_KIND_VOID)
    return done(world, request, world.payments[request.payment_id], key)


def refund_payment(world: World, request: Any) -> Any:
    payment, key = _payment(world, request), ("change", request.payment_id, request.refund_id)
    if replay := replay_of(world, key, request, "refund_id"):
        return replay
    require_met(world, request)
    if payment.decline_reason:
        raise forbidden("PAYMENT_DECLINED", payment_id=payment.payment_id)
    _require_room(payment)
    payer, payee = _sides(world, payment)
    if request.HasField("amount"):
        require_currency(request.amount, payer, payee)
    require_usable(payee, payer)
    amount = _refunded(payment, request)
    require_movable(payee, payer, amount)
    refund = payment_pb2.Refund(refund_id=request.refund_id, amount=amount, **_when(world, request))
    world.live(payment, refunded=amount, refunds=refund)
    cause = _cause(world, payment, account_pb2.ENTRY_KIND_REFUND, request, refund_id=request.refund_id)
    world.move(payee.account_id, payer.account_id, amount, cause)
    return done(world, request, world.payments[request.payment_id], key)


def _refunded(payment: Any, request: Any) -> int:
    """How much is to be moved back, if so much can be."""
    refundable = payment.amount_captured - payment.amount_refunded
    if not refundable:
        raise forbidden("NOTHING_TO_REFUND", payment_id=payment.payment_id)
    amount = request.amount.minor_units if request.HasField("amount") else refundable
    if amount > refundable:
        amounts = {"refundable": refundable, "amount": amount}
        raise forbidden("AMOUNT_EXCEEDS_REFUNDABLE", payment_id=payment.payment_id, **amounts)
    return int(amount)


def _when(world: World, request: Any) -> dict[str, Any]:
    return {"recorded_at": stamp(world.now), "effective_at": stamp(world.effective_at(request))}


def _cause(world: World, payment: Any, kind: int, request: Any, **ids: str) -> dict[str, Any]:
    """What the lines of a capture or refund say of where they come from."""
    effective_at = stamp(world.effective_at(request))
    of_payment = {"payment_id": payment.payment_id, "reference": payment.reference}
    return {"kind": kind, "effective_at": effective_at, **of_payment, **ids}
