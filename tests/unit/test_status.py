"""An error becomes a status that fits into a header, whatever it is about."""

from __future__ import annotations

from google.rpc.error_details_pb2 import BadRequest
from google.rpc.status_pb2 import Status

from ledger.domain.errors import FieldViolation, InvalidCommand
from ledger.status import MESSAGE_MOST_BYTES, VIOLATIONS_MOST_BYTES, status_of

HEADERS_MOST_BYTES = 8 * 1024
"""What gRPC's clients take in all, unless they are told otherwise."""


def header_bytes(status: Status) -> int:
    """The message percent-encoded, which makes three of one at worst; and all of it again in base64."""
    return 3 * len(status.message.encode()) + len(status.SerializeToString()) * 4 // 3 + 4


def violations_of(status: Status) -> list[str]:
    malformed = BadRequest()
    assert any(each.Unpack(malformed) for each in status.details)
    return [each.field for each in malformed.field_violations]


def test_of_a_thousand_wrong_fields_the_first_are_told() -> None:
    """Once it was all of them, and the client got a broken call."""
    refusal = InvalidCommand(*(FieldViolation(f"states[{number}]", "99 is no state") for number in range(1_000)))
    status = status_of(refusal)
    fields = violations_of(status)
    assert fields == [f"states[{number}]" for number in range(len(fields))]
    assert len(fields) > 20
    assert status.message.startswith("The request is malformed: states[0]: 99 is no state; states[1]")
    assert status.message.endswith("...")
    assert header_bytes(status) < HEADERS_MOST_BYTES


def test_a_description_of_any_length_is_cut() -> None:
    """Between two characters, not within one."""
    status = status_of(InvalidCommand(FieldViolation("order", "\u20ac" * 10_000)))
    assert violations_of(status) == ["order"]
    assert len(status.message.encode()) <= MESSAGE_MOST_BYTES
    assert header_bytes(status) < HEADERS_MOST_BYTES


def test_a_few_wrong_fields_are_all_told() -> None:
    """Word for word."""
    refusal = InvalidCommand(*(FieldViolation(f"f{number}", "must be set") for number in range(8)))
    status = status_of(refusal)
    assert violations_of(status) == [f"f{number}" for number in range(8)]
    assert status.message == str(refusal)
    assert sum(len(each.value) for each in status.details) < VIOLATIONS_MOST_BYTES
