"""
What open dashboards cost a drain: windows of a few seconds with and without them, in turns, in one drain that goes on.

Beside the rate, the CPU time of the worker's process and of PostgreSQL is counted for each event, because a rate on a
machine with few cores also has the share of those who read the pages. Opening the pages is outside the windows.
"""

from __future__ import annotations

import asyncio
import html
import re
import statistics
import subprocess
import threading
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from math import ceil
from typing import IO

import asyncpg
import psutil

from runner.event import new_id
from tests.support.eventually import eventually

__all__ = ["HANDLERS", "Drain", "Window", "compared"]

HANDLERS = """\
import time

calls = 0

async def note(event):
    global calls
    calls += 1
    if calls % 500 == 0:
        print(time.monotonic(), time.process_time(), calls, flush=True)
"""
"""A module whose `note` says at every 500th call: the time, the CPU time of the process, and the calls so far."""

_BACKLOG = """
WITH e AS (
    INSERT INTO events (id, source, type, data, created_at)
    SELECT $1 || n, '/backlog', 'bench.drain', repeat('x', 100)::bytea, clock_timestamp()
    FROM generate_series(1, $2::int) n RETURNING seq)
INSERT INTO dispatch (event_seq) SELECT seq FROM e ORDER BY seq
"""
_STOCK = 250_000  # events that are added at once
_LEAST = 500_000  # that have to wait at the beginning of a window
_SETTLE = 2.0  # seconds between opening or closing and a window

_OPEN = ["/"] * 4 + ["/?range=7d", "/dashboard/subscriptions", "/dashboard/events", "/dashboard/dead-letters"]
_OPEN += ["/dashboard/subscriptions/s1", "/dashboard/events?type=bench.drain"]

_WAKE = (
    "POST /events HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nce-specversion: 1.0\r\nce-type: bench.wake\r\n"
    "ce-source: /bench\r\nce-id: {id}\r\ncontent-length: 0\r\n\r\n"
)


@dataclass(frozen=True, slots=True)
class Window:
    """What went on in some seconds: events in a second, and microseconds of CPU for each of them."""

    rate: float
    worker: float
    postgresql: float


class Drain:
    """A drain that goes on: the worker's process tells how far it is."""

    def __init__(self, port: int, process: subprocess.Popen[str], dsn: str, postmaster: int) -> None:
        """Args: postmaster is the process id of the server."""
        self._port = port
        self._dsn = dsn
        self._postmaster = psutil.Process(postmaster)
        self._told: list[tuple[float, float, float]] = []
        self._added = 0
        assert process.stdout is not None
        threading.Thread(target=self._read, args=[process.stdout], daemon=True).start()

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            at, busy, calls = line.split()
            self._told.append((float(at), float(busy), float(calls)))

    async def window(self, dashboards: int, seconds: float) -> Window:
        """Return what went on beside so many dashboards."""
        async with AsyncExitStack() as stack:
            await self._fill(seconds)
            for number in range(dashboards):
                await stack.enter_async_context(self._watching(_OPEN[number % len(_OPEN)]))
            await asyncio.sleep(_SETTLE)
            began, server = time.monotonic(), self._server_busy()
            await asyncio.sleep(seconds)
            ended, server = time.monotonic(), self._server_busy() - server
        await eventually(lambda: self._told[-1][0] >= ended)
        (busy, calls), (busy_then, calls_then) = self._at(began), self._at(ended)
        events = calls_then - calls
        return Window(events / (ended - began), 1e6 * (busy_then - busy) / events, 1e6 * server / events)

    async def _fill(self, seconds: float) -> None:
        """Add events where too few wait for a window, and wait until the worker is at them."""
        done = self._told[-1][2] if self._told else 0.0
        rate = self._rate() if len(self._told) > 1 else 0.0
        need = max(_LEAST, rate * (seconds + 3 * _SETTLE)) - (self._added - done)
        if need <= 0:
            return
        connection = await asyncpg.connect(self._dsn)
        for _ in range(ceil(need / _STOCK)):
            await connection.execute(_BACKLOG, f"{self._added}-", _STOCK, timeout=120)
            self._added += _STOCK
        await connection.close()
        before = len(self._told)
        await self._request(_WAKE)
        await eventually(lambda: len(self._told) >= before + 2)

    def _rate(self) -> float:
        (began, _, calls), (ended, _, calls_then) = self._told[-min(len(self._told), 40)], self._told[-1]
        return (calls_then - calls) / (ended - began)

    def _at(self, moment: float) -> tuple[float, float]:
        """Return the CPU time of the process and its calls at a moment, from what it told before and after."""
        index = bisect_left(self._told, moment, key=lambda each: each[0])
        (before, *one), (after, *two) = self._told[index - 1], self._told[index]
        share = (moment - before) / (after - before)
        busy, calls = [first + share * (second - first) for first, second in zip(one, two, strict=True)]
        return busy, calls

    def _server_busy(self) -> float:
        times = self._postmaster.cpu_times()
        total: float = times.user + times.system + times.children_user + times.children_system
        for each in self._postmaster.children():
            try:
                total += sum(each.cpu_times()[:2])
            except psutil.NoSuchProcess:
                continue  # from now on it is among the children that are over
        return total

    async def _request(self, head: str) -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(head.format(id=new_id()).encode())
        answer = (await reader.read()).decode()
        writer.close()
        if " 20" not in answer[:16]:
            raise SystemExit(f"refused: {answer[:200]}")
        return answer

    @asynccontextmanager
    async def _watching(self, path: str) -> AsyncIterator[None]:
        """Open a page as a browser does: the page, then the stream of what changes on it, which is thrown away."""
        text = await self._request(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        found = re.search(r'data-live="([^"]+)"', text)
        if found is None:
            raise SystemExit(f"{path} is no live page")
        live = html.unescape(found[1])
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(f"GET {live} HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\n\r\n".encode())
        await reader.readuntil(b"data: ")

        async def read() -> None:
            while await reader.read(65536):
                pass

        reading = asyncio.create_task(read())
        try:
            yield
        finally:
            reading.cancel()
            writer.close()


async def compared(drain: Drain, dashboards: int, pairs: int, seconds: float) -> dict[str, object]:
    """Return what so many dashboards cost, by pairs of windows in turns."""
    alone: list[Window] = []
    beside: list[Window] = []
    await drain.window(0, seconds)  # warm
    for number in range(pairs):
        for watched in (False, True) if number % 2 else (True, False):
            (beside if watched else alone).append(await drain.window(dashboards if watched else 0, seconds))
    ratios = [two.rate / one.rate for one, two in zip(alone, beside, strict=True)]
    return {
        "events_per_second": {"drain": _median(alone, "rate"), f"beside_{dashboards}": _median(beside, "rate")},
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(each, 3) for each in sorted(ratios)],
        "us_of_cpu_per_event": {
            name: {"drain": _median(alone, name), f"beside_{dashboards}": _median(beside, name)}
            for name in ("worker", "postgresql")
        },
        "cpu_ratio": round(
            statistics.median(
                (two.worker + two.postgresql) / (one.worker + one.postgresql)
                for one, two in zip(alone, beside, strict=True)
            ),
            3,
        ),
    }


def _median(windows: Sequence[Window], name: str) -> float:
    return round(statistics.median(float(getattr(each, name)) for each in windows), 1)
