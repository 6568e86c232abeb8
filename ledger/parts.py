"""The parts of a server: what runs beside gRPC for one ledger, whether it is well, and what it measures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Final

from ledger.audit.proofs import Proofs
from ledger.audit.read_events import EventReader
from ledger.audit.signer import Signer
from ledger.committer import Committer
from ledger.metrics import Reading
from ledger.settings import Settings
from ledger.stall import STALL_S, Stall
from ledger.sweeper import Sweeper
from projections.checkpoint import FOLLOWER
from projections.lag import Lag
from projections.queries import Queries

READ: Final = "ledger.v1.read"
WRITE: Final = "ledger.v1.write"


@dataclass(frozen=True, slots=True)
class Parts:
    """What decides, what reads, and what keeps the ledger in order meanwhile."""

    settings: Settings
    committer: Committer
    queries: Queries
    proofs: Proofs
    events: EventReader
    sweeper: Sweeper
    signer: Signer | None
    tree_lag: Lag = field(default_factory=Lag)
    stall: Stall = field(default_factory=Stall)

    @property
    def serves_writes(self) -> bool:
        """Whether commands are decided: connected, the log whole, the clock right, and none in hand for too long."""
        return self.committer.outage is None and self.committer.waits_s <= STALL_S

    @property
    def serves_reads(self) -> bool:
        """Whether reads are answered, and from read models that are not too old."""
        return self.queries.failure is None and self.queries.lag.seconds <= self.settings.read_lag_most_s

    def see_tree(self) -> None:
        """Note how far the tree is behind the log."""
        if self.signer is not None:
            self.tree_lag.see(self.committer.head.position, self.signer.size)

    def see_stall(self) -> None:
        """Note for how long the committer has been waiting for the database."""
        self.stall.see(self.committer.waits_s, self.settings.ledger)


def readings(parts: Parts) -> Iterator[Reading]:
    """The figures of a server, as they are now."""
    committer, queries = parts.committer, parts.queries
    yield Reading("ledger_info", 1, (parts.settings.ledger, version("payment-ledger")))
    yield Reading("ledger_serving", parts.serves_writes, (WRITE,))
    yield Reading("ledger_serving", parts.serves_reads, (READ,))
    yield Reading("ledger_queue_commands", committer.waiting)
    yield Reading("ledger_queue_most_commands", parts.settings.queue_most_commands)
    yield Reading("ledger_commit_age_seconds", committer.waits_s)
    yield Reading("ledger_lost_races_total", committer.lost_races)
    yield Reading("ledger_decided_ahead_total", committer.decided_ahead)
    yield Reading("ledger_head_position", committer.head.position)
    yield Reading("ledger_memory_streams", committer.remembered)
    if (offset_s := committer.clock_offset_s) is not None:
        yield Reading("ledger_clock_offset_seconds", offset_s)
    yield Reading("ledger_sweeps_total", parts.sweeper.sweeps)
    yield Reading("ledger_expired_authorizations_total", parts.sweeper.expired)
    yield Reading("ledger_follower_position", queries.position, (FOLLOWER,))
    yield Reading("ledger_follower_lag_events", queries.lag.events, (FOLLOWER,))
    yield Reading("ledger_follower_lag_seconds", queries.lag.seconds, (FOLLOWER,))
    yield Reading("ledger_follower_stopped", queries.stopped, (FOLLOWER,))
    if parts.signer is not None:
        yield Reading("ledger_tree_size", parts.signer.size)
        yield Reading("ledger_tree_lag_events", parts.tree_lag.events)
        yield Reading("ledger_tree_lag_seconds", parts.tree_lag.seconds)
        yield Reading("ledger_signing_refused", parts.signer.failure is not None)
    for pool in (*queries.pools, parts.events.pool):
        yield Reading("ledger_connections", pool.busy, (pool.name, "busy"))
        yield Reading("ledger_connections", pool.idle, (pool.name, "idle"))
        yield Reading("ledger_connections_most", pool.most, (pool.name,))
        yield Reading("ledger_connections_awaited", pool.awaited, (pool.name,))
    yield Reading("ledger_following_calls", parts.events.following)
