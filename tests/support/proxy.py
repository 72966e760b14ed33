"""A TCP proxy that can be told to misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from types import TracebackType
from typing import Literal
from urllib.parse import urlsplit

from .server import HOST, free_port

Mode = Literal["pass", "blackhole", "mute", "slow", "narrow", "trickle", "cut", "refuse", "reset"]

_DRIP = 0.1  # seconds between two bytes of a trickle


class Proxy:
    """Stands before a server, on one port for its whole life.

    - `pass`: forwards.
    - `blackhole`: nothing moves and nothing is closed, as when a cable is cut; going back to `pass`, the held
      bytes arrive, as TCP would resend them.
    - `mute`: what clients send arrives, what the server answers is dropped. A stream with a hole in it must not go
      on, so the next mode begins with a reset of the open connections.
    - `slow`: every piece is held for `latency` seconds, and up to `jitter` more at random.
    - `narrow`: answers come at `bandwidth` bytes a second, over all connections together.
    - `trickle`: one byte every 100 ms, in both directions.
    - `cut`: after `after` bytes of answers each connection is reset.
    - `refuse`: nothing listens, open connections are closed.
    - `reset`: open and new connections are reset.

    `url` is the given address with the proxy's own port in it. `dropped` counts the bytes of answers that were
    swallowed, `resets` the connections that were reset.
    """

    def __init__(
        self,
        target: str,
        *,
        latency: float = 0.05,
        jitter: float = 0.0,
        after: int = 1000,
        bandwidth: float = 1e6,
        seed: object = None,
    ) -> None:
        parts = urlsplit(target)
        assert parts.hostname is not None
        assert parts.port is not None, f"an address with a port is needed, not {target}"
        self.port = free_port()
        self.url = target.replace(f"{parts.hostname}:{parts.port}", f"{HOST}:{self.port}", 1)
        self.mode: Mode = "pass"
        self.latency = latency
        self.jitter = jitter
        self.after = after
        self.bandwidth = bandwidth
        self._narrow_until = 0.0  # when what has passed so far is through
        self.dropped = 0
        self.resets = 0
        self._random = random.Random(repr(seed))
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
        holed, self.mode = self.mode == "mute" and mode != "mute", mode
        if mode == "blackhole":
            self._flowing.clear()
        else:
            self._flowing.set()
        if mode == "refuse":
            await self._stop_listening()
        elif self._listener is None:
            self._listener = await asyncio.start_server(self._accept, HOST, self.port)
        if holed or mode in ("refuse", "reset"):
            self._drop(reset=mode != "refuse")

    async def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _drop(self, *, reset: bool) -> None:
        self.resets += len(self._tasks) if reset else 0
        for writer in self._writers:
            _close(writer, reset=reset)
        self._flowing.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.mode == "reset":
            self.resets += 1
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
                asyncio.ensure_future(self._answer(server_reader, writer)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                await self._flowing.wait()  # the end of a connection does not arrive either
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            self._writers.discard(server_writer)
            _close(server_writer, reset=False)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            await self._forward(data, writer)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward what the server says, unless it is to be swallowed or to be the last."""
        passed = 0
        while data := await reader.read(65_536):
            if self.mode == "mute":
                self.dropped += len(data)
                continue
            passed += len(data)
            if self.mode == "narrow":
                now = asyncio.get_running_loop().time()
                self._narrow_until = max(self._narrow_until, now) + len(data) / self.bandwidth
                await asyncio.sleep(self._narrow_until - now)
            if self.mode == "cut" and passed > self.after:
                self.resets += 1
                _close(writer, reset=True)
                return
            await self._forward(data, writer)

    async def _forward(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        await self._flowing.wait()
        if self.mode == "slow":
            await asyncio.sleep(self.latency + self.jitter * self._random.random())
        while data and self.mode == "trickle":
            writer.write(data[:1])
            data = data[1:]
            await asyncio.sleep(_DRIP)
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
