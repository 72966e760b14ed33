"""A backlog: published in batches, then drained by one process."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from .contenders.base import Contender, Place, Session
from .contenders.onlooker import Onlooker
from .rows import add_history

__all__ = ["batches", "drain", "publish", "until"]

BATCH = 500
PATIENCE = 300.0  # seconds for one trial


async def drain(
    subject: Contender, place: Place, *, events: int, payload: int = 100, backlog: int = 0, history: int = 0
) -> dict[str, Any]:
    """
    Publish a backlog in batches, then let one process deliver it.

    The clock runs from the first delivery until `events` of them, for each subscription, are on record; with a
    larger `backlog` until they were handed over, because the rest is not waited for. Rates are in deliveries per
    second: of the drain alone (`rate`), and with the time it took to publish (`whole`); memory in MiB, at its peak.
    With all of a backlog in a database, in bytes for each delivery: the WAL of the drain (`wal`), and what the database
    has grown by since it was empty (`disk`), events included.

    Args:
        history: rows of ours that are there before.
    """
    await subject.prepare()
    if history:
        await add_history(place.dsn, history)
    total = max(events, backlog)
    growth = _Growth(place)
    await growth.begin()
    async with subject.session() as session:
        began = time.perf_counter()
        for batch in batches(total, payload):
            await session.publish_many(batch)
        filled = time.perf_counter() - began
    await growth.drain()
    tally = _Tally(events * place.subscriptions)
    async with subject.session(tally):
        await asyncio.wait_for(tally.reached.wait(), PATIENCE)
        took = tally.ended - tally.began
        grown: dict[str, float] = {}
        if total == events:
            await until(subject.idle)
            took = time.perf_counter() - tally.began
            grown = await growth.end(tally.expected)
    if total == events:
        await _verify(subject, stored=history + events, delivered=history + tally.expected)
        tally.check()
    return {
        "rate": tally.expected / took,
        "whole": tally.expected / (filled * events / total + took),
        "published": total / filled,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        **grown,
    }


async def publish(subject: Contender, place: Place, *, events: int, batch: int = 1) -> dict[str, Any]:
    """Publish from as many callers as the place has, each one after the other, singly or in batches."""
    await subject.prepare()
    warm_up = place.callers * 10 * batch
    async with subject.session() as session:
        await _publish_all(session, batches(warm_up, size=batch), place.callers)
        began = time.perf_counter()
        await _publish_all(session, batches(events, size=batch), place.callers)
        took = time.perf_counter() - began
    await _verify(subject, stored=events + warm_up, delivered=0)
    return {"rate": events / took}


def batches(events: int, payload: int = 100, size: int = BATCH) -> Iterator[list[bytes]]:
    """Yield the data of `events` events, each of `payload` bytes, in batches."""
    for start in range(0, events, size):
        yield [b"%016d" % number + b"x" * (payload - 16) for number in range(start, min(start + size, events))]


async def until(check: Callable[[], Awaitable[bool]], every: float = 0.002) -> None:
    """Return when `check` says so; ask `every` so many seconds."""
    async with asyncio.timeout(PATIENCE):
        while not await check():  # noqa: ASYNC110  # what it waits for happens in a server
            await asyncio.sleep(every)


class _Growth:
    """The bytes that a database writes and takes."""

    def __init__(self, place: Place) -> None:
        self._onlooker = Onlooker(place.dsn) if place.in_database else None
        self._size = 0
        self._written: int | None = None

    async def begin(self) -> None:
        """Note the size before anything is published."""
        if self._onlooker is not None:
            self._size = await self._onlooker.size()

    async def drain(self) -> None:
        """Note what has been written before the drain."""
        if self._onlooker is not None:
            self._written = await self._onlooker.written()

    async def end(self, deliveries: int) -> dict[str, float]:
        """Return `disk`, and `wal` where there is any, for each delivery."""
        if self._onlooker is None:
            return {}
        grown = {"disk": (await self._onlooker.size() - self._size) / deliveries}
        written = await self._onlooker.written()
        if written is not None and self._written is not None:
            grown["wal"] = (written - self._written) / deliveries
        return grown


class _Tally:
    """Counts deliveries, and says when enough are there."""

    def __init__(self, expected: int) -> None:
        self.expected = expected
        self.count = 0
        self.began = self.ended = 0.0
        self.reached = asyncio.Event()

    def __call__(self, data: bytes) -> None:
        """Count one."""
        self.count += 1
        if self.count == 1:
            self.began = time.perf_counter()
        if self.count == self.expected:
            self.ended = time.perf_counter()
            self.reached.set()

    def check(self) -> None:
        """End the trial if there was one too many."""
        if self.count != self.expected:
            raise SystemExit(f"expected {self.expected} deliveries, the handler was called {self.count} times")


async def _publish_all(session: Session, work: Iterator[list[bytes]], callers: int) -> None:
    async def caller() -> None:
        for batch in work:
            if len(batch) == 1:
                await session.publish(batch[0])
            else:
                await session.publish_many(batch)

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller())


async def _verify(subject: Contender, *, stored: int, delivered: int) -> None:
    counts = await subject.counts()
    if (counts.stored, counts.delivered) != (stored, delivered):
        raise SystemExit(f"expected {stored} events and {delivered} deliveries on record, found {counts}")
