"""Publishing inside the caller's own transaction, on real stores."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from runner.bus.bus import EventBus
from runner.errors import EventConflict, StorageError
from runner.event import Event
from runner.storage import tables
from runner.storage.contract.events import Publication
from tests.contract.storage_contract import Database, Store, StoreTests
from tests.support.eventually import eventually

from .buses import Bus, BusTests, Handler, events, ids


class Strategy:
    """A strategy that notes which events are recorded for all to see at each signal."""

    def __init__(self, database: Database) -> None:
        self.signals: list[tuple[str, int]] = []
        self._database = database

    async def start(self, wake: object) -> None: ...

    async def stop(self) -> None: ...

    async def notify(self, event_id: str) -> None:
        self.signals.append((event_id, len(await self._database.rows(tables.events))))


class TestSession(StoreTests):
    @pytest.fixture
    def strategy(self, database: Database) -> Strategy:
        return Strategy(database)

    @pytest.fixture
    async def bus(self, store: Store, strategy: Strategy) -> AsyncIterator[EventBus]:
        bus = EventBus(store.events, strategy)
        yield bus
        await bus.stop()

    @pytest.fixture
    async def session(self, database: Database) -> AsyncIterator[AsyncSession]:
        async with AsyncSession(database.engine) as session:
            yield session

    async def test_the_event_and_its_signal_come_with_the_commit(
        self, bus: EventBus, session: AsyncSession, strategy: Strategy
    ) -> None:
        """Invariant 1: recorded in the caller's transaction, and signalled only once that is committed."""
        async with session.begin():
            receipt = await bus.publish(events(1)[0], session=session)
            assert not receipt.duplicate
            await bus.stop()
            assert strategy.signals == []
        await bus.stop()
        assert strategy.signals == [(receipt.id, 1)]

    async def test_a_rollback_leaves_nothing(self, bus: EventBus, session: AsyncSession, database: Database) -> None:
        await bus.publish_many(events(3), session=session)
        await session.rollback()
        await bus.stop()
        assert await database.count(tables.events, tables.dispatch, tables.scheduled) == [0, 0, 0]

    async def test_several_publications_are_one_signal(
        self, bus: EventBus, session: AsyncSession, strategy: Strategy
    ) -> None:
        for event in events(3):
            await bus.publish(event, session=session)
        await session.commit()
        await bus.stop()
        assert strategy.signals == [(events(3)[-1].id, 3)]

    async def test_a_session_may_be_used_again_and_signals_for_what_it_published_only(
        self, bus: EventBus, session: AsyncSession, strategy: Strategy
    ) -> None:
        for n in range(2):
            await bus.publish(events(n + 1)[n], session=session)
            await session.commit()
            await bus.stop()
            bus.start()
        await session.connection()
        await session.commit()
        await bus.stop()
        assert [recorded for _, recorded in strategy.signals] == [1, 2]

    async def test_a_savepoint_that_is_rolled_back_takes_its_events_along(
        self, bus: EventBus, session: AsyncSession, strategy: Strategy, database: Database
    ) -> None:
        kept, dropped, *_ = events(2)
        async with session.begin():
            await bus.publish(kept, session=session)
            savepoint = await session.begin_nested()
            await bus.publish(dropped, session=session)
            await savepoint.rollback()
            async with session.begin_nested():
                pass
            await bus.stop()
            assert strategy.signals == []
        await bus.stop()
        assert [row["id"] for row in await database.rows(tables.events)] == [kept.id]
        assert await database.count(tables.dispatch) == [1]
        assert [recorded for _, recorded in strategy.signals] == [1]

    async def test_two_buses_in_one_session_both_signal(
        self, bus: EventBus, store: Store, session: AsyncSession, database: Database, strategy: Strategy
    ) -> None:
        other = Strategy(database)
        second = EventBus(store.events, other)
        await bus.publish(events(1)[0], session=session)
        await second.publish(events(2)[1], session=session)
        await session.commit()
        await bus.stop()
        await second.stop()
        assert [len(each.signals) for each in (strategy, other)] == [1, 1]

    async def test_duplicates_conflicts_and_times_are_those_of_publish(
        self, bus: EventBus, session: AsyncSession, database: Database
    ) -> None:
        event, later = events(2)
        first = await bus.publish(event)
        async with session.begin():
            again = await bus.publish(event, session=session)
            await bus.publish(later, delay=timedelta(hours=1), session=session)
            with pytest.raises(EventConflict):
                await bus.publish(Event(type="other", source=event.source, id=event.id), session=session)
        assert (again.seq, again.duplicate) == (first.seq, True)
        assert await database.count(tables.dispatch, tables.scheduled) == [1, 1]

    async def test_no_event_is_recorded_without_its_row_of_work(
        self, bus: EventBus, session: AsyncSession, database: Database
    ) -> None:
        """Invariant 1."""
        await database.rename("dispatch", "elsewhere")
        with pytest.raises((StorageError, DBAPIError)):
            await bus.publish(events(1)[0], session=session)
        await session.rollback()
        await database.rename("elsewhere", "dispatch")
        assert await database.count(tables.events, tables.dispatch) == [0, 0]

    async def test_a_batch_carries_its_own_times(
        self, bus: EventBus, session: AsyncSession, database: Database
    ) -> None:
        now, later = events(2)
        await bus.publish_many([now, Publication(later, timedelta(hours=1))], session=session)
        await session.commit()
        await bus.stop()
        assert await database.count(tables.dispatch, tables.scheduled) == [1, 1]


class TestDelivery(BusTests):
    async def test_what_a_session_published_is_delivered_promptly(self, bus: Bus) -> None:
        runner, handler = bus.runner(), Handler()
        runner.subscribe("s", handler)
        async with runner:
            async with AsyncSession(bus.database.engine) as session, session.begin():
                await runner.publish_many(events(5), session=session)
                assert handler.seen == []
            await eventually(lambda: bus.settled(delivered=5))
        assert handler.ids == ids(events(5))
