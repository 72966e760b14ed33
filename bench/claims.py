"""What a claim costs: with a long history, with a long backlog, and while an old transaction holds the horizon."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg

from runner import Event
from runner.builder import open_storage
from runner.config import load_config
from runner.storage import Storage
from runner.storage.contract.events import Publication
from runner.storage.contract.settlements import Run, Settled

from .contenders.base import Contender, Place
from .rows import add_backlog, add_history

__all__ = ["claims", "horizon"]

BATCH = 500
LEASE = timedelta(seconds=30)
CLAIMS = 40


async def claims(subject: Contender, place: Place, *, history: int = 0, backlog: int = 0) -> dict[str, Any]:
    """Claim and settle batches of 500 beside `history` delivered rows and `backlog` waiting ones; milliseconds."""
    await subject.prepare()
    await add_history(place.dsn, history)
    await add_backlog(place.dsn, backlog)
    async with open_storage(load_config(Path(place.directory) / "bench.yaml")) as storage:
        taken = []
        for number in range(CLAIMS + 5):
            await _publish(storage, number)
            taken.append(await _claim(storage))
    return {"claim": statistics.mean(taken[5:]), "median": statistics.median(taken[5:])}


async def horizon(subject: Contender, place: Place, *, hold: int, after: int, pace: float = 0.05) -> dict[str, Any]:
    """
    Publish, claim and settle 500 events every `pace` seconds while a transaction of `hold` seconds is open.

    Returns the mean claim before, in the last sixth of the hold, and in the last sixth of the time `after` it.
    """
    await subject.prepare()
    connection = await asyncpg.connect(place.dsn)
    async with open_storage(load_config(Path(place.directory) / "bench.yaml")) as storage:
        before = await _steadily(storage, max(5.0, hold / 6), pace)
        transaction = connection.transaction(isolation="repeatable_read")
        await transaction.start()
        await connection.fetchval("SELECT pg_current_xact_id()")  # from here on nothing newer is vacuumed
        held = await _steadily(storage, hold, pace)
        await transaction.rollback()
        recovery = await _steadily(storage, after, pace)
    await connection.close()
    curve = [(at - before[0][0], taken) for at, taken in before + held + recovery]
    return {
        "before": _mean(before),
        "during": _mean(held[-len(held) // 6 :]),
        "after": _mean(recovery[-len(recovery) // 6 :]),
        "slowdown": _mean(held[-len(held) // 6 :]) / _mean(before),
        "rest": _mean(recovery[-len(recovery) // 6 :]) / _mean(before),
        "curve": _thinned(curve),
        "hold": (before[-1][0] - before[0][0], held[-1][0] - before[0][0]),
    }


async def _publish(storage: Storage, number: int) -> None:
    data = b"x" * 100
    events = (Event(type="bench.event", source=f"/claims/{number}", data=data) for _ in range(BATCH))
    await storage.events.append([Publication(event) for event in events])


async def _claim(storage: Storage) -> float:
    """Claim 500, settle them, and return the milliseconds of the claim."""
    began = time.perf_counter()
    claim = await storage.queue.claim(BATCH, LEASE)
    taken = (time.perf_counter() - began) * 1000
    if len(claim.works) != BATCH:
        raise SystemExit(f"expected a claim of {BATCH} events, got {len(claim.works)}")
    settled = await storage.queue.settle(Settled(claim.token, claim.works, [Run((1,), BATCH)]))
    if settled != BATCH:
        raise SystemExit(f"expected {BATCH} settled events, got {settled}")
    return taken


async def _steadily(storage: Storage, seconds: float, pace: float) -> list[tuple[float, float]]:
    """Return (time, milliseconds of the claim) at a steady pace."""
    began = time.perf_counter()
    taken: list[tuple[float, float]] = []
    while (now := time.perf_counter()) < began + seconds:
        await _publish(storage, int(now * 1000))
        taken.append((now, await _claim(storage)))
        await asyncio.sleep(max(0.0, now + pace - time.perf_counter()))
    return taken


def _mean(taken: Sequence[tuple[float, float]]) -> float:
    return statistics.mean(each for _, each in taken)


def _thinned(curve: Sequence[tuple[float, float]], every: float = 2.0) -> list[tuple[float, float]]:
    """Return the mean of every two seconds."""
    buckets: dict[int, list[float]] = {}
    for at, taken in curve:
        buckets.setdefault(int(at / every), []).append(taken)
    return [(bucket * every, statistics.mean(each)) for bucket, each in sorted(buckets.items())]
