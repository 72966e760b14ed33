"""The measurements: the real bus and the real worker, on tables of their own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from time import perf_counter

import structlog

from ...builder import build, open_bus, open_storage
from ...config import Config
from ...errors import RunnerError
from ...event import Event, new_id
from ...runtime.runner import Runner
from ...service.background import Background
from ...storage.scratch import bare_insert, work_is_queued

__all__ = ["Benchmark", "Measure", "Progress"]

log = structlog.get_logger(__name__)

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]

_DATA = b'{"order": 1234567, "customer": "c-98765", "currency": "EUR", "amount": 129.9, "items": [1, 2, 3, 4, 5]}'
_LONGEST = 10.0  # seconds after which a measure ends on a slow database
_BATCH = 500  # events in one transaction
_IN_BATCHES = f"publish in batches of {_BATCH}"
_PAUSE = 0.005  # seconds between two events of a latency, so that the first one is settled before the second
_LOST = 60.0  # seconds for one delivery; without any signal it waits for polling
_HEARING = 10.0  # seconds a strategy gets to prove that it hears


@dataclass(frozen=True, slots=True)
class Measure:
    """
    One result.

    `ratio` compares it with one raw INSERT and its commit: how many times as many in a second, if it is a
    rate, and how many times as long, if it is a time.
    """

    name: str
    title: str
    value: float
    unit: str
    ratio: float


class _Tally:
    """Count deliveries, and how many of them the progress shows."""

    def __init__(self) -> None:
        self.done = 0
        self.shown = 0


class _Flight:
    """Time one event at a time from a publisher to a function."""

    def __init__(self, type: str) -> None:
        self._type = type
        self._id = ""
        self._arrived_at = 0.0
        self._arrived = asyncio.Event()

    async def arrive(self, event: Event) -> None:
        """Take an event; the subscription's handler."""
        if event.id == self._id:
            self._arrived_at = perf_counter()
            self._arrived.set()

    async def seconds(self, publish: Callable[[Event], Awaitable[object]]) -> float:
        """Return the time from the call of `publish` to the call of the handler."""
        event = _event(self._type)
        self._id = event.id
        self._arrived.clear()
        began = perf_counter()
        await publish(event)
        try:
            async with asyncio.timeout(_LOST):
                await self._arrived.wait()
        except TimeoutError as error:
            raise RunnerError(f"an event was published and not delivered within {_LOST:g} s; see the log") from error
        return self._arrived_at - began


