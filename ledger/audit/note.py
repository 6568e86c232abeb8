"""Signed notes: tree heads in the format of C2SP tlog-checkpoint, and the Ed25519 keys that sign them.

https://c2sp.org/signed-note, https://c2sp.org/tlog-checkpoint
"""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ledger.audit.merkle import HASH_BYTES

_ED25519: Final = b"\x01"
_KEY_BYTES: Final = 32
_ID_BYTES: Final = 4
_SIGNATURE_BYTES: Final = 64
_NEXT_KEY: Final = "next-key "
_DASH: Final = "\N{EM DASH} "


class NoteInvalid(Exception):
    """A note, a tree head or a public key that is malformed, or not signed by a key that is trusted."""


class NotSigned(NoteInvalid):
    """No key that is trusted has signed a note."""


def _key_id(name: str, raw: bytes) -> bytes:
    return sha256(name.encode() + b"\n" + _ED25519 + raw).digest()[:_ID_BYTES]


def _from_base64(text: str, what: str) -> bytes:
    """The bytes of their one form in base64: the last letter has bits that a lenient reader would pass over."""
    try:
        data = b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise NoteInvalid(f"{what} is not base64") from None
    if b64encode(data).decode() != text:
        raise NoteInvalid(f"{what} is not written as base64 is")
    return data


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key by which notes are checked. Its text form is `<name>+<key id in hex>+<base64 of 0x01 and the key>`."""

    name: str
    raw: bytes

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises NoteInvalid."""
        parts = text.strip().split("+", 2)
        if len(parts) != 3:
            raise NoteInvalid("a public key is <name>+<key id>+<key in base64>")
        name, key_id, encoded = parts
        data = _from_base64(encoded, "the public key")
        if data[:1] != _ED25519 or len(data) != 1 + _KEY_BYTES:
            raise NoteInvalid("the public key is not one of Ed25519")
        key = cls(name, data[1:])
        if key.id.hex() != key_id.lower():
            raise NoteInvalid("the public key does not fit its key id")
        return key

    @property
    def id(self) -> bytes:
        """The first 4 bytes of SHA-256(name, newline, 0x01, key)."""
        return _key_id(self.name, self.raw)

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{b64encode(_ED25519 + self.raw).decode()}"

    def signed(self, text: str, signature: bytes) -> bool:
        """Whether the signature of the text is this key's."""
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, text.encode())
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key that signs notes under a name."""

    name: str
    private: Ed25519PrivateKey

    @property
    def public(self) -> PublicKey:
        return PublicKey(self.name, self.private.public_key().public_bytes_raw())


@dataclass(frozen=True, slots=True)
class Signature:
    """One line of signature under a note, as it stands there."""

    name: str
    key_id: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Note:
    """A text and the signatures under it, none of them checked yet."""

    text: str
    signatures: tuple[Signature, ...]

    @classmethod
    def parse(cls, note: str) -> Self:
        """Raises NoteInvalid for what is not a note at all."""
        text, gap, below = note.rpartition("\n\n")
        if not gap or not text or not below.endswith("\n"):
            raise NoteInvalid("it is not a signed note: a text, an empty line, and signatures")
        lines = below.removesuffix("\n").split("\n")
        return cls(text + "\n", tuple(_signature(line) for line in lines))

    def signers(self, keys: Iterable[PublicKey]) -> list[PublicKey]:
        """Those of the keys that signed the text. Raises NoteInvalid if a line in the name of one of them is forged."""
        found = []
        for key in keys:
            for each in self.signatures:
                if (each.name, each.key_id) == (key.name, key.id):
                    if not key.signed(self.text, each.signature):
                        raise NoteInvalid(f"the signature of {key.name} under the note is not right")
                    found.append(key)
        return found

    def require_signed(self, keys: Sequence[PublicKey]) -> None:
        """Raise NoteInvalid unless one of the keys signed the note."""
        if not self.signers(keys):
            raise NotSigned("no key that is trusted has signed the note")


def sign(text: str, keys: Sequence[SigningKey]) -> str:
    """A note of the text (whole lines), signed by each of the keys."""
    assert text.endswith("\n")
    lines = [
        f"{_DASH}{key.name} {b64encode(key.public.id + key.private.sign(text.encode())).decode()}\n" for key in keys
    ]
    return f"{text}\n{''.join(lines)}"


def _signature(line: str) -> Signature:
    name, _, encoded = line.removeprefix(_DASH).partition(" ")
    if not line.startswith(_DASH) or not name or not encoded:
        raise NoteInvalid("a line of signature is: em dash, name of the key, signature")
    data = _from_base64(encoded, "a signature")
    if len(data) <= _ID_BYTES:
        raise NoteInvalid("a signature is too short")
    return Signature(name, data[:_ID_BYTES], data[_ID_BYTES:])


@dataclass(frozen=True, slots=True)
class TreeHead:
    """What the log was: so many events, with this root over them.

    With a `next_key` it introduces the key that is to sign from then on, in a line of the text that both keys sign. A
    signature alone says nothing of the others, and anybody can put his own under a note.
    """

    origin: str
    size: int
    root: bytes
    next_key: PublicKey | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """From the text of a note. Raises NoteInvalid."""
        lines = text.split("\n")
        if len(lines) < 4 or not lines[0]:
            raise NoteInvalid("a tree head has three lines: origin, size and root")
        origin, digits, encoded = lines[:3]
        if not (digits.isascii() and digits.isdigit()) or (digits[0] == "0" and digits != "0") or len(digits) > 19:
            raise NoteInvalid("the size of a tree head is not a plain decimal number")
        root = _from_base64(encoded, "the root of a tree head")
        if len(root) != HASH_BYTES:
            raise NoteInvalid(f"the root of a tree head has {len(root)} bytes instead of {HASH_BYTES}")
        introduced = [line.removeprefix(_NEXT_KEY) for line in lines[3:] if line.startswith(_NEXT_KEY)]
        if len(introduced) > 1:
            raise NoteInvalid("a tree head introduces one key at a time")
        return cls(origin, int(digits), root, PublicKey.parse(introduced[0]) if introduced else None)

    @property
    def text(self) -> str:
        """The lines that are signed: three, or four."""
        introduction = "" if self.next_key is None else f"{_NEXT_KEY}{self.next_key}\n"
        return f"{self.origin}\n{self.size}\n{b64encode(self.root).decode()}\n{introduction}"


def read_head(note: str, keys: Sequence[PublicKey]) -> TreeHead:
    """The tree head of a note that one of the keys signed. Raises NoteInvalid."""
    parsed = Note.parse(note)
    parsed.require_signed(keys)
    head = TreeHead.parse(parsed.text)
    if head.origin not in {key.name for key in keys}:
        raise NoteInvalid(f"the tree head is of {head.origin}, not of {keys[0].name}")
    return head
