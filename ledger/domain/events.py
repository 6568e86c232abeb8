"""The facts of a ledger: every event that can stand in its log, exactly as it is stored.

This module is the storage format. An event class is frozen once it has been released: a field is never renamed,
removed or given another meaning; a new shape is a new `class_version` with an upcaster (`ledger.upcasters`).

Stored are the event's fields as JSON with sorted keys; a field that is unset (None) is left out. The stream and the
version are columns of the log, not part of the JSON. Amounts are integers in the minor unit of the currency (cents).
Times are UTC with microseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Final, TypeAlias

from eventsourcing.domain import CanMutateAggregate
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ledger.domain.money import Money

Integer: TypeAlias = Annotated[int, Field(strict=True)]
"""An int and nothing that merely converts to one: money never passes through a float or a string."""


def _in_utc(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError("a time without a time zone")
    return moment if moment.tzinfo is UTC else moment.astimezone(UTC)


Moment: TypeAlias = Annotated[datetime, AfterValidator(_in_utc)]
"""A time in UTC, to the microsecond."""


def _in_order(metadata: dict[str, str]) -> dict[str, str]:
    return dict(sorted(metadata.items())) if len(metadata) > 1 else metadata


Metadata: TypeAlias = Annotated[dict[str, str], AfterValidator(_in_order)]
"""A client's own keys and values, kept in the order of the keys: equal metadata are the same bytes."""


class AccountKind(StrEnum):
    """CUSTOMER accounts keep within their limit; EXTERNAL ones stand for the world outside and may go below zero."""

    CUSTOMER = "CUSTOMER"
    EXTERNAL = "EXTERNAL"


class AccountStatus(StrEnum):
    """Whether an account takes part: OPEN, FROZEN (in a scope, until unfrozen) or CLOSED (for good)."""

    OPEN = "OPEN"
    FROZEN = "FROZEN"
    CLOSED = "CLOSED"


class FreezeScope(StrEnum):
    """What a frozen account may not do: pay (DEBITS), be paid (CREDITS), or either (ALL)."""

    DEBITS = "DEBITS"
    CREDITS = "CREDITS"
    ALL = "ALL"


class DeclineReason(StrEnum):
    """Why the state of the accounts refused a well-formed payment or transfer."""

    ACCOUNT_CLOSED = "ACCOUNT_CLOSED"
    ACCOUNT_FROZEN = "ACCOUNT_FROZEN"
    BALANCE_LIMIT = "BALANCE_LIMIT"
    INSUFFICIENT_FUNDS = "INSUFFICIENT_FUNDS"


class CauseKind(StrEnum):
    """Which kind of command moved or reserved the money of an account."""

    AUTHORIZATION = "AUTHORIZATION"
    INCREMENT = "INCREMENT"
    CAPTURE = "CAPTURE"
    VOID = "VOID"
    EXPIRY = "EXPIRY"
    REFUND = "REFUND"
    TRANSFER = "TRANSFER"


# The fields of the values below stand in alphabetical order because that is the order in which they are stored.


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountState:
    """All that decisions need to know of an account. Every account event carries the state after it.

    `posted` is what the account has, `reserved` what it has promised to open authorizations, `credit_limit` how far
    `posted - reserved` may go below zero. EXTERNAL accounts have no limit; theirs is 0 and not looked at.
    """

    credit_limit: Integer
    currency_code: str
    freeze_scope: FreezeScope | None = None
    kind: AccountKind
    posted: Integer
    reserved: Integer
    status: AccountStatus

    @property
    def available(self) -> int:
        """What can still be spent: posted - reserved + credit_limit."""
        return self.posted - self.reserved + self.credit_limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """The command behind a change of an account: its kind, and the ids that find it again."""

    capture_id: str | None = None
    increment_id: str | None = None
    kind: CauseKind
    leg: Integer | None = None
    payment_id: str | None = None
    refund_id: str | None = None
    transfer_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentAmounts:
    """Where the money of a payment is. Always: authorized = captured + capturable + released + expired."""

    authorized: Integer
    capturable: Integer
    captured: Integer
    expired: Integer
    refunded: Integer
    released: Integer


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferLeg:
    """One movement of a transfer: `amount` from one account to another of the same currency."""

    amount: Money
    from_account_id: str
    to_account_id: str


