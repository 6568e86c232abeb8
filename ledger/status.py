"""The one table from refusals to gRPC status codes. Nothing else knows status codes."""

from __future__ import annotations

from typing import Final

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode

from ledger.domain.errors import InvalidCommand, Refusal

DOMAIN: Final = "ledger"

STATUS: Final[dict[str, StatusCode]] = {
    "UNAUTHENTICATED": StatusCode.UNAUTHENTICATED,
    "PERMISSION_DENIED": StatusCode.PERMISSION_DENIED,
    "LEDGER_NOT_PERMITTED": StatusCode.PERMISSION_DENIED,
    "INVALID_REQUEST": StatusCode.INVALID_ARGUMENT,
    "CARD_NUMBER_GIVEN": StatusCode.INVALID_ARGUMENT,
    "EFFECTIVE_AT_IN_FUTURE": StatusCode.INVALID_ARGUMENT,
    "ID_ALREADY_USED": StatusCode.ALREADY_EXISTS,
    "LEDGER_NOT_FOUND": StatusCode.NOT_FOUND,
    "ACCOUNT_NOT_FOUND": StatusCode.NOT_FOUND,
    "PAYMENT_NOT_FOUND": StatusCode.NOT_FOUND,
    "TRANSFER_NOT_FOUND": StatusCode.NOT_FOUND,
    "TREE_HEAD_NOT_FOUND": StatusCode.NOT_FOUND,
    "VERSION_MISMATCH": StatusCode.ABORTED,
    "BATCH_ABORTED": StatusCode.ABORTED,
    "CURRENCY_MISMATCH": StatusCode.FAILED_PRECONDITION,
    "ACCOUNT_CLOSED": StatusCode.FAILED_PRECONDITION,
    "ACCOUNT_FROZEN": StatusCode.FAILED_PRECONDITION,
    "ACCOUNT_IN_USE": StatusCode.FAILED_PRECONDITION,
    "LIMIT_BELOW_USE": StatusCode.FAILED_PRECONDITION,
    "EXTERNAL_HAS_NO_LIMIT": StatusCode.FAILED_PRECONDITION,
    "PAYMENT_DECLINED": StatusCode.FAILED_PRECONDITION,
    "PAYMENT_VOIDED": StatusCode.FAILED_PRECONDITION,
    "PAYMENT_EXPIRED": StatusCode.FAILED_PRECONDITION,
    "PAYMENT_CAPTURED": StatusCode.FAILED_PRECONDITION,
    "TOO_MANY_CHANGES": StatusCode.FAILED_PRECONDITION,
    "AMOUNT_NOT_GREATER": StatusCode.FAILED_PRECONDITION,
    "AMOUNT_EXCEEDS_CAPTURABLE": StatusCode.FAILED_PRECONDITION,
    "AMOUNT_EXCEEDS_REFUNDABLE": StatusCode.FAILED_PRECONDITION,
    "NOTHING_TO_REFUND": StatusCode.FAILED_PRECONDITION,
    "BALANCE_LIMIT": StatusCode.FAILED_PRECONDITION,
    "INSUFFICIENT_FUNDS": StatusCode.FAILED_PRECONDITION,
    "POSITION_AHEAD_OF_HEAD": StatusCode.OUT_OF_RANGE,
    "TREE_SIZE_AHEAD_OF_HEAD": StatusCode.OUT_OF_RANGE,
    "TOO_MANY_CALLS": StatusCode.RESOURCE_EXHAUSTED,
    "RATE_EXCEEDED": StatusCode.RESOURCE_EXHAUSTED,
    "QUEUE_FULL": StatusCode.RESOURCE_EXHAUSTED,
    "ANSWER_TOO_LARGE": StatusCode.RESOURCE_EXHAUSTED,
    "DEADLINE_PASSED": StatusCode.DEADLINE_EXCEEDED,
    "CALLERS_UNAVAILABLE": StatusCode.UNAVAILABLE,
    "DATABASE_UNAVAILABLE": StatusCode.UNAVAILABLE,
    "NOT_RECORDED": StatusCode.UNAVAILABLE,
    "OUTCOME_UNKNOWN": StatusCode.UNAVAILABLE,
    "SHUTTING_DOWN": StatusCode.UNAVAILABLE,
    "WRITES_STOPPED": StatusCode.UNAVAILABLE,
    "BALANCE_NOT_REPRESENTABLE": StatusCode.OUT_OF_RANGE,
    "READ_MODEL_BEHIND": StatusCode.UNAVAILABLE,
    "READ_MODEL_STOPPED": StatusCode.UNAVAILABLE,
    "READS_UNAVAILABLE": StatusCode.UNAVAILABLE,
    "TREE_BEHIND": StatusCode.UNAVAILABLE,
    "INTERNAL": StatusCode.INTERNAL,
}

RETRY_AFTER_S: Final[dict[str, float]] = {
    "TOO_MANY_CALLS": 0.1,
    "RATE_EXCEEDED": 0.5,
    "QUEUE_FULL": 0.2,
    "CALLERS_UNAVAILABLE": 1.0,
    "DATABASE_UNAVAILABLE": 0.5,
    "NOT_RECORDED": 0.1,
    "OUTCOME_UNKNOWN": 1.0,
    "SHUTTING_DOWN": 1.0,
    "READ_MODEL_BEHIND": 0.1,
    "READS_UNAVAILABLE": 0.5,
    "TREE_BEHIND": 0.2,
}
"""After how long the same request is worth sending again, where a pause alone can help."""


MESSAGE_MOST_BYTES: Final = 512
VIOLATIONS_MOST_BYTES: Final = 2_048
"""An error goes as a header, in an encoding that can make three times as much of the message, and a client that gets
more than 8 KiB of headers sees a broken call in its place: of a long list of fields it is told the first ones."""


def code_of(refusal: Refusal) -> StatusCode:
    return STATUS[refusal.code]


def status_of(refusal: Refusal) -> Status:
    """The refusal as gRPC's richer error model has it, short enough for a header."""
    details: list[Message] = [
        ErrorInfo(
            reason=refusal.code,
            domain=DOMAIN,
            metadata={key: str(value) for key, value in refusal.details.items() if key != "summary"},
        )
    ]
    if isinstance(refusal, InvalidCommand):
        details.append(BadRequest(field_violations=_violations(refusal)))
    retry_after_s = RETRY_AFTER_S.get(refusal.code)
    if retry_after_s is not None:
        pause = Duration(nanos=round(retry_after_s % 1 * 1_000_000_000), seconds=int(retry_after_s))
        details.append(RetryInfo(retry_delay=pause))
    message = _cut(str(refusal), MESSAGE_MOST_BYTES)
    return Status(code=_number(code_of(refusal)), message=message, details=[_packed(each) for each in details])


def _violations(refusal: InvalidCommand) -> list[BadRequest.FieldViolation]:
    told: list[BadRequest.FieldViolation] = []
    room = VIOLATIONS_MOST_BYTES
    for each in refusal.violations:
        violation = BadRequest.FieldViolation(field=each.field, description=_cut(each.description, MESSAGE_MOST_BYTES))
        room -= violation.ByteSize()
        if room < 0:
            break
        told.append(violation)
    return told


def _cut(text: str, most_bytes: int) -> str:
    data = text.encode()
    return text if len(data) <= most_bytes else data[: most_bytes - 3].decode(errors="ignore") + "..."


def _number(code: StatusCode) -> int:
    number: int = code.value[0]
    return number


def _packed(detail: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(detail)
    return packed
