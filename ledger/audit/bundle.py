"""Writing a bundle: the whole history of a ledger in one file, as docs/audit.md specifies `bundle/1`.

`contrib/verify_bundle.py` reads it, and shares no line with this.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from binascii import b2a_base64
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, BinaryIO, Final, Self, TypeAlias

FORMAT: Final = "bundle/1"
PART_LEAST_BYTES: Final = 2**23
"""A part ends with the line that brings its lines to this size."""

COMPRESSION_LEVEL: Final = 6
_GZIP: Final = 31
_BLOCK_BYTES: Final = 512

Row: TypeAlias = tuple[int, str, int, str, int, bytes]
"""A row of the log: position, stream, version, topic, recorded_at in microseconds since 1970, state."""

_canonical: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode
_text: Final = json.JSONEncoder(ensure_ascii=False).encode


def _canonical_line(fields: dict[str, Any]) -> bytes:
    """A line of JSON in its one form: whoever writes the same writes the same bytes."""
    return f"{_canonical(fields)}\n".encode()


def event_line(row: Row) -> bytes:
    """A row of the log as a line, made faster than by the encoder and of the same bytes: the keys are in order."""
    position, stream, version, topic, recorded_at, state = row
    return (
        f'{{"position":{position},"recorded_at":{recorded_at},"state":"{b2a_base64(state, newline=False).decode()}",'
        f'"stream":{_text(stream)},"topic":{_text(topic)},"version":{version}}}\n'
    ).encode()


class BundleWriter:
    """Writes a bundle from its first byte to its last, in memory that doesn't grow with it.

    A part is compressed in a thread while the next one is made.
    """

    def __init__(self, file: BinaryIO, public_keys: Sequence[str], *, part_least_bytes: int = PART_LEAST_BYTES) -> None:
        """`public_keys` in their text form, in the order in which they were introduced."""
        self._file = file
        self._part_least_bytes = part_least_bytes
        self._members: list[dict[str, Any]] = []
        self._lines: list[bytes] = []
        self._bytes = 0
        self._parts = 0
        self._compressor = ThreadPoolExecutor(1, "bundle-compressor")
        self._compressed: Future[bytes] | None = None
        self._size = 0
        self._head = ""
        self._add_member("keys.txt", "".join(f"{key}\n" for key in public_keys).encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._compressor.shutdown()

    def add_events(self, rows: Iterable[Row]) -> None:
        """The next events."""
        for row in rows:
            self._add_line(event_line(row))
            self._size += 1

    def add_head(self, note: str) -> None:
        """A signed head of just the events so far; or of more, of which the break that has to follow says why."""
        self._add_line(_canonical_line({"head": note}))
        self._head = note

    def add_break(self, note: str) -> None:
        """A signed break, from which the log goes on with the events so far."""
        self._add_line(_canonical_line({"break": note}))

    def end(self, ledger: str) -> None:
        """Write what is left, and the manifest. The last head has to be of all events."""
        self._end_part()
        self._await_part()
        facts = {
            "format": FORMAT,
            "head": self._head,
            "ledger": ledger,
            "members": self._members,
            "origin": self._head.partition("\n")[0],
            "size": self._size,
        }
        manifest = _canonical_line(facts)
        self._add_member("manifest.json", manifest)
        self._add_member("manifest.sha256", f"{hashlib.sha256(manifest).hexdigest()}  manifest.json\n".encode())
        self._file.write(bytes(2 * _BLOCK_BYTES))

    def _add_line(self, line: bytes) -> None:
        self._lines.append(line)
        self._bytes += len(line)
        if self._bytes >= self._part_least_bytes:
            self._end_part()

    def _end_part(self) -> None:
        if not self._lines:
            return
        self._await_part()
        self._compressed = self._compressor.submit(_compressed, self._lines)
        self._lines, self._bytes = [], 0

    def _await_part(self) -> None:
        if self._compressed is not None:
            self._parts += 1
            self._add_member(f"part-{self._parts:06}.jsonl.gz", self._compressed.result())
            self._compressed = None

    def _add_member(self, name: str, content: bytes) -> None:
        self._file.write(_tar_header(name, len(content)))
        self._file.write(content)
        self._file.write(bytes(-len(content) % _BLOCK_BYTES))
        self._members.append({"bytes": len(content), "name": name, "sha256": hashlib.sha256(content).hexdigest()})


def _compressed(lines: Sequence[bytes]) -> bytes:
    # Unlike those of the module gzip, zlib's own headers are the same in every version of Python.
    deflater = zlib.compressobj(COMPRESSION_LEVEL, zlib.DEFLATED, _GZIP)
    return deflater.compress(b"".join(lines)) + deflater.flush()


def _tar_header(name: str, size: int) -> bytes:
    """A header of POSIX ustar, with nothing of the machine or the time that it was written at."""
    before = name.encode().ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" % size + b"0" * 11 + b"\0"
    after = b"0".ljust(101, b"\0") + b"ustar\x0000"
    checksum = b"%06o\0 " % sum(before + b" " * 8 + after)
    return (before + checksum + after).ljust(_BLOCK_BYTES, b"\0")
