"""What a run is told as: lines while it goes, report.md, report.json and plots when it is done."""

from __future__ import annotations

import html
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Of = Literal["ratio", "extra", "value"]


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure has to be: its ratio to the floor, what it has beyond the floor, or the value itself."""

    of: Of
    bound: float
    direction: Literal[">=", "<="]

    def met(self, value: float, floor: float) -> bool:
        found = {"ratio": value / floor if floor else 0.0, "extra": value - floor, "value": value}[self.of]
        return found >= self.bound if self.direction == ">=" else found <= self.bound

    def __str__(self) -> str:
        what = {"ratio": "ratio", "extra": "floor +", "value": "value"}[self.of]
        return f"{what} {self.direction} {self.bound:,g}"


@dataclass(frozen=True, slots=True)
class Round:
    """One round of a scenario: its figure, and the floor's right beside it."""

    value: float
    floor: float
    cpu_us: Mapping[str, float] = field(default_factory=dict)
    """CPU per operation of client, server and Postgres."""
    client_us_per_call: float = 0.0
    note: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """A scenario's rounds, and what they come to."""

    name: str
    title: str
    unit: str
    floor_name: str
    target: Target
    rounds: Sequence[Round]

    @property
    def value(self) -> float:
        return statistics.median(each.value for each in self.rounds)

    @property
    def floor(self) -> float:
        return statistics.median(each.floor for each in self.rounds)

    @property
    def ratio(self) -> float:
        """The median of the rounds' ratios: what a noisy minute does to both sides of a round, it leaves out."""
        return statistics.median(each.value / each.floor if each.floor else 0.0 for each in self.rounds)

    @property
    def met(self) -> bool:
        if self.target.of == "ratio":
            return self.target.met(self.ratio, 1.0)
        return self.target.met(self.value, self.floor)

    @property
    def cpu_us(self) -> dict[str, float]:
        names = {name for each in self.rounds for name in each.cpu_us}
        return {name: statistics.median(each.cpu_us.get(name, 0.0) for each in self.rounds) for name in sorted(names)}

    @property
    def client_us_per_call(self) -> float:
        return statistics.median(each.client_us_per_call for each in self.rounds)

    def line(self) -> str:
        """For a terminal."""
        return (
            f"{self.name:16} {self.value:>10,.4g} {self.unit:9} floor {self.floor:>10,.4g}  ratio {self.ratio:>6.3f}"
            f"  {self.target!s:18} {'met' if self.met else 'MISSED'}"
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "scenario": self.name,
            "title": self.title,
            "unit": self.unit,
            "value": self.value,
            "floor": self.floor,
            "floor_name": self.floor_name,
            "ratio": self.ratio,
            "target": self.target.bound,
            "target_of": self.target.of,
            "direction": self.target.direction,
            "met": self.met,
            "values": [each.value for each in self.rounds],
            "floors": [each.floor for each in self.rounds],
            "cpu_us_per_operation": self.cpu_us,
            "client_cpu_us_per_call": self.client_us_per_call,
            "notes": sorted({each.note for each in self.rounds if each.note}),
        }


def write(rows: Sequence[Row], surroundings: Mapping[str, str], out: Path) -> None:
    """Write report.json, report.md and plot.svg into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps([row.as_json() for row in rows], indent=2) + "\n")
    (out / "report.md").write_text(markdown(rows, surroundings))
    (out / "plot.svg").write_text(plot(rows))


def markdown(rows: Sequence[Row], surroundings: Mapping[str, str]) -> str:
    lines = [
        "# Measured",
        "",
        "Client, server, follower, signer and Postgres share the machine. Each figure stands beside its floor, which",
        "was measured in turns with it: medians, and in brackets the least and the most. A ratio is the median of the",
        "rounds' ratios.",
        "",
        *(f"* {name}: {value}" for name, value in surroundings.items()),
        "",
        "![ratios](plot.svg)",
        "",
        "| scenario | | value | floor | ratio | target | met |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        value = f"{_spread([each.value for each in row.rounds])} {row.unit}"
        floor = f"{_spread([each.floor for each in row.rounds])} ({row.floor_name})"
        met = "yes" if row.met else "**no**"
        lines.append(f"| {row.name} | {row.title} | {value} | {floor} | {row.ratio:.2f} | {row.target} | {met} |")
    lines += ["", "CPU microseconds per operation; the last column is the load generator's, per call:", ""]
    lines += ["| scenario | client | server | postgres | generator per call |", "|---|---|---|---|---|"]
    for row in rows:
        if row.cpu_us:
            parts = " | ".join(f"{row.cpu_us.get(name, 0.0):,.0f}" for name in ("client", "server", "postgres"))
            lines.append(f"| {row.name} | {parts} | {row.client_us_per_call:,.0f} |")
    notes = [f"* {row.name}: {note}" for row in rows for note in row.as_json()["notes"]]
    return "\n".join([*lines, *(["", *notes] if notes else []), ""])


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):,.4g} ({min(values):,.4g} to {max(values):,.4g})"


def plot(rows: Sequence[Row]) -> str:
    """Each scenario's ratio to its floor as a bar, with a dot per round and a line where the target is."""
    left, width, step = 190, 520, 26
    most = max([1.2, *(row.ratio * 1.1 for row in rows if row.target.of == "ratio")])
    height = step * (len(rows) + 1)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 80}" height="{height}" font-size="12">']
    parts.append("<style>text{font-family:sans-serif} line{stroke:#c00;stroke-width:2}</style>")
    for number, row in enumerate(rows):
        top = number * step + 8

        def across(ratio: float) -> float:
            return left + width * min(ratio, most) / most

        colour = "#4a8" if row.met else "#e96"
        parts.append(f'<text x="4" y="{top + 13}">{html.escape(row.name)}</text>')
        bar = max(0.0, across(row.ratio) - left)
        parts.append(f'<rect x="{left}" y="{top}" width="{bar:.1f}" height="16" fill="{colour}"/>')
        for each in row.rounds:
            if each.floor:
                parts.append(f'<circle cx="{across(each.value / each.floor):.1f}" cy="{top + 8}" r="2.5"/>')
        if row.target.of == "ratio":
            at = across(row.target.bound)
            parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{top - 3}" y2="{top + 19}"/>')
        parts.append(f'<text x="{left + width + 8}" y="{top + 13}">{row.ratio:.2f}</text>')
    return "\n".join([*parts, "</svg>", ""])
