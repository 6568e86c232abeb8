"""The gRPC server: one thread takes what gRPC's core has to tell, any thread may answer.

It is made of what `grpc.server` is made of, but for its thread for each call, which would be held until the commit:
here a call is an object that waits. In grpc.aio a call costs seven times as much (docs/performance.md), and more calls
wait unseen than are let in, so that too many can't be refused.

Those parts of grpcio, `grpc._cython.cygrpc`, are not promised to stay as they are: requirements/ pins 1.85.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import grpc
import structlog
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # it has no stubs

Metadata: TypeAlias = tuple[tuple[str, str | bytes], ...]

Take: TypeAlias = Callable[["Incoming", bytes | None], None]
"""Takes a call with its first message, in the server's thread; None if it came without one, or with one too large."""

Refuse: TypeAlias = Callable[["Incoming"], bool]
"""Asked before anything of a call is read: whether it was ended right there."""

Free: TypeAlias = Callable[[], int]
"""How many more calls of an rpc would be let in now."""

_ROOM: Final = 1_000
_ROOM_WHILE_BUSY: Final = 16
"""How many calls of an rpc may lie here until they are taken up; the core cuts off what comes beyond these and its own.

Many for those that come at once. But where more come than are taken up, all that lies here only makes everybody wait:
so what was used up of the room is there again when all is taken up, and until then as many places as there are for
calls to be let in, of which those that are being read will take one each; or few, for them to be refused. Who is
answered may call again at once, and be there before this thread runs again: so it is seen to by whoever answers.
"""

_AT_ONCE: Final = 0.0
"""A deadline that is over."""

_FOR_EVER_S: Final = 1e12
"""The core has a call without a deadline end at the end of its times, which are of 64 bits."""

_LOOK_S: Final = 0.01
_LEAVE_S: Final = 1.0
"""How long calls that were cut off may take to be given up."""

log = structlog.get_logger(__name__)


class Incoming:
    """A call: what came with it, and how it is read, written and ended, from any thread. To be ended once.

    To a client that has gone nothing more is sent, and that is no error.
    """

    __slots__ = ("_begun", "_call", "_deadline", "_keep_room", "_there", "_watched", "metadata", "path")

    def __init__(self, event: Any, there: set[int], path: str, keep_room: Callable[[], None]) -> None:
        """It is among those `there` until nobody holds it any more. `keep_room` is called before it is ended."""
        self._there: Final = there
        there.add(id(self))
        self._call: Final = event.call
        self._deadline: Final[float] = event.call_details.deadline
        self._begun = self._watched = False
        self._keep_room: Final = keep_room
        self.path: Final = path
        """Of its rpc; empty if there is none of the name that it came with."""
        self.metadata: Final[Metadata] = event.invocation_metadata

    def __del__(self) -> None:
        self._there.discard(id(self))

    @property
    def time_left_s(self) -> float | None:
        """Seconds until the client's deadline, not below zero; None if it has none."""
        left_s = self._deadline - time.time()
        return None if left_s > _FOR_EVER_S else max(left_s, 0.0)

    def read(self, then: Callable[[bytes | None], None]) -> None:
        """Have `then` called, in the server's thread, with the next message, or None when there is none any more."""
        self._start((cygrpc.ReceiveMessageOperation(0),), lambda event: then(event.batch_operations[0].message()))

    async def next_message(self) -> bytes | None:
        """The same for a coroutine."""
        loop, future = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()
        self.read(lambda message: _resolve(loop, future, message))
        message: bytes | None = await future
        return message

    async def write(self, message: bytes) -> None:
        """Send one of many messages, and wait until there is room for the next. Cancelled if the client has gone."""
        loop, future = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()
        operations = (*self._beginning(), cygrpc.SendMessageOperation(message, 0))
        self._start(operations, lambda event: _resolve(loop, future, event.success))
        if not await future:
            raise asyncio.CancelledError

    def when_cut_off(self, then: Callable[[], object]) -> None:
        """Have `then` called, in the server's thread, if the client cancels, goes away or has its deadline pass."""
        self._watched = True

        def closed(event: Any) -> None:
            if event.batch_operations[0].cancelled():
                then()

        self._start((cygrpc.ReceiveCloseOnServerOperation(0),), closed)

    def go_on(self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]) -> None:
        """Have the rest of it done in an event loop, from any thread. It is cancelled if the call is cut off."""

        def begin() -> None:
            task = loop.create_task(work)
            # gRPC keeps this, and with it the task, until the call is over.
            self.when_cut_off(lambda: loop.call_soon_threadsafe(task.cancel))

        loop.call_soon_threadsafe(begin)

    def answer(self, message: bytes, trailing: Metadata = ()) -> None:
        """End with OK and the only message."""
        self._finish(cygrpc.SendMessageOperation(message, 0), code=0, words="", trailing=trailing)

    def end(self, code: int, words: str = "", trailing: Metadata = ()) -> None:
        """End with a status and no further message."""
        self._finish(code=code, words=words, trailing=trailing)

    def _finish(self, *message: Any, code: int, words: str, trailing: Metadata) -> None:
        self._keep_room()
        status = cygrpc.SendStatusFromServerOperation(trailing, code, words.encode(), 0)
        closing = () if self._watched else (cygrpc.ReceiveCloseOnServerOperation(0),)
        self._start((*self._beginning(), *message, status, *closing), _ignore)

    def _beginning(self) -> tuple[Any, ...]:
        if self._begun:
            return ()
        self._begun = True
        return (cygrpc.SendInitialMetadataOperation((), 0),)

    def _start(self, operations: tuple[Any, ...], then: Callable[[Any], None]) -> None:
        error = self._call.start_server_batch(operations, then)
        if error:
            raise RuntimeError(f"gRPC's core does not take a step of {self.path!r}: error {error}")


