"""A real Postgres for every test here: one server per run, a fresh ledger per test, committers in it at work.

The server is the embedded one, or the one given by LEDGER_TEST_DSN (Postgres 16 or newer, as a superuser).
"""

from __future__ import annotations

import asyncio
import os
import pickle
import secrets
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from threading import Lock, Thread
from typing import Any, Final, NamedTuple

import psycopg
import pytest

from ledger.committer import Committer
from ledger.domain.commands import Command
from ledger.domain.errors import Refusal
from ledger.domain.events import LedgerEvent
from ledger.embedded import EmbeddedPostgres
from ledger.migrations import migrate
from ledger.postgres import connect, schema_of
from ledger.ticket import Result, Ticket
from ledger.upcasters import EventMapper
from projections.follower import Follower
from projections.queries import Queries
from projections.read_models import create_tables

# The words of the domain's own tests serve here as well.
UNIT: Final = Path(__file__).parents[1] / "unit"
sys.path.append(str(UNIT))

from checks import eventually, remove_ledger  # noqa: E402
from domain import in_words, open_account  # noqa: E402
from read_side import History, append_row  # noqa: E402
from unreliable_network import Proxy  # noqa: E402

ANSWERED_WITHIN_S: Final = 30.0


@pytest.fixture(scope="session")
def dsn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server for the whole run, connected to as a superuser."""
    given = os.environ.get("LEDGER_TEST_DSN")
    if given:
        yield given
        return
    with EmbeddedPostgres(tmp_path_factory.mktemp("pg")) as server:
        yield server.dsn


@pytest.fixture
def new_ledger(dsn: str) -> Iterator[Callable[[], str]]:
    """Make a ledger that is migrated, empty, and this test's alone; return its name."""
    names: list[str] = []

    def make() -> str:
        names.append(f"test_{secrets.token_hex(6)}")
        migrate(dsn, names[-1])
        return names[-1]

    yield make
    if "LEDGER_TEST_DSN" not in os.environ:
        return  # The server goes, and its ledgers with it.
    for name in names:
        remove_ledger(dsn, name)


@pytest.fixture
def ledger(new_ledger: Callable[[], str]) -> str:
    """The name of a fresh ledger."""
    return new_ledger()


@pytest.fixture
def session(dsn: str, ledger: str) -> Iterator[psycopg.Connection[Any]]:
    """A superuser in the ledger's schema, past all that the committer does."""
    with psycopg.connect(dsn, autocommit=True, options=f"-c search_path={schema_of(ledger)}") as connection:
        yield connection


# --- committers ------------------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """What a client was told, in words: `AUTHORIZED`, `replayed POSTED`, `refused ACCOUNT_CLOSED`."""

    words: str
    position: int = 0
    recorded_at: datetime | None = None


def answer_of(result: Result) -> Answer:
    if isinstance(result, Refusal):
        return Answer(f"refused {result.code}")
    return Answer(in_words(result), result.position, result.recorded_at)


class Desk:
    """A committer at work in a thread of this process."""

    def __init__(self, committer: Committer) -> None:
        self.committer = committer

    def submit(self, *commands: Command, **settings: Any) -> Future[list[Result]]:
        """Raises the Outage that stands in the way."""
        future: Future[list[Result]] = Future()
        self.committer.submit(Ticket(commands, future, f"request-{secrets.token_hex(4)}", **settings))
        return future

    def results(self, *commands: Command, **settings: Any) -> list[Result]:
        return self.submit(*commands, **settings).result(ANSWERED_WITHIN_S)

    def answers(self, *commands: Command, **settings: Any) -> list[Answer]:
        """What a client is told, whether the committer was asked or the way to it barred."""
        try:
            return [answer_of(result) for result in self.results(*commands, **settings)]
        except Refusal as outage:
            return [answer_of(outage)] * len(commands)

    def answer(self, command: Command, **settings: Any) -> str:
        """The answer to one command, in words."""
        return self.answers(command, **settings)[0].words

    def do(self, *commands: Command, **settings: Any) -> list[Answer]:
        """Run commands none of which may be refused or declined."""
        answers = self.answers(*commands, **settings)
        assert not [each for each in answers if "refused" in each.words or "DECLINED" in each.words], answers
        return answers

    @property
    def lost_races(self) -> int:
        return self.committer.lost_races

    @property
    def backend(self) -> int:
        """The server process at the other end of its connection, for tests to kill. No one else has use for it."""
        return self.committer._link.writer.backend_pid


