"""How events become stored bytes, and how stored bytes of any age become the events of today."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

import msgspec
from eventsourcing.domain import DomainEventProtocol
from eventsourcing.persistence import JSONTranscoder, Mapper, StoredEvent

from ledger.domain.events import TOPICS, LedgerEvent, class_version

Upcaster: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]
"""Turns the stored fields of an event of one class version into those of the next."""

UPCASTERS: Final[Mapping[tuple[str, int], Upcaster]] = {}
"""By topic and stored class version. Every version that was ever released has a golden file that a test reads back."""

LogRow: TypeAlias = tuple[str, int, str, bytes]
"""An event as it is stored: stream, version, topic, state."""

_encode: Final = msgspec.json.Encoder(order="sorted").encode
_decode: Final = msgspec.json.Decoder().decode


class UnreadableEvent(Exception):
    """Event {version} of stream {stream!r} ({topic}) can't be read: {why}."""

    def __init__(self, stored: StoredEvent, why: str) -> None:
        super().__init__(
            (type(self).__doc__ or "").format(
                version=stored.originator_version, stream=stored.originator_id, topic=stored.topic, why=why
            )
        )


class EventMapper(Mapper[str]):
    """The library's mapper for our events: canonical JSON, a closed table of topics, upcasting, validation."""

    def __init__(
        self,
        topics: Mapping[str, type[LedgerEvent]] = TOPICS,
        upcasters: Mapping[tuple[str, int], Upcaster] = UPCASTERS,
    ) -> None:
        super().__init__(JSONTranscoder())  # required by the library; msgspec does the work
        self._classes = topics
        self._topics = {event_class: topic for topic, event_class in topics.items()}
        self._newest: dict[str, int] = {topic: class_version(event_class) for topic, event_class in topics.items()}
        self._upcasters = upcasters

    def to_row(self, event: LedgerEvent) -> LogRow:
        """The event as the log's table has it. Events that we make have equal bytes if they are equal."""
        return event.originator_id, event.originator_version, self._topics[type(event)], _encode(event)

    def to_stored_event(self, domain_event: DomainEventProtocol[str]) -> StoredEvent:
        """The same, in the library's words."""
        assert isinstance(domain_event, LedgerEvent)
        return StoredEvent(*self.to_row(domain_event))

    def to_domain_event(self, stored_event: StoredEvent) -> LedgerEvent:
        """The event as its class of today; raises UnreadableEvent if it can't be."""
        try:
            event_class, fields = self.fields_of(stored_event.topic, stored_event.state)
            event = msgspec.convert(fields, event_class)
        except (ValueError, KeyError, TypeError) as error:
            raise UnreadableEvent(stored_event, str(error)) from error
        assert isinstance(stored_event.originator_id, str)
        return event.standing(stored_event.originator_id, stored_event.originator_version)

    def fields_of(self, topic: str, state: bytes) -> tuple[type[LedgerEvent], dict[str, Any]]:
        """The class of today and its fields as JSON has them, upcast but not validated: cheap, for those who fold.

        Raises ValueError, KeyError or TypeError if the bytes are not such an event.
        """
        event_class = self._classes.get(topic)
        if event_class is None:
            raise ValueError("unknown topic; is this ledger written by a newer release?")
        try:
            fields = _decode(state)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        version, newest = fields["class_version"], self._newest[topic]
        if type(version) is not int or version < 1:
            raise ValueError(f"class_version is {version!r}, not 1, 2, 3 ...")
        if "originator_id" in fields or "originator_version" in fields:
            raise ValueError("the stream and the version are columns, not fields")
        while version < newest:
            fields = self._upcasters[topic, version](fields)
            version += 1
        if version > newest:
            raise ValueError(f"class version {version} is newer than {newest}; update this program")
        fields["class_version"] = newest
        return event_class, fields
