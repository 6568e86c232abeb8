"""The load generator: a process of its own that asks, checks every reply, and says what it took and what it cost.

It reads a job as JSON from stdin and writes the result as JSON to stdout. Bodies are made before the clock runs.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import uvloop

from bench import work
from bench.connection import OK, Connection, Reply, connected
from bench.cpu import sampled
from bench.frames import request_block
from bench.work import Call, of_ledger
from ledger.v1.batch_pb2 import ExecuteBatchResponse

CANCELLED: Final = 1
RESOURCE_EXHAUSTED: Final = 8
_TICK_S: Final = 0.001
_GATHER_S: Final = 0.002
_GATHER_FROM: Final = 128
"""Where so many calls are outstanding, each waits for tens of milliseconds, and 2 more change nothing."""
_CATCH_UP_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Job:
    """What to ask of whom. `kind` names the mix; the other fields are its sizes."""

    kind: str
    targets: list[str]
    tag: str
    calls: int
    ledger: str = "main"
    outstanding: int = 256
    connections: int = 2
    accounts: int = 10_000
    hot: bool = False
    retries: int = 0
    declines: int = 0
    batch: int = 1_000
    own_write: bool = True
    caught_up: bool = False
    """Whether the clock runs until the read models have what was written."""
    rate: float = 0.0
    """Calls per second of an open loop; 0 for a closed one, in which every reply makes the next call."""
    refusals: bool = False
    """Whether RESOURCE_EXHAUSTED is an answer that counts, and CANCELLED (of gRPC itself), and not an error."""
    programs: dict[str, list[int]] = field(default_factory=dict)
    """Process ids by group, whose CPU seconds are wanted."""


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a job. An error is anything but the reply that was due; the first texts are kept."""

    calls: int
    commands: int
    seconds: float
    errors: int
    error_texts: list[str]
    refused: int
    """With RESOURCE_EXHAUSTED, and its details."""
    cut_off: int
    """With CANCELLED, before the server has seen the call."""
    p50_ms: float
    p99_ms: float
    most_ms: float
    refused_p99_ms: float
    """Of both kinds."""
    client_cpu_us: float
    """Of this process, per call."""
    cpu_s: dict[str, float]
    by_target: dict[str, int]

    @property
    def rate(self) -> float:
        """Commands per second."""
        return self.commands / self.seconds


def calls_of(job: Job) -> list[Call]:
    """The calls of a job. Raises KeyError if there is no such kind."""
    size = job.batch if "batched" in job.kind else 1
    wanted = work.orders(
        job.tag, job.calls * size, job.accounts, hot=job.hot, retries=job.retries, declines=job.declines
    )
    makers = {
        "opening": lambda: work.opening(job.accounts),
        "authorize": lambda: work.authorize(wanted),
        "authorize_then_read": lambda: work.authorize_then_read(wanted, own_write=job.own_write),
        "authorize_batched": lambda: work.authorize_batched(wanted, size),
        "authorize_and_capture_batched": lambda: work.authorize_and_capture_batched(wanted, size, job.outstanding),
        "read_payments": lambda: work.read_payments([each.payment_id for each in wanted]),
        "read_balances": lambda: work.read_balances([each.payer for each in wanted]),
    }
    return makers[job.kind]()


