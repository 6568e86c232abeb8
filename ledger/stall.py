"""A stall: the database does not end what the committer waits for, and commands wait with it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

STALL_S: Final = 5.0
"""From then on health says NOT_SERVING of writes.

A commit takes milliseconds, and on a slow disk tenths of a second. What is counted is one commit, not those that queue
for it, so a database that is slow and goes on does not get here. Nor does finding out what came of one, which may take
as long: that is an outage, and health says so at once.
"""

log = structlog.get_logger(__name__)


class Stall:
    """Told now and then for how long the committer waits, logs it: once when it is too long, and once when it is over.

    It is told in another thread than the committer's, which is the one that is stuck.
    """

    def __init__(self) -> None:
        self._waited_s: float | None = None

    def see(self, waits_s: float, ledger: str) -> None:
        """The committer of a ledger has been waiting for so long."""
        if waits_s > STALL_S:
            if self._waited_s is None:
                since = datetime.now(UTC) - timedelta(seconds=waits_s)
                log.error("commands_wait_for_database", ledger=ledger, since=since.isoformat(timespec="seconds"))
            self._waited_s = waits_s
        elif self._waited_s is not None:
            log.info("commands_wait_no_more", ledger=ledger, waited_s=round(self._waited_s, 1))
            self._waited_s = None
