"""One connection of a client: uvicorn's, with limits on the time and the size of a request before its body."""

from __future__ import annotations

import asyncio

from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .problems import MEDIA_TYPE, TYPE_PREFIX

__all__ = ["Connection"]

_HEAD_TIME = 10.0  # seconds from the connection, or the first byte of a request, to the end of its headers
_HEAD_SIZE = 64 * 1024  # bytes of a request line and headers that are not complete
_HEADERS = 200
_BLOCKED = 30.0  # seconds for which a client may read nothing of its answers


class Connection(HttpToolsProtocol):
    """
    Limit how long a request head may take, how large it may be, and how long a client may read nothing of an answer.

    A head that is not complete after ten seconds ends the connection with 408, one of more than 64 KiB or 200 headers
    with 431. Between two requests uvicorn's keep-alive applies, and only another request ends its wait. During a body
    the limits of its reader apply.
    """

    _timer: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None
    _head: int = 0  # bytes that have come of one that is not complete
    _in_head = True

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        self._timer = self.loop.call_later(_HEAD_TIME, self._late)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._rest()
        if self._stalled is not None:
            self._stalled.cancel()
        super().connection_lost(exc)

    @override
    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stalled is None:
            self._stalled = self.loop.call_later(_BLOCKED, self.transport.abort)

    @override
    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    @override
    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        # otherwise it closes once the buffer is sent
        if self.transport.get_write_buffer_size() and self._stalled is None:
            self._stalled = self.loop.call_later(_BLOCKED, self.transport.abort)

    @override
    def data_received(self, data: bytes) -> None:
        resting = self.timeout_keep_alive_task
        super().data_received(data)
        if resting is not None and self._rests_still():
            # An empty line, or what is left of the body of a request that was refused: no reason to wait longer.
            self.timeout_keep_alive_task = self.loop.call_at(resting.when(), self.timeout_keep_alive_handler)
        if self._in_head and not self.transport.is_closing():
            self._head += len(data)
            if self._head > _HEAD_SIZE or len(self.headers or ()) > _HEADERS:
                self._refuse(b"431 Request Header Fields Too Large", "headers-too-large", 431)
            elif self._timer is None:
                self._timer = self.loop.call_later(_HEAD_TIME, self._late)

    @override
    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head = True, 0

    @override
    def on_headers_complete(self) -> None:
        self._rest()
        self._in_head = False
        super().on_headers_complete()

    def _rests_still(self) -> bool:
        """Return whether no request is in progress or has begun to arrive, and no timer runs for the next one."""
        idle = self.timeout_keep_alive_task is None and not self._in_head and not self.pipeline
        return idle and not self.transport.is_closing() and self.cycle.response_complete

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if self._head:
            self._refuse(b"408 Request Timeout", "request-timeout", 408)
        else:
            self.transport.close()

    def _refuse(self, status: bytes, name: str, code: int) -> None:
        title = name.replace("-", " ")
        body = f'{{"type":"{TYPE_PREFIX}{name}","title":"{title}","status":{code}}}'.encode()
        head = b"HTTP/1.1 %b\r\ncontent-type: %b\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        before = getattr(self, "cycle", None)
        if before is None or before.response_complete:  # else the answer before this one is on its way
            self.transport.write(head % (status, MEDIA_TYPE.encode(), len(body)) + body)
        self.transport.close()
