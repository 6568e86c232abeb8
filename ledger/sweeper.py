"""The sweeper: records that authorizations have expired, soon after they did.

To every command a payment is expired from `expires_at` on, swept or not; the sweeper gives the money back. It only
proposes: the candidates come from a read model that may be behind, the committer decides on the log. So it may run in
any number of processes, and be stopped anywhere: an authorization expires once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Final

import structlog

from ledger.committer import Committer, utc_now
from ledger.domain.commands import ExpireAuthorization
from ledger.domain.decisions import Outcome
from ledger.domain.errors import Refusal
from ledger.ticket import Result, Ticket

SWEEP_EVERY_S: Final = 0.5
SWEEP_MOST: Final = 500

log = structlog.get_logger(__name__)

Candidates = Callable[[datetime, int], Awaitable[Sequence[str]]]
"""The ids of payments that have something capturable and whose time was over at a moment; at most so many."""


async def sweep_forever(committer: Committer, candidates: Candidates, clock: Callable[[], datetime] = utc_now) -> None:
    """Sweep until cancelled. When there was more than one append's worth, go on at once."""
    while True:
        swept = 0
        try:
            swept = await sweep(committer, candidates, clock())
        except Refusal as outage:
            log.debug("sweep_put_off", why=str(outage))
        except Exception:
            log.exception("sweep_failed")
        if swept < SWEEP_MOST:
            await asyncio.sleep(SWEEP_EVERY_S)


async def sweep(committer: Committer, candidates: Candidates, now: datetime) -> int:
    """Propose what has expired; return how many authorizations were recorded as expired."""
    payment_ids = await candidates(now, SWEEP_MOST)
    if not payment_ids:
        return 0
    waiter: asyncio.Future[list[Result]] = asyncio.get_running_loop().create_future()
    commands = [ExpireAuthorization(payment_id=each) for each in payment_ids]
    committer.submit(Ticket(commands, waiter, "sweeper", actor="sweeper", after_clients=True))
    results = await waiter
    swept = sum(1 for each in results if isinstance(each, Outcome) and not each.replayed)
    if swept:
        log.info("authorizations_expired", payments=swept)
    return swept
