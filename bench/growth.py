"""The scenarios of `make bench-growth`: how it grows."""

from __future__ import annotations

from typing import Final

from bench.scenarios import Scenario

GROWTH: Final[dict[str, Scenario]] = {}
