"""Leaves: an event as the bytes that the tree covers, `ledger/leaf/1` (docs/audit.md)."""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta
from typing import Final

FORMAT: Final = b"ledger/leaf/1"

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)

# Each field with its length before it; of those of fixed length, the length is part of the layout.
_HEAD: Final = struct.Struct(f">I{len(FORMAT)}sIqI")
_VERSION: Final = struct.Struct(">IqI")
_TIME: Final = struct.Struct(">IqI")


def leaf_data(position: int, stream: str, version: int, topic: str, recorded_at: datetime, state: bytes) -> bytes:
    """The data of the leaf of one event: all its columns, each with its length before it."""
    stream_bytes, topic_bytes = stream.encode(), topic.encode()
    return b"".join(
        (
            _HEAD.pack(len(FORMAT), FORMAT, 8, position, len(stream_bytes)),
            stream_bytes,
            _VERSION.pack(8, version, len(topic_bytes)),
            topic_bytes,
            _TIME.pack(8, (recorded_at - _EPOCH) // _MICROSECOND, len(state)),
            state,
        )
    )
