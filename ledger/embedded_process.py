"""The processes of an embedded Postgres: how they are started, recognised and ended."""

import contextlib
import itertools
import os
import pwd
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import psutil

from ledger import embedded_launcher

# A fast shutdown writes a checkpoint. Where that takes too long, what is committed is safe without it.
_STOP_SERVER = ((signal.SIGINT, 5.0), (signal.SIGQUIT, 3.0), (signal.SIGKILL, 3.0))
_STOP_ORPHANS = _STOP_SERVER[1:]

# Tests clear it, to try on Linux what other systems do.
_has_parent_death_signal = sys.platform == "linux"


class StrayProcess(Exception):
    """A process is in the way."""


class Account(NamedTuple):
    """A user to run Postgres as."""

    name: str
    uid: int
    gid: int
    groups: list[int]

    def __str__(self) -> str:
        return f"{self.name}:{self.uid}:{self.gid}:{','.join(map(str, self.groups))}"


def server_account(folder: Path, cluster: Path) -> Account | None:
    """Whom to run as instead of root, as which Postgres refuses to run; None where we are not root.

    That is the owner of the cluster or else of its data folder, so that root can run what an ordinary user made; where
    that is root again, a user made for it. Raises LookupError with what to do.
    """
    if os.geteuid() != 0:
        return None
    owner = (cluster if cluster.exists() else folder).stat().st_uid
    if owner != 0:
        entries = [each for each in pwd.getpwall() if each.pw_uid == owner]
    elif cluster.exists():
        raise LookupError(f"Postgres does not run as root, whom {cluster} belongs to: give it to a user (chown -R)")
    else:
        entries = [each for each in pwd.getpwall() if each.pw_name in ("postgres", "_postgres", "nobody")]
        entries.sort(key=lambda each: each.pw_name == "nobody")
    if not entries:
        raise LookupError("Postgres does not run as root, and there is no other user to run it as: add one")
    name, _, uid, gid = entries[0][:4]
    return Account(name, uid, gid, os.getgrouplist(name, gid))


class Program:
    """A program of Postgres that dies with this process, but not by the terminal's Ctrl-C.

    It is forked by a thread that lives until it ends: Linux ties the parent-death signal to the thread that forked. The
    thread is a daemon, so that a process which forgot to stop the server can end, and the server with it.
    """

    def __init__(self, command: list[str], folder: Path, account: Account | None, output: int) -> None:
        self._lifeline: socket.socket | None = None
        far_end: socket.socket | None = None
        if not _has_parent_death_signal:
            self._lifeline, far_end = socket.socketpair()
        # Without site packages and Python's variables: it starts sooner.
        launcher = [sys.executable, "-I", "-S", embedded_launcher.__file__, str(os.getpid())]
        terms = [str(far_end.fileno()) if far_end else "", str(account or ""), str(folder)]
        self._started: queue.SimpleQueue[subprocess.Popen[bytes] | Exception] = queue.SimpleQueue()
        # Not the thread's own join: one that Ctrl-C breaks off takes the thread for ended (Python up to 3.12).
        self._ended = threading.Event()
        self._keeper = threading.Thread(
            target=self._keep, args=([*launcher, *terms, *command], output, far_end), daemon=True
        )
        self._keeper.start()
        child = self._started.get()
        if isinstance(child, Exception):
            raise child
        self._child = child

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def status(self) -> int | None:
        """The exit status of a program that has ended."""
        return self._child.returncode

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether the program has ended, at the latest after `timeout_s` seconds."""
        return self._ended.wait(timeout_s)

    def stop(self) -> None:
        """End the program, cleanly if it lets us."""
        for number, patience_s in _STOP_SERVER:
            if not self.wait(0):
                self._child.send_signal(number)
                self.wait(patience_s)

    def _keep(self, command: list[str], output: int, far_end: socket.socket | None) -> None:
        try:
            self._keep_child(command, output, far_end)
        finally:
            self._ended.set()

    def _keep_child(self, command: list[str], output: int, far_end: socket.socket | None) -> None:
        with self._lifeline or contextlib.nullcontext() as lifeline:
            with far_end or contextlib.nullcontext():
                child = self._spawn(command, output, far_end)
            self._started.put(child)
            if isinstance(child, subprocess.Popen):
                child.wait()
            if lifeline:  # The watchdog reads that we are done, and we that it is: then no process is left.
                with contextlib.suppress(OSError):
                    lifeline.shutdown(socket.SHUT_WR)
                    lifeline.recv(1)

    @staticmethod
    def _spawn(command: list[str], output: int, far_end: socket.socket | None) -> subprocess.Popen[bytes] | Exception:
        # No PG... to change what we asked for, and no secrets of root's, which the server's user could read.
        environment = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
        try:
            return subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                env=environment | {"LC_ALL": "C"},
                pass_fds=[far_end.fileno()] if far_end else [],
                start_new_session=True,
            )
        except (OSError, ValueError, RuntimeError) as error:
            return error


def is_server_of(cluster: Path, pid: int) -> bool:
    """Whether `pid` is a live Postgres server of this cluster. After a crash the number may be anybody's."""
    command = _command(pid)
    if not command or Path(command[0]).name not in ("postgres", "postmaster"):
        return False
    folders = [Path(folder) for flag, folder in itertools.pairwise(command) if flag == "-D"]
    return not any(folder.is_absolute() and folder.resolve() != cluster for folder in folders)


def end_remains(cluster: Path, mark: str, server: int | None) -> None:
    """End the processes of a cluster whose supervisor or server was killed.

    `mark` is the name that its servers were given by us, `server` the process id that one left behind. Raises
    StrayProcess at once if that is a live server of the cluster which we did not start.
    """
    if server is not None and is_server_of(cluster, server):
        command = _command(server)
        if command and f"--cluster_name={mark}" not in command:
            raise StrayProcess(f"process {server}, a Postgres that the ledger did not start, runs on it")
        _end([server], _STOP_SERVER)
    # Idle ones see that their server is gone and end. Busy ones do not, and hold its shared memory.
    title = f"postgres: {mark}: "
    _end([pid for pid in psutil.pids() if " ".join(_command(pid)).startswith(title)], _STOP_ORPHANS)


def is_taken(pid: int) -> bool:
    """Whether any process, be it dead and unreaped, has this number."""
    return bool(psutil.pid_exists(pid))


def _command(pid: int) -> list[str]:
    """The command line of a process, for which many of Postgres put a title; empty if none lives that we may see."""
    try:
        return list(psutil.Process(pid).cmdline())
    except psutil.Error:  # Gone, a zombie, or of another user, who could not have served a cluster of ours.
        return []


def _end(pids: Iterable[int], signals: Iterable[tuple[signal.Signals, float]]) -> None:
    """End processes that are not our children."""
    living = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            living.append(psutil.Process(pid))  # Knows its process from a later one of the same number.
    for number, patience_s in signals:
        for process in living:
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)
        deadline = time.monotonic() + patience_s
        while living and time.monotonic() < deadline:
            time.sleep(0.005)
            living = [process for process in living if process.is_running() and _command(process.pid)]
    if living:
        raise StrayProcess(f"process {living[0].pid}, left by a killed Postgres, does not end")
