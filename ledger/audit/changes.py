"""Changes: which event is not the one that was signed, told by the hashes of the leaves that the signer has stored.

The stored hashes are believed only if the signed root follows from them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Final

from psycopg import Connection

from ledger.audit.findings import Finding, Kind
from ledger.audit.leaf import leaf_data
from ledger.audit.merkle import HASH_BYTES, Frontier, leaf_hash
from ledger.audit.roots import Departure
from ledger.audit.snapshot import Row, batches, moment, reading
from ledger.postgres import sql_blocks
from ledger.terminal import printable

SQL: Final = sql_blocks("ledger.audit", "changes.sql")

_TILE_LEAVES: Final = 256


def first_change(connection: Connection[Any], departure: Departure) -> Finding | None:
    """The first event that is not the one signed, if the stored hashes are those that were signed."""
    size, hashes, signed = departure
    if not _follows(connection, Frontier(size, hashes), signed.size, signed.root):
        return None
    rows = _rows(connection, size, signed.size)
    for position, stored in enumerate(_stored(connection, size, signed.size), start=size + 1):
        row = next(rows, None)
        if row is None or row[0] != position:
            return None  # That it is missing is found where the positions are looked at.
        if _leaf_hash(row) != stored:
            what = f"this is not the event that was signed here ({signed.place})"
            return Finding(Kind.CHANGED, what, position, printable(row[1]), row[2])
    return None


def _leaf_hash(row: Row) -> bytes | None:
    """The hash of an event's leaf; None if a column holds what no leaf can."""
    position, stream, version, topic, recorded_at, state = row
    try:
        return leaf_hash(leaf_data(position, stream, version, topic, moment(recorded_at), state))
    except (AttributeError, OverflowError, TypeError, struct.error):
        return None


def _follows(connection: Connection[Any], tree: Frontier, size: int, root: bytes) -> bool:
    """Whether the stored hashes of leaves lead from a tree to the root at a size."""
    for each in _stored(connection, tree.size, size):
        tree.append(each)
    return tree.size == size and tree.root() == root


def _stored(connection: Connection[Any], after: int, last: int) -> Iterator[bytes]:
    """The stored hashes of the leaves after one position up to another, as far as they are there."""
    first = after // _TILE_LEAVES
    cursor = reading(connection, f"tiles_{after}", SQL.tiles, {"first": first, "last": (last - 1) // _TILE_LEAVES})
    position = first * _TILE_LEAVES
    for tiles in batches(cursor):
        for index, hashes in tiles:
            if index * _TILE_LEAVES != position:
                return
            for start in range(0, len(hashes), HASH_BYTES):
                position += 1
                if after < position <= last:
                    yield bytes(hashes[start : start + HASH_BYTES])


def _rows(connection: Connection[Any], after: int, last: int) -> Iterator[Row]:
    for rows in batches(reading(connection, "leaves", SQL.leaves, {"after": after, "last": last})):
        yield from rows
