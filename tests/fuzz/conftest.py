"""The server that is attacked: `ledger serve` as a process, with something in its ledger."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "acceptance"))

from target import Target, attacked


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """One for all attacks. At the end it has to be sound, and to stop as it should."""
    with attacked(tmp_path_factory.mktemp("target")) as target:
        yield target
