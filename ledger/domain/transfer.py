"""Transfers: money moved at once, all legs or none."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self

from ledger.domain.aggregate import LedgerAggregate, Stamp
from ledger.domain.commands import PostTransfer
from ledger.domain.events import (
    Cause,
    CauseKind,
    DeclineReason,
    LedgerEvent,
    TransferDeclined,
    TransferPosted,
    transfer_stream,
)
from ledger.domain.funds import (
    credit_blocked,
    credit_exceeds,
    debit_blocked,
    debit_exceeds,
    first_decline,
    posted,
)

if TYPE_CHECKING:
    from ledger.domain.account import Account


class TransferState(StrEnum):
    POSTED = "POSTED"
    DECLINED = "DECLINED"


class Transfer(LedgerAggregate):
    """One transfer: a single event, which says what was asked and what came of it."""

    outcome: TransferPosted | TransferDeclined

    def __init__(self) -> None:
        pass

    def _share(self, other: Self) -> None:
        self.outcome = other.outcome

    @property
    def state(self) -> TransferState:
        return TransferState.POSTED if isinstance(self.outcome, TransferPosted) else TransferState.DECLINED

    @classmethod
    def post(
        cls, command: PostTransfer, accounts: Mapping[str, Account], stamp: Stamp, pending: list[LedgerEvent]
    ) -> Transfer:
        """Decide on a transfer between `accounts` (by id), and return it: posted or declined.

        Emits TransferPosted, and FundsDebited and FundsCredited for each leg; or TransferDeclined and nothing else.
        Raises CurrencyMismatch when a leg's amount is not of its accounts' currency.
        """
        for leg in command.legs:
            accounts[leg.from_account_id].require_currency(leg.amount.currency_code)
            accounts[leg.to_account_id].require_currency(leg.amount.currency_code)
        stream = transfer_stream(command.transfer_id)
        asked: dict[str, Any] = {
            "transfer_id": command.transfer_id,
            "legs": command.legs,
            "reference": command.reference,
            "metadata": dict(command.metadata),
            "effective_at": command.effective_at,
            **stamp.fields,
        }
        declined = first_failing_leg(command, accounts)
        if declined:
            number, account_id, reason = declined
            decline = TransferDeclined(
                **asked, decline_reason=reason, declined_account_id=account_id, declined_leg=number
            )
            return cls.born(stream, decline, pending)
        transfer = cls.born(stream, TransferPosted(**asked), pending)
        for number, leg in enumerate(command.legs):
            cause = Cause(kind=CauseKind.TRANSFER, transfer_id=command.transfer_id, leg=number)
            amount, effective_at = leg.amount.minor_units, command.effective_at
            accounts[leg.from_account_id].debit(amount, leg.to_account_id, cause, effective_at, stamp)
            accounts[leg.to_account_id].credit(amount, leg.from_account_id, cause, effective_at, stamp)
        return transfer


def first_failing_leg(command: PostTransfer, accounts: Mapping[str, Account]) -> tuple[int, str, DeclineReason] | None:
    """The number of the first leg that can't be done after those before it, the account that refuses it, and why."""
    states = {account_id: account.state for account_id, account in accounts.items()}
    for number, leg in enumerate(command.legs):
        payer, payee, amount = leg.from_account_id, leg.to_account_id, leg.amount.minor_units
        declined = first_decline(
            (payer, debit_blocked(states[payer])),
            (payee, credit_blocked(states[payee])),
            (payer, debit_exceeds(states[payer], amount)),
            (payee, credit_exceeds(states[payee], amount)),
        )
        if declined:
            return number, *declined
        states[payer] = posted(states[payer], -amount)
        states[payee] = posted(states[payee], amount)
    return None
