"""The scenarios of `make bench-growth`: a long log, many accounts, memory, and more load than there is room for."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Any, Final

import psutil
import psycopg

from bench import work
from bench.load import Result
from bench.programs import BenchFailed, Program, asked
from bench.report import Round, Target
from bench.scenarios import UNARY_CALLS, Rounds, Scenario, at_least, measured
from bench.stage import Book, Stage
from ledger.audit.verify import verify
from ledger.domain.account import Account
from ledger.domain.aggregate import LedgerAggregate, Stamp
from ledger.domain.book import Book as Layer
from ledger.domain.commands import AuthorizePayment, Command, OpenAccount, PostTransfer
from ledger.domain.decisions import decide
from ledger.domain.events import AccountKind, TransferLeg
from ledger.domain.money import Money
from ledger.upcasters import EventMapper

SMALL_LOG: Final = 100_000
LARGE_LOG: Final = 10_000_000
ACCOUNTS: Final = 10_000
MOST_ACCOUNTS: Final = 1_000_000
PAYMENTS: Final = 1_000_000
MEMORY_MOST_MIB: Final = 400.0
FLAT: Final = 1.05
"""How much more memory there may be at the end than half-way."""
ACCEPTED_P99_MS: Final = 1_000.0
REFUSED_P99_MS: Final = 100.0

_COPY: Final = "COPY events (stream, version, position, topic, recorded_at, state) FROM STDIN (FORMAT BINARY)"
_TYPES: Final = ["text", "bigint", "bigint", "text", "timestamptz", "bytea"]


# --- a log that was not waited for -----------------------------------------------------------------------------------


def history(accounts: int, events: int) -> Iterator[Command]:
    """Accounts with money, and authorizations to a shop, that come to so many events; `verify` accepts them."""
    yield OpenAccount(account_id="bank", currency_code=work.EUR, kind=AccountKind.EXTERNAL)
    rich = [work.HOT, *map(work.customer, range(accounts))]
    for name in (work.SHOP, work.POOR, *rich):
        yield OpenAccount(account_id=name, currency_code=work.EUR)
    for name in rich:
        leg = TransferLeg(from_account_id="bank", to_account_id=name, amount=Money(work.EUR, 10**11))
        yield PostTransfer(transfer_id=f"fund-{name}", legs=(leg,))
    for number in range(max(0, events - 4 * len(rich) - 3) // 2):
        yield AuthorizePayment(
            payment_id=f"old-{number:07d}",
            payer_account_id=work.customer(number % accounts),
            payee_account_id=work.SHOP,
            amount=Money(work.EUR, 100 + number % 900),
        )


def fill(connection: psycopg.Connection[Any], accounts: int, events: int) -> int:
    """Decide a history by the rules, and COPY it as a committer would have recorded it; return its last position."""
    accounts_now: dict[str, LedgerAggregate] = {}
    mapper, now, head = EventMapper(), datetime.now(UTC) - timedelta(days=1), 0
    with connection.cursor() as cursor, cursor.copy(_COPY) as copy:
        copy.set_types(_TYPES)
        for number, command in enumerate(history(accounts, events)):
            if number % 50 == 0:
                now += timedelta(microseconds=500)
            layer = Layer(accounts_now, head)
            decide(command, layer, Stamp(now, "anonymous", f"request-{number}", layer.next_position))
            for event in layer.events:
                head += 1
                stored = mapper.to_stored_event(event)
                copy.write_row((stored.originator_id, stored.originator_version, head, stored.topic, now, stored.state))
            # Payments are not looked at again, and five million of them would not fit.
            accounts_now |= {name: each for name, each in layer.changed.items() if isinstance(each, Account)}
    connection.execute("VACUUM ANALYZE events")
    connection.execute("CHECKPOINT")  # Else the first that is measured shares the disk with gigabytes of this.
    return head


def filled(stage: Stage, name: str, accounts: int, events: int) -> Book:
    """A ledger with a history, all of it signed, made when it is first asked for."""
    if name not in stage.books:
        book = stage.books[name] = stage.bare_book(name, accounts)
        with book.connection() as connection:
            fill(connection, accounts, events)
        with book.server("--no-follower"):
            book.wait_for_signer()
    return stage.books[name]


# --- scenarios -------------------------------------------------------------------------------------------------------


def long_log(kind: str) -> Rounds:
    """Two ledgers in one database, each with a server of its own, asked in turns."""

    def run(stage: Stage, rounds: int) -> Iterator[Round]:
        accounts = stage.scaled(ACCOUNTS)
        large = filled(stage, "large", accounts, stage.scaled(LARGE_LOG))
        small = filled(stage, "small", accounts, stage.scaled(SMALL_LOG))
        calls = stage.scaled(UNARY_CALLS)
        options = [] if kind.startswith("read") else ["--no-follower"]  # which takes minutes to read the large one
        with large.server(*options) as there, small.server(*options) as here:
            for _ in range(rounds):
                result, floor = (asked(book.job(kind, at, calls=calls)) for book, at in ((large, there), (small, here)))
                yield measured(result.rate, floor.rate, result)
        found = verify(stage.dsn, small.name, read_models=False)
        if not found.is_sound:
            raise BenchFailed(f"verify does not accept the log: {found.findings}")

    return run


def cold_start(stage: Stage, rounds: int) -> Iterator[Round]:
    """From the start of the process to the line that says it serves."""
    accounts = stage.scaled(ACCOUNTS)
    books = [filled(stage, name, accounts, stage.scaled(n)) for name, n in (("large", LARGE_LOG), ("small", SMALL_LOG))]
    for _ in range(rounds):
        value, floor = map(_start_s, books)
        yield Round(value, floor)


def _start_s(book: Book) -> float:
    began = time.perf_counter()
    with book.server("--no-follower"):
        return time.perf_counter() - began


def many_accounts(stage: Stage, rounds: int) -> Iterator[Round]:
    many = stage.scaled(MOST_ACCOUNTS)
    books = [filled(stage, "many", many, 0), filled(stage, "few", 10, 0)]
    with books[0].server("--no-follower") as there, books[1].server("--no-follower") as here:
        for _ in range(rounds):
            result, floor = (
                asked(book.job("authorize", at, calls=stage.scaled(UNARY_CALLS)))
                for book, at in zip(books, (there, here), strict=True)
            )
            yield measured(result.rate, floor.rate, result)


def memory(stage: Stage, rounds: int) -> Iterator[Round]:
    """The server's resident memory while payments go through it in batches; one round, however many are asked for."""
    book = filled(stage, "memory", stage.scaled(100_000), 0)
    calls = max(2, stage.scaled(PAYMENTS) // 1_000 // 20)
    with book.server() as server:
        seen = []
        for _ in range(20):
            asked(book.job("authorize_batched", server, calls=calls, batch=1_000, outstanding=2, caught_up=True))
            seen.append(_resident_mib(server))
    half, end = seen[len(seen) // 2 - 1], seen[-1]
    grown = end / half
    told = ", ".join(f"{each:.0f}" for each in seen)
    note = f"MiB after each twentieth: {told}; the second half grew by {grown - 1:.1%} (flat is up to {FLAT - 1:.0%})"
    if stage.scale >= 1 and grown > FLAT:
        raise BenchFailed(f"memory is not flat: {note}")
    yield Round(end, half, note=note)
    del rounds


def _resident_mib(server: Program) -> float:
    return float(psutil.Process(server.pid).memory_info().rss) / 2**20


def saturation(stage: Stage, rounds: int) -> Iterator[Round]:
    """An open loop at up to 3 times what a closed one reaches right before it, beside what one reaches right before and
    right after: within the half minute that this takes, the machine's speed changes by a tenth and more.

    Yields the rounds of the load that does worst of those beyond saturation: the least figure of each round would
    mostly say when the machine was slow.
    """
    book = filled(stage, "offered", stage.scaled(ACCOUNTS), 0)
    beyond_it: dict[float, list[Round]] = {load: [] for load in _PAST}
    with book.server() as server:
        for _ in range(rounds):
            steps: dict[float, Result] = {}
            closed: dict[float, float] = {}
            before = _closed(stage, book, server)
            for load in (0.5, 0.8, 1.0, *_PAST):
                steps |= _offered(stage, book, server, before, (load,))
                after = _closed(stage, book, server)
                before, closed[load] = after, (before + after) / 2
            for load, found in beyond_it.items():
                found.append(Round(steps[load].rate, closed[load], note=_told(steps)))
    yield from min(beyond_it.values(), key=lambda found: median(each.value / each.floor for each in found))


def beyond(most_ms: Callable[[Result], float]) -> Rounds:
    """The slowest of some calls beyond saturation. Latencies count from when a call was due."""

    def measure(stage: Stage, rounds: int) -> Iterator[Round]:
        book = filled(stage, "offered", stage.scaled(ACCOUNTS), 0)
        with book.server() as server:
            for _ in range(rounds):
                steps = _offered(stage, book, server, _closed(stage, book, server), (0.8, *_PAST))
                yield Round(max(most_ms(steps[load]) for load in _PAST), steps[0.8].p99_ms, note=_told(steps))

    return measure


_PAST: Final = (1.5, 2.0, 3.0)


def _closed(stage: Stage, book: Book, server: Program) -> float:
    return asked(book.job("authorize", server, calls=stage.scaled(2 * UNARY_CALLS))).rate


def _offered(stage: Stage, book: Book, server: Program, closed: float, loads: Sequence[float]) -> dict[float, Result]:
    results = {}
    for load in loads:
        calls = max(10, int(load * closed * 10 * stage.scale))
        job = book.job("authorize", server, calls=calls, rate=load * closed, refusals=True, connections=8)
        results[load] = asked(job)
    return results


def _told(steps: dict[float, Result]) -> str:
    return "; ".join(itertools.starmap(_step, steps.items()))


def _step(load: float, result: Result) -> str:
    return (
        f"{load:g}x: {result.rate:,.0f}/s, p50 {result.p50_ms:,.0f} ms, p99 {result.p99_ms:,.0f} ms,"
        f" {result.refused / result.calls:.0%} refused and {result.cut_off / result.calls:.0%} cut off"
        f" in p99 {result.refused_p99_ms:,.0f} ms"
    )


_SMALL: Final = "a log of 100,000"

GROWTH: Final[dict[str, Scenario]] = {
    "log-writes": Scenario(
        "AuthorizePayment on a log of 10 million events", "calls/s", _SMALL, at_least(0.9), long_log("authorize"), "log"
    ),
    "log-reads": Scenario(
        "GetAccountBalance on a log of 10 million", "calls/s", _SMALL, at_least(0.9), long_log("read_balances"), "log"
    ),
    "cold-start": Scenario(
        "start of a server on a log of 10 million", "s", _SMALL, Target("value", 3.0, "<="), cold_start, "log"
    ),
    "accounts": Scenario(
        "AuthorizePayment, 1,000,000 accounts", "calls/s", "10 accounts", at_least(0.8), many_accounts
    ),
    "memory": Scenario(
        "a server after a million payments, 100,000 accounts",
        "MiB",
        "the same half-way",
        Target("value", MEMORY_MOST_MIB, "<="),
        memory,
    ),
    "saturation": Scenario(
        "the worst of 1.5, 2 and 3 times the load that it takes",
        "calls/s",
        "a closed loop right before and after",
        at_least(0.9),
        saturation,
    ),
    "accepted": Scenario(
        "p99 of what is accepted of 1.5 to 3 times that load",
        "ms",
        "at 0.8 times",
        Target("value", ACCEPTED_P99_MS, "<="),
        beyond(lambda result: result.p99_ms),
    ),
    "refused": Scenario(
        "p99 of what is refused of 1.5 to 3 times that load",
        "ms",
        "accepted, at 0.8 times",
        Target("value", REFUSED_P99_MS, "<="),
        beyond(lambda result: result.refused_p99_ms),
    ),
}
