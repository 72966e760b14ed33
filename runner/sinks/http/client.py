"""Posts to one address over connections that are kept open."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from .address import Address
from .answer import Answer
from .connection import Connection, NoAnswer

if TYPE_CHECKING:
    from aiohappyeyeballs import AddrInfoType

__all__ = ["Client"]

_IDLE = 15.0  # seconds a connection is kept for the next request
_REMEMBERED = 10.0  # seconds the addresses of a name are used without being asked for again
_NEXT_ADDRESS = 0.25  # seconds until the next address is tried beside one that does not answer (RFC 8305 §5)


class Client:
    """
    A client of one address.

    No redirect is followed, no cookie kept, no proxy of the environment used, no body decompressed.
    """

    def __init__(self, address: Address, *, headers: Mapping[str, str], timeout: timedelta, connections: int) -> None:
        """
        Prepare the head of every request.

        Args:
            headers: sent with every request.
            timeout: for each request, from the wait for a connection to the end of the answer.
            connections: how many are open at once; further requests wait for one.
        """
        self._address = address
        self._timeout = timeout.total_seconds()
        self._late = f"no answer within {self._timeout:g} s"
        fields = {"Host": address.authority} | dict(headers)
        self._beginning = f"POST {address.target} HTTP/1.1\r\n".encode("ascii") + _lines(fields)
        self._fixed = len(self._beginning) + len("Content-Length: 1234567\r\n\r\n")
        self._connections = connections
        self._free = asyncio.Semaphore(connections)
        self._open: WeakSet[Connection] = WeakSet()
        self._idle: list[Connection] = []  # the one used last is used first, so that the others can grow old
        self._sweeping: asyncio.TimerHandle | None = None
        self._tls: ssl.SSLContext | None = None
        self._lookup: asyncio.Future[Any] | None = None
        self._asked = 0.0

    async def start(self) -> None:
        """Load the certificates that are trusted; nothing is connected yet."""
        if self._address.secure and self._tls is None:
            self._tls = await asyncio.to_thread(_tls_context)

    async def stop(self) -> None:
        """Close every connection."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
        for connection in list(self._open):
            connection.abort()
        self._idle.clear()
        self._lookup, self._free = None, asyncio.Semaphore(self._connections)
        await asyncio.sleep(0)  # the turn in which the event loop closes what was aborted

    def head_size(self, headers: Mapping[str, str]) -> int:
        """Return the bytes of the request line and all headers of a post with these, which are ASCII."""
        return self._fixed + sum(map(len, headers)) + sum(map(len, headers.values())) + 4 * len(headers)

    async def post(self, headers: Mapping[str, str], body: bytes, limit: int) -> Answer:
        """
        Post once; return what was read of the answer, at most `limit` bytes of the body.

        What may have reached the peer is never sent again from here.

        Raises:
            NoAnswer: no status was received in time.
        """
        deadline = asyncio.get_running_loop().time() + self._timeout
        head = b"%b%bContent-Length: %d\r\n\r\n" % (self._beginning, _lines(headers), len(body))
        free = self._free
        await self._wait_for_room(free, deadline)
        try:
            connection = self._kept() or await self._connect(deadline)
            answer = await connection.exchange(head, body, limit, deadline, self._late)
            self._keep(connection)
            return answer
        finally:
            free.release()

    async def _wait_for_room(self, free: asyncio.Semaphore, deadline: float) -> None:
        if not free.locked():
            await free.acquire()  # at once
            return
        try:
            async with asyncio.timeout_at(deadline):
                await free.acquire()
        except TimeoutError:
            raise NoAnswer(self._late) from None

    # --- connections that are kept ----------------------------------------------------------------

    def _kept(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.open and connection.silent:
                return connection
            connection.abort()
        return None

    def _keep(self, connection: Connection) -> None:
        if not connection.open:
            return
        loop = asyncio.get_running_loop()
        connection.idle_since = loop.time()
        self._idle.append(connection)
        if self._sweeping is None:
            self._sweeping = loop.call_later(_IDLE, self._sweep)

    def _sweep(self) -> None:
        """Close connections that have been idle for long."""
        loop = asyncio.get_running_loop()
        for connection in self._idle:
            if connection.idle_since <= loop.time() - _IDLE:
                connection.abort()
        self._idle = [each for each in self._idle if each.open]
        self._sweeping = loop.call_later(_IDLE, self._sweep) if self._idle else None

    # --- connecting -------------------------------------------------------------------------------

    async def _connect(self, deadline: float) -> Connection:
        try:
            async with asyncio.timeout_at(deadline):
                connection = await self._dial()
        except (OSError, RuntimeError) as error:  # uvloop has RuntimeErrors of its own
            self._lookup = None if self._lookup and self._lookup.done() else self._lookup
            late = isinstance(error, TimeoutError) and error.errno is None
            raise NoAnswer(self._late if late else _why(error)) from error
        self._open.add(connection)
        return connection

    async def _dial(self) -> Connection:
        """Connect to one of the addresses of the host; the only place that opens connections."""
        from aiohappyeyeballs import start_connection  # of no use to one who only reads a configuration

        loop = asyncio.get_running_loop()
        opened = await start_connection(await self._resolve(), happy_eyeballs_delay=_NEXT_ADDRESS)
        _, connection = await loop.create_connection(
            Connection, sock=opened, ssl=self._tls, server_hostname=self._address.host if self._tls else None
        )
        return connection

    async def _resolve(self) -> Sequence[AddrInfoType]:
        """Return the addresses of the host; concurrent callers share one look-up."""
        loop = asyncio.get_running_loop()
        if self._lookup is None or (self._lookup.done() and loop.time() - self._asked >= _REMEMBERED):
            # As bytes, since a text would pass through a codec of its own.
            host = self._address.host.encode("ascii")
            self._asked = loop.time()
            self._lookup = asyncio.ensure_future(loop.getaddrinfo(host, self._address.port, type=socket.SOCK_STREAM))
            self._lookup.add_done_callback(lambda lookup: lookup.cancelled() or lookup.exception())
        return await asyncio.shield(self._lookup)


def _tls_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _lines(headers: Mapping[str, str]) -> bytes:
    return "".join([f"{name}: {value}\r\n" for name, value in headers.items()]).encode()


def _why(error: Exception) -> str:
    """Return the reason of a failed connection in fixed words, since the error may repeat input of the peer."""
    match error:
        case socket.gaierror():
            return "the name does not resolve"
        case ssl.SSLCertVerificationError():
            return "the certificate is not trusted"
        case ssl.SSLError():
            return "cannot connect: TLS failed"
        case OSError(errno=int(number)):
            return f"cannot connect: {os.strerror(number)}"
        case _:
            return f"cannot connect: {type(error).__name__}"