@pytest.fixture
def serve(dsn: str, ledger: str) -> Iterator[Callable[..., Desk]]:
    """Start a committer in a thread, by default on the test's ledger, and wait until it serves."""
    with ExitStack() as at_the_end:

        def start(*, at: str = dsn, name: str = ledger, wait: bool = True, **settings: Any) -> Desk:
            committer = Committer(at, name, **settings)
            committer.start()
            at_the_end.callback(committer.stop)
            if wait:
                eventually(lambda: committer.outage is None)
            return Desk(committer)

        yield start


_PROCESS: Final = """
import pickle, sys
from concurrent.futures import Future
from datetime import timedelta
from threading import Lock
from time import sleep

import structlog

sys.path[:0] = sys.argv[1:]
from domain import in_words
from ledger.committer import Committer, utc_now
from ledger.domain.errors import Refusal
from ledger.ticket import Ticket

structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
writing = Lock()

def tell(*message):
    with writing:
        pickle.dump(message, sys.stdout.buffer)
        sys.stdout.buffer.flush()

def facts(result):
    if isinstance(result, Refusal):
        return f"refused {result.code}", 0, None
    return in_words(result), result.position, result.recorded_at

dsn, ledger = pickle.load(sys.stdin.buffer)
committer = Committer(dsn, ledger)
committer.start()
while committer.outage is not None:
    sleep(0.001)
tell(0, [])
while True:
    try:
        number, commands, settings = pickle.load(sys.stdin.buffer)
    except EOFError:
        break
    future = Future()
    future.add_done_callback(lambda done, number=number: tell(number, [facts(each) for each in done.result()]))
    try:
        committer.submit(Ticket(commands, future, f"request-{number}", **settings))
    except Refusal as outage:
        tell(number, [facts(outage)] * len(commands))
committer.stop()
tell(-1, [committer.lost_races])
"""


class ProcessEnded(Exception):
    """The process was killed before it answered."""


