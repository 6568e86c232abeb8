"""Redaction: what is a secret by its shape does not get into a log or onto a terminal.

Nothing is meant to say secrets in the first place. This is the second wall, for what libraries put into their messages.
"""

from __future__ import annotations

import re
from typing import Any, Final

from structlog.typing import EventDict

HIDDEN: Final = "***"

_SECRETS: Final = (
    # postgresql://user:PASSWORD@host, whatever characters the password has
    (re.compile(r"(\w://[^\s:/@'\"]*:)[^\s'\"]*(?=@)"), rf"\1{HIDDEN}"),
    # password=... of a connection string, quoted or not, with or without spaces, of a URL's query, and PGPASSWORD
    (
        re.compile(
            r"((?:\b|_|ssl|pg)(?:password|passwd|pwd)[ \t]*=[ \t]*)(?:'(?:[^'\\]|\\.)*'|[^\s&'\"]*)", re.IGNORECASE
        ),
        rf"\1{HIDDEN}",
    ),
    # a token of ours, whatever stands before it (the n of an escaped newline): its first half names it and is no secret
    (re.compile(r"lgr_(?:([0-9a-f]{12})_)?[\w-]+"), rf"lgr_\1_{HIDDEN}"),
    (re.compile(r"\b(bearer\s+)(?!lgr_)[\w.~+/=-]+", re.IGNORECASE), rf"\1{HIDDEN}"),
    (
        re.compile(r"(\bauthorization\b['\"]?\s*[:=,]\s*['\"]?)(?!\s*bearer\b)[^'\"\n]+", re.IGNORECASE),
        rf"\1{HIDDEN}",
    ),
    (
        re.compile(r"-----BEGIN ([A-Z ]*PRIVATE KEY)-----.*?(?:-----END \1-----|\Z)", re.DOTALL),
        rf"-----BEGIN \1----- {HIDDEN}",
    ),
)

_NAMES: Final = frozenset({"password", "token", "authorization", "secret", "private_key"})
"""Keys of log lines whose values are not shown, whatever they look like."""


def redacted(text: str) -> str:
    """The text without what is a secret by its shape: passwords of connection strings, tokens, private keys."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def redact(_logger: object, _name: str, event: EventDict) -> EventDict:
    """The processor of log lines; it has to come after tracebacks are formatted."""
    return {key: HIDDEN if key in _NAMES else _hide(value) for key, value in event.items()}


def _hide(value: Any) -> Any:
    if value is None or isinstance(value, int | float):
        return value
    return redacted(value if isinstance(value, str) else repr(value))
