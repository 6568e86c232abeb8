"""Expiry under real servers: several sweep one ledger, and one is killed while it sweeps."""

from __future__ import annotations

import secrets
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import grpc
import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration
from serving import LEDGER, environment, eventually
from test_api import Client, authorize, batch, check_log, leg, opening, transfer

from ledger.cli import prepare
from ledger.embedded import EmbeddedPostgres
from ledger.v1.account_pb2 import ACCOUNT_KIND_EXTERNAL
from ledger.v1.batch_pb2 import BATCH_MODE_ATOMIC

MANY: Final = 1_200
"""More than two sweeps' worth."""


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(tmp_path_factory.mktemp("postgres")) as postgres:
        yield postgres


@pytest.fixture
def ledger(postgres: EmbeddedPostgres) -> str:
    """The name of a fresh ledger."""
    name = f"test_{secrets.token_hex(6)}"
    prepare(postgres.dsn, name)
    return name


class Server:
    """`ledger serve` on a ledger, and a client of it."""

    def __init__(self, dsn: str, ledger: str, log: Path) -> None:
        command = [*LEDGER, "serve", "--listen", "127.0.0.1:0", "--dsn", dsn, "--ledger", ledger]
        with log.open("a") as stderr:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment()
            )
        assert self.process.stdout
        self._channel = grpc.insecure_channel(self.process.stdout.readline().split()[3])
        self.client = Client(self._channel, ledger, "of-this-test")

    def kill(self) -> None:
        """kill -9."""
        self._channel.close()
        with self.process as process:
            process.kill()


@pytest.fixture
def serve(postgres: EmbeddedPostgres, ledger: str, tmp_path: Path) -> Iterator[Callable[[], Server]]:
    """Start a server of the test's ledger."""
    with ExitStack() as at_the_end:

        def start() -> Server:
            server = Server(postgres.dsn, ledger, tmp_path / "server.log")
            at_the_end.callback(server.kill)
            return server

        yield start


def authorize_many(client: Client, hold_for: Duration) -> None:
    """Alice promises 1 to the shop many times, for so long, in one append: all are due at the same moment."""
    client.do(opening("bank~", kind=ACCOUNT_KIND_EXTERNAL), opening("alice~"), opening("shop~"))
    client.do(transfer("fund~", leg("bank~", "alice~", MANY)))
    client(batch(*(authorize(f"p{number}~", 1, hold_for=hold_for) for number in range(MANY)), mode=BATCH_MODE_ATOMIC))


def expired(dsn: str, ledger: str) -> int:
    with psycopg.connect(dsn) as connection:
        query = f"SELECT count(*) FROM ledger_{ledger}.events WHERE topic = 'AuthorizationExpired'"
        row = connection.execute(query).fetchone()
    assert row
    return int(row[0])


@contextmanager
def turn_held(dsn: str, ledger: str) -> Iterator[Callable[[], None]]:
    """Nobody can append in here. Yields what waits until somebody tries to."""
    with psycopg.connect(dsn) as holder, psycopg.connect(dsn, autocommit=True) as watcher:
        holder.execute(f"SELECT FROM ledger_{ledger}.log_turn FOR UPDATE")
        query = "SELECT count(*) FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))"

        def somebody_waits() -> bool:
            row = watcher.execute(query, [holder.info.backend_pid]).fetchone()
            assert row
            return bool(row[0])

        yield lambda: eventually(somebody_waits)
        holder.rollback()


def test_several_servers_record_each_of_many_expiries_once(
    postgres: EmbeddedPostgres, ledger: str, serve: Callable[[], Server]
) -> None:
    """All are due at the same moment, and both servers sweep: each is recorded once, the payer has all of it back."""
    first, second = serve(), serve()
    authorize_many(first.client, Duration(nanos=1_000))

    eventually(lambda: expired(postgres.dsn, ledger) >= MANY)

    log = check_log(postgres.dsn, ledger)
    times = Counter(row.stream for row in log if row.topic == "AuthorizationExpired")
    assert (len(times), set(times.values())) == (MANY, {1})
    second.client.position = first.client.position = len(log)
    for server in (first, second):
        assert (server.client.balance("alice~").reserved, server.client.balance("alice~").available) == (0, MANY)


def test_a_sweep_that_is_killed_is_completed_by_the_next_server(
    postgres: EmbeddedPostgres, ledger: str, serve: Callable[[], Server]
) -> None:
    """kill -9 while Postgres has its append in hand: whatever comes of that, each is recorded once in the end."""
    server = serve()
    authorize_many(server.client, Duration(seconds=3))
    with turn_held(postgres.dsn, ledger) as until_somebody_waits:
        until_somebody_waits()
        server.kill()
    assert expired(postgres.dsn, ledger) < MANY

    serve()

    eventually(lambda: expired(postgres.dsn, ledger) >= MANY)
    log = check_log(postgres.dsn, ledger)
    times = Counter(row.stream for row in log if row.topic == "AuthorizationExpired")
    assert (len(times), set(times.values())) == (MANY, {1})
