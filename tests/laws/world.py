"""What a ledger knows at a moment, in the contract's own messages, and how events change it.

No message is ever changed, only replaced, and a world is copied for each command: so a copy can be thrown away where
nothing was to be recorded, and what was answered once stays as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple, TypeVar

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from ledger.v1.account_pb2 import AccountBalance, Entry
from ledger.v1.payment_pb2 import (
    PAYMENT_STATE_AUTHORIZED,
    PAYMENT_STATE_CAPTURED,
    PAYMENT_STATE_DECLINED,
    PAYMENT_STATE_EXPIRED,
    PAYMENT_STATE_PARTIALLY_CAPTURED,
    PAYMENT_STATE_VOIDED,
)

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
Key = tuple[str, ...]
AnyMessage = TypeVar("AnyMessage", bound=Message)


class First(NamedTuple):
    """The first outcome of an id: what was asked, the thing right after it, and where and when it was recorded."""

    request: Any
    thing: Any
    position: int
    recorded_at: datetime


class Life(NamedTuple):
    """A payment right after one of its events."""

    position: int
    recorded_at: datetime
    payment: Any


class World:
    """Accounts, payments and transfers as they are `now`, with their pasts, at a head of the log."""

    def __init__(self, now: datetime, head: int) -> None:
        self.now, self.head = now, head
        self.accounts: dict[str, Any] = {}
        self.payments: dict[str, Any] = {}
        self.transfers: dict[str, Any] = {}
        self.entries: dict[str, tuple[Any, ...]] = {}
        """The lines of each account, in order."""
        self.lives: dict[str, tuple[Life, ...]] = {}
        """Each payment, after each of its events."""
        self.firsts: dict[Key, First] = {}
        """The first outcome of each id, the ids of a payment's changes by payment; and of a payment's void."""
        self.heads: tuple[tuple[datetime, int], ...] = ((now, head),)
        """The head at each moment at which something was recorded."""

    def copy(self) -> World:
        copy = World(self.now, self.head)
        copy.accounts, copy.payments, copy.transfers = dict(self.accounts), dict(self.payments), dict(self.transfers)
        copy.entries, copy.lives, copy.firsts = dict(self.entries), dict(self.lives), dict(self.firsts)
        copy.heads = self.heads
        return copy

    def expired(self) -> list[str]:
        """The payments that have something capturable and whose time is over: what a sweeper has to record."""
        return [payment_id for payment_id, payment in self.payments.items() if self.has_expired(payment)]

    def has_expired(self, payment: Any) -> bool:
        return payment.amount_capturable > 0 and self.now >= moment_of(payment.expires_at)

    def effective_at(self, request: Any) -> datetime:
        """As sent, else now."""
        sent = "effective_at" in request.DESCRIPTOR.fields_by_name and request.HasField("effective_at")
        return moment_of(request.effective_at) if sent else self.now

    # --- events ------------------------------------------------------------------------------------------------------

    def write(self, account: Any, kind: int, amount: int = 0, reserved_change: int = 0, **fields: Any) -> None:
        """An event on an account: how the account is after it, and the line that it adds."""
        after = changed(
            account,
            version=account.version + 1,
            posted=account.posted + amount,
            reserved=account.reserved + reserved_change,
        )
        after.available = after.posted - after.reserved + after.credit_limit
        self.head += 1
        entry = Entry(
            **{"effective_at": stamp(self.now), **fields},
            **{name: getattr(after, name) for name in ("account_id", "currency_code", "version")},
            **{name: getattr(after, name) for name in ("posted", "reserved", "available")},
            credit_limit=after.credit_limit if after.HasField("credit_limit") else None,
            position=self.head,
            recorded_at=stamp(self.now),
            kind=kind,
            amount=amount,
            reserved_change=reserved_change,
        )
        self.accounts[after.account_id] = after
        self.entries[after.account_id] = (*self.entries.get(after.account_id, ()), entry)

    def move(self, payer_id: str, payee_id: str, amount: int, cause: Mapping[str, Any], reserved: int = 0) -> None:
        """A debit and a credit. Of the debited, `reserved` was promised before."""
        debit = {"amount": -amount, "reserved_change": -reserved, "counterparty_account_id": payee_id}
        self.write(self.accounts[payer_id], **debit, **cause)
        self.write(self.accounts[payee_id], amount=amount, counterparty_account_id=payer_id, **cause)

    def reserve(self, payment: Any, amount: int, kind: int, **fields: Any) -> None:
        """Promise more to a payment, or less."""
        cause = {"payment_id": payment.payment_id, "reference": payment.reference, **fields}
        self.write(self.accounts[payment.payer_account_id], kind, reserved_change=amount, **cause)

    def live(self, payment: Any, **changes: Any) -> None:
        """An event on a payment: what it adds to amounts, and to the lists of captures, refunds and increments."""
        after = changed(payment, version=payment.version + 1)
        for name, change in changes.items():
            if isinstance(change, int):
                setattr(after, f"amount_{name}", getattr(after, f"amount_{name}") + change)
            else:
                getattr(after, name).append(change)
        after.state = state_of(after)
        self.head += 1
        self.payments[after.payment_id] = after
        self.lives[after.payment_id] = (
            *self.lives.get(after.payment_id, ()),
            Life(self.head, self.now, after),
        )

    def release(self, payment: Any, into: str, kind: int) -> None:
        """Give back to the payer all that is capturable."""
        rest = payment.amount_capturable
        self.live(payment, capturable=-rest, **{into: rest})
        self.reserve(payment, -rest, kind)


def state_of(payment: Any) -> int:
    """A payment's state follows from its amounts."""
    if not payment.amount_authorized:
        return PAYMENT_STATE_DECLINED
    if payment.amount_capturable:
        return PAYMENT_STATE_PARTIALLY_CAPTURED if payment.amount_captured else PAYMENT_STATE_AUTHORIZED
    if payment.amount_captured:
        return PAYMENT_STATE_CAPTURED
    return PAYMENT_STATE_EXPIRED if payment.amount_expired else PAYMENT_STATE_VOIDED


def balance_after(entry: Any) -> AccountBalance:
    """The balance of an account after a line of its history."""
    balance = AccountBalance(**{name: getattr(entry, name) for name in ("account_id", "currency_code", "version")})
    balance.posted, balance.reserved, balance.available = entry.posted, entry.reserved, entry.available
    if entry.HasField("credit_limit"):
        balance.credit_limit = entry.credit_limit
    balance.position = entry.position
    return balance


def changed(message: AnyMessage, **fields: Any) -> AnyMessage:
    """A copy with other values; None unsets a field."""
    copy = type(message)()
    copy.CopyFrom(message)
    for name in fields:
        copy.ClearField(name)
    copy.MergeFrom(type(message)(**{name: value for name, value in fields.items() if value is not None}))
    return copy


def stamp(moment: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp


def moment_of(timestamp: Any) -> datetime:
    """Cut to the microsecond."""
    return EPOCH + timedelta(seconds=timestamp.seconds, microseconds=timestamp.nanos // 1000)


def time_of(duration: Any) -> timedelta:
    """Cut to the microsecond."""
    return timedelta(seconds=duration.seconds, microseconds=duration.nanos // 1000)
