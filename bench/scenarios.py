"""The scenarios of `make bench`: what is measured, beside which floor, and what it has to come to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeAlias

import psycopg

from bench.load import Result
from bench.programs import BenchFailed, asked, echo_server, run_ledger
from bench.report import Round, Target
from bench.stage import Bare, Book, Stage
from bench.work import EUR, SHOP, customer
from ledger import collector
from ledger.audit.verify import verify
from ledger.writer import Head, Writer
from projections.follower import BATCH_EVENTS, Follower
from projections.rebuild import TABLES

Rounds: TypeAlias = Callable[[Stage, int], Iterator[Round]]

UNARY_CALLS: Final = 5_000
BATCH_CALLS: Final = 16
BATCH: Final = 1_000
EVENTS_PER_AUTHORIZATION: Final = 2
EVENTS_PER_CAPTURED_PAYMENT: Final = 5
"""PaymentAuthorized, FundsReserved; PaymentCaptured, FundsDebited, FundsCredited."""
EVENTS_PER_TRANSFER: Final = 3
FAIR_SHARE: Final = 0.35
"""What the slower of two servers has to get of the calls at least."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One line of the report."""

    title: str
    unit: str
    floor_name: str
    target: Target
    rounds: Rounds
    shares: str = ""
    """Scenarios that share something run on one Postgres; each other has one of its own."""


def at_least(ratio: float) -> Target:
    return Target("ratio", ratio, ">=")


def measured(value: float, floor: float, result: Result, note: str = "") -> Round:
    """A round with what its calls cost."""
    per_operation = {name: spent / result.commands * 1e6 for name, spent in result.cpu_s.items()}
    return Round(value, floor, per_operation, result.client_cpu_us, note)


# --- one call, one command -------------------------------------------------------------------------------------------


def unary(stage: Stage, rounds: int) -> Iterator[Round]:
    book = stage.book("bench")
    with book.server() as server, echo_server() as echo:
        for _ in range(rounds):
            result = asked(book.job("authorize", server, calls=stage.scaled(UNARY_CALLS)))
            floor = asked(book.job("authorize", echo, calls=stage.scaled(UNARY_CALLS)))
            yield measured(result.rate, floor.rate, result, _generator(floor))


def _generator(floor: Result) -> str:
    """The generator's own price, where it is seen best: with nothing but an echo beside it."""
    return f"the load generator took {floor.client_cpu_us:.0f} us of CPU per call of the echo"


def unary_hot(stage: Stage, rounds: int) -> Iterator[Round]:
    book = stage.book("bench")
    with book.server() as server:
        for _ in range(rounds):
            result = asked(book.job("authorize", server, calls=stage.scaled(UNARY_CALLS), hot=True))
            floor = asked(book.job("authorize", server, calls=stage.scaled(UNARY_CALLS)))
            yield measured(result.rate, floor.rate, result)


def lone(stage: Stage, rounds: int) -> Iterator[Round]:
    book = stage.book("bench")
    alone = {"outstanding": 1, "connections": 1, "calls": stage.scaled(500)}
    with book.server() as server, echo_server() as echo, book.connection() as connection:
        bare = Bare(connection)
        for _ in range(rounds):
            result = asked(book.job("authorize", server, **alone))
            floor = bare.commit_ms(stage.scaled(500)) + asked(book.job("authorize", echo, **alone)).p50_ms
            yield measured(result.p50_ms, floor, result)


def retries(stage: Stage, rounds: int) -> Iterator[Round]:
    """A batch that is decided twice rolls back its first append, and Postgres counts that."""
    book = stage.book("bench")
    calls = max(2_000, stage.scaled(UNARY_CALLS))  # what is retried has to be answered by then
    with book.server() as server, book.connection() as connection:
        for _ in range(rounds):
            before = _rollbacks(connection)
            result = asked(book.job("authorize", server, calls=calls, retries=10, declines=10))
            if _rollbacks(connection) != before:
                raise BenchFailed("a batch was decided twice for retries or declines")
            floor = asked(book.job("authorize", server, calls=calls))
            yield measured(result.rate, floor.rate, result)


def _rollbacks(connection: psycopg.Connection[Any]) -> int:
    query = "SELECT xact_rollback FROM pg_stat_database WHERE datname = current_database()"
    time.sleep(1.1)  # a session tells its counts once a second
    row = connection.execute(query).fetchone()
    assert row is not None
    return int(row[0])


def reads(kind: str) -> Rounds:
    """Point reads of what was written before."""

    def run(stage: Stage, rounds: int) -> Iterator[Round]:
        book = stage.book("bench")
        count = stage.scaled(UNARY_CALLS)
        with book.server() as server, echo_server() as echo:
            written = book.job("authorize", server, calls=count)
            asked(written)
            book.wait_for_follower()
            for _ in range(rounds):
                result = asked(replace(written, kind=kind))
                floor = asked(replace(book.job(kind, echo, calls=count), tag=written.tag))
                yield measured(result.rate, floor.rate, result)

    return run


