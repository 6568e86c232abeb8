"""A ledger in plain Python, made from the words of the protos: what every command must answer, and must do.

It is a second opinion, so nothing of the ledger's own domain is in it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, TypeAlias

import account_rules
import payment_rules
from obstacles import require_past, require_well_formed
from refused import Refusal, Refused
from replies import thing_of, touched
from transfer_rules import post_transfer
from world import World, balance_after, changed

from ledger.v1.account_pb2 import ENTRY_KIND_EXPIRY
from ledger.v1.batch_pb2 import BATCH_MODE_ATOMIC, BatchMode, ExecuteBatchRequest
from ledger.v1.ledger_pb2 import DeclineReason

LEDGERS: Final = ("", "main")

Reply: TypeAlias = Any
"""The response to a request, or a Refused; of a batch, a list of these if it is not refused as a whole."""


def answer(world: World, request: Any) -> tuple[World, Reply]:
    """The world after a request of any kind that writes, and what is answered."""
    if request.ledger not in LEDGERS:
        return world, Refused("NOT_FOUND", "LEDGER_NOT_FOUND", {"ledger": request.ledger})
    execute = _batch if isinstance(request, ExecuteBatchRequest) else _command
    after, reply = execute(world, request, request.validate_only)
    return (world if request.validate_only else after), reply


def expiry(world: World, payment_id: str, recorded_at: datetime) -> World:
    """The world after the sweeper has recorded, a moment ago, that an authorization has expired."""
    after = world.copy()
    after.now = recorded_at
    payment = after.payments[payment_id]
    assert after.has_expired(payment), payment
    after.release(payment, "expired", ENTRY_KIND_EXPIRY)
    _recorded(after).now = world.now
    return after


def _command(world: World, request: Any, dry: bool, path: str = "") -> tuple[World, Reply]:
    """The world after a command, also if it is only validated (`dry`)."""
    after = world.copy()
    try:
        require_well_formed(request, path)
        require_past(after, request, path)
        response = _RULES[request.DESCRIPTOR.name](after, request)
    except Refusal as refusal:
        return world, refusal.refused
    if dry:
        response.position = 0
        lines = [after.entries[account_id][-1] for account_id in sorted(touched(response))]
        response.balances.extend(changed(balance_after(each), position=0) for each in lines)
    return _recorded(after), response


def _batch(world: World, batch: Any, dry: bool) -> tuple[World, Reply]:
    wrong = [] if batch.commands else ["commands"]
    wrong += [] if batch.mode in BatchMode.values() else ["mode"]
    if wrong:
        return world, Refused("INVALID_ARGUMENT", "INVALID_REQUEST", {}, tuple(wrong))
    if batch.mode == BATCH_MODE_ATOMIC:
        # What is malformed fails before anything is tried.
        for number, command in enumerate(batch.commands):
            try:
                require_well_formed(*_in_batch(command, number))
            except Refusal as refusal:
                return world, _aborted(batch, number, refusal.refused)
    after, replies = world, []
    for number, command in enumerate(batch.commands):
        request, path = _in_batch(command, number)
        after, reply = _command(after, request, dry, path)
        replies.append(reply)
        failure = _failure(reply) if batch.mode == BATCH_MODE_ATOMIC else None
        if failure is not None:
            return world, _aborted(batch, number, failure)
    return after, replies


def _in_batch(command: Any, number: int) -> tuple[Any, str]:
    """The request that a command of a batch is, and the path to its fields."""
    name = command.WhichOneof("command")
    return getattr(command, name), f"commands[{number}].{name}."


def _aborted(batch: Any, number: int, failure: Refused) -> list[Refused]:
    aborted = Refused("ABORTED", "BATCH_ABORTED", {"failed": str(number)})
    return [failure if each == number else aborted for each in range(len(batch.commands))]


def _failure(reply: Reply) -> Refused | None:
    """What makes an atomic batch fail: any error, and a decline."""
    if isinstance(reply, Refused):
        return reply
    thing = thing_of(reply)
    if not getattr(thing, "decline_reason", 0):
        return None
    reason = DeclineReason.Name(thing.decline_reason).removeprefix("DECLINE_REASON_")
    metadata = {"decline_reason": reason, "account_id": thing.declined_account_id}
    if hasattr(thing, "declined_leg"):
        metadata["declined_leg"] = str(thing.declined_leg)
    return Refused("FAILED_PRECONDITION", reason, metadata)


def _recorded(world: World) -> World:
    world.heads = (*world.heads, (world.now, world.head))
    return world


_RULES: Final = {
    "OpenAccountRequest": account_rules.open_account,
    "SetCreditLimitRequest": account_rules.set_credit_limit,
    "FreezeAccountRequest": account_rules.freeze_account,
    "UnfreezeAccountRequest": account_rules.unfreeze_account,
    "CloseAccountRequest": account_rules.close_account,
    "AuthorizePaymentRequest": payment_rules.authorize_payment,
    "IncrementAuthorizationRequest": payment_rules.increment_authorization,
    "CapturePaymentRequest": payment_rules.capture_payment,
    "VoidPaymentRequest": payment_rules.void_payment,
    "RefundPaymentRequest": payment_rules.refund_payment,
    "PostTransferRequest": post_transfer,
}
