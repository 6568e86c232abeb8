"""Measure verify, digest and rebuild beside the bare read of the same rows: part of `make bench-audit`.

The history is one that the rules have decided: payments authorized, nine in ten captured, one in twenty refunded.
Rounds are interleaved with their floor; what is printed is the median.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import psycopg

from ledger.audit.digest import digest
from ledger.audit.keys import KeyFiles
from ledger.audit.signer import Signer
from ledger.audit.snapshot import SQL, batches, opened, reading
from ledger.audit.verify import verify
from ledger.cli import prepare
from ledger.domain.aggregate import Stamp
from ledger.domain.book import Book
from ledger.domain.commands import AuthorizePayment, CapturePayment, Command, OpenAccount, PostTransfer, RefundPayment
from ledger.domain.decisions import decide
from ledger.domain.events import AccountKind, TransferLeg
from ledger.domain.money import Money
from ledger.embedded import EmbeddedPostgres
from ledger.postgres import connect
from ledger.upcasters import EventMapper
from projections.follower import Follower
from projections.rebuild import Rebuild

ACCOUNTS = 1_000
COPY = "COPY events (stream, version, position, topic, recorded_at, state) FROM STDIN (FORMAT BINARY)"


def commands(payments: int) -> Iterator[Command]:
    """The history of so many payments."""
    random = Random(1)
    yield OpenAccount(account_id="bank", currency_code="EUR", kind=AccountKind.EXTERNAL)
    yield OpenAccount(account_id="shop", currency_code="EUR")
    for number in range(ACCOUNTS):
        yield OpenAccount(account_id=f"customer-{number}", currency_code="EUR")
        leg = TransferLeg(from_account_id="bank", to_account_id=f"customer-{number}", amount=Money("EUR", 10**9))
        yield PostTransfer(transfer_id=f"fund-{number}", legs=(leg,))
    for number in range(payments):
        yield AuthorizePayment(
            payment_id=f"payment-{number}",
            payer_account_id=f"customer-{random.randrange(ACCOUNTS)}",
            payee_account_id="shop",
            amount=Money("EUR", 100 + number % 900),
            reference=f"order {number}",
        )
        if number % 10:
            yield CapturePayment(payment_id=f"payment-{number}", capture_id="all")
        if number % 20 == 1:
            yield RefundPayment(payment_id=f"payment-{number}", refund_id="back")


def fill(connection: psycopg.Connection[Any], payments: int) -> None:
    """Decide the history, and write it as a committer would have."""
    book, mapper, now = Book({}), EventMapper(), datetime(2026, 1, 1, tzinfo=UTC)
    with connection.cursor() as cursor, cursor.copy(COPY) as copy:
        copy.set_types(["text", "bigint", "bigint", "text", "timestamptz", "bytea"])
        for number, command in enumerate(commands(payments)):
            now += timedelta(milliseconds=5) if number % 50 == 0 else timedelta(0)
            layer = book.layer()
            decide(command, layer, Stamp(now, "anonymous", f"request-{number}", layer.next_position))
            for position, event in enumerate(layer.events, start=book.next_position):
                stored = mapper.to_stored_event(event)
                row = stored.originator_id, stored.originator_version, position, stored.topic, now, stored.state
                copy.write_row(row)
            book.merge(layer)
    connection.execute("ANALYZE events")


def bare_read(dsn: str) -> float:
    """Events/s of reading every row."""
    with opened(dsn, "main") as connection:
        began = time.perf_counter()
        events = sum(len(rows) for rows in batches(reading(connection, "bench", SQL.log)))
        return events / (time.perf_counter() - began)


def verified(dsn: str, **how: Any) -> float:
    """Events/s of a verification, the start of its second process included."""
    report = verify(dsn, "main", **how)
    assert report.is_sound, report.findings
    return report.events / report.seconds


def digested(dsn: str) -> float:
    began = time.perf_counter()
    return digest(dsn, "main").position / (time.perf_counter() - began)


def rebuilt(dsn: str) -> float:
    """Events/s of a rebuild of the read models, the comparison and the swap included."""
    began = time.perf_counter()
    with Rebuild(dsn, "main") as building:
        building.catch_up()
        assert not building.compare().different
        building.swap()
        return building.position / (time.perf_counter() - began)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--payments", type=int, default=60_000, help="about five events each")
    arguments.add_argument("--rounds", type=int, default=3)
    given = arguments.parse_args()
    scenarios = {
        "verify": verified,
        "verify --no-read-models": lambda dsn: verified(dsn, read_models=False),
        "digest": digested,
        "projections rebuild": rebuilt,
    }
    rates: dict[str, list[float]] = {name: [] for name in ("bare read", *scenarios)}
    with tempfile.TemporaryDirectory() as folder, EmbeddedPostgres(Path(folder) / "data") as postgres:
        prepare(postgres.dsn, "main")
        with connect(postgres.dsn, "main", "bench") as connection:
            fill(connection, given.payments)
        follower = Follower(postgres.dsn, "main")
        while follower.run_once():
            pass
        follower.stop()
        files = KeyFiles(Path(folder) / "tree.key", "ledger/main")
        files.make()
        signer = Signer(postgres.dsn, "main", files)
        signer.catch_up()
        signer.stop()
        for _ in range(given.rounds):
            rates["bare read"].append(bare_read(postgres.dsn))
            for name, measure in scenarios.items():
                rates[name].append(measure(postgres.dsn))
    print(f"{os.cpu_count()} cores; median of {given.rounds} rounds, events/s")
    for name, found in rates.items():
        print(f"{name:26} {statistics.median(found):>10,.0f}   of {min(found):,.0f} to {max(found):,.0f}")


if __name__ == "__main__":
    main()
