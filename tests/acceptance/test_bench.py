"""The benchmarks run, and their report has what it is read for. How fast anything is, is not looked at here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from serving import ROOT

from bench.report import Round, Row, Target


def test_a_scenario_runs_by_name_and_writes_its_report(tmp_path: Path) -> None:
    """One that has all of it: a server, an echo, the load generator, a bare table."""
    command = [sys.executable, "-m", "bench", "lone", "--scale", "0.01", "--rounds", "1", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads((tmp_path / "report.json").read_text())
    assert {"scenario", "unit", "value", "floor", "ratio", "target", "direction", "met"} <= set(row)
    assert row["scenario"] == "lone"
    assert set(row["cpu_us_per_operation"]) == {"client", "server", "postgres"}
    assert "postgres fsync: on" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "plot.svg").read_text().startswith("<svg")


def test_a_scenario_that_is_not_there_is_told_with_those_that_are() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "unery"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "no scenario unery; there are unary, unary-hot, lone" in done.stderr


def row(target: Target, *rounds: tuple[float, float]) -> Row:
    return Row("name", "title", "1/s", "floor", target, [Round(*each) for each in rounds])


def test_a_ratio_is_the_median_of_the_ratios_of_the_rounds() -> None:
    """A minute in which the machine was busy slows both sides of a round, and says nothing about their ratio."""
    found = row(Target("ratio", 0.6, ">="), (60, 100), (6, 10), (80, 100))
    assert (found.ratio, found.met) == (0.6, True)


def test_a_target_beyond_the_floor_is_a_difference() -> None:
    found = row(Target("extra", 1.0, "<="), (2.5, 1.4), (2.5, 1.4), (2.5, 1.4))
    assert found.met is False


def test_a_target_of_the_value_itself_does_not_look_at_the_floor() -> None:
    assert row(Target("value", 30_000, ">="), (30_000, 1e9)).met is True
