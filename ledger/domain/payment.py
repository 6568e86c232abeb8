"""Payments: what can become of money that was authorized."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Final, Self

from ledger.domain.aggregate import LedgerAggregate, Stamp
from ledger.domain.commands import CapturePayment, IncrementAuthorization, RefundPayment
from ledger.domain.errors import (
    AmountExceedsCapturable,
    AmountExceedsRefundable,
    AmountNotGreater,
    CurrencyMismatch,
    NothingToRefund,
    PaymentIsCaptured,
    PaymentIsExpired,
    PaymentIsVoided,
    PaymentWasDeclined,
    TooManyChanges,
)
from ledger.domain.events import (
    AuthorizationExpired,
    AuthorizationIncremented,
    Cause,
    CauseKind,
    DeclineReason,
    PaymentAmounts,
    PaymentAuthorized,
    PaymentCaptured,
    PaymentChange,
    PaymentDeclined,
    PaymentEvent,
    PaymentRefunded,
    PaymentRequested,
    PaymentVoided,
)
from ledger.domain.funds import (
    credit_blocked,
    credit_exceeds,
    debit_blocked,
    debit_exceeds,
    first_decline,
    reserve_exceeds,
)
from ledger.domain.money import Money
from ledger.domain.payment_state import PaymentState, payment_state

if TYPE_CHECKING:
    from ledger.domain.account import Account

CHANGES_MOST: Final = 1_000

NOTHING: Final = PaymentAmounts(authorized=0, capturable=0, captured=0, expired=0, refunded=0, released=0)


def authorized_amounts(amount: int) -> PaymentAmounts:
    """The amounts of a payment right after it was authorized."""
    return PaymentAmounts(authorized=amount, capturable=amount, captured=0, expired=0, refunded=0, released=0)


class Payment(LedgerAggregate):
    """One payment: its first event, and the changes since."""

    request: PaymentAuthorized | PaymentDeclined

    def __init__(self) -> None:
        self.amounts = NOTHING
        self.history: tuple[PaymentEvent, ...] = ()
        self.changes: dict[str, AuthorizationIncremented | PaymentCaptured | PaymentRefunded] = {}

    def _share(self, other: Self) -> None:
        self.request, self.amounts = other.request, other.amounts
        self.history, self.changes = other.history, other.changes

    def add(self, event: PaymentEvent) -> None:
        """Apply a fact."""
        self.history += (event,)
        if isinstance(event, PaymentAuthorized):
            self.request, self.amounts = event, authorized_amounts(event.amount.minor_units)
        elif isinstance(event, PaymentDeclined):
            self.request = event
        elif isinstance(event, PaymentChange):
            self.amounts = event.after
            change_id = id_of_change(event)
            if change_id is not None:
                self.changes = {**self.changes, change_id: event}  # type: ignore[dict-item]

    def as_after(self, event: PaymentEvent) -> Self:
        """The payment as it was right after one of its events.

        Every change carries the amounts after it, so that those before it are not applied again: of a payment with a
        thousand changes, as many may be replayed in one batch.
        """
        past, version = self.at(self.history[0]), event.originator_version
        past.history = self.history[:version]
        past.changes = {name: each for name, each in self.changes.items() if each.originator_version <= version}
        past.version, past.modified_on = version, event.timestamp
        if isinstance(event, PaymentChange):
            past.amounts = event.after
        return past

    @property
    def state(self) -> PaymentState:
        return payment_state(self.amounts)

    @property
    def payment_id(self) -> str:
        return self.request.payment_id

    @property
    def expires_at(self) -> datetime | None:
        return self.request.expires_at if isinstance(self.request, PaymentAuthorized) else None

    def is_expired(self, now: datetime) -> bool:
        """Whether the authorization's time is over, recorded as such or not yet."""
        return self.amounts.expired > 0 or (
            self.amounts.capturable > 0 and self.expires_at is not None and now >= self.expires_at
        )

    # --- deciding ----------------------------------------------------------------------------------------------------

    def increment(self, command: IncrementAuthorization, payer: Account, payee: Account, stamp: Stamp) -> None:
        """Raise the authorization to a new total. The caller's accounts are the payment's own."""
        self._require_capturable(stamp.timestamp)
        self._require_room()
        self._require_currency(command.amount)
        before = self.amounts
        more = command.amount.minor_units - before.authorized
        _refuse(more, (payer, debit_blocked(payer.state)), (payee, credit_blocked(payee.state)))
        if more <= 0:
            raise AmountNotGreater(payment_id=self.payment_id, authorized=before.authorized)
        _refuse(more, (payer, reserve_exceeds(payer.state, more)))
        after = changed(before, authorized=more, capturable=more)
        self.record(
            AuthorizationIncremented(
                increment_id=command.increment_id,
                amount=command.amount,
                before=before,
                after=after,
                **stamp.fields,
            )
        )
        cause = Cause(kind=CauseKind.INCREMENT, payment_id=self.payment_id, increment_id=command.increment_id)
        payer.reserve(more, cause, None, stamp)

    def capture(self, command: CapturePayment, payer: Account, payee: Account, stamp: Stamp) -> None:
        """Move reserved money from the payer to the payee.

        A freeze never stops a capture: the money was promised before. A closed payee does.
        """
        self._require_capturable(stamp.timestamp)
        self._require_room()
        before = self.amounts
        amount = before.capturable
        if command.amount is not None:
            self._require_currency(command.amount)
            amount = command.amount.minor_units
        payee.require_open()
        if amount > before.capturable:
            raise AmountExceedsCapturable(payment_id=self.payment_id, capturable=before.capturable, amount=amount)
        _refuse(amount, (payee, credit_exceeds(payee.state, amount)))
        rest = 0 if command.keep_remainder else before.capturable - amount
        self.record(
            PaymentCaptured(
                capture_id=command.capture_id,
                amount=command.amount,
                keep_remainder=command.keep_remainder,
                effective_at=command.effective_at,
                before=before,
                after=changed(before, captured=amount, released=rest, capturable=-amount - rest),
                **stamp.fields,
            )
        )
        cause = Cause(kind=CauseKind.CAPTURE, payment_id=self.payment_id, capture_id=command.capture_id)
        effective_at = command.effective_at
        payer.debit(amount, payee.account_id, cause, effective_at, stamp, from_reserved=True)
        payee.credit(amount, payer.account_id, cause, effective_at, stamp)
        if rest:
            payer.release(rest, cause, effective_at, stamp)

    def void(self, reason: str, payer: Account, stamp: Stamp) -> None:
        """Release all that is not captured. Never stopped by a freeze."""
        self._require_capturable(stamp.timestamp)
        before = self.amounts
        rest = before.capturable
        after = changed(before, released=rest, capturable=-rest)
        self.record(PaymentVoided(reason=reason, before=before, after=after, **stamp.fields))
        payer.release(rest, Cause(kind=CauseKind.VOID, payment_id=self.payment_id), None, stamp)

    def expire(self, payer: Account, stamp: Stamp) -> None:
        """Record that the authorization's time is over, and release what is not captured."""
        before = self.amounts
        rest = before.capturable
        after = changed(before, expired=rest, capturable=-rest)
        self.record(AuthorizationExpired(before=before, after=after, **stamp.fields))
        payer.release(rest, Cause(kind=CauseKind.EXPIRY, payment_id=self.payment_id), None, stamp)

    def refund(self, command: RefundPayment, payer: Account, payee: Account, stamp: Stamp) -> None:
        """Move captured money back from the payee, who must have it, to the payer."""
        if self.state is PaymentState.DECLINED:
            raise PaymentWasDeclined(payment_id=self.payment_id)
        self._require_room()
        before = self.amounts
        refundable = before.captured - before.refunded
        amount = refundable
        if command.amount is not None:
            self._require_currency(command.amount)
            amount = command.amount.minor_units
        _refuse(amount, (payee, debit_blocked(payee.state)), (payer, credit_blocked(payer.state)))
        if refundable == 0:
            raise NothingToRefund(payment_id=self.payment_id)
        if amount > refundable:
            raise AmountExceedsRefundable(payment_id=self.payment_id, refundable=refundable, amount=amount)
        _refuse(amount, (payee, debit_exceeds(payee.state, amount)), (payer, credit_exceeds(payer.state, amount)))
        self.record(
            PaymentRefunded(
                refund_id=command.refund_id,
                amount=command.amount,
                effective_at=command.effective_at,
                before=before,
                after=changed(before, refunded=amount),
                **stamp.fields,
            )
        )
        cause = Cause(kind=CauseKind.REFUND, payment_id=self.payment_id, refund_id=command.refund_id)
        payee.debit(amount, payer.account_id, cause, command.effective_at, stamp)
        payer.credit(amount, payee.account_id, cause, command.effective_at, stamp)

    def _require_capturable(self, now: datetime) -> None:
        """Raise the refusal that says why nothing of the payment is capturable, if so."""
        if self.state is PaymentState.DECLINED:
            raise PaymentWasDeclined(payment_id=self.payment_id)
        if self.is_expired(now):
            raise PaymentIsExpired(payment_id=self.payment_id)
        if self.amounts.capturable == 0:
            voided = any(isinstance(event, PaymentVoided) for event in self.history)
            raise (PaymentIsVoided if voided else PaymentIsCaptured)(payment_id=self.payment_id)

    def _require_room(self) -> None:
        if len(self.changes) >= CHANGES_MOST:
            raise TooManyChanges(payment_id=self.payment_id, limit=CHANGES_MOST)

    def _require_currency(self, amount: Money) -> None:
        currency_code = self.request.amount.currency_code
        if amount.currency_code != currency_code:
            raise CurrencyMismatch(
                account_id=self.request.payer_account_id,
                account_currency=currency_code,
                currency_code=amount.currency_code,
            )


def _refuse(amount: int, *found: tuple[Account, DeclineReason | None]) -> None:
    """Raise what was found, as a refusal: a command on an existing payment is never declined."""
    declined = first_decline(*found)
    if declined:
        account, reason = declined
        raise account.refusal(reason, amount)


def id_of_change(event: PaymentEvent | PaymentRequested) -> str | None:
    """The client's id of an increment, capture or refund: one id space per payment."""
    if isinstance(event, PaymentCaptured):
        return event.capture_id
    if isinstance(event, PaymentRefunded):
        return event.refund_id
    return event.increment_id if isinstance(event, AuthorizationIncremented) else None


def changed(
    before: PaymentAmounts,
    *,
    authorized: int = 0,
    capturable: int = 0,
    captured: int = 0,
    expired: int = 0,
    refunded: int = 0,
    released: int = 0,
) -> PaymentAmounts:
    """The amounts after these changes."""
    return PaymentAmounts(
        authorized=before.authorized + authorized,
        capturable=before.capturable + capturable,
        captured=before.captured + captured,
        expired=before.expired + expired,
        refunded=before.refunded + refunded,
        released=before.released + released,
    )
