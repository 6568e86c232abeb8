"""Verifying: one snapshot of a ledger read twice, by position and by stream, and everything in it held to account."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from time import monotonic
from typing import Final, TypeAlias

from ledger.audit.beside import Reading, ReadingHere, reading_beside
from ledger.audit.changes import first_change
from ledger.audit.collector import collector_at_rest
from ledger.audit.findings import Findings
from ledger.audit.heads import Heads
from ledger.audit.note import PublicKey
from ledger.audit.past import PAST_MOST_STREAMS, Past
from ledger.audit.positions import Positions
from ledger.audit.report import Report
from ledger.audit.roots import Roots
from ledger.audit.snapshot import head_of, opened

BESIDE_LEAST_EVENTS: Final = 20_000
"""From how many events on a second process is worth its start."""

Progress: TypeAlias = Callable[[str, int, int], None]
"""Told what is read, how far it has come, and how far there is to go."""

KeptHead: TypeAlias = tuple[str, str]
"""A name for people, such as its file's, and the text of the note."""


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
    From `beside_from` events on, a second process reads the log by stream; `memory_most` accounts and payments are
    remembered. Raises NoteInvalid if something that was kept is no head, and psycopg's errors.
    """
    began, findings = monotonic(), Findings()
    with ExitStack() as stack:
        connection = stack.enter_context(opened(dsn, ledger))
        stack.enter_context(collector_at_rest())
        total = head_of(connection)
        heads = Heads(connection, findings, key)
        signed, breaks = [heads.kept(*each) for each in kept], heads.breaks()

        def told_of_streams(done: int) -> None:
            progress("streams", done, total)

        def told_of_log(done: int) -> None:
            progress("log", done, total)
            reading.hear()

        reading: Reading = ReadingHere(connection, read_models, told_of_streams)
        if total >= beside_from:
            reading = stack.enter_context(reading_beside(dsn, ledger, connection, read_models, told_of_streams))
        past = Past(connection, most_streams=memory_most)
        positions = Positions(connection, findings, Roots(findings, heads.read(), signed, breaks), past)
        departure = positions.run(told_of_log)
        change = None if departure is None else first_change(connection, departure)
        seen = reading.result()
    findings.merge([*seen.findings, *([change] if change else [])], seen.more_findings)
    return Report(
        ledger=ledger,
        events=positions.events,
        streams=seen.streams,
        heads=heads.published,
        largest=heads.largest,
        keys=heads.keys,
        is_key_given=key is not None,
        kept=len(kept),
        breaks=tuple(breaks),
        compared_at=seen.checkpoint,
        stopped=seen.stopped,
        findings=tuple(findings.first),
        more_findings=findings.others,
        seconds=monotonic() - began,
    )
