"""A TCP proxy that can be told to misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from types import TracebackType
from typing import Literal
from urllib.parse import urlsplit

from .server import HOST, free_port

Mode = Literal["pass", "blackhole", "refuse", "reset"]


class Proxy:
    """Stands before a server, on one port for its whole life.

    - `pass`: forwards.
    - `blackhole`: nothing moves and nothing is closed, as when a cable is cut; going back to `pass`, the held
      bytes arrive, as TCP would resend them.
    - `refuse`: nothing listens, open connections are closed.
    - `reset`: open and new connections are reset.

    `url` is the given address with the proxy's own port in it.
    """

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        assert parts.hostname is not None
        assert parts.port is not None, f"an address with a port is needed, not {target}"
        self.port = free_port()
        self.url = target.replace(f"{parts.hostname}:{parts.port}", f"{HOST}:{self.port}", 1)
        self.mode: Mode = "pass"
        self._target = (parts.hostname, parts.port)
        self._listener: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Proxy:
        """Start to listen, in mode `pass`."""
        await self.set_mode("pass")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close everything and wait for it."""
        await self._stop_listening()
        self._drop(reset=False)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def connections(self) -> int:
        """How many clients are connected now."""
        return len(self._tasks)

    async def set_mode(self, mode: Mode) -> None:
        """Change the behaviour, for open and for new connections."""
        self.mode = mode
        if mode == "blackhole":
            self._flowing.clear()
        else:
            self._flowing.set()
        if mode == "refuse":
            await self._stop_listening()
        elif self._listener is None:
            self._listener = await asyncio.start_server(self._accept, HOST, self.port)
        if mode in ("refuse", "reset"):
            self._drop(reset=mode == "reset")

    async def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _drop(self, *, reset: bool) -> None:
        for writer in self._writers:
            _close(writer, reset=reset)
        self._flowing.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.mode == "reset":
            _close(writer, reset=True)
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        # Ended on purpose at the end of a test; asyncio would report the cancelled connection as an error.
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await self._serve(reader, writer)
        self._tasks.discard(task)
        self._writers.discard(writer)
        _close(writer, reset=False)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._flowing.wait()
        server_reader, server_writer = await asyncio.open_connection(*self._target)
        self._writers.add(server_writer)
        try:
            pumps = [
                asyncio.ensure_future(self._pump(reader, server_writer)),
                asyncio.ensure_future(self._pump(server_reader, writer)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            self._writers.discard(server_writer)
            _close(server_writer, reset=False)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            await self._flowing.wait()
            writer.write(data)
            await writer.drain()


def _close(writer: asyncio.StreamWriter, *, reset: bool) -> None:
    if not reset:
        writer.close()
        return
    connection = writer.get_extra_info("socket")
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
