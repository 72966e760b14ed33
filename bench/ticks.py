"""`python -m bench.ticks`: how late ticks come, and what a million scheduled events cost those that are due."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import psutil

from runner import Event, load
from runner.builder import open_storage
from runner.config import load_config
from runner.policies.schedule import EventTemplate, Schedule
from runner.runtime.runner import Runner
from runner.storage import Storage
from runner.storage.contract.events import Publication
from runner.storage.contract.schedules import Firing, Occurrence
from tests.support.postgres import PostgresServer

from .rows import add_scheduled

_DAY = timedelta(days=1)
_PULSE = Schedule(name="pulse", every=timedelta(seconds=1), event=EventTemplate(type="tick"))
_FILE = """\
deployment_id: bench
storage: {{dsn: "{dsn}"}}
log: {{level: error}}
"""


@click.command()
@click.option("--schedules", default=1000, show_default=True, help="Schedules that are due in the same second.")
@click.option("--rounds", default=6, show_default=True, help="Ticks of each.")
@click.option("--rows", default=1_000_000, show_default=True, help="Events that are due in a year.")
@click.option("--samples", default=300, show_default=True, help="Publishes, claims and ticks each.")
def main(schedules: int, rounds: int, rows: int, samples: int) -> None:
    """Measure how late ticks are delivered, and what scheduled rows cost."""
    server = PostgresServer(18)
    server.start()
    try:
        with tempfile.TemporaryDirectory() as directory:
            asyncio.run(_measure(server, Path(directory), schedules, rounds, rows, samples))
    finally:
        server.discard()


async def _measure(
    server: PostgresServer, directory: Path, schedules: int, rounds: int, rows: int, samples: int
) -> None:
    for count, every, number in ((1, 1, 5 * rounds), (schedules, 5, rounds)):
        late, (ours, theirs) = await _lateness(_file(directory, server.create_database()), count, every, number)
        p50, p99 = _quantiles(late)
        click.echo(f"delivery - nominal time of {count} at once: p50 {p50:.1f} ms, p99 {p99:.1f} ms, {len(late)} ticks")
        click.echo(f"  CPU a round, with what goes on beside it: {ours:.0f} ms here, {theirs:.0f} ms in PostgreSQL")
    empty, full = server.create_database(), server.create_database()
    paths = [_file(directory, empty), _file(directory, full, "full.yaml")]
    async with contextlib.AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(open_storage(load_config(path), create=True)) for path in paths]
        await add_scheduled(full, rows)
        for name, step in (("publish", _publish), ("claim", _claim), ("tick", _tick)):
            one, other = await _medians(step, stores, samples)
            click.echo(f"{name}: {one:.2f} ms, beside {rows} scheduled {other:.2f} ms, {other / one:.2f} times")


def _busy() -> tuple[float, float]:
    """Return the seconds of CPU that this process and the server below it have used."""
    theirs = 0.0
    for each in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            times = each.cpu_times()
            theirs += times.user + times.system + times.children_user + times.children_system
    return time.process_time(), theirs


def _file(directory: Path, dsn: str, name: str = "bench.yaml") -> Path:
    path = directory / name
    path.write_text(_FILE.format(dsn=dsn))
    return path


async def _lateness(path: Path, count: int, every: int, rounds: int) -> tuple[list[float], tuple[float, float]]:
    """
    Return milliseconds from the nominal time of each tick to its delivery, without the first round.

    And those of CPU that a round took, of this process and of the server, the time between two rounds included.
    """
    late: list[tuple[datetime, float]] = []
    busy: list[tuple[float, float]] = []
    done = asyncio.Event()

    async def take(event: Event) -> None:
        assert event.time is not None
        late.append((event.time, (datetime.now(UTC) - event.time) / timedelta(milliseconds=1)))
        if len(late) in (count, count * (rounds + 1)):
            busy.append(_busy())
        if len(late) == count * (rounds + 1):
            done.set()

    template = EventTemplate(type="tick", data='{"n":1}')
    entries = [
        Schedule(name=f"s{number}", every=timedelta(seconds=every), catch_up="all", event=template)
        for number in range(count)
    ]
    runner = _with(load(path), entries)
    runner.subscribe("take", take)
    async with runner:
        await asyncio.wait_for(done.wait(), 30 + 2 * every * rounds)
    first = min(moment for moment, _ in late)
    ours, theirs = (1000 * (after - before) / rounds for before, after in zip(*busy, strict=True))
    return [each for moment, each in late if moment > first], (ours, theirs)


def _with(runner: Runner, schedules: Sequence[Schedule]) -> Runner:
    runner._plan = replace(runner._plan, schedules=schedules)
    return runner


async def _publish(storage: Storage) -> None:
    await storage.events.append([Publication(Event(type="a", source="/bench"))])


async def _claim(storage: Storage) -> None:
    await storage.queue.claim(1, timedelta(seconds=30))


async def _tick(storage: Storage) -> None:
    """Publish the next tick of a schedule that is always due."""
    due = await storage.schedules.due(500)
    if not due.schedules:
        await storage.schedules.put(_PULSE, "api")
        await asyncio.sleep(1.1)
        return
    firings = []
    for seen in due.schedules:
        at = seen.standing.tick
        following, past = at + timedelta(seconds=1), due.now - timedelta(seconds=1)
        occurrence = Occurrence(at, _PULSE.event_of(at))
        firings.append(Firing(seen=seen, occurrences=[occurrence], tick=following, look_at=past, forget=at - _DAY))
    await storage.schedules.fire(firings)


async def _medians(
    step: Callable[[Storage], Awaitable[None]], stores: Sequence[Storage], samples: int
) -> tuple[float, float]:
    """Return the median milliseconds of a step on each of two stores, taken in turns."""
    taken: list[list[float]] = [[], []]
    for _ in range(samples):
        for times, storage in zip(taken, stores, strict=True):
            began = time.perf_counter()
            await step(storage)
            times.append(1000 * (time.perf_counter() - began))
    return statistics.median(taken[0]), statistics.median(taken[1])


def _quantiles(values: Sequence[float]) -> tuple[float, float]:
    quantiles = statistics.quantiles(values, n=100)
    return quantiles[49], quantiles[98]


if __name__ == "__main__":
    main()
