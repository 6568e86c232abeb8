"""The log position by position: that it is whole and in order, that its tree is the one that was signed and stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from psycopg import Connection

from ledger.audit.findings import Finding, Findings, Kind
from ledger.audit.leaf import leaf_data
from ledger.audit.merkle import Frontier, leaf_hash
from ledger.audit.roots import Departure, Roots
from ledger.audit.snapshot import EPOCH, MOMENTS, SQL, Row, batches, moment, reading
from ledger.audit.stored_tiles import StoredTiles
from ledger.audit.wording import in_short, time_text

COLUMNS: Final = ("position", "stream", "version", "topic", "recorded_at", "state")


class Positions:
    """Goes once through the log, from its first position to its last."""

    def __init__(self, connection: Connection[Any], findings: Findings, roots: Roots) -> None:
        self._connection, self._findings, self._roots = connection, findings, roots
        self._tree, self._broken_at = Frontier(), 2**63
        self._tiles = StoredTiles(connection, findings)
        self._last_position, self._last_recorded_at = 0, MOMENTS[0]
        self.events = 0
        """How many there are, as far as it has come."""

    def run(self, progress: Callable[[int], None]) -> Departure | None:
        """Returns where the log departs from what was signed, if it does. `progress` is told the events done."""
        if self._roots.next_size == 0:
            self._roots.pass_by(Frontier())
        for rows in batches(reading(self._connection, "positions", SQL.log)):
            whole = self._whole(rows) if any(None in row for row in rows) else rows
            self._check_positions([row for row in rows if row[0] is not None])
            self._check_times(whole)
            self._grow(whole)
            self.events += len(rows)
            progress(self.events)
        departure = self._roots.finish(self._last_position)
        self._tiles.finish(is_newest=self._roots.is_newest_good)
        return departure

    def _whole(self, rows: Sequence[Any]) -> list[Row]:
        """The rows without those that lack something, which no log of ours has."""
        for row in rows:
            if None in row:
                self._add(Kind.UNREADABLE, f"{COLUMNS[row.index(None)]} is NULL", *row[:3])
                self._broken_at = min(self._broken_at, row[0] or 0)
        return [row for row in rows if None not in row]

    def _check_positions(self, rows: Sequence[Row]) -> None:
        """That they go on without a gap."""
        first = self._last_position + 1
        if [row[0] for row in rows] != list(range(first, first + len(rows))):
            off = next((expected, row[0]) for expected, row in enumerate(rows, start=first) if row[0] != expected)
            self._broken_at = min(self._broken_at, *off)
            self._find_gaps(rows)
        self._last_position = rows[-1][0] if rows else self._last_position

    def _find_gaps(self, rows: Sequence[Row]) -> None:
        last = self._last_position
        for position, stream, version, *_ in rows:
            if position < 1:
                self._add(Kind.POSITIONS, "positions begin at 1", position, stream, version)
            elif position == last:
                self._add(Kind.POSITIONS, "another event stands at this position too", position, stream, version)
            elif position > max(last, 0) + 1:
                first = max(last, 0) + 1
                missing = f"positions {first:,} to {position - 1:,} are missing"
                what = "there is no event" if position == first + 1 else missing
                self._findings.add(Finding(Kind.POSITIONS, what, first))
            last = position

    def _check_times(self, rows: Sequence[Row]) -> None:
        """That they never go backwards."""
        times = [self._last_recorded_at, *(row[4] for row in rows)]
        if times != sorted(times) or times[-1] > MOMENTS[1]:
            self._find_wrong_times(rows)
        self._last_recorded_at = times[-1]

    def _find_wrong_times(self, rows: Sequence[Row]) -> None:
        last = self._last_recorded_at
        for position, stream, version, _, recorded_at, _ in rows:
            what = ""
            if not MOMENTS[0] <= recorded_at <= MOMENTS[1]:
                what, self._broken_at = "recorded_at is no time", min(self._broken_at, position)
            elif recorded_at < last:
                what = f"recorded_at is {time_text(recorded_at)}, earlier than {time_text(last)} right before it"
            if what:
                self._add(Kind.TIMES, what, position, stream, version)
            last = recorded_at

    def _grow(self, rows: Sequence[Row]) -> None:
        """Add leaves to the tree as long as they are whole and in order, and let the signed roots pass by."""
        tree, roots, tiles = self._tree, self._roots, self._tiles
        next_size, at, recorded_at = roots.next_size, -1, EPOCH
        leaves: list[bytes] = []
        for position, stream, version, topic, microseconds, state in rows:
            if position >= self._broken_at:
                break
            if microseconds != at:
                at, recorded_at = microseconds, moment(microseconds)
            leaf = leaf_hash(leaf_data(position, stream, version, topic, recorded_at, state))
            tree.append(leaf)
            leaves.append(leaf)
            if position == next_size:
                tiles.extend(leaves)
                leaves = []
                if roots.pass_by(tree):
                    tiles.agree()
                next_size = roots.next_size
        tiles.extend(leaves)
        tiles.compare()

    def _add(self, kind: Kind, what: str, position: int, stream: str, version: int) -> None:
        self._findings.add(Finding(kind, what, position, in_short(str(stream)), version))
