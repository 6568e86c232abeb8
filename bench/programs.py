"""The programs that are measured, as processes: `ledger serve` as a user runs it, the echo, the load generator."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from bench.load import Job, Result

ROOT: Final = Path(__file__).parent.parent


class BenchFailed(Exception):
    """A figure that would not mean anything: an error in a reply, or a program that did not do its part."""


@dataclass(frozen=True, slots=True)
class Program:
    """A server that is ready."""

    address: str
    pid: int


@contextmanager
def ledger_server(dsn: str, ledger: str, *options: str, settings: Mapping[str, str] | None = None) -> Iterator[Program]:
    """`ledger serve` on a database; stopped by SIGTERM."""
    command = ["ledger.cli", "serve", "--listen", "127.0.0.1:0", "--dsn", dsn, "--ledger", ledger, *options]
    with _running(command, settings or {}) as program:
        yield program


@contextmanager
def echo_server() -> Iterator[Program]:
    with _running(["bench.echo"], {}) as program:
        yield program


@contextmanager
def _running(command: list[str], settings: Mapping[str, str]) -> Iterator[Program]:
    whole = [sys.executable, "-m", *command]
    environment = _environment() | {"LEDGER_LOG_LEVEL": "error"} | dict(settings)
    with subprocess.Popen(whole, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if " on " not in line:
            raise BenchFailed(f"{command[0]} did not start")
        try:
            yield Program(line.split(" on ")[1].split()[0], process.pid)
        finally:
            process.send_signal(signal.SIGTERM)


def asked(job: Job) -> Result:
    """Run the load generator. Raises BenchFailed if a reply was not the one that was due."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.load"],
        input=json.dumps(asdict(job)),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=_environment(),
        check=False,
    )
    if done.returncode or done.stderr:
        raise BenchFailed(f"{job.kind}: {done.stderr.strip()}")
    result = Result(**json.loads(done.stdout))
    if result.errors:
        raise BenchFailed(f"{job.kind}: {result.errors} wrong replies, such as {result.error_texts}")
    return result


def run_ledger(*arguments: object) -> None:
    """A command of `ledger`, to its end. Raises BenchFailed if it does not end well."""
    command = [sys.executable, "-m", "ledger.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=_environment(), check=False)
    if done.returncode:
        raise BenchFailed(f"ledger {arguments[0]}: {done.stdout}{done.stderr}")


def _environment() -> dict[str, str]:
    """Without settings of a ledger: what is measured has the defaults."""
    return {name: value for name, value in os.environ.items() if not name.startswith("LEDGER_")}
