"""A standby: it takes over when the primary's machine is lost, and until then it answers queries."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any, Final

import grpc
import psutil
import psycopg
import pytest
from google.protobuf.message import Message
from grpc import StatusCode
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from serving import LedgerServer, eventually, run_ledger, serving
from test_api import (
    ANSWERED_WITHIN_S,
    COMMAND_NAMES,
    RPCS,
    Client,
    authorize,
    capture,
    leg,
    opening,
    refused_by,
    transfer,
)

from ledger.embedded import EmbeddedPostgres, binaries
from ledger.embedded_process import Program, server_account
from ledger.exits import EXIT_CANNOT_START
from ledger.v1.account_pb2 import (
    ACCOUNT_KIND_EXTERNAL,
    GetAccountBalanceRequest,
    GetAccountRequest,
    ListAccountsRequest,
    ListEntriesRequest,
)
from ledger.v1.audit_pb2 import (
    GetConsistencyProofRequest,
    GetInclusionProofRequest,
    GetTreeHeadRequest,
    GetTrialBalanceRequest,
    ReadEventsRequest,
)
from ledger.v1.batch_pb2 import ExecuteBatchRequest
from ledger.v1.payment_pb2 import GetPaymentRequest, ListPaymentsRequest
from ledger.v1.transfer_pb2 import GetTransferRequest, ListTransfersRequest

CLIENTS: Final = 8
ANSWERS: Final = 400
STANDBY: Final = "second"


class Pair:
    """Two Postgres servers. The first answers a commit when the second has it as well."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._first: Final = EmbeddedPostgres(folder / "first")
        self._second: Program | None = None
        self._port = 0

    def start(self) -> None:
        """Return when the second streams."""
        self._first.start()
        cluster = self._folder / STANDBY
        copy = [binaries() / "pg_basebackup", "-D", cluster, "-R", "-c", "fast", "-d", self._first.dsn]
        subprocess.run(copy, check=True, capture_output=True)
        account = server_account(self._folder / "first", self._folder / "first/postgres")
        if account is not None:
            for place in [cluster, *cluster.rglob("*")]:
                os.chown(place, account.uid, account.gid, follow_symlinks=False)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self._port = probe.getsockname()[1]
        settings = {
            "port": self._port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "primary_conninfo": make_conninfo(self._first.dsn, application_name=STANDBY),
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        log = os.open(self._folder / "second.log", os.O_WRONLY | os.O_CREAT)
        try:
            self._second = Program([str(binaries() / "postgres"), "-D", str(cluster), *options], cluster, account, log)
        finally:
            os.close(log)
        with psycopg.connect(self._first.dsn, autocommit=True) as session:
            session.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{STANDBY}'")
            # What is not flushed by whoever commits it stays where it is for longer than a read waits.
            session.execute("ALTER SYSTEM SET wal_writer_delay = '10s'")
            session.execute("SELECT pg_reload_conf()")
            streams = "SELECT FROM pg_stat_replication WHERE (application_name, sync_state) = (%s, 'sync')"
            eventually(lambda: session.execute(streams, [STANDBY]).fetchone() is not None)
        eventually(self._second_answers)

    def _second_answers(self) -> bool:
        with suppress(psycopg.OperationalError), psycopg.connect(self.second):
            return True
        return False

    @property
    def dsn(self) -> str:
        """Whichever of the two takes writes, as documented for such a pair."""
        ports = f"{(self._folder / 'first/port').read_text()},{self._port}"
        return self._dsn(host="127.0.0.1,127.0.0.1", port=ports, target_session_attrs="read-write", connect_timeout=5)

    @property
    def second(self) -> str:
        return self._dsn(host="127.0.0.1", port=self._port)

    def _dsn(self, **where: Any) -> str:
        return make_conninfo(**{**conninfo_to_dict(self._first.dsn), **where})

    @contextmanager
    def second_pausing(self) -> Iterator[None]:
        """The second goes on receiving what the first commits, and applies none of it."""
        with psycopg.connect(self.second, autocommit=True) as session:
            session.execute("SELECT pg_wal_replay_pause()")
            state = "SELECT pg_get_wal_replay_pause_state()"
            eventually(lambda: session.execute(state).fetchone() == ("paused",))
            try:
                yield
            finally:
                session.execute("SELECT pg_wal_replay_resume()")

    def lose_first(self) -> None:
        """As if its machine had lost power."""
        pid = int((self._folder / "first/postgres/postmaster.pid").read_text().split()[0])
        processes = [psutil.Process(pid), *psutil.Process(pid).children()]
        for each in processes:
            with suppress(psutil.NoSuchProcess):
                each.send_signal(signal.SIGKILL)

    def promote(self) -> None:
        """What Patroni does then, or an operator."""
        with psycopg.connect(self.second, autocommit=True) as session:
            assert session.execute("SELECT pg_promote(true, 60)").fetchone() == (True,)

    def stop(self) -> None:
        if self._second is not None:
            self._second.stop()
        self._first.stop()


@contextmanager
def paired(folder: Path) -> Iterator[Pair]:
    pair = Pair(folder)
    try:
        pair.start()
        yield pair
    finally:
        pair.stop()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """For all tests that leave both as they are."""
    with paired(tmp_path_factory.mktemp("pair")) as pair:
        yield pair


@pytest.fixture
def doomed(tmp_path: Path) -> Iterator[Pair]:
    """For one that doesn't."""
    with paired(tmp_path / "pair") as pair:
        yield pair


@contextmanager
def client_of(server: LedgerServer, tag: str) -> Iterator[Client]:
    with server.channel() as channel:
        yield Client(channel, server.ledger, tag)


def test_every_query_is_answered_by_the_standby_as_by_the_primary(pair: Pair, tmp_path: Path, tag: str) -> None:
    """What was just written among them: a read waits until the standby has it."""
    with ExitStack() as stack:
        writes = stack.enter_context(serving(tmp_path, dsn=pair.dsn))
        reads = stack.enter_context(serving(tmp_path, dsn=pair.dsn, ledger=writes.ledger, LEDGER_READ_DSN=pair.second))
        client, other = (stack.enter_context(client_of(each, tag)) for each in (writes, reads))
        client.do(opening("bank~", kind=ACCOUNT_KIND_EXTERNAL), opening("alice~"), opening("shop~"))
        before = client(GetTreeHeadRequest(min_position=client.position)).tree_head.tree_size
        client.do(transfer("t~", leg("bank~", "alice~", 100_00)), authorize("p~"), capture("p~"))
        now = client(GetTreeHeadRequest(min_position=client.position)).tree_head.tree_size
        written = {"min_position": client.position}
        queries: list[Message] = [
            GetAccountRequest(account_id="alice~", **written),
            ListAccountsRequest(**written),
            GetAccountBalanceRequest(account_id="alice~", **written),
            GetAccountBalanceRequest(account_id="alice~", at_position=before, **written),
            ListEntriesRequest(account_id="alice~", **written),
            GetPaymentRequest(payment_id="p~", **written),
            ListPaymentsRequest(**written),
            GetTransferRequest(transfer_id="t~", **written),
            ListTransfersRequest(**written),
            GetTreeHeadRequest(tree_size=now, **written),
            GetInclusionProofRequest(position=1, tree_size=now, **written),
            GetConsistencyProofRequest(first_tree_size=before, second_tree_size=now, **written),
            GetTrialBalanceRequest(**written),
            ReadEventsRequest(**written),
        ]
        assert {each.DESCRIPTOR.full_name for each in queries} == (
            set(RPCS) - set(COMMAND_NAMES) - {ExecuteBatchRequest.DESCRIPTOR.full_name}
        )
        for query in queries:
            assert answers(other, query) == answers(client, query), query


def answers(client: Client, query: Message, timeout: float = ANSWERED_WITHIN_S) -> list[Message]:
    if RPCS[query.DESCRIPTOR.full_name].server_streaming:
        return list(client.stream(query, timeout=timeout))
    return [client(query, timeout=timeout)]


def test_what_was_just_written_reaches_the_standby_at_once(pair: Pair, tmp_path: Path, tag: str) -> None:
    """Without a signer, whose commits would take that of the read models along."""
    settings = {"LEDGER_READ_DSN": pair.second, "LEDGER_TREE_KEY": ""}
    with serving(tmp_path, dsn=pair.dsn, **settings) as server, client_of(server, tag) as client:
        client.do(opening("alice~"))
        assert client.account("alice~").account_id == client.name("alice~")


def test_a_read_waits_for_a_standby_that_is_behind(pair: Pair, tmp_path: Path, tag: str) -> None:
    """What this server or another one has recorded is not said to be yet to come where it has not arrived."""
    with ExitStack() as stack:
        server = stack.enter_context(serving(tmp_path, dsn=pair.dsn, LEDGER_READ_DSN=pair.second))
        another = stack.enter_context(serving(tmp_path, dsn=pair.dsn, ledger=server.ledger))
        client, elsewhere = (stack.enter_context(client_of(each, tag)) for each in (server, another))
        client.do(opening("alice~"))
        assert client.account("alice~").version == 1
        with pair.second_pausing():
            written = client(opening("bob~")), elsewhere(opening("carol~"))
            positions = [each.position for each in written]
            expected: list[tuple[str, Message]] = [
                (reason, query)
                for position in positions
                for reason, query in (
                    ("READ_MODEL_BEHIND", GetAccountRequest(account_id="alice~", min_position=position)),
                    ("READ_MODEL_BEHIND", ListAccountsRequest(min_position=position)),
                    ("READ_MODEL_BEHIND", GetTrialBalanceRequest(min_position=position)),
                    ("READ_MODEL_BEHIND", GetAccountBalanceRequest(account_id="alice~", at_position=position)),
                    ("TREE_BEHIND", GetTreeHeadRequest(min_position=position)),
                    ("READS_UNAVAILABLE", ReadEventsRequest(min_position=position)),
                    ("READS_UNAVAILABLE", ReadEventsRequest(to_position=position)),
                )
            ]
            expected += [
                ("READ_MODEL_BEHIND", query)
                for each in written
                for query in (
                    GetAccountBalanceRequest(account_id="alice~", recorded_at=each.recorded_at),
                    GetTrialBalanceRequest(recorded_at=each.recorded_at),
                    GetPaymentRequest(payment_id="none~", recorded_at=each.recorded_at),
                )
            ]
            with ThreadPoolExecutor(len(expected)) as callers:
                told = list(callers.map(lambda each: why_late(client, each[1]), expected))
            assert told == [(StatusCode.UNAVAILABLE, reason) for reason, _ in expected]
            assert client.refuses(GetAccountRequest(account_id="alice~", min_position=2**40)).code is (
                StatusCode.OUT_OF_RANGE
            )
            waiting = [
                client.start(GetAccountRequest(account_id="carol~", min_position=positions[-1])),
                client.start(GetTreeHeadRequest(min_position=positions[-1])),
            ]
        assert [each.result().position >= positions[-1] for each in waiting] == [True, True]


def why_late(client: Client, query: Message) -> tuple[StatusCode, str]:
    """How a query is refused for which the server has waited as long as it does, well before the client gives up."""
    with pytest.raises(grpc.RpcError) as raised:
        answers(client, query, timeout=30)
    refused = refused_by(raised.value)
    return refused.code, refused.reason


def test_a_server_does_not_start_on_reads_from_another_log(pair: Pair, tmp_path: Path, tag: str) -> None:
    """A database without the ledger, a login that may not read it, and a ledger of the same name that is another."""
    with serving(tmp_path, dsn=pair.dsn) as server, client_of(server, tag) as client:
        client.do(opening("alice~"))
        stranger, elsewhere = f"stranger_{tag}", f"elsewhere_{tag}"
        with psycopg.connect(pair.dsn, autocommit=True) as session:
            session.execute(f"CREATE ROLE {stranger} LOGIN PASSWORD 'x'")
            session.execute(f"CREATE DATABASE {elsewhere}")
        other = make_conninfo(pair.dsn, dbname=elsewhere)
        serve = ["serve", *server.where, "--ledger", server.ledger, "--listen", "127.0.0.1:0"]

        def why_not(read_dsn: str) -> str:
            ended = run_ledger(*serve, LEDGER_READ_DSN=read_dsn)
            assert (ended.returncode, ended.stdout) == (EXIT_CANNOT_START, "")
            return ended.stderr

        no_copy = "ledger: LEDGER_READ_DSN does not lead to a copy of this ledger: "
        assert why_not(other).startswith(f"{no_copy}ledger '{server.ledger}' is not migrated")
        assert why_not(make_conninfo(pair.dsn, user=stranger, password="x")).startswith(f"{no_copy}{stranger} may not")
        with serving(tmp_path, dsn=other, ledger=server.ledger) as impostor, client_of(impostor, tag) as its_client:
            its_client.do(opening("alice~"))
        assert why_not(other).startswith("ledger: LEDGER_READ_DSN leads to another log: the event at its end")


def test_a_standby_that_is_away_keeps_nobody_from_paying(pair: Pair, tmp_path: Path, tag: str) -> None:
    """The server starts, commands are answered, and queries are unavailable."""
    nowhere = make_conninfo(pair.second, host="127.0.0.1", port=1)
    with serving(tmp_path, dsn=pair.dsn, LEDGER_READ_DSN=nowhere) as server, client_of(server, tag) as client:
        client.do(opening("alice~"))
        assert client.refuses(GetAccountRequest(account_id="alice~")).code is StatusCode.UNAVAILABLE
        assert "read_database_unavailable" in server.log


def test_nothing_that_was_answered_is_lost_with_the_primary(doomed: Pair, tmp_path: Path, tag: str) -> None:
    """The server goes on with the standby by itself; the same ids sent again are told what they were told."""
    with serving(tmp_path, dsn=doomed.dsn) as server, client_of(server, tag) as client:
        client.do(
            opening("bank~", kind=ACCOUNT_KIND_EXTERNAL),
            opening("alice~"),
            opening("shop~"),
            transfer("fund~", leg("bank~", "alice~", 10**12)),
        )
        answered: dict[str, int] = {}
        stopped = Event()

        def pay(number: int) -> None:
            for payment_id in (f"p{number}-{each}~" for each in count()):
                while payment_id not in answered:
                    if stopped.is_set():
                        return
                    with suppress(grpc.RpcError):
                        answered[payment_id] = client(authorize(payment_id)).position

        with ThreadPoolExecutor(CLIENTS) as clients:
            try:
                futures = [clients.submit(pay, number) for number in range(CLIENTS)]
                eventually(lambda: len(answered) >= ANSWERS)
                doomed.lose_first()
                doomed.promote()
                at_least = len(answered) + ANSWERS
                eventually(lambda: len(answered) >= at_least)
            finally:
                stopped.set()
        assert [each.result() for each in futures] == [None] * CLIENTS
        for payment_id, position in answered.items():
            again = client(authorize(payment_id))
            assert (again.position, again.replayed) == (position, True)
        assert client.balance("alice~").reserved == 10_00 * len(answered)
        verified = run_ledger("audit", "verify", "--dsn", doomed.second, "--ledger", server.ledger)
        assert verified.returncode == 0, verified.stdout
