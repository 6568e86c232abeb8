"""ReadEvents: the log itself, event by event: what is there, or for ever.

It does not depend on the read models, and has connections of its own: whoever follows the log, and however many they
are, they borrow one for the moment of a look, and leave those of point reads alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from ledger.audit.head_watch import SQL, HeadWatch
from ledger.audit.log_batches import batches_of
from ledger.domain.errors import FieldViolation, InvalidCommand
from ledger.domain.events import TOPICS
from ledger.domain.ids import id_violation
from ledger.v1 import audit_pb2
from ledger.wire import duration
from projections.connections import Connections
from projections.errors import ReadsUnavailable
from projections.freshness import GLANCE_S, within
from projections.log_head import LogHead
from projections.pages import POSITION_MOST

CONNECTIONS_MOST: Final = 2
FILTERS_MOST: Final = 100
HEARTBEAT_S: Final = 5.0
HEARTBEAT_LEAST_S: Final = 1.0
HEARTBEAT_MOST_S: Final = 60.0

PACE_S: Final = 0.02
"""Whoever follows looks at the log at most this often: each look costs the same, however little is new."""

SHARE_S: Final = 0.002
"""And all who follow together at most this often, so that many of them leave time for others."""

LAG_S: Final = 1.0
"""How long a position that was there may be missing, as on a replica that is a little behind another one."""

_KINDS: Final = frozenset({"account", "payment", "transfer"})


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request asks for: the events after one position, up to another or, with `follow`, for ever."""

    after: int
    until: int
    streams: frozenset[str]
    topics: frozenset[str]
    follow: bool
    heartbeat_s: float
    min_position: int


class EventReader:
    """Reads the log of one ledger for its clients."""

    def __init__(self, dsn: str, ledger: str, log_head: LogHead | None = None) -> None:
        """`log_head` is needed where `dsn` is not where commands are recorded."""
        self._connections: Final = Connections(dsn, ledger, name="ledger-log-reads", most=CONNECTIONS_MOST)
        self._log_head: Final = log_head or LogHead(self._connections.rows)
        self._heads: Final = HeadWatch(self._connections)
        self.following = 0
        """How many calls follow the log now."""

    @property
    def pool(self) -> Connections:
        """The connections that it uses."""
        return self._connections

    def open(self) -> None:
        """Begin to watch the head. A database that is away is no hindrance."""
        self._heads.open()

    async def close(self) -> None:
        await self._heads.close()
        await self._connections.close()

    def appended(self, head: int) -> None:
        """Say that the log has grown up to `head`; from any thread. Without it, it is noticed a moment later."""
        self._heads.appended(head)

    def drain(self) -> None:
        """End all calls that follow, with ShuttingDown: they would not end by themselves."""
        self._heads.drain()

    async def read_events(
        self, request: audit_pb2.ReadEventsRequest, remaining_s: float | None
    ) -> AsyncGenerator[audit_pb2.ReadEventsResponse, None]:
        """The responses to a request. Each is made when it is asked for, and nothing is held in between.

        Raises InvalidCommand, PositionAheadOfHead, ReadsUnavailable and ShuttingDown.
        """
        wanted = wanted_of(request)
        until = await self._until(wanted, remaining_s)
        batches = batches_of(self._connections, wanted.streams, wanted.topics)
        clock = asyncio.get_running_loop().time
        position, due, in_log_at = wanted.after, clock(), clock()
        with self._counted(wanted):
            while True:
                looked_at = clock()
                batch = await within(remaining_s, batches.after(position, until))
                if batch.head < (position if wanted.follow else until):
                    await self._lag(position if wanted.follow else until, in_log_at, remaining_s)
                    continue
                position, in_log_at = batch.position, looked_at
                has_more = position < min(until, batch.head)
                if batch.events or has_more or position == until or looked_at >= due:
                    yield audit_pb2.ReadEventsResponse(events=batch.events, position=position, head=batch.head)
                    due = clock() + wanted.heartbeat_s
                if position == until:
                    return
                if not has_more:
                    await self._heads.beyond(position, due)
                    await asyncio.sleep(looked_at + max(PACE_S, SHARE_S * self.following) - clock())

    async def _until(self, wanted: Wanted, remaining_s: float | None) -> int:
        """The last position to send. Waits for `min_position`, if it may be on its way."""
        ((head,),) = await within(remaining_s, self._connections.rows(SQL.head))
        asked = max(wanted.min_position, wanted.after, wanted.until)
        if head < asked:
            await self._heads.beyond(wanted.min_position - 1, asyncio.get_running_loop().time() + GLANCE_S)
            await within(remaining_s, self._log_head.require(asked))
        if wanted.follow:
            return POSITION_MOST
        return wanted.until or max(asked, int(head))

    async def _lag(self, position: int, in_log_at: float, remaining_s: float | None) -> None:
        """Pause, for a standby may be a little behind, or another one have answered before.

        Raises PositionAheadOfHead if the log has lost its tail, ReadsUnavailable if where reads look stays behind it.
        """
        if asyncio.get_running_loop().time() - in_log_at > LAG_S:
            await within(remaining_s, self._log_head.require(position))
            raise ReadsUnavailable
        await asyncio.sleep(PACE_S)

    @contextmanager
    def _counted(self, wanted: Wanted) -> Iterator[None]:
        self.following += wanted.follow
        try:
            yield
        finally:
            self.following -= wanted.follow