class _Door:
    """Where the calls of one rpc come in, or those of no rpc that there is: their path is empty."""

    __slots__ = ("_ask", "_asked", "_changing", "_free", "path", "reading", "take")

    def __init__(self, path: str, take: Take | None, free: Free, ask: Callable[[_Door], None]) -> None:
        """`ask` asks the core for one call more; it raises ValueError once the server is told to stop."""
        self.path: Final = path
        self.take: Final = take
        self._free: Final = free
        self._ask: Final = ask
        self._asked = 0
        """For how many calls the core was asked that were not taken up yet."""
        self._changing: Final = threading.Lock()

        self.reading: Final[set[Incoming]] = set()
        """Calls that came since all was last taken up, and whose message has yet to: each is as good as let in.

        Whoever has not sent it by the next time that all is taken up is slow, and keeps nobody out.
        """

    def open_wide(self) -> None:
        """All is taken up: have all the room that there is."""
        self.reading.clear()
        self.have(max(_ROOM, self._free()))

    def keep_room(self) -> None:
        """Have the room that there is while calls are there that were not taken up."""
        places = max(_ROOM_WHILE_BUSY, self._free() - len(self.reading))
        if self._asked < places:
            self.have(places)

    def have(self, places: int) -> None:
        """Have room for so many calls, if there is not."""
        with self._changing, suppress(ValueError):  # The server was told to stop.
            while self._asked < places:
                self._ask(self)
                self._asked += 1

    def taken_up(self) -> None:
        """One of the calls that the core was asked for is here."""
        with self._changing:
            self._asked -= 1


