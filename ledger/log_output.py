"""How the program logs: structlog to stderr, for people or as JSON. Never secrets, never a connection string."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from contextlib import suppress
from contextvars import ContextVar
from types import MappingProxyType
from typing import Final

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
        logger_factory=lambda *_: _DispensableLines(sys.stderr),
        cache_logger_on_first_use=True,
    )


class _DispensableLines(structlog.PrintLogger):
    """Prints lines, and loses those that can't be written: no payment waits for a disk full of logs."""

    def msg(self, message: str) -> None:
        with suppress(OSError):
            super().msg(message)

    debug = info = warning = error = critical = msg


def _add_call(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return {**CALL.get(), **event}
