"""Accounts: what money may do on one, and the authorization of payments from it."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, Self, TypeVar

from msgspec.structs import replace

from ledger.domain.aggregate import LedgerAggregate, Stamp
from ledger.domain.commands import HOLD_FOR_DEFAULT, AuthorizePayment, OpenAccount
from ledger.domain.errors import (
    AccountInUse,
    AccountIsClosed,
    AccountIsFrozen,
    BalanceLimitExceeded,
    CurrencyMismatch,
    ExternalHasNoLimit,
    InsufficientFunds,
    LimitBelowUse,
    Refusal,
)
from ledger.domain.events import (
    AccountClosed,
    AccountFrozen,
    AccountKind,
    AccountOpened,
    AccountState,
    AccountStatus,
    AccountUnfrozen,
    Cause,
    CauseKind,
    CreditLimitChanged,
    DeclineReason,
    FreezeScope,
    FundsCredited,
    FundsDebited,
    FundsReleased,
    FundsReserved,
    LedgerEvent,
    PaymentAuthorized,
    PaymentDeclined,
    account_stream,
    length_text,
    payment_stream,
)
from ledger.domain.funds import (
    credit_blocked,
    debit_blocked,
    first_decline,
    posted,
    reserve_exceeds,
    reserved,
    spent,
)
from ledger.domain.payment import Payment

# Until Python 3.12 a member of an enum costs a call each time it is named: what each payment needs is named once.
_AUTHORIZATION: Final = CauseKind.AUTHORIZATION

Requested = TypeVar("Requested", PaymentAuthorized, PaymentDeclined)


class Account(LedgerAggregate):
    """One account. Its last event alone tells its state, so it loads from that event, however long its history is.

    `opening` is its first event, where somebody needed it (it holds the metadata, which decide nothing).
    """

    def __init__(self) -> None:
        self.opening: AccountOpened | None = None
        self.state = AccountState(
            currency_code="", kind=AccountKind.CUSTOMER, posted=0, reserved=0, credit_limit=0, status=AccountStatus.OPEN
        )

    def _share(self, other: Self) -> None:
        self.opening, self.state = other.opening, other.state

    @property
    def account_id(self) -> str:
        return self.id.removeprefix("account/")

    @classmethod
    def open(cls, command: OpenAccount, stamp: Stamp, pending: list[LedgerEvent]) -> Account:
        event = AccountOpened(
            account_id=command.account_id,
            credit_limit=command.credit_limit,
            metadata=dict(command.metadata),
            after=AccountState(
                currency_code=command.currency_code,
                kind=command.kind,
                posted=0,
                reserved=0,
                credit_limit=command.credit_limit.minor_units if command.credit_limit else 0,
                status=AccountStatus.OPEN,
            ),
            **stamp.fields,
        )
        return cls.born(account_stream(command.account_id), event, pending)

    # --- deciding ----------------------------------------------------------------------------------------------------

    def authorize_payment(self, command: AuthorizePayment, payee: Account, stamp: Stamp) -> Payment:
        """Decide on a payment from this account, and return the payment that is born: authorized or declined.

        Emits PaymentAuthorized (the payment's first event) and FundsReserved (on this account), or PaymentDeclined.
        Raises CurrencyMismatch when the two accounts and the amount are not all of one currency.
        """
        self.require_currency(command.amount.currency_code)
        payee.require_currency(command.amount.currency_code)
        amount = command.amount.minor_units
        declined = first_decline(
            (self, debit_blocked(self.state)),
            (payee, credit_blocked(payee.state)),
            (self, reserve_exceeds(self.state, amount)),
        )
        event: PaymentAuthorized | PaymentDeclined
        if declined:
            account, reason = declined
            why = {"decline_reason": reason, "declined_account_id": account.account_id}
            event = _requested(PaymentDeclined, command, stamp, **why)
        else:
            expires_at = stamp.timestamp + (command.hold_for or HOLD_FOR_DEFAULT)
            event = _requested(PaymentAuthorized, command, stamp, expires_at=expires_at)
        payment = Payment.born(payment_stream(command.payment_id), event, self._pending_events)  # type: ignore[arg-type]
        if not declined:
            cause = Cause(kind=_AUTHORIZATION, payment_id=command.payment_id)
            self.reserve(amount, cause, command.effective_at, stamp)
        return payment

    def set_credit_limit(self, limit: int, reason: str, stamp: Stamp) -> None:
        state = self.state
        self.require_open()
        if state.kind is AccountKind.EXTERNAL:
            raise ExternalHasNoLimit(account_id=self.account_id)
        used = state.reserved - state.posted
        if limit < used:
            raise LimitBelowUse(account_id=self.account_id, used=used)
        after = replace(state, credit_limit=limit)
        self.record(CreditLimitChanged(credit_limit=limit, reason=reason, after=after, **stamp.fields))

    def freeze(self, scope: FreezeScope, reason: str, stamp: Stamp) -> None:
        self.require_open()
        after = replace(self.state, status=AccountStatus.FROZEN, freeze_scope=scope)
        self.record(AccountFrozen(scope=scope, reason=reason, after=after, **stamp.fields))

    def unfreeze(self, reason: str, stamp: Stamp) -> None:
        self.require_open()
        after = replace(self.state, status=AccountStatus.OPEN, freeze_scope=None)
        self.record(AccountUnfrozen(reason=reason, after=after, **stamp.fields))

    def close(self, reason: str, stamp: Stamp) -> None:
        state = self.state
        if state.posted or state.reserved:
            raise AccountInUse(account_id=self.account_id, posted=state.posted, reserved=state.reserved)
        after = replace(state, status=AccountStatus.CLOSED, freeze_scope=None)
        self.record(AccountClosed(reason=reason, after=after, **stamp.fields))

    # --- what other aggregates' decisions do to this one, already decided ---------------------------------------------

    def reserve(self, amount: int, cause: Cause, effective_at: datetime | None, stamp: Stamp) -> None:
        self.record(
            FundsReserved(
                amount=amount,
                cause=cause,
                effective_at=effective_at or stamp.timestamp,
                after=reserved(self.state, amount),
                timestamp=stamp.timestamp,
                actor=stamp.actor,
                correlation_id=stamp.correlation_id,
                command_position=stamp.command_position,
            )
        )

    def release(self, amount: int, cause: Cause, effective_at: datetime | None, stamp: Stamp) -> None:
        self.record(
            FundsReleased(
                amount=amount,
                cause=cause,
                effective_at=effective_at or stamp.timestamp,
                after=reserved(self.state, -amount),
                **stamp.fields,
            )
        )

    def debit(
        self,
        amount: int,
        counterparty: str,
        cause: Cause,
        effective_at: datetime | None,
        stamp: Stamp,
        *,
        from_reserved: bool = False,
    ) -> None:
        self.record(
            FundsDebited(
                amount=amount,
                counterparty=counterparty,
                cause=cause,
                from_reserved=from_reserved,
                effective_at=effective_at or stamp.timestamp,
                after=spent(self.state, amount) if from_reserved else posted(self.state, -amount),
                timestamp=stamp.timestamp,
                actor=stamp.actor,
                correlation_id=stamp.correlation_id,
                command_position=stamp.command_position,
            )
        )

    def credit(self, amount: int, counterparty: str, cause: Cause, effective_at: datetime | None, stamp: Stamp) -> None:
        self.record(
            FundsCredited(
                amount=amount,
                counterparty=counterparty,
                cause=cause,
                effective_at=effective_at or stamp.timestamp,
                after=posted(self.state, amount),
                timestamp=stamp.timestamp,
                actor=stamp.actor,
                correlation_id=stamp.correlation_id,
                command_position=stamp.command_position,
            )
        )

    # --- requirements, raised as refusals ----------------------------------------------------------------------------

    def require_currency(self, currency_code: str) -> None:
        if self.state.currency_code != currency_code:
            raise CurrencyMismatch(
                account_id=self.account_id, account_currency=self.state.currency_code, currency_code=currency_code
            )

    def require_open(self) -> None:
        if self.state.status is AccountStatus.CLOSED:
            raise AccountIsClosed(account_id=self.account_id)

    def refusal(self, reason: DeclineReason, amount: int) -> Refusal:
        """The refusal that says what a decline says, for commands that are never declined."""
        if reason is DeclineReason.ACCOUNT_CLOSED:
            return AccountIsClosed(account_id=self.account_id)
        if reason is DeclineReason.ACCOUNT_FROZEN:
            return AccountIsFrozen(account_id=self.account_id, freeze_scope=str(self.state.freeze_scope))
        if reason is DeclineReason.BALANCE_LIMIT:
            return BalanceLimitExceeded(account_id=self.account_id)
        return InsufficientFunds(account_id=self.account_id, available=self.state.available, amount=amount)


def _requested(kind: type[Requested], command: AuthorizePayment, stamp: Stamp, **what_came_of_it: Any) -> Requested:
    """A payment's first event: what was asked, by whom and when, and what came of it."""
    return kind(
        payment_id=command.payment_id,
        payer_account_id=command.payer_account_id,
        payee_account_id=command.payee_account_id,
        amount=command.amount,
        hold_for_text=None if command.hold_for is None else length_text(command.hold_for),
        reference=command.reference,
        metadata=command.metadata.copy(),
        effective_at=command.effective_at,
        timestamp=stamp.timestamp,
        actor=stamp.actor,
        correlation_id=stamp.correlation_id,
        command_position=stamp.command_position,
        **what_came_of_it,
    )