class Benchmark:
    """Measure one configuration on tables of its own, migrated and empty."""

    def __init__(
        self, config: Config, *, events: int, subscriptions: int, progress: Progress, report: Callable[[Measure], None]
    ) -> None:
        """
        Prepare to measure; nothing connects yet.

        Args:
            events: in the backlog that is drained; the other measures take a share of it.
            subscriptions: how many the fan-out goes to.
            progress: shows how far a measure is, given its title and its total.
            report: is given each result as soon as it is there.
        """
        self._config = config
        self._events = events
        self._subscriptions = subscriptions
        self._progress = progress
        self._report = report
        self._floor = 0.0  # seconds

    async def run(self) -> None:
        """Measure everything, one after the other."""
        few, many, samples = max(20, self._events // 20), max(20, self._events // 2), min(500, 20 + self._events // 40)
        await self._measure_floor(min(few, 1000))
        backlog = await self._publish("bench.one", self._events, "publish_batch", _IN_BATCHES, batch=_BATCH)
        await self._drain("bench.one", backlog, 1, "drain", "deliver a backlog")
        backlog = await self._publish("bench.many", self._events, None, "publish", batch=_BATCH)
        to = self._subscriptions
        await self._drain("bench.many", backlog, to, f"fan_out_{to}", f"deliver to {to} each")
        await self._latencies("bench.flight", samples)
        # Last, because these events are not to be delivered.
        await self._publish("bench.rest", few, "publish_1", "publish one at a time")
        await self._publish("bench.rest", many, "publish_16", "publish, 16 at once", callers=16)
        await self._publish("bench.rest", many, "publish_200", "publish, 200 at once", callers=200)

    async def _measure_floor(self, count: int) -> None:
        """Time one row and its commit, through the driver and nothing else."""
        title = "one INSERT and its commit"
        async with (
            open_storage(self._config) as storage,
            self._tally(title, count) as tally,
            bare_insert(storage.engine, storage.schema, _DATA.decode()) as insert,
        ):
            seconds: list[float] = []
            ends = perf_counter() + _LONGEST
            while len(seconds) < count and perf_counter() < ends:
                began = perf_counter()
                await insert()
                seconds.append(perf_counter() - began)
                tally.done += 1
        self._floor = _percentile(seconds, 50)
        self._time("floor", title, self._floor)

    async def _publish(
        self, type: str, count: int, name: str | None, title: str, *, callers: int = 1, batch: int = 1
    ) -> int:
        """Publish from a bus that does no work, `batch` events in a call; return how many went in."""
        firsts = iter(range(0, count, batch))  # each caller takes the next batch
        async with open_bus(self._config) as bus, self._tally(title, count) as tally:
            await bus.publish(_event(type))  # opens the connections
            began = perf_counter()

            async def call() -> None:
                for first in firsts:
                    size = min(batch, count - first)
                    await bus.publish_many([_event(type) for _ in range(size)])
                    tally.done += size
                    if perf_counter() - began > _LONGEST:
                        return

            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(callers):
                        group.create_task(call())
            except ExceptionGroup as failures:
                raise failures.exceptions[0] from None  # one store, one reason
            seconds = perf_counter() - began
        if name is not None:
            self._rate(name, title, tally.done, seconds, "events/s")
        return tally.done + 1

    async def _drain(self, type: str, events: int, subscriptions: int, name: str, title: str) -> None:
        """Deliver all waiting events to no-op functions until the last one is settled."""
        deliveries = events * subscriptions
        delivered = asyncio.Event()
        runner = build(self._config)
        async with open_storage(self._config) as storage, self._tally(title, deliveries) as tally:

            async def deliver(_event: Event) -> None:
                tally.done += 1
                if tally.done == deliveries:
                    delivered.set()

            for number in range(1, subscriptions + 1):
                runner.subscribe(f"{type}.{number}", deliver, types=(type,))
            async with runner:
                began = perf_counter()
                # The worker waits for an unreachable store; this query does not.
                while await work_is_queued(storage.engine) or not delivered.is_set():
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(1):
                            await delivered.wait()
                seconds = perf_counter() - began
                for number in range(1, subscriptions + 1):
                    await runner.unsubscribe(f"{type}.{number}")  # the next runner does not serve it
        self._rate(name, title, deliveries, seconds, "deliveries/s")

    async def _latencies(self, type: str, count: int) -> None:
        """Time single events, one after the other: within one process, then from a bus of its own, by signal."""
        runner, flight = build(self._config), _Flight(type)
        runner.subscribe(type, flight.arrive, types=(type,))
        async with runner:
            await self._latency("latency", "publish to delivery, one process", flight, runner.publish, count)
            if await _hears(runner):
                async with open_bus(self._config) as bus:
                    title = "publish to delivery, by signal"
                    await self._latency("latency_signalled", title, flight, bus.publish, count)

    async def _latency(
        self, name: str, title: str, flight: _Flight, publish: Callable[[Event], Awaitable[object]], count: int
    ) -> None:
        seconds: list[float] = []
        async with self._tally(title, count) as tally:
            await flight.seconds(publish)  # while a strategy still connects, a signal waits for it
            ends = perf_counter() + _LONGEST
            while len(seconds) < count and perf_counter() < ends:
                await asyncio.sleep(_PAUSE)
                seconds.append(await flight.seconds(publish))
                tally.done += 1
        for percent in (50, 99):
            self._time(f"{name}_p{percent}", f"{title}, p{percent}", _percentile(seconds, percent))

    @asynccontextmanager
    async def _tally(self, title: str, total: int) -> AsyncIterator[_Tally]:
        """Count steps, and show the count from time to time, because showing one costs more than a step."""
        tally = _Tally()
        with self._progress(title, total) as advance:

            async def show() -> None:
                done = tally.done
                advance(done - tally.shown)
                tally.shown = done

            shower = Background("progress", show, every=0.1)
            shower.start()
            try:
                yield tally
            finally:
                await shower.stop()

    def _rate(self, name: str, title: str, count: int, seconds: float, unit: str) -> None:
        self._report(Measure(name, title, count / seconds, unit, count / seconds * self._floor))

    def _time(self, name: str, title: str, seconds: float) -> None:
        self._report(Measure(name, title, seconds * 1000, "ms", seconds / self._floor))


async def _hears(runner: Runner) -> bool:
    """Return whether a strategy receives signals, waiting a while for the proof."""
    if all(state.hears is None for state in runner.strategies()):
        return False
    ends = perf_counter() + _HEARING
    while perf_counter() < ends:
        if any(state.hears for state in runner.strategies()):
            return True
        await asyncio.sleep(0.02)
    deaf = {state.name: state.detail for state in runner.strategies() if state.hears is False}
    log.warning("no strategy hears, signals are not measured", **deaf)
    return False


def _event(type: str) -> Event:
    return Event(type=type, source="/runner/bench", id=new_id(), datacontenttype="application/json", data=_DATA)


def _percentile(values: list[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]
