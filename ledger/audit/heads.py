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
        if len(lines) != _BREAK_LINES or not lines[0].endswith("/break/1"):
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
    """The keys by which notes are checked; without any, no signature is.

    The first is trusted from the beginning, the others from the head on that one which is trusted has signed as well.
    """

    def __init__(self, keys: Sequence[PublicKey]) -> None:
        self.keys = tuple(keys)
        self._followed = set(keys[:1])

    def require(self, note: Note) -> None:
        """Raise NoteInvalid unless one of the keys has signed."""
        if self.keys and not note.signers(self.keys):
            raise NoteInvalid(_signed_by(note))

    def follow(self, note: Note) -> None:
        """The same for the next head of those that follow each other: keys are introduced by them."""
        if self.keys:
            signers = set(note.signers(self.keys))
            if not signers & self._followed:
                raise NoteInvalid(_signed_by(note))
            self._followed |= signers


def _signed_by(note: Note) -> str:
    names = ", ".join(printable(f"{each.name}+{each.key_id.hex()}") for each in note.signatures)
    return f"it is not signed by a key that is trusted, but by {names}"


class Heads:
    """Reads what was signed; what is wrong with a note itself goes to the findings."""

    def __init__(self, connection: Connection[Any], findings: Findings, trust: Trust) -> None:
        self._connection, self._findings, self._trust = connection, findings, trust
        self.published = 0
        """How many heads the database has, as far as they were read; and the largest of them:"""
        self.largest: Signed | None = None
        self.signed_by = ""
        """Who signed the first of them, by its own word."""

    def read(self) -> Iterator[Signed]:
        """The heads of the database in the order of their sizes, which must be that of their numbers."""
        for rows in batches(reading(self._connection, "heads", SQL.heads)):
            for number, size, root, note in rows:
                place = f"head {number:,}"
                if number != self.published + 1:
                    what = f"head {self.published + 1:,} is missing before it, or it is out of order"
                    self._findings.add(Finding(Kind.HEADS, what, place=place))
                self.published = number
                self.largest = self._published(place, size, bytes(root), note)
                yield self.largest

    def _published(self, place: str, size: int, root: bytes, text: str) -> Signed:
        signed = Signed(size, root, place, is_sound=False, is_published=True)
        try:
            note = Note.parse(text)
            head = TreeHead.parse(note.text)
            self.signed_by = self.signed_by or ", ".join(f"{each.name}+{each.key_id.hex()}" for each in note.signatures)
            self._trust.follow(note)
        except NoteInvalid as error:
            self._findings.add(Finding(Kind.SIGNATURE, printable(str(error)), size, place=place))
            return signed
        if (head.size, head.root) != (size, root):
            what = f"its columns are not those of its note, which was signed at size {head.size:,}"
            self._findings.add(Finding(Kind.HEADS, what, size, place=place))
            return signed
        return Signed(size, root, place, is_published=True)

    def kept(self, name: str, text: str) -> Signed:
        """A head that an auditor has kept. Raises NoteInvalid if it is none."""
        note = Note.parse(text)
        head = TreeHead.parse(note.text)
        return Signed(head.size, head.root, name, is_sound=self._is_signed(note, name, head.size))

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
            self._is_signed(note, place, found[-1].size)
            if number != len(found):
                self._findings.add(Finding(Kind.HEADS, "a break is missing before it", place=place))
        return found

    def _is_signed(self, note: Note, place: str, size: int) -> bool:
        try:
            self._trust.require(note)
        except NoteInvalid as error:
            self._findings.add(Finding(Kind.SIGNATURE, printable(str(error)), size, place=place))
            return False
        return True
