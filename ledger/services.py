"""The gRPC services: requests in, replies out. A failure leaves here as a status with details, and no other text."""

from __future__ import annotations

import asyncio
import itertools
import re
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final, TypeAlias

import grpc
import grpc.aio
import structlog
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from ledger.card_numbers import has_card_number
from ledger.committer import Committer
from ledger.domain.commands import Command
from ledger.domain.errors import BatchAborted, FieldViolation, InvalidCommand, Refusal
from ledger.grpc_server import Methods
from ledger.outages import Internal
from ledger.replies import batch_response, response_to
from ledger.requests import TO_COMMAND, batch_commands, command_of
from ledger.status import code_of, status_of
from ledger.ticket import Mode, Result, Ticket
from ledger.v1 import account_pb2, audit_pb2, batch_pb2, payment_pb2, transfer_pb2

CORRELATION_ID: Final = "x-correlation-id"
_CORRELATION_ID: Final = re.compile(r"[!-~]{1,128}").fullmatch
_TRACEPARENT: Final = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?"
).fullmatch

BATCH_MOST_COMMANDS: Final = 5_000
ATOMIC_MOST_COMMANDS: Final = 2_000
BATCH_MOST_LEGS: Final = 20_000
BATCH_MOST_BYTES: Final = 3 * 2**20
"""The answer repeats what was asked and adds to it: from a larger request it would pass gRPC's usual 4 MiB."""

_NAME_SHOWN: Final = 64

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

log = structlog.get_logger(__name__)


class LedgerNotFound(Refusal):
    """This server has no ledger {ledger!r}."""

    code = "LEDGER_NOT_FOUND"


Reads: TypeAlias = Mapping[str, Callable[[Any, float | None], Awaitable[Message]]]
"""The queries of one ledger by rpc: each from a request and the seconds that remain for it to the response."""

Streams: TypeAlias = Mapping[str, Callable[[Any, float | None], AsyncGenerator[Message, None]]]
"""The same for rpcs that stream: to one response after the other, each made when the one before is on its way."""


@dataclass(frozen=True, slots=True)
class Open:
    """One ledger that this server serves."""

    committer: Committer
    reads: Reads
    streams: Streams = field(default_factory=dict)


class Desk:
    """Where requests are taken: finds their ledger, waits for what comes of them."""

    def __init__(self, ledgers: Mapping[str, Open]) -> None:
        self._ledgers = ledgers
        self._calls = map("{}-{:x}".format, itertools.repeat(secrets.token_hex(6)), itertools.count(1))

    def ledger(self, name: str) -> Open:
        found = self._ledgers.get(name or "main")
        if found is None:
            raise LedgerNotFound(ledger=name[:_NAME_SHOWN] or "main")
        return found

    async def write(self, request: Any, context: Context) -> Any:
        """A single command."""
        correlation_id = self._correlate(context)
        ledger = self.ledger(request.ledger)
        ticket = Ticket([command_of(request)], _waiter(), correlation_id, deadline=_deadline(context))
        (result,) = await self._submit(ledger, ticket)
        if isinstance(result, Refusal):
            raise result
        return response_to(request, result)

    async def batch(self, request: batch_pb2.ExecuteBatchRequest, context: Context) -> batch_pb2.ExecuteBatchResponse:
        correlation_id = self._correlate(context)
        ledger = self.ledger(request.ledger)
        mode = _mode(request)
        _check_size(request, mode)
        commands = batch_commands(request)
        sound = [each for each in commands if isinstance(each, Command)]
        if mode is Mode.ATOMIC and len(sound) < len(commands):
            return batch_response(request, _aborted(commands))
        done: Sequence[Result] = []
        if sound:
            ticket = Ticket(
                sound,
                _waiter(),
                correlation_id,
                mode=mode,
                validate_only=request.validate_only,
                deadline=_deadline(context),
            )
            done = await self._submit(ledger, ticket)
        results = iter(done)
        return batch_response(request, [each if isinstance(each, Refusal) else next(results) for each in commands])

    def reader(self, name: str) -> Handler:
        """The handler of the query of an rpc."""

        async def read(request: Any, context: Context) -> Any:
            query = self.ledger(request.ledger).reads[name]
            return await query(request, context.time_remaining())

        return read

    def streamer(self, name: str) -> Handler:
        """The handler of the stream of an rpc.

        A client that reads slowly is waited for, and what it has not read yet is not made: that costs no memory.
        """

        async def stream(request: Any, context: Context) -> None:
            self._correlate(context)
            begin = self.ledger(request.ledger).streams[name]
            # However the call ends, what the stream holds is given back right then, not when it is collected.
            async with aclosing(begin(request, context.time_remaining())) as responses:
                async for response in responses:
                    await _write(context, response)

        return stream

    async def _submit(self, ledger: Open, ticket: Ticket) -> Sequence[Result]:
        ledger.committer.submit(ticket)
        waiter = ticket.waiter
        assert isinstance(waiter, asyncio.Future)
        results: list[Result] = await waiter
        return results

    def _correlate(self, context: Context) -> str:
        """The request's name on every event that comes of it: the caller's, or one of ours; the caller is told."""
        correlation_id = _correlation_id(context) or next(self._calls)
        context.set_trailing_metadata(((CORRELATION_ID, correlation_id),))
        return correlation_id


def _waiter() -> asyncio.Future[list[Result]]:
    return asyncio.get_running_loop().create_future()


def _deadline(context: Context) -> float | None:
    remaining = context.time_remaining()
    return None if remaining is None else monotonic() + remaining


