"""Logging: one set-up for our own structlog events and for what libraries send through `logging`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog

__all__ = ["configure", "configure_own", "printable"]

Fields = MutableMapping[str, Any]

_SHARED: tuple[structlog.typing.Processor, ...] = (
    structlog.contextvars.merge_contextvars,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
)


def configure(level: str = "info", format: str = "auto", stream: TextIO | None = None) -> None:
    """
    Send every log record of this process to `stream`, standard error unless given.

    Libraries are heard from `warning` upwards whatever `level` says: below it, drivers write statements
    and addresses that may carry secrets.

    Args: as `configure_own()`.
    """
    stream = stream or sys.stderr
    configure_own(level, format, stream)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_rendering(format, stream)],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(_number(level), logging.WARNING))
    # nats-py reports a ping that was given up with a traceback; our broker says what became of its connection.
    logging.getLogger("nats").setLevel(logging.CRITICAL)
    logging.captureWarnings(True)


def configure_own(level: str = "info", format: str = "auto", stream: TextIO | None = None) -> None:
    """
    Send our own log events to `stream`, standard error unless given, and leave `logging` to the program we are in.

    Args:
        level: debug, info, warning or error.
        format: `console` for people, `json` for machines, `auto` for console on a terminal and json elsewhere.
    """
    stream = stream or sys.stderr
    structlog.configure(
        processors=[*_SHARED, *_rendering(format, stream)],
        wrapper_class=structlog.make_filtering_bound_logger(_number(level)),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]


def printable(text: str) -> str:
    """Return `text` with its control characters escaped, so that no stranger's text can steer a terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _rendering(format: str, stream: TextIO) -> list[structlog.typing.Processor]:
    terminal = stream.isatty()
    if format == "json" or (format == "auto" and not terminal):
        # Plain tracebacks: structlog's structured ones include local variables, hence payloads and secrets.
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    colors = terminal and not os.environ.get("NO_COLOR")
    plain = structlog.dev.plain_traceback  # the default one, by rich, prints local variables
    return [_escape, structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain)]


def _escape(_logger: Any, _method: str, fields: Fields) -> Fields:
    for name, value in fields.items():
        if isinstance(value, str):
            fields[name] = printable(value)
    return fields
