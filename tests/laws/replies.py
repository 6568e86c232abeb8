"""Responses as the model gives them: to what was just recorded, and to what was recorded before."""

from __future__ import annotations

from typing import Any

from obstacles import require_same
from world import First, Key, World, stamp

from ledger.v1 import account_pb2, payment_pb2, transfer_pb2


def thing_of(response: Any) -> Any:
    """The account, payment or transfer of a response."""
    return next(getattr(response, name) for name in ("account", "payment", "transfer") if hasattr(response, name))


def touched(response: Any) -> set[str]:
    """The accounts that a command has to do with."""
    thing = thing_of(response)
    if hasattr(thing, "legs"):
        return {name for leg in thing.legs for name in (leg.from_account_id, leg.to_account_id)}
    if hasattr(thing, "payment_id"):
        return {thing.payer_account_id, thing.payee_account_id}
    return {thing.account_id}


def done(world: World, request: Any, thing: Any, key: Key | None = None) -> Any:
    """The response to what was just recorded; by its key it is found again."""
    first = First(request, thing, world.head, world.now)
    if key is not None:
        world.firsts[key] = first
    return respond(first)


def respond(first: First, *, replayed: bool = False) -> Any:
    name = first.request.DESCRIPTOR.name.removesuffix("Request")
    module = next(each for each in (account_pb2, payment_pb2, transfer_pb2) if hasattr(each, f"{name}Response"))
    response = getattr(module, f"{name}Response")(
        position=first.position, recorded_at=stamp(first.recorded_at), replayed=replayed
    )
    thing_of(response).CopyFrom(first.thing)
    return response


def replay_of(world: World, key: Key, request: Any, id_field: str) -> Any:
    """The first outcome of an id again, if there is one for the same request."""
    first = world.firsts.get(key)
    if first is None:
        return None
    require_same(first.request, request, id_field)
    return respond(first, replayed=True)
