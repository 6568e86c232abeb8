"""The follower: exactly once, restartable anywhere, whoever else follows; and what stops it."""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from random import Random
from typing import Any, Final

import psycopg
import pytest
import structlog
from checks import eventually
from domain import authorize, leg, open_account, transfer
from psycopg.conninfo import make_conninfo
from read_side import History, append_row, check_read_models

from ledger.postgres import connect
from ledger.upcasters import EventMapper
from projections.batch import CannotApply, CannotFollow, LogHasGap
from projections.follower import Follower
from projections.read_models import create_tables


@pytest.fixture
def history(dsn: str, ledger: str) -> History:
    """A history of a ledger whose read models are empty."""
    with connect(dsn, ledger, "test") as connection:
        create_tables(connection)
    return History(dsn, ledger, alice=1_000, shop=0)


@pytest.fixture
def follow(dsn: str, ledger: str, history: History) -> Iterator[Callable[..., Follower]]:
    """Make a follower of the test's ledger; it is stopped at the end."""
    with ExitStack() as at_the_end:

        def make(*, of: str = dsn, **settings: Any) -> Follower:
            follower = Follower(of, ledger, **settings)
            at_the_end.callback(follower.stop)
            return follower

        yield make


def catch_up(follower: Follower) -> None:
    while follower.run_once():
        pass


def checkpoint(dsn: str, ledger: str) -> int:
    return int(one(dsn, ledger, "SELECT position FROM checkpoints"))


def one(dsn: str, ledger: str, query: str) -> Any:
    with connect(dsn, ledger, "test") as connection:
        row = connection.execute(query.encode()).fetchone()
        assert row is not None
        return row[0]


# --- exactly once ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_events", [1, 2, 3, 7, 100])
def test_the_size_of_batches_changes_nothing(
    dsn: str, ledger: str, history: History, follow: Callable[..., Follower], batch_events: int
) -> None:
    """Wherever the log is cut, the rows are the same, and every event is applied once."""
    history.live(Random(8), 250)
    head = history.write()
    follower = follow(batch_events=batch_events)
    applied = 0
    while count := follower.run_once():
        applied += count
    assert applied == head == follower.position
    check_read_models(dsn, ledger)


def test_reading_ahead_that_fails_is_made_up_for(
    dsn: str, ledger: str, history: History, follow: Callable[..., Follower]
) -> None:
    """Its session is ended again and again; nothing is missed, and once caught up there is none."""
    others = sessions_of_followers(dsn)
    history.live(Random(12), 250)
    head = history.write()
    follower = follow(batch_events=40)
    applied = ended = 0
    with structlog.testing.capture_logs() as logs:
        while count := follower.run_once():
            applied += count

            def reads_ahead() -> bool:
                """Or has found that its session is gone, or has nothing more to read."""
                failed = any(each.get("after") == follower.position for each in logs)
                return failed or follower.position == head or len(set(sessions_of_followers(dsn)) - set(others)) > 1

            eventually(reads_ahead)
            (_, *ahead) = [pid for pid in sessions_of_followers(dsn) if pid not in others]
            for pid in ahead:
                with psycopg.connect(dsn) as connection:
                    connection.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
                ended += 1
    assert ended > 3
    assert applied == head == follower.position
    check_read_models(dsn, ledger)
    eventually(lambda: len(set(sessions_of_followers(dsn)) - set(others)) == 1)


def sessions_of_followers(dsn: str) -> list[int]:
    """The oldest first."""
    query = "SELECT pid FROM pg_stat_activity WHERE application_name = 'ledger-follower' ORDER BY backend_start"
    with psycopg.connect(dsn) as connection:
        return [pid for (pid,) in connection.execute(query)]


