"""The priority of a thread: it, and those that it starts, where that is allowed, and no others."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

import pytest

SCRIPT: Final = """
import os, sys, threading
from ledger.priority import go_first

if os.getuid() == 0 and sys.argv[1] == "nobody":
    os.setresuid(65534, 65534, 65534)

def nice():
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

def run(step):
    thread = threading.Thread(target=step)
    thread.start()
    thread.join()

def first():
    print(go_first(), nice())
    run(lambda: print(nice()))

run(first)
run(lambda: print(nice()))
"""
MAY: Final = "import os; os.setpriority(os.PRIO_PROCESS, 0, -10)"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities of threads")


def priorities(whose: str) -> list[str]:
    """Whether it was allowed; then of the thread itself, of one that it started, and of one that another started."""
    command = [sys.executable, "-c", SCRIPT, whose]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_without_the_right_nothing_is_changed() -> None:
    assert priorities("nobody") == ["False", "0", "0", "0"]


def test_it_holds_for_the_thread_and_those_that_it_starts() -> None:
    if subprocess.run([sys.executable, "-c", MAY], capture_output=True, check=False).returncode:
        pytest.skip("needs CAP_SYS_NICE or RLIMIT_NICE")
    assert priorities("own") == ["True", "-10", "-10", "0"]
