"""The command line: what it prints, how it ends, and that what it started ends with it."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import grpc
import psutil
import psycopg
import pytest
from grpc import StatusCode
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from psycopg import sql
from serving import HAPPENS_WITHIN_S, ROOT, environment, eventually, free_port
from test_api import Client, authorize, batch, check_log, leg, opening, refused_by, transfer

from bench import frames
from ledger import embedded, roles
from ledger.cli import prepare
from ledger.embedded import EmbeddedPostgres, running_dsn
from ledger.settings import Settings
from ledger.v1.account_pb2 import ACCOUNT_KIND_EXTERNAL, GetAccountRequest
from ledger.v1.audit_pb2 import ReadEventsRequest
from ledger.v1.payment_pb2 import PAYMENT_STATE_AUTHORIZED, AuthorizePaymentRequest, AuthorizePaymentResponse

LEDGER: Final = Path(sys.executable).with_name("ledger")
"""The command as it is installed."""

STOPS_WITHIN_S: Final = 10.0
STARTS_WITHIN_S: Final = 60.0

SETTINGS: Final = {f"LEDGER_{name.upper()}": field for name, field in Settings.model_fields.items()}


class Run:
    """`ledger` with some arguments, as a process in a folder of its own."""

    def __init__(self, arguments: Sequence[object], folder: Path, env: dict[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._out, self._err = (folder / f"{secrets.token_hex(4)}.{name}" for name in ("out", "err"))
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                [str(LEDGER), *map(str, arguments)], cwd=folder, env=environment() | env, stdout=out, stderr=err
            )

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    @property
    def address(self) -> str:
        """Where it serves, once it says so."""
        return self._line("ledger: serving on ").split()[3]

    def until_following(self) -> None:
        self._line("ledger: following ledger ")

    def end(self, within_s: float = STARTS_WITHIN_S) -> int:
        """The exit code."""
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it did not end within {within_s} s: {self.err}")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit code after a signal, within the time that it may take."""
        self.process.send_signal(number)
        return self.end(STOPS_WITHIN_S)

    @property
    def complaint(self) -> str:
        """The one line that it ended with."""
        return complaint_in(self.err)

    def _line(self, start: str) -> str:
        eventually(lambda: self.process.poll() is not None or (self.out.startswith(start) and "\n" in self.out))
        assert self.out.startswith(start), self.err
        return self.out.splitlines()[0]


def complaint_in(err: str) -> str:
    """The one line on stderr, which stands alone but for lines of the log."""
    lines = [line for line in err.splitlines() if not re.match(r"\d{4}-\d\d-\d\dT|\{", line)]
    assert len(lines) == 1, err
    assert lines[0].startswith("ledger: ")
    return lines[0]


class Ended(NamedTuple):
    """What came of a command."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        return complaint_in(self.err)


FORKS: Final = """
import json, os, signal, sys
from ledger import cli, roles, server

for line in sys.stdin:
    folder, arguments, env = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(env)
        for number, name in ((0, "/dev/null"), (1, "out"), (2, "err")):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), number)
        sys.argv = ["ledger", *arguments]
        signal.alarm(60)
        cli.main()
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Shell:
    """Runs commands to their end, each in a process that has its imports behind it: they take most of a second."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._process = subprocess.Popen(
            [sys.executable, "-c", FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, *arguments: object, folder: Path | None = None, **env: str) -> Ended:
        """What came of `ledger` with these arguments. Nothing that it says may look like a traceback."""
        folder = folder or self._home / secrets.token_hex(4)
        folder.mkdir(exist_ok=True)
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps([str(folder), list(map(str, arguments)), environment() | env]), file=self._process.stdin)
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        ended = Ended(code, *((folder / name).read_text() for name in ("out", "err")))
        (folder / "out").unlink()
        (folder / "err").unlink()
        assert "Traceback" not in ended.out + ended.err, ended.err
        return ended

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    shell = Shell(tmp_path_factory.mktemp("shell"))
    yield shell
    shell.close()


class Launch(Protocol):
    def __call__(self, *arguments: object, folder: Path | None = None, **env: str) -> Run: ...


@contextmanager
def launching(home: Path) -> Iterator[Launch]:
    """Start `ledger`. At the end all are killed that still run, and none may have shown a traceback."""
    runs: list[Run] = []

    def launch(*arguments: object, folder: Path | None = None, **env: str) -> Run:
        runs.append(Run(arguments, folder or home / "cwd", env))
        return runs[-1]

    try:
        yield launch
    finally:
        for run in runs:
            run.process.kill()
            run.process.wait()
    for run in runs:
        assert "Traceback" not in run.out + run.err, run.err


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    with launching(tmp_path) as launch:
        yield launch


@contextmanager
def client_of(run: Run, ledger: str = "main", tag: str | None = None) -> Iterator[Client]:
    """A client of a server that is well."""
    with grpc.insecure_channel(run.address) as channel:
        client = Client(channel, ledger, tag or secrets.token_hex(4))
        until_served(client)
        yield client


def until_served(client: Client) -> None:
    """Wait until the server says that it is well."""
    stub = HealthStub(client.channel)
    eventually(lambda: stub.Check(HealthCheckRequest(), timeout=10).status == HealthCheckResponse.SERVING)


def fund(client: Client) -> None:
    client.do(opening("bank~", kind=ACCOUNT_KIND_EXTERNAL), opening("alice~"), opening("shop~"))
    client.do(transfer("fund~", leg("bank~", "alice~", 100_00)))


def processes_on(folder: Path) -> list[int]:
    """The Postgres processes of a data folder: its server by the command line, the server's own by their parent."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if str(folder / "postgres") in command:
            found.append(process.pid)
    return found


# --- one running server, with a Postgres that others connect to, too --------------------------------------------------


class Running(NamedTuple):
    """A server on an embedded Postgres that nobody here harms."""

    run: Run
    data_dir: Path
    dsn: str


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    home = tmp_path_factory.mktemp("running")
    with launching(home) as launch:
        run = launch("serve", "--listen", "127.0.0.1:0", "--data-dir", home / "data")
        assert run.address
        yield Running(run, home / "data", running_dsn(home / "data"))
        assert run.stop() == 0
        assert not processes_on(home / "data")


