"""The facts of a ledger: every event that can stand in its log, exactly as it is stored.

This module is the storage format. An event class is frozen once it has been released: a field is never renamed,
removed or given another meaning; a new shape is a new `class_version` with an upcaster (`ledger.upcasters`).

Stored are the event's fields as JSON with sorted keys; a field that is unset (None) is left out. The stream and the
version are columns of the log, not part of the JSON. Amounts are integers in the minor unit of the currency (cents).
Times are UTC with microseconds.

Facts are frozen values of msgspec. They are checked when they are read; when they are made, all that is in them comes
from commands, which are checked. A field that may be unset has None for its default, and no other field has one: what
equals its default is not stored.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Final, Self, TypeAlias

import msgspec
from eventsourcing.domain import CanMutateAggregate
from msgspec import Meta, Struct

from ledger.domain.money import Money

Moment: TypeAlias = Annotated[datetime, Meta(tz=True)]
"""A time with a time zone, to the microsecond. What makes events gives it in UTC."""

_TIME: Final = r"(?:T(?=.)(?:[0-9]{1,2}H)?(?:[0-9]{1,2}M)?(?:[0-9]{1,2}(?:\.[0-9]{1,6})?S)?)?"

Length: TypeAlias = Annotated[str, Meta(pattern=rf"\AP(?=.)(?:[0-9]{{1,9}}D)?{_TIME}\Z")]
"""A length of time, as ISO 8601 writes it: P7D, PT1H30M. Text, as msgspec would write another one (PT5400S)."""


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


# gc=False: these hold texts, numbers and each other only, so that Python's collector need not look at them.


class AccountState(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """All that decisions need to know of an account. Every account event carries the state after it.

    `posted` is what the account has, `reserved` what it has promised to open authorizations, `credit_limit` how far
    `posted - reserved` may go below zero. EXTERNAL accounts have no limit; theirs is 0 and not looked at.
    """

    credit_limit: int
    currency_code: str
    freeze_scope: FreezeScope | None = None
    kind: AccountKind
    posted: int
    reserved: int
    status: AccountStatus

    @property
    def available(self) -> int:
        """What can still be spent: posted - reserved + credit_limit."""
        return self.posted - self.reserved + self.credit_limit


class Cause(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """The command behind a change of an account: its kind, and the ids that find it again."""

    capture_id: str | None = None
    increment_id: str | None = None
    kind: CauseKind
    leg: int | None = None
    payment_id: str | None = None
    refund_id: str | None = None
    transfer_id: str | None = None


class PaymentAmounts(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """Where the money of a payment is. Always: authorized = captured + capturable + released + expired."""

    authorized: int
    capturable: int
    captured: int
    expired: int
    refunded: int
    released: int


class TransferLeg(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """One movement of a transfer: `amount` from one account to another of the same currency."""

    amount: Money
    from_account_id: str
    to_account_id: str


class LedgerEvent(
    CanMutateAggregate[str],
    Struct,
    frozen=True,
    kw_only=True,
    omit_defaults=True,
    forbid_unknown_fields=True,
    dict=True,
    tag_field="class_version",
    tag=1,
):
    """What all events have in common.

    `originator_id` is the stream and `originator_version` the version in it (the library's names). `timestamp` is the
    log's `recorded_at`. `command_position` is the position of the first event of the command that this event belongs
    to: the events of one command stand next to each other, and its debits equal its credits.
    """

    timestamp: Moment
    actor: str
    correlation_id: str
    command_position: int

    def standing(self, stream: str, version: int) -> Self:
        """This event, as the one of that version in a stream. Each event is given its place once, when it is made.

        What is copied from it, or made of it with other fields, has no place yet.
        """
        place = self.__dict__
        assert not place, f"{place} is where the event stands"
        place["originator_id"], place["originator_version"] = stream, version
        return self

    def __eq__(self, other: object) -> bool:
        """Whether it is the same fact, in the same place. Facts are no keys: they have no hash."""
        return super().__eq__(other) is True and self.__dict__ == other.__dict__

    def __ne__(self, other: object) -> bool:
        return not self == other

    @staticmethod
    def create_timestamp() -> datetime:
        """Refuse: the library's clock is never used, time is given to the domain."""
        raise AssertionError("an event was triggered without a timestamp")

    @property
    def stream(self) -> str:
        return self.originator_id


# --- Accounts: stream account/<account_id> ---------------------------------------------------------------------------


class AccountEvent(LedgerEvent, frozen=True, kw_only=True):
    """A change of an account, with the account's state after it."""

    after: AccountState

    def apply(self, aggregate: Any) -> None:
        aggregate.state = self.after


class AccountOpened(AccountEvent, frozen=True, kw_only=True):
    """The account exists. `credit_limit` as asked: unset means none was given."""

    account_id: str
    credit_limit: Money | None = None
    metadata: dict[str, str]

    @property
    def currency_code(self) -> str:
        return self.after.currency_code

    @property
    def kind(self) -> AccountKind:
        return self.after.kind

    def apply(self, aggregate: Any) -> None:
        super().apply(aggregate)
        aggregate.opening = self


class FundsEvent(AccountEvent, frozen=True, kw_only=True):
    """Money reserved, released or moved. `effective_at` says when it counts in reports; it never decides anything."""

    cause: Cause
    amount: int
    effective_at: Moment


class FundsReserved(FundsEvent, frozen=True, kw_only=True):
    """`amount` promised to an authorization: reserved grows."""


class FundsReleased(FundsEvent, frozen=True, kw_only=True):
    """`amount` promised no more: reserved shrinks."""


class FundsDebited(FundsEvent, frozen=True, kw_only=True):
    """`amount` left the account for `counterparty`; with `from_reserved` it had been reserved before."""

    counterparty: str
    from_reserved: bool


class FundsCredited(FundsEvent, frozen=True, kw_only=True):
    """`amount` reached the account from `counterparty`."""

    counterparty: str


class CreditLimitChanged(AccountEvent, frozen=True, kw_only=True):
    credit_limit: int
    reason: str


class AccountFrozen(AccountEvent, frozen=True, kw_only=True):
    scope: FreezeScope
    reason: str


class AccountUnfrozen(AccountEvent, frozen=True, kw_only=True):
    reason: str


class AccountClosed(AccountEvent, frozen=True, kw_only=True):
    reason: str


# --- Payments: stream payment/<payment_id> ---------------------------------------------------------------------------


class PaymentEvent(LedgerEvent, frozen=True, kw_only=True):
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


class PaymentRequested(PaymentEvent, frozen=True, kw_only=True, rename={"hold_for_text": "hold_for"}):
    """An AuthorizePayment, its fields as the client set them (unset stays unset)."""

    payment_id: str
    payer_account_id: str
    payee_account_id: str
    amount: Money
    hold_for_text: Length | None = None
    reference: str
    metadata: dict[str, str]
    effective_at: Moment | None = None

    @property
    def hold_for(self) -> timedelta | None:
        return None if self.hold_for_text is None else msgspec.convert(self.hold_for_text, timedelta)


class PaymentAuthorized(PaymentRequested, frozen=True, kw_only=True):
    """The payer's account promised the amount until `expires_at`."""

    expires_at: Moment

    @property
    def events_recorded(self) -> int:
        return 2


class PaymentDeclined(PaymentRequested, frozen=True, kw_only=True):
    """The state of the accounts refused the payment; `declined_account_id` is the account that did."""

    decline_reason: DeclineReason
    declined_account_id: str

    @property
    def events_recorded(self) -> int:
        return 1


class PaymentChange(PaymentEvent, frozen=True, kw_only=True):
    """A change of an authorized payment, with its amounts before and after."""

    before: PaymentAmounts
    after: PaymentAmounts


class AuthorizationIncremented(PaymentChange, frozen=True, kw_only=True):
    """The authorization was raised to the new total `amount`."""

    increment_id: str
    amount: Money

    @property
    def events_recorded(self) -> int:
        return 2


class PaymentCaptured(PaymentChange, frozen=True, kw_only=True):
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


class PaymentVoided(PaymentChange, frozen=True, kw_only=True):
    """All that was not captured was released."""

    reason: str

    @property
    def events_recorded(self) -> int:
        return 2


class AuthorizationExpired(PaymentChange, frozen=True, kw_only=True):
    """The authorization's time was over: all that was not captured was released."""

    @property
    def events_recorded(self) -> int:
        return 2


class PaymentRefunded(PaymentChange, frozen=True, kw_only=True):
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


class TransferEvent(LedgerEvent, frozen=True, kw_only=True):
    """A PostTransfer, its fields as the client set them (unset stays unset)."""

    transfer_id: str
    legs: tuple[TransferLeg, ...]
    reference: str
    metadata: dict[str, str]
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


class TransferPosted(TransferEvent, frozen=True, kw_only=True):
    """Every leg moved its money."""

    @property
    def events_recorded(self) -> int:
        return 1 + 2 * len(self.legs)


class TransferDeclined(TransferEvent, frozen=True, kw_only=True):
    """No leg moved any money: `declined_leg` (counted from 0) was refused by `declined_account_id`."""

    decline_reason: DeclineReason
    declined_account_id: str
    declined_leg: int

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


def class_version(kind: type[LedgerEvent]) -> int:
    """The version of the class: 1, until its shape changes."""
    version = kind.__struct_config__.tag
    assert isinstance(version, int)
    return version


def length_text(length: timedelta) -> Length:
    """A length of time, more than none, as it is stored: PT1H30M for 90 minutes."""
    assert length > timedelta(0)
    minutes, seconds = divmod(length.seconds, 60)
    hours, minutes = divmod(minutes, 60)
    precise = f"{seconds}.{length.microseconds:06}".rstrip("0").rstrip(".")
    days = f"{length.days}D" if length.days else ""
    time = "".join(
        f"{count}{unit}" for count, unit in ((f"{hours}", "H"), (f"{minutes}", "M"), (precise, "S")) if count != "0"
    )
    return f"P{days}T{time}" if time else f"P{days}"


def account_stream(account_id: str) -> str:
    return f"account/{account_id}"


def payment_stream(payment_id: str) -> str:
    return f"payment/{payment_id}"


def transfer_stream(transfer_id: str) -> str:
    return f"transfer/{transfer_id}"
