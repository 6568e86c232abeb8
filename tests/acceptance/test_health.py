"""Health: what the server says of itself is true, and it comes back by itself from whatever befalls its database."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any, Final

import grpc
import psycopg
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc import StatusCode
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from serving import HAPPENS_WITHIN_S, LEDGER, LedgerServer, environment, eventually, run_ledger, serving
from test_api import (
    RPCS,
    Client,
    Refused,
    authorize,
    batch,
    check_log,
    freeze,
    leg,
    opening,
    refused_by,
    result_of,
    transfer,
)
from test_cli import turn_held
from test_metrics import scrape

from bench import frames
from ledger.cli import prepare
from ledger.embedded import EmbeddedPostgres, running_dsn
from ledger.server import PING_LEAST_MS
from ledger.stall import STALL_S
from ledger.v1.account_pb2 import ACCOUNT_KIND_EXTERNAL, GetAccountRequest
from ledger.v1.audit_pb2 import ReadEventsRequest
from ledger.v1.payment_pb2 import PAYMENT_STATE_AUTHORIZED, GetPaymentRequest

SERVING: Final = HealthCheckResponse.SERVING
NOT_SERVING: Final = HealthCheckResponse.NOT_SERVING

SERVICES: Final = sorted({method.containing_service.full_name for method in RPCS.values()})
WRITE: Final = ["", "ledger.v1.write", *SERVICES]
READ: Final = ["ledger.v1.read"]

LEDGER_NAME: Final = "patient"

CLOCK_SERVER: Final = Path(__file__).with_name("clock_server.py")
"""`ledger serve` with a clock that goes wrong."""

AT_ONCE_S: Final = 3.0
"""A call that is answered at once is answered before this deadline, on a busy machine too."""


def health(channel: grpc.Channel, *services: str) -> set[int]:
    """What is said of these services."""
    stub = HealthStub(channel)
    return {stub.Check(HealthCheckRequest(service=each), timeout=10).status for each in services}


@contextmanager
def client_of(address: str, ledger: str) -> Iterator[Client]:
    """A client with names of its own, that finds a server again soon after it was away."""
    options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
    with grpc.insecure_channel(address, options=options) as channel:
        yield Client(channel, ledger, secrets.token_hex(4))


def postmaster_of(folder: Path) -> int:
    return int((folder / "postgres" / "postmaster.pid").read_text().split()[0])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("postgres")


@pytest.fixture(scope="module")
def postgres(data: Path) -> Iterator[EmbeddedPostgres]:
    """A Postgres that these tests may kill."""
    with EmbeddedPostgres(data) as postgres:
        yield postgres


@contextmanager
def served(postgres: EmbeddedPostgres, ledger: str, folder: Path, *program: object, **variables: str) -> Iterator[str]:
    """Where a server listens that was given the DSN of this Postgres. It has to end well, whatever has happened.

    It is `ledger serve`, unless another program is named, with these variables of its environment.
    """
    prepare(postgres.dsn, ledger)
    command = [*map(str, program)] or [*LEDGER, "serve"]
    settings = {"LEDGER_LISTEN": "127.0.0.1:0", "LEDGER_DSN": postgres.dsn, "LEDGER_LEDGER": ledger, **variables}
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment() | settings
        ) as process,
    ):
        try:
            assert process.stdout
            yield process.stdout.readline().split()[3]
        finally:
            process.terminate()
    assert process.returncode == 0


@pytest.fixture(scope="module")
def address(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(postgres, LEDGER_NAME, tmp_path_factory.mktemp("server")) as address:
        yield address


@pytest.fixture
def client(address: str, postgres: EmbeddedPostgres) -> Iterator[Client]:
    """A client of that server, with a bank, alice and a shop of its own."""
    postgres.start()
    with client_of(address, LEDGER_NAME) as client:
        eventually(lambda: health(client.channel, *WRITE, *READ) == {SERVING})
        client.do(opening("bank~", kind=ACCOUNT_KIND_EXTERNAL), opening("alice~"), opening("shop~"))
        client.do(transfer("fund~", leg("bank~", "alice~", 100_00)))
        yield client


# --- what is said of a server that is well ---------------------------------------------------------------------------


def test_a_server_that_is_well_says_so(server: LedgerServer) -> None:
    """For the server as a whole, for writes and reads, and for every service; what it doesn't have is not found."""
    with server.channel() as channel:
        eventually(lambda: health(channel, *WRITE, *READ) == {SERVING})
        with pytest.raises(grpc.RpcError) as raised:
            health(channel, "ledger.v2.PaymentService")
    assert isinstance(raised.value, grpc.Call)
    assert raised.value.code() is StatusCode.NOT_FOUND


