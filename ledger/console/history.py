"""The history of one account, payment or transfer, from the log itself: for a screen, and as JSON."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.text import Text

from ledger.audit.note import PublicKey
from ledger.console.proofs import Proven, prove
from ledger.console.rows import filled, second
from ledger.console.rpc import Ask
from ledger.console.story import NUMBERS, Story
from ledger.exits import EXIT_FAILED, EXIT_USAGE, fail
from ledger.tables import table_of
from ledger.v1.audit_pb2 import Event, ReadEventsRequest

SOUND: Final = "\N{CHECK MARK}"
NOT_SOUND: Final = "\N{BALLOT X}"


@dataclass(frozen=True, slots=True)
class History:
    """What the log has of one stream up to a position: its first event, its last ones, and how many it has in all.

    It is whole if their versions are 1, 2, 3 ...: of what was told, nothing was left out. What is proven is the first
    event and the last ones, in this order, and the first only once if it is one of those.
    """

    first: Event
    events: Sequence[Event]
    count: int
    is_whole: bool
    position: int
    proven: Proven | None

    @property
    def kind(self) -> str:
        return self.first.stream.partition("/")[0]

    @property
    def is_first_wrong(self) -> bool:
        """Whether the first event was to be proven, and is not."""
        return self.proven is not None and self.proven.wrong[0] is not None

    @property
    def is_sound(self) -> bool:
        """Whether nothing was left out, and every event that was to be proven is."""
        return self.is_whole and (self.proven is None or not any(self.proven.wrong))

    def is_proven(self, number: int) -> bool:
        """Whether all that the line of this one of the events says is proven.

        Only the first event of a payment says in which currency it is: without that, no amount of it is proven.
        """
        assert self.proven is not None
        lacks_currency = self.kind == "payment" and self.is_first_wrong
        return self.proven.wrong[number - len(self.events)] is None and not lacks_currency


def history_of(ask: Ask, ledger: str, streams: Sequence[str], key: PublicKey | None, limit: int) -> History:
    """The history of the only one of the streams that has one, proven if there is a key to do it by.

    Ends the command if none of them has one, or several. Raises NoteInvalid if the key has not signed the head.
    """
    tellings = {each: Telling(limit) for each in streams}
    position = 0
    for response in ask(ReadEventsRequest(ledger=ledger, streams=streams)):
        for event in response.events:
            tellings[event.stream].add(event)
        position = response.position
    told = {stream: telling for stream, telling in tellings.items() if telling.count}
    if not told:
        fail(f"the log of this ledger has nothing of {' or '.join(streams)}", EXIT_FAILED)
    if len(told) > 1:
        fail(f"there is more than one: say {' or '.join(told)}", EXIT_USAGE)
    (telling,) = told.values()
    assert telling.first is not None
    events = list(telling.last)
    unseen = [telling.first] if telling.count > len(events) else []
    proven = prove(ask, ledger, [*unseen, *events], key) if key else None
    return History(telling.first, events, telling.count, telling.is_whole, position, proven)


class Telling:
    """One stream while its events come, of which the last few are kept."""

    def __init__(self, limit: int) -> None:
        self.first: Event | None = None
        self.last: Final[deque[Event]] = deque(maxlen=limit)
        self.count = 0
        self.is_whole = True

    def add(self, event: Event) -> None:
        self.first = self.first or event
        self.last.append(event)
        self.count += 1
        self.is_whole &= event.version == self.count


def as_json(history: History) -> str:
    """One object. Events are as the API has them, but for their states, which are not bytes but what these say."""
    found: dict[str, Any] = {"stream": history.first.stream, "position": str(history.position)}
    if history.proven:
        head = history.proven.head
        found["tree_head"] = {"tree_size": str(head.size), "signed_note": history.proven.signed_note}
    found["events"] = list(_events_as_json(history))
    return json.dumps(found, indent=2, ensure_ascii=False)


def _events_as_json(history: History) -> Iterator[dict[str, Any]]:
    lines = Story(history.first, history.events).lines()
    for number, (event, line) in enumerate(zip(history.events, lines, strict=True)):
        fields = MessageToDict(event, preserving_proto_field_name=True)
        proof = {"proven": history.is_proven(number)} if history.proven else {}
        yield {**fields, **_state_as_json(event), "what": line.what, **proof}


def _state_as_json(event: Event) -> dict[str, Any]:
    """The state as an object. What is none stays as the API has it: bytes in base64."""
    try:
        return {"state": json.loads(event.state)}
    except ValueError:
        return {}


def show(screen: Console, history: History) -> None:
    """A line for each event, and below them what has been shown."""
    story = Story(history.first, history.events)
    words = ["recorded at", "by", "what happened", *(["with"] if history.kind == "account" else [])]
    proof = ["proof"] if history.proven else []
    table = table_of(*words, *NUMBERS[history.kind], "position", *proof, words=len(words))
    rows = (
        (
            second(event.recorded_at),
            *(line.by, line.what, line.counterparty)[: len(words) - 1],
            *(line.numbers or [""] * len(NUMBERS[history.kind])),
            str(event.position),
            *_proof(history, number),
        )
        for number, (event, line) in enumerate(zip(history.events, story.lines(), strict=True))
    )
    screen.print(filled(table, rows))
    legs = list(story.legs())
    if len(legs) > 1:
        screen.print()
        screen.print(filled(table_of("leg", "from", "to", "amount", words=3), legs))
        screen.print()
    screen.print(_summary(history))


def _proof(history: History, number: int) -> Iterator[str]:
    """The mark of an event, and the size of the tree that it is in."""
    if history.proven:
        yield f"{SOUND if history.is_proven(number) else NOT_SOUND} {history.proven.head.size}"


def _summary(history: History) -> Text:
    shown = len(history.events)
    what = f"{shown:,} {'event' if shown == 1 else 'events'}"
    if shown < history.count:
        what = f"The last {shown:,} of {history.count:,} events, see --limit"
    text = f"{what}. Read at position {history.position}. {_verdict(history.proven)}"
    if history.is_first_wrong:
        currency = ", which alone says in what currency the amounts are" if history.kind == "payment" else ""
        text += f" The FIRST event is not proven{currency}."
    if not history.is_whole:
        text += " And events are MISSING between them: their versions are not 1, 2, 3 ..."
    return Text(text, "" if history.is_sound else "bold red")


def _verdict(proven: Proven | None) -> str:
    if proven is None:
        return "Not proven: for that give --public-key."
    log = f"the log of {proven.head.size:,} events that {proven.head.origin} signed."
    wrong = sum(each is not None for each in proven.wrong)
    # Its hashes may be damaged, and the events in the log all the same: `ledger audit verify` can tell, we here can't.
    return f"The server's proof of {wrong:,} of these does NOT hold, for {log}" if wrong else f"All are in {log}"
