"""One HTTP/2 connection that makes unary gRPC calls from prepared frames, at a small and known price."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias, cast

from bench import frames

OK: Final = 0
UNAVAILABLE: Final = 14

_STREAM_WINDOW: Final = 16 * 2**20
_CONNECTION_WINDOW: Final = 2**31 - 1


@dataclass(slots=True)
class Reply:
    """What came of a call: gRPC's status, its text for people, the message's bytes if there is one."""

    status: int
    text: str
    body: bytes


Done: TypeAlias = Callable[[Reply], None]


class Connection(asyncio.Protocol):
    """Calls go out with `call` and `flush`; each is answered once, by its callback, also when the connection breaks."""

    def __init__(self, gather_s: float = 0.0) -> None:
        """With `gather_s`, replies are taken up so much later, and several at a time: far fewer system calls."""
        self._gather_s = gather_s
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._out: list[bytes] = []
        self._next_stream = 1
        self._waiting: dict[int, Done] = {}
        self._bodies: dict[int, list[bytes]] = {}
        self._headers: tuple[int, int, bytes] | None = None
        self._unsent: deque[tuple[int, bytes]] = deque()
        self._window = frames.DEFAULT_WINDOW
        self._initial_window = frames.DEFAULT_WINDOW
        self._stream_windows: dict[int, int] = {}
        self._max_frame = frames.DEFAULT_MAX_FRAME
        self._to_acknowledge = 0
        self._why_lost = "the connection was closed"

    # --- calls -------------------------------------------------------------------------------------------------------

    def call(self, block: bytes, body: bytes, done: Done) -> None:
        """Begin a call; it leaves with the next `flush`."""
        if self._transport is None or self._transport.is_closing():
            done(Reply(UNAVAILABLE, self._why_lost, b""))
            return
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        self._waiting[stream] = done
        data = frames.message(body)
        self._out += (frames.head(len(block), frames.HEADERS, frames.END_HEADERS, stream), block)
        room = min(self._window, self._initial_window, self._max_frame)
        if len(data) <= room and not self._unsent:
            self._window -= len(data)
            self._out += (frames.head(len(data), frames.DATA, frames.END_STREAM, stream), data)
        else:
            self._stream_windows[stream] = self._initial_window
            self._unsent.append((stream, data))
            self._send_more()

    def flush(self) -> None:
        """Write all that has been begun, in one system call."""
        if self._out and self._transport is not None:
            self._transport.write(b"".join(self._out))
            self._out.clear()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _send_more(self) -> None:
        """Send of the bodies that wait as much as the windows of their streams and of the connection let through."""
        for _ in range(len(self._unsent)):
            stream, data = self._unsent.popleft()
            data = self._send_some(stream, data)
            if data:
                self._unsent.append((stream, data))

    def _send_some(self, stream: int, data: bytes) -> bytes:
        while data:
            room = min(self._window, self._stream_windows[stream], self._max_frame)
            if room <= 0:
                break
            part, data = data[:room], data[room:]
            self._window -= len(part)
            self._stream_windows[stream] -= len(part)
            self._out.append(frames.frame(frames.DATA, 0 if data else frames.END_STREAM, stream, part))
        if not data:
            del self._stream_windows[stream]
        return data

    # --- what comes in -----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its bases
        ours = {frames.HEADER_TABLE_SIZE: 0, frames.ENABLE_PUSH: 0, frames.INITIAL_WINDOW_SIZE: _STREAM_WINDOW}
        grow = frames.window_update(0, _CONNECTION_WINDOW - frames.DEFAULT_WINDOW)
        self._transport.write(frames.PREFACE + frames.settings(ours) + grow)

    def data_received(self, data: bytes) -> None:
        found, self._rest = frames.split(self._rest + data if self._rest else data)
        for kind, flags, stream, payload in found:
            if kind == frames.DATA:
                self._bodies.setdefault(stream, []).append(payload)
                self._to_acknowledge += len(payload)
            elif kind in (frames.HEADERS, frames.CONTINUATION):
                self._take_headers(kind, flags, stream, payload)
            else:
                self._control(kind, flags, stream, payload)
        if self._to_acknowledge > _CONNECTION_WINDOW // 4:
            self._out.append(frames.window_update(0, self._to_acknowledge))
            self._to_acknowledge = 0
        self.flush()
        if self._gather_s and self._waiting and self._transport is not None:
            self._transport.pause_reading()
            asyncio.get_running_loop().call_later(self._gather_s, self._read_on)

    def _read_on(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _take_headers(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == frames.CONTINUATION:
            assert self._headers is not None
            _, first_flags, before = self._headers
            payload, flags = before + payload, first_flags | flags
        elif flags & (frames.PADDED | frames.PRIORITY):
            raise frames.BrokenFrames("padded headers, which no gRPC server sends")
        if not flags & frames.END_HEADERS:
            self._headers = stream, flags, payload
        elif flags & frames.END_STREAM:
            self._finish(stream, payload)

    def _finish(self, stream: int, block: bytes) -> None:
        if stream in self._stream_windows:  # refused before it had all of the body
            self._forget_unsent(stream)
        done = self._waiting.pop(stream, None)
        data = b"".join(self._bodies.pop(stream, ()))
        if done is not None:
            fields = frames.parse_block(block)
            done(Reply(int(fields.get("grpc-status", "2")), fields.get("grpc-message", ""), data[5:]))

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == frames.SETTINGS and not flags & frames.ACK:
            self._take_settings(frames.parse_settings(payload))
        elif kind == frames.PING and not flags & frames.ACK:
            self._out.append(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif kind == frames.WINDOW_UPDATE:
            increment = int.from_bytes(payload, "big")
            if stream == 0:
                self._window += increment
            elif stream in self._stream_windows:
                self._stream_windows[stream] += increment
            self._send_more()
        elif kind == frames.RST_STREAM:
            self._fail(stream, f"the server reset the stream: {int.from_bytes(payload, 'big')}")
        elif kind == frames.GOAWAY:
            self._why_lost = f"the server goes away: {payload[8:].decode('latin-1')}"

    def _take_settings(self, values: dict[int, int]) -> None:
        initial = values.get(frames.INITIAL_WINDOW_SIZE, self._initial_window)
        for stream in self._stream_windows:
            self._stream_windows[stream] += initial - self._initial_window
        self._initial_window = initial
        self._max_frame = values.get(frames.MAX_FRAME_SIZE, self._max_frame)
        self._out.append(frames.frame(frames.SETTINGS, frames.ACK, 0))
        self._send_more()

    def _fail(self, stream: int, why: str) -> None:
        self._forget_unsent(stream)
        self._bodies.pop(stream, None)
        done = self._waiting.pop(stream, None)
        if done is not None:
            done(Reply(UNAVAILABLE, why, b""))

    def _forget_unsent(self, stream: int) -> None:
        self._unsent = deque(each for each in self._unsent if each[0] != stream)
        self._stream_windows.pop(stream, None)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        for stream in list(self._waiting):
            self._fail(stream, str(error or self._why_lost))


async def connected(address: str, gather_s: float = 0.0) -> Connection:
    """A new connection to HOST:PORT."""
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: Connection(gather_s), host.strip("[]"), int(port))
    return connection
