"""The server as `ledger serve` runs it, by clocks that stand still until they are moved. `stage.py` runs this program.

It says `serving ADDRESS NOW` once it does. Of the lines that it reads, a number is how many microseconds the clock goes
forward, and `sweep` lets the sweeper know how late it is; each is answered with `done`. At the end of its input it
stops, as on SIGTERM.
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
    """Starts at the real time, and goes forward only when it is told to. The sweeper's follows when that is told."""

    def __init__(self) -> None:
        self.now = self.sweepers = datetime.now(UTC)

    def obey(self) -> None:
        for line in sys.stdin:
            if line == "sweep\n":
                self.sweepers = self.now
            else:
                self.now += timedelta(microseconds=int(line))
            print("done", flush=True)
        os.kill(os.getpid(), signal.SIGTERM)


def main(folder: Path) -> None:
    clock = Clock()
    timing = Timing(lambda: clock.now, math.inf, lambda: clock.sweepers, sweep_every_s=0.01)

    def ready(address: str) -> None:
        print(f"serving {address} {clock.now.isoformat()}", flush=True)

    with EmbeddedPostgres(folder) as postgres:
        # A small memory: much is read back from the log, as after a restart. By a DSN: nothing is signed here.
        settings = Settings(listen="127.0.0.1:0", dsn=postgres.dsn, memory_most_streams=16)
        log_output.configure("warning", settings.log_format)
        prepare(postgres.dsn, settings.ledger)
        Thread(target=clock.obey, daemon=True).start()
        run(settings, postgres.dsn, ready, timing)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
