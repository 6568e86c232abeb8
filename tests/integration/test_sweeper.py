"""The sweeper on a real ledger: what has expired is recorded once, however far behind the read model is."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Final

import psycopg
from checks import Row, check_log, read_log
from domain import authorize, capture, capture_and_keep, close, freeze, increment, leg, open_account, transfer, void
from read_side import catch_up

from ledger.committer import utc_now
from ledger.domain.events import AccountKind
from ledger.sweeper import SWEEP_MOST, Sweeper
from ledger.ticket import Mode
from projections.follower import Follower
from projections.queries import Queries

Serve = Callable[..., Any]
Ask = Callable[..., Any]

WORLD: Final = (
    open_account("bank", kind=AccountKind.EXTERNAL),
    open_account("alice"),
    open_account("shop"),
    transfer("seed", leg("bank", "alice", 10_000)),
)
AN_INSTANT: Final = timedelta(microseconds=1)
HAPPENS_WITHIN_S: Final = 60.0


@asynccontextmanager
async def sweeping(serve: Serve, queries: Queries, sweepers: int = 1) -> AsyncIterator[None]:
    """Sweepers at work, each with a committer of its own."""
    desks = [serve() for _ in range(sweepers)]
    tasks = [asyncio.create_task(Sweeper(desk.committer, queries.expired_payments).run()) for desk in desks]
    yield
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(HAPPENS_WITHIN_S):
        while not holds():
            await asyncio.sleep(0.01)


def expired(log: list[Row]) -> Counter[str]:
    """How often each payment is recorded as expired."""
    return Counter(row.stream for row in log if row.topic == "AuthorizationExpired")


def test_a_read_model_that_stands_still_does_not_hold_up_the_sweeper(
    dsn: str, ledger: str, serve: Serve, follower: Follower, ask: Ask
) -> None:
    """What was swept is still shown as due, and first: it is passed over. All is swept, at most 500 in one append."""
    many = 2 * SWEEP_MOST + 1
    desk = serve()
    desk.do(*WORLD)
    desk.do(*(authorize(1, payment_id=f"p{number}", hold_for=AN_INSTANT) for number in range(many)), mode=Mode.ATOMIC)
    catch_up(follower)

    async def look(queries: Queries) -> None:
        async with sweeping(serve, queries):
            await until(lambda: len(expired(read_log(dsn, ledger))) == many)

    ask(look)
    log = check_log(dsn, ledger)
    assert set(expired(log).values()) == {1}
    appends = Counter(row.recorded_at for row in log if row.topic == "AuthorizationExpired")
    assert max(appends.values()) == SWEEP_MOST


def test_the_log_decides_what_of_the_candidates_expires(
    dsn: str, ledger: str, serve: Serve, follower: Follower, ask: Ask
) -> None:
    """The read model is behind and shows all as due and whole; neither a freeze nor a closed payee stops an expiry."""
    long_ago = utc_now() - timedelta(seconds=3)
    desk = serve(clock=lambda: long_ago)  # Nothing expires here, however long the test takes to come to the end of it.
    payments = ("captured", "voided", "captured-in-part", "raised", "left-alone")
    held = {"hold_for": timedelta(seconds=1)}
    desk.do(*WORLD, open_account("gone"))
    desk.do(*(authorize(10, payment_id=each, **held) for each in payments))
    desk.do(authorize(10, payment_id="payee-gone", payee="gone", **held))
    catch_up(follower)
    desk.do(
        capture("c", payment_id="captured"),
        void("voided"),
        capture_and_keep("c", 4, payment_id="captured-in-part"),
        increment("i", 15, payment_id="raised"),
        freeze("alice"),
        close("gone"),
    )
    amounts = {"captured-in-part": 6, "raised": 15, "left-alone": 10, "payee-gone": 10}

    async def look(queries: Queries) -> None:
        async with sweeping(serve, queries):
            await until(lambda: len(expired(read_log(dsn, ledger))) == len(amounts))

    ask(look)
    log = check_log(dsn, ledger)
    assert expired(log) == {f"payment/{each}": 1 for each in amounts}
    given_back = [row for row in log if row.fields.get("cause", {}).get("kind") == "EXPIRY"]
    assert {row.fields["cause"]["payment_id"]: row.fields["amount"] for row in given_back} == amounts
    assert {(row.stream, row.topic, row.fields["actor"]) for row in given_back} == {
        ("account/alice", "FundsReleased", "sweeper")
    }


def test_several_sweepers_record_each_expiry_once(
    dsn: str, ledger: str, serve: Serve, follower: Follower, ask: Ask
) -> None:
    """They propose the same payments to committers of their own, while clients go on with others."""
    many = SWEEP_MOST + 100
    desk = serve()
    desk.do(*WORLD)
    desk.do(*(authorize(1, payment_id=f"p{number}", hold_for=AN_INSTANT) for number in range(many)), mode=Mode.ATOMIC)
    catch_up(follower)

    async def look(queries: Queries) -> None:
        async with sweeping(serve, queries, sweepers=3):
            for number in range(20):
                await asyncio.to_thread(desk.do, authorize(1, payment_id=f"q{number}"))
            await until(lambda: len(expired(read_log(dsn, ledger))) == many)

    ask(look)
    log = check_log(dsn, ledger)
    assert expired(log) == {f"payment/p{number}": 1 for number in range(many)}


def test_the_sweeper_goes_on_after_the_database_was_lost(
    dsn: str, ledger: str, serve: Serve, follower: Follower, ask: Ask, session: psycopg.Connection[Any]
) -> None:
    """Its committer's connections and its own are ended again and again: each expiry is recorded once all the same."""
    desk = serve()
    desk.do(*WORLD)

    async def look(queries: Queries) -> None:
        async with sweeping(serve, queries):
            for number in range(5):
                payment = authorize(1, payment_id=f"p{number}", hold_for=AN_INSTANT)
                await until(lambda payment=payment: desk.answer(payment).endswith("AUTHORIZED"))
                catch_up(follower)
                session.execute(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                    " WHERE application_name IN ('ledger-writer', 'ledger-reads')"
                )
                await until(lambda number=number: len(expired(read_log(dsn, ledger))) == number + 1)

    ask(look)
    assert set(expired(check_log(dsn, ledger)).values()) == {1}
