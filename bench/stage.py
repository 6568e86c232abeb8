"""Where scenarios run: a Postgres of its own, ledgers with accounts, servers on them, and the floors beside."""

from __future__ import annotations

import itertools
import os
import platform
import statistics
import subprocess
import sysconfig
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from bench.load import Job
from bench.programs import ROOT, Program, asked, ledger_server
from ledger.audit.keys import KeyFiles
from ledger.cli import prepare
from ledger.embedded import EmbeddedPostgres
from ledger.postgres import connect
from ledger.priority import go_first

_SETTINGS: Final = (
    "server_version",
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "shared_buffers",
    "max_wal_size",
)

_CREATE_BARE: Final = """
    CREATE TABLE bare (LIKE events INCLUDING DEFAULTS INCLUDING STORAGE);
    ALTER TABLE bare ADD PRIMARY KEY (stream, version), ADD UNIQUE (position)
"""
_INSERT_BARE: Final = """
    INSERT INTO bare (stream, version, position, topic, state)
    SELECT * FROM unnest(%(streams)b::text[], %(versions)b::bigint[], %(positions)b::bigint[], %(topics)b::text[],
                         %(states)b::bytea[])
"""
_NEWEST: Final = "SELECT stream, version, position, topic, state FROM events ORDER BY position DESC LIMIT %s"


@dataclass(frozen=True, slots=True)
class Stage:
    """A running Postgres. `scale` makes every run so much shorter, for those who only want to see that it works."""

    dsn: str
    folder: Path
    postgres_pid: int
    scale: float = 1.0
    books: dict[str, Book] = field(default_factory=dict)
    """What scenarios that share a stage have made."""

    def scaled(self, count: int) -> int:
        """So many calls, or fewer."""
        return max(1, int(count * self.scale))

    def book(self, name: str, accounts: int = 10_000) -> Book:
        """A new ledger, with customers who have money."""
        book = self.bare_book(name, self.scaled(accounts))
        with book.server("--no-follower") as server:
            asked(book.job("opening", server, calls=0, outstanding=1, connections=1))
        return book

    def bare_book(self, name: str, accounts: int) -> Book:
        """A new ledger in which nothing is yet."""
        prepare(self.dsn, name)
        KeyFiles(self.folder / f"{name}.key", f"ledger/{name}").make()
        return Book(self, name, accounts)

    def elsewhere(self, database: str) -> Stage:
        """A new database of the same Postgres."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))
        return replace(self, dsn=make_conninfo(self.dsn, dbname=database), books={})


@dataclass(frozen=True, slots=True)
class Book:
    """A ledger that scenarios write to."""

    stage: Stage
    name: str
    accounts: int

    @contextmanager
    def server(self, *options: str) -> Iterator[Program]:
        """A server on it, which signs heads; with a follower it is at the head when this returns."""
        key = {"LEDGER_TREE_KEY": str(self.stage.folder / f"{self.name}.key")}
        with ledger_server(self.stage.dsn, self.name, *options, settings=key) as server:
            if "--no-follower" not in options:
                self.wait_for_follower()
            yield server

    def job(self, kind: str, *servers: Program, calls: int, **more: Any) -> Job:
        """A job with ids that no other has."""
        programs = {"server": [each.pid for each in servers], "postgres": [self.stage.postgres_pid]}
        return Job(
            kind=kind,
            targets=[each.address for each in servers],
            tag=f"{self.name}-{next(_TAGS)}",
            calls=calls,
            ledger=self.name,
            accounts=self.accounts,
            programs=programs,
            **more,
        )

    def connection(self) -> psycopg.Connection[Any]:
        """A connection whose tables are the ledger's."""
        return connect(self.stage.dsn, self.name, "bench")

    def wait_for_follower(self) -> None:
        """Return when the read models are at the head."""
        self._wait_for("SELECT position FROM checkpoints WHERE name = 'read_models'")

    def wait_for_signer(self) -> None:
        """Return when the whole log is signed: until then the signer takes a part of what is measured."""
        self._wait_for("SELECT max(tree_size) FROM tree_heads")

    def _wait_for(self, position: str) -> None:
        behind = f"SELECT coalesce((SELECT max(position) FROM events), 0) - coalesce(({position}), 0)"
        with self.connection() as connection:
            while connection.execute(behind).fetchone() != (0,):
                time.sleep(0.02)


_TAGS = itertools.count(1)


class Bare:
    """The floor of recording: rows of the log inserted without a rule or an rpc, in a table with the same indexes."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self._position = 0
        connection.execute(_CREATE_BARE)

    def rows_per_s(self, rows: int, per_commit: int) -> float:
        """Rows/s of as many of the log's newest rows, so many in one statement and commit."""
        found = self._connection.execute(_NEWEST, (rows,)).fetchall()
        parts = [self._columns(found[start : start + per_commit]) for start in range(0, len(found), per_commit)]
        began = time.perf_counter()
        for part in parts:
            self._connection.execute(_INSERT_BARE, part)
        return len(found) / (time.perf_counter() - began)

    def commit_ms(self, commits: int) -> float:
        """p50 of inserting and committing the two rows that an authorization comes to."""
        found = self._connection.execute(_NEWEST, (2 * commits,)).fetchall()
        took = []
        for start in range(0, len(found), 2):
            part = self._columns(found[start : start + 2])
            began = time.perf_counter()
            self._connection.execute(_INSERT_BARE, part)
            took.append(time.perf_counter() - began)
        return statistics.median(took) * 1_000

    def _columns(self, rows: Sequence[tuple[Any, ...]]) -> dict[str, Any]:
        """The columns of rows, at positions and in streams that the table does not have yet."""
        first, self._position = self._position + 1, self._position + len(rows)
        return {
            "streams": [f"{row[0]}/{first}" for row in rows],
            "versions": [row[1] for row in rows],
            "positions": list(range(first, first + len(rows))),
            "topics": [row[3] for row in rows],
            "states": [bytes(row[4]) for row in rows],
        }


@contextmanager
def staged(folder: Path, scale: float) -> Iterator[Stage]:
    """A Postgres in a folder, as `ledger serve` runs its own."""
    with EmbeddedPostgres(folder / "data") as postgres:
        pid = int((folder / "data/postgres/postmaster.pid").read_text().splitlines()[0])
        yield Stage(postgres.dsn, folder, pid, scale)


def surroundings(stage: Stage) -> dict[str, str]:
    """What the figures were measured on."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
    with psycopg.connect(stage.dsn) as connection:
        shown = {name: str((connection.execute(f"SHOW {name}").fetchone() or ("?",))[0]) for name in _SETTINGS}
    with ThreadPoolExecutor(1) as another:  # It stays as it gets.
        goes_first = another.submit(go_first).result()
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT)
    return {
        "cores": str(os.cpu_count()),
        "processor": model,
        "load average of the machine": f"{os.getloadavg()[0]:.1f}",
        "system": platform.platform(),
        "the thread that decides goes first": "yes" if goes_first else "no, that is not allowed here",
        "python": f"{platform.python_version()}, {_built()}",
        "grpcio": version("grpcio"),
        "psycopg": version("psycopg"),
        "commit": commit.stdout.strip() or "?",
        "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        **{f"postgres {name}": value for name, value in shown.items()},
    }


def _built() -> str:
    """How this Python was compiled, as far as it says: without profiles it is slower by a tenth."""
    asked = "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")
    return f"{platform.python_compiler()}, --enable-optimizations {'given' if asked else 'not named'}"
