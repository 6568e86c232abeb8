"""Logs: who asked for what can be told from them, and no secret can, whatever goes wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import grpc
import psutil
import psycopg
import pytest
from serving import LEDGER, ROOT, STOPS_WITHIN_S, environment, eventually, run_ledger
from test_api import freeze, opening
from test_health import NOT_SERVING, SERVING, WRITE, client_of, health, postmaster_of, served

from ledger.embedded import EmbeddedPostgres
from ledger.v1.account_pb2 import GetAccountRequest

SECRET: Final = "s3cr3t-of-this-test"
TOKEN: Final = "lgr_0123456789ab_" + "Zx9-" * 11
METADATA: Final = [("authorization", f"Bearer {TOKEN}"), ("x-correlation-id", "order-7")]


def lines_of(log: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.splitlines()]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    """Where `served` logs to."""
    return tmp_path / "log"


def test_the_log_of_a_server_through_errors_tells_no_secret(tmp_path: Path, log: Path, tag: str) -> None:
    """A database that is killed, one that refuses, an event that nobody knows; all logged, at the lowest level."""
    folder, ledger = tmp_path / "postgres", f"log_{tag}"
    with EmbeddedPostgres(folder) as postgres:
        password = psycopg.conninfo.conninfo_to_dict(postgres.dsn)["password"]
        settings = {"LEDGER_LOG_LEVEL": "debug", "LEDGER_LOG_FORMAT": "json"}
        with served(postgres, ledger, tmp_path, **settings) as address, client_of(address, ledger) as client:
            client.start(opening("alice~"), metadata=METADATA).result()
            with psycopg.connect(postgres.dsn, options=f"-c search_path=ledger_{ledger}") as connection:
                connection.execute(
                    "INSERT INTO events (stream, version, position, topic, state)"
                    " SELECT 'account/poison', 1, max(position) + 1, %s, '{}' FROM events",
                    [f"postgresql://u:{SECRET}@h {TOKEN}"],
                )
            with pytest.raises(grpc.RpcError):
                client.start(freeze("poison"), metadata=METADATA).result()
            eventually(lambda: "follower_stopped" in log.read_text())
            os.kill(postmaster_of(folder), signal.SIGKILL)
            eventually(lambda: health(client.channel, *WRITE) == {NOT_SERVING})
            with pytest.raises(grpc.RpcError):
                client.start(GetAccountRequest(account_id="alice~"), metadata=METADATA).result()
            postgres.start()
            eventually(lambda: health(client.channel, *WRITE) == {SERVING})

    text = log.read_text()
    for secret in (password, SECRET, TOKEN):
        assert secret not in text
    events = {each["event"] for each in lines_of(text)}
    assert {"serving_writes", "follower_stopped", "call_ended", "draining"} <= events
    assert "Traceback" in text
    assert "lgr_0123456789ab_***" in text


def test_a_line_about_a_call_bears_its_request_id_ledger_and_actor(tmp_path: Path, log: Path, tag: str) -> None:
    """The caller's own id where it gave one; of writes and reads, answered and refused."""
    ledger = f"log_{tag}"
    with (
        EmbeddedPostgres(tmp_path / "postgres") as postgres,
        served(postgres, ledger, tmp_path, LEDGER_LOG_LEVEL="debug", LEDGER_LOG_FORMAT="json") as address,
        client_of(address, ledger) as client,
    ):
        client.start(opening("alice~"), metadata=METADATA).result()
        with pytest.raises(grpc.RpcError):
            client.start(GetAccountRequest(account_id="nobody~"), metadata=[("x-correlation-id", "look-8")]).result()
        client(opening("bob~"))

    ended = [each for each in lines_of(log.read_text()) if each["event"] == "call_ended"]
    assert [(each["rpc"], each["code"], each["ledger"]) for each in ended] == [
        ("OpenAccount", "OK", ledger),
        ("GetAccount", "NOT_FOUND", ledger),
        ("OpenAccount", "OK", ledger),
    ]
    ids = [each["correlation_id"] for each in ended]
    assert ids[:2] == ["order-7", "look-8"]
    assert ids[2] not in ids[:2]
    assert {each["actor"] for each in ended} == {"anonymous"}
    assert all(each["took_s"] > 0 for each in ended)


