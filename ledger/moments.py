"""Moments as people and files write them: RFC 3339, with a zone."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from ledger.terminal import quoted

# datetime.fromisoformat reads more than that: dates alone, week dates, times without a zone.
_RFC_3339: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})", re.ASCII
)


class MalformedMoment(ValueError):
    """The text is not a moment."""


def parse_moment(text: str) -> Timestamp:
    """The moment that an RFC 3339 text names, cut to the microsecond. Raises MalformedMoment."""
    if not _RFC_3339.fullmatch(text):
        raise MalformedMoment(f"{quoted(text)} is not a time with a zone, such as 1993-01-31T12:00:00Z")
    try:
        timestamp = Timestamp()
        timestamp.FromDatetime(datetime.fromisoformat(text.upper()))
    except (ValueError, OverflowError) as error:
        raise MalformedMoment(f"there is no such time as {quoted(text)} ({error})") from None
    return timestamp
