"""CPU seconds of programs, their child processes included."""

from __future__ import annotations

from collections.abc import Mapping

import psutil


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and of its descendants, those that it waited for included; 0 if it is gone."""
    try:
        process = psutil.Process(pid)
        return sum(map(_own, [process, *process.children(recursive=True)]))
    except psutil.NoSuchProcess:
        return 0.0


def _own(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
        return float(times.user + times.system + times.children_user + times.children_system)
    except psutil.NoSuchProcess:
        return 0.0


def sampled(groups: Mapping[str, list[int]]) -> dict[str, float]:
    """CPU seconds so far of each group of programs."""
    return {name: sum(map(cpu_seconds, pids)) for name, pids in groups.items()}
