"""How much one committer takes on, unless the settings say otherwise."""

from __future__ import annotations

from typing import Final

QUEUE_MOST_COMMANDS: Final = 20_000
"""Commands that wait. More are refused, with a pause."""

MEMORY_MOST_STREAMS: Final = 65_536
"""Accounts, payments and transfers that are remembered; the least recently used are forgotten."""