class GrpcServer:
    """Serves rpcs by their full path, `/package.Service/Method`; of any other, nothing is read.

    Each rpc has room of its own: where one is flooded, another's calls, and health checks, are still taken up.
    """

    def __init__(
        self,
        rpcs: Mapping[str, Take],
        options: Sequence[tuple[str, Any]],
        refuse: Refuse | None = None,
        free: Mapping[str, Free] = MappingProxyType({}),
    ) -> None:
        """`refuse` is asked of every call to one of the rpcs; `free` says by path how many it would not refuse."""
        self._refuse: Final = refuse
        self._server: Final = cygrpc.Server(tuple(options), False)
        self._events: Final = cygrpc.CompletionQueue()
        self._server.register_completion_queue(self._events)
        for path in rpcs:
            self._server.register_method(path)
        takers: dict[str, Take | None] = {**rpcs, "": None}
        self._doors: Final = [_Door(path, take, free.get(path, _none), self._ask) for path, take in takers.items()]
        self._used: Final[set[_Door]] = set()
        """Those that may have less room than there is after a rest."""
        self._thread: Final = threading.Thread(target=self._serve, name="grpc", daemon=True)
        self._all_ended: Final = threading.Event()
        self._there: Final[set[int]] = set()

    def add_port(self, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
        """Listen there as well; the port that it became. Raises RuntimeError if that can't be."""
        arguments = () if credentials is None else (credentials._credentials,)  # type: ignore[attr-defined]
        port: int = self._server.add_http2_port(address.encode(), *arguments)
        if not port:
            raise RuntimeError(f"can't listen on {address}")
        return port

    def start(self) -> None:
        """Take calls from now on. When this returns, there is room for as many of each rpc as after a rest.

        The core takes calls before: those who waited for it come at once. So all rpcs have the first half of it first.
        """
        self._server.start()
        for door in self._doors:
            door.have(_ROOM // 2)
        for door in self._doors:
            door.open_wide()
        self._thread.start()

    async def stop(self, grace_s: float) -> None:
        """Take no more calls, give those under way `grace_s` to end, then cut them off.

        A call that was cut off, or given up by its client, is over for gRPC's core, whoever has yet to hear of it.
        A step that they took after the core is closed would end the process: so while a call is held by anybody, the
        core is left open, with its thread.
        """
        self._server.shutdown(self._events, lambda _: self._all_ended.set())
        if not await asyncio.to_thread(self._all_ended.wait, grace_s):
            self._server.cancel_all_calls()
        if not await asyncio.to_thread(self._all_ended.wait, _LEAVE_S):
            return
        self._server.destroy()
        give_up = time.monotonic() + _LEAVE_S
        while self._there and time.monotonic() < give_up:
            await asyncio.sleep(_LOOK_S)
        if not self._there:
            self._events.shutdown()
            await asyncio.to_thread(self._thread.join)

    # --- the thread --------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        while True:
            event = self._events.poll(_AT_ONCE)
            if event.completion_type == cygrpc.CompletionType.queue_timeout:
                while self._used:
                    self._used.pop().open_wide()
                event = self._events.poll()
            else:
                self._keep_room()
            if event.completion_type == cygrpc.CompletionType.queue_shutdown:
                return
            try:
                event.tag(event)
            except Exception:
                log.exception("grpc_step_failed")
            # A call that is over must not be kept by what is left here while the next event is waited for.
            del event

    def _keep_room(self) -> None:
        """From any thread. Of every rpc: several share their places, and the next call may be another's."""
        for door in tuple(self._used):
            door.keep_room()

    def _ask(self, door: _Door) -> None:
        called = partial(self._called, door)
        if door.path:
            self._server.request_registered_call(self._events, self._events, door.path, called)
        else:
            self._server.request_call(self._events, self._events, called)

    def _called(self, door: _Door, event: Any) -> None:
        door.taken_up()
        if not event.success:
            return  # The server stops, and a call that was asked for will not come.
        self._used.add(door)
        incoming = Incoming(event, self._there, door.path, self._keep_room)
        take = door.take
        if take is None:
            incoming.end(grpc.StatusCode.UNIMPLEMENTED.value[0], "Method not found!")
        elif self._refuse is None or not self._refuse(incoming):
            door.reading.add(incoming)
            incoming.read(partial(self._read, door, take, incoming))

    @staticmethod
    def _read(door: _Door, take: Take, incoming: Incoming, message: bytes | None) -> None:
        door.reading.discard(incoming)
        take(incoming, message)


def _none() -> int:
    return 0


def _resolve(loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any], result: Any) -> None:
    loop.call_soon_threadsafe(_settle, future, result)


def _settle(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _ignore(_event: Any) -> None:
    """What comes of the last step of a call: it is over, whether the client was still there to see it or not."""
