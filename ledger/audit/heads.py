"""Signed notes, each held against its signature: heads in the database, heads that an auditor kept, and breaks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from psycopg import Connection

from ledger.audit.findings import Finding, Findings, Kind
from ledger.audit.note import Note, NoteInvalid, PublicKey, TreeHead
from ledger.audit.snapshot import batches, reading
from ledger.postgres import sql_blocks
from ledger.terminal import printable

SQL: Final = sql_blocks("ledger.audit", "heads.sql")

_BREAK_LINES: Final = 7
_BREAK: Final = "/break/1"


@dataclass(frozen=True, slots=True)
class Signed:
    """That the log had this root at this size. `place` is where that stands."""

    size: int
    root: bytes
    place: str
    is_sound: bool = True
    """Whether the note is in order and signed by a key that is trusted."""
    is_published: bool = False
    """Whether it stands among the heads of the database."""


@dataclass(frozen=True, slots=True)
class Break:
    """An operator's word that a log was restored: it went on from `size`, though a head of size `before` was signed."""

    number: int
    before: int
    size: int
    root: bytes
    when: str
    why: str

    @classmethod
    def parse(cls, number: int, note: Note) -> Break:
        """Raises NoteInvalid."""
        lines = note.text.splitlines()
        if len(lines) != _BREAK_LINES or not lines[0].endswith(_BREAK):
            raise NoteInvalid("it is not the note of a break")
        before = TreeHead.parse("\n".join(lines[:3]) + "\n")
        after = TreeHead.parse("\n".join([lines[0], *lines[3:5]]) + "\n")
        return cls(number, before.size, after.size, after.root, lines[5], lines[6])

    @property
    def line(self) -> str:
        """For people."""
        taken = f"positions {self.size + 1:,} to {self.before:,} were taken back"
        return f"break {self.number} ({printable(self.when)}): {taken}: {printable(self.why)}"


class Trust:
    """The keys by which notes are checked, in the order in which they were introduced.

    Each signs until a head of its own names the next one, which signs that as well; from then on that one has to sign.
    """

    def __init__(self, keys: Sequence[PublicKey]) -> None:
        self.keys = tuple(keys)
        self._in_use = 0

    @property
    def not_introduced(self) -> tuple[PublicKey, ...]:
        """Those that no head has introduced yet."""
        return self.keys[self._in_use + 1 :]

    def require(self, note: Note, origin: str) -> None:
        """Raise NoteInvalid unless one of the keys has signed, for this origin."""
        signers = note.signers(self.keys)
        if not signers:
            raise NoteInvalid(_signed_by(note))
        _require_of(signers[0], origin)

    def follow(self, note: Note, head: TreeHead) -> None:
        """Raise NoteInvalid unless the key has signed that is in use by now. Heads have to come in their order."""
        signers = note.signers(self.keys)
        if not self.keys or self.keys[self._in_use] not in signers:
            raise NoteInvalid(_signed_by(note))
        _require_of(self.keys[self._in_use], head.origin)
        # A signer that was killed right after it had introduced a key introduces it once more.
        if head.next_key not in (None, self.keys[self._in_use]):
            if head.next_key not in self.not_introduced[:1]:
                raise NoteInvalid(f"the key that it introduces is not the ledger's next one, but {head.next_key}")
            if head.next_key not in signers:
                raise NoteInvalid(f"the key that it introduces has not signed it: {head.next_key}")
            self._in_use += 1


def _require_of(key: PublicKey, origin: str) -> None:
    """Raise NoteInvalid if that is of another ledger, which has the same key: no signature says under which name."""
    if origin != key.name:
        raise NoteInvalid(f"it is of {origin}, not of {key.name}")


def _signed_by(note: Note) -> str:
    names = ", ".join(printable(f"{each.name}+{each.key_id.hex()}") for each in note.signatures)
    return f"it is not signed by a key that is trusted, but by {names}"


