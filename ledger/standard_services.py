"""gRPC's own services, health and reflection: its servicers for asyncio, on our server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final

import structlog
from google.protobuf.message import DecodeError, Message
from grpc import StatusCode
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from ledger.domain.errors import Refusal
from ledger.exchange import ending
from ledger.gate import Gate
from ledger.grpc_server import Incoming, Take

HEALTH: Final = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
REFLECTION: Final = reflection.SERVICE_NAME

# The stubs lack them.
HealthServicer: Final[Any] = health.aio.HealthServicer  # type: ignore[attr-defined]
_ReflectionServicer: Final[Any] = reflection.aio.ReflectionServicer  # type: ignore[attr-defined]

log = structlog.get_logger(__name__)


def health_rpcs(servicer: Any) -> dict[str, Take]:
    """Health, told to everybody. Made in a running event loop, in which it is answered."""
    loop = asyncio.get_running_loop()

    async def check(incoming: Incoming, request: Message) -> None:
        response = await servicer.Check(request, _Context(incoming))
        incoming.answer(response.SerializeToString())

    async def watch(incoming: Incoming, request: Message) -> None:
        await servicer.Watch(request, _Context(incoming))

    def taker(work: Callable[[Incoming, Message], Awaitable[None]]) -> Take:
        def take(incoming: Incoming, data: bytes | None) -> None:
            try:
                request = health_pb2.HealthCheckRequest.FromString(data or b"")
            except DecodeError:
                incoming.end(StatusCode.INVALID_ARGUMENT.value[0], "the bytes are not the request of this rpc")
            else:
                _go_on(loop, incoming, work(incoming, request))

        return take

    return {f"/{HEALTH}/Check": taker(check), f"/{HEALTH}/Watch": taker(watch)}


def reflection_rpcs(services: Sequence[str], gate: Gate) -> dict[str, Take]:
    """The contract, told to every caller who is known: any token will do. Made in a running event loop."""
    loop, servicer = asyncio.get_running_loop(), _ReflectionServicer(services)

    async def answer(incoming: Incoming, data: bytes | None) -> None:
        async for response in servicer.ServerReflectionInfo(_requests(incoming, data), None):
            await incoming.write(response.SerializeToString())
        incoming.end(0)

    def take(incoming: Incoming, data: bytes | None) -> None:
        try:
            gate.identify(incoming)
        except Refusal as refusal:
            incoming.end(*ending(refusal))
        else:
            _go_on(loop, incoming, answer(incoming, data))

    return {f"/{REFLECTION}/ServerReflectionInfo": take}


async def _requests(incoming: Incoming, data: bytes | None) -> AsyncIterator[Any]:
    while data is not None:
        yield reflection_pb2.ServerReflectionRequest.FromString(data)
        data = await incoming.next_message()


class _Aborted(Exception):
    def __init__(self, code: Any) -> None:
        super().__init__()
        self.number: Final[int] = code.value[0]


class _Context:
    """As much of grpc.aio's context as gRPC's servicers ask for."""

    def __init__(self, incoming: Incoming) -> None:
        self._incoming: Final = incoming

    async def write(self, response: Message) -> None:
        await self._incoming.write(response.SerializeToString())

    async def abort(self, code: StatusCode) -> None:
        raise _Aborted(code)


def _go_on(loop: asyncio.AbstractEventLoop, incoming: Incoming, work: Any) -> None:
    """Do the rest of a call in an event loop; it is cancelled if the client goes away."""

    async def whole() -> None:
        try:
            await work
        except asyncio.CancelledError:
            incoming.end(StatusCode.CANCELLED.value[0])
        except _Aborted as aborted:
            incoming.end(aborted.number)
        except DecodeError:
            incoming.end(StatusCode.INVALID_ARGUMENT.value[0], "the bytes are not the request of this rpc")
        except Exception:
            log.exception("call_failed", rpc=incoming.method.decode(errors="replace"))
            incoming.end(StatusCode.INTERNAL.value[0])

    def begin() -> None:
        task = loop.create_task(whole())
        incoming.when_cut_off(lambda: loop.call_soon_threadsafe(task.cancel))

    loop.call_soon_threadsafe(begin)
