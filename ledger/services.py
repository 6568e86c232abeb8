"""The gRPC services: requests in, replies out. A failure leaves here as a status with details, and no other text."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any, Final, TypeAlias

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from ledger.callers import Caller, PermissionDenied
from ledger.committer import Committer
from ledger.domain.commands import Command
from ledger.domain.decisions import Outcome
from ledger.domain.errors import BatchAborted, FieldViolation, InvalidCommand, Refusal
from ledger.domain.payment import Payment
from ledger.exchange import Ended, Exchange, correlation_id_of, ending
from ledger.gate import Call, Gate, Kind
from ledger.grpc_server import Free, Incoming, Take
from ledger.metrics import ServerMetrics
from ledger.permissions import require_permitted
from ledger.replies import batch_response, response_to
from ledger.requests import TO_COMMAND, batch_commands, command_of
from ledger.status import code_of
from ledger.terminal import printable
from ledger.ticket import Mode, Result, Ticket
from ledger.v1 import account_pb2, audit_pb2, batch_pb2, payment_pb2, transfer_pb2

BATCH_MOST_COMMANDS: Final = 5_000
ATOMIC_MOST_COMMANDS: Final = 2_000
BATCH_MOST_LEGS: Final = 20_000
BATCH_MOST_BYTES: Final = 3 * 2**20
"""The answer repeats what was asked and adds to it: from a larger request it would pass gRPC's usual 4 MiB."""

BATCH_MOST_LISTED: Final = 1_000_000
"""Changes of payments in all results: each lists all that its payment has had, which may be a thousand."""

_NAME_SHOWN: Final = 64

_STILL_KNOWN_S: Final = 1.0
"""How often it is looked whether a client is still known that does not read."""


class LedgerNotFound(Refusal):
    """This server has no ledger {ledger!r}."""

    code = "LEDGER_NOT_FOUND"


class AnswerTooLarge(Refusal):
    """It is done, but its results would list {changes} changes of payments, over {most}. Send it in smaller batches."""

    code = "ANSWER_TOO_LARGE"


class ValidationTooLarge(AnswerTooLarge):
    """Its results would list {changes} changes of payments, over {most}. Nothing was recorded: it is only validated."""


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


@dataclass(frozen=True, slots=True)
class _Waiter:
    """Waits for what comes of the commands of a ticket, and replies in the thread that tells it."""

    exchange: Exchange
    respond: Callable[[list[Result]], Message | Refusal]

    def set_result(self, results: list[Result], /) -> None:
        self.exchange.run(lambda: self._end(self.respond(results)))

    def _end(self, response: Message | Refusal) -> None:
        # To raise a refusal, which others may get as well, would tie all that this call holds to it in a circle.
        if isinstance(response, Refusal):
            self.exchange.refuse(response)
        else:
            self.exchange.reply(response)