class ProcessDesk:
    """A committer at work in a process of its own, which can be killed. It starts to serve at `open`."""

    Ended = ProcessEnded

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROCESS, str(UNIT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._lock = Lock()
        self._asked: dict[int, Future[list[Any]]] = {}
        self._numbers = iter(range(1, sys.maxsize))
        self._ended = False
        self._reader = Thread(target=self._read, daemon=True)

    def open(self, dsn: str, ledger: str) -> ProcessDesk:
        serving: Future[list[Any]] = Future()
        self._asked[0], self._asked[-1] = serving, Future()
        self._reader.start()
        self._tell((dsn, ledger))
        serving.result(ANSWERED_WITHIN_S)
        return self

    def submit(self, *commands: Command, **settings: Any) -> Future[list[Answer]]:
        """The future fails with ProcessEnded if the process ends before it has answered."""
        future: Future[list[Answer]] = Future()
        with self._lock:
            if self._ended:
                raise ProcessEnded
            number = next(self._numbers)
            self._asked[number] = future
            with suppress(BrokenPipeError):  # Then it was killed, which its reader finds out.
                self._tell((number, commands, settings))
        return future

    def answers(self, *commands: Command, **settings: Any) -> list[Answer]:
        return self.submit(*commands, **settings).result(ANSWERED_WITHIN_S)

    def answer(self, command: Command, **settings: Any) -> str:
        return self.answers(command, **settings)[0].words

    def end(self) -> int:
        """Let it finish what waits, and return how many races it lost."""
        assert self._process.stdin is not None
        ended = self._asked[-1]  # Before it is told: what has come is not kept.
        self._process.stdin.close()
        (lost_races,) = ended.result(ANSWERED_WITHIN_S)
        return int(lost_races)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        if self._reader.ident is not None:
            self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()

    def _tell(self, message: object) -> None:
        assert self._process.stdin is not None
        pickle.dump(message, self._process.stdin)
        self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        # What it was writing when it was killed ends anywhere.
        with suppress(EOFError, pickle.UnpicklingError):
            while True:
                number, facts = pickle.load(self._process.stdout)
                answers = facts if number <= 0 else [Answer(*each) for each in facts]
                self._asked.pop(number).set_result(answers)
        with self._lock:
            self._ended = True
        for future in self._asked.values():
            future.set_exception(ProcessEnded())


@pytest.fixture
def serve_in_process(dsn: str, ledger: str) -> Iterator[Callable[..., ProcessDesk]]:
    """Start a committer in a process of its own. One more than asked for is kept ready: imports take a while."""
    ready = [ProcessDesk()]
    started: list[ProcessDesk] = []

    def start(*, at: str = dsn) -> ProcessDesk:
        ready.append(ProcessDesk())
        started.append(ready.pop(0))
        return started[-1].open(at, ledger)

    yield start
    for desk in ready + started:
        desk.kill()


# --- between them and the server --------------------------------------------------------------------------------------


@pytest.fixture
def new_proxy(dsn: str) -> Iterator[Callable[[], Proxy]]:
    with ExitStack() as at_the_end:

        def make() -> Proxy:
            proxy = Proxy(dsn)
            at_the_end.callback(proxy.close)
            return proxy

        yield make


@pytest.fixture
def proxy(new_proxy: Callable[[], Proxy]) -> Proxy:
    return new_proxy()


# --- holding the turn ------------------------------------------------------------------------------------------------


class Turn:
    """The right to append, held by a session of the test: whoever wants to append waits."""

    def __init__(self, dsn: str, ledger: str) -> None:
        self._holder = psycopg.connect(dsn, options=f"-c search_path={schema_of(ledger)}")
        self._watcher = psycopg.connect(dsn, autocommit=True)
        self._holder.execute("SELECT FROM log_turn FOR UPDATE")

    @property
    def waiting(self) -> Sequence[int]:
        """The server processes that wait for the turn."""
        query = "SELECT pid FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))"
        return [pid for (pid,) in self._watcher.execute(query, [self._holder.info.backend_pid])]

    @property
    def is_second_in_line(self) -> bool:
        """Whether somebody waits behind whoever waits for the turn."""
        query = "SELECT count(*) FROM pg_stat_activity WHERE pg_blocking_pids(pid) && %s::int[]"
        row = self._watcher.execute(query, [[*self.waiting]]).fetchone()
        return row is not None and row[0] > 0

    def append(self, first: int, *events: LedgerEvent) -> None:
        """Append at these positions while nobody else can, and end the turn."""
        mapper = EventMapper()
        for position, event in enumerate(events, first):
            stream, version, topic, state = mapper.to_row(event)
            append_row(self._holder, stream, version, position, topic, state, event.timestamp)
        self._holder.commit()

    def release(self) -> None:
        self._holder.rollback()

    def close(self) -> None:
        self._holder.close()
        self._watcher.close()


@pytest.fixture
def hold_turn(dsn: str, ledger: str) -> Iterator[Callable[..., Turn]]:
    """Take the turn, by default of the test's ledger."""
    turns: list[Turn] = []

    def hold(name: str = ledger) -> Turn:
        turns.append(Turn(dsn, name))
        return turns[-1]

    yield hold
    for turn in turns:
        turn.close()


@pytest.fixture
def stall(hold_turn: Callable[..., Turn]) -> Callable[..., tuple[Turn, list[Future[list[Result]]]]]:
    """Submit batches of an append's size, and have the first wait for its turn while what comes next is decided."""

    def submit(desk: Desk, *batches: Sequence[Command], **settings: Any) -> tuple[Turn, list[Future[list[Result]]]]:
        turn = hold_turn()
        desk.submit(open_account("in-the-way"))
        eventually(lambda: turn.waiting)
        futures = [desk.submit(*batch, **settings) for batch in batches]
        with ThreadPoolExecutor(1) as threads:
            behind = threads.submit(hold_turn)
            try:
                eventually(lambda: turn.is_second_in_line)
            finally:
                turn.release()
            turn = behind.result(ANSWERED_WITHIN_S)
        eventually(lambda: turn.waiting)
        return turn, futures

    return submit


# --- the read side ---------------------------------------------------------------------------------------------------


@pytest.fixture
def history(dsn: str, ledger: str) -> History:
    """A history of a ledger whose read models are empty."""
    with connect(dsn, ledger, "test") as connection:
        create_tables(connection)
    return History(dsn, ledger, alice=1_000, shop=0)


@pytest.fixture
def follower(dsn: str, ledger: str, history: History) -> Iterator[Follower]:
    """A follower that applies batches when it is told to."""
    follower = Follower(dsn, ledger)
    yield follower
    follower.stop()


@pytest.fixture
def ask(dsn: str, ledger: str) -> Callable[..., Any]:
    """Run a test's coroutine with the queries of its ledger, by default without a follower in the same process."""

    def run(test: Callable[[Queries], Awaitable[Any]], *, of: str = dsn, follower: Follower | None = None) -> Any:
        async def main() -> Any:
            async with opened(of, ledger, follower) as queries:
                return await test(queries)

        return asyncio.run(main())

    return run


@asynccontextmanager
async def opened(dsn: str, ledger: str, follower: Follower | None) -> Any:
    queries = Queries(dsn, ledger, arrivals=follower and follower.arrivals)
    await queries.open()
    try:
        yield queries
    finally:
        await queries.close()
