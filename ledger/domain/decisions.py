"""What the ledger answers to each command: the rules, in the order in which they are checked.

Malformed (a command that exists is well-formed), id used, not found, preconditions, currency, closed, frozen, amounts,
funds. The rules from `currency` on are the aggregates' own (account.py, payment.py, transfer.py).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

from msgspec import Struct

from ledger.domain.account import Account
from ledger.domain.aggregate import Stamp
from ledger.domain.book import Book
from ledger.domain.commands import (
    AuthorizePayment,
    CapturePayment,
    CloseAccount,
    Command,
    ExpireAuthorization,
    FreezeAccount,
    IncrementAuthorization,
    OpenAccount,
    PostTransfer,
    RefundPayment,
    SetCreditLimit,
    UnfreezeAccount,
    VoidPayment,
)
from ledger.domain.errors import (
    EffectiveInFuture,
    FieldViolation,
    IdAlreadyUsed,
    PaymentNotFound,
    VersionMismatch,
)
from ledger.domain.events import (
    AccountKind,
    AccountStatus,
    PaymentDeclined,
    PaymentEvent,
    PaymentVoided,
    TransferDeclined,
    TransferEvent,
    account_stream,
    payment_stream,
    transfer_stream,
)
from ledger.domain.payment import Payment
from ledger.domain.transfer import Transfer


class Outcome(Struct, frozen=True):
    """What came of a command: the thing as it was right after it, and where and when that was recorded.

    `position` is that of the command's last event. A replay is the first outcome again, with `replayed` set.
    A command that was only validated has no position (0), and `accounts` are those that it touched, as they would be.
    """

    thing: Account | Payment | Transfer
    position: int
    recorded_at: datetime
    replayed: bool = False
    accounts: tuple[Account, ...] = ()

    @property
    def account_ids(self) -> set[str]:
        """The accounts that the command is about."""
        if isinstance(self.thing, Payment):
            return {self.thing.request.payer_account_id, self.thing.request.payee_account_id}
        if isinstance(self.thing, Transfer):
            legs = self.thing.outcome.legs
            return {leg.from_account_id for leg in legs} | {leg.to_account_id for leg in legs}
        return {self.thing.account_id}

    @property
    def decline(self) -> PaymentDeclined | TransferDeclined | None:
        """The event that says why, if it was a decline."""
        if isinstance(self.thing, Payment):
            request = self.thing.request
            return request if type(request) is PaymentDeclined else None
        if isinstance(self.thing, Transfer):
            return self.thing.outcome if isinstance(self.thing.outcome, TransferDeclined) else None
        return None


def decide(command: Command, book: Book, stamp: Stamp) -> Outcome:
    """Decide on a command in `book`, whose events then tell what to record; raise a Refusal when it is refused."""
    return _DECIDE[type(command)](command, book, stamp)


def streams_of(command: Command) -> list[str]:
    """The streams that a decision on the command looks at, as far as it tells: first what it is about."""
    streams = _STREAMS_OF[type(command)](command)
    if command.preconditions:
        streams += [account_stream(each.account_id) for each in command.preconditions]
    return streams


def streams_behind(payment: Payment) -> list[str]:
    """The streams that a decision to change a payment looks at besides its own."""
    return [account_stream(payment.request.payer_account_id), account_stream(payment.request.payee_account_id)]


# --- accounts --------------------------------------------------------------------------------------------------------


def _open_account(command: OpenAccount, book: Book, stamp: Stamp) -> Outcome:
    existing = book.get(account_stream(command.account_id))
    if existing is not None:
        assert isinstance(existing, Account)
        assert existing.opening is not None
        _require_same(command, existing.opening, "account_id", command.account_id, stamp)
        opened = Account.at(existing.opening)
        return Outcome(opened, existing.opening.command_position, existing.opening.timestamp, replayed=True)
    _check_preconditions(command, book)
    account = Account.open(command, stamp, book.events)
    book.add(account)
    return Outcome(account, stamp.command_position, stamp.timestamp)


def _set_credit_limit(command: SetCreditLimit, book: Book, stamp: Stamp) -> Outcome:
    account = book.account(command.account_id)
    state, limit = account.state, command.credit_limit
    is_so = (state.currency_code, state.credit_limit) == (limit.currency_code, limit.minor_units)
    if is_so and state.kind is AccountKind.CUSTOMER:
        return _already_so(account, stamp)
    _check_preconditions(command, book)
    account.require_currency(limit.currency_code)
    account.set_credit_limit(limit.minor_units, command.reason, stamp)
    return Outcome(account, stamp.command_position, stamp.timestamp)


def _freeze_account(command: FreezeAccount, book: Book, stamp: Stamp) -> Outcome:
    account = book.account(command.account_id)
    if account.state.freeze_scope is command.scope:
        return _already_so(account, stamp)
    _check_preconditions(command, book)
    account.freeze(command.scope, command.reason, stamp)
    return Outcome(account, stamp.command_position, stamp.timestamp)


def _unfreeze_account(command: UnfreezeAccount, book: Book, stamp: Stamp) -> Outcome:
    account = book.account(command.account_id)
    if account.state.status is AccountStatus.OPEN:
        return _already_so(account, stamp)
    _check_preconditions(command, book)
    account.unfreeze(command.reason, stamp)
    return Outcome(account, stamp.command_position, stamp.timestamp)


def _close_account(command: CloseAccount, book: Book, stamp: Stamp) -> Outcome:
    account = book.account(command.account_id)
    if account.state.status is AccountStatus.CLOSED:
        return _already_so(account, stamp)
    _check_preconditions(command, book)
    account.close(command.reason, stamp)
    return Outcome(account, stamp.command_position, stamp.timestamp)


def _already_so(account: Account, stamp: Stamp) -> Outcome:
    """A command that sets a state which is so already: a replay, found at the head.

    Like an id that is used, it is found before the preconditions are looked at: a retry whose first answer was lost
    is answered as done, though the account has moved on from the version that it expects.
    """
    return Outcome(account, stamp.command_position - 1, account.modified_on, replayed=True)


# --- payments --------------------------------------------------------------------------------------------------------


def _authorize_payment(command: AuthorizePayment, book: Book, stamp: Stamp) -> Outcome:
    _require_not_in_future(command.effective_at, stamp)
    existing = book.find_payment(command.payment_id)
    if existing is not None:
        _require_same(command, existing.request, "payment_id", command.payment_id, stamp)
        return _payment_outcome(existing, existing.request, replayed=True)
    payer, payee = book.account(command.payer_account_id), book.peek(command.payee_account_id)
    _check_preconditions(command, book)
    payment = payer.authorize_payment(command, payee, stamp)
    book.add(payment)
    return _payment_outcome(payment, payment.request)


def _increment_authorization(command: IncrementAuthorization, book: Book, stamp: Stamp) -> Outcome:
    payment = _existing_payment(command.payment_id, book)
    replay = _replayed_change(payment, command, "increment_id", command.increment_id, stamp)
    if replay:
        return replay
    _check_preconditions(command, book)
    payment.increment(command, *_accounts_of(payment, book), stamp)
    return _payment_outcome(payment, payment.history[-1])


def _capture_payment(command: CapturePayment, book: Book, stamp: Stamp) -> Outcome:
    _require_not_in_future(command.effective_at, stamp)
    payment = _existing_payment(command.payment_id, book)
    replay = _replayed_change(payment, command, "capture_id", command.capture_id, stamp)
    if replay:
        return replay
    _check_preconditions(command, book)
    payment.capture(command, *_accounts_of(payment, book), stamp)
    return _payment_outcome(payment, payment.history[-1])


def _void_payment(command: VoidPayment, book: Book, stamp: Stamp) -> Outcome:
    payment = _existing_payment(command.payment_id, book)
    for event in payment.history:
        if isinstance(event, PaymentVoided):
            return _payment_outcome(payment, event, replayed=True)
    _check_preconditions(command, book)
    payer, _ = _accounts_of(payment, book)
    payment.void(command.reason, payer, stamp)
    return _payment_outcome(payment, payment.history[-1])


def _expire_authorization(command: ExpireAuthorization, book: Book, stamp: Stamp) -> Outcome:
    payment = _existing_payment(command.payment_id, book)
    if payment.amounts.capturable == 0 or not payment.is_expired(stamp.timestamp):
        return _payment_outcome(payment, payment.history[-1], replayed=True)
    payer, _ = _accounts_of(payment, book)
    payment.expire(payer, stamp)
    return _payment_outcome(payment, payment.history[-1])


def _refund_payment(command: RefundPayment, book: Book, stamp: Stamp) -> Outcome:
    _require_not_in_future(command.effective_at, stamp)
    payment = _existing_payment(command.payment_id, book)
    replay = _replayed_change(payment, command, "refund_id", command.refund_id, stamp)
    if replay:
        return replay
    _check_preconditions(command, book)
    payment.refund(command, *_accounts_of(payment, book), stamp)
    return _payment_outcome(payment, payment.history[-1])


def _existing_payment(payment_id: str, book: Book) -> Payment:
    payment = book.find_payment(payment_id)
    if payment is None:
        raise PaymentNotFound(payment_id=payment_id)
    return payment


def _accounts_of(payment: Payment, book: Book) -> tuple[Account, Account]:
    return book.account(payment.request.payer_account_id), book.account(payment.request.payee_account_id)


def _replayed_change(payment: Payment, command: Command, id_field: str, change_id: str, stamp: Stamp) -> Outcome | None:
    """The first outcome of an increment, capture or refund whose id is known already. The three share one id space."""
    event = payment.changes.get(change_id)
    if event is None:
        return None
    _require_same(command, event, id_field, change_id, stamp)
    return _payment_outcome(payment, event, replayed=True)


def _payment_outcome(payment: Payment, event: PaymentEvent, *, replayed: bool = False) -> Outcome:
    thing = payment.as_after(event) if replayed else payment
    return Outcome(thing, event.last_position, event.timestamp, replayed)


# --- transfers -------------------------------------------------------------------------------------------------------


def _post_transfer(command: PostTransfer, book: Book, stamp: Stamp) -> Outcome:
    _require_not_in_future(command.effective_at, stamp)
    existing = book.find_transfer(command.transfer_id)
    if existing is not None:
        _require_same(command, existing.outcome, "transfer_id", command.transfer_id, stamp)
        return _transfer_outcome(existing, existing.outcome, replayed=True)
    accounts = {}
    for leg in command.legs:
        for account_id in (leg.from_account_id, leg.to_account_id):
            accounts[account_id] = book.account(account_id)
    _check_preconditions(command, book)
    transfer = Transfer.post(command, accounts, stamp, book.events)
    book.add(transfer)
    return _transfer_outcome(transfer, transfer.outcome)


def _transfer_outcome(transfer: Transfer, event: TransferEvent, *, replayed: bool = False) -> Outcome:
    return Outcome(transfer, event.last_position, event.timestamp, replayed)


# --- checks that commands share --------------------------------------------------------------------------------------


def _require_same(command: Command, recorded: Any, id_field: str, id_: str, stamp: Stamp) -> None:
    """Raise IdAlreadyUsed unless the same caller asked for the same. Another caller is told of no other difference."""
    if recorded.actor != stamp.actor:
        field: str | None = "actor"
    elif not hasattr(recorded, id_field):  # A change of another kind has the id.
        field = id_field
    else:
        field = command.difference(recorded)
    if field:
        raise IdAlreadyUsed(id_field=id_field, id=id_, field=field)


def _require_not_in_future(effective_at: datetime | None, stamp: Stamp) -> None:
    if effective_at is not None and effective_at > stamp.timestamp:
        now = stamp.timestamp.isoformat()
        raise EffectiveInFuture(FieldViolation("effective_at", f"must not be later than now, {now}"))


def _check_preconditions(command: Command, book: Book) -> None:
    if not command.preconditions:
        return
    versions = {each.account_id: book.peek(each.account_id).version for each in command.preconditions}
    for each in command.preconditions:
        version = versions[each.account_id]
        if version != each.expected_version:
            raise VersionMismatch(account_id=each.account_id, version=version, expected_version=each.expected_version)


def _streams_of_authorization(command: AuthorizePayment) -> list[str]:
    payer, payee = account_stream(command.payer_account_id), account_stream(command.payee_account_id)
    return [payment_stream(command.payment_id), payer, payee]


def _streams_of_transfer(command: PostTransfer) -> list[str]:
    accounts = {each for leg in command.legs for each in (leg.from_account_id, leg.to_account_id)}
    return [transfer_stream(command.transfer_id), *map(account_stream, accounts)]


def _stream_of_payment(command: Any) -> list[str]:
    return [payment_stream(command.payment_id)]


def _stream_of_account(command: Any) -> list[str]:
    return [account_stream(command.account_id)]


ACCOUNT_COMMANDS: Final[frozenset[type[Command]]] = frozenset(
    {OpenAccount, SetCreditLimit, FreezeAccount, UnfreezeAccount, CloseAccount}
)
CHANGES_OF_PAYMENTS: Final[frozenset[type[Command]]] = frozenset(
    {IncrementAuthorization, CapturePayment, VoidPayment, ExpireAuthorization, RefundPayment}
)

_STREAMS_OF: Final[dict[type[Command], Callable[[Any], list[str]]]] = {
    **dict.fromkeys(ACCOUNT_COMMANDS, _stream_of_account),
    **dict.fromkeys(CHANGES_OF_PAYMENTS, _stream_of_payment),
    AuthorizePayment: _streams_of_authorization,
    PostTransfer: _streams_of_transfer,
}

_DECIDE: Final[dict[type[Command], Callable[[Any, Book, Stamp], Outcome]]] = {
    OpenAccount: _open_account,
    SetCreditLimit: _set_credit_limit,
    FreezeAccount: _freeze_account,
    UnfreezeAccount: _unfreeze_account,
    CloseAccount: _close_account,
    AuthorizePayment: _authorize_payment,
    IncrementAuthorization: _increment_authorization,
    CapturePayment: _capture_payment,
    VoidPayment: _void_payment,
    ExpireAuthorization: _expire_authorization,
    RefundPayment: _refund_payment,
    PostTransfer: _post_transfer,
}
