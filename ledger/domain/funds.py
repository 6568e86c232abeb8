"""The rules of money on an account, as functions of its state: what stops a debit or a credit, and what one does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeVar

from ledger.domain.events import (
    AccountKind,
    AccountState,
    AccountStatus,
    DeclineReason,
    FreezeScope,
    FundsCredited,
    FundsDebited,
    LedgerEvent,
)
from ledger.domain.money import MAX_MINOR_UNITS

_PRECEDENCE: Final = (
    DeclineReason.ACCOUNT_CLOSED,
    DeclineReason.ACCOUNT_FROZEN,
    DeclineReason.BALANCE_LIMIT,
    DeclineReason.INSUFFICIENT_FUNDS,
)

# Until Python 3.12 a member of an enum costs a call each time it is named: what each payment needs is named once.
_OPEN: Final = AccountStatus.OPEN
_CUSTOMER: Final = AccountKind.CUSTOMER

Whose = TypeVar("Whose")


def debit_blocked(state: AccountState) -> DeclineReason | None:
    """Whether the account may not pay at all now."""
    return None if state.status is _OPEN else _blocked(state, FreezeScope.DEBITS)


def credit_blocked(state: AccountState) -> DeclineReason | None:
    """Whether the account may not be paid at all now."""
    return None if state.status is _OPEN else _blocked(state, FreezeScope.CREDITS)


def _blocked(state: AccountState, scope: FreezeScope) -> DeclineReason | None:
    if state.status is AccountStatus.CLOSED:
        return DeclineReason.ACCOUNT_CLOSED
    return DeclineReason.ACCOUNT_FROZEN if state.freeze_scope in (scope, FreezeScope.ALL) else None


def reserve_exceeds(state: AccountState, amount: int) -> DeclineReason | None:
    """Why just this amount can't be reserved now."""
    if state.reserved + amount > MAX_MINOR_UNITS:
        return DeclineReason.BALANCE_LIMIT
    return debit_exceeds(state, amount)


def debit_exceeds(state: AccountState, amount: int) -> DeclineReason | None:
    """Why just this amount can't be spent now.

    A CUSTOMER can spend what is available. An EXTERNAL account can spend anything, as long as capturing all that is
    reserved on it would still keep it within the bound of all balances.
    """
    if state.kind is _CUSTOMER:
        return DeclineReason.INSUFFICIENT_FUNDS if amount > state.available else None
    too_low = state.posted - state.reserved - amount < -MAX_MINOR_UNITS
    return DeclineReason.BALANCE_LIMIT if too_low else None


def credit_exceeds(state: AccountState, amount: int) -> DeclineReason | None:
    """Why just this amount can't be received now."""
    return DeclineReason.BALANCE_LIMIT if state.posted + amount > MAX_MINOR_UNITS else None


def first_decline(*found: tuple[Whose, DeclineReason | None]) -> tuple[Whose, DeclineReason] | None:
    """The decline that is named when there are several: closed, frozen, amounts, funds; the first account's first."""
    first = None
    for whose, reason in found:
        if reason is not None and (first is None or _PRECEDENCE.index(reason) < _PRECEDENCE.index(first[1])):
            first = whose, reason
    return first


def posted(state: AccountState, change: int) -> AccountState:
    """The state after `change` was posted."""
    return _moved(state, change, 0)


def reserved(state: AccountState, change: int) -> AccountState:
    """The state after `change` was reserved (or released, when negative)."""
    return _moved(state, 0, change)


def spent(state: AccountState, amount: int) -> AccountState:
    """The state after an amount that had been reserved has left the account."""
    return _moved(state, -amount, -amount)


def net_of(events: Iterable[LedgerEvent]) -> dict[str, int]:
    """Credits minus debits, by currency: zeros, of all events of a command."""
    net: dict[str, int] = {}
    for event in events:
        if type(event) is FundsCredited:
            change = event.amount
        elif type(event) is FundsDebited:
            change = -event.amount
        else:
            continue
        currency_code = event.after.currency_code
        net[currency_code] = net.get(currency_code, 0) + change
    return net


def _moved(state: AccountState, posted_change: int, reserved_change: int) -> AccountState:
    return AccountState(
        credit_limit=state.credit_limit,
        currency_code=state.currency_code,
        freeze_scope=state.freeze_scope,
        kind=state.kind,
        posted=state.posted + posted_change,
        reserved=state.reserved + reserved_change,
        status=state.status,
    )
