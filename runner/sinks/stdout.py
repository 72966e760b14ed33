"""The sink that prints one line on standard output for every delivery."""

from __future__ import annotations

import asyncio
import re
import sys
import threading
from typing import BinaryIO, Literal

from pydantic import Field
from typing_extensions import override

from ..cloudevents import encode_json
from ..config.plugin import Options
from ..delivery import ACCEPTED, Delivery, Failed, Outcome
from ..event import Event
from ..log.terminal import printable
from .base import SinkContext
from .threads import Threads

__all__ = ["StdoutOptions", "StdoutSink"]

_SHOWN = 500  # characters of data in a line of text
_INDENTATION = re.compile(r"\s*[\r\n]\s*")


class StdoutOptions(Options):
    """Print every event."""

    main = "format"

    format: Literal["text", "json"] = Field(default="text", description="`text`, or `json`: one CloudEvent per line.")

    @override
    def build(self, context: SinkContext) -> StdoutSink:
        return StdoutSink(format=self.format)


class StdoutSink:
    """
    Print each event as one line, whole and at once.

    `text` is for people: type, source, id, subject and the beginning of the data, with everything that
    could drive a terminal escaped. `json` is for programs: one CloudEvent in the JSON event format.
    Lines that gather while one is being written are written together, by one thread, so that a reader
    that is slow or stopped never holds up the process.
    """

    def __init__(self, *, format: Literal["text", "json"] = "text", stream: BinaryIO | None = None) -> None:
        """Args: stream is standard output unless it is given."""
        self._line = encode_json if format == "json" else text_line
        self._stream = stream
        self._thread = Threads("stdout", 1)
        self._lock = threading.Lock()
        self._lines: list[bytes] = []
        self._written: asyncio.Future[Outcome] | None = None

    async def start(self) -> None:
        """Do nothing: no preparation is needed."""

    async def deliver(self, delivery: Delivery) -> Outcome:
        """Return once the line has been handed to the operating system."""
        line = self._line(delivery.event) + b"\n"
        with self._lock:
            lines = self._lines
            lines.append(line)
            if self._written is None:
                self._written = self._thread.submit(self._write)
            written = self._written
        try:
            return await asyncio.shield(written)  # other deliveries wait for the same write
        except asyncio.CancelledError:
            with self._lock:
                if lines is self._lines:  # not being written yet
                    lines.remove(line)
            raise

    async def stop(self) -> None:
        """Let the thread end. What was delivered is written."""
        self._thread.close()

    def _write(self) -> Outcome:
        with self._lock:
            lines, self._lines, self._written = self._lines, [], None
        try:
            stream = self._stream or sys.stdout.buffer
            stream.write(b"".join(lines))
            stream.flush()
        except (OSError, ValueError) as error:  # the pipe is broken, the disk full; or Python closed the stream
            return Failed(f"standard output: {getattr(error, 'strerror', None) or 'closed'}")
        return ACCEPTED


def text_line(event: Event) -> bytes:
    """Return the event as one line of text without control characters."""
    parts = [event.type, event.source, event.id]
    if event.subject is not None:
        parts.append(event.subject)
    if event.data is not None:
        parts.append(_shown(event.data, event.datacontenttype))
    return printable("  ".join(parts)).encode()


def _shown(data: bytes, content_type: str | None) -> str:
    try:
        # A cut may fall inside a character, and a character has at most four bytes.
        text = data.decode() if len(data) <= _SHOWN * 4 else data[: _SHOWN * 4].decode(errors="ignore")
    except UnicodeDecodeError:
        return f"<{len(data)} bytes of {content_type or 'data'}>"
    text = _INDENTATION.sub(" ", text).strip()
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(data)} bytes)"
