"""What commands on accounts do and answer, by the words of account.proto."""

from __future__ import annotations

from typing import Any

from obstacles import forbidden, require_currency, require_known, require_met, require_not_closed
from replies import done, replay_of, respond
from world import First, World, changed, moment_of, stamp

from ledger.v1 import account_pb2
from ledger.v1.account_pb2 import (
    ACCOUNT_KIND_CUSTOMER,
    ACCOUNT_KIND_EXTERNAL,
    ACCOUNT_STATUS_CLOSED,
    ACCOUNT_STATUS_FROZEN,
    ACCOUNT_STATUS_OPEN,
    FREEZE_SCOPE_ALL,
)


def open_account(world: World, request: Any) -> Any:
    key = ("account", request.account_id)
    if replay := replay_of(world, key, request, "account_id"):
        return replay
    require_met(world, request)
    account = account_pb2.Account(
        account_id=request.account_id,
        currency_code=request.currency_code,
        kind=request.kind or ACCOUNT_KIND_CUSTOMER,
        status=ACCOUNT_STATUS_OPEN,
        opened_at=stamp(world.now),
        metadata=request.metadata,
    )
    if account.kind == ACCOUNT_KIND_CUSTOMER:
        account.credit_limit = request.credit_limit.minor_units
    world.write(account, account_pb2.ENTRY_KIND_OPENING)
    return done(world, request, world.accounts[request.account_id], key)


def set_credit_limit(world: World, request: Any) -> Any:
    require_known(world, request.account_id)
    account, limit = world.accounts[request.account_id], request.credit_limit
    is_so = account.HasField("credit_limit") and account.credit_limit == limit.minor_units
    if is_so and account.currency_code == limit.currency_code:
        return _so_already(world, request)
    require_met(world, request)
    require_currency(limit, account)
    require_not_closed(account)
    if account.kind == ACCOUNT_KIND_EXTERNAL:
        raise forbidden("EXTERNAL_HAS_NO_LIMIT", account_id=account.account_id)
    used = account.reserved - account.posted
    if limit.minor_units < used:
        raise forbidden("LIMIT_BELOW_USE", account_id=account.account_id, used=used)
    return _set(world, request, account_pb2.ENTRY_KIND_CREDIT_LIMIT, credit_limit=limit.minor_units)


def freeze_account(world: World, request: Any) -> Any:
    require_known(world, request.account_id)
    account, scope = world.accounts[request.account_id], request.scope or FREEZE_SCOPE_ALL
    if account.freeze_scope == scope:
        return _so_already(world, request)
    require_met(world, request)
    require_not_closed(account)
    fields = {"status": ACCOUNT_STATUS_FROZEN, "freeze_scope": scope}
    return _set(world, request, account_pb2.ENTRY_KIND_FREEZE, **fields)


def unfreeze_account(world: World, request: Any) -> Any:
    require_known(world, request.account_id)
    account = world.accounts[request.account_id]
    if account.status == ACCOUNT_STATUS_OPEN:
        return _so_already(world, request)
    require_met(world, request)
    require_not_closed(account)
    return _set(world, request, account_pb2.ENTRY_KIND_UNFREEZE, status=ACCOUNT_STATUS_OPEN, freeze_scope=0)


def close_account(world: World, request: Any) -> Any:
    require_known(world, request.account_id)
    account = world.accounts[request.account_id]
    if account.status == ACCOUNT_STATUS_CLOSED:
        return _so_already(world, request)
    require_met(world, request)
    if account.posted or account.reserved:
        amounts = {"posted": account.posted, "reserved": account.reserved}
        raise forbidden("ACCOUNT_IN_USE", account_id=account.account_id, **amounts)
    return _set(world, request, account_pb2.ENTRY_KIND_CLOSING, status=ACCOUNT_STATUS_CLOSED, freeze_scope=0)


def _set(world: World, request: Any, kind: int, **fields: int) -> Any:
    account = changed(world.accounts[request.account_id], **fields)
    world.write(account, kind, reason=request.reason)
    return done(world, request, world.accounts[request.account_id])


def _so_already(world: World, request: Any) -> Any:
    """It answers with the account as it is, the head, and when the account last changed."""
    account, last = world.accounts[request.account_id], world.entries[request.account_id][-1]
    return respond(First(request, account, world.head, moment_of(last.recorded_at)), replayed=True)
