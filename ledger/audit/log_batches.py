"""Log batches: the log in parts that fit into a message, all of it or what passes filters, without holding anything.

Every part is one look at the log. What is at or before the head never changes, so the parts fit together without a
snapshot that would have to be held open for as long as somebody reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final, LiteralString, NamedTuple, Protocol

from ledger.postgres import sql_blocks
from ledger.v1 import audit_pb2
from ledger.wire import timestamp
from projections.connections import Connections
from projections.errors import ReadsUnavailable

SQL: Final = sql_blocks("ledger.audit", "log_batches.sql")

EVENTS_MOST: Final = 500
BYTES_MOST: Final = 2**20
"""An event more may follow these bytes, and has 0.5 MiB at most: with all else a message stays far below gRPC's 4."""

WINDOW_POSITIONS: Final = 20_000
"""How far one look goes that keeps only some topics: some 20 ms."""

PLACES_LEAST: Final = 50


class Batch(NamedTuple):
    """The events that pass between one position and another, `position`; and the head when that was looked at."""

    events: Sequence[audit_pb2.Event]
    position: int
    head: int


class Batches(Protocol):
    """Reads on, part by part."""

    async def after(self, position: int, until: int) -> Batch:
        """The part right after a position, where the part before ended; none of it is after `until` or the head.

        Raises ReadsUnavailable.
        """
        ...


def batches_of(connections: Connections, streams: Collection[str], topics: Collection[str]) -> Batches:
    """The log's events of these streams and topics; of all of them where none are given."""
    return StreamBatches(connections, streams, topics) if streams else WholeBatches(connections, topics)


class WholeBatches:
    """The log from position to position, of which some topics are kept, or all."""

    def __init__(self, connections: Connections, topics: Collection[str]) -> None:
        self._connections: Final = connections
        self._topics: Final = sorted(topics)
        filters: list[LiteralString] = [SQL.of_topics] if topics else []
        self._statement: Final[LiteralString] = "\n".join([SQL.batch, *filters, SQL.batch_end])

    async def after(self, position: int, until: int) -> Batch:
        until = min(until, position + WINDOW_POSITIONS)
        limits = {"events_most": EVENTS_MOST, "bytes_most": BYTES_MOST}
        parameters = {"after": position, "until": until, "topics": self._topics, **limits}
        rows = await self._connections.rows(self._statement, parameters)
        head: int = rows[0][0]
        events = _messages(row[1:] for row in rows if row[1] is not None)
        is_cut = len(events) == EVENTS_MOST or sum(len(each.state) for each in events) >= BYTES_MOST
        return Batch(events, events[-1].position if is_cut else min(until, head), head)


class Place(NamedTuple):
    """An event but for its state, of which the size is known."""

    position: int
    stream: str
    version: int
    topic: str
    bytes: int


class StreamBatches:
    """The events of a few streams, found by their versions: what others did in between costs nothing.

    From each stream the next few events are looked at. Where there may be more of one, the part ends at the last that
    was seen of it.
    """

    def __init__(self, connections: Connections, streams: Collection[str], topics: Collection[str]) -> None:
        self._connections: Final = connections
        self._versions: dict[str, int] = dict.fromkeys(sorted(streams), 0)
        self._topics: Final = frozenset(topics)
        self._places_most: Final = max(PLACES_LEAST, EVENTS_MOST // len(self._versions))
        self._has_begun = False

    async def after(self, position: int, until: int) -> Batch:
        if not self._has_begun:
            await self._begin(position)
        rows = await self._connections.rows(
            SQL.places,
            {
                "streams": list(self._versions),
                "versions": list(self._versions.values()),
                "places_most": self._places_most,
            },
        )
        head: int = rows[0][0]
        places = sorted(Place._make(row[1:]) for row in rows if row[1] is not None)
        seen = self._seen_until(places, min(until, head))
        passing = [each for each in places if position < each.position <= seen and self._passes(each)]
        chosen = _fitting(passing)
        if len(chosen) < len(passing):
            seen = chosen[-1].position
        events = await self._events(chosen)
        self._versions.update((each.stream, each.version) for each in places if each.position <= seen)
        return Batch(events, seen, head)

    async def _begin(self, position: int) -> None:
        if position:
            parameters = {"streams": list(self._versions), "position": position}
            self._versions.update(await self._connections.rows(SQL.versions, parameters))
        self._has_begun = True

    def _seen_until(self, places: Sequence[Place], most: int) -> int:
        """The position up to which every stream was looked at."""
        last = {each.stream: each.position for each in places}
        counts = Counter(each.stream for each in places)
        return min([most, *(last[stream] for stream, count in counts.items() if count == self._places_most)])

    def _passes(self, place: Place) -> bool:
        return not self._topics or place.topic in self._topics

    async def _events(self, places: Sequence[Place]) -> list[audit_pb2.Event]:
        if not places:
            return []
        positions = [each.position for each in places]
        events = _messages(await self._connections.rows(SQL.events, {"positions": positions}))
        if len(events) < len(places):
            raise ReadsUnavailable  # Another replica answered, which is behind the one before.
        return events


def _fitting(places: Sequence[Place]) -> Sequence[Place]:
    """As many as fit into a message."""
    size = 0
    for number, each in enumerate(places[:EVENTS_MOST]):
        if size >= BYTES_MOST:
            return places[:number]
        size += each.bytes
    return places[:EVENTS_MOST]


def _messages(rows: Iterable[tuple[Any, ...]]) -> list[audit_pb2.Event]:
    return [
        audit_pb2.Event(
            position=position,
            stream=stream,
            version=version,
            topic=topic,
            recorded_at=timestamp(recorded_at),
            state=state,
        )
        for position, stream, version, topic, recorded_at, state in rows
    ]
