"""What was signed held against the log: the tree over it must have each signed root when it has that size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from heapq import merge
from operator import attrgetter
from typing import Final, NamedTuple

from ledger.audit.findings import Finding, Findings, Kind
from ledger.audit.heads import Break, Signed
from ledger.audit.merkle import Frontier

_WRONG_MOST: Final = 100
"""How many published heads that disagree are remembered, until one that agrees shows what is wrong with them."""


class Departure(NamedTuple):
    """Where the log departs from what was signed: the largest tree that is as signed, and the next that is not."""

    size: int
    hashes: tuple[bytes, ...]
    signed: Signed


class Roots:
    """Goes along with the tree in the order of sizes; what is not soundly signed is passed over."""

    def __init__(
        self, findings: Findings, published: Iterable[Signed], kept: Sequence[Signed], breaks: Sequence[Break]
    ) -> None:
        by_size = attrgetter("size")
        others = [*kept, *(Signed(each.size, each.root, f"break {each.number:,}") for each in breaks)]
        self._findings, self._breaks = findings, breaks
        self._signed: Iterator[Signed] = merge(published, sorted(others, key=by_size), key=by_size)
        self._next = next(self._signed, None)
        self._good: tuple[int, tuple[bytes, ...]] = (0, ())
        self._wrong: list[Signed] = []
        self.is_newest_good = True
        """Whether the log agrees with the last published head that was passed, if there was one."""

    @property
    def next_size(self) -> int:
        """The size at which the tree is to pass by; -1 if there is no more."""
        return -1 if self._next is None else self._next.size

    def pass_by(self, tree: Frontier) -> bool:
        """The tree has come to `next_size`. Whether a published head agrees with it."""
        root, is_published = tree.root(), False
        while self._next is not None and self._next.size == tree.size:
            agrees = self._next.is_sound and self._next.root == root
            if agrees:
                self._agree(tree)
            elif self._next.is_sound:
                self._disagree(self._next)
            if self._next.is_published:
                self.is_newest_good = agrees
                is_published |= agrees
            self._next = next(self._signed, None)
        return is_published

    def finish(self, last: int) -> Departure | None:
        """The log has ended, at the position `last`. Returns where it departs from what was signed, if it does."""
        beyond = None
        while self._next is not None:
            self.is_newest_good &= not self._next.is_published
            if self._next.is_sound and self._next.size > last:
                self._lost(self._next, last)
                beyond = beyond or self._next
            elif self._next.is_sound:
                self._disagree(self._next)
            self._next = next(self._signed, None)
        first_published = next((each for each in self._wrong if each.is_published), None)
        for each in self._wrong:
            # Those that are published after the first follow from it; each that was kept is answered for.
            if each is first_published or not each.is_published:
                self._findings.add(Finding(Kind.ROOT, self._change(each), each.size))
        signed = next((each for each in [*self._wrong, beyond] if each is not None and each.size > self._good[0]), None)
        return None if signed is None else Departure(*self._good, signed)

    def _disagree(self, signed: Signed) -> None:
        if not signed.is_published or len(self._wrong) < _WRONG_MOST:
            self._wrong.append(signed)

    def _agree(self, tree: Frontier) -> None:
        """All up to here is as it was signed. A published head before it that said otherwise never was the log's."""
        self._good = tree.size, tree.hashes
        for each in self._wrong:
            if each.is_published:
                what = "its root is not that of the log, and later ones are: this head was changed"
                self._findings.add(Finding(Kind.HEADS, what, each.size, place=each.place))
        self._wrong = [each for each in self._wrong if not each.is_published]

    def _lost(self, signed: Signed, last: int) -> None:
        gone = f"position {last + 1:,}" if signed.size == last + 1 else f"positions {last + 1:,} to {signed.size:,}"
        what = f"the log ends before it: {gone} had been signed ({signed.place})"
        self._findings.add(Finding(Kind.TAIL, what + self._as_told(signed), last + 1))

    def _change(self, signed: Signed) -> str:
        since = self._good[0] + 1
        first = 1 if since > signed.size else since
        what = f"positions {first:,} to {signed.size:,} are not all as they were signed ({signed.place})"
        return what + self._as_told(signed)

    def _as_told(self, signed: Signed) -> str:
        """The break that says openly what this head shows."""
        told = (each for each in self._breaks if each.size < signed.size <= each.before)
        return "".join(f"; break {each.number:,} says so" for each in told)
