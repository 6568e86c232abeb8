"""The follower in a process of its own: tied to its server, whatever happens to either."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import psutil
import psycopg
import pytest
from checks import eventually
from domain import open_account
from read_side import History, append_row
from structlog.testing import capture_logs

from ledger.follower_process import FollowerProcess, Terms
from ledger.postgres import connect
from ledger.v1.account_pb2 import GetAccountRequest
from projections.queries import Queries

COMES_WITHIN_S: Final = 30.0


def children() -> list[psutil.Process]:
    """The followers that this process has started."""
    return [each for each in psutil.Process().children() if "ledger.follower_process" in each.cmdline()]


@pytest.fixture
def start(dsn: str, ledger: str, history: History) -> Iterator[Callable[[], FollowerProcess]]:
    """Start a follower process of the test's ledger."""
    started: list[FollowerProcess] = []

    def run() -> FollowerProcess:
        started.append(FollowerProcess(Terms(dsn, ledger, "error", "json")))
        started[-1].start()
        return started[-1]

    yield run
    for each in started:
        each.stop()


def arrives(follower: FollowerProcess, position: int) -> None:
    async def main() -> None:
        async with asyncio.timeout(COMES_WITHIN_S):
            await follower.arrivals.wait_for(position)

    asyncio.run(main())


def test_it_tells_how_far_it_has_come(history: History, start: Callable[[], FollowerProcess]) -> None:
    """Of what was there before, and of what comes when it is woken."""
    follower = start()
    arrives(follower, history.write())
    for number in range(5):
        history.do(open_account(f"new-{number}"))
        head = history.write()
        follower.wake()
        arrives(follower, head)
    assert follower.arrivals.position == history.head


def test_a_read_waits_for_its_position(
    dsn: str, ledger: str, history: History, start: Callable[[], FollowerProcess]
) -> None:
    """It is told by way of the pipe: nothing is woken or polled for it."""
    follower = start()
    arrives(follower, history.write())
    history.do(open_account("late"))
    head = history.write()

    async def read() -> Any:
        queries = Queries(dsn, ledger, arrivals=follower.arrivals)
        await queries.open()
        answer = await queries.get_account(GetAccountRequest(account_id="late", min_position=head), COMES_WITHIN_S)
        await queries.close()
        return answer

    assert asyncio.run(read()).position >= head


def test_it_is_started_again_when_it_dies(history: History, start: Callable[[], FollowerProcess]) -> None:
    """And goes on where its checkpoint stands; as often as it takes."""
    follower = start()
    arrives(follower, history.write())
    for number in range(2):
        (child,) = children()
        child.kill()
        child.wait()
        history.do(open_account(f"after-{number}"))
        arrives(follower, history.write())


@pytest.mark.parametrize("script", [None, "#!/bin/sh\nexit 3\n"], ids=["no such program", "ends at once"])
def test_it_is_tried_again_when_it_can_not_be_started(
    history: History, start: Callable[[], FollowerProcess], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Any
) -> None:
    """For want of memory or of processes, say; also when it has gone before it could be told anything."""
    program = tmp_path / "python"
    if script:
        program.write_text(script)
        program.chmod(0o700)
    with monkeypatch.context() as broken, capture_logs() as logs:
        broken.setattr(sys, "executable", str(program))
        follower = start()
        eventually(lambda: len(logs) >= 2)
    assert {each["event"] for each in logs} == {"follower_ended"}
    arrives(follower, history.write())


def test_stopping_leaves_no_process_behind(history: History, start: Callable[[], FollowerProcess]) -> None:
    """Right after the start, at rest, and when it has died just then."""
    history.write()
    start().stop()
    assert not children()
    follower = start()
    arrives(follower, history.head)
    follower.stop()
    assert not children()
    follower = start()
    arrives(follower, history.head)
    children()[0].kill()
    follower.stop()
    assert not children()
    follower.wake()  # By a committer that stops after it.


def test_it_ends_a_transaction_that_waits_when_it_is_stopped(
    dsn: str, ledger: str, history: History, start: Callable[[], FollowerProcess]
) -> None:
    """A batch that somebody's lock holds up is given up as a whole."""
    follower = start()
    arrives(follower, history.write())
    with connect(dsn, ledger, "test") as holder, holder.transaction():
        holder.execute("LOCK TABLE balances IN ACCESS EXCLUSIVE MODE")
        history.do(open_account("held"))
        history.write()
        follower.wake()
        eventually(lambda: holder.execute("SELECT FROM pg_locks WHERE NOT granted").rowcount > 0)
        follower.stop()
        assert not children()


def test_where_it_has_to_stop_those_who_wait_are_let_go(
    dsn: str, ledger: str, history: History, start: Callable[[], FollowerProcess]
) -> None:
    """An event that can't be applied: they are to look why, and not to wait for what never comes."""
    sound = history.write()
    with connect(dsn, ledger, "test") as connection:
        append_row(connection, "account/alice", 99, sound + 1, "AccountExploded", b"{}", history.now)
    follower = start()
    arrives(follower, sound + 1)
    assert follower.arrivals.position == sound


def test_what_is_asked_for_and_never_comes_is_forgotten(history: History, start: Callable[[], FollowerProcess]) -> None:
    """A client that makes up a position changes nothing for others."""
    follower = start()
    head = history.write()
    arrives(follower, head)

    async def wait() -> None:
        async with asyncio.timeout(0.2):
            await follower.arrivals.wait_for(10**15)

    with pytest.raises(TimeoutError):
        asyncio.run(wait())
    history.do(open_account("next"))
    arrives(follower, history.write())


SERVER: Final = """
import sys
from ledger.follower_process import FollowerProcess, Terms
follower = FollowerProcess(Terms(sys.stdin.readline().strip(), sys.argv[1], "error", "json"))
follower.start()
while not follower.arrivals.position:
    pass
print(follower._process.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_its_server(dsn: str, ledger: str, history: History, number: signal.Signals) -> None:
    """However that ends; and its connection with it."""
    history.write()
    command = [sys.executable, "-c", SERVER, ledger]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(dsn + "\n")
        server.stdin.flush()
        child = psutil.Process(int(server.stdout.readline()))
        os.kill(server.pid, number)
    eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    with psycopg.connect(dsn, autocommit=True) as connection:
        query = "SELECT FROM pg_stat_activity WHERE application_name = 'ledger-follower'"
        eventually(lambda: connection.execute(query).rowcount == 0)


def test_a_signal_to_the_whole_group_is_the_servers_business(
    history: History, start: Callable[[], FollowerProcess]
) -> None:
    """Ctrl-C reaches both: a server that drains still keeps its read models."""
    follower = start()
    arrives(follower, history.write())
    (child,) = children()
    child.send_signal(signal.SIGINT)
    child.send_signal(signal.SIGTERM)
    history.do(open_account("still"))
    head = history.write()
    follower.wake()
    arrives(follower, head)
    assert children() == [child]


def test_its_secrets_are_not_in_its_command_line(history: History, start: Callable[[], FollowerProcess]) -> None:
    """Nor does it find modules in the folder that it was started from."""
    follower = start()
    arrives(follower, history.write())
    (child,) = children()
    assert child.cmdline() == [sys.executable, "-P", "-m", "ledger.follower_process"]