def test_a_ledger_that_a_client_makes_up_does_nothing_to_a_terminal(tmp_path: Path, log: Path, tag: str) -> None:
    """What moves a cursor, or turns the direction of text around, stands in lines for people as an escape."""
    ledger = f"log_{tag}"
    with (
        EmbeddedPostgres(tmp_path / "postgres") as postgres,
        served(postgres, ledger, tmp_path, LEDGER_LOG_LEVEL="debug") as address,
        client_of(address, ledger) as client,
        pytest.raises(grpc.RpcError),
    ):
        client.start(GetAccountRequest(ledger="\x1b[2K\u202eother", account_id="alice~")).result()
    assert "ledger=\\x1b[2K\\u202eother" in log.read_text()
    assert "\x1b" not in log.read_text()


def test_payments_go_on_though_no_line_can_be_logged(tmp_path: Path, log: Path, tag: str) -> None:
    """On a full disk every line fails, in every thread; also those about a database that goes and comes back."""
    folder, ledger = tmp_path / "postgres", f"log_{tag}"
    log.symlink_to("/dev/full")
    with (
        EmbeddedPostgres(folder) as postgres,
        served(postgres, ledger, tmp_path, LEDGER_LOG_LEVEL="debug") as address,
        client_of(address, ledger) as client,
    ):
        client(opening("alice~"))
        os.kill(postmaster_of(folder), signal.SIGKILL)
        eventually(lambda: health(client.channel, *WRITE) == {NOT_SERVING})
        postgres.start()
        eventually(lambda: health(client.channel, *WRITE) == {SERVING})
        client(opening("bob~"))
        assert client(GetAccountRequest(account_id="bob~", min_position=client.position)).account.version == 1


def test_a_server_that_was_started_without_stderr_serves(tmp_path: Path) -> None:
    """Nor is anything that it opens taken for stderr, and written to."""
    command = [*LEDGER, "serve", "--data-dir", str(tmp_path / "data"), "--listen", "127.0.0.1:0"]
    settings = environment() | {"LEDGER_LOG_LEVEL": "debug"}
    with subprocess.Popen(
        ["sh", "-c", 'exec "$@" 2>&-', "sh", *command], stdout=subprocess.PIPE, cwd=ROOT, env=settings, text=True
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline().startswith("ledger: serving on ")
            programs = [process.pid, *(each.pid for each in psutil.Process(process.pid).children())]
            assert len(programs) >= 3  # The follower and Postgres, which has a log of its own.
            written_to = [Path(f"/proc/{each}/fd/2").readlink() for each in programs]
            assert sorted({each.name for each in written_to}) == ["null", "postgres.log"]
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(STOPS_WITHIN_S) == 0


@pytest.mark.parametrize(
    "dsn",
    [
        f"postgresql://ledger:{SECRET}@127.0.0.1:1/ledger",
        f"host=127.0.0.1 port=1 user=ledger password={SECRET}",
        f"postgresql://ledger:{SECRET}@127.0.0.1:port/ledger",
        f"password={SECRET} nonsense",
    ],
    ids=["a URL", "key and value", "no port", "malformed"],
)
@pytest.mark.parametrize("command", ["serve", "follow", "migrate"])
def test_a_bad_connection_string_is_not_repeated(command: str, dsn: str, tmp_path: Path) -> None:
    """Whatever is wrong with it: one line that says what, without the password."""
    ran = run_ledger(command, LEDGER_DSN=dsn, LEDGER_LOG_LEVEL="debug", LEDGER_LISTEN="127.0.0.1:0")
    assert ran.returncode in (2, 3)
    assert ran.stderr.startswith("ledger: ")
    assert SECRET not in ran.stdout + ran.stderr


@pytest.mark.parametrize("output", ["console", "json"])
def test_a_traceback_shows_no_local_variables(output: str) -> None:
    """They hold what messages don't: the connection string, first of all."""
    program = f"""
from ledger import log_output
import structlog
log_output.configure("info", {output!r})
def fail(dsn):
    raise RuntimeError("it broke")
try:
    fail("postgresql://u:" + "{SECRET[::-1]}"[::-1] + "@h")
except RuntimeError:
    structlog.get_logger().exception("broke", dsn="postgresql://u:" + "{SECRET[::-1]}"[::-1] + "@h")
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "it broke" in ran.stderr
    assert "Traceback" in ran.stderr
    assert SECRET not in ran.stderr
    assert "postgresql://u:***@h" in ran.stderr
