"""The committer on a real Postgres: races, stale memory, idempotency, batches, bounds, clocks, lost tails, its life."""

from __future__ import annotations

import os
import random
import socket
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime, timedelta, timezone
from itertools import count
from queue import SimpleQueue
from time import monotonic
from typing import Any, Final

import psycopg
import pytest
import structlog
from checks import Row, check_log, commands_of, eventually, read_log
from domain import (
    as_seen,
    at_version,
    authorize,
    capture,
    close,
    expire,
    freeze,
    increment,
    leg,
    open_account,
    refund,
    set_limit,
    transfer,
    unfreeze,
    void,
)
from psycopg.conninfo import make_conninfo

from ledger.committer import CLOCK_OFF_S, utc_now
from ledger.domain.commands import Command
from ledger.domain.decisions import Outcome
from ledger.domain.errors import BatchAborted, DeclinedInBatch, Refusal
from ledger.domain.events import AccountKind, FreezeScope
from ledger.link import Link
from ledger.memory import Memory
from ledger.outages import QueueFull, ShuttingDown, WritesStopped
from ledger.priority import go_first
from ledger.ticket import EVENTS_PER_APPEND, Mode, Ticket
from ledger.upcasters import EventMapper

Serve = Callable[..., Any]

WORLD: Final = (
    open_account("bank", kind=AccountKind.EXTERNAL),
    open_account("alice"),
    open_account("shop"),
    transfer("seed", leg("bank", "alice", 100)),
)
"""What most tests start from: alice has 1 euro from the bank, the shop nothing."""

FOREVER_S: Final = 60.0


def fund(account_id: str, amount: int, transfer_id: str) -> Command:
    return transfer(transfer_id, leg("bank", account_id, amount))


def at_head(dsn: str, ledger: str) -> int:
    return len(read_log(dsn, ledger))


def state_of(log: list[Row], account_id: str) -> dict[str, Any]:
    """The account's state, as its last event carries it."""
    state: dict[str, Any] = [row for row in log if row.stream == f"account/{account_id}"][-1].fields["after"]
    return state


# --- races -----------------------------------------------------------------------------------------------------------


def shopping(shopper: str, rounds: int) -> list[Command]:
    """Commands on a few accounts that everybody uses; some are declined or refused, which ones depends on the race."""
    chance = random.Random(shopper)
    commands: list[Command] = []
    for number in range(rounds):
        one, other = chance.sample(["alice", "bob", "carol"], 2)
        name = f"{shopper}-{number}"
        commands += [
            transfer(f"{name}-t", leg(one, other, chance.randint(1, 40))),
            authorize(chance.randint(1, 60), payment_id=name, payer=other, payee=one),
            capture("c", chance.randint(1, 30), payment_id=name),
            refund("r", 1, payment_id=name),
        ]
    return commands