@pytest.fixture
def ledger(running: Running, tag: str) -> Iterator[str]:
    """The name of a ledger that doesn't exist yet, on the running Postgres."""
    yield f"test_{tag}"
    with psycopg.connect(running.dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(f"ledger_test_{tag}")))


@pytest.fixture
def migrated(running: Running, ledger: str, shell: Shell) -> list[str]:
    """The arguments that name a ledger which is migrated."""
    where = ["--dsn", running.dsn, "--ledger", ledger]
    assert shell("migrate", *where).code == 0
    return where


# --- what can't be done, and how it is said --------------------------------------------------------------------------


class Refusal(NamedTuple):
    """A command that can't be done: its exit code, and what its one line has to say (a pattern)."""

    code: int
    says: str
    arguments: Sequence[str]
    env: dict[str, str] = {}


SESAME: Final = "sesame"
NOBODY: Final = f"postgresql://ledger:{SESAME}@127.0.0.1:1/ledger"

TLS: Final = {"LEDGER_TLS_CERT": "server.pem", "LEDGER_TLS_KEY": "server.key"}

REFUSALS: Final = [
    Refusal(2, "not a loopback address", ["serve", "--listen", "0.0.0.0:50051"]),
    Refusal(2, "not a loopback address", ["serve", "--listen", "192.168.1.1:50051"]),
    Refusal(2, "not a loopback address", ["serve", "--listen", "ledger.example:50051"]),
    Refusal(2, "not a loopback address", ["serve"], {"LEDGER_LISTEN": "[::]:50051"}),
    Refusal(2, "set LEDGER_TOKENS=true", ["serve", "--listen", "0.0.0.0:0"], TLS),
    Refusal(2, "set LEDGER_TLS_CERT and LEDGER_TLS_KEY", ["serve", "--listen", "0.0.0.0:0"], {"LEDGER_TOKENS": "1"}),
    Refusal(2, "LEDGER_TLS_CERT is set and LEDGER_TLS_KEY is not", ["serve"], {"LEDGER_TLS_CERT": "a"}),
    Refusal(2, "LEDGER_TLS_CLIENT_CA is set and LEDGER_TLS_CERT is not", ["serve"], {"LEDGER_TLS_CLIENT_CA": "a"}),
    Refusal(
        2,
        "LEDGER_CLIENT_CERT is set and LEDGER_CA is not",
        ["dsn"],
        {"LEDGER_CLIENT_CERT": "a", "LEDGER_CLIENT_KEY": "a"},
    ),
    Refusal(
        2,
        "LEDGER_TOKEN and LEDGER_TOKEN_FILE are both set",
        ["dsn"],
        {"LEDGER_TOKEN": SESAME, "LEDGER_TOKEN_FILE": "a"},
    ),
    Refusal(2, "LEDGER_RATE_BURST is set and LEDGER_RATE_PER_S is not", ["serve"], {"LEDGER_RATE_BURST": "10"}),
    Refusal(2, "^ledger: LEDGER_CALLS_MOST: input should be greater", ["serve"], {"LEDGER_CALLS_MOST": "0"}),
    Refusal(3, "can't read none.pem", ["account", "list"], {"LEDGER_CA": "none.pem"}),
    Refusal(
        3, "LEDGER_TOKEN gives is not a token.*Nothing was sent", ["account", "list"], {"LEDGER_TOKEN": f"a {SESAME}"}
    ),
    Refusal(3, "README.md has no certificate in PEM", ["account", "list"], {"LEDGER_CA": str(ROOT / "README.md")}),
    Refusal(3, "no address was found for that name", ["account", "list", "--server", "ledger.invalid:50051"]),
    Refusal(3, "can't read none.token", ["account", "list"], {"LEDGER_TOKEN_FILE": "none.token"}),
    Refusal(
        3,
        "not sent to ledger.example:1 without TLS",
        ["account", "list", "--server", "ledger.example:1"],
        {"LEDGER_TOKEN": SESAME},
    ),
    Refusal(2, "--listen: .*HOST:PORT", ["serve", "--listen", "nonsense"]),
    Refusal(2, "HOST:PORT", ["serve", "--listen", "127.0.0.1:99999"]),
    Refusal(2, "ledger's name", ["migrate", "--ledger", "Main"]),
    Refusal(2, "LEDGER_LOG_LEVEL: input should be 'debug'", ["dsn"], {"LEDGER_LOG_LEVEL": "loud"}),
    Refusal(2, "LEDGER_QUEUE_MOST_COMMANDS: ", ["dsn"], {"LEDGER_QUEUE_MOST_COMMANDS": "0"}),
    Refusal(2, "LEDGER_MEMORY_MOST_STREAMS: ", ["dsn"], {"LEDGER_MEMORY_MOST_STREAMS": "many"}),
    Refusal(2, "LEDGER_FOLLOWER: ", ["dsn"], {"LEDGER_FOLLOWER": "perhaps"}),
    Refusal(2, "--dsn", ["follow"]),
    Refusal(3, "reach the database", ["serve", "--dsn", NOBODY]),
    Refusal(3, "reach the database", ["migrate"], {"LEDGER_DSN": NOBODY}),
    Refusal(3, "reach the database", ["follow", "--dsn", NOBODY]),
    Refusal(3, "reach the database.*me@company", ["migrate", "--dsn", "postgresql:///x?host=/none/me@company"]),
    Refusal(2, "(?i)dsn|connection string", ["migrate", "--dsn", "nonsense"]),
    Refusal(2, "(?i)dsn|connection string", ["serve"], {"LEDGER_DSN": f"postgresql://ledger:{SESAME}@[127.0.0.1/x"}),
    Refusal(
        2,
        "--dsn: its host or port can't be one: .*%40",
        ["migrate", "--dsn", f"postgresql://ledger:open@{SESAME}@127.0.0.1:1/x"],
    ),
    Refusal(
        2,
        "LEDGER_DSN: its host or port can't be one: .*%2F",
        ["doctor"],
        {"LEDGER_DSN": f"postgresql://ledger:{SESAME}/x@127.0.0.1:1/x"},
    ),
    Refusal(3, "no embedded Postgres runs", ["dsn", "--data-dir", "none"]),
    Refusal(3, "cannot use the data folder", ["migrate", "--data-dir", "/dev/null/data"]),
    Refusal(3, "not a data folder of the ledger", ["migrate", "--data-dir", str(ROOT / "docs")]),
]


