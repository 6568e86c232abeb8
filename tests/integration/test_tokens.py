"""What a server knows of tokens, beside a database that comes and goes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from time import monotonic

import psycopg
import pytest

from ledger.callers import Caller, CallersUnavailable, Role, Unauthenticated
from ledger.embedded import EmbeddedPostgres
from ledger.migrations import migrate
from ledger.tokens import STALE_S, TokenBook, Tokens

HAPPENS_WITHIN_S = 30.0


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(HAPPENS_WITHIN_S):
        while not holds():
            await asyncio.sleep(0.02)


def test_what_is_known_of_tokens_holds_only_so_long(tmp_path: Path) -> None:
    """Without the database callers are let in for a while, then nobody is, CALLERS_UNAVAILABLE; and it comes back."""
    ahead_s = 0.0

    def seconds() -> float:
        return monotonic() + ahead_s

    async def live(postgres: EmbeddedPostgres) -> None:
        nonlocal ahead_s
        tokens = Tokens(postgres.dsn, "main")
        token = tokens.create("bob", [Role.AUDITOR], ["main"], timedelta(days=1))
        bob = Caller("bob", frozenset({Role.AUDITOR}), frozenset({"main"}))
        book = TokenBook(postgres.dsn, "main", seconds=seconds)
        with pytest.raises(CallersUnavailable):
            book.caller(token)
        await book.open()
        running = asyncio.create_task(book.run())
        assert book.caller(token) == bob

        await asyncio.to_thread(postgres.stop)
        assert book.caller(token) == bob
        ahead_s += STALE_S
        with pytest.raises(CallersUnavailable) as raised:
            book.caller(token)
        assert raised.value.code == "CALLERS_UNAVAILABLE"

        await asyncio.to_thread(postgres.start)
        await eventually(lambda: is_known(book, token))
        other = tokens.create("eve", [Role.ANALYST], ["main"], timedelta(days=1))
        await eventually(lambda: is_known(book, other))
        tokens.revoke(other)
        await eventually(lambda: not is_known(book, other))
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running

    with EmbeddedPostgres(tmp_path) as postgres:
        migrate(postgres.dsn, "main")
        asyncio.run(live(postgres))


def test_a_role_that_a_newer_release_knows_locks_nobody_out(tmp_path: Path) -> None:
    """While its servers replace the older ones: a token for it alone may do nothing here, and others go on."""

    async def live(postgres: EmbeddedPostgres) -> None:
        tokens = Tokens(postgres.dsn, "main")
        newer, bob = (tokens.create(name, [Role.AUDITOR], ["main"], timedelta(days=1)) for name in ("newer", "bob"))
        book = TokenBook(postgres.dsn, "main")
        with psycopg.connect(postgres.dsn, autocommit=True) as owner:
            owner.execute("ALTER TABLE callers.tokens DROP CONSTRAINT tokens_roles_are_known")
            owner.execute("ALTER TABLE callers.tokens DISABLE TRIGGER USER")
            owner.execute("UPDATE callers.tokens SET roles = '{astronaut}' WHERE name = 'newer'")
        await book.open()
        assert book.caller(newer).roles == frozenset()
        assert book.caller(bob).roles == {Role.AUDITOR}
        await book._disconnect()

    with EmbeddedPostgres(tmp_path) as postgres:
        migrate(postgres.dsn, "main")
        asyncio.run(live(postgres))


def is_known(book: TokenBook, token: str) -> bool:
    try:
        book.caller(token)
    except (Unauthenticated, CallersUnavailable):
        return False
    return True
