"""The sweeper: records that authorizations have expired, soon after they did.

To every command a payment is expired from `expires_at` on, swept or not; the sweeper gives the money back. It only
proposes: the candidates come from a read model that may be behind, the committer decides on the log. So it may run in
any number of processes, and be stopped anywhere: an authorization expires once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from datetime import datetime
from typing import Final

import structlog

from ledger.committer import Committer, utc_now
from ledger.domain.commands import ExpireAuthorization
from ledger.domain.decisions import Outcome
from ledger.domain.errors import Refusal
from ledger.domain.payment import Payment
from ledger.ticket import Result, Ticket

SWEEP_EVERY_S: Final = 0.5
SWEEP_MOST: Final = 500
SETTLED_MOST: Final = 20 * SWEEP_MOST

log = structlog.get_logger(__name__)

Candidates = Callable[[datetime, int], Awaitable[Sequence[str]]]
"""The ids of payments that have something capturable and whose time was over at a moment; at most so many."""


class Sweeper:
    """Proposes to one committer what a read model shows as expired."""

    def __init__(
        self,
        committer: Committer,
        candidates: Candidates,
        clock: Callable[[], datetime] = utc_now,
        every_s: float = SWEEP_EVERY_S,
    ) -> None:
        self._committer, self._candidates = committer, candidates
        self._clock, self._every_s = clock, every_s
        self._settled: set[str] = set()
        """What the log was seen to have nothing capturable of, as long as the read model still shows it as due."""
        self.sweeps = 0
        """How often it has looked."""
        self.expired = 0
        """How many authorizations it has had recorded as expired."""

    async def run(self) -> None:
        """Sweep until cancelled. When there was more than one append's worth, go on at once."""
        while True:
            swept = 0
            try:
                swept = await self._sweep()
                self.sweeps += 1
                self.expired += swept
            except Refusal as outage:
                log.debug("sweep_put_off", why=str(outage))
            except Exception:
                log.exception("sweep_failed")
            if swept < SWEEP_MOST:
                await asyncio.sleep(self._every_s)

    async def _sweep(self) -> int:
        """Propose what has expired; return how many authorizations were recorded as expired."""
        due = await self._due()
        if not due:
            return 0
        waiter: Future[list[Result]] = Future()
        commands = [ExpireAuthorization(payment_id=each) for each in due]
        self._committer.submit(Ticket(commands, waiter, "sweeper", actor="sweeper", after_clients=True))
        results = await asyncio.wrap_future(waiter)
        self._settled.update(each for each, result in zip(due, results, strict=True) if _is_settled(result))
        swept = sum(1 for each in results if isinstance(each, Outcome) and not each.replayed)
        if swept:
            log.info("authorizations_expired", payments=swept)
        return swept

    async def _due(self) -> Sequence[str]:
        """What to propose: an append's worth of what is shown as due and was not settled by an earlier sweep.

        A read model that is too far behind is not gone through to its end: that is for when it has caught up.
        """
        shown = await self._candidates(self._clock(), SWEEP_MOST + len(self._settled))
        self._settled.intersection_update(shown)
        if len(self._settled) >= SETTLED_MOST:
            return ()
        return [each for each in shown if each not in self._settled][:SWEEP_MOST]


def _is_settled(result: Result) -> bool:
    """Whether there is nothing left that could expire, now or ever."""
    return isinstance(result, Outcome) and isinstance(result.thing, Payment) and not result.thing.amounts.capturable