def test_reflection_lists_and_describes_every_service(server: LedgerServer) -> None:
    """A client without the protos finds out all that the contract says."""
    with server.channel() as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert {*SERVICES, "grpc.health.v1.Health"} <= set(database.get_services())
        pool = DescriptorPool(database)
        for each in SERVICES:
            described = pool.FindServiceByName(each)
            ours = {method.name for method in RPCS.values() if method.containing_service.full_name == each}
            assert {method.name for method in described.methods} == ours


# --- the health check of containers ----------------------------------------------------------------------------------


def test_a_health_check_asks_the_server(server: LedgerServer) -> None:
    """One line and exit code 0 for a server that serves; 1 for one that has no such service."""
    for service in ("ledger.v1.write", "ledger.v1.read", "ledger.v1.PaymentService"):
        ran = run_ledger("healthcheck", "--service", service, LEDGER_SERVER=server.address)
        assert (ran.returncode, ran.stdout) == (0, f"ledger: {service} at {server.address} is SERVING\n")
    ran = run_ledger("healthcheck", "--server", server.address, "--service", "ledger.v2.write")
    assert ran.returncode == 1
    assert ran.stderr == f"ledger: the server at {server.address} has no service ledger.v2.write\n"


def test_a_health_check_fails_where_nothing_listens() -> None:
    """In one line, with exit code 1: 2 is reserved where containers are checked."""
    ran = run_ledger("healthcheck", "--server", "127.0.0.1:1")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("ledger: no ledger answers at 127.0.0.1:1: is `ledger serve` running there?")
    assert len(ran.stderr.splitlines()) == 1


def test_a_health_check_fails_while_the_server_does_not_serve(
    client: Client, address: str, postgres: EmbeddedPostgres, data: Path
) -> None:
    """It answers, and says NOT_SERVING: its database is away."""
    os.kill(postmaster_of(data), signal.SIGKILL)
    eventually(lambda: health(client.channel, *WRITE, *READ) == {NOT_SERVING})
    for service in ("ledger.v1.write", "ledger.v1.read"):
        ran = run_ledger("healthcheck", "--server", address, "--service", service)
        assert (ran.returncode, ran.stdout) == (1, "")
        assert ran.stderr == f"ledger: {service} at {address} is NOT_SERVING\n"
    postgres.start()
    eventually(lambda: health(client.channel, *WRITE, *READ) == {SERVING})


# --- without a database ----------------------------------------------------------------------------------------------


def answer(client: Client, request: Any) -> Any:
    """The response, or how it was refused; before a deadline that is short."""
    try:
        return client(request, timeout=AT_ONCE_S)
    except grpc.RpcError as error:
        return refused_by(error)


def answer_if_any(client: Client, request: Any) -> Any:
    """The answer, or None where there was none before the deadline."""
    try:
        return client(request, timeout=AT_ONCE_S)
    except grpc.RpcError as error:
        late = isinstance(error, grpc.Call) and error.code() is StatusCode.DEADLINE_EXCEEDED
        return None if late else refused_by(error)