def test_two_followers_of_one_log_do_no_harm(
    dsn: str, ledger: str, history: History, follow: Callable[..., Follower], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Racing for every batch, on a log that grows, they apply each event once between them, without a lock."""
    monkeypatch.setattr("projections.follower.GIVE_WAY_MOST_S", 0)
    followers = [follow(batch_events=4), follow(batch_events=7)]
    written = threading.Event()

    def run(follower: Follower) -> int:
        applied = 0
        while True:
            last_round = written.is_set()
            count = follower.run_once()
            applied += count
            if last_round and not count:
                return applied

    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(run, follower) for follower in followers]
        random = Random(9)
        for _ in range(10):
            history.live(random, 60)
            history.write()
        written.set()
    assert sum(each.result() for each in runs) == history.head
    assert check_read_models(dsn, ledger) == history.head


def follow_in_process(dsn: str, ledger: str, batch_events: int) -> None:
    """The main function of a process that only ends by being killed."""
    Follower(dsn, ledger, batch_events=batch_events, poll_s=0.001).start()
    threading.Event().wait()


def test_followers_that_are_killed_leave_every_event_applied_once(dsn: str, ledger: str, history: History) -> None:
    """Three processes follow a log that grows; again and again one is killed, at any moment, and a new one started."""
    random = Random(10)
    context = get_context("forkserver")  # Imports are done once, so that the processes start quickly.
    context.set_forkserver_preload(["projections.follower"])
    with ExitStack() as at_the_end:

        def start() -> BaseProcess:
            process = context.Process(target=follow_in_process, args=(dsn, ledger, random.choice((1, 2, 5))))
            process.start()
            at_the_end.callback(kill, process)
            return process

        running = [start(), start(), start()]
        for _ in range(8):
            until = random.randrange(history.head, history.head + 120)
            history.live(random, 80)
            history.write()
            eventually(lambda until=until: checkpoint(dsn, ledger) >= min(until, history.head))
            kill(running.pop(0))
            running.append(start())
            check_read_models(dsn, ledger)
        eventually(lambda: checkpoint(dsn, ledger) == history.head)
    check_read_models(dsn, ledger)


def kill(process: BaseProcess) -> None:
    process.kill()
    process.join()


def test_what_is_seen_is_always_balanced(
    dsn: str, ledger: str, history: History, follow: Callable[..., Follower]
) -> None:
    """A batch never ends inside of a command: not between two legs of a transfer, nor between debit and credit."""
    for number in range(30):
        legs = [leg("bank", "alice", 5), leg("alice", "shop", 3)] * (number % 4 + 1)
        history.do(transfer(f"t{number}", *legs))
    history.write()
    follower = follow(batch_events=40)
    sums = set()
    while follower.run_once():
        sums.add(one(dsn, ledger, "SELECT sum(posted) FROM balances"))
    assert sums == {0}
    assert follower.position == history.head


def test_a_command_longer_than_a_batch_is_applied_all_the_same(
    dsn: str, ledger: str, history: History, follow: Callable[..., Follower]
) -> None:
    """In several steps, where it can't be helped."""
    history.do(transfer("t", *[leg("bank", "alice", 5)] * 20))
    head = history.write()
    follower = follow(batch_events=8)
    catch_up(follower)
    assert follower.position == head
    check_read_models(dsn, ledger)


# --- following in a thread -------------------------------------------------------------------------------------------


def test_a_follower_is_woken_by_the_committer_of_its_process(
    dsn: str, ledger: str, history: History, follow: Callable[..., Follower]
) -> None:
    """It applies what was appended when it is told, however long it would have slept."""
    history.write()
    follower = follow(poll_s=3_600)
    follower.start()
    for number in range(5):
        eventually(lambda: follower.position == history.head)
        history.do(open_account(f"a{number}"))
        history.write()
        follower.wake()
    eventually(lambda: follower.position == history.head)


def test_a_follower_finds_what_others_append(history: History, follow: Callable[..., Follower]) -> None:
    """Nobody wakes it: it looks for itself."""
    follower = follow(poll_s=0.01)
    follower.start()
    for number in range(3):
        history.do(open_account(f"a{number}"))
        history.write()
        eventually(lambda: follower.position == history.head)


def test_whoever_waits_for_a_position_is_told_from_the_follower_s_thread(
    history: History, follow: Callable[..., Follower]
) -> None:
    """Several at once, each when its own position has been applied."""
    history.live(Random(12), 100)
    head = history.write()
    follower = follow(batch_events=3)

    async def wait(position: int) -> int:
        await follower.arrivals.wait_for(position)
        return follower.position - position

    async def main() -> list[int]:
        waits = [asyncio.create_task(wait(position)) for position in range(1, head + 1, 5)]
        await asyncio.sleep(0)
        follower.start()
        return await asyncio.gather(*waits)

    assert min(asyncio.run(main())) >= 0


def test_stopping_a_follower_that_hangs_in_a_statement_gives_up_its_batch(
    dsn: str, ledger: str, history: History, follow: Callable[..., Follower], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody holds the checkpoint's row: the follower ends anyway, and nothing of its batch is there."""
    monkeypatch.setattr("projections.follower.STOP_PATIENCE_S", 0.2)
    history.write()
    with connect(dsn, ledger, "test") as holder, holder.transaction():
        holder.execute("SELECT FROM checkpoints FOR UPDATE")
        follower = follow()
        follower.start()
        waiting = f"SELECT count(*) FROM pg_stat_activity WHERE {holder.info.backend_pid} = ANY (pg_blocking_pids(pid))"
        eventually(lambda: one(dsn, ledger, waiting) == 1)
        follower.stop()
        assert follower.failure is None
    assert check_read_models(dsn, ledger) == 0


def test_a_follower_goes_on_by_itself_when_the_database_comes_back(
    dsn: str, ledger: str, history: History, follow: Callable[..., Follower], door: Door
) -> None:
    """Its sessions are ended and none is let in; then they are again."""
    history.write()
    follower = follow(of=door.dsn, poll_s=0.01)
    follower.start()
    eventually(lambda: follower.position == history.head)
    for number in range(3):
        with structlog.testing.capture_logs() as logs:
            door.shut()
            history.do(open_account(f"a{number}"))
            history.write()
            follower.wake()
            eventually(lambda logs=logs: "follower_waits_for_database" in [each["event"] for each in logs])
        assert follower.position < history.head
        assert follower.failure is None
        door.open()
        eventually(lambda: follower.position == history.head)
    check_read_models(dsn, ledger)


class Door:
    """A role of its own to connect by, which can be shut out."""

    def __init__(self, dsn: str) -> None:
        self._role = f"door_{secrets.token_hex(4)}"
        self._keeper = psycopg.connect(dsn, autocommit=True)
        self._keeper.execute(f"CREATE ROLE {self._role} SUPERUSER LOGIN PASSWORD 'open'")
        self.dsn = make_conninfo(dsn, user=self._role, password="open")

    def shut(self) -> None:
        self._keeper.execute(f"ALTER ROLE {self._role} NOLOGIN")
        query = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = %s"
        self._keeper.execute(query, [self._role]).fetchall()

    def open(self) -> None:
        self._keeper.execute(f"ALTER ROLE {self._role} LOGIN")

    def close(self) -> None:
        self.shut()
        self._keeper.execute(f"DROP ROLE {self._role}")
        self._keeper.close()


@pytest.fixture
def door(dsn: str) -> Iterator[Door]:
    """A way into the database that can be shut."""
    with closing(Door(dsn)) as door:
        yield door


# --- what stops it ---------------------------------------------------------------------------------------------------


def last_state(history: History, change: Callable[[dict[str, Any]], object]) -> bytes:
    """A fact like the last one in the history, but for a change."""
    fields = json.loads(EventMapper().to_stored_event(history.book.events[-1]).state)
    change(fields)
    return json.dumps(fields).encode()


POISONS: Final[dict[str, Callable[[History], tuple[str, bytes]]]] = {
    "bytes that are no JSON": lambda _: ("FundsReserved", b"\xff\x00"),
    "JSON that is no event": lambda _: ("FundsReserved", b"[]"),
    "a topic that nobody knows": lambda _: ("AccountExploded", b'{"class_version":1}'),
    "a version of the format that is newer than this program": lambda history: (
        "FundsReserved",
        last_state(history, lambda fields: fields.update(class_version=99)),
    ),
    "an event without its state": lambda history: (
        "FundsReserved",
        last_state(history, lambda fields: fields.pop("after")),
    ),
    "an amount that is no number": lambda history: (
        "FundsReserved",
        last_state(history, lambda fields: fields["after"].update(posted="much")),
    ),
    "a balance that no account can have": lambda history: (
        "FundsReserved",
        last_state(history, lambda fields: fields["after"].update(posted=-5_000)),
    ),
    "a currency that nobody knows": lambda history: (
        "FundsReserved",
        last_state(history, lambda fields: fields["after"].update(currency_code="XQX")),
    ),
}


@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("batch_events", [5, 1_000])
def test_an_event_that_can_not_be_applied_stops_it_right_there(
    dsn: str, ledger: str, history: History, follow: Callable[..., Follower], poison: str, batch_events: int
) -> None:
    """All before it is applied, nothing after it, and everybody is told which it was; a second try does the same."""
    history.live(Random(13), 60)
    history.do(open_account("carol"))
    history.fund("carol", 100)
    history.do(authorize(10, payment_id="last", payer="carol"))
    sound = history.write()
    topic, state = POISONS[poison](history)
    with connect(dsn, ledger, "test") as connection:
        version = history.account("carol").version + 1
        append_row(connection, "account/carol", version, sound + 1, topic, state, history.now)
        append_row(connection, "account/carol", version + 1, sound + 2, topic, state, history.now)
    for _ in range(2):
        follower = follow(batch_events=batch_events)
        with structlog.testing.capture_logs() as logs, pytest.raises(CannotApply):
            catch_up(follower)
        assert follower.position == sound
        assert follower.failure is not None
        assert f"position {sound + 1} (account/carol)" in follower.failure
        told = [each for each in logs if each["event"] == "follower_stopped"]
        assert [(each["log_level"], each["position"], each["stream"]) for each in told] == [
            ("error", sound + 1, "account/carol")
        ]
        assert one(dsn, ledger, "SELECT failure FROM checkpoints") == follower.failure
    assert check_read_models(dsn, ledger) == sound


def test_a_stopped_follower_goes_on_where_the_cause_is_gone(
    dsn: str, ledger: str, history: History, follow: Callable[..., Follower]
) -> None:
    """As after an update to the release that knows the event: from the same place, and the failure is forgotten."""
    sound = history.write()
    with connect(dsn, ledger, "test") as connection:
        append_row(connection, "account/alice", 99, sound + 1, "AccountExploded", b"{}", history.now)
        stopped = follow()
        stopped.start()
        eventually(lambda: stopped.failure is not None)
        connection.execute("ALTER TABLE events DISABLE TRIGGER USER")
        connection.execute("DELETE FROM events WHERE position > %s", [sound])
    history.do(open_account("late"))
    history.write()
    catch_up(follow())
    assert one(dsn, ledger, "SELECT failure IS NULL FROM checkpoints")
    check_read_models(dsn, ledger)


@pytest.mark.parametrize(
    ("missing", "found_at"),
    [
        (lambda sound: (sound + 1, sound + 1), 1),
        (lambda sound: (sound + 2, sound + 2), 2),
        (lambda sound: (sound, sound), 0),
    ],
)
def test_a_gap_in_the_log_stops_it(
    dsn: str,
    ledger: str,
    history: History,
    follow: Callable[..., Follower],
    missing: Callable[[int], tuple[int, int]],
    found_at: int,
) -> None:
    """An event that is missing right after the checkpoint, further on, or at the checkpoint itself."""
    sound = history.write()
    follower = follow()
    catch_up(follower)
    for number in range(4):
        history.do(open_account(f"a{number}"))
    history.write()
    with connect(dsn, ledger, "test") as connection:
        connection.execute("ALTER TABLE events DISABLE TRIGGER USER")
        connection.execute("DELETE FROM events WHERE position BETWEEN %s AND %s", missing(sound))
    with pytest.raises(LogHasGap) as stopped:
        catch_up(follower)
    assert stopped.value.position == sound + found_at
    assert follower.position == checkpoint(dsn, ledger) == max(sound, sound + found_at - 1)


def test_a_log_that_lost_its_tail_stops_it(
    dsn: str, ledger: str, history: History, follow: Callable[..., Follower]
) -> None:
    """What was applied is not in the log any more, as after a restore of the log alone."""
    head = history.write()
    follower = follow()
    catch_up(follower)
    with connect(dsn, ledger, "test") as connection:
        connection.execute("ALTER TABLE events DISABLE TRIGGER USER")
        connection.execute("DELETE FROM events WHERE position > %s", [head - 3])
    with pytest.raises(CannotFollow):
        follower.run_once()
    assert follower.failure == f"position {head}: the log has lost this event, which was applied"


def test_rows_that_somebody_changed_stop_it(
    dsn: str, ledger: str, history: History, follow: Callable[..., Follower]
) -> None:
    """A row that is not at the version before the event is not written over."""
    history.write()
    follower = follow()
    catch_up(follower)
    with connect(dsn, ledger, "test") as connection:
        connection.execute("DELETE FROM balances WHERE account_id = 'alice'")
    history.do(authorize(10))
    history.write()
    with pytest.raises(CannotApply):
        catch_up(follower)
    assert follower.position == history.head - 1  # the payment's own event came before that on the account


def test_a_follower_thread_that_has_stopped_can_be_ended(
    history: History, dsn: str, ledger: str, follow: Callable[..., Follower]
) -> None:
    """It waits, and stopping it meanwhile is no matter."""
    sound = history.write()
    with connect(dsn, ledger, "test") as connection:
        append_row(connection, "account/alice", 99, sound + 1, "AccountExploded", b"{}", history.now)
    follower = follow(poll_s=0.001)
    follower.start()
    eventually(lambda: follower.failure is not None)
    follower.stop()
    assert [each.name for each in threading.enumerate() if each.name == f"follower-{ledger}"] == []
