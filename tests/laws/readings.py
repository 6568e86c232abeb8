"""What reads must answer: the things as they are or were known, and lists page by page, by the words of the protos."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, Final

from refused import Refusal, Refused
from world import World, balance_after, changed, moment_of

from ledger.v1.account_pb2 import GetAccountBalanceResponse, GetAccountResponse
from ledger.v1.ledger_pb2 import SORT_ORDER_OLDEST_FIRST
from ledger.v1.payment_pb2 import GetPaymentResponse
from ledger.v1.transfer_pb2 import GetTransferResponse

Reading = Callable[[World, Any], Any]


def read(world: World, request: Any) -> Any:
    """The response to a request for one thing, or a Refused."""
    try:
        return _READINGS[request.DESCRIPTOR.name](world, request)
    except Refusal as refusal:
        return refusal.refused


def _found(things: dict[str, Any], id_field: str, id_: str) -> Any:
    if id_ not in things:
        reason = f"{id_field.removesuffix('_id').upper()}_NOT_FOUND"
        raise Refusal("NOT_FOUND", reason, **{id_field: id_})
    return things[id_]


def _account(world: World, request: Any) -> Any:
    account = _found(world.accounts, "account_id", request.account_id)
    return GetAccountResponse(account=account, position=world.head)


def _transfer(world: World, request: Any) -> Any:
    transfer = _found(world.transfers, "transfer_id", request.transfer_id)
    return GetTransferResponse(transfer=transfer, position=world.head)


def _payment(world: World, request: Any) -> Any:
    position, is_known = _as_known(world, request)
    lives = {id_: [each for each in life if is_known(each)] for id_, life in world.lives.items()}
    known = {id_: life[-1].payment for id_, life in lives.items() if life}
    return GetPaymentResponse(payment=_found(known, "payment_id", request.payment_id), position=position)


def _balance(world: World, request: Any) -> Any:
    position, is_known = _as_known(world, request)
    entries = {id_: [each for each in lines if is_known(each)] for id_, lines in world.entries.items()}
    lines = _found({id_: each for id_, each in entries.items() if each}, "account_id", request.account_id)
    balance = balance_after(lines[-1])
    if request.HasField("effective_at"):
        until = moment_of(request.effective_at)
        posted = sum(each.amount for each in lines if moment_of(each.effective_at) <= until)
        available = posted - balance.reserved + balance.credit_limit
        balance = changed(balance, posted=posted, available=available)
    return GetAccountBalanceResponse(balance=balance, position=position)


def _as_known(world: World, request: Any) -> tuple[int, Callable[[Any], bool]]:
    """The position that an answer is as of, and which events count for it."""
    known_at = request.WhichOneof("known_at")
    position = world.head
    if known_at == "at_position":
        position = request.at_position
        if position > world.head:
            raise Refusal("OUT_OF_RANGE", "POSITION_AHEAD_OF_HEAD", min_position=position, head=world.head)
    elif known_at == "recorded_at":
        until = moment_of(request.recorded_at)
        position = max((head for moment, head in world.heads if moment <= until), default=0)
    return position, lambda event: event.position <= position


_READINGS: Final[dict[str, Reading]] = {
    "GetAccountRequest": _account,
    "GetAccountBalanceRequest": _balance,
    "GetPaymentRequest": _payment,
    "GetTransferRequest": _transfer,
}


# --- lists -----------------------------------------------------------------------------------------------------------


def listed(world: World, request: Any) -> list[Any] | Refused:
    """All that a list has, on however many pages: accounts, payments, transfers or entries in its order."""
    try:
        things = _LISTS[request.DESCRIPTOR.name](world, request)
    except Refusal as refusal:
        return refusal.refused
    return things if request.order == SORT_ORDER_OLDEST_FIRST else things[::-1]


def _accounts(world: World, request: Any) -> list[Any]:
    return [
        account
        for account in world.accounts.values()
        if _is_any_of(account.kind, request.kinds)
        and _is_any_of(account.status, request.statuses)
        and _is(account.currency_code, request.currency_code)
        and _is_within(account.opened_at, request, "opened")
    ]


def _payments(world: World, request: Any) -> list[Any]:
    return [
        payment
        for payment in world.payments.values()
        if _is_any_of(request.account_id, [payment.payer_account_id, payment.payee_account_id], unless="")
        and _is(payment.payer_account_id, request.payer_account_id)
        and _is(payment.payee_account_id, request.payee_account_id)
        and _is_any_of(payment.state, request.states)
        and _is(payment.currency_code, request.currency_code)
        and _is_within(payment.authorized_at, request, "authorized")
        and _is(payment.reference, request.reference)
    ]


def _transfers(world: World, request: Any) -> list[Any]:
    return [
        transfer
        for transfer in world.transfers.values()
        if _is_any_of(request.account_id, _accounts_of(transfer), unless="")
        and _is_any_of(transfer.state, request.states)
        and _is_any_of(request.currency_code, {leg.amount.currency_code for leg in transfer.legs}, unless="")
        and _is_within(transfer.recorded_at, request, "recorded")
        and _is(transfer.reference, request.reference)
    ]


def _accounts_of(transfer: Any) -> set[str]:
    return {name for leg in transfer.legs for name in (leg.from_account_id, leg.to_account_id)}


def _entries(world: World, request: Any) -> list[Any]:
    return [
        entry
        for entry in _found(world.entries, "account_id", request.account_id)
        if _is_any_of(entry.kind, request.kinds)
        and _is_within(entry.recorded_at, request, "recorded")
        and _is_within(entry.effective_at, request, "effective")
        and _is(entry.reference, request.reference)
    ]


_LISTS: Final[dict[str, Callable[[World, Any], list[Any]]]] = {
    "ListAccountsRequest": _accounts,
    "ListPaymentsRequest": _payments,
    "ListTransfersRequest": _transfers,
    "ListEntriesRequest": _entries,
}


def _is(value: str, wanted: str) -> bool:
    return wanted in ("", value)


def _is_any_of(value: Any, wanted: Iterable[Any], unless: Any = None) -> bool:
    """No wish lets everything pass: that is nothing wanted, or a value that says so."""
    wanted = list(wanted)
    return value == unless or not wanted or value in wanted


def _is_within(timestamp: Any, request: Any, what: str) -> bool:
    """At the time `WHAT_since` or later, and before `WHAT_until`."""
    moment = moment_of(timestamp)
    since, until = _moment(request, f"{what}_since"), _moment(request, f"{what}_until")
    return (since is None or since <= moment) and (until is None or moment < until)


def _moment(request: Any, field: str) -> datetime | None:
    return moment_of(getattr(request, field)) if request.HasField(field) else None