def test_without_a_database_commands_and_reads_are_unavailable_at_once(
    client: Client, postgres: EmbeddedPostgres, data: Path
) -> None:
    """Each call is answered, not kept waiting; health follows; all comes back with the database, and what was there."""
    paid = client(authorize("before~"))
    watching = HealthStub(client.channel).Watch(HealthCheckRequest(service="ledger.v1.write"))
    assert next(watching).status == SERVING

    os.kill(postmaster_of(data), signal.SIGKILL)

    away = Refused(StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE", {})
    unread = Refused(StatusCode.UNAVAILABLE, "READS_UNAVAILABLE", {})
    # The processes of a server that was killed may go on for a moment, and what they record counts. A command that
    # was in their hands at the end is answered late: first it is looked for in the log.
    eventually(lambda: answer_if_any(client, opening("last~")) == away)
    assert next(watching).status == NOT_SERVING
    eventually(lambda: health(client.channel, *WRITE, *READ) == {NOT_SERVING})
    for _ in range(20):
        assert answer(client, authorize("during~")) == away
        assert answer(client, batch(opening("a~"), opening("b~"))) == away
        assert answer(client, authorize("during~", validate_only=True)) == away
    assert answer(client, authorize("", 0)).reason == "INVALID_REQUEST"
    assert answer(client, GetAccountRequest(account_id="alice~")) == unread
    assert answer(client, GetPaymentRequest(payment_id="before~", min_position=paid.position)) == unread

    postgres.start()

    assert next(watching).status == SERVING
    watching.cancel()
    eventually(lambda: health(client.channel, *WRITE, *READ) == {SERVING})
    assert client(authorize("before~")).position == paid.position
    assert not client(authorize("during~")).replayed
    assert client.balance("alice~").reserved == 20_00


def test_who_follows_the_log_is_told_that_the_database_is_away_and_can_go_on(
    client: Client, postgres: EmbeddedPostgres, data: Path
) -> None:
    """With a status that may be repeated; and from the next position on nothing is missing and nothing comes twice."""
    start = client.position + 1
    asked = {"from_position": start, "streams": [f"account/a{number}~" for number in range(20)]}
    call = client.stream(ReadEventsRequest(follow=True, **asked))
    client.do(*(opening(f"a{number}~") for number in range(10)))
    seen: list[Any] = []
    while len(seen) < 10:
        response = next(call)
        seen += response.events

    os.kill(postmaster_of(data), signal.SIGKILL)
    with pytest.raises(grpc.RpcError) as raised:
        list(call)
    assert refused_by(raised.value) == Refused(StatusCode.UNAVAILABLE, "READS_UNAVAILABLE", {})
    postgres.start()
    eventually(lambda: health(client.channel, *WRITE, *READ) == {SERVING})

    asked["from_position"] = response.position + 1
    call = client.stream(ReadEventsRequest(follow=True, **asked))
    client.do(*(opening(f"a{number}~") for number in range(10, 20)))
    while len(seen) < 20:
        seen += next(call).events
    call.cancel()
    assert [each.stream for each in seen] == [client.name(f"account/a{number}~") for number in range(20)]


def test_a_disk_that_is_full_records_nothing(client: Client, postgres: EmbeddedPostgres) -> None:
    """The server is told so by its database, and tells the client: nothing of it is done, and no id is used up."""
    full = """
        CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE 'no space left' USING ERRCODE = 'disk_full'; END $$;
        CREATE TRIGGER full_disk BEFORE INSERT ON events FOR EACH STATEMENT EXECUTE FUNCTION full_disk();
    """
    failed = Refused(StatusCode.UNAVAILABLE, "NOT_RECORDED", {})
    with psycopg.connect(postgres.dsn, autocommit=True, options=f"-c search_path=ledger_{client.ledger}") as connection:
        connection.execute(full)
        try:
            assert answer(client, authorize("p~")) == failed
            assert result_of(answer(client, batch(opening("a~"), opening("b~"))), 1) == failed
        finally:
            connection.execute("DROP FUNCTION full_disk CASCADE")

    done = client.do(authorize("p~"), opening("a~"), opening("b~"))
    assert not [each for each in done if each.replayed]


def test_a_database_that_dies_with_a_command_in_its_hands_leaves_it_open(
    client: Client, postgres: EmbeddedPostgres, data: Path
) -> None:
    """While it is away nobody knows what came of the command: the client is told so, and the same ids tell later."""
    with turn_held(postgres.dsn, client.ledger) as until_somebody_waits:
        call = client.start(authorize("p~"))
        until_somebody_waits()
        os.kill(postmaster_of(data), signal.SIGKILL)
        unknown = refused_by(call.exception())
    postgres.start()
    eventually(lambda: health(client.channel, *WRITE, *READ) == {SERVING})

    assert unknown == Refused(StatusCode.UNAVAILABLE, "OUTCOME_UNKNOWN", {})
    assert client(authorize("p~")).payment.state == PAYMENT_STATE_AUTHORIZED
    assert client.balance("alice~").reserved == 10_00


class Payer(Thread):
    """A client that authorizes payments of 1, one after the other, each sent again until it is answered."""

    def __init__(self, server: LedgerServer, tag: str, number: int) -> None:
        super().__init__(daemon=True)
        self._server, self._tag, self._number = server, tag, number
        self._enough = Event()
        self.positions: dict[str, int] = {}
        """Where each payment was recorded, as answered."""
        self.refused: set[tuple[StatusCode, str]] = set()

    def run(self) -> None:
        with client_of(self._server.address, self._server.ledger) as client:
            client.tag = self._tag
            while not self._enough.is_set():
                payment_id = f"p{self._number}-{len(self.positions)}~"
                while payment_id not in self.positions:
                    self._pay(client, payment_id)

    def finish(self) -> dict[str, int]:
        self._enough.set()
        self.join()
        return self.positions

    def _pay(self, client: Client, payment_id: str) -> None:
        try:
            response = client(authorize(payment_id, 1))
        except grpc.RpcError as error:
            self.refused.add(refused_by(error)[:2])
        else:
            assert response.payment.state == PAYMENT_STATE_AUTHORIZED
            self.positions[payment_id] = response.position


def test_an_embedded_postgres_that_is_killed_comes_back_with_everything_acknowledged(
    tmp_path: Path, tag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 of the postmaster under load, twice: the server starts it again, and nothing is lost or done twice."""
    monkeypatch.delenv("LEDGER_TEST_DSN", raising=False)
    with serving(tmp_path) as server, client_of(server.address, server.ledger) as client:
        client.tag = tag
        eventually(lambda: health(client.channel, *WRITE) == {SERVING})
        client.do(opening("bank~", kind=ACCOUNT_KIND_EXTERNAL), opening("alice~"), opening("shop~"))
        client.do(transfer("fund~", leg("bank~", "alice~", 1_000_000)))
        payers = [Payer(server, tag, number) for number in range(4)]
        for each in payers:
            each.start()
        for _ in range(2):
            until_each_has_paid(payers, 10)
            killed = postmaster_of(tmp_path / "data")
            os.kill(killed, signal.SIGKILL)
            until_each_has_paid(payers, 10)
            assert postmaster_of(tmp_path / "data") != killed
        acknowledged = {key: position for each in payers for key, position in each.finish().items()}

        eventually(lambda: health(client.channel, *WRITE, *READ) == {SERVING})
        again = client(batch(*(authorize(payment_id, 1) for payment_id in acknowledged)))
        replays = [each.authorize_payment for each in again.results]
        assert all(each.replayed for each in replays)
        assert [each.position for each in replays] == list(acknowledged.values())
        assert client.balance("alice~").reserved == len(acknowledged)
        refused = set().union(*(each.refused for each in payers))
        assert {code for code, _ in refused} <= {StatusCode.UNAVAILABLE}, refused
        check_log(running_dsn(tmp_path / "data"), server.ledger)


def until_each_has_paid(payers: list[Payer], more: int) -> None:
    before = [len(each.positions) for each in payers]
    eventually(lambda: all(len(each.positions) >= paid + more for each, paid in zip(payers, before, strict=True)))


# --- a database that does not come to an end --------------------------------------------------------------------------


def test_writes_that_hang_are_told_by_health_metrics_and_log(
    postgres: EmbeddedPostgres, tmp_path: Path, tag: str
) -> None:
    """The synchronous standby is gone: no commit ends. Reads go on; writes do, by themselves, when one is there."""
    ledger, log = f"hung_{tag}", tmp_path / "log"
    settings = {"LEDGER_METRICS_LISTEN": "127.0.0.1:0", "LEDGER_LOG_FORMAT": "json"}

    def lines(event: str) -> list[dict[str, Any]]:
        return [line for line in map(json.loads, log.read_text().splitlines()) if line["event"] == event]

    with (
        served(postgres, ledger, tmp_path, **settings) as address,
        client_of(address, ledger) as client,
        psycopg.connect(postgres.dsn, autocommit=True) as session,
    ):
        (metrics,) = [each["address"] for each in lines("metrics_served")]
        client(opening("alice~"))
        assert client(GetAccountRequest(account_id="alice~", min_position=client.position))
        eventually(lambda: health(client.channel, *WRITE, *READ) == {SERVING})
        assert scrape(metrics).value("ledger_commit_age_seconds") < STALL_S
        calls = [client.start(opening("bob0~"), timeout=None)]

        def writes_hang() -> bool:
            if calls[-1].done():  # The setting takes a moment to be in force.
                calls.append(client.start(opening(f"bob{len(calls)}~"), timeout=None))
            return health(client.channel, *WRITE) == {NOT_SERVING}

        session.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        session.execute("SELECT pg_reload_conf()")
        try:
            eventually(writes_hang)
            now = scrape(metrics)
            assert now.value("ledger_commit_age_seconds") > STALL_S
            assert now.value("ledger_serving", service="ledger.v1.write") == 0
            assert health(client.channel, *READ) == {SERVING}
            assert client(GetAccountRequest(account_id="alice~")).account.version == 1
            assert [each["level"] for each in lines("commands_wait_for_database")] == ["error"]
            assert not calls[-1].done()
        finally:
            session.execute("ALTER SYSTEM RESET synchronous_standby_names")
            session.execute("SELECT pg_reload_conf()")
        assert not calls[-1].result().replayed
        eventually(lambda: health(client.channel, *WRITE, *READ) == {SERVING})
        assert scrape(metrics).value("ledger_commit_age_seconds") < STALL_S
    assert len(lines("commands_wait_for_database")) == 1
    (over,) = lines("commands_wait_no_more")
    assert over["level"] == "info"
    assert over["waited_s"] >= STALL_S


# --- a follower that stops -------------------------------------------------------------------------------------------


def test_a_stopped_follower_stops_reads_and_not_writes(client: Client, postgres: EmbeddedPostgres) -> None:
    """An event that can't be applied is never skipped: reads say so, health of reads too, and writes go on."""
    applied = client(authorize("before~")).position
    assert client.balance("alice~").reserved == 10_00
    poison = """
        INSERT INTO events (stream, version, position, topic, state)
        SELECT 'account/poison', 1, max(position) + 1, 'NobodyKnows', '{"command_position": 1}' FROM events
    """
    with psycopg.connect(postgres.dsn, options=f"-c search_path=ledger_{client.ledger}") as connection:
        connection.execute(poison)

    eventually(lambda: health(client.channel, *READ) == {NOT_SERVING})

    written = client(authorize("after~"))
    assert written.payment.state == PAYMENT_STATE_AUTHORIZED
    assert written.position == applied + 3
    assert client(authorize("after~")).replayed
    stopped = Refused(StatusCode.UNAVAILABLE, "READ_MODEL_STOPPED", {"position": str(applied)})
    assert answer(client, GetAccountRequest(account_id="alice~")) == stopped
    assert answer(client, GetPaymentRequest(payment_id="before~")) == stopped
    assert answer(client, GetPaymentRequest(payment_id="before~", min_position=applied)).position == applied
    beyond = answer(client, GetPaymentRequest(payment_id="after~", min_position=written.position))
    assert beyond.code is StatusCode.UNAVAILABLE
    assert beyond.reason in ("READ_MODEL_BEHIND", "READ_MODEL_STOPPED")
    # A command that can't be decided for it is a mistake of ours to the client, and only that one.
    assert answer(client, freeze("poison")) == Refused(StatusCode.INTERNAL, "INTERNAL", {})
    assert not client(authorize("last~")).replayed
    assert health(client.channel, *WRITE) == {SERVING}
    assert health(client.channel, *READ) == {NOT_SERVING}


# --- read models that are behind, and a clock that is off ------------------------------------------------------------


def test_read_models_that_are_too_far_behind_stop_reads_and_not_writes(
    postgres: EmbeddedPostgres, tmp_path: Path, tag: str
) -> None:
    """The follower hangs: after LEDGER_READ_LAG_MOST_S health says so of reads, until it has caught up."""
    ledger = f"late_{tag}"
    with (
        served(postgres, ledger, tmp_path, LEDGER_READ_LAG_MOST_S="0.4") as address,
        client_of(address, ledger) as client,
        psycopg.connect(postgres.dsn, options=f"-c search_path=ledger_{ledger}") as holder,
    ):
        client.do(opening("bank~", kind=ACCOUNT_KIND_EXTERNAL), opening("alice~"))
        opened = client(opening("shop~"))
        assert client(GetAccountRequest(account_id="shop~", min_position=opened.position))
        eventually(lambda: health(client.channel, *WRITE, *READ) == {SERVING})

        holder.execute("SELECT FROM checkpoints FOR UPDATE")
        client.do(opening("late~"))
        eventually(lambda: health(client.channel, *READ) == {NOT_SERVING})

        assert health(client.channel, *WRITE) == {SERVING}
        written = client(opening("later~"))
        assert answer(client, GetAccountRequest(account_id="alice~")).account.account_id == client.name("alice~")
        behind = answer(client, GetAccountRequest(account_id="later~", min_position=written.position))
        assert behind.reason == "READ_MODEL_BEHIND"

        holder.rollback()
        eventually(lambda: health(client.channel, *READ) == {SERVING})
        assert client(GetAccountRequest(account_id="later~", min_position=written.position))


def test_health_of_reads_follows_a_follower_in_another_process(
    postgres: EmbeddedPostgres, tmp_path: Path, tag: str
) -> None:
    """Without `ledger follow` beside it reads of a server that doesn't follow grow old; with it they are new again."""
    ledger = f"apart_{tag}"
    variables = {"LEDGER_FOLLOWER": "false", "LEDGER_READ_LAG_MOST_S": "0.4"}
    following = [*LEDGER, "follow", "--dsn", postgres.dsn, "--ledger", ledger]
    with (
        served(postgres, ledger, tmp_path, **variables) as address,
        client_of(address, ledger) as client,
    ):
        eventually(lambda: health(client.channel, *WRITE, *READ) == {SERVING})
        client.do(opening("alice~"))
        eventually(lambda: health(client.channel, *READ) == {NOT_SERVING})
        assert health(client.channel, *WRITE) == {SERVING}

        with subprocess.Popen(following, stdout=subprocess.DEVNULL, env=environment()) as follower:
            eventually(lambda: health(client.channel, *READ) == {SERVING})
            follower.terminate()
        client.do(opening("bob~"))
        eventually(lambda: health(client.channel, *READ) == {NOT_SERVING})
        assert health(client.channel, *WRITE) == {SERVING}
        status = ("projections", "status", "--dsn", postgres.dsn, "--ledger", ledger, "--lag-most")
        assert run_ledger(*status, 600).returncode == 0
        late = run_ledger(*status, 0.4)
        assert late.returncode == 1
        assert re.fullmatch(r"ledger: read_models is [\d.]+ s behind\n", late.stderr)


def test_a_clock_that_is_off_stops_writes_and_not_reads(postgres: EmbeddedPostgres, tmp_path: Path, tag: str) -> None:
    """Further off the database's than 5 s, either way; when it is right again, so are writes."""
    ledger, off_s = f"clock_{tag}", tmp_path / "off_s"
    off_s.write_text("0")
    with (
        served(postgres, ledger, tmp_path, sys.executable, CLOCK_SERVER, off_s) as address,
        client_of(address, ledger) as client,
    ):
        client.do(opening("alice~"))
        eventually(lambda: health(client.channel, *WRITE, *READ) == {SERVING})
        for wrong_s in ("-6", "6"):
            off_s.write_text(wrong_s)
            eventually(lambda: health(client.channel, *WRITE) == {NOT_SERVING})
            assert answer(client, opening("bob~")).reason == "WRITES_STOPPED"
            assert health(client.channel, *READ) == {SERVING}
            assert client(GetAccountRequest(account_id="alice~", min_position=client.position))
            off_s.write_text("0")
            eventually(lambda: health(client.channel, *WRITE) == {SERVING})
        assert not client(opening("bob~")).replayed


# --- a log that lost its tail ----------------------------------------------------------------------------------------


def test_a_log_that_lost_its_tail_stops_writes(postgres: EmbeddedPostgres, tmp_path: Path, tag: str) -> None:
    """What was acknowledged is gone, as from an old backup: nothing is written over the gap, and health says so."""
    with served(postgres, f"cut_{tag}", tmp_path) as address, client_of(address, f"cut_{tag}") as client:
        client.do(opening("bank~", kind=ACCOUNT_KIND_EXTERNAL), opening("alice~"))
        head = client.position
        with psycopg.connect(postgres.dsn, options=f"-c search_path=ledger_cut_{tag}") as connection:
            connection.execute("ALTER TABLE events DISABLE TRIGGER events_are_never_changed")
            connection.execute("DELETE FROM events WHERE position = %s", [head])
            connection.execute("ALTER TABLE events ENABLE TRIGGER events_are_never_changed")

        why = {"why": f"the log ends at position {head - 1}, and this server has seen {head}"}
        stopped = Refused(StatusCode.UNAVAILABLE, "WRITES_STOPPED", why)
        assert answer(client, opening("shop~")) == stopped
        assert answer(client, batch(opening("alice~"), validate_only=True)) == stopped
        eventually(lambda: health(client.channel, *WRITE) == {NOT_SERVING})
        with psycopg.connect(postgres.dsn, options=f"-c search_path=ledger_cut_{tag}") as connection:
            assert connection.execute("SELECT max(position) FROM events").fetchone() == (head - 1,)


def test_a_client_may_ask_now_and_then_whether_the_connection_is_still_there(server: LedgerServer) -> None:
    """By pings, as gRPC's keepalive sends them: every ten seconds, here every second, also while it calls nothing."""
    host, port = server.address.split(":")
    pings, came, rest = [bytes([number] * 8) for number in range(5)], [], b""
    with socket.create_connection((host, int(port)), timeout=HAPPENS_WITHIN_S) as connection:
        connection.sendall(frames.PREFACE + frames.settings({}))
        for ping in pings:
            connection.settimeout(PING_LEAST_MS / 1_000 + 0.05)
            with suppress(TimeoutError):  # Until nothing has come for so long.
                while data := connection.recv(65_536):
                    found, rest = frames.split(rest + data)
                    came += found
            connection.sendall(frames.frame(frames.PING, 0, 0, ping))
        connection.settimeout(HAPPENS_WITHIN_S)
        while (frames.PING, frames.ACK, 0, pings[-1]) not in came:
            data = connection.recv(65_536)
            assert data, "the server hung up"
            found, rest = frames.split(rest + data)
            came += found
    assert frames.GOAWAY not in {kind for kind, *_ in came}
