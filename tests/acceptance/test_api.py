"""The API as a client meets it: every promise of the protos that works yet, through a real channel to a real server."""

from __future__ import annotations

import re
import secrets
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

import grpc
import psycopg
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode
from grpc_status import rpc_status
from psycopg.conninfo import make_conninfo
from serving import LEDGER, LedgerServer, environment, eventually

from ledger import outages, services
from ledger.audit.leaf import leaf_data
from ledger.audit.merkle import leaf_hash, verify_consistency, verify_inclusion
from ledger.audit.note import read_head
from ledger.cli import prepare
from ledger.domain.errors import DeclinedInBatch, Refusal
from ledger.status import RETRY_AFTER_S, STATUS
from ledger.v1 import account_pb2, audit_pb2, batch_pb2, payment_pb2, transfer_pb2
from ledger.v1.account_pb2 import (
    ACCOUNT_KIND_CUSTOMER,
    ACCOUNT_KIND_EXTERNAL,
    ACCOUNT_STATUS_CLOSED,
    ACCOUNT_STATUS_FROZEN,
    ACCOUNT_STATUS_OPEN,
    FREEZE_SCOPE_ALL,
    FREEZE_SCOPE_CREDITS,
    FREEZE_SCOPE_DEBITS,
    AccountBalance,
    CloseAccountRequest,
    FreezeAccountRequest,
    GetAccountBalanceRequest,
    GetAccountRequest,
    ListAccountsRequest,
    ListEntriesRequest,
    OpenAccountRequest,
    SetCreditLimitRequest,
    UnfreezeAccountRequest,
)
from ledger.v1.audit_pb2 import (
    GetConsistencyProofRequest,
    GetInclusionProofRequest,
    GetTreeHeadRequest,
    GetTrialBalanceRequest,
    GetTrialBalanceResponse,
    ReadEventsRequest,
)
from ledger.v1.batch_pb2 import BATCH_MODE_ATOMIC, BATCH_MODE_INDEPENDENT, BatchCommand, ExecuteBatchRequest
from ledger.v1.ledger_pb2 import (
    DECLINE_REASON_ACCOUNT_CLOSED,
    DECLINE_REASON_ACCOUNT_FROZEN,
    DECLINE_REASON_BALANCE_LIMIT,
    DECLINE_REASON_INSUFFICIENT_FUNDS,
    SORT_ORDER_OLDEST_FIRST,
    Money,
    Precondition,
)
from ledger.v1.payment_pb2 import (
    PAYMENT_STATE_AUTHORIZED,
    PAYMENT_STATE_CAPTURED,
    PAYMENT_STATE_DECLINED,
    PAYMENT_STATE_EXPIRED,
    PAYMENT_STATE_PARTIALLY_CAPTURED,
    PAYMENT_STATE_VOIDED,
    AuthorizePaymentRequest,
    CapturePaymentRequest,
    GetPaymentRequest,
    IncrementAuthorizationRequest,
    ListPaymentsRequest,
    RefundPaymentRequest,
    VoidPaymentRequest,
)
from ledger.v1.transfer_pb2 import (
    TRANSFER_STATE_DECLINED,
    TRANSFER_STATE_POSTED,
    GetTransferRequest,
    ListTransfersRequest,
    PostTransferRequest,
    TransferLeg,
)

# What a sound log is, in the words of the integration tests.
sys.path.append(str(Path(__file__).parents[1] / "integration"))
from checks import check_log

MOST: Final = 10**18
ANSWERED_WITHIN_S: Final = 60.0
"""A call that hangs fails its test with DEADLINE_EXCEEDED."""

