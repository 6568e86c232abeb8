"""How the program logs: structlog to stderr, for people or as JSON. Never secrets, never a connection string."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from contextlib import suppress
from contextvars import ContextVar
from types import MappingProxyType
from typing import Final, TextIO

import structlog

from ledger.redaction import redact

CALL: Final[ContextVar[Mapping[str, str]]] = ContextVar("call", default=MappingProxyType({}))
"""What every line bears that is logged while a call is answered: its correlation id, its ledger, who calls."""


def configure(level: str, output: str) -> None:
    """`level` is debug, info, warning or error; `output` is console or json."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if output == "json"
        # Plain tracebacks: the usual ones show local variables, and secrets are among them.
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    structlog.configure(
        processors=[
            _add_call,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            redact,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(_Dispensable(sys.stderr)),  # type: ignore[arg-type]
        cache_logger_on_first_use=True,
    )


class _Dispensable:
    """A stream whose text is lost where it can't be written: no payment waits for a disk full of logs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream: Final = stream

    def write(self, text: str) -> None:
        with suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


def _add_call(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return {**CALL.get(), **event}