class Load:
    """A run of a job's calls over its connections."""

    def __init__(self, job: Job, calls: Sequence[Call], connections: Sequence[Connection]) -> None:
        self._job, self._calls = job, calls
        self._connections = connections
        self._blocks = [
            {path: request_block(path, target, {}) for path in (*_PATHS, *{each.path for each in calls})}
            for target in _spread(job)
        ]
        self._next = 0
        self._left = len(calls)
        self._finished = asyncio.Event()
        self._answered = [0] * len(connections)
        self.took: list[float] = []
        self.took_refused: list[float] = []
        self.took_cut_off: list[float] = []
        self.errors: Counter[str] = Counter()
        self.commands = 0
        self.last_body = b""

    async def run(self) -> None:
        """Make all calls; return when the last is answered."""
        if not self._calls:
            return
        if self._job.rate:
            await self._offer()
        else:
            for number in range(min(self._job.outstanding, len(self._calls))):
                self._begin_next(number % len(self._connections))
            self._flush()
        await self._finished.wait()

    async def _offer(self) -> None:
        """The open loop: calls leave when they are due, whatever has been answered."""
        began, rate = time.perf_counter(), self._job.rate
        while self._next < len(self._calls):
            due = min(len(self._calls), int((time.perf_counter() - began) * rate))
            while self._next < due:
                # From when it was due, so that a generator that comes late does not hide what callers would wait.
                self._begin_next(self._next % len(self._connections), began + self._next / rate)
            self._flush()
            await asyncio.sleep(_TICK_S)

    def _begin_next(self, place: int, began: float | None = None) -> None:
        if self._next < len(self._calls):
            call = self._calls[self._next]
            self._next += 1
            self._begin(place, call, began or time.perf_counter())

    def _begin(self, place: int, call: Call, began: float) -> None:
        def done(reply: Reply) -> None:
            self._take(place, call, began, reply)

        self._connections[place].call(self._blocks[place][call.path], self._body(call), done)

    def _take(self, place: int, call: Call, began: float, reply: Reply) -> None:
        took = time.perf_counter() - began
        if reply.status == OK:
            wrong = call.check(reply.body)
            if wrong is not None:
                self.errors[wrong] += 1
            elif call.then is not None:
                self._begin(place, call.then(reply.body), began)
                return
            else:
                self.commands += call.commands
                self.took.append(took)
                self.last_body = reply.body
        elif reply.status == RESOURCE_EXHAUSTED and self._job.refusals:
            self.took_refused.append(took)
        elif reply.status == CANCELLED and self._job.refusals:
            self.took_cut_off.append(took)
        else:
            self.errors[f"status {reply.status}: {reply.text}"] += 1
        self._answered[place] += 1
        self._left -= 1
        if not self._left:
            self._finished.set()
        elif not self._job.rate:
            self._begin_next(place)

    def _flush(self) -> None:
        for each in self._connections:
            each.flush()

    async def until_read(self) -> None:
        """Wait until the read models have the last batch that was answered."""
        position = ExecuteBatchResponse.FromString(self.last_body).position
        call = work.read_balances([work.SHOP], position)[0]
        give_up = time.perf_counter() + _CATCH_UP_S
        while (status := await self._one(call)) != OK:
            if time.perf_counter() > give_up:
                raise TimeoutError(f"the read models do not get to {position}: status {status}")

    async def _one(self, call: Call) -> int:
        replied: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._connections[0].call(self._blocks[0][call.path], self._body(call), replied.set_result)
        self._connections[0].flush()
        return (await replied).status

    def _body(self, call: Call) -> bytes:
        return call.body if self._job.ledger == "main" else of_ledger(call.body, self._job.ledger)

    def by_target(self) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for target, answered in zip(_spread(self._job), self._answered, strict=True):
            counts[target] += answered
        return dict(counts)


_PATHS: Final = (work.GET_BALANCE,)


def _spread(job: Job) -> list[str]:
    """The target of each connection."""
    return [job.targets[number % len(job.targets)] for number in range(job.connections)]


async def run(job: Job) -> Result:
    """Do a job. Raises OSError if a target does not listen."""
    calls = calls_of(job)
    gather_s = _GATHER_S if job.outstanding >= _GATHER_FROM else 0.0
    connections = [await connected(target, gather_s) for target in _spread(job)]
    load = Load(job, calls, connections)
    gc.collect()
    gc.disable()
    before, own, began = sampled(job.programs), time.process_time(), time.perf_counter()
    await load.run()
    if job.caught_up:
        await load.until_read()
    seconds, own, after = time.perf_counter() - began, time.process_time() - own, sampled(job.programs)
    for each in connections:
        each.close()
    return Result(
        calls=len(calls),
        commands=load.commands,
        seconds=seconds,
        errors=sum(load.errors.values()),
        error_texts=[text for text, _ in load.errors.most_common(3)],
        refused=len(load.took_refused),
        cut_off=len(load.took_cut_off),
        p50_ms=_percentile(load.took, 0.5),
        p99_ms=_percentile(load.took, 0.99),
        most_ms=_percentile(load.took, 1.0),
        refused_p99_ms=_percentile(load.took_refused + load.took_cut_off, 0.99),
        client_cpu_us=own / max(1, len(calls)) * 1e6,
        cpu_s={name: after[name] - before[name] for name in after} | {"client": own},
        by_target=load.by_target(),
    )


def _percentile(seconds: list[float], share: float) -> float:
    """In milliseconds; 0 if there is nothing."""
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1_000 if ordered else 0.0


def main() -> None:
    given: dict[str, Any] = json.load(sys.stdin)
    json.dump(asdict(uvloop.run(run(Job(**given)))), sys.stdout)


if __name__ == "__main__":
    main()
