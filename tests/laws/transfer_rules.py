"""What a transfer does and answers, by the words of transfer.proto."""

from __future__ import annotations

from typing import Any

from obstacles import decline, require_currency, require_met, require_movable, require_usable
from refused import Refusal
from replies import done, replay_of
from world import World, stamp

from ledger.v1 import account_pb2, transfer_pb2


def post_transfer(world: World, request: Any) -> Any:
    key = ("transfer", request.transfer_id)
    if replay := replay_of(world, key, request, "transfer_id"):
        return replay
    require_met(world, request, *(name for leg in request.legs for name in (leg.from_account_id, leg.to_account_id)))
    for leg in request.legs:
        require_currency(leg.amount, *_ends(world, leg))
    transfer = transfer_pb2.Transfer(
        transfer_id=request.transfer_id,
        state=transfer_pb2.TRANSFER_STATE_POSTED,
        legs=request.legs,
        reference=request.reference,
        metadata=request.metadata,
        recorded_at=stamp(world.now),
        effective_at=stamp(world.effective_at(request)),
    )
    world.head += 1
    moved = world.copy()
    for number, leg in enumerate(request.legs):
        try:
            _move_leg(moved, transfer, number, leg)
        except Refusal as refusal:
            transfer.state = transfer_pb2.TRANSFER_STATE_DECLINED
            transfer.declined_leg = number
            decline(transfer, refusal)
            break
    else:
        world.head, world.accounts, world.entries = moved.head, moved.accounts, moved.entries
    world.transfers[request.transfer_id] = transfer
    return done(world, request, transfer, key)


def _ends(world: World, leg: Any) -> tuple[Any, Any]:
    return world.accounts[leg.from_account_id], world.accounts[leg.to_account_id]


def _move_leg(world: World, transfer: Any, number: int, leg: Any) -> None:
    payer, payee = _ends(world, leg)
    require_usable(payer, payee)
    require_movable(payer, payee, leg.amount.minor_units)
    cause = {"kind": account_pb2.ENTRY_KIND_TRANSFER, "transfer_id": transfer.transfer_id, "leg": number}
    said = {"reference": transfer.reference, "effective_at": transfer.effective_at}
    world.move(payer.account_id, payee.account_id, leg.amount.minor_units, {**cause, **said})
