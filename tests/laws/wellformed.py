"""What is malformed in a request, by the words of the protos: the paths of the fields that an error has to name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, Final

from google.protobuf.message import Message
from world import time_of

from ledger.v1.account_pb2 import ACCOUNT_KIND_EXTERNAL, AccountKind, FreezeScope, OpenAccountRequest
from ledger.v1.payment_pb2 import AuthorizePaymentRequest

MOST: Final = 10**18
LEGS_MOST: Final = 1000
HOLD_MOST: Final = timedelta(days=31)
CURRENCIES: Final = {"EUR", "JPY", "KWD"}
"""The part of ISO 4217 that is sent here; every other code that is sent is of no currency."""

_AMOUNT_IS_OPTIONAL: Final = {"OpenAccountRequest", "CapturePaymentRequest", "RefundPaymentRequest"}


def violations(request: Any) -> list[str]:
    """The paths of all fields that are not as they must be."""
    return [*_fields(request), *_pairs(request), *_preconditions(request)]


def _is_no_id(text: str) -> bool:
    return not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}", text)


def _is_no_text(text: str) -> bool:
    return len(text) > 256 or "\0" in text


def _is_no_metadata(metadata: Any) -> bool:
    texts = [*metadata, *metadata.values()]
    size = sum(len(each.encode()) for each in texts)
    return len(metadata) > 64 or size > 8192 or "" in metadata or any("\0" in each for each in texts)


def _is_no_moment(timestamp: Any) -> bool:
    """Not of the years 1 to 9999."""
    return not (0 <= timestamp.nanos < 10**9 and -62_135_596_800 <= timestamp.seconds < 253_402_300_800)


def _is_no_hold(duration: Any) -> bool:
    return not timedelta() < time_of(duration) <= HOLD_MOST


ID_FIELDS: Final = [
    *("account_id", "payment_id", "capture_id", "refund_id", "increment_id", "transfer_id"),
    *("payer_account_id", "payee_account_id", "from_account_id", "to_account_id"),
]
_IS_WRONG: Final[dict[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(ID_FIELDS, _is_no_id),
    "reference": _is_no_text,
    "reason": _is_no_text,
    "metadata": _is_no_metadata,
    "hold_for": _is_no_hold,
    "effective_at": _is_no_moment,
    "currency_code": lambda code: code not in CURRENCIES,
    "kind": lambda kind: kind not in AccountKind.values(),
    "scope": lambda scope: scope not in FreezeScope.values(),
}
"""What is wrong with a field by itself, wherever it is."""


def _fields(message: Any, path: str = "") -> Iterator[str]:
    for field in message.DESCRIPTOR.fields:
        name, here = field.name, f"{path}{field.name}"
        value = getattr(message, name)
        if name == "legs":
            yield from _legs(value)
        elif name in ("amount", "credit_limit"):
            if not _is_unset(message, field) or message.DESCRIPTOR.name not in _AMOUNT_IS_OPTIONAL:
                yield from _money(value, 1 if name == "amount" else 0, here)
        elif name in _IS_WRONG and not _is_unset(message, field) and _IS_WRONG[name](value):
            yield here


def _is_unset(message: Message, field: Any) -> bool:
    return bool(field.has_presence) and not message.HasField(field.name)


def _money(money: Any, least: int, path: str) -> Iterator[str]:
    if money.currency_code not in CURRENCIES:
        yield f"{path}.currency_code"
    elif not least <= money.minor_units <= MOST:
        yield f"{path}.minor_units"


def _legs(legs: Any) -> Iterator[str]:
    if not 1 <= len(legs) <= LEGS_MOST:
        yield "legs"
    for number, leg in enumerate(legs):
        path = f"legs[{number}]."
        yield from _fields(leg, path)
        if leg.from_account_id == leg.to_account_id and not _is_no_id(leg.to_account_id):
            yield f"{path}to_account_id"


def _pairs(request: Any) -> Iterator[str]:
    """What is wrong with two fields together."""
    if isinstance(request, AuthorizePaymentRequest):
        payer, payee = request.payer_account_id, request.payee_account_id
        if payer == payee and not _is_no_id(payee):
            yield "payee_account_id"
    if isinstance(request, OpenAccountRequest) and request.HasField("credit_limit"):
        codes = {request.currency_code, request.credit_limit.currency_code}
        if request.kind == ACCOUNT_KIND_EXTERNAL:
            yield "credit_limit"
        if codes <= CURRENCIES and len(codes) == 2:
            yield "credit_limit.currency_code"


def _preconditions(request: Any) -> Iterator[str]:
    seen: set[str] = set()
    for number, each in enumerate(request.preconditions):
        path = f"preconditions[{number}]."
        if _is_no_id(each.account_id) or each.account_id in seen:
            yield f"{path}account_id"
        if each.expected_version < 1:
            yield f"{path}expected_version"
        seen.add(each.account_id)
