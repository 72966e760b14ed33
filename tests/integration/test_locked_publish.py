"""Publishing beside a session that holds one of the events in its open transaction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from runner.bus.bus import EventBus
from runner.errors import EventConflict, RunnerError, StorageLocked, StorageRefused
from runner.event import Event
from runner.storage.contract.claims import Claim
from runner.storage.contract.events import Publication, Receipt
from runner.storage.postgres.connector import _SERVER_SETTINGS
from runner.storage.tables import dispatch, events
from tests.contract.storage_contract import Database, opened
from tests.contract.test_storage_refusals import refuse
from tests.support.eventually import eventually

HELD = "order-7"


class Silent:
    async def start(self, wake: object) -> None: ...

    async def stop(self) -> None: ...

    async def notify(self, event_id: str) -> None: ...


class LocalWorker:
    """A worker that takes everything."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    def lease_for(self, count: int, weight: int) -> timedelta | None:
        return timedelta(seconds=5)

    def take(self, claim: Claim, until: float) -> None:
        self.taken += [work.seq for work in claim.works]


@pytest.fixture
async def database(tables_dsn: str) -> AsyncIterator[Database]:
    async with opened(tables_dsn) as database:
        yield database


@pytest.fixture(params=[False, True], ids=["queued", "handed over"])
async def bus(request: pytest.FixtureRequest, database: Database) -> AsyncIterator[EventBus]:
    bus = EventBus(database.open().events, Silent(), local_worker=LocalWorker() if request.param else None)
    yield bus
    await bus.stop()


def order(number: int, data: bytes = b"1") -> Event:
    return Event(type="order.created", source="/shop", id=f"order-{number}", data=data)


async def published(bus: EventBus, *numbers: int) -> dict[int, asyncio.Task[Receipt]]:
    """Publish these orders at once; return who waits for each."""
    tasks = {number: asyncio.create_task(bus.publish(order(number))) for number in numbers}
    await asyncio.sleep(0)
    return tasks


def done(tasks: Sequence[asyncio.Task[Receipt]]) -> bool:
    return all(task.done() and task.exception() is None for task in tasks)


class TestLocked:
    @pytest.mark.parametrize("count", [5, 50])
    @pytest.mark.parametrize("ends", ["commit", "rollback", "other content"])
    async def test_the_others_are_recorded_while_the_one_waits(
        self, database: Database, bus: EventBus, count: int, ends: str
    ) -> None:
        data = b"2" if ends == "other content" else b"1"
        async with AsyncSession(database.engine) as session:
            await database.open().events.append_in(session, [Publication(order(3, data))])
            tasks = await published(bus, *range(count))
            locked = tasks.pop(3)
            await eventually(lambda: done(list(tasks.values())))
            assert not locked.done()
            late = await published(bus, 100, 3)
            await eventually(late[100].done)
            assert not late[3].done()
            await (session.rollback() if ends == "rollback" else session.commit())
        if ends == "other content":
            for each in (locked, late[3]):
                with pytest.raises(EventConflict):
                    await each
        else:
            first, second = await locked, await late[3]
            assert first.seq == second.seq
            # After a rollback either may be the one that is recorded.
            assert sorted([first.duplicate, second.duplicate]) == [ends == "commit", True]
        assert await database.count(events, dispatch) == [count + 1, count + 1]

    async def test_who_waits_too_long_fails_alone_and_learns_what_for(
        self, database: Database, bus: EventBus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("runner.bus.locked.PATIENCE", 120.0)
        async with AsyncSession(database.engine) as session:
            await database.open().events.append_in(session, [Publication(order(3)), Publication(order(4))])
            tasks = await published(bus, *range(20))
            patient = [tasks.pop(3), tasks.pop(4)]
            await eventually(lambda: done(list(tasks.values())))
            monkeypatch.setattr("runner.bus.locked.PATIENCE", 0.3)
            for task in (await published(bus, 3, 4)).values():
                with pytest.raises(StorageLocked, match=r"event 'order-[34]' of source '/shop' is being recorded by"):
                    await task
            with pytest.raises(StorageLocked, match="one of 20 events, the first of them event 'order-3'"):
                await bus.publish_many([order(number) for number in range(3, 23)])
            assert not any(task.done() for task in patient)
            await session.rollback()
        assert not any([(await task).duplicate for task in patient])

    async def test_a_stop_waits_for_what_waits(self, database: Database, bus: EventBus) -> None:
        async with AsyncSession(database.engine) as session:
            await database.open().events.append_in(session, [Publication(order(3))])
            tasks = await published(bus, 1, 2, 3)
            await eventually(lambda: done([tasks[1], tasks[2]]))
            stopping = asyncio.create_task(bus.stop())
            await session.rollback()
        await stopping
        assert not (await tasks[3]).duplicate

    async def test_the_connections_wait_no_longer_than_they_were_told_to(self, database: Database) -> None:
        """The limit is the statement's own."""
        store = database.open()
        await store.events.append([Publication(order(1))])
        await store.events.append([Publication(order(number)) for number in range(2, 30)])
        async with store.events._connections.take() as connection:  # type: ignore[attr-defined]  # of PostgreSQL
            assert await connection.fetchval("SHOW lock_timeout") == "5s"


@pytest.mark.parametrize("at_commit", [False, True])
async def test_an_event_that_the_database_refuses_is_refused_alone(
    database: Database, bus: EventBus, at_commit: bool
) -> None:
    await refuse(database, f"NEW.id = '{HELD}'", "events", at_commit=at_commit)
    tasks = await published(bus, *range(50))
    with pytest.raises(StorageRefused):
        await tasks.pop(7)
    await eventually(lambda: done(list(tasks.values())))
    assert await database.count(events) == [49]


async def test_a_conflict_is_its_own_publisher_s(database: Database, bus: EventBus) -> None:
    await bus.publish(order(7, b"other"))
    tasks = await published(bus, *range(50))
    with pytest.raises(RunnerError, match="other content"):
        await tasks.pop(7)
    await eventually(lambda: done(list(tasks.values())))


async def test_a_lock_on_the_whole_table_is_not_waited_for_once_for_each(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.bus.locked.PATIENCE", 0.3)
    monkeypatch.setitem(_SERVER_SETTINGS, "lock_timeout", "200ms")
    bus = EventBus(database.open().events, Silent())
    async with database.client.connect() as session:
        await session.execute(text("LOCK TABLE public.events IN SHARE MODE"))
        tasks = list((await published(bus, *range(300))).values())
        await eventually(lambda: all(task.done() for task in tasks), timeout=30)  # alone each takes 0.2 s
        assert all(isinstance(task.exception(), StorageLocked) for task in tasks)
        monkeypatch.setattr("runner.bus.locked.PATIENCE", 60.0)
        tasks = list((await published(bus, *range(300))).values())
        await eventually(database.waits_for_lock)
        await session.rollback()
        await eventually(lambda: done(tasks), timeout=30)
    assert await database.count(events, dispatch) == [300, 300]
    await bus.stop()
