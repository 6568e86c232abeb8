"""`make bench`, `make bench-growth`: run scenarios, all or those that are named, and write the report."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from itertools import groupby
from pathlib import Path

from bench import report
from bench.growth import GROWTH
from bench.programs import ROOT, BenchFailed
from bench.report import Row
from bench.scenarios import SCENARIOS, Scenario
from bench.stage import Stage, staged, surroundings


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
    """Run scenarios one after the other; 1 if one of them could not give a figure that means anything."""
    rows: list[Row] = []
    failed = 0
    for _, group in groupby(scenarios.items(), lambda each: each[1].shares or each[0]):
        with tempfile.TemporaryDirectory() as folder, staged(Path(folder), scale) as stage:
            for name, scenario in group:
                began = time.monotonic()
                try:
                    row = measure(stage, name, scenario, rounds)
                except BenchFailed as error:
                    failed = 1
                    print(f"{name:16} failed: {error}", flush=True)
                    continue
                rows.append(row)
                print(f"{row.line()}  {time.monotonic() - began:.0f} s", flush=True)
                report.write(rows, surroundings(stage), out)
    if rows:
        print(f"written to {out}")
    return failed


def measure(stage: Stage, name: str, scenario: Scenario, rounds: int) -> Row:
    """Raises BenchFailed."""
    found = list(scenario.rounds(stage, rounds))
    return Row(name, scenario.title, scenario.unit, scenario.floor_name, scenario.target, found)


if __name__ == "__main__":
    main()
