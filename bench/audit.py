"""Measure what the audit costs, each figure beside the bare read of the same rows: `make bench-audit`.

The rows are made up: the tree covers whatever bytes there are.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from ledger.audit.keys import KeyFiles
from ledger.audit.proofs import Proofs
from ledger.audit.signer import Signer
from ledger.cli import prepare
from ledger.embedded import EmbeddedPostgres
from ledger.postgres import connect
from ledger.v1.audit_pb2 import GetConsistencyProofRequest, GetInclusionProofRequest
from projections.queries import Queries

EVENTS = 1_000_000
READ = """
    SELECT position, stream, version, topic, recorded_at, state FROM events
    WHERE position > %s ORDER BY position LIMIT 5000
"""
FILL = """
    INSERT INTO events (stream, version, position, topic, recorded_at, state)
    SELECT 'payment/' || n, 1, n, 'PaymentAuthorized', now(), convert_to(repeat('x', 400), 'UTF8')
    FROM generate_series(1, %s) AS n
"""


def bare_read(connection: psycopg.Connection[Any]) -> float:
    """Events/s of reading every row."""
    began, after = time.perf_counter(), 0
    while rows := connection.execute(READ, (after,), binary=True).fetchall():
        after = rows[-1][0]
    return after / (time.perf_counter() - began)


def cpu_of(connection: psycopg.Connection[Any]) -> float:
    """CPU seconds of this process and of the server process behind a connection."""
    fields = Path(f"/proc/{connection.info.backend_pid}/stat").read_text().rpartition(")")[2].split()
    return time.process_time() + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def signing(dsn: str, folder: Path) -> tuple[float, float]:
    """Events/s of growing and signing the tree from nothing, and the microseconds of CPU for each."""
    files = KeyFiles(folder / "tree.key", "ledger/main")
    files.make()
    signer = Signer(dsn, "main", files)
    connection = signer._connected()
    cpu, began = cpu_of(connection), time.perf_counter()
    signer.catch_up()
    seconds, spent = time.perf_counter() - began, cpu_of(connection) - cpu
    signer.stop()
    return EVENTS / seconds, spent / EVENTS * 1e6


def proof_ms(dsn: str, ask: Callable[[Proofs, int], Any], calls: int = 300) -> float:
    """p50 of one proof after the other, as the server makes them."""

    async def main() -> float:
        queries = Queries(dsn, "main")
        await queries.open()
        proofs, took = Proofs(queries.rows), []
        for number in range(calls):
            began = time.perf_counter()
            await ask(proofs, 1 + number * 3_331 % EVENTS)
            took.append(time.perf_counter() - began)
        await queries.close()
        return statistics.median(took) * 1_000

    return asyncio.run(main())


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder, EmbeddedPostgres(Path(folder) / "data") as postgres:
        prepare(postgres.dsn, "main")
        with connect(postgres.dsn, "main", "bench") as connection:
            connection.execute(FILL, (EVENTS,))
            connection.execute("VACUUM ANALYZE events")
            read = statistics.median(bare_read(connection) for _ in range(3))
            rate, cpu_us = signing(postgres.dsn, Path(folder))
        inclusion = proof_ms(
            postgres.dsn,
            lambda proofs, position: proofs.get_inclusion_proof(GetInclusionProofRequest(position=position), 5),
        )
        consistency = proof_ms(
            postgres.dsn,
            lambda proofs, size: proofs.get_consistency_proof(GetConsistencyProofRequest(first_tree_size=size), 5),
        )
    print(f"a log of {EVENTS:,} events of 400 bytes; fsync=on, synchronous_commit=on")
    print(f"bare read of all rows             {read:>10,.0f} events/s")
    print(f"grow and sign the tree            {rate:>10,.0f} events/s  ratio {rate / read:.2f}")
    print(f"  CPU, signer and its backend     {cpu_us:>10.2f} us/event  target < 15")
    print(f"inclusion proof, p50              {inclusion:>10.2f} ms  target < 5")
    print(f"consistency proof, p50            {consistency:>10.2f} ms")


if __name__ == "__main__":
    main()
