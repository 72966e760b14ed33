"""One connection of a client: uvicorn's, with limits on the time and the size of a request before its body."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from operator import itemgetter
from typing import Any

import orjson
from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .exchange import offer
from .problems import MEDIA_TYPE, Problem
from .rest import Rest

__all__ = ["Connection"]

_HEAD_TIME = 10.0  # seconds from the connection, or the first byte of a request, to the end of its headers
_HEAD_SIZE = 64 * 1024  # bytes of a request line and headers that are not complete, and of trailers
_HEADERS = 1100  # an event may have 1,000 extensions
_BLOCKED = 30.0  # seconds for which a client may read nothing of its answers
_TOO_LARGE = Problem(431, "headers-too-large")
_TOO_MANY = Problem(503, "too-many-connections", headers={"retry-after": "1"})
_RESERVE = 32  # connections above the limit, for probes
_PROBES = (b"/healthz", b"/readyz")


class _Ignored(list[tuple[bytes, bytes]]):
    """Headers that are kept nowhere."""

    @override
    def append(self, header: tuple[bytes, bytes], /) -> None:
        """Do nothing."""


_TRAILERS = _Ignored()


class Connection(HttpToolsProtocol):
    """
    Limit how long a request head may take, how large it may be, and how long a client may read nothing of an answer.

    A head that is incomplete after ten seconds closes the connection with 408; one of more than 64 KiB or 1,100 headers
    closes it with 431, and bytes that are no HTTP with 400. A connection above the limit takes the place of the one
    whose client has sent nothing for the longest time while a request may begin; if there is none, it is answered with
    503, unless it asks for the health of the process. Between two requests uvicorn's keep-alive applies, and only
    another request ends its wait. During a body its reader sets its own limits.

    Trailers are read and ignored: they may be sent by whoever was let send a body alone, so none counts as a header
    (RFC 9110 §6.5.1). More than 64 KiB of them, or of anything else in a body that is not of its data, is a 431, too.
    """

    _timer: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None
    _head: int = 0  # bytes that have come of one that is not complete
    _piece: int = 0  # bytes that came last
    _in_head = True
    _in_body = False
    _apart: int = 0  # bytes since the head, or the last data of the body, in pieces without either
    _refused = False  # whether its head was refused, so that what follows is not read
    _in_reserve = False  # whether it is above the limit
    _opened = 0.0  # of the event loop's clock

    def __init__(self, *args: Any, most: int, **kwargs: Any) -> None:
        """Args: most connections are taken at once; the others are uvicorn's."""
        super().__init__(*args, **kwargs)
        self._most = most
        self._resting = Rest(self.loop, self.timeout_keep_alive_handler)

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        self._opened = self.loop.time()
        if len(self.connections) > self._most:
            self._in_reserve = not self._make_room()
            if self._in_reserve and len(self.connections) > self._most + _RESERVE:
                self.connections.discard(self)
                self._refuse(_TOO_MANY)
                return
        self._timer = self.loop.call_later(_HEAD_TIME, self._late)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        self._resting.close()
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
    def on_response_complete(self) -> None:
        """Begin the next request, or rest; as in uvicorn, but without a timer for each answer."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self.timeout_keep_alive_task = self._resting.begin(self.loop.time() + self.timeout_keep_alive)

    @override
    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        # otherwise it closes once the buffer is sent
        if self.transport.get_write_buffer_size() and self._stalled is None:
            self._stalled = self.loop.call_later(_BLOCKED, self.transport.abort)

    @override
    def data_received(self, data: bytes) -> None:
        resting = self.timeout_keep_alive_task
        self._piece = len(data)
        super().data_received(data)
        if resting is not None and self._rests_still():
            # An empty line, or what is left of the body of a request that was refused: no reason to wait longer.
            self.timeout_keep_alive_task = self._resting.begin(resting.when())
        if self._in_head and not self.transport.is_closing():
            self._head += len(data)
            if self._head > _HEAD_SIZE or len(self.headers or ()) > _HEADERS:
                self._refuse(_TOO_LARGE)
            elif self._timer is None:
                self._timer = self.loop.call_later(_HEAD_TIME, self._late)
        elif self._in_body and not self.transport.is_closing():
            self._apart += len(data)
            if self._apart > _HEAD_SIZE:
                self._refuse(_TOO_LARGE)

    @override
    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head = True, 0

    @override
    def on_headers_complete(self) -> None:
        self._end_head()
        self._in_head = False
        if self._is_too_large():  # it came in one piece
            self._refused = True
            self._refuse(_TOO_LARGE)
        elif self._in_reserve and self.url.partition(b"?")[0] not in _PROBES:
            self._refused = True
            self._refuse(_TOO_MANY)
        if not self._refused:
            super().on_headers_complete()
            offer(self.cycle)
            self.headers = _TRAILERS  # the scope has those of the head
            self._in_body, self._apart = True, -self._piece

    @override
    def on_body(self, body: bytes) -> None:
        self._apart = -self._piece
        if not self._refused:
            super().on_body(body)

    @override
    def on_message_complete(self) -> None:
        self._in_body = False
        if not self._refused:
            super().on_message_complete()

    @override
    def send_400_response(self, msg: str) -> None:
        self._refuse(Problem(400, "bad-request", "this is no HTTP request"))

    def _is_too_large(self) -> bool:
        """Return whether the request line and the headers that have come are too large, or too many."""
        if len(self.headers) > _HEADERS:
            return True
        if self._head + self._piece <= _HEAD_SIZE:  # as nearly always
            return False
        return len(self.url) + sum([len(name) + len(value) for name, value in self.headers]) > _HEAD_SIZE

    def _make_room(self) -> bool:
        """Close the connection that waits for the longest time; return whether there was one."""
        others = (each for each in self.connections if isinstance(each, Connection) and each is not self)
        waiting = [(since, each) for each in others if (since := each.waits_since) is not None]
        if not waiting:
            return False
        _, longest = min(waiting, key=itemgetter(0))
        self.connections.discard(longest)
        longest.timeout_keep_alive_handler()
        return True

    @property
    def waits_since(self) -> float | None:
        """The time of the loop since which a request may begin and none of its bytes has come; None during one."""
        task = self.timeout_keep_alive_task
        if task is not None:
            return task.when() - self.timeout_keep_alive
        return self._opened if getattr(self, "cycle", None) is None and not self._head else None

    def _rests_still(self) -> bool:
        """Return whether no request is in progress or has begun to arrive, and no timer runs for the next one."""
        idle = self.timeout_keep_alive_task is None and not self._in_head and not self.pipeline
        return idle and not self.transport.is_closing() and self.cycle.response_complete

    def _end_head(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if self._head:
            self._refuse(Problem(408, "request-timeout"))
        else:
            self.transport.close()

    def _refuse(self, problem: Problem) -> None:
        """Answer, unless another answer is on its way, and close the connection."""
        cycle = getattr(self, "cycle", None)  # None before the first request
        if cycle is not None and cycle.more_body and not cycle.response_started and not self.pipeline:
            cycle.disconnected = True  # the body of its request is refused: the application answers no more
            cycle.message_event.set()
            self.transport.write(_written(problem))
        elif cycle is None or (cycle.response_complete and not self._in_body):  # one answer for each request
            self.transport.write(_written(problem))
        self.transport.close()


def _written(problem: Problem) -> bytes:
    """Return the answer to a request that is no further than its head."""
    body = orjson.dumps(problem.content())
    lines = {"content-type": MEDIA_TYPE, "content-length": len(body), "connection": "close", **problem.headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}\r\n{head}\r\n".encode() + body
