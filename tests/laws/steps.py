"""Steps: what a run may do, said without regard to the state that it meets, and made a request when that is known.

Accounts and payments are pointed at, amounts are named after the bounds that they are to touch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from wellformed import ID_FIELDS, MOST
from world import World, changed, stamp

from ledger.v1.account_pb2 import (
    ACCOUNT_KIND_EXTERNAL,
    FREEZE_SCOPE_ALL,
    FREEZE_SCOPE_CREDITS,
    FREEZE_SCOPE_DEBITS,
    CloseAccountRequest,
    FreezeAccountRequest,
    OpenAccountRequest,
    SetCreditLimitRequest,
    UnfreezeAccountRequest,
)
from ledger.v1.batch_pb2 import BatchCommand, ExecuteBatchRequest
from ledger.v1.ledger_pb2 import Money, Precondition
from ledger.v1.payment_pb2 import (
    AuthorizePaymentRequest,
    CapturePaymentRequest,
    IncrementAuthorizationRequest,
    RefundPaymentRequest,
    VoidPaymentRequest,
)
from ledger.v1.transfer_pb2 import PostTransferRequest, TransferLeg

EUROS: Final = ["bank", "scheme", "alice", "bob", "shop", "rich"]
YEN: Final = ["yen-bank", "yumi", "zoe"]
DINARS: Final = ["dinar-bank", "basim", "dana"]
NEW: Final = ["new-1", "new-2", "new-3"]
EVERYBODY: Final = EUROS + YEN + DINARS + NEW

SECOND: Final = 1_000_000_000
DAY: Final = 86_400 * SECOND
NOTHING: Final[Mapping[str, str]] = {}


class Scene(NamedTuple):
    """Where a step becomes a request: the world as the model knows it, and what all ids of the run begin with."""

    world: World
    tag: str

    def id(self, name: str) -> str:
        """An id of this run. What is no id stays none."""
        return self.tag + name if name[:1].isalnum() else name

    @property
    def started_at(self) -> datetime:
        return self.world.heads[0][0]

    def account(self, name: str) -> Any:
        return self.world.accounts.get(self.id(name))


class Terms(NamedTuple):
    """What comes with a write request, beside what it asks."""

    ledger: str = ""
    validate_only: bool = False
    conditions: Sequence[tuple[str, int]] = ()
    """Accounts, and how far the expected version is off the real one."""

    spoil: int = 0
    """0, or which way of being malformed it takes."""

    def put_on(self, request: Any, scene: Scene) -> Any:
        request = changed(request, ledger=self.ledger, validate_only=self.validate_only)
        for name, off in dict(self.conditions).items():
            account = scene.account(name)
            version = max(1, account.version + off) if account else 1
            request.preconditions.add(account_id=scene.id(name), expected_version=version)
        ways = spoilt(request) if self.spoil else [request]
        return ways[self.spoil % len(ways)]


# --- amounts ---------------------------------------------------------------------------------------------------------


class Amount(NamedTuple):
    """So many minor units more than what its name stands for, in a currency or in that of the account."""

    of: str
    more: int = 0
    currency_code: str = ""

    def money(self, bounds: dict[str, int], currency_code: str, least: int = 1) -> Money:
        minor_units = max(least, bounds.get(self.of, 0) + self.more)
        return Money(currency_code=self.currency_code or currency_code, minor_units=minor_units)


def _bounds(payer: Any, payee: Any) -> dict[str, int]:
    """What the payer can spend, what the payer's and the payee's balances still have room for, and the most."""
    return {
        "available": payer.available if payer else 1,
        "room to pay": MOST + payer.posted if payer else 1,
        "room to promise": MOST - payer.reserved if payer else 1,
        "room to receive": MOST - payee.posted if payee else 1,
        "most": MOST,
    }


# --- commands --------------------------------------------------------------------------------------------------------


class Open(NamedTuple):
    account: str
    currency_code: str
    external: bool = False
    limit: Amount | None = None
    metadata: Mapping[str, str] = NOTHING

    def request(self, scene: Scene) -> Any:
        request = OpenAccountRequest(
            account_id=scene.id(self.account), currency_code=self.currency_code, metadata=self.metadata
        )
        if self.external:
            request.kind = ACCOUNT_KIND_EXTERNAL
        if self.limit is not None:
            request.credit_limit.CopyFrom(self.limit.money(_bounds(None, None), self.currency_code))
        return request


class SetLimit(NamedTuple):
    account: str
    limit: Amount
    reason: str

    def request(self, scene: Scene) -> Any:
        account = scene.account(self.account)
        used = account.reserved - account.posted if account else 0
        bounds = {"used": used, "so already": account.credit_limit if account else 0, "most": MOST}
        money = self.limit.money(bounds, _currency(account, self.account), least=0)
        return SetCreditLimitRequest(account_id=scene.id(self.account), credit_limit=money, reason=self.reason)


class Freeze(NamedTuple):
    account: str
    """Or "promising" for one that has promised money, if there is one."""

    scope: int
    reason: str

    def request(self, scene: Scene) -> Any:
        payers = [each.payer_account_id for each in scene.world.payments.values() if each.amount_capturable]
        account_id = payers[-1] if self.account == "promising" and payers else scene.id(self.account)
        return FreezeAccountRequest(account_id=account_id, scope=self.scope, reason=self.reason)


class Unfreeze(NamedTuple):
    account: str
    """Or "" for one that is frozen, if there is one."""

    reason: str

    def request(self, scene: Scene) -> Any:
        frozen = (each.account_id for each in scene.world.accounts.values() if each.freeze_scope)
        account_id = scene.id(self.account) if self.account else next(frozen, scene.id("dana"))
        return UnfreezeAccountRequest(account_id=account_id, reason=self.reason)


class Close(NamedTuple):
    account: str
    """Or "awaiting" for one that has nothing and is about to be paid, "promised" for one that has nothing left but what
    it has promised; if there is one."""

    reason: str

    def request(self, scene: Scene) -> Any:
        return CloseAccountRequest(account_id=self._account_id(scene), reason=self.reason)

    def _account_id(self, scene: Scene) -> str:
        nothing_posted = [each for each in scene.world.accounts.values() if not each.posted]
        payments = [each for each in scene.world.payments.values() if each.amount_capturable]
        payees = {each.payee_account_id for each in payments}
        found = {
            "awaiting": [each for each in nothing_posted if each.account_id in payees and not each.reserved],
            "promised": [each for each in nothing_posted if each.reserved],
        }.get(self.account, [])
        return found[0].account_id if found else scene.id(self.account)


class Authorize(NamedTuple):
    payment: str
    payer: str
    payee: str
    amount: Amount
    hold_for: int | None = None
    ago: int | None = None
    reference: str = ""
    metadata: Mapping[str, str] = NOTHING

    def request(self, scene: Scene) -> Any:
        payer, payee = scene.account(self.payer), scene.account(self.payee)
        request = AuthorizePaymentRequest(
            payment_id=scene.id(self.payment),
            payer_account_id=scene.id(self.payer),
            payee_account_id=scene.id(self.payee),
            amount=self.amount.money(_bounds(payer, payee), _currency(payer, self.payer)),
            reference=self.reference,
            metadata=self.metadata,
            effective_at=_moment(scene, self.ago),
        )
        if self.hold_for is not None:
            request.hold_for.CopyFrom(Duration(seconds=self.hold_for // SECOND, nanos=self.hold_for % SECOND))
        return request


class Increment(NamedTuple):
    which: int
    of: str
    change: str
    total: Amount

    def request(self, scene: Scene) -> Any:
        payment = _payment(scene, self.which, self.of)
        authorized = payment.amount_authorized if payment else 0
        payer = scene.world.accounts[payment.payer_account_id] if payment else None
        bounds = {name: authorized + bound for name, bound in _bounds(payer, None).items()}
        bounds |= {"": authorized, "most": MOST, "as much": authorized, "one": 0}
        return IncrementAuthorizationRequest(
            payment_id=payment.payment_id if payment else scene.id("p0"),
            increment_id=self.change,
            amount=self.total.money(bounds, payment.currency_code if payment else "EUR"),
        )


class Capture(NamedTuple):
    which: int
    of: str
    change: str
    amount: Amount | None
    keep_remainder: bool
    ago: int | None = None

    def request(self, scene: Scene) -> Any:
        payment = _payment(scene, self.which, self.of)
        request = CapturePaymentRequest(
            payment_id=payment.payment_id if payment else scene.id("p0"),
            capture_id=self.change,
            keep_remainder=self.keep_remainder,
            effective_at=_moment(scene, self.ago),
        )
        _add_amount(request, self.amount, payment, {"whole": payment.amount_capturable if payment else 0})
        return request


class Void(NamedTuple):
    which: int
    of: str
    reason: str

    def request(self, scene: Scene) -> Any:
        payment = _payment(scene, self.which, self.of)
        payment_id = payment.payment_id if payment else scene.id("p0")
        return VoidPaymentRequest(payment_id=payment_id, reason=self.reason)


class Refund(NamedTuple):
    which: int
    of: str
    change: str
    amount: Amount | None
    ago: int | None

    def request(self, scene: Scene) -> Any:
        payment = _payment(scene, self.which, self.of)
        request = RefundPaymentRequest(
            payment_id=payment.payment_id if payment else scene.id("p0"),
            refund_id=self.change,
            effective_at=_moment(scene, self.ago),
        )
        whole = payment.amount_captured - payment.amount_refunded if payment else 0
        _add_amount(request, self.amount, payment, {"whole": whole})
        return request


class Leg(NamedTuple):
    payer: str
    payee: str
    """Or "refundable" for one that may get a refund, if there is one."""

    amount: Amount

    def message(self, scene: Scene) -> TransferLeg:
        payments = [each for each in scene.world.payments.values() if each.amount_captured > each.amount_refunded]
        payee_id = payments[-1].payer_account_id if self.payee == "refundable" and payments else scene.id(self.payee)
        payer, payee = scene.account(self.payer), scene.world.accounts.get(payee_id)
        amount = self.amount.money(_bounds(payer, payee), _currency(payer, self.payer))
        return TransferLeg(amount=amount, from_account_id=scene.id(self.payer), to_account_id=payee_id)


class Transfer(NamedTuple):
    transfer: str
    legs: Sequence[Leg]
    ago: int | None = None
    reference: str = ""
    metadata: Mapping[str, str] = NOTHING

    def request(self, scene: Scene) -> Any:
        return PostTransferRequest(
            transfer_id=scene.id(self.transfer),
            legs=[leg.message(scene) for leg in self.legs],
            reference=self.reference,
            metadata=self.metadata,
            effective_at=_moment(scene, self.ago),
        )


def _currency(account: Any, name: str) -> str:
    if account:
        return str(account.currency_code)
    return "JPY" if name in YEN else "KWD" if name in DINARS else "EUR"


def _moment(scene: Scene, ago: int | None) -> Timestamp | None:
    if ago is None:
        return None
    moment = Timestamp()
    moment.FromNanoseconds(stamp(scene.world.now).ToNanoseconds() - ago)
    return moment


def _payment(scene: Scene, which: int, of: str) -> Any:
    """One of the payments of which what is wished is so, or else any, if there is one; or none if so wished."""
    payments = [] if of == "none" else list(scene.world.payments.values())
    wanted = [each for each in payments if of and _is(scene, each, of)] or payments
    return wanted[which % len(wanted)] if wanted else None


def _is(scene: Scene, payment: Any, of: str) -> bool:
    """Whether a payment has an amount of that name; "blocked": capturable, and the payer is frozen; "full": the payer
    has no room for all that can be refunded."""
    payer = scene.world.accounts[payment.payer_account_id]
    if of == "blocked":
        return bool(payment.amount_capturable and payer.freeze_scope)
    if of == "full":
        return bool(payer.posted + payment.amount_captured - payment.amount_refunded > MOST)
    return bool(getattr(payment, f"amount_{of}"))


def _add_amount(request: Any, amount: Amount | None, payment: Any, bounds: dict[str, int]) -> None:
    if amount is not None:
        code = payment.currency_code if payment else "EUR"
        request.amount.CopyFrom(amount.money({**bounds, "most": MOST}, code))


# --- batches, and requests that were sent before ---------------------------------------------------------------------

COMMAND_NAMES: Final = {field.message_type.name: field.name for field in BatchCommand.DESCRIPTOR.fields}
"""How a batch calls the request of each write rpc."""


def batch_of(requests: Sequence[Any], mode: int = 0, **fields: Any) -> ExecuteBatchRequest:
    commands = [BatchCommand(**{COMMAND_NAMES[each.DESCRIPTOR.name]: each}) for each in requests]
    return ExecuteBatchRequest(commands=commands, mode=mode, **fields)


def others(request: Any, scene: Scene) -> list[Any]:
    """The same request with another value in one field, for each of its fields save the id."""
    alice, bank = scene.id("alice"), scene.id("bank")
    leg = TransferLeg(from_account_id=bank, to_account_id=alice, amount=_eur(1))
    values: dict[str, list[Any]] = {
        "currency_code": ["EUR", "JPY"],
        "kind": [ACCOUNT_KIND_EXTERNAL],
        "credit_limit": [None, _eur(7)],
        "amount": [None, _eur(7), Money(currency_code="JPY", minor_units=7)],
        "payer_account_id": [alice, bank],
        "payee_account_id": [alice, bank],
        "hold_for": [None, Duration(seconds=60)],
        "effective_at": [None, _moment(scene, DAY), _moment(scene, -DAY)],
        "keep_remainder": [not getattr(request, "keep_remainder", False)],
        "reference": ["another"],
        "reason": ["another"],
        "metadata": [{}, {"another": ""}],
        "scope": [FREEZE_SCOPE_DEBITS, FREEZE_SCOPE_CREDITS, FREEZE_SCOPE_ALL],
        "legs": [[leg], [*getattr(request, "legs", ()), leg]],
    }
    return _each_changed(request, values)


def spoilt(request: Any) -> list[Any]:
    """The request with something malformed in one field, for each of its fields in turn."""
    texts = ["x" * 257, "a\0b"]
    wrong_money = [_eur(-1), _eur(MOST + 1), Money(currency_code="eur", minor_units=1), Money()]
    same = getattr(request, "payer_account_id", "")
    sound = TransferLeg(from_account_id="a", to_account_id="b", amount=_eur(1))
    twice = [Precondition(account_id="a", expected_version=1)] * 2
    values: dict[str, list[Any]] = {
        **{name: ["", "a b"] for name in ID_FIELDS},
        "payee_account_id": [same, "é"],
        "currency_code": ["", "eur", "XXX"],
        "kind": [3, -1],
        "scope": [4, -1],
        "credit_limit": wrong_money,
        "amount": [*wrong_money, _eur(0)],
        "hold_for": [Duration(), Duration(nanos=999), Duration(seconds=31 * 86_400, nanos=1_000)],
        "effective_at": [Timestamp(nanos=-1), Timestamp(seconds=2**62)],
        "reference": texts,
        "reason": texts,
        "metadata": [{"": "x"}, {"a": "é" * 4096}, {"a": "\0"}],
        "legs": [[], [sound, changed(sound, to_account_id="a")], [sound, changed(sound, amount=None)]],
        "preconditions": [twice, [Precondition(account_id="a")], [Precondition(expected_version=1)]],
    }
    return _each_changed(request, values)


def _each_changed(request: Any, values: dict[str, list[Any]]) -> list[Any]:
    names = [field.name for field in request.DESCRIPTOR.fields]
    return [changed(request, **{name: value}) for name in names for value in values.get(name, [])]


def _eur(minor_units: int) -> Money:
    return Money(currency_code="EUR", minor_units=minor_units)
