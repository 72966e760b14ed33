"""A gate before a PostgreSQL server until it is ready: it limits all input, because the peer is not proven yet."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

from typing_extensions import override

from ...log.terminal import printable

__all__ = ["MAX_ITERATIONS", "SuspiciousLoop"]

MAX_ITERATIONS = 1_000_000
"""The most iterations of SCRAM, which the driver computes in the event loop in a third of a second (default: 4,096)."""

_LONGEST_MESSAGE = 64 * 1024  # bytes
_MOST_MESSAGES = 1000  # a server sends some twenty
_AUTHENTICATION, _ERROR, _READY = b"R"[0], b"E"[0], b"Z"[0]
# PostgreSQL, "Message Formats": what may come before the first query, and what is in it. The driver does not check; it
# reads past the end of a message, and ends the process by a segmentation fault over a login out of turn.
_BEFORE_LOGIN = b"RENv"
_AFTER_LOGIN = b"SKENZ"
_FIELDS = rb"(?:[A-Za-z][^\0]*\0)+\0"
_BODIES = {
    kind[0]: re.compile(form, re.DOTALL)
    for kind, form in {
        b"E": _FIELDS,
        b"N": _FIELDS,
        b"K": rb".{8,260}",
        b"S": rb"[^\0]+\0[^\0]*\0",
        b"Z": rb"[ITE]",
        b"v": rb".{8,}",
    }.items()
}
_VERSION = re.compile(rb"server_version\0\D{0,20}\d{1,4}(?:\D[^\0]*)?\0")
_UTF_8 = re.compile(rb"client_encoding\0('?)UTF-?8\1\0", re.IGNORECASE)  # pgbouncer repeats the quotes of the client
_OK, _SASL, _CONTINUE, _FINAL = 0, 10, 11, 12
_LOGINS = {
    code: re.compile(form, re.DOTALL)
    for code, form in {
        _OK: rb"",
        3: rb"",  # the password as it is
        5: rb".{4}",  # MD5, with a salt
        _SASL: rb"(?:[A-Za-z0-9_-]+\0)+\0",
        _CONTINUE: rb"r=[!-+\--~]+,s=[A-Za-z0-9+/]+=*,i=([0-9]{1,10})(?:,.*)?",  # RFC 5802 §7
        _FINAL: rb"v=[A-Za-z0-9+/]+=*|e=[ -~]+",
    }.items()
}
_AFTER = {_OK: (None, 3, 5, _FINAL), 3: (None,), 5: (None,), _SASL: (None,), _CONTINUE: (_SASL,), _FINAL: (_CONTINUE,)}


class SuspiciousLoop:
    """
    The event loop as lent to asyncpg for one connection: input of the server passes a `_Gate` first.

    asyncpg reads messages of any length, computes SCRAM for as many iterations as the server asks for, and does not
    validate messages. Once the server is ready the gate is removed, and costs nothing more.

    Attributes:
        fault: the violation of the protocol, if any.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.fault = ""
        self._loop = loop
        for name in ("call_later", "call_soon", "create_future", "create_task", "time"):
            setattr(self, name, getattr(loop, name))

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the loop."""
        return getattr(self._loop, name)

    async def create_connection(self, factory: Callable[[], asyncio.Protocol], *args: Any, **options: Any) -> Any:
        """Connect, with a gate before asyncpg."""
        return self._parted(*await self._loop.create_connection(lambda: self._gated(factory()), *args, **options))

    async def create_unix_connection(self, factory: Callable[[], asyncio.Protocol], *args: Any, **options: Any) -> Any:
        """Do the same over a socket of this machine."""
        return self._parted(*await self._loop.create_unix_connection(lambda: self._gated(factory()), *args, **options))

    async def start_tls(self, transport: Any, *args: Any, **options: Any) -> Any:
        """Encrypt a connection, whose protocol is set later."""
        encrypted = await self._loop.start_tls(getattr(transport, "real", transport), *args, **options)
        return None if encrypted is None else _GatedTransport(encrypted, self)

    def gate(self, protocol: Any, transport: Any) -> Any:
        """Return the gate of a protocol on an existing connection."""
        gated = self._gated(protocol)
        if isinstance(gated, _Gate):
            gated.transport = transport
        return gated

    def _gated(self, protocol: asyncio.Protocol) -> asyncio.Protocol:
        from asyncpg.protocol import Protocol

        # The other one reads the single byte that says whether there is TLS.
        return _Gate(protocol, self) if isinstance(protocol, Protocol) else protocol

    def _parted(self, transport: Any, protocol: asyncio.Protocol) -> tuple[Any, asyncio.Protocol]:
        if isinstance(protocol, _Gate):
            return transport, protocol.inner
        return _GatedTransport(transport, self), protocol


class _GatedTransport:
    """A transport that puts a gate before the protocol it is given."""

    def __init__(self, real: Any, loop: SuspiciousLoop) -> None:
        self.real = real
        self.write = real.write
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def set_protocol(self, protocol: asyncio.Protocol) -> None:
        """Send further input to `protocol`, through a gate."""
        self.real.set_protocol(self._loop.gate(protocol, self.real))


class _Gate(asyncio.Protocol):
    """Pass valid messages on until the server is ready; hang up at anything else."""

    def __init__(self, inner: asyncio.Protocol, loop: SuspiciousLoop) -> None:
        self.inner = inner
        self.transport: Any = None
        self._loop = loop
        self._unread = bytearray()
        self._messages = 0
        self._login: int | None = None  # the last step of it
        self._versioned = False
        self._ready = False

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.inner.connection_made(transport)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self.inner.connection_lost(exc)

    @override
    def pause_writing(self) -> None:
        self.inner.pause_writing()

    @override
    def resume_writing(self) -> None:
        self.inner.resume_writing()

    @override
    def eof_received(self) -> bool | None:
        return self.inner.eof_received()

    @override
    def data_received(self, data: bytes) -> None:
        if self._loop.fault:
            return
        self._unread += data
        fault = self._read()
        if not fault:
            try:
                self.inner.data_received(data)
            except Exception as error:
                fault = f"it says what the driver cannot read ({type(error).__name__})"
        if fault:
            self._loop.fault = fault
            self.transport.abort()
        elif self._ready:
            self.transport.set_protocol(self.inner)

    def _read(self) -> str:
        """Check every complete message; return the fault."""
        unread = self._unread
        while len(unread) >= 5 and not self._ready:
            kind, size = unread[0], int.from_bytes(unread[1:5], "big")
            if kind not in (_AFTER_LOGIN if self._login == _OK else _BEFORE_LOGIN):
                return "it does not speak PostgreSQL's protocol"
            if not 4 <= size <= _LONGEST_MESSAGE:
                # A server that cannot even fork says so in the form of 2002: an E, and text.
                said = printable(bytes(unread[1:200]).partition(b"\0")[0].decode(errors="replace").strip())
                return f"it says {said!r}" if kind == _ERROR else f"it announces a message of {size} bytes"
            if len(unread) <= size:
                return ""
            body = bytes(unread[5 : size + 1])
            del unread[: size + 1]
            self._messages += 1
            if self._messages > _MOST_MESSAGES:
                return f"it says more than {_MOST_MESSAGES} things before it is ready"
            fault = self._login_fault(body) if kind == _AUTHENTICATION else _fault(_BODIES[kind], body)
            if fault:
                return fault
            if body.startswith(b"client_encoding\0") and not _UTF_8.fullmatch(body):
                return "it answers in another encoding than UTF-8"
            self._versioned = self._versioned or _VERSION.fullmatch(body) is not None
            if kind == _READY and not self._versioned:
                return "it does not tell its version"
            self._ready = kind == _READY
        return ""

    def _login_fault(self, body: bytes) -> str:
        """Return the fault of a step of the login."""
        step, before = int.from_bytes(body[:4], "big"), self._login
        if len(body) < 4 or step not in _LOGINS:
            return "it wants a login that the driver has not"
        if before not in _AFTER[step]:
            return "a step of its login comes out of turn"
        self._login = step
        if (found := _LOGINS[step].fullmatch(body[4:])) is None:
            return "a step of its login is malformed"
        if step == _CONTINUE and not 1 <= int(found[1]) <= MAX_ITERATIONS:
            return f"it wants {int(found[1])} iterations of SCRAM, at most {MAX_ITERATIONS} are made"
        return ""


def _fault(form: re.Pattern[bytes], body: bytes) -> str:
    return "" if form.fullmatch(body) else "it sends a malformed message"
