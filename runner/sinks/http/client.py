"""Posts to one address over the connections of its origin."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from datetime import timedelta
from typing import Any

from .address import Address
from .answer import Answer
from .pool import Pool

__all__ = ["Client"]


class Client:
    """
    A client of one address.

    No redirect is followed, no cookie kept, no proxy of the environment used, no body decompressed.
    """

    def __init__(self, address: Address, pool: Pool, *, headers: Mapping[str, str], timeout: timedelta) -> None:
        """
        Write down the beginning of every request.

        Args:
            pool: connections to the origin of `address`.
            headers: sent with every request.
            timeout: for each request, from the wait for a connection to the end of the answer.
        """
        self.peer = address.peer
        self._pool = pool
        self._timeout = timeout.total_seconds()
        self._late = f"no answer within {self._timeout:g} s"
        fields = {"Host": address.authority} | dict(headers)
        rest = f" {address.target} HTTP/1.1\r\n".encode("ascii") + _lines(fields)
        self._beginning, self._options = b"POST" + rest, b"OPTIONS" + rest
        self._fixed = len(self._beginning) + len("Content-Length: 1234567\r\n\r\n")

    async def start(self) -> None:
        """Get ready; nothing is connected yet."""
        await self._pool.start()

    async def stop(self) -> None:
        """Close the connections, unless another sink uses them."""
        await self._pool.stop()

    def head_size(self, headers: Mapping[str, str]) -> int:
        """Return the bytes of the request line and all headers of a post with these, which are ASCII."""
        return self._fixed + sum(map(len, headers)) + sum(map(len, headers.values())) + 4 * len(headers)

    def post(self, headers: Mapping[str, str], body: bytes, limit: int) -> Coroutine[Any, Any, Answer]:
        """
        Post once; return what was read of the answer, at most `limit` bytes of the body.

        A request that may have reached the peer is not repeated here.

        Raises:
            NoAnswer: no status was received in time.
        """
        head = b"%b%bContent-Length: %d\r\n\r\n" % (self._beginning, _lines(headers), len(body))
        return self._exchange(head, body, limit)

    def options(self, headers: Mapping[str, str], limit: int) -> Coroutine[Any, Any, Answer]:
        """Ask once what the address allows, and return the answer; see `post()`."""
        return self._exchange(b"%b%b\r\n" % (self._options, _lines(headers)), b"", limit)

    async def _exchange(self, head: bytes, body: bytes, limit: int) -> Answer:
        deadline = asyncio.get_running_loop().time() + self._timeout
        pool = self._pool
        room = await pool.enter(deadline, self._late)
        try:
            connection = pool.kept() or await pool.connect(deadline, self._late)
            answer = await connection.exchange(head, body, limit, deadline, self._late)
            pool.keep(connection)
            return answer
        finally:
            room.release()


def _lines(headers: Mapping[str, str]) -> bytes:
    return "".join([f"{name}: {value}\r\n" for name, value in headers.items()]).encode()
