"""One connection: requests, their answers, and the detection of unsolicited input in between."""

from __future__ import annotations

import asyncio
import os
import select
from typing import cast

from typing_extensions import override

from .answer import Answer, AnswerReader

__all__ = ["Connection", "NoAnswer"]

_CLOSED = "the connection was closed without an answer"
_JOINED = 64 * 1024  # bytes of a body that is copied, to be sent at once with its head


class NoAnswer(Exception):
    """A post got no answer with a status. The text holds nothing of the URL or of the peer's input."""


class Connection(asyncio.Protocol):
    """
    A connection that carries one exchange at a time.

    It is used again only while nothing has come that was not asked for (RFC 9112 §9.2): an answer on an idle
    connection would be taken for the answer to the next request.
    """

    def __init__(self) -> None:
        self.idle_since = 0.0
        self._transport: asyncio.Transport | None = None
        self._input = select.poll()
        self._reader: AnswerReader | None = None
        self._done: asyncio.Future[None] | None = None
        self._fault = ""

    async def exchange(self, head: bytes, body: bytes, limit: int, deadline: float, late: str) -> Answer:
        """
        Send a request; return its answer, of which at most `limit` bytes of the body are read.

        Args:
            deadline: of the event loop's clock; what has been read of the answer by then is the answer.
            late: the text of the error when that is nothing.

        Raises:
            NoAnswer: no status was received.
        """
        transport = self._transport
        if transport is None:
            raise NoAnswer(_CLOSED)
        loop = asyncio.get_running_loop()
        reader = self._reader = AnswerReader(limit)
        done = self._done = loop.create_future()
        timer = loop.call_at(deadline, self._end, late)
        try:
            if len(body) <= _JOINED:
                transport.write(head + body)
            else:
                transport.write(head)
                transport.write(body)
            await done
        except BaseException:
            self.abort()
            raise
        finally:
            timer.cancel()
            self._reader = self._done = None
        # An answer that came before the request was sent leaves a connection that is still busy.
        if not reader.reusable or transport.get_write_buffer_size():
            self.abort()
        answer = reader.answer
        if answer is None:
            raise NoAnswer(reader.fault or self._fault)
        return answer

    @property
    def open(self) -> bool:
        """Whether another exchange may follow."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def silent(self) -> bool:
        """Whether no input has arrived since the last answer, unread input of the socket included."""
        return not self._input.poll(0)

    def abort(self) -> None:
        """Close the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def _end(self, fault: str) -> None:
        if self._reader is not None and self._done is not None and not self._done.done():
            self._reader.end()
            self._fault = fault
            self._done.set_result(None)

    # --- called by the event loop -----------------------------------------------------------------

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._input.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    @override
    def data_received(self, data: bytes) -> None:
        if self._reader is None or self._done is None or self._done.done():
            if self._reader is not None:
                self._reader.reusable = False
            self.abort()
        elif self._reader.feed(data):
            self._done.set_result(None)

    @override
    def eof_received(self) -> None:
        self._end(_CLOSED)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if isinstance(exc, OSError) and exc.errno:
            self._end(f"the connection was lost: {os.strerror(exc.errno)}")
        else:
            self._end(_CLOSED)
