"""The report of a verification, for people and for programs."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ledger.audit.findings import Finding
from ledger.audit.heads import Break, Signed
from ledger.audit.note import PublicKey
from ledger.terminal import printable


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a verification has come to."""

    ledger: str
    events: int
    streams: dict[str, int]
    """How many accounts, payments and transfers there are."""

    heads: int
    largest: Signed | None
    """How many heads are published, and the largest of them."""

    keys: tuple[PublicKey, ...]
    """What signatures were checked with, in the order in which they were introduced."""

    is_key_given: bool
    """Whether the auditor brought one of them along; the ledger itself can name any."""

    kept: int
    """How many heads the auditor had kept."""

    breaks: tuple[Break, ...]
    compared_at: int | None
    """The position that the read models were compared at, if they were."""

    stopped: str | None
    """Why the follower of the read models has stopped, if it has."""

    findings: tuple[Finding, ...]
    """The first ones, in order."""

    more_findings: int
    seconds: float

    @property
    def is_sound(self) -> bool:
        return not self.findings

    def lines(self) -> Iterator[str]:
        """For people: first whether all is well, or what is not."""
        counts = ", ".join(f"{count:,} {kind}s" for kind, count in self.streams.items())
        speed = f"{self.seconds:.1f} s, {self.events / max(self.seconds, 0.001):,.0f} events/s"
        if self.is_sound:
            yield f"ledger {self.ledger} is sound: {self.events:,} events, {counts} ({speed})"
        else:
            first, *others = self.findings
            yield f"ledger {self.ledger} is NOT sound: {first.line}"
            yield from (f"  {each.line}" for each in others)
            if self.more_findings:
                yield f"  and {self.more_findings:,} more"
            yield f"  read: {self.events:,} events, {counts} ({speed})"
        yield from (f"  {each}" for each in self._seen())

    def _seen(self) -> Iterator[str]:
        if self.largest is None:
            yield "heads: none; nothing but the rules tells whether the history was changed"
        else:
            after = f"; {self.events - self.largest.size:,} events after it" if self.events > self.largest.size else ""
            root = b64encode(self.largest.root).decode()
            yield f"heads: {self.heads:,}, the largest of size {self.largest.size:,} with root {root}{after}"
            for each in self.keys:
                yield f"key: {each}" if self.is_key_given else f"key, by the ledger's OWN word: {each}"
        if self.kept:
            yield f"kept: {self.kept:,} of your own heads {'was' if self.kept == 1 else 'were'} held against the log"
        yield from (each.line for each in self.breaks)
        if self.compared_at is None:
            yield "read models: not looked at"
        else:
            yield f"read models: compared at position {self.compared_at:,}"
        if self.stopped is not None:
            yield f"read models: their follower has stopped: {printable(self.stopped)}"

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        largest = None
        if self.largest is not None:
            largest = {"tree_size": self.largest.size, "root_hash": b64encode(self.largest.root).decode()}
        breaks = [
            {"number": each.number, "before": each.before, "after": each.size, "when": each.when, "why": each.why}
            for each in self.breaks
        ]
        return {
            "ledger": self.ledger,
            "sound": self.is_sound,
            "findings": [each.as_json() for each in self.findings],
            "more_findings": self.more_findings,
            "events": self.events,
            **{f"{kind}s": count for kind, count in self.streams.items()},
            "heads": self.heads,
            "largest_head": largest,
            "public_keys": [str(each) for each in self.keys],
            "public_key_given": self.is_key_given,
            "kept_heads": self.kept,
            "breaks": breaks,
            "read_models": {"position": self.compared_at, "stopped": self.stopped},
            "seconds": round(self.seconds, 3),
        }
