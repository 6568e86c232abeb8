"""The server: committer, queries, signer and gRPC in one process, a follower in another; from start to drain."""

from __future__ import annotations

import asyncio
import math
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import structlog
import uvloop

from ledger import collector
from ledger.audit.keys import KeyFiles
from ledger.audit.proofs import Proofs
from ledger.audit.read_events import EventReader
from ledger.audit.signer import Signer
from ledger.committer import CLOCK_OFF_S, Committer, utc_now
from ledger.durability import require_durable
from ledger.follower_process import FollowerProcess, Terms
from ledger.gate import Gate, Limits
from ledger.grpc_server import GrpcServer
from ledger.metrics import ServerMetrics
from ledger.migrations import require_migrated, require_read_models
from ledger.parts import READ, WRITE, Parts, readings
from ledger.postgres import Role
from ledger.rate_limit import RateLimit
from ledger.read_database import require_same_log
from ledger.roles import SERVER_ROLES
from ledger.scraping import metrics_served
from ledger.services import SERVICES, Desk, Open, free_places, refuser, rpcs
from ledger.settings import Settings, split_address
from ledger.standard_services import HEALTH, REFLECTION, Health, reflection_rpcs
from ledger.sweeper import SWEEP_EVERY_S, Sweeper
from ledger.tls import Certificates, TlsFiles
from ledger.tokens import TokenBook
from projections.connections import Connections
from projections.log_head import LogHead
from projections.queries import Queries

GRACE_S: Final = 5.0
PENDING_MOST: Final = 128
PING_LEAST_MS: Final = 1_000
_HEALTH_POLL_S: Final = 0.1
_START_POLL_S: Final = 0.01
_LISTEN_WITHIN_S: Final = 3.0
"""So long a server that starts keeps callers waiting who could only be refused; then it tells them why it refuses."""

log = structlog.get_logger(__name__)


class CannotListen(Exception):
    """The address is taken or not ours."""


@dataclass(frozen=True, slots=True)
class Timing:
    """The clocks that a server goes by. Tests of what time brings move them."""

    clock: Callable[[], datetime] = utc_now
    clock_off_most_s: float = CLOCK_OFF_S
    """How far the clock may be off the database's while commands are served."""

    sweeper_clock: Callable[[], datetime] = utc_now
    """May be behind the other, as that of a sweeper elsewhere may be: what it proposes is decided by the clock."""

    sweep_every_s: float = SWEEP_EVERY_S


REAL_TIME: Final = Timing()


def run(settings: Settings, dsn: str, ready: Callable[[str], None], timing: Timing = REAL_TIME) -> None:
    """Serve until SIGTERM or SIGINT, then drain. `ready` is told the address once calls are answered.

    Raises SchemaError, RoleMissing, UnsafeDurability, WrongReadDatabase, CannotListen, TlsUnusable or psycopg's errors
    if it can't start.
    """
    require_migrated(dsn, settings.ledger, *SERVER_ROLES, callers=settings.tokens)
    require_read_models(dsn, settings.ledger, Role.AUDITOR)
    require_durable(dsn, settings.ledger, told=settings.unsafe_durability)
    if settings.read_dsn is not None:
        require_same_log(dsn, settings.read_dsn, settings.ledger)
    certificates = _certificates(settings)
    collector.settle()
    uvloop.run(_serve(settings, dsn, certificates, ready, timing))


def _certificates(settings: Settings) -> Certificates | None:
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    return Certificates(TlsFiles(settings.tls_cert, settings.tls_key, settings.tls_client_ca))


async def _serve(
    settings: Settings, dsn: str, certificates: Certificates | None, ready: Callable[[str], None], timing: Timing
) -> None:
    stopping = asyncio.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, stopping.set)
    async with AsyncExitStack() as stack:
        metrics = ServerMetrics()
        parts = await _start_parts(settings, dsn, timing, metrics, stack)
        gate = await _gate(settings, dsn, stack)
        await _until_decides(parts, stopping, _LISTEN_WITHIN_S)
        server, health, address = _start_grpc(settings, parts, gate, certificates, metrics)
        metrics.read_from(lambda: readings(parts))
        stack.enter_context(metrics_served(settings.metrics_listen, metrics.registry))
        for task in (asyncio.create_task(_watch(parts, health)), asyncio.create_task(parts.sweeper.run())):
            stack.push_async_callback(_cancel, task)
        if await _until_decides(parts, stopping):
            _report(parts, health)
            ready(address)
        await stopping.wait()
        log.info("draining", grace_s=GRACE_S)
        health.drain()
        parts.events.drain()
        await server.stop(GRACE_S)


