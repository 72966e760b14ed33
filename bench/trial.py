"""One trial, in a process of its own: `python -m bench.trial SPEC` prints what was measured as JSON.

SPEC is JSON: `measure`, `place` (see `contenders/base.py`) and the options of the measure. A trial
that loses, repeats or forgets an event ends with an error, and so does the whole run.
"""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import uvloop

from .claims import claims, horizon
from .contenders import contender
from .contenders.base import Contender, Place, Session
from .idle import idle
from .latency import consume, latency

__all__ = ["Result", "drain", "main", "publish"]

Result = dict[str, Any]

BATCH = 500
PATIENCE = 300.0  # seconds for one trial


async def drain(subject: Contender, place: Place, *, events: int, payload: int = 100, backlog: int = 0) -> Result:
    """
    Publish a backlog in batches, then let one process deliver it.

    The clock runs from the first delivery until `events` of them, for each subscription, are on record; with a
    larger `backlog` until they were handed over, because the rest is not waited for. Rates are in deliveries per
    second: of the drain alone (`rate`), and with the time it took to publish (`whole`); memory in MiB, at its peak.
    """
    await subject.prepare()
    total = max(events, backlog)
    async with subject.session() as session:
        began = time.perf_counter()
        for batch in batches(total, payload):
            await session.publish_many(batch)
        filled = time.perf_counter() - began
    tally = Tally(events * place.subscriptions)
    async with subject.session(tally):
        await asyncio.wait_for(tally.reached.wait(), PATIENCE)
        took = tally.ended - tally.began
        if total == events:
            await _until(subject.idle)
            took = time.perf_counter() - tally.began
    if total == events:
        await _verify(subject, stored=events, delivered=tally.expected, handled=tally.count)
    return {
        "rate": tally.expected / took,
        "whole": tally.expected / (filled * events / total + took),
        "published": total / filled,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


async def publish(subject: Contender, place: Place, *, events: int, batch: int = 1, payload: int = 100) -> Result:
    """Publish from as many callers as the place has, each one after the other, singly or in batches."""
    await subject.prepare()
    async with subject.session() as session:
        await _publish_all(session, batches(place.callers * 10 * batch, payload, batch), place.callers)  # warm up
        began = time.perf_counter()
        await _publish_all(session, batches(events, payload, batch), place.callers)
        took = time.perf_counter() - began
    await _verify(subject, stored=events + place.callers * 10 * batch)
    return {"rate": events / took}


class Tally:
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
        elif self.count == self.expected:
            self.ended = time.perf_counter()
            self.reached.set()


def batches(events: int, payload: int, size: int = BATCH) -> Iterator[list[bytes]]:
    """Yield the data of `events` events, each of `payload` bytes, in batches."""
    for start in range(0, events, size):
        yield [b"%016d" % number + b"x" * (payload - 16) for number in range(start, min(start + size, events))]


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


async def _until(check: Callable[[], Awaitable[bool]], every: float = 0.002) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await check():
            await asyncio.sleep(every)


async def _verify(subject: Contender, *, stored: int, delivered: int = 0, handled: int = 0) -> None:
    counts = await subject.counts()
    found = (counts.stored, counts.delivered, handled)
    if found != (stored, delivered, delivered):
        raise SystemExit(f"expected {stored} stored, {delivered} recorded and handled; found {found}")


MEASURES: dict[str, Callable[..., Awaitable[Result]]] = {
    "drain": drain,
    "publish": publish,
    "latency": latency,
    "consume": consume,
    "claims": claims,
    "horizon": horizon,
    "idle": idle,
}


async def run(spec: dict[str, Any]) -> Result:
    """Run the trial that `spec` describes."""
    place = Place(**spec.pop("place"))
    measure = MEASURES[spec.pop("measure")]
    return await measure(contender(place), place, **spec)


def main(arguments: Sequence[str]) -> None:
    """Run one trial on uvloop, and print its result as the last line."""
    logging.disable(logging.INFO)  # peers log every job; nobody reads it here
    result = uvloop.run(run(json.loads(arguments[0])))
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
