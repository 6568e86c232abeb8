"""The programs that come with Postgres: found in PATH or with the embedded Postgres, and run against a DSN."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ledger.embedded import EmbeddedPostgresError, binaries

_TOLD_MOST: Final = 400


class ProgramFailed(Exception):
    """A program is missing, or ended with an error; the text is for an operator."""


class Program(NamedTuple):
    """A program, and the major version of Postgres that it came with."""

    major: int
    place: Path


def program(name: str, server_major: int) -> Program:
    """The oldest `name` that is not older than the server: a newer one may say what the server does not understand.

    Raises ProgramFailed if there is none.
    """
    fitting = sorted(each for each in _programs(name) if each.major >= server_major)
    if not fitting:
        raise ProgramFailed(
            f"there is no {name} of Postgres {server_major} or newer in PATH: install the client programs of Postgres "
            f"{server_major}"
        )
    return fitting[0]


def _programs(name: str) -> Iterator[Program]:
    found = [Path(place) for place in [shutil.which(name)] if place]
    with suppress(EmbeddedPostgresError):  # It is not installed: then PATH has to do.
        # The wheel has those of more versions than the one that is run.
        found += [folder / "bin" / name for folder in sorted(binaries().parents[1].glob("pginstall*"))]
    for place in found:
        said = subprocess.run([place, "--version"], capture_output=True, text=True, check=False).stdout  # noqa: S603
        if version := re.search(r"\(PostgreSQL\) (\d+)", said):
            yield Program(int(version[1]), place)


def run(place: Path, dsn: str, *arguments: str) -> str:
    """Run a program against a database and return what it prints. The password is not among its arguments.

    Raises ProgramFailed with what it said.
    """
    settings = {name: value for name, value in conninfo_to_dict(dsn).items() if value is not None}
    environment = {**os.environ, "PGPASSWORD": str(settings.pop("password"))} if "password" in settings else None
    command: list[str] = [str(place), "--no-password", f"--dbname={make_conninfo('', **settings)}", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)  # noqa: S603
    if ended.returncode:
        raise ProgramFailed(f"{place.name} failed: {' '.join(ended.stderr.split())[:_TOLD_MOST]}")
    return ended.stdout


def contents_of(pg_restore: Path, dump: Path) -> str:
    """The table of contents of a dump, as pg_restore --use-list takes it. Raises ProgramFailed."""
    ended = subprocess.run([pg_restore, "--list", dump], capture_output=True, text=True, check=False)  # noqa: S603
    if ended.returncode:
        raise ProgramFailed(f"{dump} can't be read: {' '.join(ended.stderr.split())[:_TOLD_MOST]}")
    return ended.stdout
