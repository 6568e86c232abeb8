"""The digest: one fingerprint of all that a ledger comes to at a position. docs/audit.md says exactly what is in it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from psycopg import Connection

from ledger.audit.snapshot import EPOCH, batches, head_of, opened, reading
from ledger.domain.events import AccountKind, PaymentAmounts, PaymentAuthorized, TransferPosted
from ledger.domain.payment import NOTHING, authorized_amounts
from ledger.domain.payment_state import payment_state
from ledger.postgres import sql_blocks
from ledger.upcasters import EventMapper

FORMAT: Final = "ledger/digest/1"
SQL: Final = sql_blocks("ledger.audit", "digest.sql")

_UNSET: Final = "-"
"""No id and no number looks like this."""


class Digest(NamedTuple):
    """The fingerprint of a ledger's state at a position, and how many things are in it."""

    position: int
    sha256: str
    accounts: int
    payments: int
    transfers: int

    @property
    def line(self) -> str:
        return f"{FORMAT} {self.position} {self.sha256}"


class AboveHead(Exception):
    """The log does not reach the position yet."""


class NoDigest(Exception):
    """An event does not tell what has to be in the digest."""


class Logged(NamedTuple):
    """An event, as far as it is needed here."""

    position: int
    stream: str
    version: int
    topic: str
    state: bytes


def digest(
    dsn: str,
    ledger: str,
    at: int | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
    shared: str | None = None,
) -> Digest:
    """The digest at a position, the head unless one is given. `progress` is told the events done and to be done.

    `shared` is the snapshot of another connection to make it in.

    Raises AboveHead, and NoDigest naming the event that can't be understood.
    """
    with opened(dsn, ledger, shared) as connection:
        head = head_of(connection)
        position = head if at is None else at
        if position > head:
            raise AboveHead(f"position {position:,} is above the head, {head:,}")
        fingerprint = hashlib.sha256(f"{FORMAT} {position}\n".encode())
        seen = {"account": 0, "payment": 0, "transfer": 0}
        for line in _lines(connection, position, progress):
            seen[line.partition(" ")[0]] += 1
            fingerprint.update(line.encode() + b"\n")
        return Digest(position, fingerprint.hexdigest(), seen["account"], seen["payment"], seen["transfer"])


def _lines(connection: Connection[Any], position: int, progress: Callable[[int, int], None]) -> Iterator[str]:
    """A line for each account, payment and transfer, in byte order of their streams."""
    mapper = EventMapper()
    for first, last in _ends(_events(connection, position, progress)):
        try:
            yield line_of(first, last, mapper)
        except (ValueError, KeyError, TypeError) as error:
            where = f"position {last.position:,} ({last.stream}, version {last.version})"
            raise NoDigest(f"{where} can't be understood: {error}") from error


def _ends(events: Iterable[Logged]) -> Iterator[tuple[Logged, Logged]]:
    """The first event of each stream and its last."""
    first = last = None
    for event in events:
        if first is not None and last is not None and event.stream != first.stream:
            yield first, last
            first = None
        first, last = first or event, event
    if first is not None and last is not None:
        yield first, last


def _events(connection: Connection[Any], position: int, progress: Callable[[int, int], None]) -> Iterator[Logged]:
    done = 0
    for rows in batches(reading(connection, "digest", SQL.streams, {"at": position})):
        yield from map(Logged._make, rows)
        done += len(rows)
        progress(done, position)


def line_of(first: Logged, last: Logged, mapper: EventMapper) -> str:
    """The facts of one stream, from its first event and its last. Raises ValueError, KeyError or TypeError."""
    kind, _, id_ = first.stream.partition("/")
    facts = _FACTS[kind](first, last, mapper)
    return " ".join([kind, id_, *(_UNSET if each is None else str(each) for each in facts), str(last.version)])


def _account(_: Logged, last: Logged, mapper: EventMapper) -> tuple[Any, ...]:
    after = mapper.fields_of(last.topic, last.state)[1]["after"]
    limit = None if after["kind"] == AccountKind.EXTERNAL else after["credit_limit"]
    known = after["currency_code"], after["kind"], after["status"], after.get("freeze_scope")
    return *known, after["posted"], after["reserved"], limit


def _payment(first: Logged, last: Logged, mapper: EventMapper) -> tuple[Any, ...]:
    kind, asked = mapper.fields_of(first.topic, first.state)
    amount = asked["amount"]["minor_units"]
    amounts = authorized_amounts(amount) if kind is PaymentAuthorized else NOTHING
    if last.version != first.version:
        amounts = PaymentAmounts(**mapper.fields_of(last.topic, last.state)[1]["after"])
    parties = asked["payer_account_id"], asked["payee_account_id"], asked["amount"]["currency_code"]
    where = (
        amounts.authorized,
        amounts.capturable,
        amounts.captured,
        amounts.released,
        amounts.expired,
        amounts.refunded,
    )
    return *parties, payment_state(amounts), amount, *where, _microseconds(asked.get("expires_at"))


def _transfer(_: Logged, last: Logged, mapper: EventMapper) -> tuple[Any, ...]:
    kind, _fields = mapper.fields_of(last.topic, last.state)
    return ("POSTED" if kind is TransferPosted else "DECLINED",)


def _microseconds(text: str | None) -> int | None:
    return None if text is None else (datetime.fromisoformat(text) - EPOCH) // timedelta(microseconds=1)


_FACTS: Final[dict[str, Callable[[Logged, Logged, EventMapper], tuple[Any, ...]]]] = {
    "account": _account,
    "payment": _payment,
    "transfer": _transfer,
}