class LedgerEvent(BaseModel, CanMutateAggregate[str]):
    """What all events have in common.

    `originator_id` is the stream and `originator_version` the version in it (the library's names). `timestamp` is the
    log's `recorded_at`. `command_position` is the position of the first event of the command that this event belongs
    to: the events of one command stand next to each other, and its debits equal its credits.
    """

    # Each class is built once its fields are in order, and not before as well.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    originator_id: str = Field(exclude=True)
    originator_version: int = Field(exclude=True)

    class_version: Integer = 1
    timestamp: Moment
    actor: str
    correlation_id: str
    command_position: Integer

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Serialise in the order of the keys: the same fact is the same bytes, whoever writes it."""
        super().__pydantic_init_subclass__(**kwargs)
        cls.__pydantic_fields__ = dict(sorted(cls.__pydantic_fields__.items()))
        cls.model_rebuild(force=True)

    @staticmethod
    def create_timestamp() -> datetime:
        """Refuse: the library's clock is never used, time is given to the domain."""
        raise AssertionError("an event was triggered without a timestamp")

    @property
    def stream(self) -> str:
        return self.originator_id


# --- Accounts: stream account/<account_id> ---------------------------------------------------------------------------


class AccountEvent(LedgerEvent):
    """A change of an account, with the account's state after it."""

    after: AccountState

    def apply(self, aggregate: Any) -> None:
        aggregate.state = self.after


class AccountOpened(AccountEvent):
    """The account exists. `credit_limit` as asked: unset means none was given."""

    account_id: str
    credit_limit: Money | None = None
    metadata: Metadata

    @property
    def currency_code(self) -> str:
        return self.after.currency_code

    @property
    def kind(self) -> AccountKind:
        return self.after.kind

    def apply(self, aggregate: Any) -> None:
        super().apply(aggregate)
        aggregate.opening = self


class FundsEvent(AccountEvent):
    """Money reserved, released or moved. `effective_at` says when it counts in reports; it never decides anything."""

    cause: Cause
    amount: Integer
    effective_at: Moment


class FundsReserved(FundsEvent):
    """`amount` promised to an authorization: reserved grows."""


class FundsReleased(FundsEvent):
    """`amount` promised no more: reserved shrinks."""


class FundsDebited(FundsEvent):
    """`amount` left the account for `counterparty`; with `from_reserved` it had been reserved before."""

    counterparty: str
    from_reserved: bool


class FundsCredited(FundsEvent):
    """`amount` reached the account from `counterparty`."""

    counterparty: str


class CreditLimitChanged(AccountEvent):
    credit_limit: Integer
    reason: str


class AccountFrozen(AccountEvent):
    scope: FreezeScope
    reason: str


class AccountUnfrozen(AccountEvent):
    reason: str


class AccountClosed(AccountEvent):
    reason: str


# --- Payments: stream payment/<payment_id> ---------------------------------------------------------------------------


class PaymentEvent(LedgerEvent):
    """A change of a payment. It is the first event of its command; `events_recorded` says how many the command has."""

    @property
    def events_recorded(self) -> int:
        raise NotImplementedError

    @property
    def last_position(self) -> int:
        """The position of the last event of the command."""
        return self.command_position + self.events_recorded - 1

    def apply(self, aggregate: Any) -> None:
        aggregate.add(self)


class PaymentRequested(PaymentEvent):
    """An AuthorizePayment, its fields as the client set them (unset stays unset)."""

    payment_id: str
    payer_account_id: str
    payee_account_id: str
    amount: Money
    hold_for: timedelta | None = None
    reference: str
    metadata: Metadata
    effective_at: Moment | None = None


class PaymentAuthorized(PaymentRequested):
    """The payer's account promised the amount until `expires_at`."""

    expires_at: Moment

    @property
    def events_recorded(self) -> int:
        return 2