async def _start_parts(
    settings: Settings, dsn: str, timing: Timing, metrics: ServerMetrics, stack: AsyncExitStack
) -> Parts:
    """Start what decides and what reads; on leaving the stack they end in the opposite order."""
    follower = None
    if settings.follower:
        standby_reads = settings.read_dsn is not None
        terms = Terms(dsn, settings.ledger, settings.log_level, settings.log_format, standby_reads)
        follower = FollowerProcess(terms)
    heads = Connections(dsn, settings.ledger, name="ledger-heads", most=1)
    stack.push_async_callback(heads.close)
    log_head = LogHead(heads.rows, known=lambda: committer.head.position)
    events = EventReader(settings.read_dsn or dsn, settings.ledger, log_head)

    def appended(head: int) -> None:
        events.appended(head)
        if follower is not None:
            follower.wake()

    committer = Committer(
        dsn,
        settings.ledger,
        appended=appended,
        clock=timing.clock,
        clock_off_most_s=timing.clock_off_most_s,
        queue_most=settings.queue_most_commands,
        memory_most=settings.memory_most_streams,
        committed=metrics.committed,
    )
    arrivals = None if follower is None else follower.arrivals
    queries = Queries(settings.read_dsn or dsn, settings.ledger, arrivals=arrivals, log_head=log_head)
    await queries.open()
    stack.push_async_callback(queries.close)
    events.open()
    stack.push_async_callback(events.close)
    stops: list[Callable[[], None]] = []
    stack.push_async_callback(_at_once, stops)
    if follower is not None:
        follower.start()
        stops.append(follower.stop)
    committer.start()
    stops.append(committer.stop)
    key_path, signer = settings.key_path, None
    if key_path is not None:
        signer = Signer(dsn, settings.ledger, KeyFiles(key_path, settings.origin))
        signer.start()
        stops.append(signer.stop)
    sweeper = Sweeper(committer, queries.expired_payments, timing.sweeper_clock, timing.sweep_every_s)
    return Parts(settings, committer, queries, Proofs(queries.rows, log_head), events, sweeper, signer)


async def _gate(settings: Settings, dsn: str, stack: AsyncExitStack) -> Gate:
    """What lets callers in, by the tokens in the database if they are asked for one."""
    limits = Limits(settings.calls_most, settings.deadline_default_s, settings.deadline_least_s)
    rate = settings.rate_per_s and RateLimit(settings.rate_per_s, settings.rate_burst or settings.rate_per_s)
    if not settings.tokens:
        return Gate(None, limits, rate or None)
    book = TokenBook(dsn, settings.ledger)
    await book.open()
    stack.push_async_callback(_cancel, asyncio.create_task(book.run()))
    return Gate(book, limits, rate or None)


def _start_grpc(
    settings: Settings, parts: Parts, gate: Gate, certificates: Certificates | None, metrics: ServerMetrics
) -> tuple[GrpcServer, Health, str]:
    options = [
        # Without this a second server on the same port would start without a word and swallow connections.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", settings.message_most_bytes),
        # gRPC hangs up on who pings more often than every 5 minutes, or every 2 hours where no call is under way. But
        # clients do so every 10 s, to learn whether a connection on which nothing comes is still there.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", PING_LEAST_MS),
        # Calls beyond those that GrpcServer has room for: from so many on gRPC cuts off some, from twice as many all.
        ("grpc.server.max_pending_requests", PENDING_MOST),
        ("grpc.server.max_pending_requests_hard_limit", 2 * PENDING_MOST),
    ]
    reads = {**parts.queries.by_rpc, **parts.proofs.by_rpc}
    streams = {**parts.queries.streams, "ReadEvents": parts.events.read_events}
    desk = Desk({settings.ledger: Open(parts.committer, reads, streams)})
    health = Health()
    described = [*(each.full_name for each in SERVICES), HEALTH, REFLECTION]
    served = {**rpcs(desk, gate, metrics), **health.rpcs(), **reflection_rpcs(described, gate)}
    server = GrpcServer(served, options, refuser(gate, metrics), free_places(gate))
    _require_free(settings.listen)
    try:
        port = server.add_port(settings.listen, None if certificates is None else certificates.credentials())
    except RuntimeError as error:
        raise CannotListen(f"can't listen on {settings.listen}") from error
    server.start()
    host, _ = split_address(settings.listen)
    return server, health, f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _require_free(address: str) -> None:
    """Raise CannotListen if the address can't be listened on. gRPC would say so as well, but in lines of its own."""
    host, port = split_address(address)
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        raise CannotListen(f"can't listen on {address}: {error.strerror}. Is another server running there?") from error


async def _until_decides(parts: Parts, stopping: asyncio.Event, most_s: float = math.inf) -> bool:
    """Wait until commands are decided, it is to stop, or time is over; whether they are."""
    give_up = time.monotonic() + most_s
    while parts.committer.outage is not None and not stopping.is_set() and time.monotonic() < give_up:
        with suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), _START_POLL_S)
    return parts.committer.outage is None and not stopping.is_set()


async def _watch(parts: Parts, health: Health) -> None:
    """Keep health true."""
    while True:
        _report(parts, health)
        await asyncio.sleep(_HEALTH_POLL_S)


def _report(parts: Parts, health: Health) -> None:
    """The services follow writes, reads stand beside them."""
    parts.see_tree()
    parts.see_stall()
    health.set(parts.serves_writes, ["", WRITE, *(each.full_name for each in SERVICES)])
    health.set(parts.serves_reads, [READ])


async def _at_once(stops: Sequence[Callable[[], None]]) -> None:
    """Each may have to wait for a database that does not answer, and a server has 15 s in all (docs/containers.md)."""
    await asyncio.gather(*(asyncio.to_thread(stop) for stop in stops))


async def _cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
