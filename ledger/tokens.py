"""Tokens: made, listed and revoked in the database, which knows only their hashes; and known by the server."""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
from collections.abc import Callable, Collection
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from time import monotonic
from typing import Any, Final

import psycopg
import structlog
from psycopg.rows import class_row

from ledger.callers import RESERVED, Caller, CallersUnavailable, Role, Unauthenticated, caller_name
from ledger.committer import utc_now
from ledger.postgres import LEDGER_NAME, connect, connection_settings, sql_blocks
from ledger.postgres import Role as PostgresRole

PREFIX: Final = "lgr_"
"""What every token starts with, so that scanners of repositories and logs know one when they see it."""

_TOKEN: Final = re.compile(r"lgr_([0-9a-f]{12})_[A-Za-z0-9_-]{43}").fullmatch

REFRESH_S: Final = 1.0
"""How long a server may not know yet that a token was made or revoked."""

STALE_S: Final = 30.0
"""How old that knowledge may get while the database is away. After that nobody is let in."""

_ROLES: Final = {role.value: role for role in Role}

log = structlog.get_logger(__name__)
_SQL: Final = sql_blocks("ledger.sql", "tokens.sql")


class TokenUnusable(Exception):
    """What was asked for can't be done. The message is for the person who asked."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A token as lists show it: all but what could be used."""

    token_id: str
    name: str
    roles: list[str]
    ledgers: list[str]
    created_at: datetime
    created_by: str
    expires_at: datetime
    revoked_at: datetime | None
    state: str
    """valid, expired or revoked"""

    def as_json(self) -> dict[str, Any]:
        """The same for programs, with times as RFC 3339 has them."""
        fields = asdict(self)
        return {key: each.isoformat() if isinstance(each, datetime) else each for key, each in fields.items()}


class Tokens:
    """The tokens of one database, for whoever may manage them."""

    def __init__(self, dsn: str, ledger: str) -> None:
        """`ledger` is any that is migrated there: tokens are beside them all."""
        self._dsn, self._ledger = dsn, ledger

    def create(self, name: str, roles: Collection[Role], ledgers: Collection[str], valid_for: timedelta) -> str:
        """A new token. It is nowhere but in what is returned. Raises TokenUnusable."""
        if not caller_name(name) or name in RESERVED:
            rule = "a-z, 0-9 and . _ -, at most 64, starting with a letter or digit; not anonymous or sweeper"
            raise TokenUnusable(f"{name!r} can't be a caller's name: that is {rule}")
        for each in ledgers:
            if not LEDGER_NAME(each):
                raise TokenUnusable(f"{each!r} can't be a ledger's name")
        token_id = secrets.token_hex(6)
        token = f"{PREFIX}{token_id}_{secrets.token_urlsafe(32)}"
        row = {
            "token_id": token_id,
            "secret_hash": _hash(token),
            "name": name,
            "roles": sorted({role.value for role in roles}),
            "ledgers": sorted({*ledgers}),
            "valid_for": valid_for,
        }
        with connect(self._dsn, self._ledger, "ledger-token") as connection:
            connection.execute(_SQL.insert, row)
        return token

    def list(self) -> list[Listed]:
        """Every token that was ever made, oldest first."""
        with connect(self._dsn, self._ledger, "ledger-token") as connection:
            return connection.cursor(row_factory=class_row(Listed)).execute(_SQL.list).fetchall()

    def revoke(self, token: str) -> bool:
        """End a token, named by its id or by itself; False if it was revoked before. Raises TokenUnusable."""
        found = _TOKEN(token)
        token_id = found[1] if found else token
        with connect(self._dsn, self._ledger, "ledger-token") as connection:
            if connection.execute(_SQL.revoke, {"token_id": token_id}).rowcount:
                return True
            if connection.execute(_SQL.exists, {"token_id": token_id}).fetchone() is None:
                raise TokenUnusable(f"there is no token {token_id!r}: `ledger token list` shows them")
            return False


@dataclass(frozen=True, slots=True)
class _Known:
    caller: Caller
    expires_at: datetime
    is_revoked: bool


class TokenBook:
    """What a server knows of tokens, renewed every second. Asking it costs no query."""

    def __init__(
        self,
        dsn: str,
        ledger: str,
        clock: Callable[[], datetime] = utc_now,
        seconds: Callable[[], float] = monotonic,
    ) -> None:
        self._settings: Final = connection_settings(dsn, ledger, "ledger-callers", PostgresRole.WRITER)
        self._clock: Final = clock
        self._seconds: Final = seconds
        self._known: dict[bytes, _Known] = {}
        self._state: Any = None
        self._renewed_at: float | None = None
        self._connection: psycopg.AsyncConnection[Any] | None = None

    def caller(self, token: str) -> Caller:
        """Whose token it is. Raises Unauthenticated, or CallersUnavailable if what is known here is too old."""
        if self._renewed_at is None or self._seconds() - self._renewed_at > STALE_S:
            raise CallersUnavailable
        # A look-up by the hash of 256 random bits tells nothing by the time that it takes.
        known = self._known.get(_hash(token))
        if known is None:
            raise Unauthenticated(why="there is no such token")
        if known.is_revoked:
            raise Unauthenticated(why="it was revoked")
        if known.expires_at <= self._clock():
            raise Unauthenticated(why=f"it expired at {known.expires_at:%Y-%m-%dT%H:%M:%SZ}")
        return known.caller

    async def open(self) -> None:
        """Read all tokens. Raises psycopg's errors."""
        await self._renew()

    async def run(self) -> None:
        """Keep it new until cancelled. Without the database it goes on with what it knows, for STALE_S."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._disconnect)
            while True:
                await asyncio.sleep(REFRESH_S)
                try:
                    await self._renew()
                except psycopg.Error as error:
                    log.warning("tokens_not_read", why=type(error).__name__)
                    await self._disconnect()

    async def _renew(self) -> None:
        asked_at = self._seconds()
        if self._connection is None:
            self._connection = await psycopg.AsyncConnection.connect(autocommit=True, **self._settings)
        # The state first: what changes between the two is read again the next time.
        state = await (await self._connection.execute(_SQL.state)).fetchone()
        if state != self._state:
            rows = await (await self._connection.execute(_SQL.load)).fetchall()
            self._known = {bytes(secret_hash): _known(*rest) for secret_hash, *rest in rows}
            self._state = state
        self._renewed_at = asked_at

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


def _known(
    name: str, roles: list[str], ledgers: list[str], expires_at: datetime, revoked_at: datetime | None
) -> _Known:
    # A newer release may have made a token for a role that this one has nothing for.
    roles_here = frozenset(_ROLES[each] for each in roles if each in _ROLES)
    return _Known(Caller(name, roles_here, frozenset(ledgers)), expires_at, revoked_at is not None)


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
