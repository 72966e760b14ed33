"""From publish to sink, one event at a time, within one process and across two."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import statistics
import sys
import time
from asyncio.subprocess import PIPE, create_subprocess_exec
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

from .contenders.base import Contender, Handler, Place, Session

__all__ = ["consume", "latency"]

WARM_UP = 100  # events that do not count
PAUSE = 0.004  # seconds at most between one delivery and the next publish: nobody may profit from a busy loop


async def latency(subject: Contender, place: Place, *, samples: int, across: bool) -> dict[str, Any]:
    """
    Publish `samples` events, each after the one before has arrived; microseconds from call to handler.

    Across two processes the handler sends a datagram back with the time of arrival: the monotonic clock is one for
    the whole machine.
    """
    await subject.prepare()
    arrivals: asyncio.Queue[tuple[int, int]] = asyncio.Queue()
    opened = _across(subject, place, arrivals) if across else _within(subject, arrivals)
    taken: list[float] = []
    async with opened as session:
        await _first(session, arrivals)
        for number in range(1, WARM_UP + samples + 1):
            began = time.monotonic_ns()
            await session.publish(b"%016d" % number + b"x" * 84)
            while (arrival := await asyncio.wait_for(arrivals.get(), 60))[0] != number:
                pass
            if number > WARM_UP:
                taken.append((arrival[1] - began) / 1000)
            await asyncio.sleep(random.uniform(0, PAUSE))
    quantiles = statistics.quantiles(taken, n=100)
    return {"p50": quantiles[49], "p99": quantiles[98], "spread": quantiles[98] / quantiles[49]}


async def consume(subject: Contender, place: Place, *, port: int) -> dict[str, Any]:
    """Be the other process: report every arrival to `port` until standard input ends."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.connect(("127.0.0.1", port))

        def report(data: bytes) -> None:
            out.send(b"%s %d" % (data[:16], time.monotonic_ns()))

        async with subject.session(report):
            await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    return {}


@contextlib.asynccontextmanager
async def _within(subject: Contender, arrivals: asyncio.Queue[tuple[int, int]]) -> AsyncIterator[Session]:
    def arrive(data: bytes) -> None:
        arrivals.put_nowait((int(data[:16]), time.monotonic_ns()))

    handler: Handler = arrive
    async with subject.session(handler) as session:
        yield session


class _Reports(asyncio.DatagramProtocol):
    def __init__(self, arrivals: asyncio.Queue[tuple[int, int]]) -> None:
        self._arrivals = arrivals

    def datagram_received(self, data: bytes, addr: object) -> None:
        """Take a report."""
        number, stamp = data.split()
        self._arrivals.put_nowait((int(number), int(stamp)))


@contextlib.asynccontextmanager
async def _across(subject: Contender, place: Place, arrivals: asyncio.Queue[tuple[int, int]]) -> AsyncIterator[Session]:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: _Reports(arrivals), ("127.0.0.1", 0))
    port = transport.get_extra_info("sockname")[1]
    spec = {"measure": "consume", "place": asdict(place), "port": port}
    other = await create_subprocess_exec(sys.executable, "-m", "bench.trial", json.dumps(spec), stdin=PIPE)
    try:
        async with subject.session() as session:
            yield session
        assert other.stdin is not None
        other.stdin.close()
        await asyncio.wait_for(other.wait(), 30)
    finally:
        if other.returncode is None:
            other.kill()
            await other.wait()
        transport.close()


async def _first(session: Session, arrivals: asyncio.Queue[tuple[int, int]]) -> None:
    """Return once the consumer is there: the event with number 0 has arrived."""
    await session.publish(b"%016d" % 0 + b"x" * 84)
    await asyncio.wait_for(arrivals.get(), 60)