@pytest.mark.parametrize(
    "refusal", [pytest.param(each, id=f"{number}-{each.arguments[0]}") for number, each in enumerate(REFUSALS)]
)
def test_what_can_not_be_done_is_said_in_one_line(refusal: Refusal, shell: Shell) -> None:
    """With the exit code that the help explains, nothing on stdout, and no password."""
    ended = shell(*refusal.arguments, **refusal.env)

    assert re.search(refusal.says, ended.complaint), ended.complaint
    assert ended.code == refusal.code
    assert not ended.out
    assert SESAME not in ended.err


@pytest.mark.parametrize("is_told", [True, False])
@pytest.mark.parametrize(
    "command",
    [
        "account open full-{} EUR --server {address}",
        "account show full-{} --server {address} --json",
        "projections status --dsn {dsn} --json",
        "audit digest --dsn {dsn}",
        "--help",
    ],
)
def test_what_can_not_be_written_is_no_refusal(running: Running, command: str, is_told: bool) -> None:
    """A disk that is full where stdout goes is told in a line; the exit code tells where stderr goes there as well."""
    arguments = command.format(int(is_told), address=running.run.address, dsn=running.dsn).split()
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [LEDGER, *arguments],
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE if is_told else full,
            text=True,
            check=False,
        )

    assert ended.returncode == 3
    if is_told:
        assert complaint_in(ended.stderr) == "ledger: can't write what came of it: No space left on device"


def test_a_reader_that_has_gone_is_told_nothing(running: Running) -> None:
    """As with `| head`: neither a traceback nor a word of Python's as it ends."""
    reads, writes = os.pipe()
    os.close(reads)
    with os.fdopen(writes, "w") as pipe:
        command = [LEDGER, "projections", "status", "--json", "--dsn", running.dsn]
        ended = subprocess.run(command, env=environment(), stdout=pipe, stderr=subprocess.PIPE, text=True, check=False)

    assert (ended.returncode, ended.stderr) == (1, "")


def test_a_schema_that_is_not_there_is_to_be_migrated(running: Running, ledger: str, shell: Shell) -> None:
    """The line says which command does it."""
    where = ["--dsn", running.dsn, "--ledger", ledger]
    for ended in (shell("serve", "--listen", "127.0.0.1:0", *where), shell("follow", *where)):
        assert ended.code == 3
        assert f"ledger migrate --ledger {ledger}" in ended.complaint


def test_an_address_or_a_folder_that_is_taken_is_refused(running: Running, migrated: list[str], shell: Shell) -> None:
    """A second server ends at once, says why in one line, and leaves the first one alone."""
    first = shell("serve", "--listen", running.run.address, *migrated)
    second = shell("serve", "--listen", "127.0.0.1:0", "--data-dir", running.data_dir)
    third = shell("migrate", "--data-dir", running.data_dir)

    assert f"in use by process {running.run.process.pid}" in second.complaint
    assert f"in use by process {running.run.process.pid}" in third.complaint
    assert (first.code, second.code, third.code) == (3, 3, 3)
    assert f"can't listen on {running.run.address}" in first.complaint
    with client_of(running.run) as client:
        assert not client(opening("still-there~")).replayed


def test_a_malformed_dsn_for_reads_is_refused_too(migrated: list[str], shell: Shell) -> None:
    """At the start, not at the first read."""
    ended = shell("serve", "--listen", "127.0.0.1:0", *migrated, LEDGER_READ_DSN=f"password={SESAME} nonsense")
    assert ended.code == 2
    assert re.search("(?i)dsn|connection string", ended.complaint)
    assert SESAME not in ended.err


@pytest.mark.parametrize("begun", ["cluster-*/base", "postgres/postmaster.pid"])
def test_a_demo_that_is_interrupted_leaves_nothing(begun: str, tmp_path: Path) -> None:
    """By Ctrl-C, which goes to all processes of a terminal, also while the database is still being made."""
    with subprocess.Popen(
        [LEDGER, "demo"],
        cwd=tmp_path,
        env=environment() | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        eventually(lambda: list(tmp_path.glob(f"ledger-demo-*/{begun}")))
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=HAPPENS_WITHIN_S)
    assert "Traceback" not in output
    commands = (" ".join(each.info["cmdline"] or []) for each in psutil.process_iter(["cmdline"]))
    assert [each for each in commands if str(tmp_path) in each] == []
    assert process.returncode in (1, 130)
    assert list(tmp_path.iterdir()) == []


def test_a_demo_whose_server_does_not_start_says_so(shell: Shell) -> None:
    """Here because of a setting in the environment; without a traceback."""
    ended = shell("demo", LEDGER_LOG_LEVEL="loud")
    assert ended.code in (2, 3)
    assert "LEDGER_LOG_LEVEL" in ended.err


# --- serving ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, shell: Shell) -> Path:
    """A data folder with a migrated ledger, to copy: making one takes a second."""
    data = tmp_path_factory.mktemp("made") / "data"
    ended = shell("migrate", "--data-dir", data)
    assert ended.code == 0
    assert ended.out.startswith("ledger: main is up to date (0001")
    assert not processes_on(data)
    return data


@pytest.fixture
def data(made: Path, tmp_path: Path) -> Iterator[Path]:
    """A data folder of the test's own. At the end no Postgres may be left on it, whatever became of the server."""
    folder = tmp_path / "data"
    subprocess.run(["cp", "-a", str(made), str(folder)], check=True)
    yield folder
    eventually(lambda: not processes_on(folder))


def serve(launch: Launch, data: Path, *arguments: object, **env: str) -> Run:
    return launch("serve", "--listen", "127.0.0.1:0", "--data-dir", data, *arguments, **env)


