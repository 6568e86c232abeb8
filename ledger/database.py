"""Where a command finds its database: at the DSN, or embedded, be it that a server runs it now or nobody does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ledger.embedded import EmbeddedPostgres, EmbeddedPostgresError, running_dsn
from ledger.settings import Settings


@contextmanager
def reached(settings: Settings) -> Iterator[str]:
    """The connection string of a database that is there already. An embedded one that nobody runs is run meanwhile.

    Raises EmbeddedPostgresError if there is none, or if it can't be run.
    """
    if settings.dsn is not None:
        yield settings.dsn
        return
    try:
        running = running_dsn(settings.data_dir)
    except EmbeddedPostgresError:
        running = None
    if running is not None:
        yield running
        return
    if not (settings.data_dir / "postgres").is_dir():
        raise EmbeddedPostgresError(f"there is no ledger in {settings.data_dir}: name another --data-dir, or a --dsn")
    with EmbeddedPostgres(settings.data_dir) as postgres:
        yield postgres.dsn
