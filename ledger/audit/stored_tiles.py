"""The stored tiles of the tree held against the log. Proofs are made of them, and the signer goes on from them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from psycopg import Connection

from ledger.audit.findings import Finding, Findings, Kind
from ledger.audit.merkle import HASH_BYTES
from ledger.audit.signer import SQL, read_tiles
from ledger.audit.snapshot import batches, reading
from ledger.audit.tiles import HEIGHT, TILE_BYTES, Edge, Place


class StoredTiles:
    """Grows the tree once more. What is stored is judged up to the largest published head that the log agrees with.

    Beyond that it can't be told whether the log was changed or the tiles, or there are none yet.
    """

    def __init__(self, connection: Connection[Any], findings: Findings) -> None:
        self._connection, self._findings = connection, findings
        self._edge, self._size = Edge(), 0
        self._unfinished: dict[Place, bytes] = {}
        """The unfinished tiles of the tree of that size."""
        self._not_judged: deque[tuple[Place, Finding]] = deque()
        """What is wrong with full tiles, in the order in which they became full, beyond that size."""

    def extend(self, leaves: Iterable[bytes]) -> None:
        """Add leaves, by their hashes."""
        self._edge.extend(b"".join(leaves))

    def agree(self) -> None:
        """A published head says the same of all that was added: tiles and head are written in one transaction."""
        self._size, self._unfinished = self._edge.size, self._edge.unfinished()

    def compare(self) -> None:
        """Hold the tiles that have become full against the stored ones. They are not remembered."""
        self._compare({place: tile for place, tile in self._edge.taken().items() if len(tile) == TILE_BYTES})
        while self._not_judged and _full_at(self._not_judged[0][0]) <= self._size:
            self._findings.add(self._not_judged.popleft()[1])

    def finish(self, *, is_newest: bool) -> None:
        """The log has ended. `is_newest`: no head was published after the last that agreed, so no more is stored."""
        self.compare()
        stored = read_tiles(self._connection, set(self._unfinished))
        for place, tile in sorted(self._unfinished.items()):
            found = stored.get(place)
            if what := _difference(tile, found if is_newest or found is None else found[: len(tile)]):
                self._findings.add(_finding(place, what))
        if is_newest:
            for rows in batches(reading(self._connection, "tiles_beyond", SQL.tiles_beyond, {"size": self._size})):
                for place in rows:
                    self._findings.add(_finding(place, "a tree of the size of the largest head has no such tile"))

    def _compare(self, tiles: Mapping[Place, bytes]) -> None:
        stored = read_tiles(self._connection, set(tiles))
        for place, tile in tiles.items():
            if what := _difference(tile, stored.get(place)):
                self._not_judged.append((place, _finding(place, what)))


def _full_at(place: Place) -> int:
    """The size of the tree from which on a tile is full."""
    level, index = place
    return (index + 1) << HEIGHT * (level + 1)


def _difference(tile: bytes, stored: bytes | None) -> str:
    """What is wrong with a stored tile, if anything is."""
    if stored == tile:
        return ""
    if stored is None:
        return "it is missing"
    for start in range(0, min(len(tile), len(stored)), HASH_BYTES):
        if tile[start : start + HASH_BYTES] != stored[start : start + HASH_BYTES]:
            return f"hash {start // HASH_BYTES} of it is not what the log comes to"
    return f"it has {len(stored) // HASH_BYTES:,} hashes, and {len(tile) // HASH_BYTES:,} by the log"


def _finding(place: Place, what: str) -> Finding:
    level, index = place
    return Finding(Kind.TILES, what, place=f"tile {index:,} of level {level}")
