#!/usr/bin/env python3
"""Verify a bundle: the whole history of a payment ledger in one file, without a database and without a network.

For people who trust nobody who runs the ledger: read this program before you run it, from top to bottom. It needs
Python 3.11 and the package `cryptography`, and nothing of the ledger's. What it reads is specified in docs/audit.md.
It goes through the file once, from the first byte to the last, and stops at the first thing that is wrong:

  the file   every byte is what the manifest says, and every line has its only form
  the log    positions and versions have no gaps, times never go backwards
  the money  in every command debits equal credits, and accounts moved as payments and transfers say; the state that an
             event carries is what the history adds up to; no customer is below the limit; no payment captured more
             than was authorized, or refunded more than was captured
  the heads  whatever the ledger signed has the right signature, and says what the log was at that size

Two things are left to you. Whose key is it? Get it from somewhere else than the bundle and give it with --public-key:
whoever forges a bundle makes a key as well. And is it still the same history? Keep the last head of this bundle with
--save-head, and give it with --head when you check the next one.

Memory is bounded by the accounts, and by the payments of which something can still be captured or refunded. So it goes
unnoticed if the id of a transfer, or of a payment that is over, is used a second time.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import re
import struct
import sys
import zlib
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

try:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
except ImportError:
    print("verify_bundle: for signatures it needs a package: pip install cryptography", file=sys.stderr)
    sys.exit(2)

VERIFIED, WRONG, USAGE = 0, 1, 2
LINE_MOST_BYTES = 2**24
MINOR_UNITS_MOST = 10**18
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Wrong(Exception):
    """Something is not as it has to be."""


def require(holds: bool, otherwise: str, *values: object) -> None:
    """Raise Wrong unless it holds. The values come from the bundle: as ASCII they can't play tricks on a terminal."""
    if not holds:
        raise Wrong(otherwise.format(*map(ascii, values)))


# --- Texts that have only one form, so that no two programs can read the same bytes differently ----------------------

canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode
"""JSON with sorted keys, without blanks, and with nothing escaped that need not be. (There are no floats in it.)"""


def parsed(text: bytes, what: str) -> dict[str, Any]:
    """The JSON object that a text is. Its only form leaves no room for a key that stands there twice."""
    try:
        value = json.loads(text.decode())
        if isinstance(value, dict) and canonical(value).encode() == text:
            return value
    except (ValueError, RecursionError) as error:
        raise Wrong(f"{what} is not JSON: {error}") from None
    raise Wrong(f"{what} is not a JSON object in its canonical form")


def unbase64(text: str, what: str) -> bytes:
    try:
        data = b64decode(text, validate=True)
    except ValueError:
        raise Wrong(f"{what} is not base64") from None
    require(b64encode(data).decode() == text, f"{what} is not base64 in its only form")
    return data


# --- The Merkle tree: RFC 9162, section 2.1, with SHA-256 ------------------------------------------------------------


def leaf_hash(event: Event) -> bytes:
    """An event as a leaf: all that is stored of it, every field with its length before it."""
    fields = (
        b"ledger/leaf/1",
        struct.pack(">q", event.position),
        event.stream.encode(),
        struct.pack(">q", event.version),
        event.topic.encode(),
        struct.pack(">q", event.recorded_at),
        event.state,
    )
    return hashlib.sha256(b"\0" + b"".join([struct.pack(">I", len(each)) + each for each in fields])).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


class Tree:
    """The tree over the leaves so far, kept as the hashes of its complete subtrees: one for each bit of its size.

    It can watch one leaf, and then collects the proof that it is in the tree: all that is joined to it on the way up.
    """

    def __init__(self, watched_position: int = 0) -> None:
        self.size = 0
        self._subtrees: list[bytes] = []
        self._watched_position, self._watched = watched_position, b""
        self.path: list[tuple[str, bytes]] = []

    def add(self, leaf: bytes) -> None:
        self._subtrees.append(leaf)
        self.size += 1
        if self.size == self._watched_position:
            self._watched = leaf
        leaves = self.size
        while leaves % 2 == 0:  # Two subtrees of one size become one of twice the size.
            self._join()
            leaves //= 2

    def root(self) -> bytes:
        return self.joined()._subtrees[0] if self.size else hashlib.sha256().digest()

    def joined(self) -> Tree:
        """A copy in which all subtrees are joined to one."""
        whole = copy.copy(self)
        whole._subtrees, whole.path = [*self._subtrees], [*self.path]
        while len(whole._subtrees) > 1:
            whole._join()
        return whole

    def _join(self) -> None:
        right, left = self._subtrees.pop(), self._subtrees.pop()
        self._subtrees.append(node_hash(left, right))
        if self._watched in (left, right):
            self.path.append(("right", right) if self._watched == left else ("left", left))
            self._watched = self._subtrees[-1]


