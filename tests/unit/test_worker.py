from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from runner.filter import FilterError
from runner.limits import WorkerLimits
from runner.storage.base import Claim, Registered, Registry, Settled, Work, WorkQueue
from runner.worker import Worker
from tests.support.eventually import eventually

from .deliveries import works

BATCH = 5


class Store:
    """A queue and registry without deliveries, with what they answer in the test's hands."""

    def __init__(self) -> None:
        self.version = 1
        self.works: list[Work] = []  # that wait to be claimed
        self.settled: list[Settled] = []
        self.open = asyncio.Event()  # whether dispatches can be settled
        self.readable = True  # whether the subscriptions compile
        self.claims = 0
        self.answers = asyncio.Event()  # whether a claim is answered
        self.answers.set()

    async def claim(self, limit: int, lease: timedelta) -> Claim:
        self.claims += 1
        await self.answers.wait()
        taken, self.works = self.works[:limit], self.works[limit:]
        return Claim(1, taken, self.version)

    async def settle(self, settled: Settled) -> int:
        await self.open.wait()
        self.settled.append(settled)
        return len(settled.works)

    async def subscriptions(self) -> tuple[int, Sequence[Registered]]:
        if not self.readable:
            raise FilterError("sql: unknown dialect")
        return self.version, []


@pytest.fixture
def store() -> Store:
    return Store()


async def told() -> None: ...


def make(store: object, **limits: Any) -> Worker:
    return Worker(cast("WorkQueue", store), cast("Registry", store), {}, WorkerLimits(**limits), notify=told)


class TestHandOver:
    @pytest.fixture
    async def worker(self, store: Store) -> AsyncIterator[Worker]:
        """A worker that has found nothing to do."""
        worker = make(store, batch=BATCH, grace=timedelta(0))
        assert worker.lease_for(1) is None  # it does not know yet whether anything older waits
        await worker.start()
        await eventually(lambda: worker.lease_for(1))
        yield worker
        store.open.set()
        await worker.stop(timedelta(0))

    async def test_a_batch_at_most_and_under_a_short_lease(self, worker: Worker) -> None:
        lease = worker.lease_for(BATCH)
        assert lease is not None
        assert lease <= timedelta(seconds=5)
        assert worker.lease_for(BATCH + 1) is None

    async def test_nothing_while_it_declines(self, worker: Worker) -> None:
        worker.decline()
        assert worker.lease_for(1) is None

    async def test_nothing_beyond_what_it_has_in_hand(self, worker: Worker, store: Store) -> None:
        worker.take(Claim(2, works(3), 1))
        assert worker.lease_for(BATCH - 3)
        assert worker.lease_for(BATCH - 2) is None
        store.open.set()
        await eventually(lambda: worker.lease_for(BATCH))
        assert [len(each.works) for each in store.settled] == [3]

    async def test_nothing_while_older_events_wait(self, worker: Worker, store: Store) -> None:
        store.works = works(3 * BATCH)
        worker.wake()
        await eventually(lambda: len(store.works) == BATCH)  # it has two batches in hand, and there are more
        assert worker.lease_for(1) is None
        store.open.set()
        await eventually(lambda: worker.lease_for(1))
        assert store.works == []

    async def test_nothing_and_no_claim_while_the_subscriptions_cannot_be_read(
        self, worker: Worker, store: Store
    ) -> None:
        store.readable, store.version, claims = False, 2, store.claims
        with capture_logs() as lines:
            worker.wake()
            await eventually(lambda: len(lines) >= 3)
            assert {line["error"] for line in lines} == {"FilterError"}
            assert store.claims == claims + 1
            assert worker.lease_for(1) is None
            store.readable = True
            await eventually(lambda: worker.lease_for(1))

    async def test_what_was_taken_under_newer_subscriptions_is_dispatched_once_they_are_read(
        self, worker: Worker, store: Store
    ) -> None:
        store.open.set()
        store.version = 2
        worker.take(Claim(2, works(2), 2))
        await eventually(lambda: [len(each.works) for each in store.settled] == [2])

    async def test_a_claim_that_hangs_is_told_from_a_worker_that_is_idle(self, worker: Worker, store: Store) -> None:
        assert worker.stalled == timedelta(0)
        store.answers.clear()
        worker.wake()
        await eventually(lambda: worker.stalled > timedelta(milliseconds=20))
        store.answers.set()
        await eventually(lambda: worker.stalled == timedelta(0))
