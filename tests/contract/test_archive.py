"""The contract of `Archive`: what is over goes, whole, and nothing else does."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from sqlalchemy import insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from structlog.testing import capture_logs

from runner.storage.archive import SqlArchive
from runner.storage.contract.archive import Pruned, Retention
from runner.storage.contract.events import Publication
from runner.storage.contract.records import DeliveryQuery
from runner.storage.corrections import SqlCorrections
from runner.storage.tables import attempts, deliveries, events, scheduled, turns

from .storage_contract import LEASE, Database, Store, StoreTests, opened, publication, publish, settled

WEEK = Retention(delivered=timedelta(days=7), dead=timedelta(days=90))
EVER = 10_000

Record = Mapping[int, tuple[str, timedelta]]  # subscription -> state, age of its delivery


class TestPrune(StoreTests):
    @pytest.fixture
    def archive(self, database: Database) -> SqlArchive:
        return SqlArchive(database.new_engine())

    async def seqs(self, database: Database) -> list[int]:
        return [row["seq"] for row in await database.rows(events)]

    async def put(self, database: Database, store: Store, record: Record, age: timedelta = timedelta(days=100)) -> int:
        """Record an event of some age whose dispatch is over, with these deliveries."""
        [seq] = await publish(store, 1)
        claim = await store.queue.claim(1, LEASE)
        await store.queue.settle(settled(claim, tuple(record)))
        now = datetime.now(UTC)
        await database.execute(update(events).where(events.c.seq == seq).values(created_at=now - age))
        for id, (state, settled_ago) in record.items():
            one = update(deliveries).where(deliveries.c.event_seq == seq, deliveries.c.subscription_id == id)
            due_at = now + LEASE if state in ("pending", "leased") else None
            await database.execute(one.values(state=state, due_at=due_at, updated_at=now - settled_ago))
        return seq

    async def test_what_somebody_keeps_by_a_foreign_key_keeps_nothing_else(
        self, archive: SqlArchive, database: Database, store: Store
    ) -> None:
        seqs = [await self.put(database, store, {1: ("delivered", timedelta(days=8))}) for _ in range(5)]
        public = "" if database.dsn.scheme == "sqlite" else "public."
        await database.execute(text(f"CREATE TABLE {public}invoices (event bigint REFERENCES {public}events (seq))"))
        await database.execute(text(f"INSERT INTO {public}invoices VALUES ({seqs[1]}), ({seqs[4]})"))
        with capture_logs() as lines:
            pruned = await archive.prune(WEEK, 0, EVER)
        assert (pruned.events, await self.seqs(database)) == (3, [seqs[1], seqs[4]])
        assert await database.count(deliveries) == [2]
        assert [(line["event"], line["events"], line["first"]) for line in lines] == [("cannot prune", 2, seqs[1])]

    async def test_a_page_with_many_deliveries_goes_in_several_transactions(
        self, archive: SqlArchive, database: Database, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        old = ("delivered", timedelta(days=8))
        seqs = [await self.put(database, store, dict.fromkeys(ids, old)) for ids in ((1, 2, 3), (1,), (1, 2), ())]
        portions: list[Sequence[int]] = []
        remove = SqlArchive._remove

        async def noted(self: SqlArchive, retention: Retention, some: Sequence[int]) -> list[int]:
            portions.append(some)
            return await remove(self, retention, some)

        monkeypatch.setattr(SqlArchive, "_remove", noted)
        monkeypatch.setattr("runner.storage.archive._AT_ONCE", 14)
        assert (await archive.prune(WEEK, 0, EVER, dry_run=True)).events == 4
        assert (await archive.prune(WEEK, 0, EVER)).events == 4
        assert portions == [seqs[:2], seqs[2:]]
        assert (await self.seqs(database), await database.rows(deliveries)) == ([], [])

    @pytest.mark.parametrize(
        ("record", "goes"),
        [
            ({1: ("delivered", timedelta(days=8))}, True),
            ({1: ("delivered", timedelta(days=6))}, False),
            ({1: ("dead", timedelta(days=8))}, False),
            ({1: ("dead", timedelta(days=91))}, True),
            ({1: ("cancelled", timedelta(days=89))}, False),
            ({1: ("cancelled", timedelta(days=91))}, True),
            ({1: ("pending", timedelta(days=91))}, False),
            ({1: ("leased", timedelta(days=91))}, False),
            ({1: ("delivered", timedelta(days=8)), 2: ("dead", timedelta(days=8))}, False),
            ({1: ("delivered", timedelta(days=8)), 2: ("pending", timedelta(days=91))}, False),
            ({1: ("delivered", timedelta(days=8)), 2: ("dead", timedelta(days=91))}, True),
            ({}, True),
        ],
        ids=str,
    )
    async def test_an_event_goes_when_all_its_deliveries_are_over(
        self, archive: SqlArchive, database: Database, store: Store, record: Record, goes: bool
    ) -> None:
        seq = await self.put(database, store, record)
        would = await archive.prune(WEEK, 0, EVER, dry_run=True)
        assert len(await database.rows(deliveries)) == len(record)
        assert await archive.prune(WEEK, 0, EVER) == would == Pruned(int(goes), seq, False)
        assert await self.seqs(database) == ([] if goes else [seq])
        assert len(await database.rows(deliveries)) == (0 if goes else len(record))

    @pytest.mark.parametrize(
        ("retention", "left"),
        [
            (Retention(), [1, 2, 3]),
            (Retention(delivered=timedelta(days=1)), [2]),
            (Retention(dead=timedelta(days=1)), [1, 3]),
            (Retention(delivered=timedelta(days=1), dead=timedelta(days=1)), []),
        ],
        ids=str,
    )
    async def test_null_keeps_for_ever(
        self, archive: SqlArchive, database: Database, store: Store, retention: Retention, left: list[int]
    ) -> None:
        for record in ({1: ("delivered", timedelta(days=99))}, {1: ("dead", timedelta(days=99))}, {}):
            await self.put(database, store, record)
        await archive.prune(retention, 0, EVER)
        assert await self.seqs(database) == left

    async def test_what_is_still_to_be_dispatched_stays(
        self, archive: SqlArchive, database: Database, store: Store
    ) -> None:
        await self.put(database, store, {1: ("delivered", timedelta(days=8))})
        leased, queued = await publish(store, 2)
        await store.queue.claim(1, LEASE)
        [receipt] = await store.events.append([Publication(publication().event, delay=timedelta(days=1))])
        await database.execute(update(events).values(created_at=datetime.now(UTC) - timedelta(days=100)))
        assert await archive.prune(WEEK, 0, EVER) == Pruned(1, receipt.seq, False)
        assert await self.seqs(database) == [leased, queued, receipt.seq]
        assert len(await database.rows(scheduled)) == 1

    async def test_attempts_and_turns_go_with_their_event(
        self, archive: SqlArchive, database: Database, store: Store
    ) -> None:
        gone = await self.put(database, store, {1: ("delivered", timedelta(days=8))})
        kept = await self.put(database, store, {1: ("delivered", timedelta(days=1))})
        for seq in (gone, kept):
            attempt = {"subscription_id": 1, "number": 1, "at": datetime.now(UTC), "duration_us": 1}
            await database.execute(insert(attempts).values(event_seq=seq, **attempt))
            turn = {"subscription_id": 1, "order_key": "k", "position": seq}
            await database.execute(insert(turns).values(event_seq=seq, **turn))
        await archive.prune(WEEK, 0, EVER)
        for table in (attempts, turns, deliveries):
            assert [row["event_seq"] for row in await database.rows(table)] == [kept]

    async def test_a_walk_in_pages_sees_every_event_and_ends_at_the_first_too_young(
        self, archive: SqlArchive, database: Database, store: Store
    ) -> None:
        old = [await self.put(database, store, {1: ("delivered", timedelta(days=8))}) for _ in range(4)]
        kept = await self.put(database, store, {1: ("dead", timedelta(days=8))})
        young = await publish(store, 3)
        pages: list[Pruned] = []
        while not pages or not pages[-1].ended:
            pages.append(await archive.prune(WEEK, pages[-1].after if pages else 0, 2))
        assert pages == [Pruned(2, old[1], False), Pruned(2, old[3], False), Pruned(0, kept, True)]
        assert await self.seqs(database) == [kept, *young]

    async def test_an_event_whose_delivery_somebody_retries_meanwhile_stays_whole(
        self, database: Database, store: Store
    ) -> None:
        record = {1: ("delivered", timedelta(days=99)), 2: ("dead", timedelta(days=99))}
        retried, gone = [await self.put(database, store, record) for _ in range(2)]
        corrections = SqlCorrections(database.new_engine())

        async def retry() -> None:
            assert await corrections.retry(DeliveryQuery(seq=retried, limit=None)) == 1

        archive = SqlArchive(cast("AsyncEngine", Interrupted(database.new_engine(), retry)))
        assert await archive.prune(WEEK, 0, EVER) == Pruned(1, gone, False)
        assert await self.seqs(database) == [retried]
        assert {row["state"] for row in await database.rows(deliveries)} == {"delivered", "pending"}


async def test_what_somebody_holds_is_passed_over_and_not_waited_for(tables_dsn: str) -> None:
    async with opened(tables_dsn) as database:
        store, archive = database.open(), SqlArchive(database.new_engine())
        first, second, third = await publish(store, 3)
        await store.queue.settle(settled(await store.queue.claim(3, LEASE), (1,)))  # too few for a run
        past = datetime.now(UTC) - timedelta(days=100)
        await database.execute(update(events).values(created_at=past))
        await database.execute(update(deliveries).values(updated_at=past))
        delivery = select(deliveries).where(deliveries.c.event_seq == first, deliveries.c.subscription_id == 1)
        event = select(events).where(events.c.seq == second)
        async with database.engine.begin() as connection:
            await connection.execute(delivery.with_for_update())
            await connection.execute(event.with_for_update(read=True, key_share=True))
            assert await archive.prune(WEEK, 0, EVER) == Pruned(1, third, False)
        assert await archive.prune(WEEK, 0, EVER) == Pruned(2, second, False)
        assert await database.count(events, deliveries) == [0, 0]


class Interrupted:
    """An engine on which something else happens before each transaction that writes."""

    def __init__(self, engine: AsyncEngine, action: Callable[[], Awaitable[None]]) -> None:
        self._engine = engine
        self._action = action

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    @contextlib.asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        await self._action()
        async with self._engine.begin() as connection:
            yield connection