def read_own_write(stage: Stage, rounds: int) -> Iterator[Round]:
    book = stage.book("bench")
    calls = stage.scaled(2_000)
    with book.server() as server:
        for _ in range(rounds):
            result = asked(book.job("authorize_then_read", server, calls=calls, outstanding=64, own_write=True))
            floor = asked(book.job("authorize_then_read", server, calls=calls, outstanding=64, own_write=False))
            yield measured(result.p99_ms, floor.p99_ms, result)


# --- batches ---------------------------------------------------------------------------------------------------------


def batches(*options: str, caught_up: bool) -> Rounds:
    def run(stage: Stage, rounds: int) -> Iterator[Round]:
        book, size = stage.book("bench"), stage.scaled(BATCH)
        more = {"batch": size, "outstanding": 4, "caught_up": caught_up}
        with book.server(*options) as server, book.connection() as connection:
            bare = Bare(connection)
            for _ in range(rounds):
                result = asked(book.job("authorize_batched", server, calls=BATCH_CALLS, **more))
                events = result.commands * EVENTS_PER_AUTHORIZATION
                floor = bare.rows_per_s(events, size * EVENTS_PER_AUTHORIZATION)
                note = f"{result.commands / result.seconds:,.0f} payments/s"
                yield measured(events / result.seconds, floor, result, note)

    return run


