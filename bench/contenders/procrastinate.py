"""procrastinate: a job for each event, over psycopg."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from procrastinate import App, PsycopgConnector
from procrastinate.tasks import Task

from .base import Counts, Handler, Place
from .onlooker import Onlooker

__all__ = ["Procrastinate"]

CONCURRENCY = 10
POLLING = 0.2  # seconds; a signal that comes while it fetches is forgotten, and the default is to look again after 5 s


class Procrastinate:
    """A worker with as many jobs at once as help, jobs kept when they are done (its default)."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._onlooker = Onlooker(place.dsn)

    async def prepare(self) -> None:
        """Apply its schema."""
        app = App(connector=PsycopgConnector(conninfo=self._place.dsn))
        async with app.open_async():
            await app.schema_manager.apply_schema_async()

    @contextlib.asynccontextmanager
    async def session(self, handler: Handler | None = None) -> AsyncIterator[_Session]:
        """Defer jobs, and run a worker."""
        size = min(max(self._place.callers, CONCURRENCY if handler else 1), 32)
        app = App(connector=PsycopgConnector(conninfo=self._place.dsn, min_size=size, max_size=size + 2))

        async def deliver(*, data: str) -> None:
            if handler is not None:
                handler(data.encode())

        task: Task[..., Any, ...] = app.task(name="deliver")(deliver)
        async with app.open_async():
            if handler is None:
                yield _Session(task)
                return
            async with asyncio.TaskGroup() as group:  # ends the trial when the worker does
                work = group.create_task(
                    app.run_worker_async(
                        concurrency=CONCURRENCY, fetch_job_polling_interval=POLLING, install_signal_handlers=False
                    )
                )
                yield _Session(task)
                work.cancel()

    async def idle(self) -> bool:
        """Return whether no job is to do or being done."""
        sql = "SELECT EXISTS (SELECT FROM procrastinate_jobs WHERE status IN ('todo', 'doing'))"
        return not await self._onlooker.ask(sql)

    async def counts(self) -> Counts:
        """Count jobs."""
        stored = await self._onlooker.ask("SELECT count(*) FROM procrastinate_jobs")
        delivered = await self._onlooker.ask("SELECT count(*) FROM procrastinate_jobs WHERE status = 'succeeded'")
        return Counts(stored, delivered)


class _Session:
    def __init__(self, task: Task[..., Any, ...]) -> None:
        self._task = task

    async def publish(self, data: bytes) -> None:
        """Defer one job."""
        await self._task.defer_async(data=data.decode())

    async def publish_many(self, batch: Sequence[bytes]) -> None:
        """Defer them in one statement."""
        jobs: list[dict[str, Any]] = [{"data": data.decode()} for data in batch]
        await self._task.batch_defer_async(*jobs)
