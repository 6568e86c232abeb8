"""The log stream by stream: that each has the versions 1, 2, 3 ... in their order, and what all of them come to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

from psycopg import Connection

from ledger.audit.comparison import Comparison
from ledger.audit.findings import Finding, Findings, Kind
from ledger.audit.snapshot import batches, head_of, reading
from ledger.audit.wording import amount_text
from ledger.postgres import sql_blocks
from ledger.terminal import printable
from ledger.upcasters import EventMapper
from projections.batch import CannotApply, LoggedEvent, decode
from projections.checkpoint import SQL as CHECKPOINT_SQL

SQL: Final = sql_blocks("ledger.audit", "streams.sql")

KINDS: Final = ("account", "payment", "transfer")


class StreamsSeen(NamedTuple):
    """How many streams there are of each kind, and how far the read models were compared."""

    seen: dict[str, int]
    checkpoint: int | None
    """The position that the read models were compared at, if they were."""
    stopped: str | None
    """Why the follower of the read models has stopped, if it has."""


def check_streams(
    connection: Connection[Any], findings: Findings, *, read_models: bool, progress: Callable[[int], None]
) -> StreamsSeen:
    """Check every stream, and the read models at their checkpoint if they are wanted.

    `progress` is told how many events are done.
    """
    checkpoint = stopped = None
    if read_models:
        checkpoint, stopped = connection.execute(CHECKPOINT_SQL.select).fetchone() or (None, None)
        if checkpoint is None:
            findings.add(Finding(Kind.READ_MODEL, "their checkpoint is missing", place="the read models"))
        elif checkpoint > head_of(connection):
            what = f"they are at position {checkpoint:,}, which the log does not reach"
            findings.add(Finding(Kind.READ_MODEL, what, place="the read models"))
    streams = Streams(connection, findings, checkpoint)
    streams.run(progress)
    return StreamsSeen(streams.seen, checkpoint, stopped)


class Streams:
    """Goes once through the log, stream by stream, with the read models beside it."""

    def __init__(self, connection: Connection[Any], findings: Findings, checkpoint: int | None) -> None:
        self._connection, self._findings, self._mapper = connection, findings, EventMapper()
        self._checkpoint = checkpoint or 0
        self._comparison = None if checkpoint is None else Comparison(connection, findings)
        self.seen = dict.fromkeys(KINDS, 0)
        self._posted: Counter[str] = Counter()
        self._stream = ""
        self._version = self._position = 0
        self._last: tuple[str, bytes] = ("", b"")

    def run(self, progress: Callable[[int], None]) -> None:
        done = 0
        for rows in batches(reading(self._connection, "streams", SQL.streams)):
            whole = [row for row in rows if None not in row]  # What is not is found in the order of positions.
            for row, event in zip(whole, self._decoded(whole), strict=True):
                self._take(row)
                if event is not None and event.position <= self._checkpoint:
                    self._compare(event)
            done += len(rows)
            progress(done)
        self._end_stream()
        if self._comparison is not None:
            self._comparison.finish()
        self._check_sums()

    def _compare(self, event: LoggedEvent) -> None:
        assert self._comparison is not None
        try:
            self._comparison.take(event)
        except (ValueError, KeyError, TypeError):
            return  # It is no event, for all that it looks like one: found in the order of positions.

    def _decoded(self, rows: Sequence[Any]) -> Sequence[LoggedEvent | None]:
        """The events as far as they can be read, for the comparison."""
        if self._comparison is None:
            return [None] * len(rows)
        try:
            return decode(rows, self._mapper)
        except CannotApply:
            return [self._decoded_alone(row) for row in rows]

    def _decoded_alone(self, row: Any) -> LoggedEvent | None:
        try:
            return decode([row], self._mapper)[0]
        except CannotApply:
            return None

    def _take(self, row: tuple[int, str, int, str, bytes]) -> None:
        position, stream, version, topic, state = row
        if stream != self._stream:
            self._end_stream()
            self._begin_stream(stream)
        if version != self._version + 1 or position <= self._position:
            self._out_of_order(position, version)
        # Of two with one version, the one that stands first is the one that others follow.
        self._position = min(position, self._position) if version == self._version else position
        self._version, self._last = version, (topic, state)

    def _begin_stream(self, stream: str) -> None:
        self._stream, self._version, self._position = stream, 0, 0
        kind = stream.partition("/")[0]
        if kind in self.seen:
            self.seen[kind] += 1

    def _end_stream(self) -> None:
        if self._comparison is not None:
            with suppress(ValueError, KeyError, TypeError):  # As above.
                self._comparison.end_stream()
        if self._stream.startswith("account/"):
            try:
                after = self._mapper.fields_of(*self._last)[1]["after"]
                self._posted[after["currency_code"]] += after["posted"]
            except (ValueError, KeyError, TypeError):
                return  # That it can't be read is found in the order of positions.

    def _out_of_order(self, position: int, version: int) -> None:
        if version < 1:
            here, what = position, "versions begin at 1"
        elif version == self._version:
            here, other = max(position, self._position), min(position, self._position)
            what = f"version {version} of this stream stands at position {other:,} too"
        elif version != self._version + 1:
            here, what = position, f"version {self._version + 1} of this stream is missing before it"
        else:
            here, what = position, f"version {version - 1} of this stream stands behind it, at {self._position:,}"
        self._findings.add(Finding(Kind.VERSIONS, what, here, printable(self._stream), version))

    def _check_sums(self) -> None:
        for currency_code, posted in sorted(self._posted.items()):
            if posted:
                what = (
                    f"all posted balances of {currency_code} add up to {amount_text(posted, currency_code)}, not to 0"
                )
                self._findings.add(Finding(Kind.SUMS, what))
