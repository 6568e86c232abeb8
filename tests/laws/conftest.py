"""What the runs share: one server for all of them, whose clock only they move, and a tally of what they met."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# The words of the domain's tests, and what a sound log is in those of the integration tests.
TESTS = Path(__file__).parents[1]
sys.path += [str(TESTS / "unit"), str(TESTS / "integration")]

from stage import Stage, staged  # noqa: E402


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A server by a clock of its own. At the end it has to exit with 0, and must not have logged anything."""
    with staged(tmp_path_factory.mktemp("stage")) as stage:
        yield stage
