"""HTTP/2 as far as a gRPC client needs it (RFC 9113, RFC 7541): frames to bytes, bytes to frames, headers to a status.

No header is ever indexed: the client says that its table has no room, so a block means the same wherever it comes, and
the same call is the same bytes each time.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD_BYTES: Final = 9

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITY: Final = 0x20

HEADER_TABLE_SIZE, ENABLE_PUSH, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 1, 2, 4, 5
DEFAULT_WINDOW: Final = 65_535
DEFAULT_MAX_FRAME: Final = 16_384

_HEAD: Final = Struct(">BHBBI")
_SETTING: Final = Struct(">HI")
_MESSAGE: Final = Struct(">BI")

_STATIC_NAMES: Final = {**dict.fromkeys(range(8, 15), ":status"), 31: "content-type"}
_STATIC_STATUS: Final = {8: "200", 9: "204", 10: "206", 11: "304", 12: "400", 13: "404", 14: "500"}
_STATIC_MOST: Final = 61


class BrokenFrames(Exception):
    """The server sent what this client does not understand."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return head(len(payload), kind, flags, stream) + payload


def head(length: int, kind: int, flags: int, stream: int) -> bytes:
    """The nine bytes before a frame's payload."""
    return _HEAD.pack(length >> 16, length & 0xFFFF, kind, flags, stream)


def message(body: bytes) -> bytes:
    """A gRPC message as it stands in DATA: not compressed, its length, the body."""
    return _MESSAGE.pack(0, len(body)) + body


def split(data: bytes) -> tuple[list[tuple[int, int, int, bytes]], bytes]:
    """The whole frames at the start of what came (kind, flags, stream, payload), and the rest."""
    found = []
    start, end = 0, len(data)
    unpack = _HEAD.unpack_from
    while end - start >= HEAD_BYTES:
        high, low, kind, flags, stream = unpack(data, start)
        begin = start + HEAD_BYTES
        stop = begin + (high << 16 | low)
        if stop > end:
            break
        found.append((kind, flags, stream, data[begin:stop]))
        start = stop
    return found, data[start:]


def settings(values: dict[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*each) for each in values.items()))


def parse_settings(payload: bytes) -> dict[int, int]:
    return dict(_SETTING.iter_unpack(payload))


def window_update(stream: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, increment.to_bytes(4, "big"))


# --- header blocks ---------------------------------------------------------------------------------------------------


def request_block(path: str, authority: str, more: dict[str, str]) -> bytes:
    """The header block of every call of an rpc: static entries and literals that are never indexed."""
    block = b"\x83\x86"  # :method POST, :scheme http
    block += b"\x04" + _text(path) + b"\x01" + _text(authority)
    for name, value in {"te": "trailers", "content-type": "application/grpc", **more}.items():
        block += b"\x00" + _text(name) + _text(value)
    return block


def _text(value: str) -> bytes:
    data = value.encode("ascii")
    assert len(data) < 127, "longer texts need an integer of more than one byte"
    return bytes([len(data)]) + data


@lru_cache(4_096)
def parse_block(block: bytes) -> dict[str, str]:
    """The fields of a header block from a server that may not index.

    Only the names matter that a client of ours looks at. A value in Huffman's code (binary details of an error) comes
    back as "". Raises BrokenFrames if an entry of a dynamic table is referred to.
    """
    found: dict[str, str] = {}
    at = 0
    while at < len(block):
        first = block[at]
        if first & 0x80:
            index, at = _integer(block, at, 7)
            if index > _STATIC_MOST:
                raise BrokenFrames("the server indexes headers, though it was told not to")
            found[_static_name(index)] = _STATIC_STATUS.get(index, "")
        elif first & 0xE0 == 0x20:
            _, at = _integer(block, at, 5)
        else:
            index, at = _integer(block, at, 6 if first & 0x40 else 4)
            name = _static_name(index)
            if index == 0:
                name, at = _string(block, at)
            found[name], at = _string(block, at)
    return found


def _static_name(index: int) -> str:
    return _STATIC_NAMES.get(index, f"static {index}")


def _integer(block: bytes, at: int, bits: int) -> tuple[int, int]:
    most = (1 << bits) - 1
    value = block[at] & most
    at += 1
    if value < most:
        return value, at
    shift = 0
    while True:
        more = block[at]
        at += 1
        value += (more & 0x7F) << shift
        shift += 7
        if more < 0x80:
            return value, at


def _string(block: bytes, at: int) -> tuple[str, int]:
    huffman = block[at] & 0x80
    length, at = _integer(block, at, 7)
    return "" if huffman else block[at : at + length].decode("latin-1"), at + length
