"""The records: all that can be checked of them without deciding anything again. By position, then by stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from psycopg import Connection

from ledger.audit.changes import first_change
from ledger.audit.findings import Finding, Findings
from ledger.audit.heads import Break, Heads, Signed
from ledger.audit.note import PublicKey
from ledger.audit.positions import Positions
from ledger.audit.roots import Roots
from ledger.audit.streams import check_streams

KeptHead: TypeAlias = tuple[str, str]
"""A name for people, such as its file's, and the text of the note."""

Told: TypeAlias = Callable[[str, int], None]
"""Told what is read, and how many events are done."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an auditor brings along, and wants to know."""

    key: PublicKey | None = None
    kept: tuple[KeptHead, ...] = ()
    read_models: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordsSeen:
    """What was seen; `Report` says what each is."""

    events: int
    streams: dict[str, int]
    heads: int
    largest: Signed | None
    keys: tuple[PublicKey, ...]
    breaks: tuple[Break, ...]
    compared_at: int | None
    stopped: str | None
    findings: tuple[Finding, ...]
    more_findings: int


def check_records(connection: Connection[Any], wanted: Wanted, told: Told) -> RecordsSeen:
    """Check order, tree and signatures, then every stream and the read models.

    Raises NoteInvalid if something that was kept is no head.
    """
    findings = Findings()
    heads = Heads(connection, findings, wanted.key)
    kept, breaks = [heads.kept(*each) for each in wanted.kept], heads.breaks()
    positions = Positions(connection, findings, Roots(findings, heads.read(), kept, breaks))
    departure = positions.run(lambda done: told("tree", done))
    change = None if departure is None else first_change(connection, departure)
    if change is not None:
        findings.add(change)
    streams = check_streams(
        connection, findings, read_models=wanted.read_models, progress=lambda done: told("streams", done)
    )
    return RecordsSeen(
        events=positions.events,
        streams=streams.seen,
        heads=heads.published,
        largest=heads.largest,
        keys=heads.keys,
        breaks=tuple(breaks),
        compared_at=streams.checkpoint,
        stopped=streams.stopped,
        findings=tuple(findings.first),
        more_findings=findings.others,
    )