# --- Keys and signed notes: c2sp.org/signed-note, c2sp.org/tlog-checkpoint -------------------------------------------


class Key(NamedTuple):
    """A public key, written as `<name>+<id>+<base64 of 0x01 and 32 bytes>`. The id follows from the rest."""

    text: str
    name: str
    id: bytes
    public: Ed25519PublicKey

    @classmethod
    def from_text(cls, text: str) -> Key:
        name, id_, encoded = [*text.split("+", 2), "", ""][:3]
        data = unbase64(encoded, "the public key")
        is_key = len(data) == 33 and data[0] == 1 and name.isascii() and name.isprintable()
        require(is_key, "{} is not a public key of Ed25519", text)
        expected = hashlib.sha256(name.encode() + b"\n" + data).digest()[:4]
        require(id_ == expected.hex(), "the public key {} should have the id {}", text, expected.hex())
        return cls(text, name, expected, Ed25519PublicKey.from_public_bytes(data[1:]))


class Note(NamedTuple):
    """A text, and its signatures by name."""

    lines: list[str]
    signatures: list[tuple[str, bytes]]

    @classmethod
    def from_text(cls, note: str) -> Note:
        text, _, below = note.rpartition("\n\n")
        signatures = re.findall(r"— ([!-~]+) ([!-~]+)\n", below)
        require(below == "".join(f"— {name} {each}\n" for name, each in signatures) != "", "{} is no signed note", note)
        return cls(text.split("\n"), [(name, unbase64(each, "a signature")) for name, each in signatures])

    def signed_by(self, key: Key) -> bool:
        """Signatures by others, such as witnesses, don't count. One that should be by the key and isn't is wrong."""
        found = [each[4:] for name, each in self.signatures if (name, each[:4]) == (key.name, key.id)]
        for signature in found:
            try:
                key.public.verify(signature, "".join(f"{line}\n" for line in self.lines).encode())
            except InvalidSignature:
                raise Wrong(f"the signature by key {key.id.hex()} is false") from None
        return bool(found)


class Head(NamedTuple):
    """What the ledger states about its log: how many events it has, and the root of the tree over them.

    A head that introduces a key names it. Its signature alone would say nothing: anybody can put his under a note.
    """

    size: int
    root: bytes
    next_key: str = ""

    @classmethod
    def from_note(cls, note: Note, origin: str) -> Head:
        introduces = len(note.lines) == 4 and bool(re.fullmatch("next-key .+", note.lines[3]))
        is_head = (len(note.lines) == 3 or introduces) and note.lines[0] == origin
        require(is_head, "{} is no head of {}", note.lines, origin)
        next_key = note.lines[3].removeprefix("next-key ") if introduces else ""
        return cls.from_lines(*note.lines[1:3])._replace(next_key=next_key)

    @classmethod
    def from_lines(cls, size: str, root: str) -> Head:
        require(bool(re.fullmatch(r"0|[1-9][0-9]{0,18}", size, re.ASCII)), "{} is not the size of a tree", size)
        return cls(int(size), unbase64(root, "the root"))


# --- The file: a plain tar of compressed parts, each byte of which is determined -------------------------------------


def tar_header(name: str, size: int) -> bytes:
    """The only header (POSIX ustar) that a member of this name and size can have."""
    start = name.encode().ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" % size + b"0" * 11 + b"\0"
    end = b"0".ljust(101, b"\0") + b"ustar\x0000"
    checksum = sum(start) + sum(end) + 8 * ord(" ")
    return (start + b"%06o\0 " % checksum + end).ljust(512, b"\0")


