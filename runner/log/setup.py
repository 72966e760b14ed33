"""Logging: one set-up for this package's structlog events and for the records of libraries."""

from __future__ import annotations

import atexit
import io
import logging
import os
import sys
from collections.abc import Callable, MutableMapping, Sequence
from functools import partial
from typing import Any, TextIO

import structlog

from .terminal import printable
from .writer import LogWriter

__all__ = ["change", "configure", "configure_own", "flush", "tell"]

Fields = MutableMapping[str, Any]

_SHARED: tuple[structlog.typing.Processor, ...] = (
    structlog.contextvars.merge_contextvars,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
)

_OF_LINES = ("exception", "stack")
_PLAIN = (str, int, float, bool, type(None))  # types that every format can show
_UNSHOWABLE = "log line that cannot be shown"


def configure(
    level: str = "info", format: str = "auto", stream: TextIO | None = None, *, patience: float | None = None
) -> None:
    """
    Send every log record of this process to `stream`, standard error unless given.

    Records of libraries are logged from `warning` upwards whatever `level` says: below it, drivers write statements and
    addresses that may carry secrets.

    Args: as `configure_own()`, and
        patience: seconds that `tell()` waits for a reader at most; None for as long as it takes.
    """
    writer = configure_own(level, format, stream)
    writer.patience = patience
    handler = _Handler(writer)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _Rendering(_rendering(format, writer.stream)),
            ],
        )
    )
    global _again
    _again = partial(configure, stream=stream, patience=patience)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(_number(level), logging.WARNING))
    # nats-py logs an abandoned ping with a traceback; the broker reports the state of its connection itself.
    logging.getLogger("nats").setLevel(logging.CRITICAL)
    logging.captureWarnings(True)


def configure_own(level: str = "info", format: str = "auto", stream: TextIO | None = None) -> LogWriter:
    """
    Send this package's log events to `stream`, standard error by default, and leave `logging` to the program.

    Logging never raises and never blocks, whatever the state of the stream; see `LogWriter`.

    Args:
        level: debug, info, warning or error.
        format: `console` for people, `json` for machines, `auto` for console on a terminal and json elsewhere.
    """
    writer = _writer(stream)
    rendering = _Rendering([*_SHARED, *_rendering(format, writer.stream)])
    writer.report = lambda count: rendering(None, "warning", {"event": "log lines dropped", "count": count})
    structlog.configure(
        processors=[rendering],
        wrapper_class=structlog.make_filtering_bound_logger(_number(level)),
        logger_factory=lambda *_: _Logger(writer),
        cache_logger_on_first_use=False,
    )
    global _again
    _again = partial(configure_own, stream=stream)
    return writer


def change(level: str, format: str) -> None:
    """Change level and format if this module was set up before; leave a program's own logging alone."""
    if _again is not None:
        _again(level, format)


def tell(text: str, *, wait: bool = True) -> None:
    """
    Print a message on standard error, after everything logged before it; never raise.

    Args:
        wait: until it is written; otherwise it is written in the background, like the log.
    """
    writer = _writer(None)
    for line in text.split("\n"):
        writer.write(printable(line))
    if wait:
        writer.flush(writer.patience)


def flush() -> None:
    """Wait until logged lines are written, at most a second."""
    if _current is not None:
        _current.flush()


_current: LogWriter | None = None
_again: Callable[[str, str], object] | None = None  # the set-up that was made last
atexit.register(flush)


def _in_child() -> None:
    if _current is not None:
        _current.forget()


os.register_at_fork(after_in_child=_in_child)


def _writer(stream: TextIO | None) -> LogWriter:
    """Return the writer of the process, a new one for another `stream`; standard error unless given."""
    global _current
    stream = sys.stderr if stream is None else stream
    if _current is None or _current.stream is not stream:
        if _current is not None:
            _current.close()
        _current = LogWriter(stream)
    return _current


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]


class _Logger:
    """Pass the lines of structlog to the log writer."""

    def __init__(self, writer: LogWriter) -> None:
        self.msg = writer.write

    def __getattr__(self, name: str) -> Callable[[str], None]:
        """Return the function that takes a line, for any level."""
        return self.msg


class _Handler(logging.Handler):
    """Pass the records of `logging` to the log writer."""

    def __init__(self, writer: LogWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, or only its text if its arguments do not fit."""
        try:
            line = self.format(record)
        except KeyboardInterrupt:
            raise
        except BaseException:
            record.msg, record.args, record.exc_info = f"{_shown(record.msg)} (arguments cannot be shown)", (), None
            line = self.format(record)
        self._writer.write(line)


class _Rendering:
    """
    Render an event as a line by a chain of processors, even if the `repr()` of a field fails.

    A field that raises is shown by its type, so that the others are not lost.
    """

    def __init__(self, chain: Sequence[structlog.typing.Processor]) -> None:
        self._chain = chain

    def __call__(self, logger: Any, method: str, fields: Fields) -> str:
        """Return the line."""
        given = dict(fields)
        for attempt in (given.copy(), {name: _shown(value) for name, value in given.items()}, {"event": _UNSHOWABLE}):
            result: Any = attempt
            try:
                for process in self._chain:
                    result = process(logger, method, result)
                return str(result)
            except (KeyboardInterrupt, structlog.DropEvent):
                raise
            except BaseException:  # a `repr` may raise anything, and logging must not end a loop
                continue
        return _UNSHOWABLE


def _shown(value: object) -> Any:
    """Return a value that every format can show."""
    if type(value) in _PLAIN:
        return value
    try:
        return repr(value)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return f"<{type(value).__name__}, whose repr raises {type(error).__name__}>"


def _rendering(format: str, stream: TextIO | None) -> list[structlog.typing.Processor]:
    terminal = _is_terminal(stream)
    if format == "json" or (format == "auto" and not terminal):
        # Plain tracebacks: structlog's structured ones include local variables, hence payloads and secrets.
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    colors = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in ("dumb", "unknown")
    return [_escape, structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=_traceback)]


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # it is closed
        return False


def _traceback(stream: TextIO, exc_info: structlog.typing.ExcInfo) -> None:
    """Write a traceback without local variables, which rich's has, and with control characters escaped."""
    plain = io.StringIO()
    structlog.dev.plain_traceback(plain, exc_info)
    stream.write(_lines(plain.getvalue()))


def _lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


def _escape(_logger: Any, _method: str, fields: Fields) -> Fields:
    for name, value in fields.items():
        if isinstance(value, str):
            fields[name] = _lines(value) if name in _OF_LINES else printable(value)
    return fields
