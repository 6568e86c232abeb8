"""The Merkle tree of RFC 9162 (RFC 6962), section 2.1, with SHA-256: roots, proofs, and what checks them.

A tree of n leaves is cut into complete subtrees, one for each bit of n. A complete subtree has a level (it covers
2^level leaves) and an index (how many of its size stand before it), and its hash never changes: so proofs are made from
hashes of complete subtrees, wherever these are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from typing import Final, TypeAlias

HASH_BYTES: Final = 32
EMPTY_ROOT: Final = sha256().digest()

NodeHash: TypeAlias = Callable[[int, int], bytes]
"""The hash of the complete subtree of a level and index."""


class ProofInvalid(Exception):
    """The proof does not show what it should."""


def leaf_hash(data: bytes) -> bytes:
    return sha256(b"\0" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return sha256(b"\1" + left + right).digest()


class Frontier:
    """The right edge of a tree that grows: the hashes of its complete subtrees, the largest first."""

    def __init__(self, size: int = 0, hashes: Sequence[bytes] = ()) -> None:
        """A tree of `size` leaves whose complete subtrees have these hashes, the largest first."""
        assert len(hashes) == size.bit_count(), f"a tree of {size} leaves has {size.bit_count()} complete subtrees"
        self.size = size
        self._hashes = list(hashes)

    @property
    def hashes(self) -> tuple[bytes, ...]:
        return tuple(self._hashes)

    def append(self, leaf: bytes) -> None:
        """Add a leaf, by its hash."""
        hashes, size = self._hashes, self.size
        while size & 1:
            leaf = node_hash(hashes.pop(), leaf)
            size >>= 1
        hashes.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        return _joined(self._hashes)


def root_of(leaves: Iterable[bytes]) -> bytes:
    """The root of the tree over leaves, by their hashes."""
    frontier = Frontier()
    for leaf in leaves:
        frontier.append(leaf)
    return frontier.root()


def subtrees(size: int) -> Iterator[tuple[int, int]]:
    """The complete subtrees of a tree, the largest first: level and index of each."""
    start = 0
    for level in reversed(range(size.bit_length())):
        if size >> level & 1:
            yield level, start >> level
            start += 1 << level


def root_at(size: int, node: NodeHash) -> bytes:
    """The root of the tree of the first `size` leaves."""
    return _joined([node(level, index) for level, index in subtrees(size)])


def inclusion_proof(index: int, size: int, node: NodeHash) -> list[bytes]:
    """The path from the leaf `index` (from 0) to the root of the tree of `size` leaves: RFC 9162, 2.1.3.1."""
    assert 0 <= index < size
    return list(_path(index, 0, size, node))


def consistency_proof(first: int, second: int, node: NodeHash) -> list[bytes]:
    """That the tree of `first` leaves is the beginning of that of `second`: RFC 9162, 2.1.4.1."""
    assert 0 < first <= second
    return list(_subproof(first, 0, second, node, whole=True)) if first < second else []


def verify_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes], root: bytes) -> None:
    """Raise ProofInvalid unless `proof` leads from the leaf's hash at `index` to the root: RFC 9162, 2.1.3.2."""
    if not 0 <= index < size:
        raise ProofInvalid(f"a tree of {size} leaves has no leaf {index}")
    number, last, found = index, size - 1, leaf
    for each in proof:
        if last == 0:
            raise ProofInvalid("the proof is too long")
        if number & 1 or number == last:
            found = node_hash(each, found)
            while not number & 1 and number:
                number, last = number >> 1, last >> 1
        else:
            found = node_hash(found, each)
        number, last = number >> 1, last >> 1
    if last != 0:
        raise ProofInvalid("the proof is too short")
    if found != root:
        raise ProofInvalid(f"the proof leads to another root than that of the tree of size {size}")


def verify_consistency(first: int, second: int, first_root: bytes, second_root: bytes, proof: Sequence[bytes]) -> None:
    """Raise ProofInvalid unless the first tree is the beginning of the second: RFC 9162, 2.1.4.2."""
    if not 0 < first <= second:
        raise ProofInvalid(f"a tree of {first} leaves is not the beginning of one of {second}")
    if first == second:
        if proof or first_root != second_root:
            raise ProofInvalid(f"two trees of size {first} have different roots")
        return
    path = list(proof) if first & (first - 1) else [first_root, *proof]
    if not path:
        raise ProofInvalid("the proof is empty")
    number, last = first - 1, second - 1
    while number & 1:
        number, last = number >> 1, last >> 1
    found_first = found_second = path[0]
    for each in path[1:]:
        if last == 0:
            raise ProofInvalid("the proof is too long")
        if number & 1 or number == last:
            found_first, found_second = node_hash(each, found_first), node_hash(each, found_second)
            while not number & 1 and number:
                number, last = number >> 1, last >> 1
        else:
            found_second = node_hash(found_second, each)
        number, last = number >> 1, last >> 1
    if last != 0:
        raise ProofInvalid("the proof is too short")
    if found_first != first_root:
        raise ProofInvalid(f"the proof does not begin at the root of the tree of size {first}")
    if found_second != second_root:
        raise ProofInvalid(f"the proof does not lead to the root of the tree of size {second}")


def _joined(hashes: Sequence[bytes]) -> bytes:
    """The root over complete subtrees, the largest first."""
    if not hashes:
        return EMPTY_ROOT
    root = hashes[-1]
    for each in reversed(hashes[:-1]):
        root = node_hash(each, root)
    return root


def _split(size: int) -> int:
    """The largest power of two smaller than `size`: how many leaves its left part has."""
    return 1 << (size - 1).bit_length() - 1


def _part(start: int, size: int, node: NodeHash) -> bytes:
    """The hash of the leaves `start` to `start + size`, a part that the tree is cut into."""
    if size & (size - 1) == 0:
        level = size.bit_length() - 1
        return node(level, start >> level)
    left = _split(size)
    return node_hash(_part(start, left, node), _part(start + left, size - left, node))


def _path(index: int, start: int, size: int, node: NodeHash) -> Iterator[bytes]:
    if size == 1:
        return
    left = _split(size)
    if index < left:
        yield from _path(index, start, left, node)
        yield _part(start + left, size - left, node)
    else:
        yield from _path(index - left, start + left, size - left, node)
        yield _part(start, left, node)


def _subproof(first: int, start: int, size: int, node: NodeHash, *, whole: bool) -> Iterator[bytes]:
    if first == size:
        if not whole:
            yield _part(start, size, node)
        return
    left = _split(size)
    if first <= left:
        yield from _subproof(first, start, left, node, whole=whole)
        yield _part(start + left, size - left, node)
    else:
        yield from _subproof(first - left, start + left, size - left, node, whole=False)
        yield _part(start, left, node)
