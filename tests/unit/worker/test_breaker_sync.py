from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import cast

import pytest
from structlog.testing import capture_logs

from runner.errors import StorageUnavailable
from runner.policies.breaker import BreakerPolicy, Trip
from runner.storage.contract.registry import Registry
from runner.worker.breaker_sync import BreakerSync
from runner.worker.outlet import Outlet
from tests.support.eventually import eventually

from .deliveries import FunctionSink, accept, outlet

POLICY = BreakerPolicy(failures=1, pause=timedelta(hours=1))


class Store:
    """A registry that writes when it can, and notes what was written."""

    def __init__(self) -> None:
        self.errors = 0  # how many calls fail
        self.open = asyncio.Event()
        self.open.set()
        self.calls = 0
        self.written: list[tuple[int, int | None, int]] = []  # id, number of the trip or None, what was known

    async def set_breaker(self, subscription_id: int, trip: Trip | None, *, known: int) -> bool:
        self.calls += 1
        await self.open.wait()
        if self.errors:
            self.errors -= 1
            raise StorageUnavailable("away")
        self.written.append((subscription_id, None if trip is None else trip.number, known))
        return True


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def told() -> list[int]:
    return []


@pytest.fixture
async def breaker_sync(store: Store, told: list[int]) -> AsyncIterator[BreakerSync]:
    async def written() -> None:
        told.append(len(store.written))

    one = BreakerSync(cast("Registry", store), written)
    one.start()
    yield one
    store.errors = 0
    store.open.set()
    await one.stop()


def served(id: int = 1) -> Outlet:
    return outlet(FunctionSink(accept), id=id, breaker=POLICY)


def trip(breaker_sync: BreakerSync, one: Outlet, now: float = 0.0) -> None:
    assert one.breaker.failed(now)
    breaker_sync.changed(one)


async def test_what_turns_is_written_and_everybody_told(
    breaker_sync: BreakerSync, store: Store, told: list[int]
) -> None:
    one, other = served(1), served(2)
    one.breaker.learn(Trip(3, timedelta(0)), 0)
    with capture_logs() as lines:
        trip(breaker_sync, one, 1)
        trip(breaker_sync, other)
        await eventually(lambda: store.written == [(1, 4, 3), (2, 1, 0)])
        await eventually(lambda: told == [2])
        assert other.breaker.answered(3600)
        breaker_sync.changed(other)
        await eventually(lambda: store.written[2:] == [(2, None, 0)])
    assert [(line["event"], line["subscription"]) for line in lines] == [
        ("breaker open", "sub-1"),
        ("breaker open", "sub-2"),
        ("breaker closed", "sub-2"),
    ]


async def test_a_store_that_is_away_is_tried_again_and_nobody_waits(
    breaker_sync: BreakerSync, store: Store, told: list[int]
) -> None:
    store.errors = 2
    with capture_logs():
        trip(breaker_sync, served())
        await eventually(lambda: store.written == [(1, 1, 0)])
        await eventually(lambda: told == [1])
    assert store.calls == 3


async def test_what_turns_again_during_a_write_is_written_again(breaker_sync: BreakerSync, store: Store) -> None:
    one = served()
    store.open.clear()
    trip(breaker_sync, one)
    await eventually(lambda: store.calls == 1)
    assert one.breaker.answered(3600)
    breaker_sync.changed(one)
    store.open.set()
    await eventually(lambda: store.written == [(1, 1, 0), (1, None, 0)])


async def test_what_the_store_says_counts_once_ours_is_written(breaker_sync: BreakerSync, store: Store) -> None:
    one = served()
    store.open.clear()
    trip(breaker_sync, one)
    breaker_sync.learn(one, None)
    assert not one.breaker.closed  # we know better
    store.open.set()
    await eventually(lambda: store.written)
    breaker_sync.learn(one, None)
    assert one.breaker.closed


async def test_of_a_subscription_that_has_changed_nothing_is_written(breaker_sync: BreakerSync, store: Store) -> None:
    one = served()
    store.open.clear()
    trip(breaker_sync, served(2))
    await eventually(lambda: store.calls == 1)
    trip(breaker_sync, one)
    changed = served()
    breaker_sync.learn(changed, None)
    store.open.set()
    trip(breaker_sync, served(3))
    await eventually(lambda: [id for id, _, _ in store.written] == [2, 3])
    assert changed.breaker.closed