class PaymentDeclined(PaymentRequested):
    """The state of the accounts refused the payment; `declined_account_id` is the account that did."""

    decline_reason: DeclineReason
    declined_account_id: str

    @property
    def events_recorded(self) -> int:
        return 1


class PaymentChange(PaymentEvent):
    """A change of an authorized payment, with its amounts before and after."""

    before: PaymentAmounts
    after: PaymentAmounts


class AuthorizationIncremented(PaymentChange):
    """The authorization was raised to the new total `amount`."""

    increment_id: str
    amount: Money

    @property
    def events_recorded(self) -> int:
        return 2


class PaymentCaptured(PaymentChange):
    """Money went from payer to payee. `amount` as asked: unset means all that remained."""

    capture_id: str
    amount: Money | None = None
    keep_remainder: bool
    effective_at: Moment | None = None

    @property
    def amount_captured(self) -> int:
        return self.after.captured - self.before.captured

    @property
    def events_recorded(self) -> int:
        return 4 if self.after.released > self.before.released else 3


class PaymentVoided(PaymentChange):
    """All that was not captured was released."""

    reason: str

    @property
    def events_recorded(self) -> int:
        return 2


class AuthorizationExpired(PaymentChange):
    """The authorization's time was over: all that was not captured was released."""

    @property
    def events_recorded(self) -> int:
        return 2


class PaymentRefunded(PaymentChange):
    """Money went back from payee to payer. `amount` as asked: unset means all that could be refunded."""

    refund_id: str
    amount: Money | None = None
    effective_at: Moment | None = None

    @property
    def amount_refunded(self) -> int:
        return self.after.refunded - self.before.refunded

    @property
    def events_recorded(self) -> int:
        return 3


# --- Transfers: stream transfer/<transfer_id> ------------------------------------------------------------------------


class TransferEvent(LedgerEvent):
    """A PostTransfer, its fields as the client set them (unset stays unset)."""

    transfer_id: str
    legs: tuple[TransferLeg, ...]
    reference: str
    metadata: Metadata
    effective_at: Moment | None = None

    @property
    def events_recorded(self) -> int:
        raise NotImplementedError

    @property
    def last_position(self) -> int:
        """The position of the last event of the command."""
        return self.command_position + self.events_recorded - 1

    def apply(self, aggregate: Any) -> None:
        aggregate.outcome = self


class TransferPosted(TransferEvent):
    """Every leg moved its money."""

    @property
    def events_recorded(self) -> int:
        return 1 + 2 * len(self.legs)


class TransferDeclined(TransferEvent):
    """No leg moved any money: `declined_leg` (counted from 0) was refused by `declined_account_id`."""

    decline_reason: DeclineReason
    declined_account_id: str
    declined_leg: Integer

    @property
    def events_recorded(self) -> int:
        return 1


TOPICS: Final[dict[str, type[LedgerEvent]]] = {
    "AccountOpened": AccountOpened,
    "FundsReserved": FundsReserved,
    "FundsReleased": FundsReleased,
    "FundsDebited": FundsDebited,
    "FundsCredited": FundsCredited,
    "CreditLimitChanged": CreditLimitChanged,
    "AccountFrozen": AccountFrozen,
    "AccountUnfrozen": AccountUnfrozen,
    "AccountClosed": AccountClosed,
    "PaymentAuthorized": PaymentAuthorized,
    "PaymentDeclined": PaymentDeclined,
    "AuthorizationIncremented": AuthorizationIncremented,
    "PaymentCaptured": PaymentCaptured,
    "PaymentVoided": PaymentVoided,
    "AuthorizationExpired": AuthorizationExpired,
    "PaymentRefunded": PaymentRefunded,
    "TransferPosted": TransferPosted,
    "TransferDeclined": TransferDeclined,
}
"""Every event that can stand in the log, by topic. The table is closed: a topic is never looked up anywhere else."""


def account_stream(account_id: str) -> str:
    return f"account/{account_id}"


def payment_stream(payment_id: str) -> str:
    return f"payment/{payment_id}"


def transfer_stream(transfer_id: str) -> str:
    return f"transfer/{transfer_id}"
