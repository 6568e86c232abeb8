"""`ledger follow`: the follower as a process of its own, until it is told to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from importlib.metadata import version

from ledger import collector
from ledger.metrics import Metrics, Reading
from ledger.migrations import require_migrated, require_read_models
from ledger.postgres import Role
from ledger.scraping import metrics_served
from ledger.settings import Settings
from projections.checkpoint import FOLLOWER
from projections.follower import Follower
from projections.freshness import WATCH_S
from projections.lag_watch import LagWatch


class FollowerStopped(Exception):
    """The follower stopped at an event that can't be applied; the message says which and why."""


def run(settings: Settings, dsn: str, ready: Callable[[], None]) -> None:
    """Follow until SIGTERM or SIGINT. `ready` is called when it has begun.

    Raises FollowerStopped, and if it can't start SchemaError, RoleMissing, CannotServeMetrics or psycopg's errors.
    """
    require_migrated(dsn, settings.ledger, Role.PROJECTOR)
    require_read_models(dsn, settings.ledger, Role.PROJECTOR)
    collector.settle()
    stopping = threading.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: stopping.set())
    follower = Follower(dsn, settings.ledger, standby_reads=settings.read_dsn is not None)
    watch, metrics = LagWatch(dsn, settings.ledger), Metrics()
    metrics.read_from(lambda: _readings(settings, watch))
    with metrics_served(settings.metrics_listen, metrics.registry):
        follower.start()
        ready()
        # Asked once: a failure that a rebuild takes back a moment later has ended this all the same.
        while (failure := follower.failure) is None and not stopping.wait(WATCH_S):
            watch.look()
        follower.stop()
        watch.close()
    if failure is not None:
        raise FollowerStopped(f"the follower stopped: {failure}")


def _readings(settings: Settings, watch: LagWatch) -> Iterator[Reading]:
    yield Reading("ledger_info", 1, (settings.ledger, version("payment-ledger")))
    yield Reading("ledger_head_position", watch.head)
    yield Reading("ledger_follower_position", watch.position, (FOLLOWER,))
    yield Reading("ledger_follower_lag_events", watch.lag.events, (FOLLOWER,))
    yield Reading("ledger_follower_lag_seconds", watch.lag.seconds, (FOLLOWER,))
    yield Reading("ledger_follower_stopped", watch.stopped, (FOLLOWER,))
