"""How much one server takes on, and how old its reads may be, unless the settings say otherwise."""

from __future__ import annotations

from typing import Final

QUEUE_MOST_COMMANDS: Final = 20_000
"""Commands that wait. More are refused, with a pause; a batch of any size is let in where none waits."""

MEMORY_MOST_STREAMS: Final = 65_536
"""Accounts, payments and transfers that are remembered; the least recently used are forgotten."""

CALLS_MOST: Final = 500
"""Calls that are under way at once. More are refused, with a pause: at some thousand a second they would only wait."""

DEADLINE_DEFAULT_S: Final = 30.0
"""For a call that comes without a deadline."""

DEADLINE_LEAST_S: Final = 0.002
"""A call that is waited for no longer than that is not begun."""

MESSAGE_MOST_BYTES: Final = 4 * 2**20
"""A request. gRPC's own limit: a batch with more than 3 MiB is refused anyway."""

READ_LAG_MOST_S: Final = 30.0
"""When read models are further behind the log, health says NOT_SERVING of reads."""
