"""The server as `ledger serve` runs it, by a clock that stands still until it is moved. `stage.py` runs this program.

It says `serving ADDRESS NOW` once it does. Each line that it reads is how many microseconds the clock shall go forward;
it answers `moved` when it has. At the end of its input it stops, as on SIGTERM.
"""

from __future__ import annotations

import math
import os
import signal
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread

from ledger import log_output
from ledger.cli import prepare
from ledger.embedded import EmbeddedPostgres
from ledger.server import Timing, run
from ledger.settings import Settings


class Clock:
    """Starts at the real time, and goes forward only when it is told to."""

    def __init__(self) -> None:
        self._now = datetime.now(UTC)

    def now(self) -> datetime:
        return self._now

    def obey(self) -> None:
        for line in sys.stdin:
            self._now += timedelta(microseconds=int(line))
            print("moved", flush=True)
        os.kill(os.getpid(), signal.SIGTERM)


def main(folder: Path) -> None:
    clock = Clock()
    log_output.configure("warning", "console")

    def ready(address: str) -> None:
        print(f"serving {address} {clock.now().isoformat()}", flush=True)

    with EmbeddedPostgres(folder) as postgres:
        # A small memory: much is read back from the log, as after a restart. By a DSN: nothing is signed here.
        settings = Settings(listen="127.0.0.1:0", dsn=postgres.dsn, memory_most_streams=16)
        prepare(postgres.dsn, settings.ledger)
        Thread(target=clock.obey, daemon=True).start()
        run(settings, postgres.dsn, ready, Timing(clock.now, clock_off_most_s=math.inf, sweep_every_s=0.01))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
