"""One deployment on a real store, and as many runners of it as a test needs."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import warnings
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import DBAPIError

from runner import Delivery, Event, NotifyStrategy, Runner, compose, load
from runner.builder import open_bus, open_storage
from runner.config import load_config
from runner.errors import StorageError
from runner.event import new_id
from runner.policies.schedule import Schedule
from runner.service.background import Background
from runner.sinks.python import PythonSink
from runner.storage.tables import deliveries, dispatch
from tests.contract.storage_contract import Database

CONFIG = """\
deployment_id: test
storage: {{dsn: "{dsn}", start_timeout: 10s}}
retry: {{delay: 10ms, jitter: 0}}
worker: {{lease: {lease}, shutdown_grace: {grace}, batch: {batch}}}
"""


class Bus:
    """A deployment: its file, its database, and the runners of it, which end with the test."""

    def __init__(self, directory: Path, dsn: str) -> None:
        self.dsn = dsn
        self.database = Database(dsn)
        self._directory = directory
        self._runners: list[Runner] = []

    def runner(
        self,
        *,
        lease: str = "30s",
        grace: str = "5s",
        batch: int = 500,
        store: Callable[[Any], Any] | None = None,
        strategy: NotifyStrategy | None = None,
        patience: timedelta | None = None,
        schedules: Sequence[Schedule] = (),
    ) -> Runner:
        """
        Return one more process of the deployment, as far as one process can be several.

        Args:
            store: puts something around the store of this process.
            strategy: in place of those of the file.
            patience: how long a dispatch waits for its deliveries before it writes down what is unfinished.
            schedules: those of its file.
        """
        runner = load(self.write(lease=lease, grace=grace, batch=batch))
        plan, storage, strategies = runner._plan, runner._storage, runner._strategies
        plan = replace(plan, schedules=schedules)
        if store is not None:
            storage = store(storage)
        if strategy is not None:
            strategies = compose(strategy)
        if patience is not None:
            plan = replace(plan, limits=replace(plan.limits, grace=patience))
        runner = Runner(plan, storage, strategies, {}, function_sink=PythonSink)
        self._runners.append(runner)
        return runner

    def write(self, more: str = "", *, lease: str = "30s", grace: str = "5s", batch: int = 500) -> Path:
        """Write the file, `more` at its end, and return its path."""
        path = self._directory / "runner.yaml"
        path.write_text(CONFIG.format(dsn=self.dsn, lease=lease, grace=grace, batch=batch) + more)
        return path

    async def publish(self, events: Sequence[Event]) -> None:
        """Publish as a process that does no work itself."""
        async with open_bus(load_config(self.write())) as bus:
            await bus.publish_many(events)

    async def wake(self) -> None:
        """Signal the deployment, as the command line does."""
        async with open_bus(load_config(self.write())) as bus:
            bus.announce(new_id())

    async def pause(self, name: str, paused: bool) -> None:
        """Pause or resume a subscription, as the command line does."""
        async with open_storage(load_config(self.write())) as storage:
            assert await storage.registry.set_paused(name, paused)
        await self.wake()

    async def deliveries(self) -> Sequence[Mapping[str, Any]]:
        return await self.database.rows(deliveries)

    async def reached(self, **states: int) -> bool:
        """Whether `settled()`, as far as the store can be asked."""
        try:
            return await self.settled(**states)
        except (DBAPIError, StorageError, OSError) as error:
            raise AssertionError("the store is away") from error

    async def settled(self, **states: int) -> bool:
        """Whether no work is queued, and this many deliveries are in each state, none in any other."""
        rows = await self.deliveries()
        found = {state: sum(row["state"] == state for row in rows) for state in {row["state"] for row in rows}}
        assert (await self.database.rows(dispatch), found) == ([], states)
        return True

    async def close(self) -> None:
        for runner in self._runners:
            await runner.stop()
        await self.database.close()


class Handler:
    """A subscribed function that notes what it is given."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []  # id of the event, attempt

    @property
    def ids(self) -> list[str]:
        return sorted(id for id, _ in self.seen)

    async def __call__(self, event: Event, delivery: Delivery) -> None:
        self.seen.append((event.id, delivery.attempt))
        await self.handle(event, delivery)

    async def handle(self, event: Event, delivery: Delivery) -> None:
        """Accept."""


class Gate(Handler):
    """A handler that keeps what it is given until it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = asyncio.Event()
        self.done = 0

    async def handle(self, event: Event, delivery: Delivery) -> None:
        await self.opened.wait()
        self.done += 1


def events(count: int, type: str = "order.created") -> list[Event]:
    return [Event(type=type, source="/tests", id=f"{type}-{n}") for n in range(count)]


def ids(published: Sequence[Event]) -> list[str]:
    return sorted(event.id for event in published)


async def crash(before: set[asyncio.Task[Any]]) -> None:
    """End every task that was not there `before`, as a process that dies ends them: without a word to anybody."""
    tasks, loop = asyncio.all_tasks() - before, asyncio.get_running_loop()
    asyncio._set_running_loop(None)  # as `asyncio.run()` cancels what is left: nobody asks for it any more
    try:
        for task in tasks:
            frame = getattr(task.get_coro(), "cr_frame", None)
            owner = frame and frame.f_locals.get("self")
            if isinstance(owner, Background):
                task.remove_done_callback(owner._ended)  # a process that is dead begins none again
            task.cancel()
    finally:
        asyncio._set_running_loop(loop)
    await asyncio.wait(tasks, timeout=5)
    tasks.clear()
    with warnings.catch_warnings():  # a connection that was just being made is closed by the kernel, if a process dies
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


class BusTests:
    """The fixtures of a suite; each of its tests runs once on every store."""

    @pytest.fixture(params=["sqlite", "postgres"])
    def dsn(self, request: pytest.FixtureRequest) -> str:
        return str(request.getfixturevalue("tables_file" if request.param == "sqlite" else "tables_dsn"))

    @pytest.fixture
    async def bus(self, dsn: str, tmp_path: Path) -> AsyncIterator[Bus]:
        async with running(tmp_path, dsn) as bus:
            yield bus


@contextlib.asynccontextmanager
async def running(directory: Path, dsn: str) -> AsyncIterator[Bus]:
    """Return the deployment at `dsn`, and end all its runners afterwards."""
    bus = Bus(directory, dsn)
    try:
        yield bus
    finally:
        await bus.close()