def batch_capture(stage: Stage, rounds: int) -> Iterator[Round]:
    book, size = stage.book("bench"), stage.scaled(BATCH)
    more = {"batch": size, "outstanding": 4}
    with book.server("--no-follower") as server, book.connection() as connection:
        bare = Bare(connection)
        for _ in range(rounds):
            result = asked(book.job("authorize_and_capture_batched", server, calls=BATCH_CALLS // 2, **more))
            events = result.commands // 2 * EVENTS_PER_CAPTURED_PAYMENT
            floor = bare.rows_per_s(events, size * EVENTS_PER_AUTHORIZATION)
            note = f"{result.commands / 2 / result.seconds:,.0f} payments/s authorized and captured"
            yield measured(events / result.seconds, floor, result, note)


def csv_import(stage: Stage, rounds: int) -> Iterator[Round]:
    """`ledger import` of made-up transfers, from the files to the read models, its start-up included."""
    book = stage.book("bench")
    rows = stage.scaled(30_000)
    with book.server() as server, book.connection() as connection:
        bare = Bare(connection)
        for number in range(rounds):
            accounts, movements = _csv_files(stage.folder, f"import-{number}", rows, book.accounts)
            began = time.perf_counter()
            run_ledger("import", accounts, movements, "--server", server.address, "--ledger", book.name)
            book.wait_for_follower()
            seconds = time.perf_counter() - began
            yield Round(rows / seconds, bare.rows_per_s(rows * EVENTS_PER_TRANSFER, BATCH))


def _csv_files(folder: Path, tag: str, rows: int, accounts: int) -> tuple[Path, Path]:
    """An accounts.csv of accounts that are there already, and a movements.csv of transfers between them."""
    names = [customer(number) for number in range(accounts)]
    opened, moved = folder / f"{tag}-accounts.csv", folder / f"{tag}-movements.csv"
    lines = ["account_id,currency,kind,credit_limit", *(f"{name},{EUR},customer," for name in names)]
    opened.write_text("\n".join([*lines, ""]))
    lines = ["id,effective_at,kind,from_account,to_account,amount,reference"]
    for number in range(rows):
        payer = names[number % accounts]
        lines.append(f"{tag}-{number},2026-01-01T00:00:00Z,transfer,{payer},{SHOP},{1 + number % 9}.00,row {number}")
    moved.write_text("\n".join([*lines, ""]))
    return opened, moved


# --- two servers -----------------------------------------------------------------------------------------------------


def two_servers(*, hot: bool) -> Rounds:
    """Half of the connections go to each; in the end the whole log is decided again."""

    def run(stage: Stage, rounds: int) -> Iterator[Round]:
        book = stage.book("bench")
        calls = stage.scaled(UNARY_CALLS)
        with book.server("--no-follower") as first:
            for _ in range(rounds):
                floor = asked(book.job("authorize", first, calls=calls, hot=hot))
                with book.server("--no-follower") as second:
                    result = asked(book.job("authorize", first, second, calls=calls, hot=hot))
                share = min(result.by_target.values()) / calls
                if share < FAIR_SHARE:
                    raise BenchFailed(f"not fair: one of the two servers answered {share:.0%} of the calls")
                yield measured(result.rate, floor.rate, result, f"the slower server answered {share:.0%} of the calls")
        found = verify(stage.dsn, book.name, read_models=False)
        if not found.is_sound:
            raise BenchFailed(f"verify: {found.findings}")

    return run


# --- the read side ---------------------------------------------------------------------------------------------------

_READ: Final = "SELECT * FROM events WHERE position > %s ORDER BY position LIMIT %s"


def catch_up(stage: Stage, rounds: int) -> Iterator[Round]:
    collector.settle()  # as in `ledger follow`
    book = stage.book("bench")
    with book.server("--no-follower") as server:
        more = {"batch": stage.scaled(BATCH), "outstanding": 4}
        asked(book.job("authorize_and_capture_batched", server, calls=stage.scaled(20), **more))
    for _ in range(rounds):
        with book.connection() as connection:
            connection.execute(f"TRUNCATE {', '.join(TABLES)}; UPDATE checkpoints SET position = 0")
            floor = _read_all(connection)
        began, events, follower = time.perf_counter(), 0, Follower(stage.dsn, book.name)
        while applied := follower.run_once():
            events += applied
        seconds = time.perf_counter() - began
        follower.stop()
        yield Round(events / seconds, floor)


def _read_all(connection: psycopg.Connection[Any]) -> float:
    """Rows/s of reading the log in the follower's batches."""
    began, after, rows = time.perf_counter(), 0, 0
    while found := connection.execute(_READ, (after, BATCH_EVENTS), binary=True).fetchall():
        after, rows = found[-1][2], rows + len(found)
    return rows / (time.perf_counter() - began)


# --- vacuum's horizon ------------------------------------------------------------------------------------------------


def snapshot(stage: Stage, rounds: int) -> Iterator[Round]:
    """Appends of the two events of an authorization after 100,000 under a snapshot, and on a twin that has none.

    The twin is in another database: a snapshot holds back what can be cleaned in the whole of its own.
    """
    book, twin = stage.book("bench", accounts=10), stage.elsewhere("twin").book("twin", accounts=10)
    count = stage.scaled(3_000)
    with book.connection() as holder:
        holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        holder.execute("SELECT count(*) FROM events")
        held, free = Appends(book), Appends(twin)
        held.per_s(stage.scaled(100_000))
        free.per_s(stage.scaled(100), pairs=1_000)
        for number in range(2 * rounds):
            first, second = (held, free) if number % 2 else (free, held)
            rates = {first: first.per_s(count), second: second.per_s(count)}
            yield Round(rates[held], rates[free])


class Appends:
    """A writer of its own, that appends pairs of events."""

    def __init__(self, book: Book) -> None:
        self._writer = Writer(book.stage.dsn, book.name, lambda: datetime.now(UTC))
        self._head = self._writer.head()

    def per_s(self, count: int, pairs: int = 1) -> float:
        """Make so many appends, of as many pairs each; appends/s."""
        began = time.perf_counter()
        for _ in range(count):
            now, first = max(datetime.now(UTC), self._head.recorded_at), self._head.position
            rows = [
                (f"{kind}/{first + pair}", 1, "PaymentAuthorized", b"x" * 300)
                for pair in range(pairs)
                for kind in ("payment", "account")
            ]
            self._writer.append(self._head, rows, now)
            self._head = Head(first + len(rows), now)
        return count / (time.perf_counter() - began)


_ECHO: Final = "grpc.aio echo of the same messages"
_ROWS: Final = "the same rows by bare unnest"

SCENARIOS: Final[dict[str, Scenario]] = {
    "unary": Scenario("AuthorizePayment, 256 outstanding", "calls/s", _ECHO, at_least(0.60), unary),
    "unary-hot": Scenario("the same on one hot account", "calls/s", "10,000 accounts", at_least(0.90), unary_hot),
    "lone": Scenario(
        "one client, one call at a time, p50", "ms", "bare commit + echo", Target("extra", 1.0, "<="), lone
    ),
    "batch": Scenario(
        "ExecuteBatch of 1,000, 4 outstanding, no follower",
        "events/s",
        _ROWS,
        at_least(0.40),
        batches("--no-follower", caught_up=False),
    ),
    "batch-follower": Scenario(
        "the same until the read models have it", "events/s", _ROWS, at_least(0.25), batches(caught_up=True)
    ),
    "batch-capture": Scenario(
        "authorize and capture, batched, no follower", "events/s", _ROWS, at_least(0.35), batch_capture
    ),
    "import": Scenario("ledger import of 30,000 transfers", "rows/s", _ROWS, Target("value", 3_000, ">="), csv_import),
    "retries": Scenario("10 % retries, 10 % declines", "calls/s", "the clean run", at_least(0.85), retries),
    "two-servers": Scenario(
        "two servers, 10,000 accounts", "calls/s", "one server", at_least(0.90), two_servers(hot=False)
    ),
    "two-servers-hot": Scenario(
        "two servers, one hot account", "calls/s", "one server", at_least(0.80), two_servers(hot=True)
    ),
    "catch-up": Scenario(
        "read models from zero", "events/s", "reading the same rows", Target("value", 30_000, ">="), catch_up
    ),
    "read-balance": Scenario("GetAccountBalance", "calls/s", _ECHO, at_least(0.55), reads("read_balances")),
    "read-payment": Scenario("GetPayment", "calls/s", _ECHO, at_least(0.55), reads("read_payments")),
    "read-own-write": Scenario(
        "write, then read it with min_position, p99",
        "ms",
        "read without min_position",
        Target("extra", 50.0, "<="),
        read_own_write,
    ),
    "snapshot": Scenario(
        "appends under a snapshot that was held for 100,000", "appends/s", "a twin without", at_least(0.95), snapshot
    ),
}