def wanted_of(request: audit_pb2.ReadEventsRequest) -> Wanted:
    """What the request asks for. Raises InvalidCommand, with every field that is not as it must be."""
    violations = [
        FieldViolation(field, "must not be negative")
        for field in ("from_position", "to_position", "min_position")
        if getattr(request, field) < 0
    ]
    after = max(request.from_position, 1) - 1
    if request.follow and request.to_position > 0:
        violations.append(FieldViolation("to_position", "must be 0 with follow"))
    elif 0 < request.to_position < after:
        violations.append(FieldViolation("to_position", "must not be before from_position"))
    violations += _filter_violations(request)
    try:
        heartbeat_s = _heartbeat_s(request)
    except InvalidCommand as invalid:
        violations += invalid.violations
    if violations:
        raise InvalidCommand(*violations)
    return Wanted(
        after=after,
        until=request.to_position,
        streams=frozenset(request.streams),
        topics=frozenset(request.topics),
        follow=request.follow,
        heartbeat_s=heartbeat_s,
        min_position=request.min_position,
    )


def _filter_violations(request: audit_pb2.ReadEventsRequest) -> list[FieldViolation]:
    filters: dict[str, Sequence[Any]] = {"streams": request.streams, "topics": request.topics}
    violations = [
        FieldViolation(field, f"must be at most {FILTERS_MOST}, not {len(values)}")
        for field, values in filters.items()
        if len(values) > FILTERS_MOST
    ]
    if violations:
        return violations
    form = "must be account/<account_id>, payment/<payment_id> or transfer/<transfer_id>"
    violations += [
        FieldViolation(f"streams[{number}]", form)
        for number, stream in enumerate(request.streams)
        if not _is_stream(stream)
    ]
    return violations + [
        FieldViolation(f"topics[{number}]", "is not a type of event that there is")
        for number, topic in enumerate(request.topics)
        if topic not in TOPICS
    ]


def _is_stream(text: str) -> bool:
    kind, _, id_ = text.partition("/")
    return kind in _KINDS and id_violation(id_) is None


def _heartbeat_s(request: audit_pb2.ReadEventsRequest) -> float:
    """Raises InvalidCommand."""
    if not request.HasField("heartbeat_interval"):
        return HEARTBEAT_S
    interval_s = duration(request.heartbeat_interval, "heartbeat_interval").total_seconds()
    if not HEARTBEAT_LEAST_S <= interval_s <= HEARTBEAT_MOST_S:
        form = f"must be {HEARTBEAT_LEAST_S:.0f} to {HEARTBEAT_MOST_S:.0f} seconds"
        raise InvalidCommand(FieldViolation("heartbeat_interval", form))
    return interval_s
