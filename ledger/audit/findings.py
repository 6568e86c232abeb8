"""Findings: what an audit found to be wrong, where, and in words for a person."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

FINDINGS_MOST: Final = 20
"""How many findings are named. The first ones are; the rest is counted."""


class Kind(StrEnum):
    """What is wrong, for programs: a name never changes. Of several at one position the first here is named."""

    POSITIONS = "POSITIONS"
    """The positions are not 1, 2, 3 ..."""
    VERSIONS = "VERSIONS"
    """The versions of a stream are not 1, 2, 3 ... in the order of the positions."""
    TIMES = "TIMES"
    """recorded_at goes backwards, or is no time."""
    UNREADABLE = "UNREADABLE"
    """The state is not that of an event."""
    COLUMNS = "COLUMNS"
    """A column says something else than the state."""
    BYTES = "BYTES"
    """The content is what it must be, but not the bytes that it is stored as."""
    DECISION = "DECISION"
    """What is recorded is not what the rules decide, the accounts being as they were."""
    CHANGED = "CHANGED"
    """The event is not the one that was signed at its position."""
    SUMS = "SUMS"
    """Debits and credits differ."""
    TAIL = "TAIL"
    """The log ends before a size that was signed."""
    ROOT = "ROOT"
    """The log up to a size that was signed is not what was signed."""
    SIGNATURE = "SIGNATURE"
    """A signed note is not one, or not signed by a key that is trusted."""
    HEADS = "HEADS"
    """A row of the tree heads does not say what its note says, or is missing."""
    TILES = "TILES"
    """A stored tile of the tree is not what the log comes to."""
    READ_MODEL = "READ_MODEL"
    """A read model is not what the log comes to."""


_IN_LOG: Final = frozenset(Kind) - {Kind.SIGNATURE, Kind.HEADS, Kind.TILES, Kind.READ_MODEL}
_RANK: Final = {kind: rank for rank, kind in enumerate(Kind)}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. `position` is the first one that is touched, `place` what is not in the log itself."""

    kind: Kind
    what: str
    position: int | None = None
    stream: str | None = None
    version: int | None = None
    place: str = ""

    @property
    def where(self) -> str:
        position = None if self.position is None else f"position {self.position:,}"
        if self.place:
            return self.place if position is None else f"{self.place} ({position})"
        stream = None if self.stream is None else f"{self.stream}, version {self.version}"
        if position and stream:
            return f"{position} ({stream})"
        return position or stream or "the log"

    @property
    def line(self) -> str:
        """Where and what, on one line."""
        return f"{self.where}: {self.what}"

    @property
    def order(self) -> tuple[int, float, int]:
        """What comes first: the log, in order of position; then what stands beside it; then what is made from it."""
        group = 0 if self.kind in _IN_LOG else 1 + (self.kind is Kind.READ_MODEL)
        return group, float("inf") if self.position is None else self.position, _RANK[self.kind]

    def as_json(self) -> dict[str, Any]:
        fields = {"position": self.position, "stream": self.stream, "version": self.version, "place": self.place}
        return {"kind": str(self.kind), "what": self.what} | {key: each for key, each in fields.items() if each}


class Findings:
    """The first findings, in order and one for each position of the log, and how many there are."""

    def __init__(self, most: int = FINDINGS_MOST) -> None:
        self._most = most
        self._kept: list[Finding] = []
        self._others = 0

    def add(self, finding: Finding) -> None:
        self._kept.append(finding)
        if len(self._kept) >= 10 * self._most:
            self._cut()

    @property
    def first(self) -> list[Finding]:
        """The first ones, the very first in front."""
        self._cut()
        return list(self._kept)

    @property
    def others(self) -> int:
        """How many more there are."""
        self._cut()
        return self._others

    def merge(self, findings: list[Finding], others: int) -> None:
        """Take over what somebody else has found."""
        for each in findings:
            self.add(each)
        self._others += others

    def _cut(self) -> None:
        kept: list[Finding] = []
        for each in sorted(self._kept, key=lambda each: each.order):
            # One thing that is wrong with an event is often seen in several ways.
            is_same = kept and each.position is not None and each.order[:2] == kept[-1].order[:2]
            if not is_same or each.kind is Kind.READ_MODEL:
                kept.append(each)
        self._others += len(kept[self._most :])
        self._kept = kept[: self._most]
