"""`make bench`, `make bench-growth`: run scenarios, all or those that are named, and write the report."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from bench import report
from bench.growth import GROWTH
from bench.programs import ROOT, BenchFailed
from bench.report import Row
from bench.scenarios import SCENARIOS, Scenario
from bench.stage import staged, surroundings


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "scenarios", nargs="*", help=f"of {', '.join([*SCENARIOS, *GROWTH])}; all of the first unless given"
    )
    parser.add_argument("--growth", action="store_true", help="those that show how it grows; up to an hour")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of every run; below 1 the figures mean little")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "out")
    given = parser.parse_args()
    known = SCENARIOS | GROWTH
    strange = set(given.scenarios) - set(known)
    if strange:
        parser.error(f"no scenario {', '.join(sorted(strange))}; there are {', '.join(known)}")
    wanted = given.scenarios or list(GROWTH if given.growth else SCENARIOS)
    sys.exit(run({name: known[name] for name in wanted}, given.rounds, given.scale, given.out))


def run(scenarios: dict[str, Scenario], rounds: int, scale: float, out: Path) -> int:
    """Run scenarios one after the other, each on a Postgres of its own; 1 if one failed to say anything."""
    rows: list[Row] = []
    about: dict[str, str] = {}
    failed = 0
    for name, scenario in scenarios.items():
        began = time.monotonic()
        try:
            with tempfile.TemporaryDirectory() as folder, staged(Path(folder), scale) as stage:
                about = about or surroundings(stage)
                row = Row(
                    name,
                    scenario.title,
                    scenario.unit,
                    scenario.floor_name,
                    scenario.target,
                    list(scenario.rounds(stage, rounds)),
                )
        except BenchFailed as error:
            failed = 1
            print(f"{name:22} failed: {error}", flush=True)
            continue
        rows.append(row)
        print(f"{row.line()}  {time.monotonic() - began:.0f} s", flush=True)
        report.write(rows, about, out)
    if rows:
        print(f"written to {out}")
    return failed


if __name__ == "__main__":
    main()
