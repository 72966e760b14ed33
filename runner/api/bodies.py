"""Read the bodies of requests within limits: on the size of each, on all in progress together, and on time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from .problems import Problem, problem_response

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import Receive, Scope, Send

    from .exchange import Exchange

__all__ = ["Bodies", "ClientGone", "check_encoding", "discard", "refuse"]

_TOGETHER = 64  # bodies of the largest size that may be in progress at once
_SILENCE = 10.0  # seconds without a byte
_LONGEST = 60.0  # seconds for a whole body
_LINGER = 5.0  # seconds for which the rest of a refused body is read and discarded


class ClientGone(Exception):
    """The client went away in the middle of its request; no answer can be sent."""


class Bodies:
    """
    Read the bodies of requests.

    A body that is too large is refused before it is buffered: by its `Content-Length`, or once more has arrived than is
    allowed. All bodies in progress together hold a bounded amount of memory.
    """

    def __init__(
        self, limit: int, *, together: int | None = None, silence: float = _SILENCE, longest: float = _LONGEST
    ) -> None:
        """
        Take bodies of up to `limit` bytes.

        Args:
            together: bytes of all bodies in progress.
            silence: seconds that may pass without a byte.
            longest: seconds that one body may take.
        """
        self._limit = limit
        self._room = max(limit, limit * _TOGETHER if together is None else together)
        self._silence = silence
        self._longest = longest

    async def read(self, headers: Mapping[str, str], receive: Receive, exchange: Exchange | None = None) -> bytes:
        """
        Return the whole body of a request with these headers, whose names are in lower case.

        Args:
            exchange: of the request, where our own listener has taken it.

        Raises:
            Problem: 400 for an invalid length, 413 for too large a body, 408 for too slow a client, 503 for too many at
                once.
            ClientGone: the client went away.
        """
        self._check_length(headers)
        if exchange is not None and (body := exchange.body()) is not None:
            self._check_size(len(body))
            return body  # it is here, so that no time can pass
        try:
            chunk, more = await self._next(receive)
            self._check_size(len(chunk))
            if not more:
                return chunk  # it came in one piece, as most do
            async with asyncio.timeout(self._longest):
                return await self._rest(chunk, receive)
        except TimeoutError:
            raise Problem(408, "too-slow", "the body did not come in time", headers=_CLOSE) from None

    async def _next(self, receive: Receive) -> tuple[bytes, bool]:
        async with asyncio.timeout(self._silence):
            message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        return message.get("body", b""), message.get("more_body", False)

    async def _rest(self, chunk: bytes, receive: Receive) -> bytes:
        """Return the body that begins with `chunk`."""
        body, held, more = bytearray(), 0, True
        try:
            while True:
                self._check_size(len(body) + len(chunk))
                held += self._hold(len(chunk))
                body += chunk
                if not more:
                    return bytes(body)
                chunk, more = await self._next(receive)
        finally:
            self._room += held

    def _check_length(self, headers: Mapping[str, str]) -> None:
        length = headers.get("content-length")
        if length is None:
            return
        if not (length.isascii() and length.isdigit()):
            raise Problem(400, "bad-request", "content-length: expected a number of bytes", headers=_CLOSE)
        self._check_size(int(length[:20]))

    def _check_size(self, size: int) -> None:
        if size > self._limit:
            detail = f"the body has more than {self._limit} bytes, which api.limits.body allows"
            raise Problem(413, "too-large", detail, headers=_CLOSE, limit=self._limit)

    def _hold(self, size: int) -> int:
        if size > self._room:
            raise Problem(503, "busy", "too many requests at once; try again", headers={**_CLOSE, "retry-after": "1"})
        self._room -= size
        return size


def check_encoding(scope: Scope) -> None:
    """Raise a `Problem` of status 415 if the body of a request is encoded, in whichever of several lines it says so."""
    for name, value in scope["headers"]:
        if name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            detail = "content-encoding: the body is taken as it is, without any compression"
            raise Problem(415, "unsupported-media-type", detail, headers={"accept-encoding": "identity"})


async def refuse(problem: Problem, receive: Receive, send: Send) -> None:
    """Answer, and discard the rest of the body before the connection is closed."""
    response = problem_response(problem)
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    await discard(receive)
    await send({"type": "http.response.body", "body": b""})


async def discard(receive: Receive) -> None:
    """
    Read and discard the rest of a body, for some seconds.

    A connection that is closed with unread input is reset, and the client never sees the answer.
    """
    try:
        async with asyncio.timeout(_LINGER):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return


_CLOSE = {"connection": "close"}  # the rest of the request is not read