class Desk:
    """Where requests are taken: finds their ledger, and sees that what comes of them is told.

    Commands are answered by the committer's thread, queries and streams in the event loop that this was made in.
    """

    def __init__(self, ledgers: Mapping[str, Open]) -> None:
        self._ledgers = ledgers
        self._loop = asyncio.get_running_loop()
        self._calls = map("{}-{:x}".format, itertools.repeat(secrets.token_hex(6)), itertools.count(1))

    def ledger(self, name: str, caller: Caller) -> Open:
        """The ledger of that name. Raises LedgerNotPermitted or LedgerNotFound, in that order."""
        name = name or "main"
        caller.require_ledger(name[:_NAME_SHOWN])
        found = self._ledgers.get(name)
        if found is None:
            raise LedgerNotFound(ledger=name[:_NAME_SHOWN])
        return found

    def write(self, request: Any, exchange: Exchange) -> None:
        """A single command."""
        ledger, correlation_id = self._ledger_of(request, exchange)

        def respond(results: list[Result]) -> Message | Refusal:
            (result,) = results
            if isinstance(result, Refusal):
                return result
            response: Message = response_to(request, result)
            return response

        call = exchange.admitted
        commands, waiter = [command_of(request)], _Waiter(exchange, respond)
        ledger.committer.submit(Ticket(commands, waiter, correlation_id, call.caller.name, deadline=call.deadline))

    def batch(self, request: batch_pb2.ExecuteBatchRequest, exchange: Exchange) -> None:
        """Many commands. One that the caller may not give ends an ATOMIC batch, else it is refused in its place."""
        ledger, correlation_id = self._ledger_of(request, exchange)
        call, mode = exchange.admitted, _mode(request)
        _check_size(request, mode)
        commands = _commands(request, call.caller)
        sound = [each for each in commands if not isinstance(each, Refusal)]
        if mode is Mode.ATOMIC and len(sound) < len(commands):
            exchange.reply(batch_response(request, _aborted(commands)))
            return

        def respond(results: list[Result]) -> Message | Refusal:
            # It is made in the committer's thread, for which all others wait.
            if (listed := _listed(results)) > BATCH_MOST_LISTED:
                return (ValidationTooLarge if request.validate_only else AnswerTooLarge)(
                    changes=listed, most=BATCH_MOST_LISTED
                )
            done = iter(results)
            return batch_response(request, [each if isinstance(each, Refusal) else next(done) for each in commands])

        if not sound:
            exchange.reply(batch_response(request, [each for each in commands if isinstance(each, Refusal)]))
            return
        ticket = Ticket(
            sound,
            _Waiter(exchange, respond),
            correlation_id,
            call.caller.name,
            mode=mode,
            validate_only=request.validate_only,
            deadline=call.deadline,
        )
        ledger.committer.submit(ticket)

    def reader(self, name: str) -> Handler:
        """The handler of the query of an rpc."""

        def read(request: Any, exchange: Exchange) -> None:
            ledger, _ = self._ledger_of(request, exchange)
            query = ledger.reads[name]

            async def work() -> None:
                exchange.reply(await query(request, exchange.admitted.time_left_s))

            exchange.go_on(self._loop, work)

        return read

    def streamer(self, name: str) -> Handler:
        """The handler of the stream of an rpc.

        A client that reads slowly is waited for as long as it is known, and what it has not read yet is not made: that
        costs no memory.
        """

        def stream(request: Any, exchange: Exchange) -> None:
            ledger, _ = self._ledger_of(request, exchange)
            begin = ledger.streams[name]

            async def work() -> None:
                call = exchange.admitted
                # However the call ends, what the stream holds is given back right then, not when it is collected.
                async with aclosing(begin(request, call.time_left_s)) as responses:
                    async for response in responses:
                        call.require_still_known()
                        await _send(call, response.SerializeToString())
                exchange.complete()

            exchange.go_on(self._loop, work)

        return stream

    def _ledger_of(self, request: Any, exchange: Exchange) -> tuple[Open, str]:
        """The request's ledger, and its name on every event that comes of it: the caller's, or one of ours."""
        call = exchange.admitted
        correlation_id = correlation_id_of(call.incoming.metadata) or next(self._calls)
        name = request.ledger[:_NAME_SHOWN] or "main"
        exchange.name(correlation_id, name if name.isprintable() else printable(name))
        return self.ledger(request.ledger, call.caller), correlation_id


async def _send(call: Call, message: bytes) -> None:
    """Send one of many messages. Who never reads it would keep the place for ever: it ends with the token as well."""
    sending = asyncio.ensure_future(call.incoming.write(message))
    try:
        while not (await asyncio.wait((sending,), timeout=_STILL_KNOWN_S))[0]:
            call.require_still_known()
    finally:
        sending.cancel()
    await sending


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


def _listed(results: Sequence[Result]) -> int:
    """How many changes of payments the results list."""
    things = [each.thing for each in results if isinstance(each, Outcome)]
    return sum(len(each.history) - 1 for each in things if isinstance(each, Payment))


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