@contextmanager
def turn_held(dsn: str, ledger: str = "main") -> Iterator[Callable[[], None]]:
    """Nobody can append in here. Yields what waits until somebody tries to."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))"
    with psycopg.connect(dsn) as holder, psycopg.connect(dsn, autocommit=True) as watcher:
        holder.execute(sql.SQL("SELECT FROM {}.log_turn FOR UPDATE").format(sql.Identifier(f"ledger_{ledger}")))

        def somebody_waits() -> bool:
            return watcher.execute(waiting, [holder.info.backend_pid]).fetchone() != (0,)

        yield lambda: eventually(somebody_waits)
        with suppress(psycopg.OperationalError):  # The database may have ended meanwhile.
            holder.rollback()


def test_a_server_that_says_it_is_ready_is_ready(migrated: list[str], launch: Launch) -> None:
    """The first call after the line is served, and health says so from the start."""
    run = launch("serve", "--listen", "127.0.0.1:0", *migrated)
    with grpc.insecure_channel(run.address) as channel:
        status = HealthStub(channel).Check(HealthCheckRequest(service=""), timeout=10).status
        first = Client(channel, migrated[-1], "first").start(opening("first~"))
        assert (first.code(), status) == (StatusCode.OK, HealthCheckResponse.SERVING)
    assert run.stop() == 0


def test_the_ready_line_tells_the_address_the_ledger_and_the_place(running: Running) -> None:
    """One line on stdout and no other; the log is on stderr."""
    form = rf"ledger: serving on 127\.0\.0\.1:\d+ \(ledger main, an embedded Postgres in {running.data_dir}\)\n"
    assert re.fullmatch(form, running.run.out)


def test_the_ctrl_c_of_a_terminal_ends_a_server_that_has_just_started(data: Path, launch: Launch) -> None:
    """It goes to all processes of the terminal's group, and none of them says more of it than the server."""
    run = serve(launch, data)
    assert run.address
    server = psutil.Process(run.process.pid)
    group = os.getpgid(server.pid)
    for each in (server, *server.children(recursive=True)):
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getpgid(each.pid) == group:
                each.send_signal(signal.SIGINT)
    assert run.end(STOPS_WITHIN_S) == 0
    assert not re.search("Traceback|follower_ended", run.err)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_lets_calls_end_that_are_under_way(number: signal.Signals, data: Path, launch: Launch) -> None:
    """They are answered as they would have been; then the server ends with 0, and its Postgres with it."""
    run = serve(launch, data)
    with client_of(run) as client:
        fund(client)
        watching = HealthStub(client.channel).Watch(HealthCheckRequest(service=""))
        statuses = (each.status for each in watching)
        eventually(lambda: next(statuses) == HealthCheckResponse.SERVING)
        with turn_held(running_dsn(data)) as until_somebody_waits:
            calls = [client.start(authorize(f"p{each}~", 1)) for each in range(10)]
            calls.append(client.start(batch(*(opening(f"a{each}~") for each in range(1_000)))))
            until_somebody_waits()
            for _ in range(5):  # What comes later on the same connection is answered: so the calls have arrived.
                until_served(client)
            run.process.send_signal(number)
            eventually(lambda: next(statuses) == HealthCheckResponse.NOT_SERVING)
            watching.cancel()
        responses = [each.result() for each in calls]

        assert {each.payment.state for each in responses[:-1]} == {PAYMENT_STATE_AUTHORIZED}
        assert {each.WhichOneof("result") for each in responses[-1].results} == {"open_account"}
        assert run.end(STOPS_WITHIN_S) == 0
    assert not processes_on(data)


def test_a_server_ends_in_time_though_its_database_answers_nothing(tmp_path: Path, launch: Launch) -> None:
    """Whoever runs containers is told to give it 15 s. Nothing of it stays, and nobody waits for what can't come."""
    with EmbeddedPostgres(tmp_path / "data") as postgres, ExitStack() as stack:
        prepare(postgres.dsn, "main")
        run = launch("serve", "--listen", "127.0.0.1:0", "--dsn", postgres.dsn)
        assert run.address
        with psycopg.connect(postgres.dsn, autocommit=True) as session:
            at_work = "SELECT count(DISTINCT application_name) FROM pg_stat_activity WHERE application_name = ANY (%s)"
            names = ["ledger-writer", "ledger-follower", "ledger-reads"]
            eventually(lambda: session.execute(at_work, [names]).fetchone() == (3,))
        parts = psutil.Process(run.process.pid).children()
        # The server before its children: it would make more of them.
        for server in map(psutil.Process, processes_on(tmp_path / "data")):
            for each in (server, *server.children(recursive=True)):
                each.suspend()
                stack.callback(each.resume)
        eventually(lambda: "commands_wait_for_database" in run.err)  # And so does everything else by then.
        run.process.send_signal(signal.SIGTERM)
        assert run.end(15) == 0
        assert "Traceback" not in run.err
        eventually(lambda: not any(each.is_running() for each in parts))


def test_a_server_that_starts_listens_once_commands_are_decided(data: Path, launch: Launch) -> None:
    """Who waits for it gets an answer, and not a refusal because its connection to the database is not there yet."""
    first, address = serve(launch, data), f"127.0.0.1:{free_port()}"
    often = [(f"grpc.{which}_reconnect_backoff_ms", 50) for which in ("initial", "min", "max")]
    with client_of(first) as client, grpc.insecure_channel(address, often) as channel:
        fund(client)
        waiting = channel.unary_unary(
            "/ledger.v1.PaymentService/AuthorizePayment",
            request_serializer=AuthorizePaymentRequest.SerializeToString,
            response_deserializer=AuthorizePaymentResponse.FromString,
        ).future(client.prepared(authorize("p~")), wait_for_ready=True, timeout=60)
        with turn_held(running_dsn(data)) as until_somebody_waits:
            launch("serve", "--listen", address, "--dsn", running_dsn(data))
            until_somebody_waits()
            with pytest.raises(grpc.FutureTimeoutError):
                waiting.result(timeout=0.3)
        assert waiting.result().payment.state == PAYMENT_STATE_AUTHORIZED


def test_a_signal_ends_a_server_whose_calls_can_not_end(data: Path, launch: Launch) -> None:
    """Another session holds the turn and doesn't give it back: the server still stops in time, and with 0."""
    run = serve(launch, data)
    with client_of(run) as client:
        fund(client)
        watching = HealthStub(client.channel).Watch(HealthCheckRequest(service=""))
        assert next(watching)
        with turn_held(running_dsn(data)) as until_somebody_waits:
            stuck = client.start(authorize("p~"))
            until_somebody_waits()
            assert run.stop() == 0
        assert stuck.code() in (StatusCode.UNAVAILABLE, StatusCode.CANCELLED)
        watching.cancel()


