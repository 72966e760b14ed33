"""The contract of `Records` for those who follow the events as they come."""

from __future__ import annotations

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from runner.storage.contract.records import EventQuery
from runner.storage.records import SqlRecords

from .storage_contract import Database, Store, StoreTests, publication, publish


class TestFollowing(StoreTests):
    @pytest.fixture
    def records(self, database: Database) -> SqlRecords:
        return SqlRecords(database.engine)

    async def test_what_fills_a_gap_is_read_and_nothing_twice(self, store: Store, records: SqlRecords) -> None:
        seqs = await publish(store, 8)
        query = EventQuery(after_seq=seqs[5], gaps=[(seqs[1], seqs[1]), (seqs[3], seqs[4])], newest_first=False)
        assert [view.seq async for view in records.events(query)] == [seqs[1], *seqs[3:5], *seqs[6:]]

    async def test_the_last_seqs(self, store: Store, records: SqlRecords) -> None:
        assert list(await records.seqs(None, 3)) == []
        seqs = await publish(store, 5)
        assert sorted(await records.seqs(None, 3)) == seqs[2:]
        assert sorted(await records.seqs(seqs[3], 3)) == seqs[1:4]

    async def test_who_may_still_commit_is_known(self, store: Store, records: SqlRecords, database: Database) -> None:
        await publish(store, 1)
        assert list(await records.writers()) == []
        async with AsyncSession(database.engine) as session:
            await store.events.append_in(session, [publication(1)])
            writing = await records.writers()
            await session.commit()
        assert len(writing) == (0 if database.dsn.scheme == "sqlite" else 1)  # whose seqs come in order
        assert list(await records.writers()) == []
