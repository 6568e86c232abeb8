"""The gRPC services: requests in, replies out. A failure leaves here as a status with details, and no other text."""

from __future__ import annotations

import asyncio
import itertools
import re
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Final, TypeAlias

import grpc
import grpc.aio
import structlog
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from grpc import StatusCode

from ledger.callers import Caller, PermissionDenied
from ledger.card_numbers import has_card_number
from ledger.committer import Committer
from ledger.domain.commands import Command
from ledger.domain.errors import BatchAborted, FieldViolation, InvalidCommand, Refusal
from ledger.gate import Call, Context, Gate
from ledger.grpc_server import Methods
from ledger.log_output import CALL
from ledger.metrics import ServerMetrics
from ledger.outages import Internal
from ledger.permissions import require_permitted
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

    def ledger(self, name: str, caller: Caller) -> Open:
        """The ledger of that name. Raises LedgerNotPermitted or LedgerNotFound, in that order."""
        name = name or "main"
        caller.require_ledger(name[:_NAME_SHOWN])
        found = self._ledgers.get(name)
        if found is None:
            raise LedgerNotFound(ledger=name[:_NAME_SHOWN])
        return found

    async def write(self, request: Any, call: Call) -> Any:
        """A single command."""
        correlation_id = self._correlate(call, request)
        ledger = self.ledger(request.ledger, call.caller)
        ticket = Ticket([command_of(request)], _waiter(), correlation_id, call.caller.name, deadline=call.deadline)
        (result,) = await self._submit(ledger, ticket)
        if isinstance(result, Refusal):
            raise result
        return response_to(request, result)

    async def batch(self, request: batch_pb2.ExecuteBatchRequest, call: Call) -> batch_pb2.ExecuteBatchResponse:
        """Many commands. One that the caller may not give ends an ATOMIC batch, else it is refused in its place."""
        correlation_id = self._correlate(call, request)
        ledger = self.ledger(request.ledger, call.caller)
        mode = _mode(request)
        _check_size(request, mode)
        commands = _commands(request, call.caller)
        sound = [each for each in commands if isinstance(each, Command)]
        if mode is Mode.ATOMIC and len(sound) < len(commands):
            return batch_response(request, _aborted(commands))
        done: Sequence[Result] = []
        if sound:
            ticket = Ticket(
                sound,
                _waiter(),
                correlation_id,
                call.caller.name,
                mode=mode,
                validate_only=request.validate_only,
                deadline=call.deadline,
            )
            done = await self._submit(ledger, ticket)
        results = iter(done)
        return batch_response(request, [each if isinstance(each, Refusal) else next(results) for each in commands])

    def reader(self, name: str) -> Handler:
        """The handler of the query of an rpc."""

        async def read(request: Any, call: Call) -> Any:
            self._correlate(call, request)
            query = self.ledger(request.ledger, call.caller).reads[name]
            return await query(request, call.time_left_s)

        return read

    def streamer(self, name: str) -> Handler:
        """The handler of the stream of an rpc.

        A client that reads slowly is waited for, and what it has not read yet is not made: that costs no memory.
        """

        async def stream(request: Any, call: Call) -> None:
            self._correlate(call, request)
            begin = self.ledger(request.ledger, call.caller).streams[name]
            # However the call ends, what the stream holds is given back right then, not when it is collected.
            async with aclosing(begin(request, call.time_left_s)) as responses:
                async for response in responses:
                    call.require_still_known()
                    await _write(call.context, response)

        return stream

    async def _submit(self, ledger: Open, ticket: Ticket) -> Sequence[Result]:
        ledger.committer.submit(ticket)
        waiter = ticket.waiter
        assert isinstance(waiter, asyncio.Future)
        results: list[Result] = await waiter
        return results

    def _correlate(self, call: Call, request: Any) -> str:
        """The request's name on every event that comes of it: the caller's, or one of ours; the caller is told.

        What is logged while it is answered bears it as well.
        """
        correlation_id = _correlation_id(call.context) or next(self._calls)
        ledger = request.ledger[:_NAME_SHOWN] or "main"
        CALL.set({"correlation_id": correlation_id, "ledger": ledger, "actor": call.caller.name})
        call.context.set_trailing_metadata(((CORRELATION_ID, correlation_id),))
        return correlation_id


def _waiter() -> asyncio.Future[list[Result]]:
    return asyncio.get_running_loop().create_future()


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


def _commands(request: batch_pb2.ExecuteBatchRequest, caller: Caller) -> list[Command | Refusal]:
    """The commands of a batch in order, or in a command's place why it is none, or not this caller's to give."""
    commands: list[Command | Refusal] = [*batch_commands(request)]
    if caller.roles is None:
        return commands
    for number, each in enumerate(request.commands):
        name = each.WhichOneof("command")
        try:
            if name is not None:
                require_permitted(caller, _RPC_OF[name])
        except PermissionDenied as denied:
            commands[number] = denied
    return commands


