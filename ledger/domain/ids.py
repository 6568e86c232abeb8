"""The ids that clients choose. They are idempotency keys: the same id again is the same thing again."""

from __future__ import annotations

import re
from typing import Final

ID_PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}"

_MATCHES: Final = re.compile(ID_PATTERN).fullmatch


def id_violation(text: str) -> str | None:
    """What is wrong with an id, or None if nothing is."""
    if _MATCHES(text):
        return None
    form = "1 to 128 letters, digits and . _ : -, the first a letter or a digit"
    return f"must be {form}" if text else f"must be set: {form}"
