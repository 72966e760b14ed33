"""pgqueuer: a job for each event and subscription, claimed 500 at a time over asyncpg."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta

import asyncpg
from pgqueuer.db import AsyncpgPoolDriver
from pgqueuer.models import Job
from pgqueuer.qm import QueueManager
from pgqueuer.queries import Queries

from .base import Counts, Handler, Place
from .onlooker import Onlooker

__all__ = ["PgQueuer"]

BATCH = 500


class PgQueuer:
    """Durable tables (its default), its own autovacuum settings, its log of every job kept."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._onlooker = Onlooker(place.dsn)
        self._entrypoints = [f"subscription-{n}" for n in range(place.subscriptions)]

    async def prepare(self) -> None:
        """Install its tables."""
        async with asyncpg.create_pool(self._place.dsn, min_size=1, max_size=1) as pool:
            queries = Queries(AsyncpgPoolDriver(pool))
            await queries.install()
            await queries.optimize_autovacuum()

    @contextlib.asynccontextmanager
    async def session(self, handler: Handler | None = None) -> AsyncIterator[_Session]:
        """Enqueue over a pool, and run the queue manager on it."""
        size = min(max(self._place.callers, 4), 32)
        async with asyncpg.create_pool(self._place.dsn, min_size=size, max_size=size, reset=_keep) as pool:
            driver = AsyncpgPoolDriver(pool)
            session = _Session(Queries(driver), self._entrypoints)
            if handler is None:
                yield session
                return
            manager = self._manager(driver, handler)
            async with asyncio.TaskGroup() as group:  # ends the trial when the manager does
                group.create_task(manager.run(dequeue_timeout=timedelta(seconds=30), batch_size=BATCH))
                yield session
                manager.shutdown.set()

    def _manager(self, driver: AsyncpgPoolDriver, handler: Handler) -> QueueManager:
        async def deliver(job: Job) -> None:
            handler(job.payload or b"")

        manager = QueueManager(Queries(driver))
        for name in self._entrypoints:
            manager.entrypoint(name)(deliver)
        return manager

    async def idle(self) -> bool:
        """Return whether no job is queued or picked."""
        return not await self._onlooker.ask("SELECT EXISTS (SELECT FROM pgqueuer)")

    async def counts(self) -> Counts:
        """Count jobs that were queued, and those logged as successful."""
        stored = await self._onlooker.ask("SELECT count(*) FROM pgqueuer_log WHERE status = 'queued'")
        delivered = await self._onlooker.ask("SELECT count(*) FROM pgqueuer_log WHERE status = 'successful'")
        return Counts(stored // len(self._entrypoints), delivered)


async def _keep(connection: asyncpg.Connection) -> None:
    """Save the round trip with which a pool cleans a connection: nothing here leaves anything behind."""


class _Session:
    def __init__(self, queries: Queries, entrypoints: list[str]) -> None:
        self._queries = queries
        self._entrypoints = entrypoints

    async def publish(self, data: bytes) -> None:
        """Enqueue one job, or as many as there are subscriptions."""
        if len(self._entrypoints) == 1:
            await self._queries.enqueue(self._entrypoints[0], data)
        else:
            await self.publish_many([data])

    async def publish_many(self, batch: Sequence[bytes]) -> None:
        """Enqueue jobs for all in one statement."""
        names = self._entrypoints * len(batch)
        data = [each for each in batch for _ in self._entrypoints]
        await self._queries.enqueue(names, list(data), [0] * len(names))