def deliver_to(loop: asyncio.AbstractEventLoop) -> Callable[[Sequence[Ticket]], None]:
    """How a committer hands results to futures of an event loop: all of one append in one call."""

    def resolve(tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            waiter = ticket.waiter
            assert isinstance(waiter, asyncio.Future)
            if not waiter.done():
                waiter.set_result(ticket.results)

    def deliver(tickets: Sequence[Ticket]) -> None:
        loop.call_soon_threadsafe(resolve, tickets)

    return deliver


def _correlation_id(context: Context) -> str | None:
    """The caller's name for the request: its x-correlation-id, else the trace id of its traceparent (W3C)."""
    trace_id = None
    for key, value in context.invocation_metadata() or ():
        if key == CORRELATION_ID and isinstance(value, str) and _CORRELATION_ID(value) and not has_card_number(value):
            return value
        if key == "traceparent" and (found := _TRACEPARENT(str(value))):
            trace_id = found[1]
    return trace_id


def _mode(request: batch_pb2.ExecuteBatchRequest) -> Mode:
    if request.mode not in batch_pb2.BatchMode.values():
        raise InvalidCommand(FieldViolation("mode", f"{request.mode} is not a value of this enum"))
    if request.mode == batch_pb2.BATCH_MODE_ATOMIC:
        return Mode.ATOMIC
    return Mode.INDEPENDENT


def _check_size(request: batch_pb2.ExecuteBatchRequest, mode: Mode) -> None:
    most = ATOMIC_MOST_COMMANDS if mode is Mode.ATOMIC else BATCH_MOST_COMMANDS
    if not 1 <= len(request.commands) <= most:
        raise InvalidCommand(FieldViolation("commands", f"must be 1 to {most}, not {len(request.commands)}"))
    if request.ByteSize() > BATCH_MOST_BYTES:
        size = f"must have at most {BATCH_MOST_BYTES} bytes in all, not {request.ByteSize()}"
        raise InvalidCommand(FieldViolation("commands", size))
    legs = sum(len(each.post_transfer.legs) for each in request.commands if each.HasField("post_transfer"))
    if legs > BATCH_MOST_LEGS:
        raise InvalidCommand(FieldViolation("commands", f"must have at most {BATCH_MOST_LEGS} legs in all, not {legs}"))


def _aborted(commands: Sequence[Command | InvalidCommand]) -> list[Result]:
    """The results of an ATOMIC batch with a malformed command."""
    failed = next(number for number, each in enumerate(commands) if isinstance(each, InvalidCommand))
    first = commands[failed]
    assert isinstance(first, InvalidCommand)
    return [first if number == failed else BatchAborted(failed=failed) for number in range(len(commands))]


# --- the rpcs --------------------------------------------------------------------------------------------------------

SERVICES: Final[tuple[ServiceDescriptor, ...]] = (
    account_pb2.DESCRIPTOR.services_by_name["AccountService"],
    payment_pb2.DESCRIPTOR.services_by_name["PaymentService"],
    transfer_pb2.DESCRIPTOR.services_by_name["TransferService"],
    batch_pb2.DESCRIPTOR.services_by_name["BatchService"],
    audit_pb2.DESCRIPTOR.services_by_name["AuditService"],
)

Handler: TypeAlias = Callable[[Any, Context], Awaitable[Any]]


def rpc_handlers(desk: Desk) -> Methods:
    """A handler for every rpc of the contract."""
    return {
        service.full_name: {method.name: _rpc_handler(desk, method) for method in service.methods}
        for service in SERVICES
    }


def _rpc_handler(desk: Desk, method: MethodDescriptor) -> grpc.RpcMethodHandler[Any, Any]:
    request_class = GetMessageClass(method.input_type)
    serialize = GetMessageClass(method.output_type).SerializeToString
    if method.server_streaming:
        streamer = _guarded(desk.streamer(method.name))
        return grpc.unary_stream_rpc_method_handler(streamer, _parser(request_class), serialize)
    handler = _guarded(_handler(desk, method.name, request_class))
    return grpc.unary_unary_rpc_method_handler(handler, _parser(request_class), serialize)


def _parser(request_class: type[Message]) -> Callable[[bytes], Message | None]:
    """Bytes to a request, or None where gRPC would answer an exception with its text."""

    def parse(data: bytes) -> Message | None:
        try:
            return request_class.FromString(data)
        except DecodeError:
            return None

    return parse


def _handler(desk: Desk, name: str, request_class: type[Message]) -> Handler:
    if request_class in TO_COMMAND:
        return desk.write
    if request_class is batch_pb2.ExecuteBatchRequest:
        return desk.batch
    return desk.reader(name)


def _guarded(handler: Handler) -> Handler:
    """The handler, its exceptions mapped: refusals to their status, anything else to INTERNAL without a word of it."""

    async def guarded(request: Any, context: Context) -> Any:
        try:
            if request is None:
                raise InvalidCommand(FieldViolation("", "the bytes are not the request of this rpc"))
            return await handler(request, context)
        except Refusal as refusal:
            await _abort(context, refusal)
        except Exception:
            log.exception("call_failed", request=type(request).__name__)
            await _abort(context, Internal())

    return guarded


async def _write(context: Context, response: Message) -> None:
    try:
        await context.write(response)
    except grpc.aio.InternalError:
        # The client has gone while it was written to. gRPC says so in either of two ways; this is the other one.
        raise asyncio.CancelledError from None


async def _abort(context: Context, refusal: Refusal) -> None:
    status = status_of(refusal)
    details = (("grpc-status-details-bin", status.SerializeToString()),)
    await context.abort(code_of(refusal), status.message, (*(context.trailing_metadata() or ()), *details))
