"""Requests that no sound client sends: of each kind that we could think of, drawn from a seed, for every rpc."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final, NamedTuple, TypeAlias

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from ledger.services import SERVICES

RPCS: Final[tuple[MethodDescriptor, ...]] = tuple(method for service in SERVICES for method in service.methods)

PEOPLE: Final = ("bank", "alice", "shop", "dollars")
"""Accounts that are there. Others are opened, used and closed as it comes."""

MOST_BYTES: Final = 4 * 2**20
"""What gRPC takes, unless it is told otherwise."""

_NOT_UTF_8: Final = "\x1a\x1a\x1a"
"""Stands for bytes that no text may have: a protobuf in Python does not let them in."""

_ODD_TEXTS: Final = (
    "",
    " ",
    "-",
    "a b",
    "é",
    "\0",
    "a\nb",
    "\u202e\U0001f4b3",
    "x" * 129,
    "x" * 256,
    "x" * 257,
    "\U0001d518" * 300,
    "'; DROP TABLE events; --",
    "%s%n{0}{payment_id}",
    "../../../etc/passwd",
    "4111111111111111",
    "NaN",
    "9" * 400,
    _NOT_UTF_8,
)
_CURRENCIES: Final = ("EUR", "USD", "JPY", "eur", "XXX", "EURO", "978", "")
_ENUMS: Final = (3, 7, -1, 2**31 - 1)
_INTEGERS: Final = (0, 1, 2, 100, -1, 10**18, 10**18 + 1, 2**63 - 1, -(2**63), 2**31 - 1, -(2**31), 2**62)
_NANOS: Final = (0, 1, 999, 1_000, 999_999_999, 10**9, -1, -(2**31), 2**31 - 1)


class Given(NamedTuple):
    """A request as it goes over the wire."""

    number: int
    kind: str
    method: MethodDescriptor
    body: bytes

    @property
    def path(self) -> str:
        return f"/{self.method.containing_service.full_name}/{self.method.name}"


class Malformed:
    """Draws requests: the same seed and number is the same request, given the same real page tokens."""

    def __init__(self, seed: int, ledger: str, page_tokens: Sequence[str]) -> None:
        self._seed = seed
        self._ledger = ledger
        self._page_tokens = page_tokens

    def request(self, number: int) -> Given:
        random = Random(f"{self._seed}/{number}")
        method = random.choice(RPCS)
        (kind,) = random.choices([*_KINDS], [weight for weight, _ in _KINDS.values()])
        _, make = _KINDS[kind]
        return Given(number, kind, method, make(_Drawing(random, self._ledger, self._page_tokens), method.input_type))


class _Drawing:
    """One request while it is made."""

    def __init__(self, random: Random, ledger: str, page_tokens: Sequence[str]) -> None:
        self.random = random
        self._ledger = ledger
        self._page_tokens = page_tokens
        # Of a request with many odd values only the first is ever looked at: many have but one, or none.
        self._in_batch = False
        self._odd = random.choice((0.0, 0.02, 0.1, 0.3))

    def message(self, kind: Descriptor) -> Message:
        """Fields of the right types, with values that are right, odd or impossible."""
        message = GetMessageClass(kind)()
        alone = [each for each in kind.fields if not each.containing_oneof or _is_optional(each)]
        choices = [self.random.choice(each.fields) for each in kind.oneofs if not _is_optional(each.fields[0])]
        for field in (*alone, *choices):
            if self._is_set(field):
                self._fill(message, field)
        return message

    def _is_set(self, field: FieldDescriptor) -> bool:
        """What is needed nearly always, what is a condition seldom."""
        if field.name in ("ledger", "validate_only") and self._in_batch:
            return self.random.random() < self._odd
        if field.name in ("preconditions", "effective_at", "min_position", "credit_limit", "page_token"):
            return self.random.random() < 0.1 + self._odd
        return self.random.random() > self._odd if _is_needed(field) else self.random.random() < 0.5

    def wire(self, kind: Descriptor) -> bytes:
        data = self.message(kind).SerializeToString()
        return data.replace(
            _NOT_UTF_8.encode(), self.random.choice((b"\xff\xfe\xfd", b"\xed\xa0\x80", b"\xc3\x28\x80"))
        )

    def bytes(self, most: int = 200) -> bytes:
        return self.random.randbytes(self.random.randrange(most))

    def _fill(self, message: Any, field: FieldDescriptor) -> None:
        if field.message_type and field.message_type.GetOptions().map_entry:
            for _ in range(self._count(65)):
                getattr(message, field.name)[self._text(field)] = self._text(field)
        elif field.is_repeated:
            for _ in range(self._count(101 if field.message_type is None else 6)):
                self._append(getattr(message, field.name), field)
        elif field.message_type:
            getattr(message, field.name).MergeFrom(self.message(field.message_type))
        else:
            setattr(message, field.name, self._scalar(field))

    def _append(self, items: Any, field: FieldDescriptor) -> None:
        self._in_batch = field.name == "commands"
        items.append(self.message(field.message_type) if field.message_type else self._scalar(field))
        self._in_batch = False

    def _count(self, many: int) -> int:
        return self.random.choice((0, 1, 1, 2, 3)) if self.random.random() < 0.98 else many

    def _scalar(self, field: FieldDescriptor) -> Any:
        random = self.random
        if field.type == field.TYPE_STRING:
            return self._text(field)
        if field.type == field.TYPE_BYTES:
            return self.bytes()
        if field.type == field.TYPE_BOOL:
            return random.random() < 0.5
        if random.random() < self._odd:
            return random.choice({field.TYPE_ENUM: _ENUMS, field.TYPE_INT32: _NANOS}.get(field.type, _INTEGERS))
        if field.type == field.TYPE_ENUM:
            return random.randrange(3)
        return random.randrange(1, 300)

    def _text(self, field: FieldDescriptor) -> str:
        random = self.random
        if random.random() < self._odd:
            return random.choice(_ODD_TEXTS)
        if field.name == "ledger":
            return self._ledger
        if field.name == "currency_code":
            return random.choice(_CURRENCIES) if random.random() < self._odd else "EUR"
        if field.name == "page_token":
            return self._page_token()
        if field.name.endswith("account_id"):
            return random.choice((*PEOPLE, f"a{random.randrange(60)}"))
        if field.name in ("streams", "topics"):
            return random.choice(("account/alice", "payment/p7", "FundsDebited", "PaymentCaptured", "no/such"))
        return f"p{random.randrange(400)}"

    def _page_token(self) -> str:
        """A real one, of this list or another, or one with something changed."""
        token = [*self.random.choice(self._page_tokens)]
        for _ in range(self.random.choice((0, 1, 1, 3))):
            place = self.random.randrange(len(token))
            token[place : place + self.random.randrange(3)] = self.random.choice(("", "A", "_", "=", "\n", "é", "AAAA"))
            token = token or [""]
        return "".join(token)


# --- the kinds -------------------------------------------------------------------------------------------------------


def _odd_values(drawing: _Drawing, kind: Descriptor) -> bytes:
    return drawing.wire(kind)


def _another_rpcs(drawing: _Drawing, kind: Descriptor) -> bytes:
    return drawing.wire(drawing.random.choice(RPCS).input_type)


def _random_bytes(drawing: _Drawing, kind: Descriptor) -> bytes:
    return drawing.bytes()


def _damaged(drawing: _Drawing, kind: Descriptor) -> bytes:
    """A few bytes changed, left out, or put in, or the end cut off."""
    data, random = bytearray(drawing.wire(kind)), drawing.random
    for _ in range(random.randrange(1, 5)):
        place = random.randrange(len(data) + 1)
        end = place + random.choice((0, 1, 1, 1, 8, len(data)))
        data[place:end] = random.choice((b"", random.randbytes(1), b"\xff" * 10, b"\x80", random.randbytes(8)))
    return bytes(data)


def _repeated_whole(drawing: _Drawing, kind: Descriptor) -> bytes:
    """Protobuf merges what comes twice: lists grow, the last scalar holds."""
    return drawing.wire(kind) * drawing.random.choice((2, 3, 40))


def _deeply_nested(drawing: _Drawing, kind: Descriptor) -> bytes:
    """Messages in messages, or groups in groups, closed or not, in a field that is known or not."""
    random = drawing.random
    depth, number = random.choice((50, 101, 1_000, 20_000)), random.choice((1, 5, 15))
    if random.random() < 0.5:
        start, end = bytes([number << 3 | 3]), bytes([number << 3 | 4])
        return drawing.wire(kind) + start * depth + end * random.choice((depth, depth - 1, 0))
    inner = b""
    for _ in range(min(depth, 1_000)):
        inner = bytes([number << 3 | 2]) + _varint(len(inner)) + inner
    return drawing.wire(kind) + inner


def _lying_length(drawing: _Drawing, kind: Descriptor) -> bytes:
    """A field that says that it is longer than all there is."""
    claimed = drawing.random.choice((2**7, 2**31 - 1, 2**31, 2**32, 2**63, 2**64 - 1))
    return drawing.wire(kind) + b"\x0a" + _varint(claimed) + drawing.bytes()


def _oversized(drawing: _Drawing, kind: Descriptor) -> bytes:
    """One field as large as gRPC lets through, or larger; or one that nobody knows; or a list without an end."""
    random = drawing.random
    size = random.choice((10_000, 100_000, 1_000_000, MOST_BYTES - 100, MOST_BYTES + 1))
    message: Any = drawing.message(kind)
    texts = [each for each in kind.fields if each.type == each.TYPE_STRING and not each.is_repeated]
    if texts and random.random() < 0.5:
        setattr(message, random.choice(texts).name, random.choice("x\1é") * size)
        return bytes(message.SerializeToString())
    tag = random.choice((b"\xfa\x07", b"\x0a", b"\x12", b"\x3a", b"\x42"))
    if random.random() < 0.5:
        return drawing.wire(kind) + tag + _varint(size) + b"x" * size
    item = tag + _varint(4) + random.choice((b"\x0a\x02\x0a\x00", b"xxxx"))
    return drawing.wire(kind) + item * (min(size, 1_000_000) // len(item))


_Maker: TypeAlias = Callable[[_Drawing, Descriptor], bytes]
_KINDS: Final[dict[str, tuple[float, _Maker]]] = {
    "odd values": (50, _odd_values),
    "damaged": (25, _damaged),
    "random bytes": (8, _random_bytes),
    "another rpc's": (8, _another_rpcs),
    "repeated whole": (4, _repeated_whole),
    "deeply nested": (3, _deeply_nested),
    "lying length": (2, _lying_length),
    "oversized": (0.5, _oversized),
}
"""By name: how often, and how it is made."""


_NEEDED: Final = {"ledger", "amount", "currency_code", "minor_units", "legs", "commands", "position"}


def _is_needed(field: FieldDescriptor) -> bool:
    return field.name.endswith("_id") or field.name in _NEEDED or field.containing_type.name == "BatchCommand"


def _is_optional(field: FieldDescriptor) -> bool:
    """Declared `optional`: for protobuf that is a oneof of its own."""
    return field.containing_oneof is not None and field.containing_oneof.name == f"_{field.name}"


def _varint(number: int) -> bytes:
    data = bytearray()
    while number > 127:
        data.append(number & 127 | 128)
        number >>= 7
    return bytes([*data, number])
