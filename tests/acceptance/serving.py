"""A server as its users run it: the process `ledger serve`."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import grpc
import psycopg

from ledger.audit.keys import KeyFiles
from ledger.audit.note import PublicKey
from ledger.v1.account_pb2 import Account, GetAccountRequest
from ledger.v1.account_pb2_grpc import AccountServiceStub

sys.path.append(str(Path(__file__).parents[1] / "integration"))

from checks import remove_ledger

ROOT: Final = Path(__file__).parents[2]
LEDGER: Final = (sys.executable, "-m", "ledger.cli")

STOPS_WITHIN_S: Final = 15.0
HAPPENS_WITHIN_S: Final = 60.0


def run_ledger(*arguments: object, **settings: str) -> subprocess.CompletedProcess[str]:
    """`ledger` with these arguments, to its end."""
    command = [*LEDGER, *map(str, arguments)]
    env = environment() | settings
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def free_port() -> int:
    """A port that nobody listens on, below those that Linux gives to whoever asks for any: it is free later as well."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def environment() -> dict[str, str]:
    """This process's environment without settings of a ledger: a test says itself what it runs."""
    return {name: value for name, value in os.environ.items() if not name.startswith("LEDGER_")}


def eventually(holds: Callable[[], bool]) -> None:
    """Look until it holds."""
    give_up = time.monotonic() + HAPPENS_WITHIN_S
    while not holds():
        assert time.monotonic() < give_up, "it did not happen"
        time.sleep(0.005)


class LedgerServer:
    """`ledger serve`, on a Postgres of its own in a folder, or on the one that is given or LEDGER_TEST_DSN names."""

    def __init__(self, folder: Path, dsn: str | None = None, ledger: str | None = None, **settings: str) -> None:
        """`settings` are more of its environment."""
        self._folder = folder
        self._settings = settings
        self._given = dsn or os.environ.get("LEDGER_TEST_DSN")
        self._leaves_ledger = dsn is not None
        # On a Postgres that others use too, the ledger is one that nobody else has.
        self.ledger = ledger or (f"test_{secrets.token_hex(6)}" if self._given else "main")
        self.address = "127.0.0.1:0"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start, or start again at the same address, and wait until it is ready."""
        if self._given and not self._key_files.path.exists():
            self._key_files.make()
        if self._given:
            migrated = run_ledger("migrate", *self.where, "--ledger", self.ledger)
            assert migrated.returncode == 0, migrated.stderr
        command = [*LEDGER, "serve", "--listen", self.address, "--ledger", self.ledger, *self.where]
        with (self._folder / "server.log").open("a") as log:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=self._environment(), stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self._process.stdout is not None
        ready = self._process.stdout.readline()
        assert ready.startswith("ledger: serving on 127.0.0.1:"), self.log
        self.address = ready.split()[3]

    @property
    def public_key(self) -> PublicKey:
        """What an auditor of this server was given."""
        return self._key_files.key().public

    def rotate_key(self) -> None:
        """What `ledger audit rotate-key` does: the next head introduces another key."""
        self._key_files.prepare_next()

    @property
    def _key_files(self) -> KeyFiles:
        return KeyFiles(
            self._folder / "tree.key" if self._given else self._folder / "data/tree.key", f"ledger/{self.ledger}"
        )

    def _environment(self) -> dict[str, str]:
        key = {"LEDGER_TREE_KEY": str(self._key_files.path)} if self._given else {}
        return environment() | key | self._settings

    def stop(self) -> None:
        """SIGTERM: it has to drain and to end well."""
        assert self._process is not None
        with self._process as process:
            process.send_signal(signal.SIGTERM)
            assert process.wait(STOPS_WITHIN_S) == 0, self.log

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            with self._process as process:
                process.kill()

    def remove(self) -> None:
        """Leave nothing behind on a Postgres that LEDGER_TEST_DSN names."""
        if self._given and not self._leaves_ledger:
            remove_ledger(self._given, self.ledger)

    @property
    def log(self) -> str:
        return (self._folder / "server.log").read_text()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def where(self) -> list[str]:
        """How a command finds its database."""
        return ["--dsn", self._given] if self._given else ["--data-dir", str(self._folder / "data")]

    @property
    def is_given(self) -> bool:
        """Whether it is on a Postgres that was there before."""
        return self._given is not None

    def dsn(self, role: str = "owner") -> str:
        """The connection string for a role; on a Postgres that was given it is the one that was given."""
        return self._given or run_ledger("dsn", "--data-dir", self._folder / "data", "--role", role).stdout.strip()

    @contextmanager
    def database(self) -> Iterator[psycopg.Connection[Any]]:
        """A connection whose tables are the ledger's."""
        with psycopg.connect(self.dsn(), options=f"-c search_path=ledger_{self.ledger} -c timezone=UTC") as connection:
            yield connection

    @contextmanager
    def channel(self) -> Iterator[grpc.Channel]:
        with grpc.insecure_channel(self.address) as channel:
            yield channel

    def account(self, account_id: str, min_position: int = 0) -> Account | None:
        """An account as reads know it, or None if they don't."""
        request = GetAccountRequest(ledger=self.ledger, account_id=account_id, min_position=min_position)
        with self.channel() as channel:
            try:
                return AccountServiceStub(channel).GetAccount(request, wait_for_ready=True).account
            except grpc.RpcError as error:
                if isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.NOT_FOUND:
                    return None
                raise


@contextmanager
def serving(folder: Path, dsn: str | None = None, ledger: str | None = None, **settings: str) -> Iterator[LedgerServer]:
    """A server that has to end well."""
    server = LedgerServer(folder, dsn, ledger, **settings)
    try:
        server.start()
        yield server
    except BaseException:
        server.kill()
        raise
    else:
        server.stop()
    finally:
        server.remove()