def test_a_server_ends_well_though_callers_have_given_up(data: Path, launch: Launch) -> None:
    """For gRPC their calls are over before what they asked for is answered: that comes too late, and harms nobody."""
    run = serve(launch, data)
    with client_of(run) as client:
        fund(client)
        with turn_held(running_dsn(data)) as until_somebody_waits:
            calls = [client.start(authorize(f"p{each}~", 1), timeout=1) for each in range(5)]
            until_somebody_waits()
            assert {call.code() for call in calls} == {StatusCode.DEADLINE_EXCEEDED}
            run.process.send_signal(signal.SIGTERM)
            eventually(lambda: not listens(run.address))
        assert run.end(STOPS_WITHIN_S) == 0
    assert not processes_on(data)


def listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def test_a_watch_that_is_not_read_holds_up_nobody(data: Path, launch: Launch) -> None:
    """Its client leaves no room for an answer. Others are still told of changes, and the server ends in time."""
    run = serve(launch, data)
    with client_of(run) as client, unread_watch(run.address):
        watching = HealthStub(client.channel).Watch(HealthCheckRequest(service=""), timeout=STOPS_WITHIN_S)
        statuses = (each.status for each in watching)
        eventually(lambda: next(statuses) == HealthCheckResponse.SERVING)
        run.process.send_signal(signal.SIGTERM)
        eventually(lambda: next(statuses) == HealthCheckResponse.NOT_SERVING)
        assert run.end(STOPS_WITHIN_S) == 0
    assert not processes_on(data)


@contextmanager
def unread_watch(address: str) -> Iterator[None]:
    """A Watch that has begun, by a client whose window for what is sent has no byte."""
    host, _, port = address.rpartition(":")
    block = frames.request_block("/grpc.health.v1.Health/Watch", address, {})
    with socket.create_connection((host, int(port)), timeout=STOPS_WITHIN_S) as client:
        client.sendall(
            frames.PREFACE
            + frames.settings({frames.INITIAL_WINDOW_SIZE: 0})
            + frames.frame(frames.HEADERS, frames.END_HEADERS, 1, block)
            + frames.frame(frames.DATA, frames.END_STREAM, 1, frames.message(b""))
        )
        came, rest = [0], b""
        while frames.HEADERS not in came:  # They come with the first answer, whose own frame there is no room for.
            found, rest = frames.split(rest + client.recv(65_536))
            came = [kind for kind, *_ in found]
        yield


