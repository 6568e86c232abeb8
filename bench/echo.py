"""The floor of a call: a bare grpc.aio + uvloop server that parses each request and makes the reply that is due."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
import grpc.aio
import uvloop
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from ledger.v1 import account_pb2, payment_pb2

_MOMENT = Timestamp(seconds=1_800_000_000, nanos=123_456_000)


Rpc: TypeAlias = tuple[Callable[[Any, Any], Awaitable[Message]], type[Message]]


def _payment(request: payment_pb2.AuthorizePaymentRequest) -> payment_pb2.Payment:
    amount = request.amount.minor_units
    return payment_pb2.Payment(
        payment_id=request.payment_id,
        payer_account_id=request.payer_account_id,
        payee_account_id=request.payee_account_id,
        currency_code=request.amount.currency_code,
        state=payment_pb2.PAYMENT_STATE_AUTHORIZED,
        amount_requested=amount,
        amount_authorized=amount,
        amount_capturable=amount,
        authorized_at=_MOMENT,
        expires_at=_MOMENT,
        effective_at=_MOMENT,
        version=1,
    )


def _serialize(reply: Message) -> bytes:
    return reply.SerializeToString()


async def authorize(request: Any, _context: Any) -> Message:
    return payment_pb2.AuthorizePaymentResponse(payment=_payment(request), position=1_000_000, recorded_at=_MOMENT)


async def get_payment(request: Any, _context: Any) -> Message:
    asked = payment_pb2.AuthorizePaymentRequest(
        payment_id=request.payment_id, payer_account_id="customer-0000001", payee_account_id="shop"
    )
    return payment_pb2.GetPaymentResponse(payment=_payment(asked), position=1_000_000)


async def get_balance(request: Any, _context: Any) -> Message:
    balance = account_pb2.AccountBalance(
        account_id=request.account_id,
        currency_code="EUR",
        posted=10**11,
        reserved=12_345,
        available=10**11 - 12_345,
        version=100,
        position=1_000_000,
    )
    return account_pb2.GetAccountBalanceResponse(balance=balance)


async def serve() -> None:
    """Listen on a free port, print it, and answer until killed."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    rpcs: dict[str, dict[str, Rpc]] = {
        "PaymentService": {
            "AuthorizePayment": (authorize, payment_pb2.AuthorizePaymentRequest),
            "GetPayment": (get_payment, payment_pb2.GetPaymentRequest),
        },
        "AccountService": {"GetAccountBalance": (get_balance, account_pb2.GetAccountBalanceRequest)},
    }
    for service, methods in rpcs.items():
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(handler, request.FromString, _serialize)
            for name, (handler, request) in methods.items()
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(f"ledger.v1.{service}", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"echo: serving on 127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(serve())
