"""What the load generator asks for: bodies that are made before the clock runs, each with what its reply has to say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final, TypeAlias

from ledger.v1 import account_pb2, batch_pb2, ledger_pb2, payment_pb2, transfer_pb2
from ledger.v1.payment_pb2 import PAYMENT_STATE_AUTHORIZED, PAYMENT_STATE_CAPTURED, PAYMENT_STATE_DECLINED

EUR: Final = "EUR"
SHOP: Final = "shop"
HOT: Final = "hot"
POOR: Final = "poor"
_BATCH_MOST: Final = 2_000

Wrong: TypeAlias = str | None
"""What is wrong with a reply, or None."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call: the rpc's path, the body, and what tells whether a reply's body is right."""

    path: str
    body: bytes
    check: Callable[[bytes], Wrong]
    commands: int = 1
    then: Callable[[bytes], Call] | None = None
    """What to call next, given this call's reply; both count as one."""


def path_of(service: str, rpc: str) -> str:
    return f"/ledger.v1.{service}/{rpc}"


AUTHORIZE: Final = path_of("PaymentService", "AuthorizePayment")
GET_PAYMENT: Final = path_of("PaymentService", "GetPayment")
GET_BALANCE: Final = path_of("AccountService", "GetAccountBalance")
EXECUTE_BATCH: Final = path_of("BatchService", "ExecuteBatch")


def money(minor_units: int) -> ledger_pb2.Money:
    return ledger_pb2.Money(currency_code=EUR, minor_units=minor_units)


def customer(number: int) -> str:
    return f"customer-{number:07d}"


def authorization(payment_id: str, payer: str, amount: int) -> payment_pb2.AuthorizePaymentRequest:
    return payment_pb2.AuthorizePaymentRequest(
        payment_id=payment_id, payer_account_id=payer, payee_account_id=SHOP, amount=money(amount)
    )


# --- calls -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Order:
    """One payment that a scenario asks for."""

    payment_id: str
    payer: str
    amount: int
    state: int = PAYMENT_STATE_AUTHORIZED
    replayed: bool = False

    def request(self) -> payment_pb2.AuthorizePaymentRequest:
        return authorization(self.payment_id, self.payer, self.amount)

    def wrong(self, reply: payment_pb2.AuthorizePaymentResponse) -> Wrong:
        return _wrong(reply, self.payment_id, self.state, self.replayed)

    def check(self, body: bytes) -> Wrong:
        return self.wrong(payment_pb2.AuthorizePaymentResponse.FromString(body))


