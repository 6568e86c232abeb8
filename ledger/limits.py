"""How much one server takes on, and how old its reads may be, unless the settings say otherwise."""

from __future__ import annotations

from typing import Final

QUEUE_MOST_COMMANDS: Final = 20_000
"""Commands that wait. More are refused, with a pause."""

MEMORY_MOST_STREAMS: Final = 65_536
"""Accounts, payments and transfers that are remembered; the least recently used are forgotten."""

READ_LAG_MOST_S: Final = 30.0
"""When read models are further behind the log, health says NOT_SERVING of reads."""