_METHODS: Final[dict[str, MethodDescriptor]] = {
    f"/{service.full_name}/{method.name}": method for service in SERVICES for method in service.methods
}
"""Every rpc of the contract by its path."""

_RPC_OF: Final[dict[str, str]] = {
    field.name: field.message_type.name.removesuffix("Request")
    for field in batch_pb2.BatchCommand.DESCRIPTOR.fields
    if field.message_type is not None
}
"""By the name that a command has in a batch, the rpc that takes it alone."""

Handler: TypeAlias = Callable[[Any, Exchange], None]
"""What answers a request that was let in, in whichever thread and moment."""


def rpcs(desk: Desk, gate: Gate, metrics: ServerMetrics) -> dict[str, Take]:
    """What takes the calls of every rpc of the contract, by its path."""
    return {path: _taker(desk, gate, method, metrics.of_rpc(method.name)) for path, method in _METHODS.items()}


def refuser(gate: Gate, metrics: ServerMetrics) -> Callable[[Incoming], bool]:
    """What refuses calls of the contract before they are read: of strangers, and while there is no room.

    That costs a fifth of what it does later, and no stranger can leave such calls open by never sending a request.
    """
    known = {path: (method.name, _kind(method)) for path, method in _METHODS.items()}
    ended = {rpc: metrics.of_rpc(rpc) for rpc, _ in known.values()}
    full = {kind: ending(gate.full[kind]) for kind in Kind}

    def refuse(incoming: Incoming) -> bool:
        if incoming.path not in known:
            return False
        rpc, kind = known[incoming.path]
        began = perf_counter()
        try:
            caller = gate.identify(incoming)
            if not gate.is_full(kind):
                return False
            require_permitted(caller, rpc)
            code, end = code_of(gate.full[kind]), full[kind]
        except Refusal as refusal:
            code, end = code_of(refusal), ending(refusal)
        ended[rpc](code, perf_counter() - began)
        incoming.end(*end)
        return True

    return refuse


def free_places(gate: Gate) -> dict[str, Free]:
    """How many more calls of an rpc of the contract the gate lets in, by its path."""
    return {path: partial(gate.free, _kind(method)) for path, method in _METHODS.items()}


def _taker(desk: Desk, gate: Gate, method: MethodDescriptor, ended: Ended) -> Take:
    request_class = GetMessageClass(method.input_type)
    is_batch = request_class is batch_pb2.ExecuteBatchRequest
    handler, kind = _handler(desk, method, request_class), _kind(method)

    def take(incoming: Incoming, data: bytes | None) -> None:
        exchange = Exchange(method.name, incoming, ended)

        def begin() -> None:
            request = _parsed(request_class, data)
            commands = len(request.commands) if is_batch and request is not None else 1
            exchange.call = gate.admit(method.name, kind, incoming, commands, is_stream=method.server_streaming)
            if request is None:
                raise InvalidCommand(FieldViolation("", "the bytes are not the request of this rpc"))
            handler(request, exchange)

        exchange.run(begin)

    return take


def _kind(method: MethodDescriptor) -> Kind:
    request_class = GetMessageClass(method.input_type)
    is_command = request_class in TO_COMMAND or request_class is batch_pb2.ExecuteBatchRequest
    return Kind.COMMANDS if is_command else Kind.QUERIES


def _parsed(request_class: type[Message], data: bytes | None) -> Any:
    """The request, or None if the bytes are none."""
    if data is None:
        return None
    try:
        return request_class.FromString(data)
    except DecodeError:
        return None


def _handler(desk: Desk, method: MethodDescriptor, request_class: type[Message]) -> Handler:
    if method.server_streaming:
        return desk.streamer(method.name)
    if request_class in TO_COMMAND:
        return desk.write
    if request_class is batch_pb2.ExecuteBatchRequest:
        return desk.batch
    return desk.reader(method.name)