RPCS: Final[dict[str, MethodDescriptor]] = {
    method.input_type.full_name: method
    for file in (account_pb2, payment_pb2, transfer_pb2, batch_pb2, audit_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
"""The rpc of each request."""

ALL: Final = sorted({method.name for method in RPCS.values()})

COMMAND_NAMES: Final = {field.message_type.full_name: field.name for field in BatchCommand.DESCRIPTOR.fields}
"""How a batch calls the request of each write rpc."""


# --- requests, in the words of the tests -----------------------------------------------------------------------------
#
# A `~` in any text of a request stands for the test's own tag, so that no two tests share an id: "alice~".


def eur(minor_units: int) -> Money:
    return Money(currency_code="EUR", minor_units=minor_units)


def usd(minor_units: int) -> Money:
    return Money(currency_code="USD", minor_units=minor_units)


def at(year: int, month: int = 1, day: int = 1, microsecond: int = 0) -> Timestamp:
    moment = Timestamp()
    moment.FromDatetime(datetime(year, month, day, microsecond=microsecond, tzinfo=UTC))
    return moment


def opening(account_id: str, **fields: Any) -> OpenAccountRequest:
    return OpenAccountRequest(**{"account_id": account_id, "currency_code": "EUR", **fields})


def limit(account_id: str, amount: Money, **fields: Any) -> SetCreditLimitRequest:
    return SetCreditLimitRequest(account_id=account_id, credit_limit=amount, **fields)


def freeze(account_id: str, **fields: Any) -> FreezeAccountRequest:
    return FreezeAccountRequest(account_id=account_id, **fields)


def unfreeze(account_id: str, **fields: Any) -> UnfreezeAccountRequest:
    return UnfreezeAccountRequest(account_id=account_id, **fields)


def close(account_id: str, **fields: Any) -> CloseAccountRequest:
    return CloseAccountRequest(account_id=account_id, **fields)


def authorize(payment_id: str, minor_units: int = 10_00, **fields: Any) -> AuthorizePaymentRequest:
    """Of alice's money to the shop, unless `fields` say otherwise."""
    usual = {"payer_account_id": "alice~", "payee_account_id": "shop~", "amount": eur(minor_units)}
    return AuthorizePaymentRequest(payment_id=payment_id, **{**usual, **fields})


def increment(payment_id: str, increment_id: str, minor_units: int, **fields: Any) -> IncrementAuthorizationRequest:
    usual = {"amount": eur(minor_units)}
    return IncrementAuthorizationRequest(payment_id=payment_id, increment_id=increment_id, **{**usual, **fields})


def capture(payment_id: str, capture_id: str = "c1", **fields: Any) -> CapturePaymentRequest:
    return CapturePaymentRequest(payment_id=payment_id, capture_id=capture_id, **fields)


def void(payment_id: str, **fields: Any) -> VoidPaymentRequest:
    return VoidPaymentRequest(payment_id=payment_id, **fields)


def refund(payment_id: str, refund_id: str = "r1", **fields: Any) -> RefundPaymentRequest:
    return RefundPaymentRequest(payment_id=payment_id, refund_id=refund_id, **fields)


def leg(payer: str, payee: str, amount: Money | int) -> TransferLeg:
    money = eur(amount) if isinstance(amount, int) else amount
    return TransferLeg(from_account_id=payer, to_account_id=payee, amount=money)


def transfer(transfer_id: str, *legs: TransferLeg, **fields: Any) -> PostTransferRequest:
    return PostTransferRequest(**{"transfer_id": transfer_id, "legs": legs, **fields})


def at_version(account_id: str, version: int) -> list[Precondition]:
    return [Precondition(account_id=account_id, expected_version=version)]


def batch(*requests: Message, **fields: Any) -> ExecuteBatchRequest:
    commands = [BatchCommand(**{COMMAND_NAMES[each.DESCRIPTOR.full_name]: each}) for each in requests]
    return ExecuteBatchRequest(commands=commands, **fields)


def copied(message: Any, **fields: Any) -> Any:
    """The message with other values of some fields; None unsets one."""
    copy = type(message)()
    copy.CopyFrom(message)
    for name in fields:
        copy.ClearField(name)
    copy.MergeFrom(type(message)(**{name: value for name, value in fields.items() if value is not None}))
    return copy


# --- the client ------------------------------------------------------------------------------------------------------

# Nothing of how the server is made may be in a text for clients: exceptions, paths, SQL.
UNFIT: Final = re.compile(
    r"Traceback|Exception|[a-z]Error\b|<class|object at|\.py\b|(?:/[\w.-]+){2,}|psycopg|grpc|sqlstate"
    r"|\b(?:SELECT|INSERT|UPDATE|FROM|WHERE|relation|constraint)\b"
)


class Refused(NamedTuple):
    """An error as clients see it."""

    code: StatusCode
    reason: str
    metadata: dict[str, str]
    fields: Sequence[str] = ()

    @classmethod
    def of(cls, status: Status) -> Refused:
        """Every error has one ErrorInfo of our domain and a text fit for clients; pauses are as the server's table."""
        details = {each.TypeName(): each for each in status.details}
        assert len(details) == len(status.details)
        info, bad, retry = ErrorInfo(), BadRequest(), RetryInfo()
        assert details.pop("google.rpc.ErrorInfo").Unpack(info), status
        assert info.domain == "ledger"
        if found := details.pop("google.rpc.BadRequest", None):
            assert found.Unpack(bad)
            assert bad.field_violations
            assert all(each.field and each.description for each in bad.field_violations), bad
        if found := details.pop("google.rpc.RetryInfo", None):
            assert found.Unpack(retry)
        assert not details
        assert retry.retry_delay.ToTimedelta().total_seconds() == RETRY_AFTER_S.get(info.reason, 0)
        for text in (status.message, *info.metadata.values(), *(each.description for each in bad.field_violations)):
            assert not UNFIT.search(text), text
        assert status.message
        code = next(each for each in StatusCode if each.value[0] == status.code)
        return cls(code, info.reason, dict(info.metadata), tuple(each.field for each in bad.field_violations))


def refused_by(error: grpc.RpcError) -> Refused:
    assert isinstance(error, grpc.Call)
    assert not UNFIT.search(error.details() or ""), error.details()
    status = rpc_status.from_call(error)
    assert status is not None, f"{error.code()} without details: {error.details()}"
    assert (status.code, status.message) == (error.code().value[0], error.details())
    return Refused.of(status)


class Client:
    """Sends each request to its rpc. Every `~` in a request's texts becomes the tag."""

    def __init__(self, channel: grpc.Channel, ledger: str, tag: str) -> None:
        self.channel, self.ledger, self.tag = channel, ledger, tag
        self.position = 0
        """The highest position that was answered: what the reads below wait for."""
        self._calls: dict[str, Any] = {}

    def __call__(self, request: Message, timeout: float = ANSWERED_WITHIN_S) -> Any:
        response = self.start(request, timeout=timeout).result()
        self.position = max(self.position, response.position)
        return response

    def start(self, request: Message, timeout: float = ANSWERED_WITHIN_S, metadata: Any = ()) -> Any:
        """The call, as a future."""
        return self._rpc(request).future(self.prepared(request), timeout=timeout, metadata=metadata)

    def stream(self, request: Message, timeout: float = ANSWERED_WITHIN_S, metadata: Any = ()) -> Any:
        """The call of an rpc that streams: its responses, one after the other."""
        return self._rpc(request)(self.prepared(request), timeout=timeout, metadata=metadata)

    def do(self, *requests: Message) -> list[Any]:
        """Run commands of which none may be refused or declined, in one batch; return their responses."""
        responses = []
        for result in self(batch(*requests)).results:
            assert not result.HasField("error"), result.error
            response = getattr(result, result.WhichOneof("result"))
            assert getattr(response, "payment", None) is None or not response.payment.decline_reason, response
            assert getattr(response, "transfer", None) is None or not response.transfer.decline_reason, response
            responses.append(response)
        return responses

    def refuses(self, request: Message) -> Refused:
        """How the request is refused."""
        send = self._first_of if RPCS[request.DESCRIPTOR.full_name].server_streaming else self
        with pytest.raises(grpc.RpcError) as raised:
            send(request)
        return refused_by(raised.value)

    def _first_of(self, request: Message) -> Any:
        return next(self.stream(request))

    def prepared(self, request: Any) -> Any:
        """The request with this test's tag, to this test's ledger."""
        prepared = copied(request)
        self._fill_in(prepared)
        if self.ledger != "main":  # Which is what an empty name means.
            prepared.ledger = prepared.ledger or self.ledger
        return prepared

    def name(self, text: str) -> str:
        return text.replace("~", f":{self.tag}")

    # --- reads, as of the last position ------------------------------------------------------------------------------

    def account(self, account_id: str) -> Any:
        return self(GetAccountRequest(account_id=account_id, min_position=self.position)).account

    def payment(self, payment_id: str) -> Any:
        return self(GetPaymentRequest(payment_id=payment_id, min_position=self.position)).payment

    def transfer(self, transfer_id: str) -> Any:
        return self(GetTransferRequest(transfer_id=transfer_id, min_position=self.position)).transfer

    def balance(self, account_id: str, **fields: Any) -> AccountBalance:
        request = GetAccountBalanceRequest(**{"account_id": account_id, "min_position": self.position, **fields})
        return self(request).balance

    def _rpc(self, request: Message) -> Any:
        method = RPCS[request.DESCRIPTOR.full_name]
        if method.full_name not in self._calls:
            call = self.channel.unary_stream if method.server_streaming else self.channel.unary_unary
            self._calls[method.full_name] = call(
                path(method), type(request).SerializeToString, GetMessageClass(method.output_type).FromString
            )
        return self._calls[method.full_name]

    def _fill_in(self, message: Any) -> None:
        for field, value in message.ListFields():
            if isinstance(value, str):
                if "~" in value:
                    setattr(message, field.name, self.name(value))
            elif field.type == field.TYPE_STRING and not isinstance(value, str):
                value[:] = map(self.name, value)
            elif field.message_type and not field.message_type.GetOptions().map_entry:
                for each in [value] if isinstance(value, Message) else value:
                    self._fill_in(each)


def path(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


def result_of(response: batch_pb2.ExecuteBatchResponse, number: int) -> Any:
    """One result of a batch: a response, or how it was refused."""
    result = response.results[number]
    name = result.WhichOneof("result")
    return Refused.of(result.error) if name == "error" else getattr(result, name)


def thing_of(response: Any) -> Any:
    """The account, payment or transfer of a write response."""
    return next(getattr(response, name) for name in ("account", "payment", "transfer") if hasattr(response, name))


@pytest.fixture(scope="module")
def channel(server: LedgerServer) -> Iterator[grpc.Channel]:
    options = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(server.address, options=options) as channel:
        yield channel


@pytest.fixture(scope="module")
def log(server: LedgerServer) -> Iterator[psycopg.Connection[Any]]:
    """A connection as the database's owner, whose tables are the ledger's."""
    with server.database() as connection:
        connection.autocommit = True
        yield connection


@pytest.fixture
def client(channel: grpc.Channel, server: LedgerServer, tag: str) -> Client:
    """A client whose names are this test's own."""
    return Client(channel, server.ledger, tag)


@pytest.fixture
def people(client: Client) -> Client:
    """The same, with a bank, alice with 100.00, and a shop."""
    client.do(
        opening("bank~", kind=ACCOUNT_KIND_EXTERNAL),
        opening("alice~"),
        opening("shop~"),
        transfer("fund~", leg("bank~", "alice~", 100_00)),
    )
    return client


def events_of(log: psycopg.Connection[Any], stream: str) -> list[tuple[Any, ...]]:
    """Position, version, topic and time of the events of a stream."""
    query = "SELECT position, version, topic, recorded_at FROM events WHERE stream = %s ORDER BY version"
    return log.execute(query, [stream]).fetchall()


def dsn_of(log: psycopg.Connection[Any]) -> str:
    info = log.info
    return make_conninfo(host=info.host, port=info.port, user=info.user, password=info.password, dbname=info.dbname)


def recorded_since(log: psycopg.Connection[Any], head: int) -> int:
    """How many events clients have caused after a position. What has expired is recorded at any time, by the server."""
    query = "SELECT convert_from(state, 'UTF8')::jsonb ->> 'actor' FROM events WHERE position > %s"
    return sum(actor == "anonymous" for (actor,) in log.execute(query, [head]))


def head_of(log: psycopg.Connection[Any]) -> int:
    row = log.execute("SELECT coalesce(max(position), 0) FROM events").fetchone()
    assert row
    return int(row[0])


# --- the life of a payment -------------------------------------------------------------------------------------------


def amounts(payment: payment_pb2.Payment) -> tuple[int, ...]:
    """Authorized, captured, capturable, released, expired, refunded."""
    return (
        payment.amount_authorized,
        payment.amount_captured,
        payment.amount_capturable,
        payment.amount_released,
        payment.amount_expired,
        payment.amount_refunded,
    )


def test_the_life_of_a_payment(client: Client) -> None:
    """From opened accounts to a refund: each reply says how things are right after it, and reads say the same."""
    bank = client(opening("bank~", kind=ACCOUNT_KIND_EXTERNAL, metadata={"swift": "ABCDEF"}))
    alice = client(opening("alice~", credit_limit=eur(5_00)))
    client(opening("shop~"))
    assert (bank.account.kind, bank.account.HasField("credit_limit")) == (ACCOUNT_KIND_EXTERNAL, False)
    assert (alice.account.kind, alice.account.status) == (ACCOUNT_KIND_CUSTOMER, ACCOUNT_STATUS_OPEN)
    assert (alice.account.available, alice.account.version) == (5_00, 1)

    funded = client(transfer("fund~", leg("bank~", "alice~", 100_00), reference="salary"))
    assert funded.transfer.state == TRANSFER_STATE_POSTED
    assert client.balance("alice~").available == 105_00

    authorized = client(authorize("p~", 40_00, reference="order 7", metadata={"till": "3"}))
    assert authorized.payment.state == PAYMENT_STATE_AUTHORIZED
    assert authorized.payment.expires_at.ToDatetime() - authorized.recorded_at.ToDatetime() == timedelta(days=7)
    balance = client.balance("alice~")
    assert (balance.posted, balance.reserved, balance.available) == (100_00, 40_00, 65_00)

    raised = client(increment("p~", "i1", 60_00))
    assert amounts(raised.payment) == (60_00, 0, 60_00, 0, 0, 0)
    part = client(capture("p~", "c1", amount=eur(25_00), keep_remainder=True))
    assert (part.payment.state, amounts(part.payment)) == (
        PAYMENT_STATE_PARTIALLY_CAPTURED,
        (60_00, 25_00, 35_00, 0, 0, 0),
    )
    last = client(capture("p~", "c2", amount=eur(15_00)))
    assert (last.payment.state, amounts(last.payment)) == (PAYMENT_STATE_CAPTURED, (60_00, 40_00, 0, 20_00, 0, 0))
    given_back = client(refund("p~", "r1", amount=eur(10_00)))
    given_back = client(refund("p~", "r2"))
    assert (given_back.payment.state, amounts(given_back.payment)) == (
        PAYMENT_STATE_CAPTURED,
        (60_00, 40_00, 0, 20_00, 0, 40_00),
    )
    assert [(each.capture_id, each.amount, each.amount_released) for each in given_back.payment.captures] == [
        ("c1", 25_00, 0),
        ("c2", 15_00, 20_00),
    ]
    assert [(each.refund_id, each.amount) for each in given_back.payment.refunds] == [("r1", 10_00), ("r2", 30_00)]
    assert [(each.increment_id, each.amount) for each in given_back.payment.increments] == [("i1", 60_00)]

    client(authorize("q~", 7_00))
    voided = client(void("q~", reason="out of stock"))
    assert (voided.payment.state, voided.payment.void_reason) == (PAYMENT_STATE_VOIDED, "out of stock")

    assert client.payment("p~") == given_back.payment
    assert client.payment("q~") == voided.payment
    assert client.transfer("fund~") == funded.transfer
    balances = [client.balance(name) for name in ("bank~", "alice~", "shop~")]
    assert [(each.posted, each.reserved) for each in balances] == [(-100_00, 0), (100_00, 0), (0, 0)]


def test_an_authorization_that_nobody_captures_expires(people: Client) -> None:
    """At once for commands; reads show it, and the payer has the money back, a little later."""
    people.do(authorize("p~", hold_for=Duration(nanos=1_000)), authorize("q~"))
    people(capture("q~", amount=eur(4_00), keep_remainder=True))
    assert people.refuses(capture("p~")).reason == "PAYMENT_EXPIRED"

    eventually(lambda: people.payment("p~").state == PAYMENT_STATE_EXPIRED)

    assert amounts(people.payment("p~")) == (10_00, 0, 0, 0, 10_00, 0)
    assert people.balance("alice~").reserved == 6_00
    assert people.refuses(capture("p~")).reason == "PAYMENT_EXPIRED"
    assert people(authorize("p~", hold_for=Duration(nanos=1_000))).payment.state == PAYMENT_STATE_AUTHORIZED


def test_the_life_of_an_account(people: Client) -> None:
    """Limit, freezes of each scope, unfreeze, emptying and closing: replies and reads agree at every step."""
    steps: list[tuple[Message, dict[str, int]]] = [
        (limit("alice~", eur(50_00)), {"credit_limit": 50_00, "available": 150_00}),
        (freeze("alice~", scope=FREEZE_SCOPE_DEBITS), {"freeze_scope": FREEZE_SCOPE_DEBITS}),
        (freeze("alice~", scope=FREEZE_SCOPE_CREDITS), {"freeze_scope": FREEZE_SCOPE_CREDITS}),
        (freeze("alice~", reason="lost card"), {"freeze_scope": FREEZE_SCOPE_ALL, "status": ACCOUNT_STATUS_FROZEN}),
        (unfreeze("alice~"), {"freeze_scope": 0, "status": ACCOUNT_STATUS_OPEN}),
        (limit("alice~", eur(0)), {"credit_limit": 0, "available": 100_00}),
    ]
    for version, (request, fields) in enumerate(steps, start=3):
        response = people(request)
        assert not response.replayed
        assert {name: getattr(response.account, name) for name in fields} == fields
        assert response.account.version == version
        assert people.account("alice~") == response.account

    people(transfer("empty~", leg("alice~", "bank~", 100_00)))
    closed = people(close("alice~", reason="moved away"))

    assert closed.account.status == ACCOUNT_STATUS_CLOSED
    assert people.account("alice~") == closed.account


def test_a_reply_says_where_and_when_its_last_event_is_in_the_log(people: Client, log: psycopg.Connection[Any]) -> None:
    """`position` and `recorded_at` are those of the command's last event, whatever the command."""
    requests = [
        opening("bob~"),
        limit("bob~", eur(1)),
        freeze("bob~"),
        unfreeze("bob~"),
        close("bob~"),
        transfer("t~", leg("bank~", "alice~", 1), leg("alice~", "shop~", 1)),
        authorize("p~"),
        increment("p~", "i1", 11_00),
        capture("p~", "c1", amount=eur(1)),
        refund("p~"),
        authorize("q~"),
        void("q~"),
        authorize("declined~", MOST),
        transfer("declined~", leg("alice~", "shop~", MOST)),
    ]
    for request in requests:
        before = head_of(log)
        response = people(request)
        assert response.position == head_of(log) > before
        (recorded_at,) = log.execute(
            "SELECT recorded_at FROM events WHERE position = %s", [response.position]
        ).fetchone()
        assert response.recorded_at.ToDatetime(UTC) == recorded_at


def test_texts_come_back_as_they_were_sent(people: Client) -> None:
    """Whatever is allowed in a text or an id passes through the log and the read models unchanged."""
    odd = "tab\t line\n return\r back\\slash \\N \\. quote\" 'single' \x01\x7f {} %s é 漢字 \U0001f4b6 \u202e ~"
    odd = odd.replace("~", "tilde")
    metadata = {"key " + odd: odd, "empty": "", "null": "null", "\\x00": "\\u0000", " ": "\U0010ffff"}
    name = f"Az09._:-{people.tag}".ljust(128, ":")

    opened = people(opening(name, metadata=metadata))
    paid = people(authorize(name, payee_account_id=name, reference=odd, metadata=metadata))
    people(capture(name, name))
    voided = people.do(authorize("q~"), void("q~", reason=odd))[1]
    moved = people(transfer(name, leg("bank~", name, 1), reference=odd, metadata=metadata))
    people.do(freeze(name, reason=odd), limit(name, eur(1), reason=odd), unfreeze(name, reason=odd))

    assert people.account(name).metadata == opened.account.metadata == metadata
    payment = people.payment(name)
    assert (payment.reference, payment.metadata) == (odd, metadata)
    assert payment.captures[0].capture_id == name
    assert people.payment("q~") == voided.payment
    assert people.transfer(name) == moved.transfer
    assert paid.payment.metadata == metadata


def test_everything_at_its_limit_is_taken(people: Client) -> None:
    """The largest amounts, texts, metadata, holds, the most legs and preconditions, and the earliest time."""
    most = {f"{number:02}": "é" * 63 for number in range(64)}  # 64 * (2 + 126) bytes
    text = "\U0001f4b6" * 256
    people.do(
        opening("vault~", kind=ACCOUNT_KIND_EXTERNAL),
        opening("rich~", credit_limit=eur(MOST), metadata=most),
        *(opening(f"a{number}~") for number in range(1_000)),
    )
    people.do(transfer("rich~", leg("vault~", "rich~", MOST), effective_at=at(1)))
    paid = people(
        authorize(
            "p~",
            MOST,
            payer_account_id="rich~",
            hold_for=Duration(seconds=31 * 86_400),
            reference=text,
            metadata=most,
            effective_at=at(1),
        )
    )
    captured = people(capture("p~", effective_at=at(1, microsecond=1)))
    legs = [leg("bank~", "alice~", 1), leg("alice~", "bank~", 1)] * 500
    conditions = [Precondition(account_id=f"a{number}~", expected_version=1) for number in range(1_000)]
    moved = people(transfer("long~", *legs, reference=text, metadata=most, preconditions=conditions))
    least = people(authorize("least~", 1, hold_for=Duration(nanos=1_000)))

    assert paid.payment.state == least.payment.state == PAYMENT_STATE_AUTHORIZED
    assert moved.transfer.state == TRANSFER_STATE_POSTED
    assert people.account("rich~").available == MOST
    assert people.payment("p~") == captured.payment
    assert people.transfer("long~") == moved.transfer
    assert people.balance("shop~").posted == MOST


def test_times_are_cut_to_the_microsecond(people: Client) -> None:
    """Finer digits are cut off, for times and durations, and such a request again is a replay."""
    moment = Timestamp(seconds=1_700_000_000, nanos=123_456_999)
    request = authorize("p~", effective_at=moment, hold_for=Duration(seconds=1, nanos=1_999))

    first = people(request)
    again = people(request)

    assert first.payment.effective_at == Timestamp(seconds=1_700_000_000, nanos=123_456_000)
    held = first.payment.expires_at.ToDatetime() - first.payment.authorized_at.ToDatetime()
    assert held == timedelta(seconds=1, microseconds=1)
    assert again.replayed


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(channel: grpc.Channel, server: LedgerServer) -> Client:
    """Accounts and payments in all states in which something is refused. No refusal changes anything."""
    world = Client(channel, server.ledger, secrets.token_hex(4))
    moment = Duration(nanos=1_000)
    world.do(
        opening("bank~", kind=ACCOUNT_KIND_EXTERNAL),
        opening("vault~", kind=ACCOUNT_KIND_EXTERNAL),
        opening("dollars~", currency_code="USD"),
        *(opening(name) for name in ("alice~", "shop~", "closed~", "frozen~", "frozen-shop~", "rich~", "poor~")),
        opening("limited~", credit_limit=eur(50_00)),
        opening("hasty~", credit_limit=eur(50_00)),
        close("closed~"),
        transfer("alice~", leg("bank~", "alice~", 1_000_00)),
        transfer("frozen~", leg("bank~", "frozen~", 100_00)),
        transfer("limited~", leg("limited~", "shop~", 30_00)),
        transfer("rich~", leg("vault~", "rich~", MOST - 1)),
        authorize("authorized~", 10_00),
        authorize("voided~", 10_00),
        void("voided~"),
        authorize("captured~", 10_00),
        capture("captured~", "c1"),
        authorize("partly-captured~", 10_00),
        capture("partly-captured~", "c1", amount=eur(4_00), keep_remainder=True),
        authorize("partly-voided~", 10_00),
        capture("partly-voided~", "c1", amount=eur(4_00), keep_remainder=True),
        void("partly-voided~"),
        authorize("refunded~", 10_00),
        capture("refunded~", "c1"),
        refund("refunded~", "r1"),
        authorize("by-frozen~", 10_00, payer_account_id="frozen~"),
        freeze("frozen~"),
        authorize("to-frozen~", 10_00, payee_account_id="frozen-shop~"),
        authorize("got-by-frozen~", 10_00, payee_account_id="frozen-shop~"),
        capture("got-by-frozen~"),
        freeze("frozen-shop~"),
        opening("leaving~"),
        authorize("to-closed~", 10_00, payee_account_id="leaving~"),
        authorize("got-by-closed~", 10_00, payee_account_id="leaving~"),
        capture("got-by-closed~"),
        transfer("leaving~", leg("leaving~", "bank~", 10_00)),
        close("leaving~"),
        authorize("got-by-poor~", 10_00, payee_account_id="poor~"),
        capture("got-by-poor~"),
        transfer("poor~", leg("poor~", "bank~", 5_00)),
        authorize("to-rich~", 10_00, payee_account_id="rich~"),
        authorize("by-vault~", 1, payer_account_id="vault~"),
        authorize("by-rich~", 10_00, payer_account_id="rich~"),
        capture("by-rich~"),
        transfer("again-rich~", leg("alice~", "rich~", 10_00)),
        authorize("changed~", 1),
        *(increment("changed~", f"i{number}", number + 2) for number in range(1_000)),
    )
    assert world(authorize("declined~", MOST)).payment.state == PAYMENT_STATE_DECLINED
    assert world(transfer("declined~", leg("alice~", "shop~", MOST))).transfer.state == TRANSFER_STATE_DECLINED
    world.do(authorize("expired~", 10_00, payer_account_id="hasty~", hold_for=moment))
    world.do(opening("later~"))  # the time of an append: the one before was at another microsecond
    return world


class Case(NamedTuple):
    """A request and how it is refused: `fields` are paths, `metadata` all that the error tells about it."""

    reason: str
    request: Message
    metadata: dict[str, str] = {}
    fields: Sequence[str] = ()


def of_account(name: str, **more: str) -> dict[str, str]:
    return {"account_id": f"{name}~", **more}


def of_payment(name: str, **more: str) -> dict[str, str]:
    return {"payment_id": f"{name}~", **more}


def used(id_field: str, id_: str, field: str) -> dict[str, str]:
    return {"id_field": id_field, "id": id_, "field": field}


NEW: Final = {"payer_account_id": "alice~", "payee_account_id": "shop~"}
TOMORROW: Final = at(datetime.now(UTC).year + 2)
MISMATCH: Final = {"version": "1", "expected_version": "7"}
VISA: Final = "4111111111111111"
"""The number of a card that is made for tests."""

COMMANDS_REFUSED: Final[dict[StatusCode, list[Case]]] = {
    StatusCode.INVALID_ARGUMENT: [
        Case("INVALID_REQUEST", authorize("new~", 0), {}, ["amount.minor_units"]),
        Case("CARD_NUMBER_GIVEN", opening(VISA), {}, ["account_id"]),
        Case("CARD_NUMBER_GIVEN", opening("new~", metadata={"card": VISA}), {}, ['metadata["card"]']),
        Case("CARD_NUMBER_GIVEN", limit("alice~", eur(1), reason=VISA), {}, ["reason"]),
        Case("CARD_NUMBER_GIVEN", freeze("alice~", reason=f"card {VISA} was stolen"), {}, ["reason"]),
        Case("CARD_NUMBER_GIVEN", unfreeze("frozen~", reason=VISA), {}, ["reason"]),
        Case("CARD_NUMBER_GIVEN", close("poor~", reason=VISA), {}, ["reason"]),
        Case("CARD_NUMBER_GIVEN", authorize(f"{VISA}:1", reference=VISA), {}, ["payment_id", "reference"]),
        Case("CARD_NUMBER_GIVEN", increment("authorized~", VISA, 20_00), {}, ["increment_id"]),
        Case("CARD_NUMBER_GIVEN", capture("authorized~", VISA), {}, ["capture_id"]),
        Case("CARD_NUMBER_GIVEN", void("authorized~", reason=VISA), {}, ["reason"]),
        Case("CARD_NUMBER_GIVEN", refund("captured~", VISA), {}, ["refund_id"]),
        Case(
            "CARD_NUMBER_GIVEN",
            transfer("new~", leg("alice~", "shop~", 1), reference="4111 1111 1111 1111", metadata={VISA: "card"}),
            {},
            ["reference", "metadata"],
        ),
        Case("EFFECTIVE_AT_IN_FUTURE", authorize("new~", effective_at=TOMORROW), {}, ["effective_at"]),
        Case("EFFECTIVE_AT_IN_FUTURE", capture("authorized~", effective_at=TOMORROW), {}, ["effective_at"]),
        Case("EFFECTIVE_AT_IN_FUTURE", refund("captured~", effective_at=TOMORROW), {}, ["effective_at"]),
        Case(
            "EFFECTIVE_AT_IN_FUTURE",
            transfer("new~", leg("alice~", "shop~", 1), effective_at=TOMORROW),
            {},
            ["effective_at"],
        ),
    ],
    StatusCode.ALREADY_EXISTS: [
        Case("ID_ALREADY_USED", opening("alice~", currency_code="USD"), used("account_id", "alice~", "currency_code")),
        Case("ID_ALREADY_USED", authorize("authorized~", 11_00), used("payment_id", "authorized~", "amount")),
        Case("ID_ALREADY_USED", authorize("declined~", 1), used("payment_id", "declined~", "amount")),
        Case("ID_ALREADY_USED", transfer("alice~", leg("bank~", "alice~", 1)), used("transfer_id", "alice~", "legs")),
        Case(
            "ID_ALREADY_USED",
            transfer("declined~", leg("alice~", "shop~", 1)),
            used("transfer_id", "declined~", "legs"),
        ),
        Case("ID_ALREADY_USED", capture("captured~", "c1", amount=eur(1)), used("capture_id", "c1", "amount")),
        Case("ID_ALREADY_USED", refund("refunded~", "r1", amount=eur(1)), used("refund_id", "r1", "amount")),
        Case("ID_ALREADY_USED", increment("changed~", "i0", 999_999), used("increment_id", "i0", "amount")),
        Case("ID_ALREADY_USED", refund("captured~", "c1"), used("refund_id", "c1", "refund_id")),
        Case("ID_ALREADY_USED", increment("captured~", "c1", 1), used("increment_id", "c1", "increment_id")),
        Case("ID_ALREADY_USED", capture("refunded~", "r1"), used("capture_id", "r1", "capture_id")),
    ],
    StatusCode.NOT_FOUND: [
        Case("ACCOUNT_NOT_FOUND", limit("nobody~", eur(1)), of_account("nobody")),
        Case("ACCOUNT_NOT_FOUND", freeze("nobody~"), of_account("nobody")),
        Case("ACCOUNT_NOT_FOUND", unfreeze("nobody~"), of_account("nobody")),
        Case("ACCOUNT_NOT_FOUND", close("nobody~"), of_account("nobody")),
        Case("ACCOUNT_NOT_FOUND", authorize("new~", payer_account_id="nobody~"), of_account("nobody")),
        Case("ACCOUNT_NOT_FOUND", authorize("new~", payee_account_id="nobody~"), of_account("nobody")),
        Case("ACCOUNT_NOT_FOUND", transfer("new~", leg("nobody~", "alice~", 1)), of_account("nobody")),
        Case(
            "ACCOUNT_NOT_FOUND",
            transfer("new~", leg("alice~", "shop~", 1), leg("alice~", "nobody~", 1)),
            of_account("nobody"),
        ),
        *(
            Case("ACCOUNT_NOT_FOUND", copied(each, preconditions=at_version("nobody~", 1)), of_account("nobody"))
            for each in (
                opening("new~"),
                increment("authorized~", "i", 11_00),
                capture("authorized~"),
                void("authorized~"),
                refund("captured~"),
            )
        ),
        Case("PAYMENT_NOT_FOUND", increment("none~", "i", 1), of_payment("none")),
        Case("PAYMENT_NOT_FOUND", capture("none~"), of_payment("none")),
        Case("PAYMENT_NOT_FOUND", void("none~"), of_payment("none")),
        Case("PAYMENT_NOT_FOUND", refund("none~"), of_payment("none")),
    ],
    StatusCode.ABORTED: [
        Case("VERSION_MISMATCH", each, of_account("later", **MISMATCH))
        for each in (
            opening("new~", preconditions=at_version("later~", 7)),
            limit("alice~", eur(1), preconditions=at_version("later~", 7)),
            freeze("alice~", preconditions=at_version("later~", 7)),
            unfreeze("frozen~", preconditions=at_version("later~", 7)),
            close("later~", preconditions=at_version("later~", 7)),
            authorize("new~", preconditions=at_version("later~", 7)),
            increment("authorized~", "i", 11_00, preconditions=at_version("later~", 7)),
            capture("authorized~", preconditions=at_version("later~", 7)),
            void("authorized~", preconditions=at_version("later~", 7)),
            refund("captured~", preconditions=at_version("later~", 7)),
            transfer("new~", leg("alice~", "shop~", 1), preconditions=at_version("later~", 7)),
        )
    ],
    StatusCode.FAILED_PRECONDITION: [
        *(
            Case("CURRENCY_MISMATCH", each, of_account(name, account_currency=held, currency_code=sent))
            for each, name, held, sent in (
                (authorize("new~", amount=usd(1)), "alice", "EUR", "USD"),
                (authorize("new~", payee_account_id="dollars~"), "dollars", "USD", "EUR"),
                (transfer("new~", leg("alice~", "dollars~", 1)), "dollars", "USD", "EUR"),
                (transfer("new~", leg("alice~", "shop~", usd(1))), "alice", "EUR", "USD"),
                (limit("alice~", usd(1)), "alice", "EUR", "USD"),
                (increment("authorized~", "i", 0, amount=usd(11_00)), "alice", "EUR", "USD"),
                (capture("authorized~", amount=usd(1)), "alice", "EUR", "USD"),
                (refund("captured~", amount=usd(1)), "alice", "EUR", "USD"),
            )
        ),
        Case("ACCOUNT_CLOSED", limit("closed~", eur(1)), of_account("closed")),
        Case("ACCOUNT_CLOSED", freeze("closed~"), of_account("closed")),
        Case("ACCOUNT_CLOSED", unfreeze("closed~"), of_account("closed")),
        Case("ACCOUNT_CLOSED", capture("to-closed~"), of_account("leaving")),
        Case("ACCOUNT_CLOSED", increment("to-closed~", "i", 11_00), of_account("leaving")),
        Case("ACCOUNT_CLOSED", refund("got-by-closed~"), of_account("leaving")),
        Case("ACCOUNT_FROZEN", increment("by-frozen~", "i", 11_00), of_account("frozen", freeze_scope="ALL")),
        Case("ACCOUNT_FROZEN", increment("to-frozen~", "i", 11_00), of_account("frozen-shop", freeze_scope="ALL")),
        Case("ACCOUNT_FROZEN", refund("got-by-frozen~"), of_account("frozen-shop", freeze_scope="ALL")),
        Case("ACCOUNT_IN_USE", close("limited~"), of_account("limited", posted="-3000", reserved="0")),
        Case("ACCOUNT_IN_USE", close("rich~"), of_account("rich", posted=str(MOST - 1), reserved="0")),
        Case("LIMIT_BELOW_USE", limit("limited~", eur(29_99)), of_account("limited", used="3000")),
        Case("EXTERNAL_HAS_NO_LIMIT", limit("bank~", eur(0)), of_account("bank")),
        Case("PAYMENT_DECLINED", increment("declined~", "i", MOST), of_payment("declined")),
        Case("PAYMENT_DECLINED", capture("declined~"), of_payment("declined")),
        Case("PAYMENT_DECLINED", void("declined~"), of_payment("declined")),
        Case("PAYMENT_DECLINED", refund("declined~"), of_payment("declined")),
        Case("PAYMENT_VOIDED", increment("voided~", "i", 11_00), of_payment("voided")),
        Case("PAYMENT_VOIDED", capture("voided~"), of_payment("voided")),
        Case("PAYMENT_VOIDED", capture("partly-voided~", "c2"), of_payment("partly-voided")),
        Case("PAYMENT_EXPIRED", increment("expired~", "i", 11_00), of_payment("expired")),
        Case("PAYMENT_EXPIRED", capture("expired~"), of_payment("expired")),
        Case("PAYMENT_EXPIRED", void("expired~"), of_payment("expired")),
        Case("PAYMENT_CAPTURED", increment("captured~", "i", 11_00), of_payment("captured")),
        Case("PAYMENT_CAPTURED", capture("captured~", "c2"), of_payment("captured")),
        Case("PAYMENT_CAPTURED", void("captured~"), of_payment("captured")),
        Case("PAYMENT_CAPTURED", void("refunded~"), of_payment("refunded")),
        Case("TOO_MANY_CHANGES", increment("changed~", "i", 2_000), of_payment("changed", limit="1000")),
        Case("TOO_MANY_CHANGES", capture("changed~"), of_payment("changed", limit="1000")),
        Case("TOO_MANY_CHANGES", refund("changed~"), of_payment("changed", limit="1000")),
        Case("AMOUNT_NOT_GREATER", increment("authorized~", "i", 10_00), of_payment("authorized", authorized="1000")),
        Case("AMOUNT_NOT_GREATER", increment("authorized~", "i", 1), of_payment("authorized", authorized="1000")),
        Case(
            "AMOUNT_EXCEEDS_CAPTURABLE",
            capture("partly-captured~", "c2", amount=eur(6_01)),
            of_payment("partly-captured", capturable="600", amount="601"),
        ),
        Case(
            "AMOUNT_EXCEEDS_REFUNDABLE",
            refund("partly-captured~", amount=eur(4_01)),
            of_payment("partly-captured", refundable="400", amount="401"),
        ),
        Case("NOTHING_TO_REFUND", refund("refunded~", "r2"), of_payment("refunded")),
        Case("NOTHING_TO_REFUND", refund("authorized~"), of_payment("authorized")),
        Case("NOTHING_TO_REFUND", refund("voided~"), of_payment("voided")),
        Case("BALANCE_LIMIT", capture("to-rich~"), of_account("rich")),
        Case("BALANCE_LIMIT", increment("by-vault~", "i", 2), of_account("vault")),
        Case("BALANCE_LIMIT", refund("by-rich~"), of_account("rich")),
        Case(
            "INSUFFICIENT_FUNDS",
            increment("authorized~", "i", 10**12),
            of_account("alice", available="ALICE", amount=str(10**12 - 10_00)),
        ),
        Case("INSUFFICIENT_FUNDS", refund("got-by-poor~"), of_account("poor", available="500", amount="1000")),
    ],
}

READS_REFUSED: Final[dict[StatusCode, list[Case]]] = {
    StatusCode.INVALID_ARGUMENT: [
        Case("INVALID_REQUEST", GetAccountRequest(account_id=""), {}, ["account_id"]),
        Case("INVALID_REQUEST", GetAccountBalanceRequest(account_id="a b"), {}, ["account_id"]),
        Case("INVALID_REQUEST", GetPaymentRequest(payment_id="-"), {}, ["payment_id"]),
        Case("INVALID_REQUEST", GetTransferRequest(transfer_id="a" * 129), {}, ["transfer_id"]),
        Case("INVALID_REQUEST", GetAccountRequest(account_id="é", min_position=-1), {}, ["account_id", "min_position"]),
        Case(
            "INVALID_REQUEST",
            GetAccountBalanceRequest(account_id="alice~", effective_at=Timestamp(nanos=-1)),
            {},
            ["effective_at"],
        ),
        Case(
            "INVALID_REQUEST",
            GetAccountBalanceRequest(account_id="alice~", effective_at=Timestamp(seconds=2**62)),
            {},
            ["effective_at"],
        ),
        Case("INVALID_REQUEST", GetAccountBalanceRequest(account_id="alice~", at_position=0), {}, ["at_position"]),
        Case("INVALID_REQUEST", GetPaymentRequest(payment_id="x", at_position=-1), {}, ["at_position"]),
        Case("INVALID_REQUEST", ListAccountsRequest(page_size=1_001, statuses=[0]), {}, ["statuses[0]", "page_size"]),
        Case("INVALID_REQUEST", ListPaymentsRequest(account_id="a b", order=3), {}, ["account_id", "order"]),
        Case("INVALID_REQUEST", ListTransfersRequest(page_token="stolen"), {}, ["page_token"]),
        Case("INVALID_REQUEST", ListEntriesRequest(page_size=-1), {}, ["account_id", "page_size"]),
        Case("INVALID_REQUEST", GetTreeHeadRequest(tree_size=-1, min_position=-1), {}, ["tree_size", "min_position"]),
        Case("INVALID_REQUEST", GetInclusionProofRequest(), {}, ["position"]),
        Case("INVALID_REQUEST", GetInclusionProofRequest(position=3, tree_size=2), {}, ["position"]),
        Case("INVALID_REQUEST", GetConsistencyProofRequest(), {}, ["first_tree_size"]),
        Case(
            "INVALID_REQUEST",
            GetConsistencyProofRequest(first_tree_size=3, second_tree_size=2),
            {},
            ["first_tree_size"],
        ),
        Case(
            "INVALID_REQUEST",
            ReadEventsRequest(from_position=-1, min_position=-1),
            {},
            ["from_position", "min_position"],
        ),
        Case("INVALID_REQUEST", ReadEventsRequest(follow=True, to_position=1), {}, ["to_position"]),
        Case("INVALID_REQUEST", ReadEventsRequest(from_position=9, to_position=7), {}, ["to_position"]),
        Case("INVALID_REQUEST", ReadEventsRequest(streams=["account/alice~", "alice~"]), {}, ["streams[1]"]),
        Case("INVALID_REQUEST", ReadEventsRequest(streams=["account/alice~"] * 101), {}, ["streams"]),
        Case("INVALID_REQUEST", ReadEventsRequest(topics=["FundsStolen"]), {}, ["topics[0]"]),
        Case("INVALID_REQUEST", ReadEventsRequest(topics=["FundsDebited"] * 101), {}, ["topics"]),
        Case(
            "INVALID_REQUEST",
            ReadEventsRequest(follow=True, heartbeat_interval=Duration(seconds=61)),
            {},
            ["heartbeat_interval"],
        ),
        Case(
            "INVALID_REQUEST",
            GetTrialBalanceRequest(at_position=0, min_position=-1),
            {},
            ["min_position", "at_position"],
        ),
        Case(
            "INVALID_REQUEST",
            GetTrialBalanceRequest(currency_code="eur", effective_at=Timestamp(nanos=-1)),
            {},
            ["currency_code", "effective_at"],
        ),
        Case("INVALID_REQUEST", GetTrialBalanceRequest(recorded_at=Timestamp(seconds=2**62)), {}, ["recorded_at"]),
    ],
    StatusCode.NOT_FOUND: [
        Case("LEDGER_NOT_FOUND", GetAccountRequest(ledger="none", account_id="alice~"), {"ledger": "none"}),
        Case("ACCOUNT_NOT_FOUND", GetAccountRequest(account_id="nobody~"), of_account("nobody")),
        Case("ACCOUNT_NOT_FOUND", GetAccountRequest(account_id="ALICE~"), of_account("ALICE")),
        Case("ACCOUNT_NOT_FOUND", GetAccountBalanceRequest(account_id="nobody~"), of_account("nobody")),
        Case(
            "ACCOUNT_NOT_FOUND",
            GetAccountBalanceRequest(account_id="nobody~", effective_at=at(2020)),
            of_account("nobody"),
        ),
        Case("PAYMENT_NOT_FOUND", GetPaymentRequest(payment_id="none~"), of_payment("none")),
        Case("TRANSFER_NOT_FOUND", GetTransferRequest(transfer_id="none~"), {"transfer_id": "none~"}),
        Case("ACCOUNT_NOT_FOUND", ListEntriesRequest(account_id="nobody~"), of_account("nobody")),
        # What was not there yet is not found either.
        Case("ACCOUNT_NOT_FOUND", GetAccountBalanceRequest(account_id="later~", at_position=1), of_account("later")),
        Case(
            "ACCOUNT_NOT_FOUND",
            GetAccountBalanceRequest(account_id="alice~", recorded_at=at(2020)),
            of_account("alice"),
        ),
        Case("PAYMENT_NOT_FOUND", GetPaymentRequest(payment_id="authorized~", at_position=1), of_payment("authorized")),
        Case(
            "PAYMENT_NOT_FOUND", GetPaymentRequest(payment_id="captured~", recorded_at=at(2020)), of_payment("captured")
        ),
    ],
    StatusCode.OUT_OF_RANGE: [
        Case("POSITION_AHEAD_OF_HEAD", each, {"min_position": "4611686018427387904"})
        for each in (
            GetAccountRequest(account_id="alice~", min_position=2**62),
            GetAccountBalanceRequest(account_id="alice~", min_position=2**62),
            GetAccountBalanceRequest(account_id="alice~", min_position=2**62, effective_at=at(2020)),
            GetPaymentRequest(payment_id="authorized~", min_position=2**62),
            GetTransferRequest(transfer_id="alice~", min_position=2**62),
            GetAccountBalanceRequest(account_id="alice~", at_position=2**62),
            GetPaymentRequest(payment_id="authorized~", at_position=2**62),
            GetTreeHeadRequest(min_position=2**62),
            GetInclusionProofRequest(position=1, min_position=2**62),
            GetConsistencyProofRequest(first_tree_size=1, min_position=2**62),
            ListAccountsRequest(min_position=2**62),
            ListPaymentsRequest(min_position=2**62),
            ListTransfersRequest(min_position=2**62),
            ListEntriesRequest(account_id="alice~", min_position=2**62),
            ReadEventsRequest(min_position=2**62),
            ReadEventsRequest(to_position=2**62),
            ReadEventsRequest(from_position=2**62 + 1),
            ReadEventsRequest(from_position=2**62 + 1, follow=True),
            GetTrialBalanceRequest(min_position=2**62),
            GetTrialBalanceRequest(at_position=2**62),
        )
    ],
}


def listed(table: dict[StatusCode, list[Case]]) -> list[Any]:
    """One parameter set for each case: the code, the case."""
    numbers: Counter[str] = Counter()
    params = []
    for code, cases in table.items():
        for case in cases:
            name = f"{case.reason}-{case.request.DESCRIPTOR.name.removesuffix('Request')}"
            numbers[name] += 1
            params.append(pytest.param(code, case, id=f"{name}-{numbers[name]}"))
    return params


def expected(code: StatusCode, case: Case, world: Client, prefix: str = "") -> Refused:
    """The refusal of a case, with the names of this world. ALICE stands for what she has available now."""
    metadata = {key: world.name(value) for key, value in case.metadata.items()}
    if metadata.get("available") == "ALICE":
        metadata["available"] = str(world.balance("alice~").available)
    return Refused(code, case.reason, metadata, tuple(prefix + field for field in case.fields))


@pytest.mark.parametrize(("code", "case"), listed(COMMANDS_REFUSED) + listed(READS_REFUSED))
def test_a_refusal_says_why(code: StatusCode, case: Case, world: Client, log: psycopg.Connection[Any]) -> None:
    """Status, reason, metadata and fields are the documented ones, and nothing is recorded."""
    head = head_of(log)

    refused = world.refuses(case.request)
    if refused.reason == "POSITION_AHEAD_OF_HEAD":  # The head may move at any time.
        assert int(refused.metadata.pop("head")) >= head
    assert refused == expected(code, case, world)
    assert not recorded_since(log, head)


@pytest.mark.parametrize(("code", "case"), listed(COMMANDS_REFUSED))
def test_a_refusal_is_the_same_when_validated_and_in_a_batch(
    code: StatusCode, case: Case, world: Client, log: psycopg.Connection[Any]
) -> None:
    """A dry run says what the real one would; a result in a batch has what the rpc would have, with the way to it."""
    head = head_of(log)
    name = COMMAND_NAMES[case.request.DESCRIPTOR.full_name]
    in_batch = expected(code, case, world, prefix=f"commands[0].{name}.")

    assert world.refuses(copied(case.request, validate_only=True)) == expected(code, case, world)
    assert result_of(world(batch(case.request)), 0) == in_batch
    assert result_of(world(batch(case.request, validate_only=True)), 0) == in_batch
    assert result_of(world(batch(case.request, mode=BATCH_MODE_ATOMIC)), 0) == in_batch
    assert not recorded_since(log, head)


def test_a_card_number_is_nowhere_afterwards(world: Client, server: LedgerServer) -> None:
    """Not in what is answered, not in what is logged; nor does a call get its name from one."""
    number = "5105105105105100"
    requests = [
        authorize(number, reference=number, metadata={number: number, "card": number}),
        batch(void("authorized~", reason=number), transfer(number, leg("alice~", "shop~", 1))),
        batch(opening(number), mode=BATCH_MODE_ATOMIC),
    ]
    for request in requests:
        call = world.start(request, metadata=[("x-correlation-id", number)])
        failed = call.exception()
        answered = (call.details(), call.trailing_metadata()) if failed else (call.result(), call.trailing_metadata())
        assert number not in str(answered)
    assert number not in server.log


@pytest.mark.parametrize("name", ALL)
def test_an_unknown_ledger_is_not_found(name: str, world: Client) -> None:
    """Whatever is asked of it, and however odd its name is."""
    (method,) = [each for each in RPCS.values() if each.name == name]
    request = GetMessageClass(method.input_type)

    for ledger in ("none", "Main", "main ", "ledger_main", "'; --", "é"):
        refused = world.refuses(request(ledger=ledger))
        assert refused == Refused(StatusCode.NOT_FOUND, "LEDGER_NOT_FOUND", {"ledger": ledger})


def test_an_unknown_ledger_with_an_endless_name_is_refused_like_any_other(world: Client) -> None:
    """The error must fit into what gRPC lets through as metadata: a client must not see a broken call."""
    for length in (1_000, 10_000, 1_000_000):
        refused = world.refuses(GetAccountRequest(ledger="x" * length, account_id="alice~"))
        assert (refused.code, refused.reason) == (StatusCode.NOT_FOUND, "LEDGER_NOT_FOUND")


ORDER: Final = [
    # Each of these has two things wrong, and the first in the documented order is told.
    Case("INVALID_REQUEST", authorize("captured~", 0)),
    Case("ID_ALREADY_USED", authorize("captured~", payer_account_id="nobody~", preconditions=at_version("nobody~", 1))),
    Case("ID_ALREADY_USED", capture("captured~", "c1", amount=eur(1), preconditions=at_version("later~", 7))),
    Case("ACCOUNT_NOT_FOUND", authorize("new~", payee_account_id="nobody~", preconditions=at_version("later~", 7))),
    Case("ACCOUNT_NOT_FOUND", transfer("new~", leg("dollars~", "nobody~", 1), preconditions=at_version("later~", 7))),
    Case("ACCOUNT_NOT_FOUND", limit("nobody~", usd(1), preconditions=at_version("later~", 7))),
    Case("VERSION_MISMATCH", authorize("new~", amount=usd(1), preconditions=at_version("later~", 7))),
    Case("VERSION_MISMATCH", transfer("new~", leg("alice~", "dollars~", 1), preconditions=at_version("later~", 7))),
    Case("VERSION_MISMATCH", capture("authorized~", amount=usd(1), preconditions=at_version("later~", 7))),
    Case("VERSION_MISMATCH", limit("alice~", usd(1), preconditions=at_version("later~", 7))),
    Case("VERSION_MISMATCH", limit("closed~", eur(1), preconditions=at_version("later~", 7))),
    Case("VERSION_MISMATCH", close("rich~", preconditions=at_version("later~", 7))),
    Case("CURRENCY_MISMATCH", authorize("new~", amount=usd(1), payee_account_id="closed~")),
    Case("CURRENCY_MISMATCH", capture("to-closed~", amount=usd(1))),
    Case("CURRENCY_MISMATCH", limit("closed~", usd(1))),
    Case("ACCOUNT_CLOSED", capture("to-closed~", amount=eur(11_00))),
    Case("ACCOUNT_FROZEN", refund("got-by-frozen~", amount=eur(11_00))),
    Case("ACCOUNT_FROZEN", increment("by-frozen~", "i", 1)),
    Case("AMOUNT_EXCEEDS_REFUNDABLE", refund("got-by-poor~", amount=eur(11_00))),
]


@pytest.mark.parametrize("case", [pytest.param(each, id=f"{i}-{each.reason}") for i, each in enumerate(ORDER)])
def test_of_several_things_that_are_wrong_the_documented_first_is_told(case: Case, world: Client) -> None:
    """Malformed, id used, not found, preconditions, currency, closed, frozen, amounts, funds."""
    assert world.refuses(case.request).reason == case.reason


def test_of_several_declines_the_documented_first_is_told(world: Client) -> None:
    """Closed goes before frozen, and frozen before funds, whichever account it is about."""
    too_much = {"payer_account_id": "frozen~", "amount": eur(MOST)}

    first = world(authorize("d1~", payee_account_id="closed~", validate_only=True, **too_much))
    second = world(authorize("d2~", payee_account_id="shop~", validate_only=True, **too_much))

    assert first.payment.decline_reason == DECLINE_REASON_ACCOUNT_CLOSED
    assert first.payment.declined_account_id == world.name("closed~")
    assert second.payment.decline_reason == DECLINE_REASON_ACCOUNT_FROZEN
    assert second.payment.declined_account_id == world.name("frozen~")


def test_an_answer_that_would_list_too_much_is_refused_and_what_it_is_of_is_done(world: Client) -> None:
    """ANSWER_TOO_LARGE: each result lists all that its payment has had. Smaller batches tell what became of it."""
    again, new = increment("changed~", "i999", 1_001), opening("beside-too-much~")
    refused = world.refuses(batch(*[again] * 1_001, new))
    listed = {"changes": "1001000", "most": "1000000"}
    assert refused == Refused(StatusCode.RESOURCE_EXHAUSTED, "ANSWER_TOO_LARGE", listed)
    first, second = world(batch(again, new)).results
    assert first.increment_authorization.replayed
    assert len(first.increment_authorization.payment.increments) == 1_000
    assert second.open_account.replayed


def test_an_answer_that_would_list_too_much_is_not_said_to_be_of_what_is_done_where_nothing_is(world: Client) -> None:
    """With `validate_only` nothing is recorded, and the error says that."""
    again, new = increment("changed~", "i999", 1_001), opening("only-validated~")
    with pytest.raises(grpc.RpcError, match=r"over 1000000\. Nothing was recorded") as raised:
        world(batch(*[again] * 1_001, new, validate_only=True))
    assert refused_by(raised.value).reason == "ANSWER_TOO_LARGE"
    assert not world(new).replayed


REFUSALS: Final = (Path(__file__).parents[2] / "docs" / "refusals.md").read_text()

ELSEWHERE: Final = {
    "UNAUTHENTICATED": "test_access.py::test_who_has_no_token_is_not_let_in",
    "PERMISSION_DENIED": "test_access.py::test_a_role_calls_what_the_table_says",
    "LEDGER_NOT_PERMITTED": "test_access.py::test_a_token_is_for_its_ledgers_only",
    "TOO_MANY_CALLS": "test_limits.py::test_more_calls_than_it_takes_are_refused_while_memory_stays_flat",
    "RATE_EXCEEDED": "test_limits.py::test_a_caller_who_asks_for_too_much_is_refused_and_later_is_not",
    "DEADLINE_PASSED": "test_limits.py::test_a_call_without_a_deadline_has_one",
    "BATCH_ABORTED": "test_api.py::test_an_atomic_batch_is_all_or_nothing",
    "BALANCE_NOT_REPRESENTABLE": "test_api.py::test_a_sum_by_effective_time_that_no_int64_holds_is_refused_decently",
    "QUEUE_FULL": "test_api.py::test_more_commands_than_the_queue_takes_are_refused_with_a_pause",
    "ANSWER_TOO_LARGE": "test_api.py::test_an_answer_that_would_list_too_much_is_refused_and_what_it_is_of_is_done",
    "READ_MODEL_BEHIND": "test_api.py::test_a_read_that_waits_in_vain_names_both_positions",
    "DATABASE_UNAVAILABLE": "test_health.py::test_without_a_database_commands_and_reads_are_unavailable_at_once",
    "READS_UNAVAILABLE": "test_health.py::test_without_a_database_commands_and_reads_are_unavailable_at_once",
    "READ_MODEL_STOPPED": "test_health.py::test_a_stopped_follower_stops_reads_and_not_writes",
    "NOT_RECORDED": "test_health.py::test_a_disk_that_is_full_records_nothing",
    "OUTCOME_UNKNOWN": "test_health.py::test_a_database_that_dies_with_a_command_in_its_hands_leaves_it_open",
    "WRITES_STOPPED": "test_health.py::test_a_log_that_lost_its_tail_stops_writes",
    "INTERNAL": "test_health.py::test_a_stopped_follower_stops_reads_and_not_writes",
    "TREE_HEAD_NOT_FOUND": "test_api.py::test_the_tree_answers_what_it_can_not_prove",
    "TREE_SIZE_AHEAD_OF_HEAD": "test_api.py::test_the_tree_answers_what_it_can_not_prove",
    "TREE_BEHIND": "test_api.py::test_a_tree_that_nobody_signs_is_behind",
    "SHUTTING_DOWN": "test_cli.py::test_a_signal_ends_a_server_whose_log_is_followed",
}
"""Where a reason that the tables above don't have comes through a channel."""

NOT_SEEN: Final = {
    "CALLERS_UNAVAILABLE": "../integration/test_tokens.py::test_what_is_known_of_tokens_holds_only_so_long",
}
"""What takes so long to come about that the server's clock is moved for it."""


def test_every_reason_is_shown() -> None:
    """The tables above walk through every reason that a client can cause; the rest comes up where it is said."""
    tables = (*COMMANDS_REFUSED.values(), *READS_REFUSED.values())
    shown = {case.reason for cases in tables for case in cases}

    assert sorted(STATUS) == sorted([*shown, *ELSEWHERE, *NOT_SEEN])
    for reason, where in (ELSEWHERE | NOT_SEEN).items():
        file, name = where.split("::")
        source = (Path(__file__).parent / file).read_text()
        (test,) = re.findall(rf"^def {name}\(.*?(?=^[a-zA-Z@#]|\Z)", source, re.MULTILINE | re.DOTALL)
        assert reason in test, f"{name} has no {reason}"


def documented() -> dict[str, set[str]]:
    """By reason, the rpcs that answer it, as docs/refusals.md says."""
    writes = {RPCS[name].name for name in COMMAND_NAMES}
    proofs = {"GetTreeHead", "GetInclusionProof", "GetConsistencyProof"}
    reads = set(ALL) - writes - proofs - {"ExecuteBatch", "ReadEvents"}
    groups = {"any": set(ALL), "writes": writes, "reads": reads, "proofs": proofs}
    rows = re.findall(r"^\| `(\w+)` \|(?:[^|]*\|){3} ([^|]+) \|(?:[^|]*\|){2}$", REFUSALS, re.MULTILINE)
    return {reason: set().union(*(groups.get(each, {each}) for each in by.split(", "))) for reason, by in rows}


def test_who_answers_a_reason_is_who_the_document_says() -> None:
    """The rpcs of each reason in the tables above are those in docs/refusals.md, and no other."""
    shown = {
        # test_an_unknown_ledger_is_not_found, test_a_malformed_request_names_the_field
        "LEDGER_NOT_FOUND": set(ALL),
        "INVALID_REQUEST": {*(RPCS[name].name for name in COMMAND_NAMES), "ExecuteBatch"},
    }
    for cases in (*COMMANDS_REFUSED.values(), *READS_REFUSED.values()):
        for case in cases:
            shown.setdefault(case.reason, set()).add(RPCS[case.request.DESCRIPTOR.full_name].name)
    said = documented()
    assert said.keys() == STATUS.keys()
    assert set().union(*said.values()) == set(ALL), "it names an rpc that there isn't"
    assert {reason: said[reason] for reason in shown} == shown


def test_every_refusal_has_a_status() -> None:
    """One that is not in the table would reach the client as an unknown error with the text of an exception."""

    def below(refusal: type[Refusal]) -> Iterator[type[Refusal]]:
        for each in refusal.__subclasses__():
            yield each
            yield from below(each)

    assert outages.Internal in set(below(Refusal))
    assert services.LedgerNotFound in set(below(Refusal))
    own = {each for each in below(Refusal) if each not in (outages.Outage, DeclinedInBatch)}
    assert not {f"{each.__name__}: {each.code}" for each in own if each.code not in STATUS}


# --- malformed requests ----------------------------------------------------------------------------------------------

IDS: Final = ["", " ", "-a", ".a", "a b", "a/b", "é", "a\n", "a\0", "a" * 129, "a" * 100_000]
TEXTS: Final = ["x" * 257, "\U0001f4b6" * 257, "a\0b"]
METADATA: Final[list[dict[str, str]]] = [
    {f"{number}": "" for number in range(65)},
    {"k": "x" * 8_192},
    {"k": "é" * 4_096},
    {"": "x"},
    {"a\0": "x"},
    {"a": "x\0"},
]
CURRENCIES: Final = ["", "eur", "EURO", "XYZ", "978", "XAU", "XXX", "€", "E" * 100_000]
POSITIVE: Final = [0, -1, MOST + 1, 2**63 - 1, -(2**63)]
NOT_NEGATIVE: Final = [-1, MOST + 1, 2**63 - 1, -(2**63)]
MOMENTS: Final = [
    Timestamp(nanos=-1),
    Timestamp(nanos=1_000_000_000),
    Timestamp(seconds=-62_135_596_801),  # a second before the year 1
    Timestamp(seconds=253_402_300_800),  # the year 10,000
    Timestamp(seconds=2**63 - 1, nanos=999_999_999),
    Timestamp(seconds=-(2**63)),
]
HOLDS: Final = [
    Duration(),
    Duration(seconds=-1),
    Duration(nanos=-1),
    Duration(nanos=999),
    Duration(nanos=1_000_000_000),
    Duration(seconds=31 * 86_400, nanos=1_000),
    Duration(seconds=2**63 - 1),
    Duration(seconds=-(2**63), nanos=-(2**31)),
]

Wrong = tuple[str, Any, str]
"""A field, a value that it must not have, and the path that the error has to name."""


def wrong_money(field: str, minor_units: Sequence[int]) -> list[Wrong]:
    return [
        (field, Money(), f"{field}.currency_code"),
        *((field, Money(currency_code=code, minor_units=1), f"{field}.currency_code") for code in CURRENCIES),
        *((field, eur(amount), f"{field}.minor_units") for amount in minor_units),
    ]


def wrong_legs() -> list[Wrong]:
    sound = leg("alice", "shop", 1)
    wrong: list[Wrong] = [("legs", [], "legs"), ("legs", [sound] * 1_001, "legs")]
    wrong += [("legs", [sound, copied(sound, from_account_id=each)], "legs[1].from_account_id") for each in IDS]
    wrong += [("legs", [sound, copied(sound, to_account_id=each)], "legs[1].to_account_id") for each in IDS]
    wrong += [("legs", [copied(sound, to_account_id="alice")], "legs[0].to_account_id")]
    wrong += [("legs", [copied(sound, amount=None)], "legs[0].amount.currency_code")]
    return wrong + [
        ("legs", [sound, sound, copied(sound, amount=value)], f"legs[2].{path}")
        for _, value, path in wrong_money("amount", POSITIVE)
    ]


def wrong_preconditions() -> list[Wrong]:
    many = [Precondition(account_id=f"a{number}", expected_version=1) for number in range(1_001)]
    twice = [Precondition(account_id="a", expected_version=version) for version in (1, 2)]
    return [
        ("preconditions", many, "preconditions"),
        ("preconditions", twice, "preconditions[1].account_id"),
        ("preconditions", [Precondition()], "preconditions[0].account_id"),
        *(("preconditions", at_version(each, 1), "preconditions[0].account_id") for each in IDS),
        *(("preconditions", at_version("a", each), "preconditions[0].expected_version") for each in (0, -1, -(2**63))),
    ]


WRONG: Final[dict[str, list[Wrong]]] = {
    **{
        field: [(field, each, field) for each in IDS]
        for field in (
            "account_id",
            "payment_id",
            "payer_account_id",
            "payee_account_id",
            "increment_id",
            "capture_id",
            "refund_id",
            "transfer_id",
        )
    },
    "currency_code": [("currency_code", each, "currency_code") for each in CURRENCIES],
    "kind": [("kind", each, "kind") for each in (3, 99, -1, 2**31 - 1)],
    "scope": [("scope", each, "scope") for each in (4, 99, -1, -(2**31))],
    "amount": wrong_money("amount", POSITIVE),
    "credit_limit": wrong_money("credit_limit", NOT_NEGATIVE),
    "hold_for": [("hold_for", each, "hold_for") for each in HOLDS],
    "effective_at": [("effective_at", each, "effective_at") for each in MOMENTS],
    "reference": [("reference", each, "reference") for each in TEXTS],
    "reason": [("reason", each, "reason") for each in TEXTS],
    "metadata": [("metadata", each, "metadata") for each in METADATA],
    "legs": wrong_legs(),
    "preconditions": wrong_preconditions(),
}
"""What each field must not be, whichever request it is in."""

NEVER_WRONG: Final = {
    "ledger": "not found, or refused inside a batch",
    "validate_only": "a truth value; refused inside a batch",
    "keep_remainder": "a truth value",
}

SOUND: Final[list[Any]] = [
    opening("new~"),
    limit("alice~", eur(1)),
    freeze("alice~"),
    unfreeze("frozen~"),
    close("later~"),
    authorize("new~"),
    increment("authorized~", "new", 11_00),
    capture("authorized~", "new"),
    void("authorized~"),
    refund("captured~", "new"),
    transfer("new~", leg("alice~", "shop~", 1)),
]
"""One good request of each kind. Of each, some field is spoilt."""

SPOILT_OTHERWISE: Final[list[tuple[Message, str]]] = [
    (opening("new~", credit_limit=usd(1)), "credit_limit.currency_code"),
    (opening("new~", kind=ACCOUNT_KIND_EXTERNAL, credit_limit=eur(0)), "credit_limit"),
    (limit("alice~", None), "credit_limit.currency_code"),
    (authorize("new~", payee_account_id="alice~"), "payee_account_id"),
    (copied(authorize("new~"), amount=None), "amount.currency_code"),
    (copied(increment("authorized~", "new", 1), amount=None), "amount.currency_code"),
]


def spoilt(sound: Message) -> Iterator[tuple[Message, str]]:
    """The request with each wrong value in turn, and the path that has to be named."""
    for field in sound.DESCRIPTOR.fields:
        for name, value, wrong_path in WRONG.get(field.name, []):
            yield copied(sound, **{name: value}), wrong_path
    for request, wrong_path in SPOILT_OTHERWISE:
        if type(request) is type(sound):
            yield request, wrong_path


def brief(request: Message) -> str:
    return str(request).replace("\n", " ")[:300]


def test_the_malformed_values_cover_every_field_of_every_command() -> None:
    """A field that is added to a request needs a row above."""
    assert {each.DESCRIPTOR.full_name for each in SOUND} == set(COMMAND_NAMES)
    fields = {field.name for each in SOUND for field in each.DESCRIPTOR.fields}
    assert fields == set(WRONG) | set(NEVER_WRONG)


@pytest.mark.parametrize("sound", [pytest.param(each, id=each.DESCRIPTOR.name) for each in SOUND])
def test_a_malformed_request_names_the_field(sound: Message, world: Client, log: psycopg.Connection[Any]) -> None:
    """Every field of every command, by itself and inside a batch, where the way to it is told."""
    head = head_of(log)
    assert not world(copied(sound, validate_only=True)).replayed  # it is a good request otherwise
    cases = list(spoilt(sound))
    told = [world.refuses(request) for request, _ in cases]
    whole = world(batch(*(request for request, _ in cases)))
    name = COMMAND_NAMES[sound.DESCRIPTOR.full_name]

    for number, (request, wrong_path) in enumerate(cases):
        refused = Refused(StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", {}, (wrong_path,))
        assert told[number] == refused, brief(request)
        in_batch = refused._replace(fields=(f"commands[{number}].{name}.{wrong_path}",))
        assert result_of(whole, number) == in_batch, brief(request)
    assert whole.position == 0
    assert not recorded_since(log, head)


def test_all_fields_that_are_wrong_are_named(world: Client) -> None:
    """One round trip is enough to find them all."""
    request = authorize("", 0, payer_account_id="a b", payee_account_id="", reference="x" * 257, metadata={"": ""})

    named = "payment_id payer_account_id payee_account_id amount.minor_units reference metadata"
    assert world.refuses(request).fields == tuple(named.split())


def test_an_amount_of_zero_never_means_all(world: Client) -> None:
    """Unset means all that remains; a Money of zero is refused, and so is an empty one."""
    for amount in (eur(0), Money()):
        assert world.refuses(capture("authorized~", amount=amount)).reason == "INVALID_REQUEST"
        assert world.refuses(refund("captured~", amount=amount)).reason == "INVALID_REQUEST"


def test_bytes_that_are_no_request_are_refused_without_a_word_of_the_server_s_own(world: Client) -> None:
    """Neither garbage nor broken UTF-8 brings out the text of an exception, whichever rpc it is sent to."""
    told = set()
    for method in RPCS.values():
        open_call = world.channel.unary_stream if method.server_streaming else world.channel.unary_unary
        for garbage in (b"\xff\xff\xff\xff", b"\x0a\x02\xc3\x28", b"\x12\x05ab"):
            with pytest.raises(grpc.RpcError) as raised:
                next(iter(open_call(path(method))(garbage, timeout=ANSWERED_WITHIN_S)))
            assert isinstance(raised.value, grpc.Call)
            told.add((raised.value.code(), raised.value.details()))
    assert not {details for _, details in told if UNFIT.search(details or "")}
    assert {code for code, _ in told} <= {StatusCode.INVALID_ARGUMENT, StatusCode.UNIMPLEMENTED, StatusCode.INTERNAL}


def test_unknown_fields_are_ignored(people: Client) -> None:
    """A client of a later contract is understood as far as it goes."""
    request = people.prepared(authorize("p~"))
    method = RPCS[AuthorizePaymentRequest.DESCRIPTOR.full_name]
    call = people.channel.unary_unary(path(method), None, payment_pb2.AuthorizePaymentResponse.FromString)

    response = call(request.SerializeToString() + b"\xfa\x3e\x03abc", timeout=ANSWERED_WITHIN_S)

    assert response.payment.state == PAYMENT_STATE_AUTHORIZED
    assert people(authorize("p~")).replayed


# --- ids are idempotency keys ----------------------------------------------------------------------------------------

WITH_ID: Final[list[tuple[Any, str, dict[str, list[Any]]]]] = [
    # A request, the field that names what it creates, and other values for each of its other fields.
    (
        opening("new~", credit_limit=eur(5), metadata={"a": "1"}),
        "account_id",
        {
            "currency_code": ["EUR"],  # see below: the limit has to be in the same currency
            "kind": [ACCOUNT_KIND_CUSTOMER],
            "credit_limit": [None, eur(0), eur(6)],
            "metadata": [{}, {"a": "2"}, {"A": "1"}, {"a": "1", "b": ""}],
        },
    ),
    (
        authorize("new~", hold_for=Duration(seconds=60), reference="r", metadata={"a": "1"}, effective_at=at(2020)),
        "payment_id",
        {
            "payer_account_id": ["bank~", "nobody~"],
            "payee_account_id": ["bank~", "nobody~"],
            "amount": [eur(9_99), usd(10_00)],
            "hold_for": [None, Duration(seconds=61)],
            "reference": ["", "R"],
            "metadata": [{}, {"a": "2"}],
            "effective_at": [None, at(2021)],
        },
    ),
    (increment("p~", "new", 11_00), "increment_id", {"amount": [eur(11_01), eur(1), usd(11_00)]}),
    (
        capture("p~", "new", amount=eur(5_00), keep_remainder=True, effective_at=at(2020)),
        "capture_id",
        {"amount": [None, eur(5_01), usd(5_00)], "keep_remainder": [False], "effective_at": [None, at(2021)]},
    ),
    (
        refund("q~", "new", amount=eur(5_00), effective_at=at(2020)),
        "refund_id",
        {"amount": [None, eur(5_01), usd(5_00)], "effective_at": [None, at(2021)]},
    ),
    (
        transfer("new~", leg("bank~", "alice~", 1), reference="r", metadata={"a": "1"}, effective_at=at(2020)),
        "transfer_id",
        {
            "legs": [
                [leg("bank~", "alice~", 2)],
                [leg("bank~", "shop~", 1)],
                [leg("bank~", "alice~", 1), leg("bank~", "alice~", 1)],
                [leg("nobody~", "alice~", usd(1))],
            ],
            "reference": ["", "R"],
            "metadata": [{}, {"a": "2"}],
            "effective_at": [None, at(2021)],
        },
    ),
]


@pytest.fixture
def payments(people: Client) -> Client:
    """With p~ authorized, and q~ captured."""
    people.do(authorize("p~"), authorize("q~"), capture("q~"))
    return people


def test_the_differences_cover_every_field_of_every_command_with_an_id() -> None:
    """What is compared is all that the client sets, save what the contract names; a void's reason is not compared."""
    assert {type(request) for request, _, _ in WITH_ID} == {
        OpenAccountRequest,
        AuthorizePaymentRequest,
        IncrementAuthorizationRequest,
        CapturePaymentRequest,
        RefundPaymentRequest,
        PostTransferRequest,
    }
    for request, id_field, others in WITH_ID:
        fields = {field.name for field in request.DESCRIPTOR.fields}
        assert set(others) == fields - {"ledger", "validate_only", "preconditions", "payment_id", id_field}


@pytest.mark.parametrize(
    ("request_", "id_field", "others"),
    [pytest.param(*row, id=row[0].DESCRIPTOR.name.removesuffix("Request")) for row in WITH_ID],
)
def test_the_same_id_with_another_field_names_the_field(
    request_: Any, id_field: str, others: dict[str, list[Any]], payments: Client, log: psycopg.Connection[Any]
) -> None:
    """Also where a field is unset that was set before; and nothing changes."""
    first = payments(request_)
    head = head_of(log)
    id_ = payments.name(getattr(request_, id_field))

    for field, values in others.items():
        for value in values:
            other = copied(request_, **{field: value})
            if other == request_ or payments.prepared(other) == payments.prepared(request_):
                continue
            if isinstance(request_, OpenAccountRequest) and field == "kind":
                continue
            refused = payments.refuses(other)
            assert refused == Refused(
                StatusCode.ALREADY_EXISTS, "ID_ALREADY_USED", {"id_field": id_field, "id": id_, "field": field}
            ), brief(other)
    again = payments(copied(request_, preconditions=at_version("nobody~", 7)))
    assert again == copied(first, replayed=True)
    assert not recorded_since(log, head)


def test_an_account_of_another_currency_or_kind_has_another_id(people: Client) -> None:
    """The two fields that the table above can't change alone."""
    for other, field in (
        (opening("alice~", currency_code="USD"), "currency_code"),
        (opening("alice~", kind=ACCOUNT_KIND_EXTERNAL), "kind"),
    ):
        assert people.refuses(other).metadata["field"] == field


def test_a_default_written_out_is_not_the_same_as_unset(people: Client) -> None:
    """For amounts, times and durations; a kind that is left out is the same as CUSTOMER."""
    people.do(authorize("p~"), capture("p~"), opening("bob~"))

    assert people.refuses(authorize("p~", hold_for=Duration(seconds=7 * 86_400))).metadata["field"] == "hold_for"
    assert people.refuses(capture("p~", amount=eur(10_00))).metadata["field"] == "amount"
    assert people.refuses(opening("bob~", credit_limit=eur(0))).metadata["field"] == "credit_limit"
    assert people(opening("bob~", kind=ACCOUNT_KIND_CUSTOMER)).replayed


def test_a_replay_answers_as_things_were_right_after_the_first(people: Client) -> None:
    """With the first position and time, whatever has happened since."""
    requests = [
        opening("bob~", metadata={"a": "1"}),
        transfer("t~", leg("bank~", "bob~", 5_00)),
        authorize("p~"),
        increment("p~", "i1", 20_00),
        capture("p~", "c1", amount=eur(3_00), keep_remainder=True),
        refund("p~", "r1", amount=eur(1_00)),
        capture("p~", "c2"),
        authorize("v~"),
        void("v~", reason="first"),
        authorize("d~", MOST),
        transfer("d~", leg("alice~", "shop~", MOST)),
    ]
    firsts = [people(each) for each in requests]
    people.do(refund("p~", "r2"), freeze("bob~"), freeze("alice~"), freeze("shop~"))

    for request, first in zip(requests, firsts, strict=True):
        assert not first.replayed
        assert people(request) == copied(first, replayed=True), brief(request)
    assert people(void("v~", reason="second")).payment.void_reason == "first"
    in_batch = people(batch(*requests))
    assert [result_of(in_batch, number) for number in range(len(requests))] == [
        copied(each, replayed=True) for each in firsts
    ]
    assert in_batch.position == max(each.position for each in firsts)


def test_a_declined_id_stays_declined(people: Client) -> None:
    """Also when the money has come since; another id gets it."""
    declined = people(authorize("p~", 200_00))
    refused = people(transfer("t~", leg("alice~", "shop~", 200_00)))
    people(transfer("more~", leg("bank~", "alice~", 500_00)))

    assert people(authorize("p~", 200_00)) == copied(declined, replayed=True)
    assert people(transfer("t~", leg("alice~", "shop~", 200_00))) == copied(refused, replayed=True)
    assert people(authorize("p2~", 200_00)).payment.state == PAYMENT_STATE_AUTHORIZED


@pytest.mark.parametrize(
    ("request_", "same"),
    [
        (limit("alice~", eur(7)), limit("alice~", eur(7), reason="again")),
        (freeze("alice~"), freeze("alice~", scope=FREEZE_SCOPE_ALL, reason="again")),
        (unfreeze("frozen~"), unfreeze("frozen~", reason="again")),
        (close("empty~"), close("empty~", reason="again")),
    ],
    ids=["SetCreditLimit", "Freeze", "Unfreeze", "Close"],
)
def test_a_state_that_is_so_already_is_a_replay(
    request_: Message, same: Message, people: Client, log: psycopg.Connection[Any]
) -> None:
    """It answers with the account as it is, the head, and when the account last changed; preconditions don't matter."""
    people.do(opening("frozen~"), freeze("frozen~"), opening("empty~"))
    first = people(request_)
    people.do(opening("later~"))

    again = people(copied(same, preconditions=at_version("later~", 9)))

    assert again == copied(first, replayed=True, position=again.position)
    assert again.position == head_of(log) > first.position


def test_many_at_once_with_one_id_do_it_once(people: Client) -> None:
    """One call does it, all others are its replays."""
    calls = [people.start(authorize("p~")) for _ in range(50)]
    responses = [each.result() for each in calls]
    people.position = responses[0].position

    assert Counter(each.replayed for each in responses) == {False: 1, True: 49}
    assert len({each.position for each in responses}) == 1
    assert people.balance("alice~").reserved == 10_00


def test_ids_of_one_payment_are_free_in_another(people: Client) -> None:
    """Captures, refunds and increments share one per payment; payments, transfers and accounts have theirs."""
    people.do(authorize("alice~"), transfer("alice~", leg("bank~", "alice~", 1)), authorize("p~"), capture("p~", "x"))
    people.do(capture("alice~", "x"))


# --- declines --------------------------------------------------------------------------------------------------------

DECLINES: Final = [
    # Payer, payee, minor units, the reason, and whose it is.
    ("poor~", "shop~", 1, DECLINE_REASON_INSUFFICIENT_FUNDS, "poor~"),
    ("alice~", "shop~", 100_01, DECLINE_REASON_INSUFFICIENT_FUNDS, "alice~"),
    ("closed~", "shop~", 1, DECLINE_REASON_ACCOUNT_CLOSED, "closed~"),
    ("alice~", "closed~", 1, DECLINE_REASON_ACCOUNT_CLOSED, "closed~"),
    ("no-debits~", "shop~", 1, DECLINE_REASON_ACCOUNT_FROZEN, "no-debits~"),
    ("alice~", "no-credits~", 1, DECLINE_REASON_ACCOUNT_FROZEN, "no-credits~"),
    ("frozen~", "alice~", 1, DECLINE_REASON_ACCOUNT_FROZEN, "frozen~"),
    ("alice~", "frozen~", 1, DECLINE_REASON_ACCOUNT_FROZEN, "frozen~"),
    ("vault~", "shop~", 1, DECLINE_REASON_BALANCE_LIMIT, "vault~"),
]


@pytest.fixture
def barred(people: Client) -> Client:
    """With accounts that can't pay or be paid."""
    people.do(
        *(opening(name) for name in ("poor~", "closed~", "no-debits~", "no-credits~", "frozen~", "rich~")),
        opening("vault~", kind=ACCOUNT_KIND_EXTERNAL),
        *(transfer(name, leg("bank~", name, 50_00)) for name in ("no-debits~", "no-credits~", "frozen~")),
        transfer("rich~", leg("vault~", "rich~", MOST)),
        close("closed~"),
        freeze("no-debits~", scope=FREEZE_SCOPE_DEBITS),
        freeze("no-credits~", scope=FREEZE_SCOPE_CREDITS),
        freeze("frozen~"),
    )
    return people


def test_a_decline_is_an_answer_and_recorded(barred: Client, log: psycopg.Connection[Any]) -> None:
    """Status OK, state DECLINED, the reason and whose it is; one event in the log, and reads know it."""
    for number, (payer, payee, amount, reason, whose) in enumerate(DECLINES):
        request = authorize(f"p{number}~", amount, payer_account_id=payer, payee_account_id=payee)
        declined = barred(copied(request, reference="r", metadata={"a": "1"}))
        payment = declined.payment
        assert (payment.state, payment.decline_reason) == (PAYMENT_STATE_DECLINED, reason), DECLINES[number]
        assert payment.declined_account_id == barred.name(whose)
        assert (payment.amount_requested, *amounts(payment)) == (amount, 0, 0, 0, 0, 0, 0)
        assert not payment.HasField("expires_at")
        ((position, version, topic, _),) = events_of(log, barred.name(f"payment/p{number}~"))
        assert (position, version, topic) == (declined.position, 1, "PaymentDeclined")
        assert barred.payment(f"p{number}~") == payment

        moved = barred(transfer(f"t{number}~", leg("bank~", "shop~", 1), leg(payer, payee, amount)))
        transferred = moved.transfer
        assert (transferred.state, transferred.decline_reason) == (TRANSFER_STATE_DECLINED, reason), DECLINES[number]
        assert (transferred.declined_leg, transferred.declined_account_id) == (1, barred.name(whose))
        assert barred.transfer(f"t{number}~") == transferred
    assert barred.balance("shop~").posted == 0


def test_a_freeze_bars_only_its_side(barred: Client) -> None:
    """Debits frozen: it can be paid. Credits frozen: it can pay."""
    barred.do(
        transfer("in~", leg("bank~", "no-debits~", 1)),
        transfer("out~", leg("no-credits~", "bank~", 1)),
        authorize("in~", 1, payee_account_id="no-debits~"),
        authorize("out~", 1, payer_account_id="no-credits~"),
    )


def test_what_was_authorized_before_a_freeze_can_be_captured_and_voided(people: Client) -> None:
    """The money was promised."""
    people.do(authorize("p~"), authorize("q~"), freeze("alice~"), freeze("shop~"), capture("p~"), void("q~"))


def test_a_balance_beyond_the_bound_is_declined(barred: Client) -> None:
    """A credit that would go over 10^18, and a reservation that would."""
    moved = barred(transfer("t~", leg("bank~", "rich~", 1)))
    barred.do(opening("credit~", credit_limit=eur(MOST)), transfer("c~", leg("bank~", "credit~", 10)))
    barred.do(authorize("held~", MOST, payer_account_id="credit~"))
    held = barred(authorize("more~", 1, payer_account_id="credit~"))

    assert moved.transfer.decline_reason == DECLINE_REASON_BALANCE_LIMIT
    assert moved.transfer.declined_account_id == barred.name("rich~")
    assert held.payment.decline_reason == DECLINE_REASON_BALANCE_LIMIT


def test_legs_apply_in_order(people: Client) -> None:
    """Each sees what those before it left: money can pass through an empty account, but not before it has come."""
    people.do(opening("empty~"))
    through = people(transfer("t1~", leg("alice~", "empty~", 5), leg("empty~", "shop~", 5)))
    too_early = people(transfer("t2~", leg("empty~", "shop~", 5), leg("alice~", "empty~", 5)))

    assert through.transfer.state == TRANSFER_STATE_POSTED
    assert (too_early.transfer.decline_reason, too_early.transfer.declined_leg) == (
        DECLINE_REASON_INSUFFICIENT_FUNDS,
        0,
    )
    assert too_early.transfer.HasField("declined_leg")


def test_legs_may_be_of_several_currencies(people: Client) -> None:
    """Foreign exchange: what is sold goes to one account, what is bought comes from another."""
    people.do(
        *(opening(name, kind=ACCOUNT_KIND_EXTERNAL) for name in ("fx-eur~",)),
        opening("fx-usd~", currency_code="USD", kind=ACCOUNT_KIND_EXTERNAL),
        opening("alice-usd~", currency_code="USD"),
    )
    moved = people(transfer("t~", leg("alice~", "fx-eur~", 10_00), leg("fx-usd~", "alice-usd~", usd(11_00))))

    assert moved.transfer.state == TRANSFER_STATE_POSTED
    assert people.balance("alice-usd~").posted == 11_00


# --- what there is not ---------------------------------------------------------------------------------------------


def test_a_service_that_does_not_exist_is_unimplemented(world: Client) -> None:
    """By gRPC itself."""
    with pytest.raises(grpc.RpcError) as raised:
        world.channel.unary_unary("/ledger.v1.PaymentService/StealMoney")(b"", timeout=ANSWERED_WITHIN_S)
    assert isinstance(raised.value, grpc.Call)
    assert raised.value.code() is StatusCode.UNIMPLEMENTED


# --- preconditions ---------------------------------------------------------------------------------------------------


def test_a_precondition_that_holds_lets_the_command_through(people: Client) -> None:
    """Versions come from answers, and count every event on the account."""
    version = people.account("alice~").version
    done = people(authorize("p~", preconditions=at_version("alice~", version)))
    again = people(authorize("p~", preconditions=at_version("alice~", version)))
    refused = people.refuses(authorize("q~", preconditions=at_version("alice~", version)))

    assert done.payment.state == PAYMENT_STATE_AUTHORIZED
    assert again.replayed
    assert refused == Refused(
        StatusCode.ABORTED,
        "VERSION_MISMATCH",
        {"account_id": people.name("alice~"), "version": str(version + 1), "expected_version": str(version)},
    )


def test_in_a_batch_preconditions_see_the_commands_before(people: Client) -> None:
    """The version is compared with the one that those before have left."""
    version = people.account("alice~").version
    people.do(
        authorize("p~", preconditions=at_version("alice~", version)),
        authorize("q~", preconditions=at_version("alice~", version + 1)),
    )


def test_of_many_that_decide_on_one_version_one_gets_through(people: Client) -> None:
    """Read, decide, write is safe."""
    version = people.account("alice~").version
    calls = [people.start(authorize(f"p{n}~", 1, preconditions=at_version("alice~", version))) for n in range(20)]
    codes = Counter(each.code() for each in calls)

    assert codes == {StatusCode.OK: 1, StatusCode.ABORTED: 19}


# --- batches ---------------------------------------------------------------------------------------------------------


def test_a_batch_is_done_in_order_and_each_command_sees_those_before(client: Client) -> None:
    """From nothing to a refund in one call; the answers are in the order of the commands."""
    requests = [
        opening("bank~", kind=ACCOUNT_KIND_EXTERNAL),
        opening("alice~"),
        opening("shop~"),
        authorize("early~"),
        transfer("fund~", leg("bank~", "alice~", 20_00)),
        authorize("p~"),
        authorize("p~"),
        authorize("p~", 9_00),
        increment("p~", "i", 15_00),
        capture("p~", "c", amount=eur(12_00)),
        refund("p~", "r", amount=eur(2_00)),
        authorize("q~", 1_00),
        void("q~"),
        limit("alice~", eur(1_00)),
        freeze("shop~"),
        unfreeze("shop~"),
        capture("early~"),
        opening("bob~"),
        close("bob~"),
    ]
    response = client(batch(*requests))

    results = [result_of(response, number) for number in range(len(requests))]
    assert [each.WhichOneof("result") for each in response.results] == [
        "error" if number in (7, 16) else COMMAND_NAMES[each.DESCRIPTOR.full_name]
        for number, each in enumerate(requests)
    ]
    assert results[3].payment.state == PAYMENT_STATE_DECLINED
    assert results[6] == copied(results[5], replayed=True)
    assert results[7].reason == "ID_ALREADY_USED"
    assert results[16].reason == "PAYMENT_DECLINED"
    positions = [each.position for number, each in enumerate(results) if number not in (6, 7, 16)]
    assert positions == sorted(set(positions))
    assert response.position == positions[-1]
    assert client.balance("alice~").available == 20_00 - 12_00 + 2_00 + 1_00


def test_results_of_one_payment_each_show_it_as_it_was_right_after_them(people: Client) -> None:
    """As single calls would, in whatever order: each lists the changes up to its own, and none of those after it."""
    requests = [
        authorize("p~", 9_00),
        increment("p~", "i", 10_00),
        capture("p~", "c", amount=eur(4_00), keep_remainder=True),
        refund("p~", "r", amount=eur(1_00)),
        capture("p~", "d", amount=eur(2_00), keep_remainder=True),
        void("p~", reason="sold out"),
        refund("p~", "s"),
    ]
    together = people(batch(*requests, authorize("q~", 1_00)))
    backwards = people(batch(*reversed(requests)))

    first = [result_of(together, number) for number in range(len(requests))]
    listed = [(len(each.payment.increments), len(each.payment.captures), len(each.payment.refunds)) for each in first]
    assert listed == [(0, 0, 0), (1, 0, 0), (1, 1, 0), (1, 1, 1), (1, 2, 1), (1, 2, 1), (1, 2, 2)]
    assert [each.payment.void_reason for each in first] == [""] * 5 + ["sold out"] * 2
    replays = [copied(each, replayed=True) for each in first]
    assert [people(each) for each in requests] == replays
    assert [result_of(backwards, number) for number in range(len(requests))] == replays[::-1]
    assert people.payment("p~") == first[-1].payment


def test_in_an_independent_batch_a_failure_is_its_own_affair(people: Client) -> None:
    """INDEPENDENT is what an unset mode means."""
    for number, mode in enumerate((0, BATCH_MODE_INDEPENDENT)):
        response = people(
            batch(
                authorize("", 1),
                authorize(f"{number}a~", 1),
                capture("none~"),
                authorize(f"{number}b~", MOST),
                authorize(f"{number}c~", 1),
                mode=mode,
            )
        )
        assert [each.WhichOneof("result") for each in response.results] == [
            "error",
            "authorize_payment",
            "error",
            "authorize_payment",
            "authorize_payment",
        ]
        assert people.payment(f"{number}c~").state == PAYMENT_STATE_AUTHORIZED


FAILURES: Final = [
    # What fails in the middle of an atomic batch, its status and its reason.
    (capture("none~"), StatusCode.NOT_FOUND, "PAYMENT_NOT_FOUND"),
    (authorize("", 1), StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
    (authorize("declined~", 10**12), StatusCode.FAILED_PRECONDITION, "INSUFFICIENT_FUNDS"),
    (transfer("declined~", leg("alice~", "shop~", 10**12)), StatusCode.FAILED_PRECONDITION, "INSUFFICIENT_FUNDS"),
    (authorize("was-declined~", 10**12), StatusCode.FAILED_PRECONDITION, "INSUFFICIENT_FUNDS"),
    (authorize("to-closed~", 1, payee_account_id="closed~"), StatusCode.FAILED_PRECONDITION, "ACCOUNT_CLOSED"),
    (authorize("new~", preconditions=at_version("shop~", 9)), StatusCode.ABORTED, "VERSION_MISMATCH"),
    (authorize("p~", 7), StatusCode.ALREADY_EXISTS, "ID_ALREADY_USED"),
    (authorize("new~", effective_at=TOMORROW), StatusCode.INVALID_ARGUMENT, "EFFECTIVE_AT_IN_FUTURE"),
]


@pytest.mark.parametrize(("failing", "code", "reason"), FAILURES, ids=[each[2] for each in FAILURES])
def test_an_atomic_batch_is_all_or_nothing(
    failing: Message, code: StatusCode, reason: str, people: Client, log: psycopg.Connection[Any]
) -> None:
    """The first that failed says why, all others were aborted by it; nothing is recorded, and no id is used up."""
    people.do(opening("closed~"), close("closed~"), authorize("p~", 1))
    people(authorize("was-declined~", 10**12))
    head = head_of(log)
    good = [authorize("a~", 1), capture("a~"), transfer("b~", leg("alice~", "shop~", 1))]

    response = people(batch(*good[:2], failing, good[2], mode=BATCH_MODE_ATOMIC))

    results = [result_of(response, number) for number in range(4)]
    aborted = Refused(StatusCode.ABORTED, "BATCH_ABORTED", {"failed": "2"})
    assert results[:2] + results[3:] == [aborted] * 3
    assert results[2][:2] == (code, reason)
    assert response.position == 0
    assert not recorded_since(log, head)
    people.do(*good)


def test_a_decline_in_an_atomic_batch_says_whose_it_is(people: Client) -> None:
    """As an error it has no payment or transfer to look at: account, leg and reason are in its details."""
    short = [leg("bank~", "alice~", 1), leg("shop~", "bank~", 1)]
    reason = {"decline_reason": "INSUFFICIENT_FUNDS"}
    cases: list[tuple[Message, dict[str, str]]] = [
        (authorize("p~", MOST), {"account_id": people.name("alice~"), **reason}),
        (transfer("t~", *short), {"account_id": people.name("shop~"), "declined_leg": "1", **reason}),
    ]
    for request, metadata in cases:
        declined = result_of(people(batch(request, mode=BATCH_MODE_ATOMIC)), 0)
        assert declined == Refused(StatusCode.FAILED_PRECONDITION, "INSUFFICIENT_FUNDS", metadata)


def test_of_two_failures_in_an_atomic_batch_the_first_is_told(people: Client) -> None:
    """All others have ABORTED, other failures too."""
    for failing in (capture("none~"), authorize("", 1)):
        response = people(batch(authorize("a~", 1), failing, failing, mode=BATCH_MODE_ATOMIC))
        reasons = [result_of(response, number).reason for number in range(3)]
        assert reasons[0] == reasons[2] == "BATCH_ABORTED"
        assert reasons[1] != "BATCH_ABORTED"


def test_an_atomic_batch_stands_together_in_the_log(people: Client, log: psycopg.Connection[Any]) -> None:
    """One append: one time, and positions without a gap. Sent again, all of it is a replay; a replay counts as done."""
    requests = [authorize("a~", 1), capture("a~"), transfer("b~", leg("alice~", "shop~", 1)), opening("bob~")]
    before = head_of(log)
    response = people(batch(*requests, mode=BATCH_MODE_ATOMIC))
    again = people(batch(*requests, authorize("c~", 1), mode=BATCH_MODE_ATOMIC))

    results = [result_of(response, number) for number in range(4)]
    assert [each.position - before for each in results] == [2, 5, 8, 9]
    assert len({each.recorded_at.ToNanoseconds() for each in results}) == 1
    replays = [result_of(again, number) for number in range(5)]
    assert replays[:4] == [copied(each, replayed=True) for each in results]
    assert not replays[4].replayed


def test_a_batch_that_can_not_be_one_is_refused_as_a_whole(client: Client) -> None:
    """Empty, too many commands or legs, an unknown mode or ledger."""
    one = opening("alice~")
    thousand = [leg("a", "b", 1)] * 1_000
    legs = [transfer(f"t{number}~", *thousand) for number in range(20)]
    cases: list[tuple[Any, str]] = [
        (batch(), "commands"),
        (batch(mode=BATCH_MODE_ATOMIC), "commands"),
        (batch(*[one] * 5_001), "commands"),
        (batch(*[one] * 2_001, mode=BATCH_MODE_ATOMIC), "commands"),
        (batch(*legs, transfer("one-more~", leg("a", "b", 1))), "commands"),
        (batch(one, mode=7), "mode"),
        (batch(one, mode=-1), "mode"),
    ]
    for request, field in cases:
        refused = client.refuses(request)
        assert refused == Refused(StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", {}, (field,))
    assert not client(opening("alice~")).replayed


def test_what_belongs_to_the_batch_is_refused_inside_it(client: Client) -> None:
    """A command has no ledger and no validate_only of its own, and it must be one."""
    client.do(opening("alice~"))
    for request in SOUND:
        name = COMMAND_NAMES[request.DESCRIPTOR.full_name]
        response = client(batch(copied(request, ledger="main"), copied(request, validate_only=True)))
        for number, field in enumerate(("ledger", "validate_only")):
            path_ = f"commands[{number}].{name}.{field}"
            refused = result_of(response, number)
            assert refused == Refused(StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", {}, (path_,))
    empty = client(ExecuteBatchRequest(commands=[BatchCommand()]))
    assert result_of(empty, 0) == Refused(StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", {}, ("commands[0]",))


def test_the_largest_batches_are_taken(client: Client, log: psycopg.Connection[Any]) -> None:
    """5,000 commands, 2,000 in one append, and 20,000 legs; each is answered in its place."""
    names = [f"a{number}~" for number in range(5_000)]
    opened = client(batch(*(opening(name, kind=ACCOUNT_KIND_EXTERNAL) for name in names)))
    assert [each.open_account.account.account_id for each in opened.results] == list(map(client.name, names))
    positions = [each.open_account.position for each in opened.results]
    assert positions == list(range(positions[0], positions[0] + 5_000))

    paid = client(
        batch(
            *(authorize(name, 1, payer_account_id=name, payee_account_id="a0~") for name in names[1:2_001]),
            mode=BATCH_MODE_ATOMIC,
        )
    )
    states = {each.authorize_payment.payment.state for each in paid.results}
    assert states == {PAYMENT_STATE_AUTHORIZED}

    legs = [leg("a0~", f"a{number}~", 1) for number in range(1, 1_001)]
    moved = client(batch(*(transfer(f"t{number}~", *legs) for number in range(20)), validate_only=True))
    assert {each.post_transfer.transfer.state for each in moved.results} == {TRANSFER_STATE_POSTED}
    last = moved.results[-1].post_transfer.balances
    assert {each.account_id: each.posted for each in last}[client.name("a0~")] == -20_000


def test_single_commands_go_between_the_parts_of_a_large_batch(people: Client) -> None:
    """An independent batch may become several appends, and others need not wait for all of it."""
    large = people.start(batch(*(opening(f"a{number}~") for number in range(5_000))))
    small = people(opening("small~"))
    results = [result_of(large.result(), number) for number in range(5_000)]

    assert results[-1].position > small.position
    assert all(not each.replayed for each in results)


# --- dry runs --------------------------------------------------------------------------------------------------------

DRY_RUNS: Final = [
    opening("new~", credit_limit=eur(3)),
    limit("alice~", eur(50)),
    freeze("alice~", scope=FREEZE_SCOPE_CREDITS),
    unfreeze("frozen~"),
    close("frozen~"),
    authorize("new~", 3_00),
    authorize("declined~", MOST),
    increment("p~", "i", 12_00),
    capture("p~", "c", amount=eur(4_00)),
    void("p~"),
    refund("q~", "r"),
    transfer("new~", leg("bank~", "alice~", 1), leg("alice~", "shop~", 2), leg("bank~", "frozen2~", 1)),
    transfer("declined~", leg("alice~", "shop~", MOST)),
]
TOUCHED: Final = [
    ["new~"],
    ["alice~"],
    ["alice~"],
    ["frozen~"],
    ["frozen~"],
    *[["alice~", "shop~"]] * 6,
    ["alice~", "bank~", "frozen2~", "shop~"],
    ["alice~", "shop~"],
]


@pytest.mark.parametrize(
    ("request_", "touched"),
    [
        pytest.param(request, touched, id=f"{number}-{request.DESCRIPTOR.name}")
        for number, (request, touched) in enumerate(zip(DRY_RUNS, TOUCHED, strict=True))
    ],
)
def test_validate_only_tells_what_would_be(
    request_: Message, touched: list[str], payments: Client, log: psycopg.Connection[Any]
) -> None:
    """The answer is what the real one is then, with the balances that then are; nothing is recorded by it."""
    payments.do(opening("frozen~"), freeze("frozen~"), opening("frozen2~"))
    head = head_of(log)

    dry = payments(copied(request_, validate_only=True))
    in_batch = result_of(payments(batch(request_, validate_only=True)), 0)

    assert not recorded_since(log, head)
    real = payments(request_)
    assert (dry.position, dry.replayed, real.replayed) == (0, False, False)
    assert dry.recorded_at.ToNanoseconds() <= real.recorded_at.ToNanoseconds()
    assert without_times(thing_of(dry)) == without_times(thing_of(real)) == without_times(thing_of(in_batch))
    assert not real.balances
    then = [copied(payments.balance(name), position=None) for name in touched]
    assert list(dry.balances) == list(in_batch.balances) == then


def without_times(thing: Any) -> Any:
    """The account, payment or transfer, its server-made times set to zero."""
    copy = copied(thing)
    for message in (
        copy,
        *getattr(copy, "captures", ()),
        *getattr(copy, "refunds", ()),
        *getattr(copy, "increments", ()),
    ):
        for name in ("opened_at", "authorized_at", "expires_at", "recorded_at", "effective_at"):
            if name in message.DESCRIPTOR.fields_by_name:
                message.ClearField(name)
    return copy


def test_a_dry_run_shows_only_accounts_that_the_command_touches(payments: Client) -> None:
    """Not one that is only named in a precondition."""
    payments.do(opening("bystander~"))
    condition = at_version("bystander~", 1)
    for request, touched in zip(DRY_RUNS, TOUCHED, strict=True):
        if not {"frozen~", "frozen2~"} & set(touched):
            dry = payments(copied(request, validate_only=True, preconditions=condition))
            assert [each.account_id for each in dry.balances] == list(map(payments.name, touched)), brief(request)


@pytest.mark.parametrize("mode", [BATCH_MODE_INDEPENDENT, BATCH_MODE_ATOMIC])
def test_a_dry_run_of_a_batch_sees_its_own_commands_and_leaves_nothing(
    mode: batch_pb2.BatchMode.ValueType, people: Client, log: psycopg.Connection[Any]
) -> None:
    """Each command sees those before it, and no id is used up."""
    requests = [opening("bob~"), transfer("t~", leg("alice~", "bob~", 5)), authorize("p~", 5, payer_account_id="bob~")]
    head = head_of(log)

    response = people.start(batch(*requests, requests[2], validate_only=True, mode=mode)).result()

    results = [result_of(response, number) for number in range(4)]
    assert [each.replayed for each in results] == [False, False, False, True]
    assert [each.available for each in results[2].balances] == [0, 0]
    assert not recorded_since(log, head)
    people.do(*requests)


def test_a_dry_run_gives_no_position_that_is_not_in_the_log(people: Client) -> None:
    """The contract says 0: somebody may wait for it. That holds for replays of what is only dry, too."""
    twice = [opening("bob~"), opening("bob~"), freeze("bob~"), freeze("bob~"), opening("alice~")]

    response = people.start(batch(*twice, validate_only=True)).result()
    single = people.start(opening("alice~", validate_only=True)).result()

    assert [result_of(response, number).position for number in range(5)] == [0] * 5
    assert (response.position, single.position) == (0, 0)


def test_a_dry_run_of_what_was_done_is_a_replay(people: Client) -> None:
    """It says so, and has the balances as they are."""
    people.do(authorize("p~"), capture("p~"))
    fund = transfer("fund~", leg("bank~", "alice~", 100_00))
    for request, touched in (
        (opening("alice~"), ["alice~"]),
        (limit("alice~", eur(0)), ["alice~"]),
        (authorize("p~"), ["alice~", "shop~"]),
        (capture("p~"), ["alice~", "shop~"]),
        (fund, ["alice~", "bank~"]),
    ):
        dry = people.start(copied(request, validate_only=True)).result()
        assert dry.replayed
        assert [each.account_id for each in dry.balances] == list(map(people.name, touched)), brief(request)


# --- reading what you wrote ------------------------------------------------------------------------------------------


def test_every_read_can_wait_for_what_was_written(people: Client) -> None:
    """Right after the write, many times; the answer was read there or later."""
    for number in range(30):
        moved = people(transfer(f"t{number}~", leg("bank~", "alice~", 1)))
        paid = people(authorize(f"p{number}~", 1))
        known = people(GetTransferRequest(transfer_id=f"t{number}~", min_position=moved.position))
        assert known.transfer == moved.transfer
        assert known.position >= moved.position
        read = people(GetPaymentRequest(payment_id=f"p{number}~", min_position=paid.position))
        assert read.payment == paid.payment
        assert read.position >= paid.position
        balance = people(GetAccountBalanceRequest(account_id="alice~", min_position=paid.position))
        assert (balance.balance.posted, balance.balance.reserved) == (100_00 + number + 1, number + 1)
        assert balance.position >= balance.balance.position == paid.position


def test_a_position_that_was_reached_long_ago_does_not_hold_up(people: Client) -> None:
    """Behind is fine: the answer is of now."""
    assert people.account("alice~").posted == 100_00
    for min_position in (0, 1, 2):
        assert people.balance("alice~", min_position=min_position).posted == 100_00


def test_a_position_that_does_not_exist_yet_is_not_waited_for(people: Client) -> None:
    """Nobody knows whether it will ever be: the answer comes at once, and says where the log ends."""
    ahead = people.position + 1_000

    refused = people.refuses(GetAccountRequest(account_id="alice~", min_position=ahead))

    assert refused[:2] == (StatusCode.OUT_OF_RANGE, "POSITION_AHEAD_OF_HEAD")
    assert refused.metadata["min_position"] == str(ahead)
    assert people.position <= int(refused.metadata["head"]) < ahead


def test_a_list_is_read_page_by_page_at_one_position(people: Client) -> None:
    """What is paid between two pages is not on the second, and what was captured between them is as it was."""
    start = people.do(*(authorize(f"p{number}~", 1_00) for number in range(5)))
    asked = {"account_id": "alice~", "page_size": 2, "states": [PAYMENT_STATE_AUTHORIZED]}
    first = people(ListPaymentsRequest(**asked, min_position=start[-1].position))
    people.do(capture("p1~"), authorize("p5~"))
    second = people(ListPaymentsRequest(**asked, page_token=first.next_page_token))
    third = people(ListPaymentsRequest(**asked, page_token=second.next_page_token, min_position=people.position))

    listed = [each.payment_id for page in (first, second, third) for each in page.payments]
    assert listed == [people.name(f"p{number}~") for number in (4, 3, 2, 1, 0)]
    assert {each.position for each in (first, second, third)} == {first.position}
    assert not third.next_page_token
    now = people(ListPaymentsRequest(**asked, min_position=people.position))
    assert [each.payment_id for each in now.payments] == [people.name("p5~"), people.name("p4~")]


def test_every_kind_of_thing_is_listed(people: Client) -> None:
    """Accounts, transfers and the lines of an account, newest first unless asked otherwise."""
    moved = people.do(
        transfer("t1~", leg("alice~", "shop~", 3_00), reference="rent~"),
        transfer("t2~", leg("alice~", "shop~", 4_00)),
        authorize("p~", 5_00, reference="rent~"),
    )
    opened_since = people.account("alice~").opened_at
    accounts = people(ListAccountsRequest(opened_since=opened_since, min_position=moved[-1].position)).accounts
    assert people.name("alice~") in {each.account_id for each in accounts}
    transfers = people(ListTransfersRequest(account_id="shop~")).transfers
    assert [each.transfer_id for each in transfers[:2]] == [people.name("t2~"), people.name("t1~")]
    rent = people(ListEntriesRequest(account_id="alice~", reference="rent~", order=SORT_ORDER_OLDEST_FIRST)).entries
    assert [(each.amount, each.reserved_change) for each in rent] == [(-3_00, 0), (0, 5_00)]
    assert [each.reference for each in rent] == [people.name("rent~")] * 2


def test_a_balance_and_a_payment_as_they_were_known(people: Client) -> None:
    """At a position and at a time, whatever came later; the answer says which position it is as of."""
    authorized = people(authorize("p~", 10_00))
    captured = people(capture("p~"))

    then = people(GetPaymentRequest(payment_id="p~", at_position=authorized.position))
    assert (then.payment, then.position) == (authorized.payment, authorized.position)
    now = people(GetPaymentRequest(payment_id="p~", recorded_at=captured.recorded_at)).payment
    assert now == captured.payment
    before = people(GetAccountBalanceRequest(account_id="alice~", at_position=authorized.position))
    assert (before.balance.reserved, before.position) == (10_00, authorized.position)
    assert people.balance("alice~").reserved == 0


# --- proofs ----------------------------------------------------------------------------------------------------------


def signed_head(client: Client, server: LedgerServer, **request: Any) -> Any:
    """A head whose signature is checked by the server's public key, as an auditor was given it."""
    head = client(GetTreeHeadRequest(**request)).tree_head
    found = read_head(head.signed_note, [server.public_key])
    assert (found.size, found.root) == (head.tree_size, head.root_hash)
    return head


def test_every_event_is_proved_to_be_in_the_signed_log(
    people: Client, server: LedgerServer, log: psycopg.Connection[Any]
) -> None:
    """Checked here from the event's own columns, as an auditor would, against a head that is signed."""
    position = people(authorize("p~")).position
    head = signed_head(people, server, min_position=position)
    assert head.tree_size >= position
    columns = "position, stream, version, topic, recorded_at, state"
    rows = log.execute(
        f"SELECT {columns} FROM events WHERE position > %s - 20 AND position <= %s", (position, position)
    )
    for row in rows.fetchall():
        leaf = leaf_hash(leaf_data(*row[:5], bytes(row[5])))
        proof = people(GetInclusionProofRequest(position=row[0], tree_size=head.tree_size))
        assert proof.leaf_hash == leaf
        verify_inclusion(row[0] - 1, head.tree_size, leaf, proof.hashes, head.root_hash)


def test_every_head_is_consistent_with_those_before(
    people: Client, server: LedgerServer, log: psycopg.Connection[Any]
) -> None:
    """Whoever kept one knows that nothing before it was changed."""
    first = signed_head(people, server, min_position=people(authorize("p~")).position)
    second = signed_head(people, server, min_position=people(capture("p~")).position)
    assert signed_head(people, server, tree_size=first.tree_size) == first
    sizes = [size for (size,) in log.execute("SELECT tree_size FROM tree_heads ORDER BY number").fetchall()]
    for size in {*sizes[:20], *sizes[-20:], first.tree_size}:
        before = signed_head(people, server, tree_size=size)
        proof = people(GetConsistencyProofRequest(first_tree_size=size, second_tree_size=second.tree_size))
        verify_consistency(size, second.tree_size, before.root_hash, second.root_hash, proof.hashes)
    newest = people(GetConsistencyProofRequest(first_tree_size=first.tree_size))
    assert newest.second_tree_size >= second.tree_size


def test_the_tree_answers_what_it_can_not_prove(people: Client) -> None:
    """Sizes that were never signed, and those that are to come."""
    newest = people(GetTreeHeadRequest(min_position=people(authorize("p~")).position)).tree_head.tree_size
    unsigned = people.refuses(GetTreeHeadRequest(tree_size=2**40))
    assert unsigned == Refused(StatusCode.NOT_FOUND, "TREE_HEAD_NOT_FOUND", {"tree_size": str(2**40)})
    for request in (
        GetInclusionProofRequest(position=2**40),
        GetInclusionProofRequest(position=1, tree_size=2**40),
        GetConsistencyProofRequest(first_tree_size=1, second_tree_size=2**40),
        GetConsistencyProofRequest(first_tree_size=2**40),
    ):
        refused = people.refuses(request)
        assert refused[:2] == (StatusCode.OUT_OF_RANGE, "TREE_SIZE_AHEAD_OF_HEAD")
        assert refused.metadata["tree_size"] == str(2**40)
        assert int(refused.metadata["newest"]) >= newest


def test_effective_time_is_for_reports(client: Client) -> None:
    """Balances by effective time count what took effect up to then, inclusive, in whatever order it was recorded."""
    client.do(
        opening("bank~", kind=ACCOUNT_KIND_EXTERNAL),
        opening("alice~", credit_limit=eur(1_00)),
        opening("shop~"),
        transfer("march~", leg("bank~", "alice~", 30_00), effective_at=at(2020, 3)),
        transfer("january~", leg("bank~", "alice~", 10_00), effective_at=at(2020, 1)),
        transfer("february~", leg("alice~", "shop~", 4_00), effective_at=at(2020, 2)),
        transfer("now~", leg("alice~", "shop~", 6_00)),
    )
    client(authorize("p~", 5_00, effective_at=at(2020, 5)))
    client(capture("p~", effective_at=at(2020, 6)))

    def posted(moment: Timestamp) -> int:
        return client.balance("alice~", effective_at=moment).posted

    assert [posted(at(2020, month)) for month in (1, 2, 3, 4, 5, 6)] == [10_00, 6_00, 36_00, 36_00, 36_00, 31_00]
    assert posted(at(2019)) == 0
    assert posted(Timestamp(seconds=at(2020, 3).seconds - 1, nanos=999_999_999)) == 6_00
    assert posted(at(9999)) == client.balance("alice~").posted == 25_00
    january = client.balance("alice~", effective_at=at(2020, 1))
    assert (january.available, january.credit_limit, january.version) == (11_00, 1_00, client.account("alice~").version)


def test_reserved_takes_no_part_in_effective_times(people: Client) -> None:
    """Only posted is as of then; reserved is as known, and available follows from both."""
    people.do(
        authorize("p~", 5_00, effective_at=at(2020, 5)),
        authorize("q~", 7_00, effective_at=at(2020, 7)),
        capture("q~", effective_at=at(2020, 6)),
    )
    people(authorize("now~", 1_00))

    balances = [people.balance("alice~", effective_at=moment) for moment in (at(2020, 4), at(2020, 6), at(9999))]
    posted = people.balance("alice~").posted
    assert [each.reserved for each in balances] == [6_00, 6_00, 6_00]
    assert [each.posted for each in balances] == [0, -7_00, posted]
    assert [each.available for each in balances] == [each.posted - 6_00 for each in balances]


def test_a_sum_by_effective_time_that_no_int64_holds_is_refused_decently(client: Client) -> None:
    """Each balance is within its bound, but back-dated movements can add up to more at a time in between."""
    client.do(opening("vault~", kind=ACCOUNT_KIND_EXTERNAL), opening("rich~"))
    for number in range(10):
        client.do(
            transfer(f"in{number}~", leg("vault~", "rich~", MOST), effective_at=at(2020)),
            transfer(f"out{number}~", leg("rich~", "vault~", MOST), effective_at=at(2022)),
        )
    position = client(opening("last~")).position
    request = GetAccountBalanceRequest(account_id="rich~", effective_at=at(2021), min_position=position)

    refused = client.refuses(request)
    assert refused[:2] == (StatusCode.OUT_OF_RANGE, "BALANCE_NOT_REPRESENTABLE")
    assert client.balance("rich~", effective_at=at(2022)).posted == 0


# --- the log, and what it adds up to ---------------------------------------------------------------------------------


def test_the_log_is_read_as_it_is(people: Client, log: psycopg.Connection[Any]) -> None:
    """Every event of some streams, byte by byte, with filters joined by "and"; the last response says how far it is."""
    people.do(authorize("p~", 10_00), capture("p~", amount=eur(4_00)))
    streams = ["payment/p~", "account/shop~", "account/nobody~"]

    def read(**filters: Any) -> list[tuple[Any, ...]]:
        responses = list(people.stream(ReadEventsRequest(streams=streams, to_position=people.position, **filters)))
        assert responses[-1].position == people.position <= responses[-1].head
        return [
            (each.position, each.stream, each.version, each.topic, each.recorded_at.ToDatetime(UTC), each.state)
            for response in responses
            for each in response.events
        ]

    query = "SELECT position, stream, version, topic, recorded_at, state FROM events WHERE stream = ANY (%s) ORDER BY 1"
    stored = log.execute(query, [list(map(people.name, streams))]).fetchall()
    assert [topic for _, _, _, topic, *_ in stored] == [
        "AccountOpened",
        "PaymentAuthorized",
        "PaymentCaptured",
        "FundsCredited",
    ]
    assert read() == stored
    assert read(topics=["PaymentCaptured", "AccountClosed"]) == stored[2:3]
    assert read(from_position=stored[2][0]) == stored[2:]


def test_a_follower_sees_what_is_written_from_then_on(people: Client) -> None:
    """The first response comes at once, then each command as it is recorded, with the head."""
    call = people.stream(ReadEventsRequest(follow=True, from_position=people.position + 1, streams=["account/alice~"]))
    first = next(call)
    for number in range(20):
        position = people(authorize(f"p{number}~", 1)).position
        events: list[Any] = []
        while not events:
            response = next(call)
            events, head = list(response.events), response.head
        assert [(each.position, each.topic) for each in events] == [(position, "FundsReserved")]
        assert first.head < position <= head
    call.cancel()


def test_a_trial_balance_is_what_the_accounts_say(people: Client) -> None:
    """Totals first, debits equal to credits, then every account; the past can be asked for again."""
    people.do(authorize("p~", 10_00), capture("p~", amount=eur(4_00), keep_remainder=True))
    position = people.position
    people.do(opening("late~"), transfer("t~", leg("bank~", "shop~", 1_00)))

    first, *others = people.stream(GetTrialBalanceRequest(at_position=position))

    assert (first.position, len(first.accounts)) == (position, 0)
    assert first.head >= people.position
    accounts = [each for response in others for each in response.accounts]
    assert [each.account_id for each in accounts] == sorted(each.account_id for each in accounts)
    for total in first.totals:
        those = [each for each in accounts if each.currency_code == total.currency_code]
        assert total.accounts == len(those)
        assert total.debits == total.credits == str(sum(max(0, each.posted) for each in those))
        assert total.reserved == str(sum(each.reserved for each in those))
    mine = {each.account_id: each for each in accounts if each.account_id.endswith(f":{people.tag}")}
    for name in ("bank~", "alice~", "shop~"):
        assert mine.pop(people.name(name)) == people.balance(name, at_position=position)
    assert not mine
    euros = list(people.stream(GetTrialBalanceRequest(currency_code="EUR", min_position=people.position)))
    assert [each.currency_code for each in euros[0].totals] == ["EUR"]
    assert people.name("late~") in {each.account_id for response in euros for each in response.accounts}
    again: GetTrialBalanceResponse = next(people.stream(GetTrialBalanceRequest(at_position=position)))
    assert again.totals == first.totals


# --- correlation, deadlines, sizes -----------------------------------------------------------------------------------


def trailing(call: Any) -> dict[str, str]:
    return dict(call.trailing_metadata() or ())


def correlation_of(log: psycopg.Connection[Any], position: int) -> str:
    """The correlation id of the event at a position."""
    query = "SELECT convert_from(state, 'UTF8')::jsonb ->> 'correlation_id' FROM events WHERE position = %s"
    row = log.execute(query, [position]).fetchone()
    assert row
    return str(row[0])


TRACE: Final = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT: Final = ("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01")


@pytest.mark.parametrize(
    ("metadata", "known_as"),
    [
        ([("x-correlation-id", "order-7/attempt#2")], "order-7/attempt#2"),
        ([("x-correlation-id", "x" * 128)], "x" * 128),
        ([TRACEPARENT], TRACE),
        ([TRACEPARENT, ("x-correlation-id", "mine")], "mine"),
        ([("x-correlation-id", "mine"), TRACEPARENT], "mine"),
        ([("x-correlation-id", "x" * 129)], None),
        ([("x-correlation-id", "two words")], None),
        ([("x-correlation-id", f"card:{VISA}")], None),
        ([("x-correlation-id", f"card:{VISA}"), TRACEPARENT], TRACE),
        ([("x-correlation-id", "")], None),
        ([("traceparent", "00-nonsense")], None),
        # What the standard (https://www.w3.org/TR/trace-context/) calls invalid: many would share such an id.
        ([("traceparent", f"00-{'0' * 32}-00f067aa0ba902b7-01")], None),
        ([("traceparent", f"00-{TRACE}-{'0' * 16}-01")], None),
        ([("traceparent", f"ff-{TRACE}-00f067aa0ba902b7-01")], None),
        ([("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01x")], None),
        ([("traceparent", f"01-{TRACE}-00f067aa0ba902b7-01-more")], TRACE),
        ([], None),
    ],
)
def test_a_correlation_id_is_recorded_and_returned(
    metadata: list[tuple[str, str]], known_as: str | None, people: Client, log: psycopg.Connection[Any]
) -> None:
    """The caller's, if it is one that can be kept, else one of the server's; on every event of the command."""
    call = people.start(authorize("p~"), metadata=metadata)
    position = call.result().position

    returned = trailing(call)["x-correlation-id"]
    assert re.fullmatch(r"[!-~]{1,128}", returned)
    assert correlation_of(log, position) == correlation_of(log, position - 1) == returned
    if known_as is None:
        assert not any(returned in value for _, value in metadata)
    else:
        assert returned == known_as


def test_an_error_comes_with_the_correlation_id_too(world: Client) -> None:
    """It is what a client quotes when it asks about a call that failed, whatever it failed for."""
    metadata = [("x-correlation-id", "order-8")]
    for request in (capture("none~"), authorize("new~", 0), opening("alice~", currency_code="USD")):
        call = world.start(request, metadata=metadata)
        assert call.code() is not StatusCode.OK
        assert trailing(call).get("x-correlation-id") == "order-8", brief(request)


def test_a_stream_comes_with_the_correlation_id_too(world: Client) -> None:
    """Whether it ends well or not."""
    metadata = [("x-correlation-id", "audit-9")]
    for request, code in (
        (ReadEventsRequest(to_position=1), StatusCode.OK),
        (ReadEventsRequest(from_position=-1), StatusCode.INVALID_ARGUMENT),
        (GetTrialBalanceRequest(at_position=1), StatusCode.OK),
        (GetTrialBalanceRequest(ledger="none"), StatusCode.NOT_FOUND),
    ):
        call = world.stream(request, metadata=metadata)
        with suppress(grpc.RpcError):
            assert list(call)
        assert call.code() is code
        assert trailing(call).get("x-correlation-id") == "audit-9", brief(request)


def test_all_commands_of_a_batch_have_its_correlation_id(people: Client, log: psycopg.Connection[Any]) -> None:
    """A batch is one call."""
    call = people.start(batch(opening("a~"), opening("b~")), metadata=[("x-correlation-id", "batch-1")])
    results = [result_of(call.result(), number) for number in range(2)]

    assert {correlation_of(log, each.position) for each in results} == {"batch-1"}
    assert trailing(call)["x-correlation-id"] == "batch-1"


def test_who_acted_is_never_taken_from_metadata(people: Client, log: psycopg.Connection[Any]) -> None:
    """Until callers are known, everybody is anonymous."""
    metadata = [("actor", "root"), ("x-actor", "root"), ("authorization", "Bearer root")]
    position = people.start(opening("a~"), metadata=metadata).result().position

    query = "SELECT convert_from(state, 'UTF8')::jsonb ->> 'actor' FROM events WHERE position = %s"
    assert log.execute(query, [position]).fetchone() == ("anonymous",)


@contextmanager
def turn_held(server: LedgerServer, log: psycopg.Connection[Any]) -> Iterator[Any]:
    """Nobody can append in here. Yields what waits until somebody tries to."""
    with psycopg.connect(dsn_of(log)) as holder:
        holder.execute(f"SELECT FROM ledger_{server.ledger}.log_turn FOR UPDATE")
        query = "SELECT count(*) FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))"

        def somebody_waits() -> bool:
            row = log.execute(query, [holder.info.backend_pid]).fetchone()
            assert row
            return bool(row[0])

        yield lambda: eventually(somebody_waits)
        holder.rollback()


def test_a_call_that_waits_past_its_deadline_is_not_done(
    people: Client, server: LedgerServer, log: psycopg.Connection[Any]
) -> None:
    """A command that is still in the queue when its deadline passes is dropped, and its id is not used up."""
    with turn_held(server, log) as until_somebody_waits:
        first = people.start(authorize("first~"))
        until_somebody_waits()
        late = people.start(authorize("late~"), timeout=0.2)
        late_batch = people.start(batch(opening("late~"), opening("late2~")), timeout=0.2)
        # The server counts from when they arrived: before this is answered, so that the last one's time is over later.
        assert people.refuses(GetPaymentRequest(payment_id="late~")).reason == "PAYMENT_NOT_FOUND"
        last = people.start(authorize("last~"), timeout=0.3)
        assert last.code() is StatusCode.DEADLINE_EXCEEDED
        codes = [late.code(), late_batch.code()]
    after = people(authorize("after~"))

    assert codes == [StatusCode.DEADLINE_EXCEEDED] * 2
    assert first.result().payment.state == PAYMENT_STATE_AUTHORIZED
    assert people.refuses(GetPaymentRequest(payment_id="late~", min_position=after.position)).reason == (
        "PAYMENT_NOT_FOUND"
    )
    assert not events_of(log, people.name("payment/late~"))
    assert not events_of(log, people.name("account/late~"))
    assert not people(authorize("late~")).replayed


def test_a_call_that_is_recorded_past_its_deadline_is_found_by_the_same_request(
    people: Client, server: LedgerServer, log: psycopg.Connection[Any]
) -> None:
    """What is being appended is not cancelled: the answer to the same request again tells, and it is done once."""
    with turn_held(server, log) as until_somebody_waits:
        call = people.start(authorize("p~"), timeout=1.5)
        until_somebody_waits()
        assert call.code() is StatusCode.DEADLINE_EXCEEDED
    again = people(authorize("p~"))

    assert again.replayed
    assert [topic for _, _, topic, _ in events_of(log, people.name("payment/p~"))] == ["PaymentAuthorized"]


def test_a_call_that_is_cancelled_harms_nobody(
    people: Client, server: LedgerServer, log: psycopg.Connection[Any]
) -> None:
    """Whether it was done is told by the same request again, and others are served."""
    with turn_held(server, log) as until_somebody_waits:
        calls = [people.start(authorize(f"p{number}~", 1)) for number in range(20)]
        large = people.start(batch(*(opening(f"a{number}~") for number in range(500))))
        until_somebody_waits()
        for each in (*calls, large):
            assert each.cancel()
    after = people(authorize("after~", 1))
    again = [people(authorize(f"p{number}~", 1)) for number in range(20)]
    people.do(*(opening(f"a{number}~") for number in range(500)))

    assert after.payment.state == PAYMENT_STATE_AUTHORIZED
    assert {each.payment.state for each in again} == {PAYMENT_STATE_AUTHORIZED}
    assert people.balance("alice~").reserved == 21


def test_a_read_that_is_cancelled_harms_nobody(people: Client, log: psycopg.Connection[Any]) -> None:
    """Reads that wait, and reads that share a statement with others."""
    request = GetAccountRequest(account_id="alice~", min_position=people.position)
    calls = [people.start(request) for _ in range(50)]
    for each in calls[::2]:
        each.cancel()
    assert {each.result().account.posted for each in calls[1::2]} == {100_00}
    assert people.balance("alice~").posted == 100_00


def test_a_message_over_the_limit_is_refused(client: Client) -> None:
    """gRPC's own 4 MiB: such a request is not read, and the server goes on."""
    client.do(opening("alice~"))
    request = GetAccountRequest(account_id="x" * (4 << 20))

    with pytest.raises(grpc.RpcError) as raised:
        client(request)

    assert isinstance(raised.value, grpc.Call)
    assert raised.value.code() is StatusCode.RESOURCE_EXHAUSTED
    assert client.account("alice~").version == 1


def test_the_answer_to_a_batch_within_the_limit_reaches_an_ordinary_client(server: LedgerServer, tag: str) -> None:
    """A client with gRPC's usual limit for answers gets that of the largest request that is taken, under 3 MiB."""
    with grpc.insecure_channel(server.address) as channel:
        client = Client(channel, server.ledger, tag)
        client.do(opening("bank~", kind=ACCOUNT_KIND_EXTERNAL), opening("alice~", credit_limit=eur(MOST)))
        note = {"metadata": {"note": "x" * 8_180}, "payee_account_id": "bank~"}
        request = batch(*(authorize(f"p{number:03}~", 1, **note) for number in range(379)))
        assert 0 < (3 << 20) - client.prepared(request).ByteSize() < 50_000

        assert len(client(request).results) == 379
        larger = batch(*(authorize(f"p{number:03}~", 1, **note) for number in range(390)))
        assert client.refuses(larger)[:2] == (StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


# --- a server with other settings ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory, log: psycopg.Connection[Any]) -> Iterator[Client]:
    """A client of a server that takes three commands at once, and whose read models nobody keeps."""
    tag = secrets.token_hex(4)
    ledger = ["--dsn", dsn_of(log), "--ledger", f"test_{tag}"]
    prepare(dsn_of(log), f"test_{tag}")
    settings = {**environment(), "LEDGER_QUEUE_MOST_COMMANDS": "3"}
    command = [*LEDGER, "serve", "--listen", "127.0.0.1:0", "--no-follower", *ledger]
    with (
        (tmp_path_factory.mktemp("narrow") / "server.log").open("w") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=settings) as process,
    ):
        try:
            assert process.stdout
            with grpc.insecure_channel(process.stdout.readline().split()[3]) as channel:
                client = Client(channel, f"test_{tag}", tag)
                eventually(lambda: client.start(opening("ready~")).code() is StatusCode.OK)
                yield client
        finally:
            process.terminate()
    assert process.returncode == 0
    log.execute(f"DROP SCHEMA ledger_test_{tag} CASCADE")


def test_more_commands_than_the_queue_takes_are_refused_with_a_pause(
    narrow: Client, log: psycopg.Connection[Any]
) -> None:
    """At once, with how many wait and how long to pause (which every refusal here is checked for); others go on."""
    calls: list[Any] = []

    def is_full() -> bool:
        """While nothing can be appended, only a refusal answers a call."""
        calls.append(narrow.start(opening(f"full{len(calls)}~")))
        return any(call.done() for call in calls)

    with log.transaction():
        log.execute(f"SELECT FROM ledger_{narrow.ledger}.log_turn FOR UPDATE")
        eventually(is_full)
        refused = [call for call in calls if call.done()]

    full = Refused(StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", {"waiting": "3"})
    assert [refused_by(call.exception()) for call in refused] == [full] * len(refused)
    assert [call.code() for call in calls].count(StatusCode.OK) >= 4
    assert not narrow(opening("full~")).replayed


def test_a_batch_of_more_commands_than_the_queue_takes_is_done_by_a_server_at_rest(narrow: Client) -> None:
    """No pause would ever make room for it."""
    assert len(narrow.do(*(opening(f"large{number}~") for number in range(4)))) == 4


def test_a_read_that_waits_in_vain_names_both_positions(narrow: Client) -> None:
    """It waits for five seconds, then for no longer than the deadline; what need not wait is answered at once."""
    position = narrow(opening("b~")).position

    calls = [
        narrow.start(request)
        for request in (
            GetAccountRequest(account_id="b~", min_position=position),
            GetAccountBalanceRequest(account_id="b~", min_position=position, effective_at=at(2020)),
            GetPaymentRequest(payment_id="b~", min_position=position),
            GetTransferRequest(transfer_id="b~", min_position=position),
        )
    ]
    assert narrow.refuses(GetAccountRequest(account_id="b~")).reason == "ACCOUNT_NOT_FOUND"

    for call in calls:
        error = call.exception()
        metadata = {"position": "0", "min_position": str(position)}
        assert refused_by(error) == Refused(StatusCode.UNAVAILABLE, "READ_MODEL_BEHIND", metadata)


def test_a_tree_that_nobody_signs_is_behind(narrow: Client) -> None:
    """A server without a key has no head to show, and does not keep those waiting who want one."""
    position = narrow(opening("c~")).position
    error = narrow.start(GetTreeHeadRequest(min_position=position), timeout=1).exception()
    assert error is not None
    metadata = {"tree_size": "0", "min_position": str(position)}
    assert refused_by(error) == Refused(StatusCode.UNAVAILABLE, "TREE_BEHIND", metadata)
    assert narrow.refuses(GetTreeHeadRequest()).reason == "TREE_HEAD_NOT_FOUND"


def test_the_log_of_all_this_is_sound(server: LedgerServer, log: psycopg.Connection[Any]) -> None:
    """After everything above: positions and versions without gaps, balanced commands, states that add up."""
    assert check_log(dsn_of(log), server.ledger)