def test_a_signal_ends_a_server_whose_log_is_followed(data: Path, launch: Launch) -> None:
    """Who follows is told to try another; one who doesn't read what he is sent is left; it ends in time, and with 0."""
    run = serve(launch, data)
    with client_of(run) as client:
        fund(client)
        note = {"metadata": {"note": "x" * 8_000}}
        for part in range(8):
            client.do(*(opening(f"a{part}-{each}~", **note) for each in range(300)))
        followers = [client.stream(ReadEventsRequest(follow=True, from_position=client.position + 1)) for _ in range(5)]
        for each in followers:
            assert next(each).position == client.position
        idle = client.stream(ReadEventsRequest())
        assert next(idle).events
        run.process.send_signal(signal.SIGTERM)
        for each in followers:
            with pytest.raises(grpc.RpcError) as raised:
                list(each)
            assert refused_by(raised.value)[:2] == (StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
        assert run.end(STOPS_WITHIN_S) == 0
        assert "call_failed" not in run.err
    assert not processes_on(data)


def test_a_server_that_stops_does_not_take_new_calls(data: Path, launch: Launch) -> None:
    """Call follows call while the server ends; each is answered, or refused as one that may be repeated."""
    run = serve(launch, data)
    with client_of(run) as client:
        fund(client)
        run.process.send_signal(signal.SIGTERM)
        codes = []
        for each in range(100_000):
            codes.append(client.start(authorize(f"p{each}~", 1), timeout=5).code())
            if run.process.poll() is not None:
                break
        # CANCELLED is what gRPC gives a call that reaches a server which takes no more: the contract says to repeat it.
        assert set(codes) <= {StatusCode.OK, StatusCode.UNAVAILABLE, StatusCode.CANCELLED}
    assert run.process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_ends_a_server_that_is_still_starting(number: signal.Signals, data: Path, launch: Launch) -> None:
    """Whatever it was at; its Postgres ends too, and the folder can be used again."""
    run = serve(launch, data)
    eventually(lambda: processes_on(data))
    run.process.send_signal(number)
    assert run.end(STOPS_WITHIN_S) != 3
    eventually(lambda: not processes_on(data))


def test_kill_9_leaves_no_process_and_loses_nothing(data: Path, launch: Launch) -> None:
    """The Postgres ends with the server; the next one has all that was acknowledged, and no id is used up twice."""
    run = serve(launch, data)
    with client_of(run) as client:
        tag = client.tag
        fund(client)
        acknowledged = [client(authorize(f"p{each}~", 1)).position for each in range(50)]
        under_way = [client.start(authorize(f"q{each}~", 1)) for each in range(50)]
        under_way[0].result()
        run.process.kill()
        answered = [each.result() if each.code() is StatusCode.OK else None for each in under_way]
    run.process.wait()
    eventually(lambda: not processes_on(data))

    again = serve(launch, data)
    with client_of(again, tag=tag) as client:
        replays = [client(authorize(f"p{each}~", 1)) for each in range(50)]
        assert [each.position for each in replays] == acknowledged
        assert all(each.replayed for each in replays)
        for number, first in enumerate(answered):
            later = client(authorize(f"q{number}~", 1))
            assert first is None or (later.replayed and later.position == first.position)
        assert client.balance("alice~").reserved == 100
        check_log(running_dsn(data), "main")
    assert again.stop() == 0


# --- several processes on one Postgres -------------------------------------------------------------------------------


def test_two_servers_on_one_database_do_everything_once(migrated: list[str], running: Running, launch: Launch) -> None:
    """The same requests to both at once: each is done by one and a replay at the other, at one position."""
    runs = [launch("serve", "--listen", "127.0.0.1:0", *migrated) for _ in range(2)]
    with ExitStack() as stack:
        one, two = (stack.enter_context(client_of(run, ledger=migrated[-1], tag="both")) for run in runs)
        fund(one)
        pairs = []
        for _ in range(5):
            requests = [authorize(f"p{len(pairs) + number}~", 1) for number in range(20)]
            calls = [(one.start(each), two.start(each)) for each in requests]
            pairs += [(left.result(), right.result()) for left, right in calls]

        assert all(left.position == right.position for left, right in pairs)
        assert all({left.replayed, right.replayed} == {False, True} for left, right in pairs)
        two.position = pairs[-1][0].position
        assert two.balance("alice~").reserved == len(pairs) == 100
        closed = one(authorize("last~", 1))
        two.position = closed.position
        assert two.payment("last~") == closed.payment
        assert two.refuses(authorize("last~", 2)).reason == "ID_ALREADY_USED"
    assert [run.stop() for run in runs] == [0, 0]
    check_log(running.dsn, migrated[-1])


def test_the_follower_can_be_a_process_of_its_own(migrated: list[str], running: Running, launch: Launch) -> None:
    """`serve --no-follower` writes, `follow` keeps the read models; it can stop at any time and go on later."""
    run = launch("serve", "--listen", "127.0.0.1:0", "--no-follower", *migrated)
    following = launch("follow", *migrated)
    following.until_following()
    with client_of(run, ledger=migrated[-1]) as client:
        fund(client)
        client(authorize("p~"))
        assert client.balance("alice~").reserved == 10_00
        assert following.stop(signal.SIGINT) == 0

        client(authorize("q~"))
        behind = GetAccountRequest(account_id="alice~", min_position=client.position)
        waiting = client.start(behind)
        again = launch("follow", *migrated)
        again.until_following()
        if waiting.code() is not StatusCode.OK:  # It took longer than a read waits.
            assert refused_by(waiting.exception()).reason == "READ_MODEL_BEHIND"
        assert client.balance("alice~").reserved == 20_00
        assert client.payment("q~").state == PAYMENT_STATE_AUTHORIZED

    with psycopg.connect(running.dsn, options=f"-c search_path=ledger_{migrated[-1]}") as connection:
        connection.execute(
            "INSERT INTO events (stream, version, position, topic, state)"
            " SELECT 'account/poison', 1, max(position) + 1, 'NobodyKnows', '{}' FROM events"
        )
    assert again.end() == 1
    assert "the follower stopped: position" in again.complaint
    assert run.stop() == 0


# --- migrate ---------------------------------------------------------------------------------------------------------


def test_a_ledger_is_migrated_once_however_often_it_is_asked_for(
    running: Running, ledger: str, shell: Shell, launch: Launch
) -> None:
    """Also by several at the same time."""
    where = ["--dsn", running.dsn, "--ledger", ledger]
    runs = [launch("migrate", *where) for _ in range(2)]
    assert [run.end() for run in runs] == [0, 0], [run.err for run in runs]
    again = shell("migrate", *where)
    assert again.code == 0

    first, second = sorted(run.out for run in runs)
    nothing = f"ledger: {ledger} is up to date (nothing to do)\n"
    assert first.startswith(f"ledger: {ledger} is up to date (0001")
    assert second == again.out == nothing


def test_a_role_that_may_not_create_a_schema_is_told_so_in_one_line(running: Running, tag: str, shell: Shell) -> None:
    """Migrating is the owner's; who else tries sees no traceback."""
    with psycopg.connect(running.dsn, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE guest_{tag} LOGIN PASSWORD '{tag}'")
        try:
            dsn = re.sub(r"//[^@]+@", f"//guest_{tag}:{tag}@", running.dsn)
            ended = shell("migrate", "--dsn", dsn, "--ledger", f"test_{tag}")
            assert ended.code == 3
            assert "permission" in ended.complaint
        finally:
            connection.execute(f"DROP ROLE guest_{tag}")


def test_a_server_whose_login_has_only_its_four_roles_writes_reads_and_signs(
    running: Running, migrated: list[str], tag: str, launch: Launch, shell: Shell, tmp_path: Path
) -> None:
    """It can't migrate, rebuild or become the owner. Without the roles it does not start, and says what to run."""
    ledger = migrated[-1]
    with psycopg.connect(running.dsn, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE server_{tag} LOGIN PASSWORD '{tag}'".encode())
        try:
            dsn = re.sub(r"//[^@]+@", f"//server_{tag}:{tag}@", running.dsn)
            where = ["--dsn", dsn, "--ledger", ledger]
            refused = shell("serve", "--listen", "127.0.0.1:0", *where)
            assert refused.code == 3
            (statement,) = re.findall("GRANT .*;", refused.complaint)
            connection.execute(statement.encode())
            key = tmp_path / "tree.key"
            assert shell("audit", "make-key", "--tree-key", key, "--ledger", ledger).code == 0
            run = launch("serve", "--listen", "127.0.0.1:0", *where, LEDGER_TREE_KEY=str(key))
            with client_of(run, ledger=ledger) as client:
                fund(client)
                assert client.balance("alice~").posted > 0
            signed = f"SELECT FROM ledger_{ledger}.tree_heads WHERE tree_size > 0"
            eventually(lambda: connection.execute(signed.encode()).fetchone() is not None)
            assert run.stop() == 0
            for command in ("migrate", "projections rebuild"):
                assert shell(*command.split(), *where).code == 3
        finally:
            connection.execute(f"DROP OWNED BY server_{tag}".encode())
            connection.execute(f"DROP ROLE server_{tag}".encode())


# --- doctor ----------------------------------------------------------------------------------------------------------


def test_the_doctor_finds_an_embedded_ledger_well_and_another_not_there(running: Running, shell: Shell) -> None:
    """One line for each check, and JSON for programs; it exits with 1 if anything makes the whole unfit."""
    well = shell("doctor", "--data-dir", running.data_dir)
    assert (well.code, well.err) == (0, "")
    assert {line.split()[0] for line in well.out.splitlines()} == {"ok"}

    unknown = shell("doctor", "--data-dir", running.data_dir, "--ledger", "nowhere", "--json")
    assert unknown.code == 1
    assert unknown.complaint == "ledger: not fit: schema"
    *others, schema = json.loads(unknown.out)
    assert {each["verdict"] for each in others} == {"ok"}
    assert schema["advice"].endswith("run `ledger migrate --ledger nowhere` first")


# --- backup and restore ----------------------------------------------------------------------------------------------


def test_a_backup_is_taken_beside_a_server_and_restored_where_there_is_no_ledger(
    running: Running, shell: Shell, tmp_path: Path
) -> None:
    """The drill leaves nothing; a new data folder gets the ledger, with the same digest; the old one stays as it is."""
    taken = shell("backup", "monday", "--data-dir", running.data_dir, folder=tmp_path)
    assert (taken.code, taken.err) == (0, "")
    told, digest = taken.out.splitlines()
    assert re.fullmatch(r"ledger: main up to position [\d,]+ is in monday \([\d.]+ MiB\)", told)
    again = shell("backup", "monday", "--data-dir", running.data_dir, folder=tmp_path)
    assert (again.code, again.complaint) == (
        1,
        "ledger: monday is there already: a backup never takes the place of another",
    )

    drilled = shell("restore", "monday", "--drill", folder=tmp_path)
    assert (drilled.code, drilled.err) == (0, "")
    assert re.search(r" can be restored: it took [\d.]+ s\n", drilled.out)
    assert drilled.out.splitlines()[1] == digest
    refused = shell("restore", "monday", "--dsn", running.dsn, folder=tmp_path)
    assert (refused.code, "already" in refused.complaint) == (1, True)

    restored = shell("restore", "monday", "--data-dir", "new", folder=tmp_path)
    assert (restored.code, restored.err) == (0, "")
    assert restored.out.splitlines()[1] == digest
    position = digest.split()[1]
    assert shell("audit", "digest", "--at", position, "--data-dir", "new", folder=tmp_path).out == f"{digest.strip()}\n"


# --- dsn -------------------------------------------------------------------------------------------------------------


def test_the_dsn_of_a_running_server_is_for_psycopg_and_psql(running: Running, shell: Shell) -> None:
    """As it is printed, on one line."""
    ended = shell("dsn", "--data-dir", running.data_dir)
    assert (ended.code, ended.err) == (0, "")
    dsn = ended.out.removesuffix("\n")
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT count(*) FROM ledger_main.migrations").fetchone() != (0,)
    psql = shutil.which("psql") or str(embedded.binaries() / "psql")
    query = [psql, dsn, "-X", "-A", "-t", "-c", "SELECT 1 + 1"]
    assert subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip() == "2"


@pytest.mark.parametrize(("role", "reads_log"), [("auditor", True), ("analyst", False)])
def test_a_role_reads_and_changes_nothing(role: str, reads_log: bool, running: Running, shell: Shell) -> None:
    """An auditor reads log and read models, an analyst the views and nothing that is under them."""
    ended = shell("dsn", "--data-dir", running.data_dir, "--role", role)
    assert ended.code == 0, ended.err
    with psycopg.connect(ended.out.strip(), autocommit=True) as connection:
        for view in roles.VIEWS:
            connection.execute(f"SELECT count(*) FROM ledger_main.{view}")
        for table in (
            *roles.READ_MODELS,
            "checkpoints",
            "events",
            "migrations",
            "tree_tiles",
            "tree_heads",
            "tree_breaks",
            "tree_keys",
        ):
            if reads_log:
                connection.execute(f"SELECT count(*) FROM ledger_main.{table}")
            else:
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(f"SELECT FROM ledger_main.{table}")
        for statement in (
            "INSERT INTO ledger_main.checkpoints (name, position) VALUES ('x', 1)",
            "DELETE FROM ledger_main.balances",
            "CREATE TABLE ledger_main.mine (x int)",
            "SELECT FROM ledger_main.log_turn FOR UPDATE",
        ):
            with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction)):
                connection.execute(statement)


def test_the_read_models_can_be_looked_at_and_made_anew_beside_a_server(running: Running, shell: Shell) -> None:
    """Status and rebuild, for people and as JSON; a row that differs is named, swapped away, and ends with 1."""
    where = ["--data-dir", running.data_dir]
    status = shell("projections", "status", *where, COLUMNS="40")
    assert status.code == 0, status.err
    assert "read_models" in status.out
    (follower,) = json.loads(shell("projections", "status", *where, "--json").out)
    assert (follower["position"], follower["failure"]) == (follower["head"], None)

    rebuilt = shell("projections", "rebuild", *where)
    assert rebuilt.code == 0, rebuilt.err
    assert " rows, 0 differ\nswapped in at position " in rebuilt.out
    with psycopg.connect(running.dsn, autocommit=True) as connection:
        connection.execute("INSERT INTO ledger_main.transfer_accounts VALUES ('forged', 1)")
    checked = shell("projections", "rebuild", "--check", "--json", *where)
    assert checked.code == 1
    found = json.loads(checked.out)
    assert (found["different"], found["differences"][0]["key"]) == (1, "forged 0000000000000000001")
    assert found["swapped_at"] is None
    named = shell("projections", "rebuild", *where)
    assert named.code == 1
    assert "transfer_accounts forged" in named.out
    assert shell("projections", "rebuild", "--check", *where).code == 0


def test_an_auditor_takes_the_history_home_and_checks_it_there(
    running: Running, shell: Shell, tag: str, tmp_path: Path
) -> None:
    """Beside a running server, with the rights of an auditor; at home there is neither a server nor a database."""
    opened = shell("account", "open", tag, "CHF", "--server", running.run.address)
    assert opened.code == 0, opened.err
    auditor = shell("dsn", "--data-dir", running.data_dir, "--role", "auditor").out.strip()
    key = shell("audit", "public-key", "--data-dir", running.data_dir).out
    (tmp_path / "key.pub").write_text(key)
    with psycopg.connect(running.dsn, autocommit=True) as connection:
        (position,) = connection.execute("SELECT max(position) FROM ledger_main.events").fetchone() or (0,)
        signed = "SELECT FROM ledger_main.tree_heads WHERE tree_size >= %s"
        eventually(lambda: connection.execute(signed, [position]).fetchone() is not None)

    exported = shell("audit", "export", "--dsn", auditor, "--to", "home.bundle", folder=tmp_path)
    assert (exported.code, exported.err) == (0, "")
    assert re.fullmatch(r"ledger: [\d,]+ events of ledger main in home.bundle \([\d.]+ MiB\)\n", exported.out)

    check = ["audit", "check", "home.bundle", "--public-key"]
    first = shell(*check, "key.pub", "--save-head", "kept.head", "--inclusion", position, folder=tmp_path)
    assert first.code == 0, first.out + first.err
    assert f"\nPosition {position}: AccountOpened, version 1 of 'account/{tag}'" in first.out
    assert shell(*check, key.strip(), "--head", "kept.head", folder=tmp_path).code == 0
    stranger = "ledger/main+f9c9ecf7+AYqI4910CfGV/VLbLTy6XXLKZwm/HZQSG/N0iAG0D29c"
    assert shell(*check, stranger, folder=tmp_path).code in (1, 2)

    bundle = tmp_path / "home.bundle"
    bundle.write_bytes(bundle.read_bytes().replace(b"part-000001", b"part-000002"))
    damaged = shell(*check, "key.pub", folder=tmp_path)
    assert damaged.code == 1
    assert damaged.out.startswith("WRONG: keys.txt: after it should come")
    assert shell("audit", "check", "other.bundle", folder=tmp_path).code == 2


def test_an_export_that_can_not_be_says_why(running: Running, shell: Shell, ledger: str, tmp_path: Path) -> None:
    """A file in the way, a head that was never signed, a ledger that is not there; and what is there stays there."""
    export = ["audit", "export", "--data-dir", running.data_dir, "--to", "home.bundle"]
    (tmp_path / "home.bundle").write_text("the last one")
    in_the_way = shell(*export, folder=tmp_path)
    assert (in_the_way.code, in_the_way.complaint) == (
        2,
        "ledger: home.bundle is there already; --force replaces it",
    )
    unsigned = shell(*export, "--force", "--head", 10**12, folder=tmp_path)
    assert (unsigned.code, unsigned.complaint) == (2, f"ledger: no head was signed of size {10**12}")
    assert shell(*export, "--force", "--ledger", ledger, folder=tmp_path).code == 3
    assert (tmp_path / "home.bundle").read_text() == "the last one"


def test_a_data_folder_without_a_ledger_has_nothing_to_rebuild(shell: Shell, tmp_path: Path) -> None:
    """One line that says so, and no database is made there."""
    ended = shell("projections", "status", "--data-dir", tmp_path / "none")
    assert ended.code == 3
    assert "there is no ledger in" in ended.complaint
    assert not (tmp_path / "none").exists()


def test_a_server_that_has_stopped_has_no_dsn(made: Path, shell: Shell) -> None:
    """One line, and exit code 3."""
    ended = shell("dsn", "--data-dir", made)
    assert ended.code == 3
    assert "no embedded Postgres runs" in ended.complaint


# --- settings --------------------------------------------------------------------------------------------------------


def test_flags_go_before_the_environment_and_that_before_a_file(
    running: Running, ledger: str, shell: Shell, tmp_path: Path
) -> None:
    """The ledger's name shows which one was heard."""
    (tmp_path / ".env").write_text(f"LEDGER_DSN={running.dsn}\nLEDGER_LEDGER={ledger}\nLEDGER_UNKNOWN=1\n")
    other = f"{ledger}x"
    runs = {
        ledger: shell("migrate", folder=tmp_path),
        f"{other}1": shell("migrate", folder=tmp_path, LEDGER_LEDGER=f"{other}1"),
        f"{other}2": shell("migrate", "--ledger", f"{other}2", folder=tmp_path, LEDGER_LEDGER="Nonsense"),
    }
    for name, ended in runs.items():
        assert ended.code == 0, ended.err
        assert ended.out.startswith(f"ledger: {name} is up to date")
    with psycopg.connect(running.dsn, autocommit=True) as connection:
        for number in (1, 2):
            connection.execute(f"DROP SCHEMA ledger_{other}{number} CASCADE")


def test_a_server_can_be_set_up_by_the_environment_alone(data: Path, launch: Launch) -> None:
    """Empty values count as unset, as in a file of settings; in JSON every line of the log is an object."""
    run = launch(
        "serve",
        LEDGER_DSN="",
        LEDGER_READ_DSN="",
        LEDGER_DATA_DIR=str(data),
        LEDGER_LISTEN="localhost:0",
        LEDGER_LOG_FORMAT="json",
        LEDGER_LOG_LEVEL="debug",
        LEDGER_FOLLOWER="true",
    )
    assert run.address.startswith("localhost:")
    with client_of(run) as client:
        fund(client)
        assert client.balance("alice~").posted == 100_00
    assert run.stop() == 0
    events = [json.loads(line) for line in run.err.splitlines()]
    assert {"serving_writes", "draining"} <= {each["event"] for each in events}
    assert all({"timestamp", "level"} <= set(each) for each in events)


def test_a_data_folder_that_is_asked_for_outdoes_databases_of_the_environment(data: Path, launch: Launch) -> None:
    """For writes and for reads: else one database would be written and another one read."""
    run = serve(launch, data, LEDGER_DSN=NOBODY, LEDGER_READ_DSN=NOBODY)
    with client_of(run) as client:
        fund(client)
        read = client.start(GetAccountRequest(account_id="alice~", min_position=client.position))
        assert read.code() is StatusCode.OK
    assert run.stop() == 0


def test_the_example_of_settings_lists_all_with_their_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no other; as it is, it changes nothing."""
    for name in [each for each in os.environ if each.startswith("LEDGER_")]:
        monkeypatch.delenv(name)
    text = (ROOT / ".env.example").read_text()
    shown = dict(re.findall(r"^# (LEDGER_[A-Z_]+)=(.*)$", text, re.MULTILINE))

    assert set(shown) == set(SETTINGS)
    assert not [line for line in text.splitlines() if line and not line.startswith("#")]
    defaults = Settings(_env_file=None)  # type: ignore[call-arg]
    given = {name.removeprefix("LEDGER_").lower(): value for name, value in shown.items() if value}
    del given["dsn"]  # its default is that there is none
    assert Settings(_env_file=None, **given) == defaults  # type: ignore[arg-type,call-arg]


def test_the_help_lists_the_commands(shell: Shell) -> None:
    """`ledger` alone shows the same as `ledger --help`."""
    shown, alone = shell("--help"), shell()
    assert (shown.code, alone.code) == (0, 2)
    assert shown.out.split() == (alone.out + alone.err).split()
    for command in ("serve", "follow", "migrate", "dsn", "import", "demo"):
        assert re.search(rf"^\W*{command} ", shown.out, re.MULTILINE)
