"""Pages: how a list is cut, and the opaque tokens that bind all its pages to the log that the first one saw."""

from __future__ import annotations

import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

from google.protobuf.message import Message

from ledger.domain.errors import FieldViolation, InvalidCommand
from ledger.v1 import ledger_pb2

PAGE_SIZE_DEFAULT: Final = 100
PAGE_SIZE_MOST: Final = 1_000
POSITION_MOST: Final = 2**63 - 1

_PAGING_FIELDS: Final = ("page_size", "page_token", "min_position")
_TOKEN: Final = struct.Struct(">qq16s")


@dataclass(frozen=True, slots=True)
class Paging:
    """Which part of a list is asked for.

    `at` is the position that the first page was read at, `after` the place of the last row of the page before; both are
    None for the first page.
    """

    size: int
    newest_first: bool
    at: int | None = None
    after: int | None = None


def paging_of(request: Any) -> Paging:
    """The paging that a list request asks for. Raises InvalidCommand, with all that is wrong with its paging fields."""
    violations = []
    if not 0 <= request.page_size <= PAGE_SIZE_MOST:
        violations.append(FieldViolation("page_size", f"must be 1 to {PAGE_SIZE_MOST}, or 0 for {PAGE_SIZE_DEFAULT}"))
    if request.order not in ledger_pb2.SortOrder.values():
        violations.append(FieldViolation("order", f"{request.order} is not a value of this enum"))
    if request.min_position < 0:
        violations.append(FieldViolation("min_position", "must not be negative"))
    at = after = None
    if request.page_token:
        try:
            at, after = _read_token(request)
        except ValueError as error:
            violations.append(FieldViolation("page_token", str(error)))
    if violations:
        raise InvalidCommand(*violations)
    newest_first = request.order != ledger_pb2.SORT_ORDER_OLDEST_FIRST
    return Paging(request.page_size or PAGE_SIZE_DEFAULT, newest_first, at, after)


def next_page_token(request: Message, at: int, after: int) -> str:
    """The token for the page after the row at the place `after`, of a list whose first page was read at `at`."""
    return urlsafe_b64encode(_TOKEN.pack(at, after, _digest(request, at, after))).decode().rstrip("=")


def _read_token(request: Any) -> tuple[int, int]:
    """`at` and `after`. Raises ValueError for what is no token of ours, or one of another list."""
    text = request.page_token
    try:
        at, after, digest = _TOKEN.unpack(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (ValueError, struct.error):
        raise ValueError("is not one that this ledger gave out") from None
    if digest != _digest(request, at, after):
        raise ValueError("is of a list with other filters or another order, or not one that this ledger gave out")
    return at, after


def _digest(request: Message, at: int, after: int) -> bytes:
    """What must not change between pages: the list, its filters and its order; and the token itself."""
    filters = type(request)()
    filters.CopyFrom(request)
    for field in _PAGING_FIELDS:
        filters.ClearField(field)
    asked = b"%b %d %d " % (request.DESCRIPTOR.full_name.encode(), at, after)
    return blake2b(asked + filters.SerializeToString(deterministic=True), digest_size=16).digest()
