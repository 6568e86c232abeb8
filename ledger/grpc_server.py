"""gRPC's asyncio server, without the fault by which one call stops it for good.

The server of grpcio decodes the name of every method that it does not know as UTF-8, in the loop that takes calls. A
name that isn't UTF-8 ends that loop: the port is closed, every client is cut off, and the process lives on. Anybody who
can connect can send one. So every method that there is is registered with gRPC's core, which tells those apart by their
bytes, and of what is left nothing is decoded: it gets its UNIMPLEMENTED unread.

Seen in grpcio 1.85.1 (`AioServer._server_main_loop`), whose parts are used here; tests/fuzz tells when that changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import grpc
from grpc._cython import cygrpc
from grpc.aio import _server

Methods: TypeAlias = Mapping[str, Mapping[str, "grpc.RpcMethodHandler[Any, Any]"]]
"""By the full name of a service and the name of a method: its handler."""


def grpc_server(methods: Methods, options: Sequence[tuple[str, Any]]) -> Any:
    """A `grpc.aio.Server` of these methods, that can be given more before it starts. Made in a running event loop."""
    server = _Server(options)
    for service, handlers in methods.items():
        server.add_registered_method_handlers(service, dict(handlers))
    return server


class _Server(_server.Server):
    """As grpc.aio makes it, on the core below."""

    def __init__(self, options: Sequence[tuple[str, Any]]) -> None:
        self._loop = asyncio.get_running_loop()
        self._server = _Core(self._loop, None, (), None, tuple(options), None)


class _Core(cygrpc.AioServer):  # type: ignore[misc]
    """Takes calls of each method by a task of its own, and of all that are none by one more.

    The loop that is passed by waits for all methods at once, which costs 200 us a call with thirty of them.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._handlers: dict[str, Any] = {}
        self._answering = set[asyncio.Task[None]]()

    def add_registered_method_handlers(self, handlers: dict[str, Any]) -> None:
        super().add_registered_method_handlers(handlers)
        self._handlers.update(handlers)

    def _make_request_call_future(self, method: bytes | None) -> asyncio.Task[None]:
        """What the loop waits for in place of the next call: it ends when the server stops, with an error."""
        return asyncio.get_running_loop().create_task(self._take(method))

    async def _take(self, method: bytes | None) -> None:
        name, loop = (method or b"").decode(), asyncio.get_running_loop()
        handlers = cygrpc._MethodResolver([], self._handlers)
        while True:
            call = await (self._request_call() if method is None else self._request_registered_call(method))
            answer = cygrpc._handle_rpc(name, handlers, (), call, loop, False)
            answering = loop.create_task(cygrpc._schedule_rpc_coro(answer, call, loop, name))
            self._answering.add(answering)
            answering.add_done_callback(self._answering.discard)