def orders(
    tag: str, count: int, accounts: int, *, hot: bool = False, retries: int = 0, declines: int = 0
) -> list[Order]:
    """So many payments with ids that begin with `tag`, of them in a hundred so many retries and declines.

    A retry repeats an order that is long answered, so all of them are in the second half; a decline asks an account
    that has nothing.
    """
    random = Random(tag)
    made: list[Order] = []
    for number in range(count):
        payer = HOT if hot else customer(random.randrange(accounts))
        kind = random.randrange(100)
        if number >= count // 2 and kind < 2 * retries:
            first = made[random.randrange(count // 4)]
            made.append(Order(first.payment_id, first.payer, first.amount, first.state, replayed=True))
        elif kind >= 100 - declines:
            made.append(Order(f"{tag}-{number:07d}", POOR, 100, PAYMENT_STATE_DECLINED))
        else:
            made.append(Order(f"{tag}-{number:07d}", payer, 100 + number % 900))
    return made


def authorize(wanted: Iterable[Order]) -> list[Call]:
    """One call for each."""
    return [Call(AUTHORIZE, each.request().SerializeToString(), each.check) for each in wanted]


def authorize_then_read(wanted: Iterable[Order], *, own_write: bool) -> list[Call]:
    """An authorization and then the payer's balance: one that has the write in it, or whatever there is."""

    def call(order: Order) -> Call:
        def then(body: bytes) -> Call:
            position = payment_pb2.AuthorizePaymentResponse.FromString(body).position if own_write else 0
            return read_balances([order.payer], position)[0]

        return Call(AUTHORIZE, order.request().SerializeToString(), order.check, then=then)

    return [call(each) for each in wanted]


def authorize_batched(wanted: Sequence[Order], size: int) -> list[Call]:
    """ExecuteBatch calls of so many orders."""
    return [_batch(wanted[start : start + size], "authorize_payment") for start in range(0, len(wanted), size)]


def authorize_and_capture_batched(wanted: Sequence[Order], size: int, outstanding: int) -> list[Call]:
    """Batches of authorizations, and of the captures of the same payments after as many calls as are outstanding.

    A ledger takes batches in the order in which they come, so an authorization is always there before its capture.
    """
    authorizations = authorize_batched(wanted, size)
    captures = [_batch(wanted[start : start + size], "capture_payment") for start in range(0, len(wanted), size)]
    calls: list[Call] = []
    for start in range(0, len(authorizations), outstanding):
        calls += authorizations[start : start + outstanding] + captures[start : start + outstanding]
    return calls


def _batch(wanted: Sequence[Order], kind: str) -> Call:
    request = batch_pb2.ExecuteBatchRequest()
    for each in wanted:
        if kind == "authorize_payment":
            request.commands.add().authorize_payment.CopyFrom(each.request())
        else:
            request.commands.add().capture_payment.CopyFrom(
                payment_pb2.CapturePaymentRequest(payment_id=each.payment_id, capture_id="all")
            )

    def check(body: bytes) -> Wrong:
        results = batch_pb2.ExecuteBatchResponse.FromString(body).results
        if len(results) != len(wanted):
            return f"{len(results)} results for {len(wanted)} commands"
        found = (_wrong_result(kind, order, result) for order, result in zip(wanted, results, strict=True))
        return next((each for each in found if each), None)

    return Call(EXECUTE_BATCH, request.SerializeToString(), check, len(wanted))


def _wrong_result(kind: str, order: Order, result: batch_pb2.BatchResult) -> Wrong:
    if result.WhichOneof("result") != kind:
        return f"{order.payment_id}: {result.error.message}"
    if kind == "authorize_payment":
        return order.wrong(result.authorize_payment)
    return _wrong(result.capture_payment, order.payment_id, PAYMENT_STATE_CAPTURED, False)


def _wrong(reply: Any, payment_id: str, state: int, replayed: bool) -> Wrong:
    if (reply.payment.payment_id, reply.payment.state, reply.replayed) == (payment_id, state, replayed):
        return None
    found = payment_pb2.PaymentState.Name(reply.payment.state)
    return f"{payment_id}: the reply is of {reply.payment.payment_id!r}, {found}, replayed {reply.replayed}"


def read_payments(payment_ids: Sequence[str], min_position: int = 0) -> list[Call]:
    """GetPayment of each."""

    def call(payment_id: str) -> Call:
        def check(body: bytes) -> Wrong:
            found = payment_pb2.GetPaymentResponse.FromString(body).payment.payment_id
            return None if found == payment_id else f"asked for {payment_id}, got {found!r}"

        request = payment_pb2.GetPaymentRequest(payment_id=payment_id, min_position=min_position)
        return Call(GET_PAYMENT, request.SerializeToString(), check)

    return [call(each) for each in payment_ids]


def read_balances(account_ids: Sequence[str], min_position: int = 0) -> list[Call]:
    """GetAccountBalance of each."""

    def call(account_id: str) -> Call:
        def check(body: bytes) -> Wrong:
            found = account_pb2.GetAccountBalanceResponse.FromString(body).balance.account_id
            return None if found == account_id else f"asked for {account_id}, got {found!r}"

        request = account_pb2.GetAccountBalanceRequest(account_id=account_id, min_position=min_position)
        return Call(GET_BALANCE, request.SerializeToString(), check)

    return [call(each) for each in account_ids]


def of_ledger(body: bytes, ledger: str) -> bytes:
    """The body, asking that ledger: it is field 1 of every request, and of fields that come twice the last counts."""
    return body + b"\x0a" + bytes([len(ledger)]) + ledger.encode()


# --- the accounts that all scenarios use -----------------------------------------------------------------------------


def opening(accounts: int) -> list[Call]:
    """Batches that open a bank, a shop, a hot account, one without money, and customers who are funded well."""
    bank = account_pb2.OpenAccountRequest(account_id="bank", currency_code=EUR, kind=account_pb2.ACCOUNT_KIND_EXTERNAL)
    rich = [HOT, *map(customer, range(accounts))]
    opened = [
        bank,
        *(account_pb2.OpenAccountRequest(account_id=name, currency_code=EUR) for name in (SHOP, POOR, *rich)),
    ]
    commands = [batch_pb2.BatchCommand(open_account=each) for each in opened]
    for name in rich:
        leg = transfer_pb2.TransferLeg(from_account_id="bank", to_account_id=name, amount=money(10**11))
        post = transfer_pb2.PostTransferRequest(transfer_id=f"fund-{name}", legs=[leg])
        commands.append(batch_pb2.BatchCommand(post_transfer=post))
    return [_setup(commands[start : start + _BATCH_MOST]) for start in range(0, len(commands), _BATCH_MOST)]


def _setup(commands: Sequence[batch_pb2.BatchCommand]) -> Call:
    def check(body: bytes) -> Wrong:
        results = batch_pb2.ExecuteBatchResponse.FromString(body).results
        return next((each.error.message for each in results if each.HasField("error")), None)

    request = batch_pb2.ExecuteBatchRequest(commands=commands)
    return Call(EXECUTE_BATCH, request.SerializeToString(), check, len(commands))