@pytest.mark.parametrize("where", ["threads", "processes"])
def test_committers_race_without_harm(dsn: str, ledger: str, serve: Serve, serve_in_process: Serve, where: str) -> None:
    """Several write one ledger: nobody is overdrawn, what was answered is in the log, and neither starves."""
    start = serve if where == "threads" else serve_in_process
    first = start()
    first.answers(
        open_account("bank", kind=AccountKind.EXTERNAL),
        *(open_account(each) for each in ("alice", "bob", "carol")),
        *(fund(each, 100, f"seed-{each}") for each in ("alice", "bob", "carol")),
        mode=Mode.ATOMIC,
    )
    desks = [first, start(), start()]
    answers: dict[tuple[str, int], Any] = {}
    rounds = 20

    def shop(number: int, client: int) -> None:
        shopper = f"{number}-{client}"
        for place, command in enumerate(shopping(shopper, rounds)):
            (answers[shopper, place],) = desks[number].answers(command, actor=f"desk-{number}")

    clients = [(number, client) for number in range(len(desks)) for client in range(2)]
    with ThreadPoolExecutor(len(clients)) as threads:
        for done in [threads.submit(shop, *each) for each in clients]:
            done.result(FOREVER_S)
    log = check_log(dsn, ledger)
    assert_as_answered(log, answers.values())
    words = Counter(each.words.removeprefix("replayed ") for each in answers.values())
    assert {"POSTED", "AUTHORIZED", "DECLINED INSUFFICIENT_FUNDS"} <= words.keys(), words
    lost = [desk.lost_races if where == "threads" else desk.end() for desk in desks]
    assert sum(lost) > 0
    # While the first half of it was written, each desk got its share.
    writing = [row.fields["actor"] for row in log if row.fields["actor"].startswith("desk")]
    share = Counter(writing[: len(writing) // 2])
    assert all(share[f"desk-{number}"] > len(writing) / 2 / 10 for number in range(len(desks))), share


def assert_as_answered(log: list[Row], answers: Any) -> None:
    """Every answer's position is that of its command's last event, recorded then; no two first answers share one."""
    last = {events[-1].position: events[-1] for events in commands_of(log)}
    first_answers = [each for each in answers if not each.words.startswith(("refused", "replayed"))]
    assert len({each.position for each in first_answers}) == len(first_answers)
    for each in first_answers:
        assert last[each.position].recorded_at == each.recorded_at, each


@pytest.mark.parametrize("where", ["threads", "processes"])
def test_ids_raced_by_two_committers_are_used_once(
    dsn: str, ledger: str, serve: Serve, serve_in_process: Serve, where: str
) -> None:
    """Two clients send the same commands to two committers: each is done once, and both are told the same."""
    start = serve if where == "threads" else serve_in_process
    desks = [start(), start()]
    desks[0].answers(*WORLD)
    commands = [
        each
        for number in range(25)
        for each in (
            open_account(f"account-{number}"),
            transfer(f"t-{number}", leg("bank", f"account-{number}", 1)),
            authorize(1, payment_id=f"p-{number}"),
            capture("c", payment_id=f"p-{number}"),
        )
    ]
    with ThreadPoolExecutor() as threads:
        told = list(threads.map(lambda desk: [desk.answers(each)[0] for each in commands], desks))
    for one, other in zip(*told, strict=True):
        assert one.words.removeprefix("replayed ") == other.words.removeprefix("replayed ")
        assert one[1:] == other[1:]
        assert one.words.startswith("replayed ") != other.words.startswith("replayed ")
    log = check_log(dsn, ledger)
    assert len(list(commands_of(log))) == len(WORLD) + len(commands)


@pytest.mark.parametrize("where", ["threads", "processes"])
def test_of_captures_for_the_same_money_one_wins(
    dsn: str, ledger: str, serve: Serve, serve_in_process: Serve, where: str
) -> None:
    """Two clients capture the same payments under ids of their own, through two committers: each money moves once."""
    many = 50
    start = serve if where == "threads" else serve_in_process
    desks = [start(), start()]
    desks[0].answers(*WORLD, *(authorize(2, payment_id=f"p{number}") for number in range(many)), mode=Mode.ATOMIC)

    def capture_all(number: int) -> list[str]:
        ids = [f"p{each}" for each in range(many)]
        return [desks[number].answer(capture(f"c{number}", payment_id=each)) for each in ids]

    with ThreadPoolExecutor(len(desks)) as threads:
        told = list(threads.map(capture_all, range(len(desks))))
    for both in zip(*told, strict=True):
        assert sorted(both) == ["CAPTURED", "refused PAYMENT_CAPTURED"]
    assert state_of(check_log(dsn, ledger), "shop")["posted"] == 2 * many


# --- decisions from stale memory are made again ----------------------------------------------------------------------


@pytest.fixture
def desks(serve: Serve) -> tuple[Any, Any]:
    """Two committers; the first remembers alice, the shop and a payment `p` of 10 from her to it, authorized."""
    here, elsewhere = serve(), serve()
    here.do(*WORLD)  # After its first append it looks at the log's head, and not again for a while.
    here.do(authorize(10))
    return here, elsewhere


ELSEWHERE: Final = {
    # What happens elsewhere, a command decided on what was remembered, and its right answer.
    "a payee was closed: no capture": (
        [close("shop")],
        capture("c"),
        "refused ACCOUNT_CLOSED",
    ),
    "a payee was closed: a payment is declined": (
        [close("shop")],
        authorize(1, payment_id="q"),
        "DECLINED ACCOUNT_CLOSED",
    ),
    "a payee was closed: a transfer is declined": (
        [close("shop")],
        transfer("t", leg("alice", "shop", 1)),
        "DECLINED ACCOUNT_CLOSED",
    ),
    "money arrived: what would have been declined is authorized": (
        [fund("alice", 400, "more")],
        authorize(450, payment_id="q"),
        "AUTHORIZED",
    ),
    "money arrived: what would have been refused is done": (
        [fund("alice", 400, "more")],
        increment("i", 450),
        "AUTHORIZED",
    ),
    "money left: what would have been authorized is declined": (
        [transfer("less", leg("alice", "bank", 90))],
        authorize(1, payment_id="q"),
        "DECLINED INSUFFICIENT_FUNDS",
    ),
    "money left: what would have been done is refused": (
        [transfer("less", leg("alice", "bank", 90))],
        increment("i", 11),
        "refused INSUFFICIENT_FUNDS",
    ),
    "a limit was raised": (
        [set_limit("alice", 1_000)],
        increment("i", 1_100),
        "AUTHORIZED",
    ),
    "a limit is what it is to be, elsewhere": (
        [set_limit("alice", 77)],
        set_limit("alice", 77),
        "replayed OPEN",
    ),
    "a limit is in use, elsewhere": (
        [set_limit("shop", 50), transfer("t", leg("shop", "bank", 50))],
        set_limit("shop", 40),
        "refused LIMIT_BELOW_USE",
    ),
    "an account was frozen": (
        [freeze("alice", FreezeScope.DEBITS)],
        increment("i", 11),
        "refused ACCOUNT_FROZEN",
    ),
    "an account was used: it is not closed": (
        [fund("shop", 1, "first")],
        close("shop"),
        "refused ACCOUNT_IN_USE",
    ),
    "an account was opened": (
        [open_account("bob")],
        transfer("t", leg("alice", "bob", 1)),
        "POSTED",
    ),
    "an account was opened in another currency": (
        [open_account("bob", currency_code="USD")],
        open_account("bob"),
        "refused ID_ALREADY_USED",
    ),
    "a version was passed": (
        [fund("alice", 1, "more")],
        freeze("alice", preconditions=at_version(alice=3)),
        "refused VERSION_MISMATCH",
    ),
    "a version was reached": (
        [fund("alice", 1, "more")],
        freeze("alice", preconditions=at_version(alice=4)),
        "FROZEN ALL",
    ),
    "the payment was voided": (
        [void()],
        capture("c"),
        "refused PAYMENT_VOIDED",
    ),
    "the payment was captured": (
        [capture("other")],
        void(),
        "refused PAYMENT_CAPTURED",
    ),
    "a part of the money was captured": (
        [capture("other", 6, keep_remainder=True)],
        capture("c", 5),
        "refused AMOUNT_EXCEEDS_CAPTURABLE",
    ),
    "a part of it was captured, and all that remains is asked for": (
        [capture("other", 6, keep_remainder=True)],
        capture("c"),
        "CAPTURED",
    ),
    "a part of what was captured was refunded": (
        [capture("other"), refund("r", 6)],
        refund("s", 5),
        "refused AMOUNT_EXCEEDS_REFUNDABLE",
    ),
    "what was captured was spent by the payee": (
        [capture("other"), transfer("spent", leg("shop", "bank", 6))],
        refund("s", 5),
        "refused INSUFFICIENT_FUNDS",
    ),
    "the time was over, and that was recorded": (
        [authorize(1, payment_id="q", hold_for=timedelta(microseconds=1)), expire("q")],
        capture("c", payment_id="q"),
        "refused PAYMENT_EXPIRED",
    ),
    "the capture was made": (
        [capture("c")],
        capture("c"),
        "replayed CAPTURED",
    ),
    "the capture was made of another amount": (
        [capture("c", 5)],
        capture("c"),
        "refused ID_ALREADY_USED",
    ),
    "the authorization was raised": (
        [increment("i", 20)],
        capture("c", 15),
        "CAPTURED",
    ),
    "the id was used": (
        [authorize(5, payment_id="q")],
        authorize(6, payment_id="q"),
        "refused ID_ALREADY_USED",
    ),
    "the id was used up by a decline, and money came since": (
        [authorize(450, payment_id="q"), fund("alice", 400, "more")],
        authorize(450, payment_id="q"),
        "replayed DECLINED INSUFFICIENT_FUNDS",
    ),
}


@pytest.mark.parametrize("what", ELSEWHERE)
def test_a_decision_from_stale_memory_is_made_again(dsn: str, ledger: str, desks: tuple[Any, Any], what: str) -> None:
    """What another committer recorded since counts, whatever a committer remembers: all is decided at the head."""
    here, elsewhere = desks
    happened, asked, answer = ELSEWHERE[what]
    elsewhere.answers(*happened)
    is_stale = here.committer.head != elsewhere.committer.head
    assert here.answer(asked) == answer
    assert here.lost_races == is_stale
    check_log(dsn, ledger)


@pytest.mark.parametrize("what", list(ELSEWHERE)[::4])
def test_a_validation_from_stale_memory_is_made_again(dsn: str, ledger: str, desks: tuple[Any, Any], what: str) -> None:
    """What is only validated is answered at the head, too."""
    here, elsewhere = desks
    happened, asked, answer = ELSEWHERE[what]
    elsewhere.answers(*happened)
    before = read_log(dsn, ledger)
    assert here.answer(asked, validate_only=True) == answer
    assert read_log(dsn, ledger) == before


def test_what_is_so_already_is_checked_at_the_head(dsn: str, ledger: str, desks: tuple[Any, Any]) -> None:
    """A freeze that this committer remembers, and that another lifted, is made anew, not taken for a replay."""
    here, elsewhere = desks
    assert here.answer(freeze("alice")) == "FROZEN ALL"
    assert here.answer(freeze("alice")) == "replayed FROZEN ALL"
    assert elsewhere.answer(unfreeze("alice")) == "OPEN"
    assert here.answer(freeze("alice")) == "FROZEN ALL"
    assert state_of(check_log(dsn, ledger), "alice")["status"] == "FROZEN"


def test_a_refusal_is_checked_at_the_head(dsn: str, ledger: str, desks: tuple[Any, Any]) -> None:
    """What a committer refuses from memory is done, if another changed that since."""
    here, elsewhere = desks
    assert here.answer(capture("c", 15)) == "refused AMOUNT_EXCEEDS_CAPTURABLE"
    elsewhere.do(increment("i", 20))
    assert here.answer(capture("c", 15)) == "CAPTURED"
    check_log(dsn, ledger)


def test_a_batch_that_only_replays_is_answered_at_the_head(dsn: str, ledger: str, desks: tuple[Any, Any]) -> None:
    """A replay of what is remembered is the first outcome again, after a look at the log, and records nothing."""
    here, elsewhere = desks
    (first,) = here.answers(authorize(10))
    elsewhere.do(void())
    before = read_log(dsn, ledger)
    assert here.answers(authorize(10), *WORLD)[0] == first
    assert here.committer.head == elsewhere.committer.head
    assert read_log(dsn, ledger) == before


def test_what_is_found_missing_is_looked_for_again(desks: tuple[Any, Any]) -> None:
    """An account that was not there when a command asked for it is found when it has been opened elsewhere."""
    here, elsewhere = desks
    assert here.answer(transfer("t", leg("alice", "bob", 1))) == "refused ACCOUNT_NOT_FOUND"
    assert here.answer(capture("c", payment_id="q")) == "refused PAYMENT_NOT_FOUND"
    elsewhere.do(open_account("bob"), authorize(1, payment_id="q"))
    assert here.answer(transfer("t", leg("alice", "bob", 1))) == "POSTED"
    assert here.answer(capture("c", payment_id="q")) == "CAPTURED"


def test_the_whole_batch_is_decided_again_at_the_new_head(dsn: str, ledger: str, desks: tuple[Any, Any]) -> None:
    """All commands of an append hold at one head: those that seemed fine are decided again with the others."""
    here, elsewhere = desks
    elsewhere.do(transfer("less", leg("alice", "bank", 80)))
    answers = here.answers(
        authorize(6, payment_id="q1"), authorize(6, payment_id="q2"), authorize(4, payment_id="q3"), capture("c")
    )
    assert [each.words for each in answers] == ["AUTHORIZED", "DECLINED INSUFFICIENT_FUNDS", "AUTHORIZED", "CAPTURED"]
    log = check_log(dsn, ledger)
    assert state_of(log, "alice")["reserved"] == 10


def test_an_idle_committer_keeps_up(desks: tuple[Any, Any]) -> None:
    """Without any command a committer learns within a second or two what others recorded, and loses no race for it."""
    here, elsewhere = desks
    elsewhere.do(close("shop"))
    eventually(lambda: here.committer.head == elsewhere.committer.head)
    assert here.lost_races == 0
    assert here.answer(capture("c")) == "refused ACCOUNT_CLOSED"


# --- idempotency -----------------------------------------------------------------------------------------------------

A_DAY: Final = (
    *WORLD,
    open_account("bob", limit=50, metadata={"ключ": "🦆", "a": "1"}),
    authorize(10, hold_for=timedelta(days=3), reference='Größe "42" / \\ ✓', metadata={"k": "v"}),
    authorize(1_000, payment_id="declined"),
    increment("i", 20),
    capture("c1", 5, keep_remainder=True),
    refund("r1", 2),
    capture("c2"),
    refund("r2"),
    authorize(3, payment_id="voided"),
    void("voided"),
    transfer("t", leg("bob", "alice", 30), leg("alice", "shop", 7), reference="two legs"),
    transfer("declined", leg("alice", "shop", 1), leg("bob", "shop", 1_000)),
)
"""Every command that has an id, and every outcome."""


def without_replayed(outcome: Outcome) -> tuple[Any, ...]:
    return as_seen(outcome.thing) | {"opening": None}, outcome.position, outcome.recorded_at


@pytest.mark.parametrize("again_on", ["the same", "another", "one that was restarted"])
def test_the_same_commands_again_get_the_first_outcomes_again(
    dsn: str, ledger: str, serve: Serve, again_on: str
) -> None:
    """Each is answered as it first was, with the thing as it was right after it and the first position."""
    desk = serve()
    first = desk.results(*A_DAY)
    before = read_log(dsn, ledger)
    if again_on == "one that was restarted":
        desk.committer.stop()
    again = (desk if again_on == "the same" else serve()).results(*A_DAY)
    for one, other in zip(first, again, strict=True):
        assert isinstance(one, Outcome)
        assert isinstance(other, Outcome)
        assert (one.replayed, other.replayed) == (False, True)
        assert without_replayed(one) == without_replayed(other)
    assert read_log(dsn, ledger) == before
    check_log(dsn, ledger)


@pytest.mark.parametrize("mode", [Mode.INDEPENDENT, Mode.ATOMIC])
def test_the_same_commands_twice_in_one_batch_are_done_once(dsn: str, ledger: str, serve: Serve, mode: Mode) -> None:
    """The second of a pair is a replay of the first, a decline too, though nothing is recorded when it is decided."""
    done = list(A_DAY)
    if mode is Mode.ATOMIC:  # There a decline is a failure.
        done = [each for each in A_DAY if "_id='declined'" not in repr(each)]
        assert len(done) == len(A_DAY) - 2
    twice = [each for each in done for _ in range(2)]
    results = serve().results(*twice, mode=mode)
    for one, other in zip(results[::2], results[1::2], strict=True):
        assert (one.replayed, other.replayed) == (False, True)
        assert without_replayed(one) == without_replayed(other)
    assert len(list(commands_of(check_log(dsn, ledger)))) == len(done)


def test_an_id_that_is_used_is_not_used_otherwise(dsn: str, ledger: str, serve: Serve) -> None:
    """Within a batch, on the same committer and on another, another field under the same id is refused."""
    here, elsewhere = serve(), serve()
    here.do(*WORLD)
    answers = here.answers(authorize(1), authorize(2), authorize(1), authorize(1, reference="x"))
    assert [each.words for each in answers] == [
        "AUTHORIZED",
        "refused ID_ALREADY_USED",
        "replayed AUTHORIZED",
        "refused ID_ALREADY_USED",
    ]
    before = read_log(dsn, ledger)
    for desk in (here, elsewhere):
        assert desk.answer(authorize(2)) == "refused ID_ALREADY_USED"
        assert desk.answer(open_account("alice", limit=0)) == "refused ID_ALREADY_USED"
        assert desk.answer(transfer("seed", leg("bank", "alice", 101))) == "refused ID_ALREADY_USED"
        assert desk.answer(transfer("seed", leg("bank", "shop", 100))) == "refused ID_ALREADY_USED"
    assert read_log(dsn, ledger) == before


def test_an_id_that_is_not_remembered_is_not_taken_for_new(dsn: str, ledger: str, desks: tuple[Any, Any]) -> None:
    """A committer at the head that remembers the accounts of a command, but not its id, finds that the id is used."""
    here, elsewhere = desks
    declined = authorize(450, payment_id="q"), transfer("t", leg("alice", "shop", 450))
    # A decline changes no account, so none is forgotten for it.
    assert [each.words for each in elsewhere.answers(*declined)] == ["DECLINED INSUFFICIENT_FUNDS"] * 2
    here.do(fund("alice", 400, "more"))
    before = read_log(dsn, ledger)
    for command in declined:
        assert here.answer(command) == "replayed DECLINED INSUFFICIENT_FUNDS"
    others = (
        authorize(451, payment_id="q"),
        authorize(450, payment_id="q", currency_code="USD"),
        authorize(450, payment_id="q", payee="nobody"),
        transfer("t", leg("alice", "shop", 451)),
        transfer("t", leg("shop", "alice", 450)),
        transfer("t", leg("alice", "nobody", 450)),
    )
    for command in others:
        assert here.answer(command) == "refused ID_ALREADY_USED", command
    assert read_log(dsn, ledger) == before


def test_a_strangers_retry_does_not_make_others_be_decided_twice(
    serve: Serve, desks: tuple[Any, Any], hold_turn: Serve
) -> None:
    """A used id that is not remembered is looked up when it comes among others: their append is not lost for it."""
    _, elsewhere = desks
    told: list[datetime] = []

    def clock() -> datetime:
        told.append(utc_now())
        return told[-1]

    here = serve(clock=clock)
    here.do(authorize(1, payment_id="q"))  # From now on it remembers alice and the shop.
    # A decline changes no account, so none is forgotten for it.
    assert elsewhere.answer(authorize(1_000, payment_id="used")) == "DECLINED INSUFFICIENT_FUNDS"
    here.do(freeze("bank"))
    turn = hold_turn()
    first = here.submit(open_account("x"))
    eventually(lambda: turn.waiting)
    looked = len(told)
    stranger = here.submit(authorize(1_000, payment_id="used"))
    others = [here.submit(authorize(1, payment_id=each)) for each in "ab"]
    turn.release()
    wait([first, stranger, *others], FOREVER_S)
    (replay,) = stranger.result()
    assert replay.replayed
    decided_at = {done.result()[0].recorded_at for done in others}
    # One look at the clock for each decision, and three when it is checked, which may be due just then.
    assert decided_at in [{each} for each in told[looked::3][:2]]


def test_a_refused_id_is_not_used_up(dsn: str, ledger: str, serve: Serve) -> None:
    """A refusal records nothing: the same id may be sent with other fields, and is then first."""
    desk = serve()
    desk.do(*WORLD)
    assert desk.answer(authorize(1, payee="nobody")) == "refused ACCOUNT_NOT_FOUND"
    assert desk.answer(authorize(1)) == "AUTHORIZED"
    assert desk.answer(capture("c", 2)) == "refused AMOUNT_EXCEEDS_CAPTURABLE"
    assert desk.answer(capture("c", 1)) == "CAPTURED"
    check_log(dsn, ledger)


# --- batches ---------------------------------------------------------------------------------------------------------


def test_an_atomic_batch_is_recorded_as_one(dsn: str, ledger: str, serve: Serve) -> None:
    """All its commands come to stand together, at one time, each having seen those before it."""
    serve().do(*WORLD, authorize(100), capture("c"), mode=Mode.ATOMIC)
    log = check_log(dsn, ledger)
    assert len({row.recorded_at for row in log}) == 1
    assert len(list(commands_of(log))) == len(WORLD) + 2


@pytest.mark.parametrize("place", [0, 1, 3])
def test_an_atomic_batch_with_a_refusal_records_nothing(dsn: str, ledger: str, serve: Serve, place: int) -> None:
    """The command that failed gets its own refusal, all others are told that the batch was aborted."""
    desk = serve()
    desk.do(*WORLD)
    batch = [authorize(1, payment_id=f"q{number}") for number in range(3)]
    batch.insert(place, capture("c", payment_id="nobodys"))
    before = read_log(dsn, ledger)
    results = desk.results(*batch, mode=Mode.ATOMIC)
    assert results[place].code == "PAYMENT_NOT_FOUND"
    others = results[:place] + results[place + 1 :]
    assert [type(each) for each in others] == [BatchAborted] * 3
    assert {each.details["failed"] for each in others} == {place}
    assert read_log(dsn, ledger) == before
    del batch[place]
    assert [each.words for each in desk.answers(*batch, mode=Mode.ATOMIC)] == ["AUTHORIZED"] * 3
    check_log(dsn, ledger)


def test_a_decline_fails_an_atomic_batch(dsn: str, ledger: str, serve: Serve) -> None:
    """It is an error there, with the decline's reason for its code; nothing is recorded and its id stays free."""
    desk = serve()
    desk.do(*WORLD)
    before = read_log(dsn, ledger)
    results = desk.results(authorize(60, payment_id="a"), authorize(60, payment_id="b"), mode=Mode.ATOMIC)
    assert [type(each) for each in results] == [BatchAborted, DeclinedInBatch]
    assert results[1].code == "INSUFFICIENT_FUNDS"
    assert "alice" in str(results[1])
    results = desk.results(
        transfer("t", leg("alice", "shop", 60), leg("alice", "shop", 60)), authorize(1), mode=Mode.ATOMIC
    )
    assert isinstance(results[0], DeclinedInBatch)
    assert (results[0].details["account_id"], results[0].details["declined_leg"]) == ("alice", 1)
    assert read_log(dsn, ledger) == before
    assert desk.answer(authorize(40, payment_id="b")) == "AUTHORIZED"
    check_log(dsn, ledger)


def test_a_decline_that_is_on_record_fails_an_atomic_batch(dsn: str, ledger: str, serve: Serve) -> None:
    """A replayed decline is no success either."""
    desk = serve()
    desk.do(*WORLD)
    assert desk.answer(authorize(1_000)) == "DECLINED INSUFFICIENT_FUNDS"
    before = read_log(dsn, ledger)
    results = desk.results(open_account("bob"), authorize(1_000), mode=Mode.ATOMIC)
    assert [each.code for each in results] == ["BATCH_ABORTED", "INSUFFICIENT_FUNDS"]
    assert read_log(dsn, ledger) == before


def test_replays_count_as_done_in_an_atomic_batch(dsn: str, ledger: str, serve: Serve) -> None:
    """A batch sent again is answered as before, and one that is partly done is completed."""
    here, elsewhere = serve(), serve()
    here.do(*WORLD, mode=Mode.ATOMIC)
    for desk in (here, elsewhere):
        again = desk.answers(*WORLD, mode=Mode.ATOMIC)
        assert [each.words.split()[0] for each in again] == ["replayed"] * len(WORLD)
    assert at_head(dsn, ledger) == 6
    more = elsewhere.answers(*WORLD, authorize(1), mode=Mode.ATOMIC)
    assert more[-1].words == "AUTHORIZED"
    assert len(check_log(dsn, ledger)) == 8


def test_an_atomic_batch_fails_without_harm_to_its_neighbours(
    dsn: str, ledger: str, serve: Serve, hold_turn: Serve
) -> None:
    """Commands that go into the same append, before it and after it, see nothing of it and are done."""
    desk = serve()
    desk.do(*WORLD)
    turn = hold_turn()
    first = desk.submit(open_account("x"))
    eventually(lambda: turn.waiting)
    one = desk.submit(authorize(60, payment_id="a"))
    before = desk.submit(authorize(30, payment_id="b"), authorize(30, payment_id="c"))
    failing = desk.submit(
        transfer("t", leg("bank", "alice", 1_000)), authorize(9_000, payment_id="d"), mode=Mode.ATOMIC
    )
    after = desk.submit(authorize(10, payment_id="d"), transfer("t", leg("bank", "alice", 1)), authorize(1))
    turn.release()
    wait([first, one, before, failing, after], FOREVER_S)
    assert [each.code for each in failing.result()] == ["BATCH_ABORTED", "INSUFFICIENT_FUNDS"]
    states = [str(each.thing.state) for done in (one, before, after) for each in done.result()]
    assert states == ["AUTHORIZED", "AUTHORIZED", "DECLINED", "AUTHORIZED", "POSTED", "AUTHORIZED"]
    log = check_log(dsn, ledger)
    assert len({row.recorded_at for row in log[7:]}) == 1, "they were not in one append"


def test_an_atomic_batch_larger_than_an_append_is_still_one(dsn: str, ledger: str, serve: Serve) -> None:
    """It is not cut: its events have one time, and stand together."""
    desk = serve()
    desk.do(*WORLD)
    size = EVENTS_PER_APPEND
    desk.do(*(open_account(f"a{number}") for number in range(size)), mode=Mode.ATOMIC)
    log = check_log(dsn, ledger)
    assert len({row.recorded_at for row in log[-size:]}) == 1
    last = [open_account(f"b{number}") for number in range(size)]
    results = desk.results(*last, transfer("t", leg("alice", "shop", 101)), mode=Mode.ATOMIC)
    assert {each.code for each in results} == {"BATCH_ABORTED", "INSUFFICIENT_FUNDS"}
    assert at_head(dsn, ledger) == len(log)


def test_a_large_batch_is_cut_and_others_go_between(dsn: str, ledger: str, serve: Serve, hold_turn: Serve) -> None:
    """A single command that comes later is recorded before the rest of the batch; results keep the batch's order."""
    desk = serve()
    desk.do(*WORLD)
    size = 2 * EVENTS_PER_APPEND
    turn = hold_turn()
    batch = desk.submit(*(open_account(f"a{number}") for number in range(size)))
    eventually(lambda: turn.waiting)
    single = desk.submit(authorize(1))
    turn.release()
    (outcome,) = single.result(FOREVER_S)
    results = batch.result(FOREVER_S)
    assert [each.thing.account_id for each in results] == [f"a{number}" for number in range(size)]
    positions = [each.position for each in results]
    assert positions == sorted(positions)
    assert positions[0] < outcome.position < positions[-1]
    log = check_log(dsn, ledger)
    appends = Counter(row.recorded_at for row in log[6:])
    assert max(appends.values()) <= EVENTS_PER_APPEND + 2


def test_large_batches_take_turns(dsn: str, ledger: str, serve: Serve, hold_turn: Serve) -> None:
    """A batch that comes second does not wait for the end of one that came first."""
    desk = serve()
    desk.do(*WORLD)
    size = 2 * EVENTS_PER_APPEND
    turn = hold_turn()
    batches = []
    for name in "ab":
        batches.append(desk.submit(*(open_account(f"{name}{number}") for number in range(size))))
        eventually(lambda: turn.waiting)
    turn.release()
    first, second = ([each.position for each in batch.result(FOREVER_S)] for batch in batches)
    assert second[0] < first[-1]
    check_log(dsn, ledger)


def test_singles_do_not_starve_a_batch(dsn: str, ledger: str, serve: Serve) -> None:
    """However many single commands come without a pause, a large batch goes on beside them."""
    desk = serve()
    batch = desk.submit(*(open_account(f"a{number}") for number in range(EVENTS_PER_APPEND)))
    numbers = count()
    singles: list[Future[Any]] = []
    while not batch.done():
        # Always more than go into one append.
        singles += [desk.submit(open_account(f"b{next(numbers)}")) for _ in range(EVENTS_PER_APPEND)]
        eventually(lambda: batch.done() or desk.committer.waiting < 2 * EVENTS_PER_APPEND)
    wait(singles, FOREVER_S)
    assert not any(isinstance(each, Refusal) for each in batch.result())
    assert not any(isinstance(each.result()[0], Refusal) for each in singles)
    check_log(dsn, ledger)


# --- the ledger's own commands ---------------------------------------------------------------------------------------


def let_expire(desk: Any, many: int) -> list[Command]:
    """Authorizations of 1 by alice whose time is over; the commands that record it."""
    desk.do(*(authorize(1, payment_id=f"p{number}", hold_for=timedelta(microseconds=1)) for number in range(many)))
    return [expire(f"p{number}") for number in range(many)]


@pytest.mark.parametrize("many", [1, 3])
def test_an_expiry_goes_after_the_commands_of_clients(
    dsn: str, ledger: str, serve: Serve, hold_turn: Serve, many: int
) -> None:
    """However many there are, and though they came first: a client's commands that wait are decided before them."""
    desk = serve()
    desk.do(*WORLD)
    expiries = let_expire(desk, many)
    turn = hold_turn()
    first = desk.submit(open_account("x"))
    eventually(lambda: turn.waiting)
    swept = desk.submit(*expiries, after_clients=True)
    batch = desk.submit(*(open_account(f"a{number}") for number in range(EVENTS_PER_APPEND)))
    single = desk.submit(open_account("y"))
    turn.release()
    wait([first, swept, batch, single], FOREVER_S)
    (of_single,) = single.result()
    before, after = batch.result()[0], batch.result()[-1]
    assert of_single.position < before.position < swept.result()[0].position
    assert swept.result()[-1].position < after.position, "they waited for all of a large batch"
    log = check_log(dsn, ledger)
    assert sum(row.topic == "AuthorizationExpired" for row in log) == many


def test_clients_do_not_starve_expiries(dsn: str, ledger: str, serve: Serve, hold_turn: Serve) -> None:
    """However many clients' commands wait, what has expired is recorded beside the next of them."""
    desk = serve()
    desk.do(*WORLD)
    expiries = let_expire(desk, 100)
    turn = hold_turn()
    first = desk.submit(open_account("x"))
    eventually(lambda: turn.waiting)
    singles = [desk.submit(open_account(f"a{number}")) for number in range(2 * EVENTS_PER_APPEND)]
    swept = desk.submit(*expiries, after_clients=True)
    turn.release()
    wait([first, swept, *singles], FOREVER_S)
    ends = [each.result()[0] for each in singles]
    assert {each.recorded_at for each in swept.result()} == {ends[0].recorded_at}
    assert ends[0].position < swept.result()[0].position < ends[-1].position
    check_log(dsn, ledger)


def test_a_queue_that_is_full_for_clients_takes_expiries(dsn: str, ledger: str, serve: Serve, hold_turn: Serve) -> None:
    """They are not refused, even if they are more than the queue would take; and no client is refused for them."""
    desk = serve(queue_most=2)
    desk.do(*WORLD[:2])
    desk.do(*WORLD[2:])
    for number in range(3):
        desk.do(authorize(1, payment_id=f"p{number}", hold_for=timedelta(microseconds=1)))
    turn = hold_turn()
    first = desk.submit(open_account("first"))
    eventually(lambda: turn.waiting)
    swept = desk.submit(*(expire(f"p{number}") for number in range(3)), after_clients=True)
    waiting = [desk.submit(open_account(each)) for each in "ab"]
    with pytest.raises(QueueFull, match="2"):
        desk.submit(open_account("c"))
    assert desk.committer.waiting == 5
    turn.release()
    for done in [first, swept, *waiting]:
        assert all(isinstance(each, Outcome) for each in done.result(FOREVER_S))
    assert desk.committer.waiting == 0
    assert state_of(check_log(dsn, ledger), "alice")["reserved"] == 0


# --- validate_only ---------------------------------------------------------------------------------------------------


def test_what_is_only_validated_is_not_recorded(dsn: str, ledger: str, serve: Serve) -> None:
    """It is answered as if, with the accounts as they would be and no position; its id stays free."""
    desk = serve()
    desk.do(*WORLD)
    before = read_log(dsn, ledger)
    dry = {"validate_only": True}
    for results in (
        desk.results(authorize(30), validate_only=True),
        desk.results(authorize(30, **dry)),
        desk.results(authorize(30, **dry), mode=Mode.ATOMIC),
    ):
        (outcome,) = results
        assert (str(outcome.thing.state), outcome.position, outcome.replayed) == ("AUTHORIZED", 0, False)
        assert [(each.account_id, each.state.reserved) for each in outcome.accounts] == [("alice", 30), ("shop", 0)]
    assert read_log(dsn, ledger) == before
    assert desk.answer(authorize(100)) == "AUTHORIZED"
    (replay,) = desk.results(authorize(100, **dry))
    assert (replay.replayed, replay.position) == (True, 0)
    assert len(check_log(dsn, ledger)) == len(before) + 2


def test_commands_of_a_validated_batch_see_each_other(dsn: str, ledger: str, serve: Serve) -> None:
    """A batch is validated as it would be done, INDEPENDENT or ATOMIC; nothing is recorded or remembered of it."""
    desk = serve()
    desk.do(*WORLD)
    before = read_log(dsn, ledger)
    batch = [open_account("bob"), transfer("t", leg("alice", "bob", 100)), authorize(1), authorize(1)]
    for mode, words in (
        (Mode.INDEPENDENT, ["OPEN", "POSTED", "DECLINED INSUFFICIENT_FUNDS", "replayed DECLINED INSUFFICIENT_FUNDS"]),
        (Mode.ATOMIC, ["refused BATCH_ABORTED"] * 2 + ["refused INSUFFICIENT_FUNDS", "refused BATCH_ABORTED"]),
    ):
        assert [each.words for each in desk.answers(*batch, mode=mode, validate_only=True)] == words
    assert read_log(dsn, ledger) == before
    assert desk.answer(transfer("t", leg("alice", "bob", 100))) == "refused ACCOUNT_NOT_FOUND"
    assert desk.answer(authorize(100)) == "AUTHORIZED"


def test_a_validated_command_does_not_show_to_the_next(serve: Serve) -> None:
    """Within a batch that is otherwise done, a command that is only validated leaves no trace."""
    desk = serve()
    desk.do(*WORLD)
    answers = desk.answers(authorize(100, payment_id="a", validate_only=True), authorize(100, payment_id="b"))
    assert [each.words for each in answers] == ["AUTHORIZED", "AUTHORIZED"]
    assert desk.answer(capture("c", payment_id="a")) == "refused PAYMENT_NOT_FOUND"


# --- deadlines and bounds --------------------------------------------------------------------------------------------


def test_a_command_past_its_deadline_is_not_decided(dsn: str, ledger: str, serve: Serve, hold_turn: Serve) -> None:
    """It waited too long behind others: it is told so, nothing of it is recorded, and its id stays free."""
    desk = serve()
    desk.do(*WORLD)
    assert desk.answer(authorize(1), deadline=monotonic() - 1) == "refused DEADLINE_PASSED"
    turn = hold_turn()
    before_it = desk.submit(open_account("x"))
    eventually(lambda: turn.waiting)
    deadline = monotonic() + 0.05
    late = desk.submit(authorize(1), deadline=deadline)
    late_batch = desk.submit(authorize(2, payment_id="q"), open_account("y"), deadline=deadline)
    in_time = desk.submit(open_account("z"), deadline=monotonic() + FOREVER_S)
    eventually(lambda: monotonic() > deadline)
    turn.release()
    assert [each.code for each in late.result(FOREVER_S)] == ["DEADLINE_PASSED"]
    assert [each.code for each in late_batch.result(FOREVER_S)] == ["DEADLINE_PASSED"] * 2
    for done in (before_it, in_time):
        assert isinstance(done.result(FOREVER_S)[0], Outcome)
    assert at_head(dsn, ledger) == 6 + 2
    assert desk.answer(authorize(3)) == "AUTHORIZED"


def test_a_deadline_that_passes_within_a_batch_stops_the_rest(
    dsn: str, ledger: str, serve: Serve, hold_turn: Serve
) -> None:
    """What was decided in time is recorded and answered, what was not is told so: one result per command."""
    desk = serve()
    turn = hold_turn()
    deadline = monotonic() + 1
    batch = desk.submit(*(open_account(f"a{number}") for number in range(EVENTS_PER_APPEND)), deadline=deadline)
    eventually(lambda: turn.waiting)
    eventually(lambda: monotonic() > deadline)
    turn.release()
    results = batch.result(FOREVER_S)
    done = [each for each in results if isinstance(each, Outcome)]
    assert 0 < len(done) < len(results) == EVENTS_PER_APPEND
    assert [each.code for each in results[len(done) :]] == ["DEADLINE_PASSED"] * (len(results) - len(done))
    assert len(check_log(dsn, ledger)) == len(done)


@pytest.mark.parametrize("decided_again", ["after a lost append", "after a load that showed the log moved"])
def test_a_command_is_not_decided_again_past_its_deadline(
    dsn: str, ledger: str, desks: tuple[Any, Any], hold_turn: Serve, decided_again: str
) -> None:
    """Its append was lost to somebody else's, and the turn came after its deadline: nothing of it is recorded."""
    here, elsewhere = desks
    elsewhere.do(open_account("x"))
    command = capture("c") if decided_again == "after a lost append" else open_account("y")
    before = read_log(dsn, ledger)
    turn = hold_turn()
    deadline = monotonic() + 1
    late = here.submit(command, deadline=deadline)
    eventually(lambda: turn.waiting)
    eventually(lambda: monotonic() > deadline)
    turn.release()
    assert [getattr(each, "code", "done") for each in late.result(FOREVER_S)] == ["DEADLINE_PASSED"]
    assert read_log(dsn, ledger) == before


def test_a_full_queue_refuses_at_once(dsn: str, ledger: str, serve: Serve, hold_turn: Serve) -> None:
    """What does not fit is refused while the others still wait, a batch counting as its commands; those are done."""
    desk = serve(queue_most=5)
    desk.do(*WORLD)
    turn = hold_turn()
    first = desk.submit(open_account("first"))
    eventually(lambda: turn.waiting)
    waiting = [desk.submit(open_account("a")), desk.submit(open_account("b"), open_account("c"))]
    with pytest.raises(QueueFull):
        desk.submit(*(open_account(f"d{number}") for number in range(3)))
    waiting += [desk.submit(open_account("e")), desk.submit(open_account("f"))]
    assert desk.committer.waiting == 5
    with pytest.raises(QueueFull, match="5"):
        desk.submit(open_account("g"))
    assert not first.done()
    turn.release()
    for done in [first, *waiting]:
        assert all(isinstance(each, Outcome) for each in done.result(FOREVER_S))
    assert desk.committer.waiting == 0
    assert desk.answer(open_account("g")) == "OPEN"
    opened = {row.stream for row in check_log(dsn, ledger) if row.topic == "AccountOpened"}
    assert opened == {f"account/{each}" for each in ("bank", "alice", "shop", "first", *"abcefg")}


def test_a_batch_that_the_queue_never_has_room_for_is_let_in_where_nothing_waits(
    dsn: str, ledger: str, serve: Serve, hold_turn: Serve
) -> None:
    """Else it would be refused for ever, by a server at rest. While a command waits it is refused."""
    desk = serve(queue_most=2)
    large = [open_account(f"a{number}") for number in range(5)]
    turn = hold_turn()
    first = desk.submit(open_account("first"))
    eventually(lambda: turn.waiting)
    second = desk.submit(open_account("second"))
    with pytest.raises(QueueFull, match="1"):
        desk.submit(*large)
    turn.release()
    wait([first, second], FOREVER_S)
    assert [each.words for each in desk.do(*large)] == ["OPEN"] * 5
    check_log(dsn, ledger)


def without_times(log: list[Row]) -> list[Any]:
    times = ("timestamp", "expires_at", "effective_at", "correlation_id")
    return [
        (row.stream, row.version, row.topic, {name: row.fields[name] for name in row.fields if name not in times})
        for row in log
    ]


def a_long_day(chance: random.Random) -> list[list[Command]]:
    """Batches of all kinds of commands on a dozen accounts, many of them declined, refused or replayed."""
    accounts = [f"a{number}" for number in range(12)]
    batches: list[list[Command]] = [
        [open_account("bank", kind=AccountKind.EXTERNAL)],
        [open_account(each, metadata={"name": each}) for each in accounts],
        [fund(each, 50, f"seed-{each}") for each in accounts],
    ]
    for number in range(120):
        one, other = chance.sample(accounts, 2)
        known = f"p{chance.randrange(number + 1)}"
        some: list[Command] = [
            authorize(chance.randint(1, 30), payment_id=f"p{number}", payer=one, payee=other),
            transfer(f"t{number}", leg(one, other, chance.randint(1, 60))),
            capture(f"c{number}", chance.randint(1, 10), payment_id=known, keep_remainder=chance.random() < 0.5),
            refund(f"r{number}", chance.randint(1, 10), payment_id=known),
            void(known),
            set_limit(one, chance.randint(0, 100)),
            freeze(one, FreezeScope.CREDITS),
            unfreeze(other),
            open_account(one, metadata={"name": one}),
        ]
        batches.append(chance.sample(some, chance.randint(1, 4)))
    return batches


@pytest.mark.parametrize(("memory_most", "remembered"), [(1_000, {"bank", "alice", "shop"}), (2, {"bank", "alice"})])
def test_a_committer_that_starts_remembers_the_accounts_that_moved_last(
    dsn: str, ledger: str, serve: Serve, memory_most: int, remembered: set[str]
) -> None:
    """As many as it may, in the state that they are in."""
    serve().do(*WORLD)
    desk = serve(memory_most=memory_most)
    assert desk.committer.remembered == len(remembered)
    assert all(desk.committer._memory.knows(f"account/{each}") for each in remembered)
    assert desk.answer(authorize(60)) == "AUTHORIZED"
    assert desk.answer(authorize(60, payment_id="q")) == "DECLINED INSUFFICIENT_FUNDS"
    assert desk.answer(close("shop")) == "CLOSED"
    check_log(dsn, ledger)


def test_an_account_that_cannot_be_read_keeps_no_committer_from_starting(
    dsn: str, ledger: str, serve: Serve, session: psycopg.Connection[Any]
) -> None:
    """It fails the commands on that account, and no others."""
    serve().do(*WORLD, open_account("eve"), fund("eve", 1, "gift"))
    session.execute("ALTER TABLE events DISABLE TRIGGER USER")
    session.execute("UPDATE events SET state = '{}' WHERE stream = 'account/eve' AND version = 2")
    desk = serve()
    assert desk.answer(authorize(10)) == "AUTHORIZED"
    assert desk.answer(authorize(1, payment_id="q", payer="eve")) == "refused INTERNAL"
    # What is forgotten after such an error is read when it is asked for: to read all that moved last takes the turn.
    assert desk.answer(void("nothing")) == "refused PAYMENT_NOT_FOUND"
    assert desk.committer.remembered == 0
    assert desk.answer(capture("c")) == "CAPTURED"


def test_a_small_memory_decides_as_a_large_one(
    dsn: str, ledger: str, serve: Serve, new_ledger: Callable[[], str]
) -> None:
    """Whatever was forgotten, the same commands get the same answers and events; only so much is remembered."""
    large_ledger = new_ledger()
    small, large = serve(memory_most=3), serve(name=large_ledger)
    words: Counter[str] = Counter()
    for batch in a_long_day(random.Random(7)):
        told, expected = small.answers(*batch), large.answers(*batch)
        assert [each[:2] for each in told] == [each[:2] for each in expected]
        assert len(small.committer._memory) <= 3
        words.update(each.words for each in told)
    assert len(words) > 12, words
    log = check_log(dsn, ledger)
    assert without_times(log) == without_times(check_log(dsn, large_ledger))


# --- clocks ----------------------------------------------------------------------------------------------------------


class Clock:
    """A clock of the test's, so far off the right one."""

    def __init__(self, off_s: float = 0) -> None:
        self.off_s = off_s

    def __call__(self) -> datetime:
        return utc_now() + timedelta(seconds=self.off_s)


def test_time_does_not_go_back_when_a_clock_does(dsn: str, ledger: str, serve: Serve) -> None:
    """After a step back of the clock, what is recorded has the time of the head, until the clock has caught up."""
    clock = Clock(off_s=3)
    desk = serve(clock=clock)
    (early,) = desk.do(open_account("a"))
    clock.off_s = 0
    (late,) = desk.do(open_account("b"))
    assert late.recorded_at == early.recorded_at
    clock.off_s = -1
    assert desk.do(open_account("c"))[0].recorded_at == early.recorded_at
    clock.off_s = 4
    assert desk.do(open_account("d"))[0].recorded_at > early.recorded_at
    check_log(dsn, ledger)


def test_time_does_not_go_back_between_committers(dsn: str, ledger: str, serve: Serve) -> None:
    """One whose clock is behind writes at the time of the head that another, whose clock is ahead, has left."""
    ahead, behind = serve(clock=Clock(off_s=2)), serve(clock=Clock(off_s=-2))
    for number in range(5):
        (one,) = ahead.do(open_account(f"a{number}"))
        (other,) = behind.do(open_account(f"b{number}"))
        assert other.recorded_at == one.recorded_at
    check_log(dsn, ledger)


@pytest.mark.parametrize("off_s", [-3600.0, -CLOCK_OFF_S - 1, CLOCK_OFF_S + 1, 3600.0])
def test_a_committer_does_not_serve_by_a_wrong_clock(dsn: str, ledger: str, serve: Serve, off_s: float) -> None:
    """More than 5 s off the database's, before or after, it refuses; it serves when the clock has been set right."""
    clock = Clock(off_s)
    desk = serve(clock=clock, wait=False)
    eventually(lambda: isinstance(desk.committer.outage, WritesStopped))
    with pytest.raises(WritesStopped, match="clock"):
        desk.submit(open_account("a"))
    assert not read_log(dsn, ledger)
    clock.off_s = 0
    eventually(lambda: desk.committer.outage is None)
    assert desk.answer(open_account("a")) == "OPEN"


def test_how_far_a_clock_may_be_off_can_be_said(dsn: str, ledger: str, serve: Serve) -> None:
    """A server for tests goes by a clock that they move; what it records is of that clock's time."""
    desk = serve(clock=Clock(off_s=3600), clock_off_most_s=7200)
    desk.do(open_account("a"))
    (row,) = read_log(dsn, ledger)
    assert row.recorded_at > utc_now() + timedelta(seconds=3500)


def test_a_clock_in_another_time_zone_records_utc(dsn: str, ledger: str, serve: Serve) -> None:
    """The bytes of an event don't depend on where the server stands."""
    tokyo = timezone(timedelta(hours=9))
    desk = serve(clock=lambda: utc_now().astimezone(tokyo))
    (opened,) = desk.do(open_account("a"))
    (event,) = read_log(dsn, ledger)
    assert f'"timestamp":"{opened.recorded_at:%Y-%m-%dT%H:%M:%S}' in event.state.decode()
    assert b"+09:00" not in event.state
    check_log(dsn, ledger)


def test_a_clock_that_goes_wrong_stops_an_idle_committer(serve: Serve) -> None:
    """Within a second or two, without any command."""
    clock = Clock()
    desk = serve(clock=clock)
    desk.do(open_account("a"))
    clock.off_s = 60
    eventually(lambda: isinstance(desk.committer.outage, WritesStopped))
    clock.off_s = 0
    eventually(lambda: desk.committer.outage is None)


def test_a_clock_far_behind_the_log_stops_writes(dsn: str, ledger: str, serve: Serve) -> None:
    """Near enough to the database's clock, but more than 5 s behind the last event: it would decide by a wrong time."""
    (early,) = serve(clock=Clock(off_s=4.5)).do(open_account("a"))
    desk = serve(clock=Clock(off_s=-4), wait=False)
    eventually(lambda: isinstance(desk.committer.outage, WritesStopped))
    assert "behind" in str(desk.committer.outage)
    eventually(lambda: desk.committer.outage is None)  # Time passes.
    assert desk.do(open_account("b"))[0].recorded_at >= early.recorded_at


def test_a_clock_that_goes_wrong_under_load_stops_writes(serve: Serve, new_ledger: Callable[[], str]) -> None:
    """Commands that come without a pause do not keep a committer from looking at its clock, slow or fast."""
    clocks = [Clock(), Clock()]
    desks = [serve(name=new_ledger(), clock=clock) for clock in clocks]
    numbers = count()
    looked = monotonic() + 1.5  # Whatever they look at after they have started, they have looked at.
    while monotonic() < looked:
        for desk in desks:
            desk.do(open_account(f"a{next(numbers)}"))
    clocks[0].off_s, clocks[1].off_s = -60, 60
    give_up = monotonic() + 15
    while not all(isinstance(desk.committer.outage, WritesStopped) for desk in desks):
        for desk in desks:
            assert desk.answer(open_account(f"a{next(numbers)}")) in ("OPEN", "refused WRITES_STOPPED")
        assert monotonic() < give_up, "it still serves by a clock that is a minute off"


@pytest.mark.parametrize("off", [timedelta(days=365), timedelta(seconds=CLOCK_OFF_S + 1)])
@pytest.mark.parametrize(
    "command",
    [authorize(1), capture("d", 1, payment_id="held"), capture("d", 2, payment_id="held")],
    ids=["new", "held", "too much"],
)
def test_a_clock_that_was_just_set_wrong_decides_nothing(
    dsn: str, ledger: str, serve: Serve, command: Command, off: timedelta
) -> None:
    """Not one command: a time that was recorded stays, holds would expire by it, and in the end nobody could write."""
    clock = Clock()
    desk, elsewhere = serve(clock=clock), serve()
    desk.do(*WORLD, authorize(1, payment_id="held"))
    before = read_log(dsn, ledger)
    clock.off_s = off.total_seconds()
    assert desk.answer(command) == "refused WRITES_STOPPED"
    assert elsewhere.answer(capture("c", 1, payment_id="held")) == "CAPTURED"
    assert all(row.recorded_at <= utc_now() for row in read_log(dsn, ledger))
    assert read_log(dsn, ledger)[: len(before)] == before
    clock.off_s = 0
    eventually(lambda: desk.committer.outage is None)
    assert desk.answer(authorize(1)) == "AUTHORIZED"
    check_log(dsn, ledger)


def test_a_clock_that_was_ahead_and_is_set_as_far_again_decides_nothing(dsn: str, ledger: str, serve: Serve) -> None:
    """How far it was moved is not how far it is off. By a time that was recorded so, right ones would have to stop."""
    clock = Clock(off_s=CLOCK_OFF_S - 1)
    desk, elsewhere = serve(clock=clock), serve()
    assert desk.answer(open_account("a")) == "OPEN"
    before = read_log(dsn, ledger)
    clock.off_s *= 2
    assert desk.answer(open_account("b")) == "refused WRITES_STOPPED"
    assert read_log(dsn, ledger) == before
    assert elsewhere.answer(open_account("c")) == "OPEN"


def test_a_clock_that_was_wrong_for_one_look_records_nothing_by_it(
    dsn: str, ledger: str, serve: Serve, hold_turn: Serve
) -> None:
    """That which was a decision's. When the clock is looked at for it, it is right again."""
    offs_s: SimpleQueue[float] = SimpleQueue()

    def clock() -> datetime:
        return utc_now() + timedelta(seconds=0 if offs_s.empty() else offs_s.get())

    desk = serve(clock=clock)
    desk.do(open_account("a"))
    turn = hold_turn()
    first = desk.submit(open_account("b"))
    eventually(lambda: turn.waiting)
    second = desk.submit(open_account("c"))
    offs_s.put(3600)
    turn.release()
    wait([first, second], FOREVER_S)
    assert isinstance(second.result()[0], WritesStopped)
    assert all(row.recorded_at <= utc_now() for row in read_log(dsn, ledger))
    eventually(lambda: desk.committer.outage is None)
    assert desk.answer(open_account("c")) == "OPEN"


def test_what_was_refused_as_a_clock_was_looked_at_is_decided_again_where_the_log_went_on(serve: Serve) -> None:
    """The time of the head may be further off than the clock. The look at it is one at the log: a refusal is of its
    newest state.
    """
    elsewhere = serve(clock=Clock(off_s=9), clock_off_most_s=3600)
    elsewhere.do(*WORLD, authorize(1), freeze("alice"))
    desk = serve(clock=Clock(off_s=4.5))
    assert desk.answer(increment("i", 2)) == "refused ACCOUNT_FROZEN"
    elsewhere.do(unfreeze("alice"))
    assert desk.answer(increment("i", 2)) == "AUTHORIZED"


def test_what_waits_as_a_clock_is_set_wrong_is_not_decided_by_it(
    dsn: str, ledger: str, serve: Serve, hold_turn: Serve
) -> None:
    """Single commands, and what is left of a batch: they are refused, whatever was let in before."""
    clock = Clock()
    desk = serve(clock=clock)
    desk.do(open_account("a"))
    turn = hold_turn()
    first = desk.submit(open_account("b"))
    eventually(lambda: turn.waiting)
    batch = desk.submit(*(open_account(f"c{number}") for number in range(3_000)))
    single = desk.submit(open_account("d"))
    clock.off_s = 3600
    turn.release()
    wait([first, batch, single], FOREVER_S)
    assert all(row.recorded_at <= utc_now() for row in read_log(dsn, ledger))
    assert first.result()[0].position == 2
    assert isinstance(batch.result()[-1], WritesStopped)
    assert isinstance(single.result()[0], WritesStopped)
    clock.off_s = 0
    eventually(lambda: desk.committer.outage is None)
    assert desk.answer(open_account("d")) == "OPEN"


def test_a_clock_that_is_wrong_after_a_reconnect_records_nothing(
    dsn: str, ledger: str, serve: Serve, session: psycopg.Connection[Any]
) -> None:
    """A command that finds the connection lost is not decided on the new one before the clock is found right."""
    clock = Clock()
    desk = serve(clock=clock)
    desk.do(open_account("a"))
    before = read_log(dsn, ledger)
    end(session, desk)
    clock.off_s = 60
    words = desk.answer(open_account("b"))
    assert words in ("refused WRITES_STOPPED", "refused DATABASE_UNAVAILABLE")
    assert read_log(dsn, ledger) == before


@pytest.mark.parametrize("away", ["read-only", "not there"])
def test_why_there_is_no_database_is_told_once(dsn: str, ledger: str, away: str) -> None:
    """It is looked for five times a second, for as long as it takes: a standby, or a disk that is full."""
    terms = {"options": "-c default_transaction_read_only=on"} if away == "read-only" else {"host": "/nowhere"}
    link = Link(make_conninfo(dsn, **terms), ledger, Memory(EventMapper(), 100), utc_now, CLOCK_OFF_S)
    with structlog.testing.capture_logs() as logged:
        assert not any(link.connect() for _ in range(3))
    assert [each["event"] for each in logged] == ["database_unavailable"]


# --- a log that lost its tail ----------------------------------------------------------------------------------------


def end(session: psycopg.Connection[Any], desk: Any) -> None:
    """End the committer's connection, at the server's side."""
    assert session.execute("SELECT pg_terminate_backend(%s, 5000)", [desk.backend]).fetchone() == (True,)


def cut(session: psycopg.Connection[Any], keep: int) -> None:
    """Leave of the log what an old copy would have: the events up to a position."""
    with session.transaction():
        session.execute("ALTER TABLE events DISABLE TRIGGER events_are_never_changed")
        session.execute("DELETE FROM events WHERE position > %s", [keep])
        session.execute("ALTER TABLE events ENABLE TRIGGER events_are_never_changed")


ASKED_OF_A_CUT_LOG: Final = {
    "something to record, all of it remembered": capture("c"),
    "something to record, not all of it remembered": open_account("new"),
    "something new to record": authorize(1, payment_id="q"),
    "a replay": authorize(10),
    "a refusal": capture("c", 11),
    "a validation": authorize(10, validate_only=True),
}


@pytest.mark.parametrize("keep", [0, 6, 7])
@pytest.mark.parametrize("asked", ASKED_OF_A_CUT_LOG)
def test_a_log_that_lost_its_tail_is_noticed_by_the_next_command(
    dsn: str, ledger: str, serve: Serve, session: psycopg.Connection[Any], asked: str, keep: int
) -> None:
    """Whatever is asked, it is not answered from memory of what is gone: writes stop for good, nothing is recorded."""
    desk = serve()
    desk.do(*WORLD, authorize(10))
    with structlog.testing.capture_logs() as logged:
        cut(session, keep)
        assert desk.answer(ASKED_OF_A_CUT_LOG[asked]) == "refused WRITES_STOPPED"
        with pytest.raises(WritesStopped, match="position"):
            desk.submit(open_account("x"))
    assert ("critical", "writes_stopped") in {(each["log_level"], each["event"]) for each in logged}
    assert at_head(dsn, ledger) == keep


def test_a_log_that_lost_its_tail_is_noticed_without_a_command(
    dsn: str, ledger: str, serve: Serve, session: psycopg.Connection[Any]
) -> None:
    """Within a second or two writes stop, loudly, and stay stopped: what a program can't explain is for people."""
    desk = serve()
    desk.do(*WORLD)
    with structlog.testing.capture_logs() as logged:
        cut(session, 5)
        eventually(lambda: isinstance(desk.committer.outage, WritesStopped), within_s=5)
    assert "critical" in {each["log_level"] for each in logged}
    before = threading.active_count()
    for _ in range(20):
        with pytest.raises(WritesStopped):
            desk.submit(open_account("x"))
    assert threading.active_count() == before
    desk.committer.stop()


@pytest.mark.parametrize("asked", [None, *ASKED_OF_A_CUT_LOG])
def test_a_log_that_lost_its_tail_while_the_database_was_away_is_noticed(
    dsn: str, ledger: str, serve: Serve, session: psycopg.Connection[Any], asked: str | None
) -> None:
    """A server that was restored from an old copy is not served when it is back."""
    desk = serve()
    desk.do(*WORLD, authorize(10))
    with session.transaction():
        session.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")  # Nobody looks in between.
        cut(session, 5)
        end(session, desk)
    if asked:
        assert desk.answer(ASKED_OF_A_CUT_LOG[asked]).startswith("refused")
    eventually(lambda: isinstance(desk.committer.outage, WritesStopped), within_s=5)
    assert at_head(dsn, ledger) == 5


@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize("asked", ["a command", "nothing"])
def test_a_lost_tail_is_noticed_though_others_wrote_since(
    dsn: str, ledger: str, serve: Serve, session: psycopg.Connection[Any], asked: str, more: int
) -> None:
    """One that starts on the old copy gives the positions to other events: who has seen the first ones stops."""
    desk = serve()
    desk.do(*WORLD, authorize(10))
    turn_back = 6
    with session.transaction():
        # Nobody looks in between.
        session.execute("SELECT FROM log_turn FOR UPDATE")
        session.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
        session.execute("ALTER TABLE events DISABLE TRIGGER events_are_never_changed")
        session.execute("DELETE FROM events WHERE position > %s", [turn_back])
        session.execute("ALTER TABLE events ENABLE TRIGGER events_are_never_changed")
        for number in range(2 + more):
            session.execute(
                """INSERT INTO events (stream, version, position, topic, recorded_at, state)
                SELECT %(stream)s, 1, %(position)s, topic, clock_timestamp(),
                    convert_to(replace(convert_from(state, 'UTF8'), 'alice', %(name)s), 'UTF8')
                FROM events WHERE stream = 'account/alice' AND version = 1""",
                {"stream": f"account/new{number}", "position": turn_back + 1 + number, "name": f"new{number}"},
            )
    if asked == "a command":
        assert desk.answer(capture("c")) == "refused WRITES_STOPPED"
    eventually(lambda: isinstance(desk.committer.outage, WritesStopped), within_s=5)
    assert at_head(dsn, ledger) == turn_back + 2 + more


# --- a committer's life ----------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities of threads")
def test_it_goes_first_where_it_may(ledger: str, serve: Serve) -> None:
    """All wait for it: the thread that takes calls, to refuse what is too much, must not keep it from deciding."""
    serve()
    (thread,) = (each for each in threading.enumerate() if each.name == f"committer-{ledger}")

    def first() -> int:
        go_first()
        return priority_of(threading.get_native_id())

    with ThreadPoolExecutor(1) as another:
        assert priority_of(thread.native_id) == another.submit(first).result()


def priority_of(thread_id: int | None) -> int:
    assert thread_id is not None
    return os.getpriority(os.PRIO_PROCESS, thread_id)


def test_a_committer_that_stops_finishes_what_waits(dsn: str, ledger: str, serve: Serve, hold_turn: Serve) -> None:
    """What was taken is recorded and answered, what comes later is refused at once."""
    desk = serve()
    desk.do(*WORLD)
    turn = hold_turn()
    waiting = [desk.submit(open_account(f"a{number}")) for number in range(20)]
    waiting.append(desk.submit(*(open_account(f"b{number}") for number in range(EVENTS_PER_APPEND))))
    eventually(lambda: turn.waiting)
    stopping = threading.Thread(target=desk.committer.stop)
    stopping.start()
    eventually(lambda: desk.answer(open_account("x")) == "refused SHUTTING_DOWN")
    turn.release()
    stopping.join(FOREVER_S)
    assert all(isinstance(each, Outcome) for done in waiting for each in done.result(FOREVER_S))
    assert len(check_log(dsn, ledger)) == 6 + 20 + EVENTS_PER_APPEND


def test_whatever_a_stopping_committer_took_is_answered(
    dsn: str, ledger: str, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients that go on submitting while it stops are refused or answered: nobody is left waiting."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(20):
            desk = serve()
            with ThreadPoolExecutor() as threads:
                clients = [threads.submit(submit_until_refused, desk) for _ in range(3)]
                desk.committer.stop()
                taken = [each for client in clients for each in client.result(FOREVER_S)]
            assert not [each for each in taken if not each.done()], "taken and never answered"
    finally:
        sys.setswitchinterval(interval)
    check_log(dsn, ledger)


def test_who_comes_when_a_committer_has_just_ended_is_refused(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its look at whether that stops and its place in the queue."""
    desk = serve()
    put = desk.committer._queue.put

    def put_late(ticket: Ticket) -> None:
        desk.committer.stop()
        put(ticket)

    monkeypatch.setattr(desk.committer._queue, "put", put_late)
    with pytest.raises(ShuttingDown):
        desk.submit(open_account("a"))
    assert not desk.committer.waiting


def submit_until_refused(desk: Any) -> list[Future[Any]]:
    taken = []
    try:
        while True:
            taken.append(desk.submit(open_account("a")))
    except (ShuttingDown, QueueFull):
        return taken


def test_a_caller_that_gave_up_does_no_harm(serve: Serve, hold_turn: Serve) -> None:
    """Whoever waits for an answer may cancel its future; the committer goes on with the others."""
    desk = serve()
    turn = hold_turn()
    first = desk.submit(open_account("a"))
    eventually(lambda: turn.waiting)
    given_up, other = desk.submit(open_account("b")), desk.submit(open_account("c"))
    assert given_up.cancel()
    turn.release()
    assert isinstance(first.result(FOREVER_S)[0], Outcome)
    assert isinstance(other.result(5)[0], Outcome)
    assert desk.answer(open_account("d")) == "OPEN"


def test_who_is_told_of_an_append_cannot_undo_it(dsn: str, ledger: str, serve: Serve) -> None:
    """An error in the listener is no reason to tell the client that nothing was recorded."""

    def fail(_: int) -> None:
        raise RuntimeError("the listener is gone")

    desk = serve(appended=fail)
    words = desk.answer(open_account("a"))
    assert words == "OPEN"
    assert at_head(dsn, ledger) == 1


def test_who_is_told_of_results_keeps_no_other_from_its_news(dsn: str, ledger: str, serve: Serve) -> None:
    """An error in one listener: the other is told the head all the same, and nothing has to be loaded again."""

    def fail(_results: object, _took_s: float) -> None:
        raise RuntimeError("the listener is gone")

    heads: SimpleQueue[int] = SimpleQueue()
    desk = serve(committed=fail, appended=heads.put)
    desk.do(*WORLD)
    assert heads.get(timeout=5) == 6
    assert desk.committer.outage is None
    assert desk.committer.remembered == len(WORLD)
    check_log(dsn, ledger)


def test_an_error_that_nobody_foresaw_stops_nothing(dsn: str, ledger: str, serve: Serve) -> None:
    """A look at the clock breaks between commands: the next are decided, on what the log holds."""
    fails = threading.Event()

    def clock() -> datetime:
        if fails.is_set():
            fails.clear()
            raise RuntimeError("nobody foresaw this")
        return utc_now()

    desk = serve(clock=clock)
    desk.do(*WORLD)
    fails.set()
    eventually(lambda: not fails.is_set())
    eventually(lambda: "refused" not in desk.answer(authorize(1)))
    assert at_head(dsn, ledger) == 8
    check_log(dsn, ledger)


def test_listeners_are_told_every_head(dsn: str, ledger: str, serve: Serve) -> None:
    """The head is told after each append, in order; a batch without events tells nothing."""
    heads: SimpleQueue[int] = SimpleQueue()
    desk = serve(appended=heads.put)
    desk.do(*WORLD)
    desk.answers(*WORLD)
    desk.answer(capture("c"))
    desk.do(authorize(1))
    assert [heads.get(timeout=5), heads.get(timeout=5)] == [6, 8]
    desk.committer.stop()
    assert heads.empty()


def test_how_long_commands_wait_for_the_database_is_known_meanwhile(serve: Serve, hold_turn: Serve) -> None:
    """An append that does not end is told from a committer at rest, and is over when it ends."""
    desk = serve()
    desk.do(*WORLD)
    eventually(lambda: desk.committer.waits_s == 0)
    turn = hold_turn()
    future = desk.submit(authorize(1))
    eventually(lambda: desk.committer.waits_s > 0.3)
    assert not future.done()
    turn.release()
    future.result(FOREVER_S)
    eventually(lambda: desk.committer.waits_s == 0)


def test_a_look_at_the_log_that_is_not_answered_keeps_commands_waiting_too(
    serve: Serve, session: psycopg.Connection[Any]
) -> None:
    """It is known before the first command comes that waits for it."""
    desk = serve()
    with session.transaction():
        session.execute("LOCK TABLE events")
        eventually(lambda: desk.committer.waits_s > 0.3)
    eventually(lambda: desk.committer.waits_s == 0)


def test_commands_that_are_refused_at_once_wait_for_nothing(serve: Serve) -> None:
    """The committer waits, for a database that does not say a word; they don't."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        desk = serve(at=f"host=127.0.0.1 port={mute.getsockname()[1]} dbname=none user=nobody", wait=False)
        with mute.accept()[0]:
            assert desk.answer(open_account("alice")) == "refused DATABASE_UNAVAILABLE"
            assert desk.committer.waits_s == 0


def test_refusing_many_commands_costs_no_memory(
    dsn: str, ledger: str, serve: Serve, session: psycopg.Connection[Any]
) -> None:
    """A refusal that every caller gets while writes are stopped does not keep what it was raised through."""
    desk = serve()
    desk.do(*WORLD)
    cut(session, 5)
    eventually(lambda: isinstance(desk.committer.outage, WritesStopped))
    for _ in range(100):
        assert desk.answer(open_account("x")) == "refused WRITES_STOPPED"
    kept = len(list(traceback.walk_tb(desk.committer.outage.__traceback__)))
    assert kept < 20, f"{kept} frames are kept, and all that is in them"


def test_no_time_of_the_database_is_used(dsn: str, ledger: str, serve: Serve) -> None:
    """What is recorded has the committer's time, to the microsecond, in UTC."""
    at = datetime.now(UTC) + timedelta(seconds=1)
    (answer,) = serve(clock=lambda: at).do(open_account("a"))
    assert answer.recorded_at == at
    assert check_log(dsn, ledger)[0].recorded_at == at