class Heads:
    """Reads what was signed; what is wrong with a note itself goes to the findings."""

    def __init__(self, connection: Connection[Any], findings: Findings, trusted: PublicKey | None = None) -> None:
        """`trusted` is the key that the auditor was given; without one the ledger's own word is taken for its keys."""
        self._connection, self._findings = connection, findings
        keys = self._stored_keys()
        if trusted is not None and trusted not in keys:
            what = "the key that is trusted is not one of them"
            self._findings.add(Finding(Kind.HEADS, what, place="the ledger's keys"))
            keys = [trusted]
        self._trust = Trust(keys)
        self.published = 0
        """How many heads the database has, as far as they were read; and the largest of them:"""
        self.largest: Signed | None = None

    @property
    def keys(self) -> tuple[PublicKey, ...]:
        """The keys that signatures are checked with."""
        return self._trust.keys

    def _stored_keys(self) -> list[PublicKey]:
        keys = []
        for number, text in self._connection.execute(SQL.keys):
            try:
                keys.append(PublicKey.parse(text))
                if number != len(keys):
                    raise NoteInvalid("a key before it is missing")
            except NoteInvalid as error:
                self._findings.add(Finding(Kind.HEADS, printable(str(error)), place=f"key {number:,}"))
        return keys

    def read(self) -> Iterator[Signed]:
        """The heads of the database in the order of their sizes, which must be that of their numbers."""
        for rows in batches(reading(self._connection, "heads", SQL.heads)):
            for number, size, root, note in rows:
                place = f"head {number or 0:,}"
                if None in (number, size, root, note):
                    self._findings.add(Finding(Kind.HEADS, "a column of it is NULL", place=place))
                    continue
                if number != self.published + 1:
                    what = f"head {self.published + 1:,} is missing before it, or it is out of order"
                    self._findings.add(Finding(Kind.HEADS, what, place=place))
                self.published = number
                self.largest = self._published(place, size, bytes(root), note)
                yield self.largest
        if self.keys and self.largest is None:
            what = "no head is there, and a key is recorded with the first head that it signs"
            self._findings.add(Finding(Kind.HEADS, what, place="the ledger's keys"))
        for key in self._trust.not_introduced:
            what = "no head has introduced it, named in one that the key before has signed"
            self._findings.add(Finding(Kind.HEADS, what, place=f"key {printable(str(key))}"))

    def _published(self, place: str, size: int, root: bytes, text: str) -> Signed:
        signed = Signed(size, root, place, is_sound=False, is_published=True)
        try:
            note = Note.parse(text)
            head = TreeHead.parse(note.text)
            self._trust.follow(note, head)
        except NoteInvalid as error:
            self._findings.add(Finding(Kind.SIGNATURE, printable(str(error)), size, place=place))
            return signed
        if (head.size, head.root) != (size, root):
            what = f"its columns are not those of its note, which was signed at size {head.size:,}"
            self._findings.add(Finding(Kind.HEADS, what, size, place=place))
            return signed
        return Signed(size, root, place, is_published=True)

    def kept(self, name: str, text: str) -> Signed:
        """A head that an auditor has kept, and believes whoever has signed it. Raises NoteInvalid if it is none."""
        note = Note.parse(text)
        head = TreeHead.parse(note.text)
        self._check_signature(note, head.origin, name, head.size)
        return Signed(head.size, head.root, name)

    def breaks(self) -> list[Break]:
        """Every break, in order."""
        found = []
        for number, text in self._connection.execute(SQL.breaks):
            place = f"break {number:,}"
            try:
                note = Note.parse(text)
                found.append(Break.parse(number, note))
            except NoteInvalid as error:
                self._findings.add(Finding(Kind.SIGNATURE, printable(str(error)), place=place))
                continue
            origin = note.text.partition("\n")[0].removesuffix(_BREAK)
            self._check_signature(note, origin, place, found[-1].size)
            if number != len(found):
                self._findings.add(Finding(Kind.HEADS, "a break is missing before it", place=place))
        return found

    def _check_signature(self, note: Note, origin: str, place: str, size: int) -> None:
        try:
            self._trust.require(note, origin)
        except NoteInvalid as error:
            self._findings.add(Finding(Kind.SIGNATURE, printable(str(error)), size, place=place))
