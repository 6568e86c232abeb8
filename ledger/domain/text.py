"""The texts that clients attach: references and reasons."""

from __future__ import annotations

from typing import Final

TEXT_MOST_CHARACTERS: Final = 256


def text_violation(text: str) -> str | None:
    """What is wrong with a text, or None if nothing is. An empty one is in order."""
    if len(text) > TEXT_MOST_CHARACTERS:
        return f"must have at most {TEXT_MOST_CHARACTERS} characters, not {len(text)}"
    return "must not contain the character NUL" if "\0" in text else None
