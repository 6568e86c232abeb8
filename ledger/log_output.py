"""How the program logs: structlog to stderr, for people or as JSON. Never secrets, never a connection string."""

from __future__ import annotations

import logging
import sys

import structlog

from ledger.redaction import redact


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
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            redact,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
