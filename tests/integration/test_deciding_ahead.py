"""A batch that is decided while the one before it is being recorded: what comes of it, whatever comes of that one."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from time import monotonic
from typing import Any, Final

import psycopg
import pytest
from checks import check_log, commands_of, eventually, read_log
from domain import authorize, capture, freeze, in_words, increment, leg, open_account, refund, transfer, void
from eventsourcing.persistence import StoredEvent
from test_committer import WORLD, fund, without_times
from test_crash import end
from unreliable_network import Break, Proxy

from ledger.domain.account import Account
from ledger.domain.aggregate import Stamp
from ledger.domain.commands import AuthorizePayment, Command
from ledger.domain.errors import Refusal
from ledger.domain.events import AccountKind, FreezeScope, LedgerEvent
from ledger.ticket import EVENTS_PER_APPEND, Result
from ledger.upcasters import EventMapper

Serve = Callable[..., Any]

REFUSED: Final = tuple(void(f"none-{number}") for number in range(EVENTS_PER_APPEND // 2 - 1))
"""With one command before them they are as many as go into one append; nothing is recorded of them."""

FOREVER_S: Final = 60.0

EARNS: Final = (fund("alice", 100, "salary"), *REFUSED)
SPENDS: Final = (transfer("rent", leg("alice", "shop", 60)), *REFUSED)
BUYS: Final = (authorize(150), capture("c", 50), refund("r", 20))
"""More than alice has, if she does not earn anything before."""


def words(results: list[Result]) -> list[str]:
    return [f"refused {each.code}" if isinstance(each, Refusal) else in_words(each) for each in results]


def told(future: Any) -> list[str]:
    """What came of a batch, but for the commands that are refused in any case."""
    return [each for each in words(future.result(FOREVER_S)) if each != "refused PAYMENT_NOT_FOUND"]


def has_decided(desk: Any) -> Callable[[], bool]:
    return lambda: desk.committer._next is not None and desk.committer._next.ahead is not None


def test_what_was_decided_ahead_is_recorded_as_it_was(dsn: str, ledger: str, serve: Serve, stall: Serve) -> None:
    """A payment from money that the batch before brings, and that is not recorded yet when it is decided."""
    desk = serve()
    desk.do(*WORLD)
    turn, (earning, buying) = stall(desk, EARNS, BUYS)
    eventually(has_decided(desk))
    assert not buying.done()
    turn.release()
    assert told(earning) == ["POSTED"]
    assert told(buying) == ["AUTHORIZED", "CAPTURED", "CAPTURED"]
    assert desk.committer.decided_ahead == 1
    last = {events[-1].position: events[-1] for events in commands_of(check_log(dsn, ledger))}
    for each in buying.result():
        assert last[each.position].recorded_at == each.recorded_at
    # And what is remembered of it is what is in the log.
    assert desk.answer(refund("r2")) == "CAPTURED"
    assert desk.answer(refund("r3")) == "refused NOTHING_TO_REFUND"
    check_log(dsn, ledger)


def test_each_append_is_waited_for_by_itself(serve: Serve, session: psycopg.Connection[Any]) -> None:
    """Where one follows on the other, never at rest: a database that is slow and goes on is not one that hangs."""
    desk = serve()
    desk.do(*WORLD)
    session.execute("""
        CREATE FUNCTION take_time() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_sleep(0.3); RETURN NULL; END $$;
        CREATE TRIGGER take_time BEFORE INSERT ON events FOR EACH STATEMENT EXECUTE FUNCTION take_time();
    """)
    waits_s: list[float] = []
    futures = [desk.submit(fund("alice", 1, f"salary-{number}"), *REFUSED) for number in range(6)]
    while not futures[-1].done():
        waits_s.append(desk.committer.waits_s)
        wait(futures[-1:], 0.01)
    assert desk.committer.decided_ahead >= 4
    assert sum(later < earlier for earlier, later in pairwise(waits_s)) >= 4


def test_what_was_decided_ahead_by_a_clock_that_is_right_again_is_decided_again(
    dsn: str, ledger: str, serve: Serve, stall: Serve
) -> None:
    """It was an hour ahead just then. Recorded by that time, nobody could write until it had come."""
    desk: Any = None

    def clock() -> datetime:
        ahead = desk and desk.committer._next
        return datetime.now(UTC) + timedelta(hours=1 if ahead and ahead.ahead is None else 0)

    desk = serve(clock=clock)
    desk.do(*WORLD)
    turn, (earning, buying) = stall(desk, EARNS, BUYS)
    eventually(has_decided(desk))
    turn.release()
    assert told(earning) == ["POSTED"]
    assert told(buying) == ["AUTHORIZED", "CAPTURED", "CAPTURED"]
    assert all(row.recorded_at <= datetime.now(UTC) for row in check_log(dsn, ledger))
    assert desk.committer.decided_ahead == 0
    assert desk.answer(open_account("next")) == "OPEN"


@pytest.mark.parametrize(
    ("before", "after"),
    [(EARNS, ["DECLINED INSUFFICIENT_FUNDS", *["refused PAYMENT_DECLINED"] * 2]), (SPENDS, ["AUTHORIZED", "CAPTURED"])],
    ids=["money that never came", "money that was never spent"],
)
def test_it_is_decided_again_when_what_it_was_decided_upon_is_not_recorded(
    dsn: str,
    ledger: str,
    serve: Serve,
    stall: Serve,
    session: psycopg.Connection[Any],
    before: tuple[Command, ...],
    after: list[str],
) -> None:
    """The connection ends while the first batch waits for its turn: of that nothing is recorded, and nothing counts."""
    desk = serve()
    desk.do(*WORLD)
    buys = BUYS if before is EARNS else (authorize(70), capture("c", 70))
    turn, (first, second) = stall(desk, before, buys)
    eventually(has_decided(desk))
    end(session, *turn.waiting)
    turn.release()
    assert told(first) == ["refused NOT_RECORDED"] * len(before)
    assert told(second) == after
    assert desk.committer.decided_ahead == 0
    check_log(dsn, ledger)


def decided_elsewhere(dsn: str, ledger: str, account_id: str, act: Callable[[Account, Stamp], None]) -> LedgerEvent:
    """What somebody else comes to about an account, at the end of the log as it is."""
    log, pending = read_log(dsn, ledger), list[LedgerEvent]()
    last = [row for row in log if row.stream == f"account/{account_id}"][-1]
    event = EventMapper().to_domain_event(StoredEvent(last.stream, last.version, last.topic, last.state))
    act(Account.at(event, pending), Stamp(datetime.now(UTC), "stranger", "elsewhere", len(log) + 1))
    (decided,) = pending
    return decided


def test_it_is_decided_again_when_somebody_else_appends_before(
    dsn: str, ledger: str, serve: Serve, stall: Serve
) -> None:
    """Both batches are decided anew, at what the log then holds."""
    desk = serve()
    desk.do(*WORLD)
    turn, (earning, buying) = stall(desk, EARNS, BUYS)
    eventually(has_decided(desk))
    frozen = decided_elsewhere(dsn, ledger, "alice", lambda alice, stamp: alice.freeze(FreezeScope.DEBITS, "", stamp))
    turn.append(frozen.command_position, frozen)
    assert told(earning) == ["POSTED"]
    assert told(buying) == ["DECLINED ACCOUNT_FROZEN", *["refused PAYMENT_DECLINED"] * 2]
    assert (desk.lost_races, desk.committer.decided_ahead) == (1, 0)
    check_log(dsn, ledger)


def test_it_stands_when_the_answer_to_the_append_before_was_lost(
    dsn: str, ledger: str, serve: Serve, proxy: Proxy, stall: Serve
) -> None:
    """What it was decided upon turns out to be in the log: so it holds."""
    desk = serve(at=proxy.dsn)
    desk.do(*WORLD)
    proxy.break_at(b"TransferPosted", Break.UNHEARD)
    turn, (earning, buying) = stall(desk, EARNS, BUYS)
    eventually(has_decided(desk))
    turn.release()
    assert proxy.broke.wait(FOREVER_S)
    assert told(earning) == ["POSTED"]
    assert told(buying) == ["AUTHORIZED", "CAPTURED", "CAPTURED"]
    assert desk.committer.decided_ahead == 1
    check_log(dsn, ledger)


@pytest.mark.parametrize("how", [Break.UNSENT, Break.HALF_SENT, Break.UNHEARD])
def test_a_connection_that_is_cut_while_the_next_batch_is_looked_up_is_replaced(
    dsn: str, ledger: str, serve: Serve, proxy: Proxy, stall: Serve, how: Break
) -> None:
    """Of the batch before nothing was sent yet: both are done, once, on a new connection."""
    desk = serve(at=proxy.dsn)
    desk.do(*WORLD)
    proxy.break_at(b"payment/p", how)
    turn, (earning, buying) = stall(desk, EARNS, BUYS)
    assert proxy.broke.wait(FOREVER_S)
    turn.release()
    assert told(earning) == ["POSTED"]
    assert told(buying) == ["AUTHORIZED", "CAPTURED", "CAPTURED"]
    check_log(dsn, ledger)


def test_what_waits_is_refused_when_the_database_goes_away(
    dsn: str, ledger: str, serve: Serve, proxy: Proxy, stall: Serve
) -> None:
    """Of the first batch it stays unknown what came of it; the second was never sent, and is free to come again."""
    desk = serve(at=proxy.dsn)
    desk.do(*WORLD)
    turn, (earning, buying) = stall(desk, EARNS, BUYS)
    eventually(has_decided(desk))
    proxy.close()
    assert told(earning) == ["refused OUTCOME_UNKNOWN"] * len(EARNS)
    assert told(buying) == ["refused DATABASE_UNAVAILABLE"] * len(BUYS)
    turn.release()
    proxy.open()
    eventually(lambda: desk.committer.outage is None)
    assert desk.answer(EARNS[0]) in ("POSTED", "replayed POSTED")
    assert [each.words for each in desk.answers(*BUYS)] == ["AUTHORIZED", "CAPTURED", "CAPTURED"]
    check_log(dsn, ledger)


def test_it_is_not_recorded_past_its_deadline(dsn: str, ledger: str, serve: Serve, stall: Serve) -> None:
    """It was decided in time, and its turn came too late."""
    desk = serve()
    desk.do(*WORLD)
    deadline = monotonic() + 2
    turn, (earning, buying) = stall(desk, EARNS, BUYS, deadline=deadline)
    eventually(has_decided(desk))
    eventually(lambda: monotonic() > deadline)
    turn.release()
    assert told(earning) == ["POSTED"]
    assert told(buying) == ["refused DEADLINE_PASSED"] * len(BUYS)
    assert not [row for row in check_log(dsn, ledger) if row.stream == "payment/p"]


def test_the_rest_of_a_batch_whose_first_part_failed_is_not_done(
    dsn: str, ledger: str, serve: Serve, stall: Serve, session: psycopg.Connection[Any]
) -> None:
    """The second part of a large batch is decided ahead as well, and falls with the first."""
    desk = serve()
    desk.do(*WORLD)
    turn, (whole,) = stall(desk, (*SPENDS, *BUYS))
    eventually(has_decided(desk))
    end(session, *turn.waiting)
    turn.release()
    assert told(whole) == ["refused NOT_RECORDED"] * len((*SPENDS, *BUYS))
    assert not [row for row in check_log(dsn, ledger) if row.stream in ("payment/p", "transfer/rent")]


def test_nothing_is_done_after_the_command_of_a_batch_that_failed(
    dsn: str, ledger: str, serve: Serve, stall: Serve
) -> None:
    """A command that breaks what decides on it ends its batch, wherever the batch is cut."""
    desk = serve()
    desk.do(*WORLD)
    breaks = AuthorizePayment.model_construct(payment_id="q", payer_account_id="alice", payee_account_id="shop")
    turn, (whole,) = stall(desk, (*EARNS[:-1], breaks, *BUYS))
    turn.release()
    assert told(whole) == ["POSTED", *["refused INTERNAL"] * (1 + len(BUYS))]
    assert not [row for row in check_log(dsn, ledger) if row.stream == "payment/p"]


def test_what_cannot_be_loaded_is_no_harm_to_what_comes_before(
    dsn: str, ledger: str, serve: Serve, stall: Serve, session: psycopg.Connection[Any]
) -> None:
    """A payment whose event nobody can read fails the batch that asks for it, and not the one before."""
    serve().do(*WORLD, authorize(10))
    session.execute("ALTER TABLE events DISABLE TRIGGER USER")
    session.execute("UPDATE events SET state = '{}' WHERE stream = 'payment/p' AND version = 1")
    desk = serve()
    turn, (earning, capturing) = stall(desk, EARNS, [capture("c"), *REFUSED])
    turn.release()
    assert told(earning) == ["POSTED"]
    assert told(capturing) == ["refused INTERNAL"] * (1 + len(REFUSED))
    assert desk.answer(fund("alice", 1, "more")) == "POSTED"


def test_commands_on_accounts_wait_for_their_turn(dsn: str, ledger: str, serve: Serve, stall: Serve) -> None:
    """An account that only its last event was read of just changed; what it was opened with is read in its turn."""
    serve().do(open_account("eve", metadata={"name": "Eve"}), *WORLD, fund("eve", 5, "first"))
    desk = serve()
    turn, (first, second) = stall(
        desk, (fund("eve", 5, "gift"), *REFUSED), (open_account("eve", metadata={"name": "Eve"}), freeze("eve"))
    )
    turn.release()
    assert told(first) == ["POSTED"]
    assert told(second) == ["replayed OPEN", "FROZEN ALL"]
    for each in second.result():
        assert each.thing.opening.metadata == {"name": "Eve"}
    assert desk.committer.decided_ahead == 0


def test_a_committer_that_stops_finishes_what_it_decided_ahead(
    dsn: str, ledger: str, serve: Serve, stall: Serve
) -> None:
    desk = serve()
    desk.do(*WORLD)
    turn, (earning, buying) = stall(desk, EARNS, BUYS)
    eventually(has_decided(desk))
    with ThreadPoolExecutor(1) as threads:
        stopped = threads.submit(desk.committer.stop)
        eventually(lambda: desk.committer._stopping)
        turn.release()
        stopped.result(FOREVER_S)
    assert told(earning) == ["POSTED"]
    assert told(buying) == ["AUTHORIZED", "CAPTURED", "CAPTURED"]
    check_log(dsn, ledger)


def a_busy_day(chance: random.Random, rounds: int) -> list[Command]:
    """Payments and transfers that build upon each other, many of them declined, refused or replayed."""
    accounts = [f"a{number}" for number in range(12)]
    commands: list[Command] = []
    for number in range(rounds):
        one, other = chance.sample(accounts, 2)
        known, keep = f"p{chance.randrange(number + 1)}", chance.random() < 0.5
        some: list[Command] = [
            authorize(chance.randint(1, 30), payment_id=f"p{number}", payer=one, payee=other),
            authorize(chance.randint(1, 30), payment_id=known, payer=one, payee=other),
            transfer(f"t{number}", leg(one, other, chance.randint(1, 60)), leg(other, "bank", 1)),
            fund(one, 5, f"f{number}"),
            capture(f"c{number}", chance.randint(1, 10), payment_id=known, keep_remainder=keep),
            increment(f"i{number}", chance.randint(1, 40), payment_id=known),
            refund(f"r{number}", chance.randint(1, 10), payment_id=known),
            void(known),
        ]
        commands += chance.sample(some, chance.randint(1, 4))
    return commands


@pytest.mark.parametrize("memory_most", [3, 1_000_000])
def test_a_large_batch_comes_to_the_same_as_many_small_ones(
    dsn: str, ledger: str, serve: Serve, new_ledger: Callable[[], str], memory_most: int
) -> None:
    """Thousands of commands that build upon each other: part after part decided ahead, or each in its turn."""
    commands, apart_ledger = a_busy_day(random.Random(memory_most), 2_000), new_ledger()
    whole, apart = serve(memory_most=memory_most), serve(name=apart_ledger)
    for desk in (whole, apart):
        desk.do(open_account("bank", kind=AccountKind.EXTERNAL), *(open_account(f"a{number}") for number in range(12)))
    results = whole.submit(*commands).result(FOREVER_S)
    expected = [each for at in range(0, len(commands), 100) for each in apart.results(*commands[at : at + 100])]
    assert words(results) == words(expected)
    assert [getattr(each, "position", 0) for each in results] == [getattr(each, "position", 0) for each in expected]
    assert without_times(check_log(dsn, ledger)) == without_times(check_log(dsn, apart_ledger))
    assert whole.committer.decided_ahead > 1
    assert apart.committer.decided_ahead == 0
    kinds = Counter(words(results))
    assert len(kinds) > 15, kinds
