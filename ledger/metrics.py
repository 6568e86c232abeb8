"""Metrics: what one process counts, and the numbers of its parts that are read when somebody asks. See docs/metrics.md.

What happens often is counted where it happens, with everything bound beforehand. What exists as a number anyway (a
queue's length, a lag) is not counted a second time: `read_from` is told who knows it, who is asked at each scrape.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import prometheus_client
from grpc import StatusCode
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ledger.domain.decisions import Outcome
from ledger.outages import Outage
from ledger.ticket import Result

# A second series beside each, of when it began to be counted, would tell nothing that the process' start doesn't.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]

_DURATIONS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_BATCH_SIZES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000)


@dataclass(frozen=True, slots=True)
class Figure:
    """A metric whose numbers exist elsewhere."""

    name: str
    meaning: str
    labels: tuple[str, ...] = ()

    @property
    def is_counter(self) -> bool:
        return self.name.endswith("_total")


FIGURES: Final = (
    Figure(
        "ledger_info",
        "1, with the ledger that this process is for and the version of the program.",
        ("ledger", "version"),
    ),
    Figure("ledger_serving", "1 while health says SERVING, else 0.", ("service",)),
    Figure("ledger_queue_commands", "Commands that wait to be decided."),
    Figure("ledger_queue_most_commands", "With so many waiting, the next one of a client is refused."),
    Figure("ledger_commit_age_seconds", "For how long the commit, or look at the log, that is under way has been."),
    Figure("ledger_lost_races_total", "Batches decided twice because another server appended first."),
    Figure("ledger_decided_ahead_total", "Batches that were decided while the one before was being recorded."),
    Figure("ledger_head_position", "The last position of the log that this process has seen."),
    Figure("ledger_clock_offset_seconds", "How far this machine's clock is ahead of the database's."),
    Figure("ledger_memory_streams", "Accounts, payments and transfers in the committer's memory."),
    Figure("ledger_sweeps_total", "Looks for authorizations whose time is over."),
    Figure("ledger_expired_authorizations_total", "Authorizations that this process recorded as expired."),
    Figure("ledger_follower_position", "The last position that the read models include.", ("follower",)),
    Figure("ledger_follower_lag_events", "Events of the log that are not in the read models yet.", ("follower",)),
    Figure("ledger_follower_lag_seconds", "For how long the oldest of them has been waiting.", ("follower",)),
    Figure("ledger_follower_stopped", "1 if following has stopped at an event that can't be applied.", ("follower",)),
    Figure("ledger_tree_size", "How many events the last signed tree head covers."),
    Figure("ledger_tree_lag_events", "Events of the log that no signed tree head covers yet."),
    Figure("ledger_tree_lag_seconds", "For how long the oldest of them has been waiting."),
    Figure("ledger_signing_refused", "1 while this process refuses to sign tree heads."),
    Figure("ledger_connections", "Connections for reads, by pool; busy or idle.", ("pool", "state")),
    Figure("ledger_connections_most", "How many a pool has at most.", ("pool",)),
    Figure("ledger_connections_awaited", "Reads that wait for a connection of a pool.", ("pool",)),
    Figure("ledger_following_calls", "Calls of ReadEvents that follow the log."),
)


class Reading(NamedTuple):
    """The number of a figure now, with the values of its labels."""

    name: str
    value: float
    labels: tuple[str, ...] = ()


class Metrics:
    """The metrics of one process, in a registry of its own: figures, and what the system knows of the process."""

    def __init__(self) -> None:
        self.registry: Final = CollectorRegistry()
        self._figures: Final = _Figures()
        self.registry.register(self._figures)
        ProcessCollector(registry=self.registry)

    def read_from(self, source: Callable[[], Iterable[Reading]]) -> None:
        """Ask `source` for readings of figures at each scrape, from a thread of its own."""
        self._figures.sources.append(source)


class ServerMetrics(Metrics):
    """Those of a server, which counts calls and commits as well."""

    def __init__(self) -> None:
        super().__init__()
        self._requests: Final = Histogram(
            "ledger_request_duration_seconds",
            "How long calls took, by rpc and by the name of the status code that they were answered with.",
            ("rpc", "code"),
            buckets=_DURATIONS_S,
            registry=self.registry,
        )
        self._commit_duration: Final = Histogram(
            "ledger_commit_duration_seconds",
            "How long it took to have what goes into one append decided, if that was not done ahead, and durable.",
            buckets=_DURATIONS_S,
            registry=self.registry,
        )
        self._commit_commands: Final = Histogram(
            "ledger_commit_commands",
            "How many commands were decided together.",
            buckets=_BATCH_SIZES,
            registry=self.registry,
        )
        self._commands: Final = Counter(
            "ledger_commands_total",
            "What came of commands, those in batches each for itself.",
            ("outcome",),
            registry=self.registry,
        )
        self._outcomes: Final = {each: self._commands.labels(each) for each in _OUTCOMES}

    def of_rpc(self, rpc: str) -> Callable[[StatusCode, float], None]:
        """What is to be told the status code and the seconds of each call of an rpc that has ended."""
        observers = {StatusCode.OK: self._requests.labels(rpc, StatusCode.OK.name).observe}

        def ended(code: StatusCode, took_s: float) -> None:
            observe = observers.get(code)
            if observe is None:
                observe = observers[code] = self._requests.labels(rpc, code.name).observe
            observe(took_s)

        return ended

    def committed(self, results: Iterable[Sequence[Result]], took_s: float) -> None:
        """What was decided together, and answered: the results of every caller."""
        outcomes = Tally(_outcome_of(result) for each in results for result in each)
        for outcome, count in outcomes.items():
            self._outcomes[outcome].inc(count)
        self._commit_commands.observe(outcomes.total())
        self._commit_duration.observe(took_s)


_OUTCOMES: Final = ("recorded", "declined", "replayed", "validated", "refused", "unavailable")


def _outcome_of(result: Result) -> str:
    if isinstance(result, Outage):
        return "unavailable"
    if not isinstance(result, Outcome):
        return "refused"
    if result.replayed:
        return "replayed"
    if not result.position:
        return "validated"
    return "recorded" if result.decline is None else "declined"


class _Figures(Collector):
    def __init__(self) -> None:
        self.sources: Final[list[Callable[[], Iterable[Reading]]]] = []

    def describe(self) -> Iterator[Metric]:
        """Names without numbers: when a process starts, those who know them may not be there yet."""
        return map(_family, FIGURES)

    def collect(self) -> Iterator[Metric]:
        families = {figure.name: _family(figure) for figure in FIGURES}
        for source in self.sources:
            for name, value, labels in source():
                families[name].add_metric(labels, value)
        return (family for family in families.values() if family.samples)


def _family(figure: Figure) -> CounterMetricFamily | GaugeMetricFamily:
    family = CounterMetricFamily if figure.is_counter else GaugeMetricFamily
    return family(figure.name, figure.meaning, labels=figure.labels)
