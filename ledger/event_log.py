"""The log of a ledger, as the event store that the `eventsourcing` library knows.

Committers append through `ledger.writer`, which knows what its decisions were based on. This recorder is the library's
plain contract over the same table: reading by stream and by position, and appending whatever is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from threading import Event
from typing import Any, Final
from uuid import UUID

from eventsourcing.persistence import ApplicationRecorder, Notification, StoredEvent, Subscription
from eventsourcing.postgres import PostgresDatastore

from ledger.postgres import Role, connection_settings, schema_of, sql_blocks

SQL: Final = sql_blocks("ledger.sql", "log.sql")

_NO_LIMIT: Final = 2**63 - 1
_POLL_S: Final = 0.02
_SUBSCRIPTION_BATCH: Final = 500


@dataclass(frozen=True)
class RecordedEvent(Notification):
    """One row of the log. The library's `id` is the position, `originator_id` the stream."""

    recorded_at: datetime


def recorded_event(
    position: int, stream: str, version: int, topic: str, recorded_at: datetime, state: bytes
) -> RecordedEvent:
    """A row of the log, its columns in the table's words and order."""
    return RecordedEvent(
        id=position,
        originator_id=stream,
        originator_version=version,
        topic=topic,
        state=bytes(state),
        recorded_at=recorded_at,
    )


class LogDatastore(PostgresDatastore):
    """The library's connection pool, for the schema of one ledger and any libpq connection string."""

    def __init__(self, dsn: str, ledger: str, *, pool_size: int = 2, max_overflow: int = 8) -> None:
        super().__init__(
            dbname="",
            host="",
            port="",
            user="",
            password="",
            schema=schema_of(ledger),
            originator_id_type="text",
            pool_size=pool_size,
            max_overflow=max_overflow,
        )
        settings = self.pool.kwargs
        assert isinstance(settings, dict)
        settings_of_ours = connection_settings(dsn, ledger, "ledger-log", Role.WRITER)
        row_factory = settings["row_factory"]
        settings.clear()
        settings.update(settings_of_ours, row_factory=row_factory)


class EventLog(ApplicationRecorder):
    """The library's recorder over the table `events`. Positions are its notification ids: 1, 2, 3 ... without gaps."""

    def __init__(self, datastore: LogDatastore) -> None:
        self._datastore = datastore

    def insert_events(self, stored_events: Sequence[StoredEvent], **_: Any) -> Sequence[int] | None:
        """Append events at the head and return their positions; raise IntegrityError if a version is taken already.

        Nothing is retried: an error that is not an IntegrityError leaves open whether the events were recorded.
        """
        if not stored_events:
            return []
        with self._datastore.transaction(commit=True) as cursor:
            cursor.execute(SQL.take_turn)
            columns = {
                "streams": [str(event.originator_id) for event in stored_events],
                "versions": [event.originator_version for event in stored_events],
                "topics": [event.topic for event in stored_events],
                "states": [event.state for event in stored_events],
            }
            cursor.execute(SQL.insert_at_head, columns)
            return sorted(row["position"] for row in cursor)

    def select_events(
        self,
        originator_id: UUID | str,
        *,
        gt: int | None = None,
        lte: int | None = None,
        desc: bool = False,
        limit: int | None = None,
    ) -> Sequence[StoredEvent]:
        """The events of one stream with gt < version <= lte, in order of version."""
        wanted = {
            "stream": str(originator_id),
            "after": -1 if gt is None else gt,
            "up_to": _NO_LIMIT if lte is None else lte,
            "limit": limit,
        }
        with self._datastore.cursor() as cursor:
            cursor.execute(SQL.stream_newest_first if desc else SQL.stream, wanted)
            return [
                StoredEvent(
                    originator_id=row["stream"],
                    originator_version=row["version"],
                    topic=row["topic"],
                    state=bytes(row["state"]),
                )
                for row in cursor
            ]

    def select_notifications(
        self,
        start: int | None,
        limit: int,
        stop: int | None = None,
        topics: Sequence[str] = (),
        *,
        inclusive_of_start: bool = True,
    ) -> Sequence[RecordedEvent]:
        """Events by position: from `start` (or after it) up to `stop`, at most `limit`, of `topics` if given."""
        after = (start or 0) - 1 if inclusive_of_start else (start or 0)
        wanted = {"after": after, "limit": limit, "topics": list(topics)}
        with self._datastore.cursor() as cursor:
            cursor.execute(SQL.tail_of_topics if topics else SQL.tail, wanted)
            found = [recorded_event(**row) for row in cursor]
        return found if stop is None else [event for event in found if event.id <= stop]

    def max_notification_id(self) -> int | None:
        """The head, or None if nothing has been recorded."""
        with self._datastore.cursor() as cursor:
            row = cursor.execute(SQL.head).fetchone()
            return row["position"] if row else None

    def subscribe(self, gt: int | None = None, topics: Sequence[str] = ()) -> PollingSubscription:
        """The events after position `gt` as they come, for ever. It polls: nothing depends on LISTEN."""
        return PollingSubscription(self, gt, topics)


class PollingSubscription(Subscription[EventLog]):
    """Yields events in order of position, and waits for more by looking again every 20 ms."""

    def __init__(self, recorder: EventLog, gt: int | None = None, topics: Sequence[str] = ()) -> None:
        super().__init__(recorder, gt, topics)
        self._stopped = Event()
        self._found: list[RecordedEvent] = []

    def stop(self) -> None:
        super().stop()
        self._stopped.set()

    def __next__(self) -> Notification:
        while not self._stopped.is_set():
            if self._found:
                return self._found.pop()
            events = self._recorder.select_notifications(
                self._last_notification_id, _SUBSCRIPTION_BATCH, topics=self._topics, inclusive_of_start=False
            )
            if events:
                self._last_notification_id = events[-1].id
                self._found = list(reversed(events))
            else:
                self._stopped.wait(_POLL_S)
        raise StopIteration
