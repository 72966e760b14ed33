"""Receivers that misbehave: `python -m tests.chaos.hostile PORT JOURNAL`; the path of a request names the way.

What counts of an answer is its status, however it goes on: where one begins with 2xx, the delivery was accepted. Any
other path accepts, after refusals as its query says: `?times=1&status=503&after=5`, where `after` is the Retry-After,
seconds from now if it begins with `@`; `&location=` is where a redirect leads; `&while=down` refuses while there is
a file of that name; with `&journal=no` nothing is written down.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import os
import socket
import struct
import sys
import time
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import Literal
from urllib.parse import parse_qsl

from .journals import Pen, Sighting, digest, now

__all__ = [
    "ACCEPTING",
    "ACCEPTING_WITHOUT_END",
    "CROSSED",
    "FLOODS",
    "REFUSING",
    "REFUSING_WITHOUT_END",
    "STALE",
    "UNASKED",
]

CROSSED = "crossed"  # a file with a byte for each of them that met a request on its way, which nobody can tell
FLOODS = "floods"  # a file with a line for each answer without end: the bytes of it that somebody took
UNASKED = "unasked"  # a file with a byte for each answer that nobody has asked for

_OK = b"HTTP/1.1 200 OK\r\n"
_ENDLESS = 10 * 2**30


class Exchange:
    """One request on a connection."""

    headers: dict[str, str]
    query: dict[str, str]

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pen: Pen) -> None:
        self.reader = reader
        self.writer = writer
        self._pen = pen

    @property
    def refused(self) -> bool:
        """Whether the query asks to refuse this attempt."""
        if "while" in self.query:
            return os.path.exists(self.query["while"])
        return int(self.headers["runner-attempt"]) <= int(self.query.get("times", 0))

    async def head(self) -> str:
        """Read the head, and return the path without its slash."""
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        path, _, query = lines[0].split(" ")[1].partition("?")
        self.query = dict(parse_qsl(query))
        return path.strip("/")

    async def body(self) -> bytes:
        """Read the body."""
        return await self.reader.readexactly(int(self.headers["content-length"]))

    def write_down(self, path: str, step: Literal["begun", "accepted", "failed"], body: bytes) -> None:
        """Write a step into the journal."""
        if self.query.get("journal") == "no":
            return
        attempt = int(self.headers["runner-attempt"])
        line = Sighting(self.headers["ce-id"], path, attempt, step, now(), os.getpid(), digest(body))
        self._pen.write(line, sync=step == "accepted")

    async def send(self, data: bytes) -> None:
        """Send a piece of the answer."""
        self.writer.write(data)
        await self.writer.drain()


async def _silent(exchange: Exchange) -> None:
    await asyncio.sleep(3600)


async def _drip(exchange: Exchange) -> None:
    for byte in _OK + b"Content-Length: 0\r\n\r\n":
        await exchange.send(bytes([byte]))
        await asyncio.sleep(1)


async def _garbage(exchange: Exchange) -> None:
    await exchange.send(b"\x16\x03\x01 not HTTP at all\r\n\r\n" * 10)


async def _large_head(exchange: Exchange) -> None:
    await exchange.send(_OK)
    for number in range(1000):
        await exchange.send(f"X-{number}: ".encode() + b"x" * 1000 + b"\r\n")
    await exchange.send(b"Content-Length: 0\r\n\r\n")


async def _endless(exchange: Exchange) -> None:
    await exchange.send(_OK + f"Content-Length: {_ENDLESS}\r\n\r\n".encode())
    for _ in range(_ENDLESS // 2**16):
        await exchange.send(b"x" * 2**16)


async def _bomb(exchange: Exchange) -> None:
    bomb = gzip.compress(bytes(50 * 2**20))
    head = f"Content-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n".encode()
    await exchange.send(_OK + head + bomb)


async def _cut(exchange: Exchange) -> None:
    await exchange.send(_OK + b"Content-Length: 1000\r\n\r\nnot all of it")


async def _once(exchange: Exchange) -> None:
    await exchange.send(_OK + b"Content-Length: 0\r\n\r\n")


def _append(name: str, text: str) -> None:
    with open(name, "a") as file:
        file.write(text)


def _without_end(beginning: bytes, piece: bytes) -> Callable[[Exchange], Awaitable[None]]:
    async def flood(exchange: Exchange) -> None:
        sent, block = 0, piece * (2**16 // len(piece))
        try:
            await exchange.send(beginning)
            while True:
                await exchange.send(block)
                sent += len(block)
        finally:
            _append(FLOODS, f"{sent}\n")

    return flood


async def _answer(exchange: Exchange) -> None:
    query = exchange.query
    head = f"HTTP/1.1 {query['status'] if exchange.refused else 200} x\r\nContent-Length: 0\r\n"
    after = query.get("after", "")
    if after:
        value = formatdate(time.time() + float(after[1:]), usegmt=True) if after.startswith("@") else after
        head += f"Retry-After: {value}\r\n"
    if "location" in query:
        head += f"Location: {query['location']}\r\n"
    await exchange.send(f"{head}\r\n".encode())


REFUSING: dict[str, Callable[[Exchange], Awaitable[None]]] = {
    "hang": _silent,
    "unread": _silent,  # not even the body is read
    "drip": _drip,
    "garbage": _garbage,
}
ACCEPTING: dict[str, Callable[[Exchange], Awaitable[None]]] = {
    "endless": _endless,
    "bomb": _bomb,
    "cut": _cut,
    "large-head": _large_head,
    "reset": _once,  # resets what comes next on the connection
}
_CHUNKED = _OK + b"Transfer-Encoding: chunked\r\n\r\n"
REFUSING_WITHOUT_END = {
    "interim": _without_end(b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
    "hints": _without_end(b"HTTP/1.1 103 Early Hints\r\n", b"Link: </style.css>\r\n"),
}
ACCEPTING_WITHOUT_END = {
    "headers": _without_end(_OK, b"X: y\r\n"),
    "extension": _without_end(_CHUNKED + b"1;x=", b"x" * 100),
    "extensions": _without_end(_CHUNKED, b"1;x=yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\nx\r\n"),
    "trailers": _without_end(_CHUNKED + b"0\r\n", b"T: x\r\n"),
}
STALE: dict[str, bytes] = {  # what a connection that is idle gets to hear, with the answer if the name says so
    "stale": _OK + b"Content-Length: 0\r\n\r\n",
    "timeout": b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
    "twice": _OK + b"Content-Length: 0\r\n\r\n",
}
_IDLE = 0.01  # seconds until an idle connection is spoken to
_IN_FLIGHT = 0.5  # seconds: what was sent before the word arrived has come by then


async def _speak_unasked(exchange: Exchange, path: str, head: asyncio.Future[str]) -> None:
    """Answer an idle connection, and read nothing from it any more: not if the next request was on its way already."""
    await asyncio.wait({head}, timeout=_IDLE)
    if head.done():
        return
    await exchange.send(STALE[path])
    _append(UNASKED, ".")
    await asyncio.wait({head}, timeout=_IN_FLIGHT)
    await asyncio.sleep(_IDLE)  # what arrived in the same instant
    if not head.done():
        head.cancel()
        await _silent(exchange)
    elif head.exception() is None:  # not what the other side answers to it, which is to close
        _append(CROSSED, ".")


async def _answer_twice(exchange: Exchange) -> None:
    await exchange.send(STALE["twice"] * 2)
    _append(UNASKED, ".")
    await _silent(exchange)


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pen: Pen) -> None:
    answered, path = 0, ""
    ways = REFUSING | ACCEPTING | REFUSING_WITHOUT_END | ACCEPTING_WITHOUT_END | {"twice": _answer_twice}
    while True:
        exchange = Exchange(reader, writer, pen)
        head = asyncio.ensure_future(exchange.head())
        if path in STALE:
            await _speak_unasked(exchange, path, head)
        path = await head
        if path == "unread":
            writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket's transport has it
            await _silent(exchange)
        body = await exchange.body()
        if path == "reset" and answered:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            return
        behave = ways.get(path, _answer)
        exchange.write_down(path, "begun", body)
        exchange.write_down(
            path, "failed" if path in REFUSING | REFUSING_WITHOUT_END or exchange.refused else "accepted", body
        )
        await behave(exchange)
        if behave not in (_once, _answer):
            return
        answered += 1


async def main(port: int, journal: str) -> None:
    """Serve for ever."""
    pen = Pen(journal)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await _serve(reader, writer, pen)
        writer.close()

    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    listener.bind(("127.0.0.1", port))
    async with await asyncio.start_server(accept, sock=listener) as server:
        print("Running on", port, flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
