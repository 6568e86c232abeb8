"""Verifying: one snapshot of a ledger, in which every command is decided again, and every record held to account."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from time import monotonic
from typing import Final, TypeAlias

from ledger.audit.beside import Reading, ReadingHere, reading_beside
from ledger.audit.collector import collector_at_rest
from ledger.audit.findings import Findings
from ledger.audit.note import Note, PublicKey, TreeHead
from ledger.audit.past import PAST_MOST_STREAMS, Past
from ledger.audit.records import KeptHead, Wanted
from ledger.audit.report import Report
from ledger.audit.retrial import try_again
from ledger.audit.snapshot import head_of, opened

BESIDE_LEAST_EVENTS: Final = 20_000
"""From how many events on a second process is worth its start."""

Progress: TypeAlias = Callable[[str, int, int], None]
"""Told what is read, how far it has come, and how far there is to go."""


def verify(
    dsn: str,
    ledger: str,
    *,
    key: PublicKey | None = None,
    kept: Sequence[KeptHead] = (),
    read_models: bool = True,
    progress: Progress = lambda *_: None,
    beside_from: int = BESIDE_LEAST_EVENTS,
    memory_most: int = PAST_MOST_STREAMS,
) -> Report:
    """Check a ledger from its first position to its last, as it is at one moment.

    `key` is the one that the auditor trusts, whichever of the ledger's keys it is; without one they are all believed.
    From `beside_from` events on a second process reads the records; `memory_most` accounts and payments are remembered.
    Raises NoteInvalid if something that was kept is no head, SecondProcessEnded, and psycopg's errors.
    """
    began, findings = monotonic(), Findings()
    for _, note in kept:
        TreeHead.parse(Note.parse(note).text)
    wanted = Wanted(key, tuple(kept), read_models)
    with ExitStack() as stack:
        connection = stack.enter_context(opened(dsn, ledger))
        stack.enter_context(collector_at_rest())
        total = head_of(connection)

        def told(what: str, done: int) -> None:
            progress(what, done, total)

        def told_of_decisions(done: int) -> None:
            told("decisions", done)
            records.hear()

        records: Reading = ReadingHere(connection, wanted, told)
        if total >= beside_from:
            records = stack.enter_context(reading_beside(dsn, ledger, connection, wanted, told))
        try_again(connection, Past(connection, most_streams=memory_most), findings, told_of_decisions)
        seen = records.result()
    findings.merge(list(seen.findings), seen.more_findings)
    return Report(
        ledger=ledger,
        events=seen.events,
        streams=seen.streams,
        heads=seen.heads,
        largest=seen.largest,
        keys=seen.keys,
        is_key_given=key is not None,
        kept=len(kept),
        breaks=seen.breaks,
        compared_at=seen.compared_at,
        stopped=seen.stopped,
        findings=tuple(findings.first),
        more_findings=findings.others,
        seconds=monotonic() - began,
    )