class Bundle:
    """A bundle, read as a stream. `member` and `line` say where it is, `members` what went by."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._size = file, 0
        self.member, self.line = "the beginning", 0
        self.members: list[dict[str, Any]] = []

    def next(self, *expected: str) -> str:
        """Go on to the next member, which has to be one of those expected."""
        self.line, header = 0, self._read(512)
        name = header[:100].rstrip(b"\0").decode("ascii", "replace")
        require(name in expected, "after it should come {}, but there is {}", " or ".join(expected), name)
        self.member = name
        size = re.fullmatch(rb"([0-7]{11})\0", header[124:136])
        self._size = int(size[1], 8) if size else 0
        require(header == tar_header(name, self._size), "its header is damaged")
        return name

    def chunks(self) -> Iterator[bytes]:
        """The bytes of the member. On their way they are counted and hashed, to be compared with the manifest."""
        digest, left = hashlib.sha256(), self._size
        while left:
            chunk = self._read(min(left, 2**14))
            digest.update(chunk)
            left -= len(chunk)
            yield chunk
        require(not any(self._read(-self._size % 512)), "what fills up its last block is not zero")
        self.members.append({"bytes": self._size, "name": self.member, "sha256": digest.hexdigest()})

    def text(self) -> str:
        return b"".join(self.chunks()).decode("utf-8", "replace")

    def lines(self) -> Iterator[bytes]:
        """The lines of a compressed member."""
        inflater, rest = zlib.decompressobj(wbits=31), b""
        for chunk in self.chunks():
            try:
                *lines, rest = (rest + inflater.decompress(chunk)).split(b"\n")
            except zlib.error as error:
                raise Wrong(f"it is damaged: {error}") from None
            for line in lines:
                self.line += 1
                yield line
            require(len(rest) <= LINE_MOST_BYTES, "a line is too long")
        require(inflater.eof and not inflater.unused_data and not rest, "its compressed data don't end properly")

    def end(self) -> None:
        require(not any(self._read(1024)) and not self._file.read(1), "something follows after the end")

    def _read(self, size: int) -> bytes:
        data = self._file.read(size)
        require(len(data) == size, "the file ends too early")
        return data


# --- The books: what the events say, added up ------------------------------------------------------------------------


class Event(NamedTuple):
    """A row of the log: `recorded_at` in microseconds since 1970, `state` the stored bytes, `fields` what they say."""

    position: int
    stream: str
    version: int
    topic: str
    recorded_at: int
    state: bytes
    fields: dict[str, Any]

    @classmethod
    def from_line(cls, line: dict[str, Any]) -> Event:
        require(line.keys() == {*cls._fields} - {"fields"}, "a line has these keys: {}", [*line])
        numbers = line["position"], line["version"], line["recorded_at"]
        require(all(type(each) is int and abs(each) < 2**63 for each in numbers), "no numbers of 64 bits: {}", numbers)
        state = unbase64(line["state"], "the state")
        return cls(**line | {"state": state}, fields=parsed(state, "the state"))


class Amounts(NamedTuple):
    """Where the money of a payment is."""

    authorized: int
    capturable: int
    captured: int
    expired: int
    refunded: int
    released: int


class Payment(NamedTuple):
    version: int
    payer: str
    payee: str
    currency: str
    amounts: Amounts


CHANGES = {
    "AuthorizationIncremented": {"authorized", "capturable"},
    "PaymentCaptured": {"captured", "capturable", "released"},
    "PaymentVoided": {"released", "capturable"},
    "AuthorizationExpired": {"expired", "capturable"},
    "PaymentRefunded": {"refunded"},
}
"""Which of its amounts an event of a payment can change."""


class Effect(NamedTuple):
    """What a command does to an account: an event of this topic, about this much of its money."""

    topic: str
    stream: str
    amount: int
    currency: str
    counterparty: str | None = None
    from_reserved: bool = False


def moved(payer: str, payee: str, amount: int, currency: str, from_reserved: bool = False) -> list[Effect]:
    debit = Effect("FundsDebited", f"account/{payer}", amount, currency, payee, from_reserved)
    return [debit, Effect("FundsCredited", f"account/{payee}", amount, currency, payer)]


class Books:
    """Every account with its version and state, and every payment of which something can be captured or refunded."""

    def __init__(self) -> None:
        self.accounts: dict[str, tuple[int, dict[str, Any]]] = {}
        self.payments: dict[str, Payment] = {}
        self.counts: Counter[str] = Counter()
        self._command = 0
        self._due: list[Effect] = []
        self._done: list[Effect] = []

    def add(self, event: Event) -> None:
        """A command is one event that says what was decided, and right after it one for each of its effects."""
        fields, topic, kind = event.fields, event.topic, event.stream.partition("/")[0]
        require(fields["class_version"] == 1, "this program is too old for {} {}", topic, fields["class_version"])
        recorded_at = (datetime.fromisoformat(fields["timestamp"]) - EPOCH) // timedelta(microseconds=1)
        require(recorded_at == event.recorded_at, "its state says another time: {}", fields["timestamp"])
        is_effect = topic.startswith("Funds")
        if not is_effect:
            self.end_command()
            self._command = event.position
            self.counts["commands"] += 1
        require(fields["command_position"] == self._command, "the command at {} is not its own", self._command)
        if is_effect:
            amount, currency = whole(fields["amount"]), fields["after"]["currency_code"]
            others = fields.get("counterparty"), fields.get("from_reserved", False)
            self._done.append(Effect(topic, event.stream, amount, currency, *others))
            self._add_to_account(event)
        elif kind == "account" and topic.startswith(("Account", "CreditLimit")):
            self._add_to_account(event)
        elif kind == "payment" and topic in ("PaymentAuthorized", "PaymentDeclined"):
            self._open_payment(event)
        elif kind == "payment" and topic in CHANGES:
            self._change_payment(event)
        elif kind == "transfer" and topic in ("TransferPosted", "TransferDeclined"):
            self._add_transfer(event)
        else:
            raise Wrong(f"this program knows no {topic!a} of {event.stream!a}")

    def end_command(self) -> None:
        """Raise Wrong unless debits and credits of the last command are equal, and just what it had to do."""
        sums: Counter[str] = Counter()
        for each in self._done:
            sums[each.currency] += {"FundsDebited": 1, "FundsCredited": -1}.get(each.topic, 0) * each.amount
        require(not any(sums.values()), "debits less credits of the command at {}: {}", self._command, dict(sums))
        due, done = self._due, self._done
        require(due == done, "the command at {} has to do {}, but did {}", self._command, due, done)
        self._due, self._done = [], []

    def effects_to_come(self) -> int:
        """How many effects the last command has yet to have: a head can be of a log that ends within a command."""
        done = len(self._done)
        return len(self._due) - done if self._done == self._due[:done] else 0

    def totals(self) -> Counter[str]:
        """What all accounts of each currency add up to."""
        totals: Counter[str] = Counter()
        for _, state in self.accounts.values():
            totals[state["currency_code"]] += state["posted"]
        return totals

    def _add_to_account(self, event: Event) -> None:
        """The state that the event carries is what follows from the state before, and within the rules."""
        stream, (version, before) = event.stream, self.accounts.get(event.stream, (0, None))
        require(event.version == version + 1, "version {} of {} follows version {}", event.version, stream, version)
        carried, state = event.fields["after"], state_after(event, before)
        require(carried == state, "{} is said to be {}, but adds up to {}", stream, carried, state)
        posted, reserved, limit = (whole(carried[name]) for name in ("posted", "reserved", "credit_limit"))
        require(reserved >= 0, "{} has less than nothing reserved: {}", stream, carried)
        within_limit = carried["kind"] == "EXTERNAL" or posted - reserved + limit >= 0
        require(within_limit, "customer {} is below the limit: {}", stream, carried)
        is_empty = posted == reserved == 0
        require(is_empty or carried["status"] != "CLOSED", "{} is closed with money on it: {}", stream, carried)
        self.accounts[stream] = event.version, state

    def _open_payment(self, event: Event) -> None:
        fields, stream = event.fields, event.stream
        opens = event.version == 1 and stream not in self.payments and stream == f"payment/{fields['payment_id']}"
        require(opens, "it does not begin {}", stream)
        self.counts["payments"] += 1
        if event.topic == "PaymentAuthorized":
            currency, amount = fields["amount"]["currency_code"], whole(fields["amount"]["minor_units"])
            payer, payee = fields["payer_account_id"], fields["payee_account_id"]
            self.payments[stream] = Payment(1, payer, payee, currency, Amounts(amount, amount, 0, 0, 0, 0))
            self._due.append(Effect("FundsReserved", f"account/{payer}", amount, currency))

    def _change_payment(self, event: Event) -> None:
        """The amounts before are those of the last event, those after add up, and only some of them can change."""
        stream, payment = event.stream, self.payments.get(event.stream)
        if payment is None:
            raise Wrong(f"{stream!a} was not authorized, or nothing of it can be captured or refunded any more")
        require(event.version == payment.version + 1, "version {} of {} follows another", event.version, stream)
        before, after = Amounts(**event.fields["before"]), Amounts(**event.fields["after"])
        require(before == payment.amounts, "{} was {} before, not {}", stream, payment.amounts, before)
        require(min(map(whole, after)) >= 0, "{} has an amount below zero: {}", stream, after)
        require(after.captured <= after.authorized, "{} captures more than was authorized: {}", stream, after)
        require(after.refunded <= after.captured, "{} refunds more than was captured: {}", stream, after)
        total = after.captured + after.capturable + after.released + after.expired
        require(total == after.authorized, "{} does not add up to what was authorized: {}", stream, after)
        change = Amounts(*(new - old for new, old in zip(after, before, strict=True)))
        others = [name for name, amount in change._asdict().items() if amount and name not in CHANGES[event.topic]]
        require(not others, "{} can't change {}", event.topic, others)
        done = after.authorized if change.authorized else change.captured or change.refunded
        asked = event.fields.get("amount", {"minor_units": done})["minor_units"]
        require(asked == done, "{} of {} were asked for, but it was {}", asked, stream, done)
        self._due += effects_of_change(event.topic, payment, change)
        if after.capturable or after.refunded < after.captured:
            self.payments[stream] = payment._replace(version=event.version, amounts=after)
        else:
            del self.payments[stream]

    def _add_transfer(self, event: Event) -> None:
        fields, stream = event.fields, event.stream
        is_whole = event.version == 1 and stream == f"transfer/{fields['transfer_id']}"
        require(is_whole, "it is not the one event of {}", stream)
        self.counts["transfers"] += 1
        for leg in fields["legs"] if event.topic == "TransferPosted" else ():
            amount, currency = whole(leg["amount"]["minor_units"]), leg["amount"]["currency_code"]
            self._due += moved(leg["from_account_id"], leg["to_account_id"], amount, currency)


def effects_of_change(topic: str, payment: Payment, change: Amounts) -> list[Effect]:
    """What a change of a payment does to the accounts of its payer and its payee."""
    _, payer, payee, currency, _ = payment
    if topic == "AuthorizationIncremented":
        return [Effect("FundsReserved", f"account/{payer}", change.authorized, currency)]
    if topic == "PaymentRefunded":
        return moved(payee, payer, change.refunded, currency)
    effects = moved(payer, payee, change.captured, currency, True) if topic == "PaymentCaptured" else []
    if change.released or change.expired or not effects:
        effects.append(Effect("FundsReleased", f"account/{payer}", change.released + change.expired, currency))
    return effects


def state_after(event: Event, before: dict[str, Any] | None) -> dict[str, Any]:
    """The state of an account after an event, from the state before it and what the event says has changed."""
    fields = event.fields
    if event.topic == "AccountOpened":
        opens = before is None and event.stream == f"account/{fields['account_id']}"
        require(opens, "it does not open {}", event.stream)
        limit = fields.get("credit_limit", {"minor_units": 0})["minor_units"]
        asked = {name: fields["after"][name] for name in ("currency_code", "kind")}
        return asked | {"credit_limit": limit, "posted": 0, "reserved": 0, "status": "OPEN"}
    if before is None or before["status"] == "CLOSED":
        raise Wrong(f"{event.stream!a} is not open")
    if event.topic.startswith("Funds"):
        amount, posted, reserved = whole(fields["amount"]), before["posted"], before["reserved"]
        require(amount > 0, "the amount has to be above zero: {}", amount)
        posted += {"FundsCredited": amount, "FundsDebited": -amount}.get(event.topic, 0)
        reserved += {"FundsReserved": amount, "FundsReleased": -amount}.get(event.topic, 0)
        reserved -= amount if fields.get("from_reserved") else 0
        return before | {"posted": posted, "reserved": reserved}
    if event.topic == "CreditLimitChanged":
        return before | {"credit_limit": fields["credit_limit"]}
    state = {name: value for name, value in before.items() if name != "freeze_scope"}
    if event.topic == "AccountFrozen":
        return state | {"status": "FROZEN", "freeze_scope": fields["scope"]}
    return state | {"status": {"AccountUnfrozen": "OPEN", "AccountClosed": "CLOSED"}[event.topic]}


def whole(amount: Any) -> int:
    require(type(amount) is int and abs(amount) <= MINOR_UNITS_MOST, "{} is not an amount in minor units", amount)
    return int(amount)


# --- The verification ------------------------------------------------------------------------------------------------


class Verification:
    """One way through a bundle, and what was seen on it."""

    def __init__(self, bundle: Bundle, trusted: Key | None, kept: Note | None, watched_position: int) -> None:
        self.bundle, self.trusted, self.kept = bundle, trusted, kept
        self.tree, self.books = Tree(watched_position), Books()
        self.keys, self.key_now = list[Key](), 0
        self.ledger, self.heads, self.head_note, self.breaks = "", 0, "", list[str]()
        self.first: Event | None = None
        self.last: Event | None = None
        self.watched: Event | None = None
        self._watched_position, self._kept_head = watched_position, Head(-1, b"")
        self._position = ""

    def where(self) -> str:
        line = f", line {self.bundle.line}{self._position}" if self.bundle.line else ""
        return self.bundle.member + line

    def run(self) -> None:
        """Raise Wrong at the first thing that is wrong, which is `where` it then stands."""
        try:
            self._run()
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise Wrong(f"it is not made as it has to be: {error!r}") from None

    def _run(self) -> None:
        bundle, number = self.bundle, 1
        bundle.next("keys.txt")
        self._read_keys(bundle.text())
        while bundle.next(f"part-{number:06}.jsonl.gz", "manifest.json") != "manifest.json":
            for line in bundle.lines():
                self._read_line(line)
            number += 1
            show_progress(f"{self.tree.size:,} events")
        self._check_end()
        self._check_manifest(bundle.text())
        bundle.end()

    def _read_keys(self, text: str) -> None:
        self.keys = [Key.from_text(line) for line in text.splitlines()]
        require(text == "".join(f"{key.text}\n" for key in self.keys) != "", "it has to be lines with a key each")
        require(len({key.name for key in self.keys}) == 1, "the keys have different names")
        trusts = self.trusted is None or self.trusted.text in text.splitlines()
        require(trusts, "the key that you trust is not among those that it is signed with: {}", text)
        if self.kept:
            self._kept_head = Head.from_note(self.kept, self.keys[0].name)
            signed = [key for key in self.keys if self.kept.signed_by(key)]
            require(bool(signed), "the head that you kept is not signed with a key of this ledger")

    def _read_line(self, text: bytes) -> None:
        self._position = ""
        line = parsed(text, "the line")
        if line.keys() == {"head"}:
            self._read_head(line["head"])
        elif line.keys() == {"break"}:
            self._read_break(Note.from_text(line["break"]))
        else:
            self._position = f", position {line['position']!a}"
            self._read_event(Event.from_line(line))

    def _read_event(self, event: Event) -> None:
        before = self.tree.size
        require(event.position == before + 1, "it follows position {}", before)
        in_time = self.last is None or event.recorded_at >= self.last.recorded_at
        require(in_time, "its time is before that of the event before it")
        self.books.add(event)
        self.tree.add(leaf_hash(event))
        self.first, self.last = self.first or event, event
        if event.position == self._watched_position:
            self.watched = event
        if event.position == self._kept_head.size:
            is_same = self._kept_head.root == self.tree.root()
            require(is_same, "the head that you kept is of another log. Breaks before: {}", self.breaks)

    def _read_head(self, text: str) -> None:
        """A head is of just the events before it."""
        note, size = Note.from_text(text), self.tree.size
        head = Head.from_note(note, self.keys[0].name)
        require(note.signed_by(self.keys[self.key_now]), "it is not signed by {}", self.keys[self.key_now].text)
        if head.next_key not in ("", self.keys[self.key_now].text):  # The key so far introduces the next one.
            following = self.keys[self.key_now + 1 : self.key_now + 2]
            is_next = [key.text for key in following] == [head.next_key]
            require(is_next, "the key that it introduces is not the next one: {}", head.next_key)
            self.key_now += 1
            require(note.signed_by(self.keys[self.key_now]), "the key that it introduces has not signed it")
        is_root = head[:2] == (size, self.tree.root())
        require(is_root, "the head of {} events is not that of the {} before it: they were changed", head.size, size)
        self.heads, self.head_note = self.heads + 1, text

    def _read_break(self, note: Note) -> None:
        require(len(note.lines) == 7 and note.lines[0] == f"{self.keys[0].name}/break/1", "{} is no break", note.lines)
        require(note.signed_by(self.keys[self.key_now]), "it is not signed by {}", self.keys[self.key_now].text)
        before, now = Head.from_lines(*note.lines[1:3]), Head.from_lines(*note.lines[3:5])
        is_here = now[:2] == (self.tree.size, self.tree.root())
        require(is_here, "the log does not go on at {} events with the root that the break says", now.size)
        self.breaks.append(f"from {before.size:,} to {now.size:,} events, at {note.lines[5]!a}: {note.lines[6]!a}")

    def _check_end(self) -> None:
        size, signed = self.tree.size, self.head_note.split("\n")[1:2]
        require(signed == [str(size)], "the log ends at {}, but the last signed head at {}", size, signed)
        if not self.books.effects_to_come():
            self.books.end_command()
            totals = self.books.totals()
            require(not any(totals.values()), "the balances don't sum to zero: {}", totals)
        require(self.key_now == len(self.keys) - 1, "no head introduces the key {}", self.keys[-1].text)
        kept = self._kept_head.size
        require(kept <= size, "the head that you kept is of {} events, which is more than there are", kept)

    def _check_manifest(self, text: str) -> None:
        *members, _ = self.bundle.members
        says = parsed(text.removesuffix("\n").encode(), "it")
        for listed, found in zip(says["members"], members, strict=False):
            require(listed == found, "it lists {}, but found was {}", listed, found)
        facts = {"format": "bundle/1", "head": self.head_note, "ledger": says["ledger"], "members": members}
        facts |= {"origin": self.keys[0].name, "size": self.tree.size}
        wrong = sorted(name for name in says.keys() | facts.keys() if says.get(name) != facts.get(name))
        require(not wrong and text == canonical(facts) + "\n", "it is not what was found, in {}", wrong)
        self.ledger = says["ledger"]
        self.bundle.next("manifest.sha256")
        is_hash = self.bundle.text() == f"{hashlib.sha256(text.encode()).hexdigest()}  manifest.json\n"
        require(is_hash, "it is not the SHA-256 of the manifest")


def report(seen: Verification) -> Iterator[str]:
    """What was found to be true, for people."""
    counts, keys = seen.books.counts, seen.keys
    payments, transfers, accounts = counts["payments"], counts["transfers"], len(seen.books.accounts)
    yield f"bundle/1 of ledger {seen.ledger!a}, origin {keys[0].name}: {seen.tree.size:,} events"
    if seen.first and seen.last:
        yield f"recorded from {utc(seen.first)} to {utc(seen.last)}"
    yield f"ok  file: {len(seen.bundle.members)} members, every byte as the manifest says"
    yield "ok  log: positions and versions without gaps, times never backwards"
    yield f"ok  money: debits equal credits in {counts['commands']:,} commands, and all that follows adds up:"
    yield f"    {payments:,} payments, {transfers:,} transfers, {accounts:,} accounts"
    if missing := seen.books.effects_to_come():
        yield f"!!  the last command goes on after the last head: {missing} events of it are not here"
    yield f"ok  heads: {seen.heads:,}, each signed by the key of its time, and of this log"
    yield from (f"!!  the log was openly set back {each}" for each in seen.breaks)
    yield from (f"!!  key {old.id.hex()} introduced key {new.id.hex()}" for old, new in pairwise(keys))
    if seen.kept:
        yield "ok  the head that you kept: nothing that it covers was changed since"
    if not seen.trusted:
        yield "!!  You gave no --public-key. So all this proves only that the bundle agrees with itself. Its own key is"
        yield f"    {keys[0].text}"
    if seen.watched:
        yield from inclusion(seen.watched, seen.tree.joined().path)
    yield f"Verified. The root of all {seen.tree.size:,} events is {b64encode(seen.tree.root()).decode()}"


def inclusion(event: Event, path: list[tuple[str, bytes]]) -> Iterator[str]:
    """An event and what proves that it is in the tree: the hashes that join its own, from the leaf up to the root."""
    yield f"Position {event.position}: {event.topic}, version {event.version} of {event.stream!a}, {utc(event)}"
    yield json.dumps(event.fields, indent=2)
    yield f"leaf   {leaf_hash(event).hex()}"
    root = leaf_hash(event)
    for side, sibling in path:
        root = node_hash(sibling, root) if side == "left" else node_hash(root, sibling)
        yield f"{side:5}  {sibling.hex()}"
    yield f"root   {root.hex()}"


def show_progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text:30}\r", end="", file=sys.stderr, flush=True)


def utc(event: Event) -> str:
    return (EPOCH + timedelta(microseconds=event.recorded_at)).isoformat()


# --- The command -----------------------------------------------------------------------------------------------------


def text_in(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise Wrong(f"{file} is not a text") from None


def keep(note: str, file: Path) -> None:
    """Write a head into a file, or leave that as it is: the head that it has may be the only one that was kept."""
    target = file.resolve()
    try:
        if target.exists() and not target.is_file():  # A terminal, say: there is nothing to lose.
            target.write_text(note, encoding="utf-8")
            return
        new = target.with_name(f"{target.name}.new")
        try:
            with new.open("w", encoding="utf-8") as writing:
                writing.write(note)
                writing.flush()
                os.fsync(writing.fileno())
            new.replace(target)
        finally:
            new.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from None


def key_of(text_or_file: str) -> Key:
    is_file = Path(text_or_file).is_file()
    try:
        return Key.from_text((text_in(Path(text_or_file)) if is_file else text_or_file).strip())
    except Wrong as error:
        raise Wrong(f"--public-key: {error}{'' if is_file else ', and there is no such file'}") from None


def a_position(argument: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,18}", argument, re.ASCII):
        raise argparse.ArgumentTypeError(f"{argument!r} is not a position: they are numbered from 1")
    return int(argument)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="exit codes: 0 verified; 1 something is wrong, and what and where is printed; 2 it could not be tried",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    key = "the ledger's public key, or a file with it: <name>+<id>+<base64>"
    position = "show the event at this position, and what proves that it is in the log"
    parser.add_argument("bundle", type=Path, metavar="FILE", help="the bundle, as `ledger audit export` wrote it")
    parser.add_argument("--public-key", metavar="TEXT|FILE", help=key)
    parser.add_argument("--head", type=Path, metavar="FILE", help="a head that you kept: the log has to go on from it")
    parser.add_argument("--save-head", type=Path, metavar="FILE", help="keep the last head, if all is verified")
    parser.add_argument("--inclusion", type=a_position, default=0, metavar="POSITION", help=position)
    return parser.parse_args()


def verdict(asked: argparse.Namespace) -> tuple[int, list[str]]:
    """The exit code, and what is to be said of it. What it can't read or write raises OSError."""
    trusted = None if asked.public_key is None else key_of(asked.public_key)
    kept = Note.from_text(text_in(asked.head)) if asked.head else None
    with asked.bundle.open("rb") as file:
        seen = Verification(Bundle(file), trusted, kept, asked.inclusion)
        try:
            seen.run()
        except Wrong as error:
            return WRONG, [f"WRONG: {seen.where()}: {error}", "Nothing after that was looked at."]
        finally:
            show_progress("")
    there, size = asked.inclusion <= seen.tree.size, seen.tree.size
    require(there, "what is in it is right, but it has no position {}: it has {} events", asked.inclusion, size)
    if asked.save_head:
        keep(seen.head_note, asked.save_head)
    return VERIFIED, list(report(seen))


def main() -> int:
    asked = arguments()
    try:
        code, lines = verdict(asked)
    except OSError as error:
        print(f"verify_bundle: {error.filename or asked.bundle}: {error.strerror}", file=sys.stderr)
        return USAGE
    except (Wrong, ValueError) as error:
        print(f"verify_bundle: {error}", file=sys.stderr)
        return USAGE
    try:
        print(*lines, sep="\n", flush=True)
    except OSError as error:
        sys.stdout = None  # Else it is tried again at the end, and that is the exit code.
        print(f"verify_bundle: can't write what it found: {error.strerror}", file=sys.stderr)
        return USAGE
    return code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("verify_bundle: stopped before the end, so nothing is proved", file=sys.stderr)
        sys.exit(USAGE)
