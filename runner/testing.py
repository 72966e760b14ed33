"""
A bus for tests of your own handlers: real, on a SQLite file of its own, with no server.

    async with runner.testing.bus(confirm=handler) as bus:
        await bus.publish(Event.new("order.placed", {"order": 17}, source="/shop"))
        await bus.drain()
        assert [each.state for each in await bus.deliveries()] == ["delivered"]
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import structlog

from .builder import build, open_storage
from .config import load_config
from .config.retry import RetryOverride
from .delivery import DeliveryState
from .errors import NotFound, StateConflict
from .event import Event
from .runtime.runner import Runner
from .storage import Storage
from .storage.contract.events import Receipt
from .storage.contract.records import AttemptView, DeliveryQuery, DeliveryView, EventQuery, EventView

__all__ = ["Bus", "SyncBus", "bus", "sync_bus"]

_NOTHING = 'deployment_id: test\nstorage: {dsn: "sqlite:///bus.db"}\n'
# Override the file: nothing outside the test, no schedules, and no breaker that delays retries.
_SETTINGS = ("strategies=[polling: 1s, sqlite: 5ms]", "schedules=[]", "breaker=off", "log.level=warning")
_PAUSE = 0.005  # seconds between two looks


@contextlib.asynccontextmanager
async def bus(
    file: str | Path | None = None, *, settings: Sequence[str] = (), **handlers: Callable[..., Any]
) -> AsyncIterator[Bus]:
    """
    Run a bus for one test, on an empty store.

    Args:
        file: your configuration, whose sinks and subscriptions are used; its store and strategies are not.
        settings: as `--set`: `["sinks.crm=stdout"]` keeps a webhook of the file from being called.
        handlers: functions by the names of their subscriptions, each called with every event.

    Raises:
        ConfigError: the file has faults.
    """
    with tempfile.TemporaryDirectory(prefix="runner-testing-") as directory:
        if file is None:
            file = Path(directory, "bus.yaml")
            file.write_text(_NOTHING)
        store = (f"storage={{dsn: 'sqlite:///{directory}/bus.db'}}", "api=", *_SETTINGS)
        config = load_config(file, settings=(*store, *settings))
        if not structlog.is_configured():
            config.log.apply(own=True)
        runner = build(config)
        for name, handler in handlers.items():
            runner.subscribe(name, handler, retry=RetryOverride().over(config.retry), breaker=None)
        async with runner, open_storage(config) as storage:
            yield Bus(runner, storage)


@contextlib.contextmanager
def sync_bus(
    file: str | Path | None = None, *, settings: Sequence[str] = (), **handlers: Callable[..., Any]
) -> Iterator[SyncBus]:
    """Run a bus for one test that is not async; see `bus()`. It works while one of its methods is called."""
    with asyncio.Runner() as loop:
        running = bus(file, settings=settings, **handlers)
        made = loop.run(running.__aenter__())
        try:
            yield SyncBus(loop, made)
        finally:
            loop.run(running.__aexit__(None, None, None))


class Bus:
    """A running bus, and its records, in the hands of a test."""

    def __init__(self, runner: Runner, storage: Storage) -> None:
        """Args: a runner that has started, and its store."""
        self.runner = runner
        self._storage = storage

    async def publish(self, event: Event, **options: Any) -> Receipt:
        """Record an event; options as of `EventBus.publish()`, such as `delay`."""
        return await self.runner.publish(event, **options)

    async def drain(self, timeout: float = 10.0) -> None:
        """
        Wait until nothing is due and nothing runs.

        A retry or a delayed event goes on waiting for its time, and a deferred delivery for `runner.ack()`.

        Args:
            timeout: seconds.

        Raises:
            TimeoutError: something is still due then; the text names it.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        while (due := await self._due()) is not None:
            if asyncio.get_running_loop().time() > deadline:
                raise TimeoutError(f"not drained after {timeout:g} s: {due}")
            await asyncio.sleep(_PAUSE)

    async def advance(self, timeout: float = 10.0) -> int:
        """
        Make everything due that waits for its time, deliver it, and return how many events were affected.

        `while await bus.advance(): pass` carries retries to their end: delivered or dead.
        """
        await self.drain(timeout)
        now, waiting = datetime.now(UTC), set()
        async for event in self._storage.records.events(EventQuery(state="scheduled", limit=10_000, data=False)):
            waiting.add(event.seq)
        pending = DeliveryQuery(state=DeliveryState.PENDING, limit=None)
        waiting |= {each.seq async for each in self._storage.records.deliveries(pending)}
        moved = 0
        for seq in sorted(waiting):
            with contextlib.suppress(StateConflict):  # it ran meanwhile
                await self.runner.reschedule(str(seq), deliver_at=now - timedelta(seconds=1))
                moved += 1
        await self.drain(timeout)
        return moved

    async def events(self, type: str | None = None) -> list[EventView]:
        """Return the events on record, in the order of publication; `type` is a pattern."""
        query = EventQuery(type=type, limit=10_000, newest_first=False)
        return [each async for each in self._storage.records.events(query)]

    async def deliveries(
        self, subscription: str | None = None, state: DeliveryState | str | None = None
    ) -> list[DeliveryView]:
        """
        Return the deliveries on record, those of the oldest event first.

        Raises:
            NotFound: there is no such subscription.
        """
        names = [each.subscription.name for each in (await self._storage.registry.subscriptions())[1]]
        if subscription is not None and subscription not in names:
            raise NotFound(f"no subscription {subscription!r}; there are: {', '.join(names) or 'none'}")
        wanted = None if state is None else DeliveryState(state)
        query = DeliveryQuery(subscription=subscription, state=wanted, limit=None)
        found = [each async for each in self._storage.records.deliveries(query)]
        return sorted(found, key=lambda each: (each.seq, each.subscription))

    async def dead(self, subscription: str | None = None) -> list[DeliveryView]:
        """Return the deliveries that have used up their attempts, or were rejected."""
        return await self.deliveries(subscription, DeliveryState.DEAD)

    async def attempts(self, delivery: DeliveryView) -> Sequence[AttemptView]:
        """Return the attempts of a delivery that are on record: those that failed, and the last one."""
        return (await self._storage.records.delivery(delivery.seq, delivery.subscription))[1]

    async def _due(self) -> str | None:
        """Return what is due or runs; None if nothing is."""
        queue = await self._storage.overview.queue()
        if queue.queued:
            return f"{queue.queued} events are queued"
        now = datetime.now(UTC)
        for state in (DeliveryState.LEASED, DeliveryState.PENDING):
            async for each in self._storage.records.deliveries(DeliveryQuery(state=state, limit=None)):
                waits = each.due_at is not None and each.due_at > now
                if not waits or (state is DeliveryState.LEASED and not await self._is_deferred(each)):
                    return f"the delivery of {each.event_type} to {each.subscription} is {state}"
        return None

    async def _is_deferred(self, delivery: DeliveryView) -> bool:
        """Return whether a delivery is leased by nobody: its sink accepted it for later."""
        return (await self._storage.overview.hold(delivery.seq, delivery.subscription)).token is None


