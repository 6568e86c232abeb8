"""Tiles: the hashes of the tree, 256 to a row, as they are kept in the database (after C2SP tlog-tiles).

Tile `index` of level 0 holds the hashes of the leaves from 256 * index on, a tile of the next level the roots of full
tiles of the one below. From tiles follow the hashes of all complete subtrees, and so all proofs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final, TypeAlias

from ledger.audit.merkle import HASH_BYTES, NodeHash, node_hash, root_at

HEIGHT: Final = 8
WIDTH: Final = 1 << HEIGHT
TILE_BYTES: Final = WIDTH * HASH_BYTES

Place: TypeAlias = tuple[int, int]
"""The level and index of a tile."""


def tile_root(hashes: bytes | bytearray) -> bytes:
    """The root over the hashes of a tile, or of a part of one; their number is a power of two."""
    row = [bytes(hashes[start : start + HASH_BYTES]) for start in range(0, len(hashes), HASH_BYTES)]
    while len(row) > 1:
        row = [node_hash(row[place], row[place + 1]) for place in range(0, len(row), 2)]
    return row[0]


def place_of(level: int, index: int) -> tuple[Place, int, int]:
    """Where the hashes under a complete subtree stand: the tile, the first of them there, and how many they are."""
    tile_level, height = divmod(level, HEIGHT)
    first = index << height
    return (tile_level, first >> HEIGHT), first & (WIDTH - 1), 1 << height


def node_of(tile: Callable[[Place], bytes | bytearray]) -> NodeHash:
    """The hashes of complete subtrees, from tiles."""

    def node(level: int, index: int) -> bytes:
        place, first, count = place_of(level, index)
        hashes = tile(place)[first * HASH_BYTES : (first + count) * HASH_BYTES]
        assert len(hashes) == count * HASH_BYTES, f"tile {place} is too short"
        return tile_root(hashes)

    return node


def places_of(use: Callable[[NodeHash], object]) -> set[Place]:
    """Which tiles it takes to `use` the hashes of complete subtrees."""
    places: set[Place] = set()

    def note(level: int, index: int) -> bytes:
        places.add(place_of(level, index)[0])
        return bytes(HASH_BYTES)

    use(note)
    return places


def edge_of(size: int) -> Iterator[tuple[Place, int]]:
    """The unfinished tiles of a tree, and how many hashes each has: what it takes to go on."""
    level, count = 0, size
    while count:
        if count % WIDTH:
            yield (level, count // WIDTH), count % WIDTH
        level, count = level + 1, count // WIDTH


class Edge:
    """A tree that grows: its unfinished tiles, and those that have changed since `taken`."""

    def __init__(self, size: int = 0, tiles: Mapping[Place, bytes] | None = None) -> None:
        """A tree of `size` leaves, with the tiles of `edge_of(size)`, which may have grown since."""
        self.size = size
        self._open: dict[int, bytearray] = {}
        for place, count in edge_of(size):
            hashes = (tiles or {})[place][: count * HASH_BYTES]
            assert len(hashes) == count * HASH_BYTES, f"tile {place} is too short"
            self._open[place[0]] = bytearray(hashes)
        self._changed: dict[Place, bytes] = {}

    def extend(self, leaves: bytes) -> None:
        """Add leaves, by their hashes, one after the other."""
        start = 0
        while start < len(leaves):
            tile = self._open.setdefault(0, bytearray())
            stop = start + min(TILE_BYTES - len(tile), len(leaves) - start)
            tile += leaves[start:stop]
            self.size += (stop - start) // HASH_BYTES
            start = stop
            if len(tile) == TILE_BYTES:
                self._close(0, self.size // WIDTH - 1)

    def root(self) -> bytes:
        """The root of the tree. Its complete subtrees are all in unfinished tiles."""
        return root_at(self.size, node_of(lambda place: self._open[place[0]]))

    def unfinished(self) -> dict[Place, bytes]:
        """The tiles that are not full yet."""
        return {place: bytes(self._open[place[0]]) for place, _ in edge_of(self.size)}

    def tiles(self) -> dict[Place, bytes]:
        """The tiles that are new or have grown since `taken`."""
        return {**self._changed, **self.unfinished()}

    def taken(self) -> dict[Place, bytes]:
        """The same, which are then those of another time."""
        tiles = self.tiles()
        self._changed = {}
        return tiles

    def _close(self, level: int, index: int) -> None:
        """A tile is full: its root goes one level up."""
        full = bytes(self._open.pop(level))
        self._changed[level, index] = full
        above = self._open.setdefault(level + 1, bytearray())
        above += tile_root(full)
        if len(above) == TILE_BYTES:
            self._close(level + 1, index // WIDTH)
