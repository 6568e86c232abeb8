"""`ledger serve` with a clock that is as many seconds off as a file says. Its settings come from the environment."""

from __future__ import annotations

import sys
from datetime import datetime, timedelta
from pathlib import Path

from ledger import log_output
from ledger.committer import utc_now
from ledger.server import Timing, run
from ledger.settings import Settings


def main(off_s: Path) -> None:
    def clock() -> datetime:
        return utc_now() + timedelta(seconds=float(off_s.read_text() or 0))

    settings = Settings()
    log_output.configure(settings.log_level, settings.log_format)
    assert settings.dsn is not None
    run(settings, settings.dsn, lambda address: print(f"ledger: serving on {address}", flush=True), Timing(clock))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
