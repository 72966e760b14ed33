"""The settler: writes down what became of deliveries, single ones many at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

import structlog
from msgspec.structs import replace

from .dead_letters import DeadLetters
from .errors import StorageUnavailable
from .storage.base import AttemptRecord, DeliveryRecord, Settled, WorkQueue

__all__ = ["Settler"]

log = structlog.get_logger(__name__)

T = TypeVar("T")


class Settler:
    """
    Gather settlements while one write is in flight, and write them together.

    While the store is unavailable it tries again and again: every write is fenced, so the worst that can
    come of a late one is nothing.
    """

    def __init__(
        self, queue: WorkQueue, dead_letters: DeadLetters, written: Callable[[Sequence[DeliveryRecord]], object]
    ) -> None:
        """Args: written is told what of single deliveries has been written."""
        self._queue = queue
        self._dead_letters = dead_letters
        self._written = written
        self._records: list[DeliveryRecord] = []
        self._attempts: list[AttemptRecord] = []
        self._flushing: asyncio.Task[None] | None = None
        self._patient = True
        self.ordered: frozenset[int] = frozenset()  # subscriptions whose finished deliveries leave their line

    def start(self) -> None:
        """Begin to be patient with a store that is away."""
        self._patient = True

    def submit(self, record: DeliveryRecord, attempt: AttemptRecord | None) -> None:
        """Write `record`, and `attempt` with it, soon."""
        self._records.append(record)
        if attempt is not None:
            self._attempts.append(attempt)
        if self._flushing is None:
            self._flushing = asyncio.create_task(self._flush(), name="settle")

    async def settle(self, settled: Settled) -> Sequence[DeliveryRecord]:
        """Write down the end of a claim; return its records as they were written."""
        complete = replace(settled, records=self._dead_letters.addressed(settled.records))
        held = await self.patiently(lambda: self._queue.settle(complete))
        if held < len(settled.works):
            log.warning("late settlements dropped", count=len(settled.works) - held)
        return complete.records

    async def written(self) -> None:
        """Return once everything submitted so far is written."""
        while self._flushing is not None:
            await asyncio.wait({self._flushing})

    async def stop(self, timeout: float = 5.0) -> None:
        """Write what is left, at most `timeout` seconds; what is not written by then returns when its lease ends."""
        if self._flushing is not None:
            await asyncio.wait({self._flushing}, timeout=timeout)
        self._patient = False

    async def patiently(self, write: Callable[[], Awaitable[T]]) -> T:
        """Return the result of `write`, which must be safe to repeat, tried again while the store is unavailable."""
        pause = 0.05
        while True:
            try:
                return await write()
            except StorageUnavailable as error:
                if not self._patient:
                    raise
                log.warning("cannot settle", detail=str(error), retry_in=pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 1.0)

    async def _flush(self) -> None:
        try:
            while self._records:
                records, self._records = self._dead_letters.addressed(self._records), []
                attempts, self._attempts = self._attempts, []
                try:
                    write = partial(self._queue.settle_deliveries, records, attempts, self.ordered)
                    written = await self.patiently(write)
                except Exception as error:  # their leases end, and they are delivered again
                    log.error("settling failed", error=type(error).__name__, detail=str(error), count=len(records))
                    continue
                self._written(records)
                if len(written) < len(records):
                    log.warning("late settlements dropped", count=len(records) - len(written))
        finally:
            self._flushing = None