class SyncBus:
    """The same for tests that are not async."""

    def __init__(self, loop: asyncio.Runner, made: Bus) -> None:
        """Args: the loop that the bus runs in while a method is called, and the bus."""
        self._loop = loop
        self._bus = made

    def publish(self, event: Event, **options: Any) -> Receipt:
        """Record an event; see `Bus.publish()`."""
        return self._loop.run(self._bus.publish(event, **options))

    def drain(self, timeout: float = 10.0) -> None:
        """Deliver until nothing is due; see `Bus.drain()`."""
        self._loop.run(self._bus.drain(timeout))

    def advance(self, timeout: float = 10.0) -> int:
        """Make everything due that waits, and deliver it; see `Bus.advance()`."""
        return self._loop.run(self._bus.advance(timeout))

    def events(self, type: str | None = None) -> list[EventView]:
        """Return the events on record; see `Bus.events()`."""
        return self._loop.run(self._bus.events(type))

    def deliveries(
        self, subscription: str | None = None, state: DeliveryState | str | None = None
    ) -> list[DeliveryView]:
        """Return the deliveries on record; see `Bus.deliveries()`."""
        return self._loop.run(self._bus.deliveries(subscription, state))

    def dead(self, subscription: str | None = None) -> list[DeliveryView]:
        """Return the deliveries that are dead; see `Bus.dead()`."""
        return self._loop.run(self._bus.dead(subscription))

    def attempts(self, delivery: DeliveryView) -> Sequence[AttemptView]:
        """Return the attempts of a delivery; see `Bus.attempts()`."""
        return self._loop.run(self._bus.attempts(delivery))
