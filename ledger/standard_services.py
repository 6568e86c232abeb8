"""gRPC's own services: health, and reflection by gRPC's servicer for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, Final

import structlog
from google.protobuf.message import DecodeError
from grpc import StatusCode
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from ledger.domain.errors import Refusal
from ledger.exchange import ending
from ledger.gate import Gate
from ledger.grpc_server import Incoming, Take

HEALTH: Final = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
REFLECTION: Final = reflection.SERVICE_NAME

_MALFORMED: Final = "the bytes are not the request of this rpc"

_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN: Final = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

_ReflectionServicer: Final[Any] = reflection.aio.ReflectionServicer  # type: ignore[attr-defined]  # the stubs lack it

log = structlog.get_logger(__name__)


class Health:
    """What serves, told to everybody. Made in a running event loop, and used in it alone.

    grpcio's own servicer can't be used: a client that watches and does not read would keep health from ever changing.
    """

    def __init__(self) -> None:
        self._loop: Final = asyncio.get_running_loop()
        self._statuses: Final[dict[str, Any]] = {"": _NOT_SERVING}
        self._changed = asyncio.Event()
        self._is_draining = False

    def set(self, serving: bool, names: Sequence[str]) -> None:
        """Say of some services whether they serve. When draining, none does any more."""
        status = _SERVING if serving and not self._is_draining else _NOT_SERVING
        if any(self._statuses.get(name) != status for name in names):
            self._statuses.update(dict.fromkeys(names, status))
            self._changed.set()
            self._changed = asyncio.Event()

    def drain(self) -> None:
        """Say from now on that nothing serves; whoever watches is told, and the watch ends."""
        self._is_draining = True
        self.set(False, [*self._statuses])

    def rpcs(self) -> dict[str, Take]:
        """What takes its calls, by their path."""
        return {f"/{HEALTH}/Check": self._taker(self._check), f"/{HEALTH}/Watch": self._taker(self._watch)}

    def _taker(self, work: Callable[[Incoming, str], Coroutine[Any, Any, None]]) -> Take:
        def take(incoming: Incoming, data: bytes | None) -> None:
            try:
                request = health_pb2.HealthCheckRequest.FromString(data or b"")
            except DecodeError:
                incoming.end(StatusCode.INVALID_ARGUMENT.value[0], _MALFORMED)
            else:
                _go_on(self._loop, incoming, work(incoming, request.service))

        return take

    async def _check(self, incoming: Incoming, service: str) -> None:
        status = self._statuses.get(service)
        if status is None:
            incoming.end(StatusCode.NOT_FOUND.value[0], "there is no such service")
        else:
            incoming.answer(_health(status))

    async def _watch(self, incoming: Incoming, service: str) -> None:
        told = None
        while True:
            changed, status = self._changed, self._statuses.get(service, _UNKNOWN)
            if status != told:
                await incoming.write(_health(status))
                told = status
            elif self._is_draining:
                incoming.end(StatusCode.UNAVAILABLE.value[0], "this server is shutting down")
                return
            else:
                await changed.wait()


def _health(status: Any) -> bytes:
    data: bytes = health_pb2.HealthCheckResponse(status=status).SerializeToString()
    return data


def reflection_rpcs(services: Sequence[str], gate: Gate) -> dict[str, Take]:
    """The contract, told to every caller who is known: any token will do. Made in a running event loop."""
    loop, servicer = asyncio.get_running_loop(), _ReflectionServicer(services)

    async def answer(incoming: Incoming, data: bytes | None) -> None:
        async for response in servicer.ServerReflectionInfo(_requests(gate, incoming, data), None):
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


async def _requests(gate: Gate, incoming: Incoming, data: bytes | None) -> AsyncIterator[Any]:
    """Raises Unauthenticated or CallersUnavailable: a stream ends with the token that it began with."""
    while data is not None:
        gate.identify(incoming)
        yield reflection_pb2.ServerReflectionRequest.FromString(data)
        data = await incoming.next_message()


def _go_on(loop: asyncio.AbstractEventLoop, incoming: Incoming, work: Coroutine[Any, Any, None]) -> None:
    """Do the rest of a call in an event loop; it is cancelled if the client goes away."""

    async def whole() -> None:
        try:
            await work
        except asyncio.CancelledError:
            incoming.end(StatusCode.CANCELLED.value[0])
        except DecodeError:
            incoming.end(StatusCode.INVALID_ARGUMENT.value[0], _MALFORMED)
        except Refusal as refusal:
            incoming.end(*ending(refusal))
        except Exception:
            log.exception("call_failed", rpc=incoming.path)
            incoming.end(StatusCode.INTERNAL.value[0])

    incoming.go_on(loop, whole())