def _aborted(commands: Sequence[Command | Refusal]) -> list[Result]:
    """The results of an ATOMIC batch with a command that can't even be decided."""
    failed = next(number for number, each in enumerate(commands) if isinstance(each, Refusal))
    first = commands[failed]
    assert isinstance(first, Refusal)
    return [first if number == failed else BatchAborted(failed=failed) for number in range(len(commands))]


# --- the rpcs --------------------------------------------------------------------------------------------------------

SERVICES: Final[tuple[ServiceDescriptor, ...]] = (
    account_pb2.DESCRIPTOR.services_by_name["AccountService"],
    payment_pb2.DESCRIPTOR.services_by_name["PaymentService"],
    transfer_pb2.DESCRIPTOR.services_by_name["TransferService"],
    batch_pb2.DESCRIPTOR.services_by_name["BatchService"],
    audit_pb2.DESCRIPTOR.services_by_name["AuditService"],
)

_RPC_OF: Final[dict[str, str]] = {
    field.name: field.message_type.name.removesuffix("Request")
    for field in batch_pb2.BatchCommand.DESCRIPTOR.fields
    if field.message_type is not None
}
"""By the name that a command has in a batch, the rpc that takes it alone."""

Handler: TypeAlias = Callable[[Any, Call], Awaitable[Any]]
"""What answers a request that was let in."""

Answer: TypeAlias = Callable[[Any, Context], Awaitable[Any]]
"""What gRPC calls."""


def rpc_handlers(desk: Desk, gate: Gate, metrics: ServerMetrics) -> Methods:
    """A handler for every rpc of the contract, behind the gate."""
    return {
        service.full_name: {method.name: _rpc_handler(desk, gate, method, metrics) for method in service.methods}
        for service in SERVICES
    }


def _rpc_handler(
    desk: Desk, gate: Gate, method: MethodDescriptor, metrics: ServerMetrics
) -> grpc.RpcMethodHandler[Any, Any]:
    request_class = GetMessageClass(method.input_type)
    serialize = GetMessageClass(method.output_type).SerializeToString
    if method.server_streaming:
        streamer = _measured(_guarded(desk.streamer(method.name), gate, method), method.name, metrics)
        return grpc.unary_stream_rpc_method_handler(streamer, _parser(request_class), serialize)
    handler = _measured(_guarded(_handler(desk, method.name, request_class), gate, method), method.name, metrics)
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


def _measured(handler: Answer, rpc: str, metrics: ServerMetrics) -> Answer:
    """The handler, and it is noted with which code each call ended, and how long it took."""
    ended = metrics.of_rpc(rpc)

    async def measured(request: Any, context: Context) -> Any:
        began = perf_counter()
        code: Any = StatusCode.OK  # The stubs take gRPC's for numbers.
        answer = handler(request, context)
        del request  # See `guarded`: nothing else may keep it.
        try:
            return await answer
        except asyncio.CancelledError:
            code = StatusCode.CANCELLED
            raise
        except BaseException:
            code = context.code() or StatusCode.UNKNOWN
            raise
        finally:
            took_s = perf_counter() - began
            ended(code, took_s)
            log.debug("call_ended", rpc=rpc, code=code.name, took_s=round(took_s, 6))

    return measured


def _guarded(handler: Handler, gate: Gate, method: MethodDescriptor) -> Answer:
    """The handler behind the gate, exceptions mapped: refusals to their status, others to INTERNAL without a word."""
    is_batch = method.input_type is batch_pb2.ExecuteBatchRequest.DESCRIPTOR

    async def guarded(request: Any, context: Context) -> Any:
        try:
            commands = len(request.commands) if is_batch and request is not None else 1
            with gate.admit(method.name, context, commands, is_stream=method.server_streaming) as call:
                if request is None:
                    raise InvalidCommand(FieldViolation("", "the bytes are not the request of this rpc"))
                return await handler(request, call)
        except Refusal as refusal:
            end = ending(context, refusal)
        except Exception:
            log.exception("call_failed", request=type(request).__name__)
            end = ending(context, Internal())
        # The exception by which gRPC aborts leads to itself, by way of the context and of this frame: what they hold
        # stays until the collector comes by, which is seldom. A thousand large requests were more than a gigabyte.
        del request
        return await context.abort(*end)

    return guarded


async def _write(context: Context, response: Message) -> None:
    try:
        await context.write(response)
    except grpc.aio.InternalError:
        # The client has gone while it was written to. gRPC says so in either of two ways; this is the other one.
        raise asyncio.CancelledError from None


def ending(context: Context, refusal: Refusal) -> tuple[StatusCode, str, tuple[Any, ...]]:
    """How a call ends that is refused: its status, in words, and with all details. For `context.abort`."""
    status = status_of(refusal)
    details = (("grpc-status-details-bin", status.SerializeToString()),)
    return code_of(refusal), status.message, (*(context.trailing_metadata() or ()), *details)
