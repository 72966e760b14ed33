"""Connections to one origin: so many at once, kept open for the next request, and dialled within a policy."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import ssl
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from .address import Address
from .connection import Connection, NoAnswer
from .guard import ANYWHERE, Guard

if TYPE_CHECKING:
    from aiohappyeyeballs import AddrInfoType

__all__ = ["Pool"]

_IDLE = 15.0  # seconds a connection is kept for the next request
_REMEMBERED = 10.0  # seconds the addresses of a name are used without being asked for again
_NEXT_ADDRESS = 0.25  # seconds until the next address is tried beside one that does not answer (RFC 8305 §5)
_OBSCURE = (0.1, 0.4)  # seconds that a discreet failure takes longer


class Pool:
    """
    Connections to one scheme, host and port, shared by the clients of it.

    Attributes:
        limit: how many are in use at once; further requests wait for one.
    """

    def __init__(
        self, address: Address, *, limit: int = 256, tls: ssl.SSLContext | None = None, guard: Guard = ANYWHERE
    ) -> None:
        """
        Connect to the host of `address`; nothing is connected yet.

        Args:
            tls: instead of one that trusts the authorities of the system.
            guard: what may be dialled.
        """
        self.limit = limit
        self._address = address
        self._tls = tls if address.secure else None
        self._guard = guard
        self._users = 0
        self._free = asyncio.Semaphore(limit)
        self._open: WeakSet[Connection] = WeakSet()
        self._idle: list[Connection] = []  # the one used last is used first, so that the others can grow old
        self._sweeping: asyncio.TimerHandle | None = None
        self._lookup: asyncio.Future[Any] | None = None
        self._asked = 0.0

    @property
    def used(self) -> bool:
        """Whether it is started, and not stopped by all of its users."""
        return self._users > 0

    def at_most(self, limit: int) -> None:
        """Lower the limit, before anything is connected."""
        self.limit = min(self.limit, limit)

    async def start(self) -> None:
        """Load the certificates that are trusted; nothing is connected yet. Called by each of its users."""
        self._users += 1
        if self._users == 1:
            self._free = asyncio.Semaphore(self.limit)
        if self._address.secure and self._tls is None:
            self._tls = await asyncio.to_thread(_tls_context)

    async def stop(self) -> None:
        """Close every connection, once none of the users is left."""
        self._users = max(0, self._users - 1)
        if self._users:
            return
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
        for connection in list(self._open):
            connection.abort()
        self._idle.clear()
        self._lookup, self._free = None, asyncio.Semaphore(self.limit)
        await asyncio.sleep(0)  # lets the event loop close aborted connections

    async def enter(self, deadline: float, late: str) -> asyncio.Semaphore:
        """Wait for room; return what is to be released in the end. Raise `NoAnswer` with the text `late`."""
        free = self._free
        if not free.locked():
            await free.acquire()  # at once
            return free
        try:
            async with asyncio.timeout_at(deadline):
                await free.acquire()
        except TimeoutError:
            raise NoAnswer(late) from None
        return free

    # --- connections that are kept ----------------------------------------------------------------

    def kept(self) -> Connection | None:
        """Return a connection that is open and silent."""
        while self._idle:
            connection = self._idle.pop()
            if connection.open and connection.silent:
                return connection
            connection.abort()
        return None

    def keep(self, connection: Connection) -> None:
        """Have a connection used again, if it can be."""
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

    async def connect(self, deadline: float, late: str) -> Connection:
        """Return a new connection. Raise `NoAnswer`, with the text `late` when the time is up."""
        try:
            async with asyncio.timeout_at(deadline):
                connection = await self._dial()
        except (OSError, RuntimeError) as error:  # uvloop has RuntimeErrors of its own
            self._lookup = None if self._lookup and self._lookup.done() else self._lookup
            out_of_time = isinstance(error, TimeoutError) and error.errno is None
            if self._guard.discreet and not out_of_time:
                await self._obscure(deadline)
            raise NoAnswer(late if out_of_time else self._why(error)) from error
        self._open.add(connection)
        return connection

    async def _dial(self) -> Connection:
        """Connect to one of the addresses of the host; the only place that opens connections."""
        from aiohappyeyeballs import start_connection  # not needed to read a configuration

        loop = asyncio.get_running_loop()
        host, found = self._address.host, await self._resolve()
        self._refuse(self._guard.addresses_fault(host, [str(each[4][0]) for each in found]))
        opened = await start_connection(found, happy_eyeballs_delay=_NEXT_ADDRESS)
        try:
            self._refuse(self._guard.address_fault(host, opened.getpeername()[0]))  # before a byte is sent
        except BaseException:
            opened.close()
            raise
        _, connection = await loop.create_connection(
            Connection, sock=opened, ssl=self._tls, server_hostname=host if self._tls else None
        )
        return connection

    async def _obscure(self, deadline: float) -> None:
        """Take a random time, so that how long it took does not tell a refused connection from a forbidden one."""
        left = deadline - asyncio.get_running_loop().time()
        await asyncio.sleep(max(0.0, min(left, random.uniform(*_OBSCURE))))

    def _refuse(self, fault: str | None) -> None:
        if fault is not None:
            raise NoAnswer(self._guard.refusal(fault))

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

    def _why(self, error: Exception) -> str:
        return self._guard.refusal(None) if self._guard.discreet else _why(error)


def _tls_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


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
