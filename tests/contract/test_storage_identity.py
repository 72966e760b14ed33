"""Events whose attributes are as long as CloudEvents lets them be."""

from __future__ import annotations

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from runner.errors import EventConflict
from runner.event import Event
from runner.storage.contract.events import Publication
from runner.storage.contract.records import DeliveryQuery, EventQuery
from runner.storage.records import SqlRecords
from runner.storage.tables import events

from .storage_contract import LEASE, Database, Store, StoreTests

# As no compression makes them short enough for an index.
LONG = "".join(chr(0x4E00 + number * 7919 % 20_000) for number in range(20_000))
PAIRS = {
    "both": ("urn:" + LONG[:1500], LONG[:1500]),
    "a source": ("urn:" + LONG[:3000], "1"),
    "an id": ("/s", LONG),
    "neither, just so": ("s" * 1300, "i" * 1300),
    "one byte more": ("s" * 1301, "i" * 1300),
}


@pytest.mark.parametrize("pair", PAIRS)
class TestLongIdentity(StoreTests):
    def event(self, pair: str, **more: object) -> Event:
        source, id = PAIRS[pair]
        event = Event.new("t", b"1", source=source, id=id, subject=LONG[:3000], **{"extensions": {"n": 1}, **more})
        event.validate()
        return event

    async def test_it_comes_out_as_it_went_in_and_only_once(self, store: Store, database: Database, pair: str) -> None:
        event = self.event(pair)
        short = [Publication(Event.new("t", source="/s", id=f"short {number}")) for number in range(20)]
        [first] = await store.events.append([Publication(event)])
        assert (first.source, first.id, first.duplicate) == (event.source, event.id, False)
        for call in ([Publication(event)], [*short, Publication(event)]):  # one by one, and as columns
            *_, again = await store.events.append(call)
            assert (again.source, again.id, again.seq, again.duplicate) == (event.source, event.id, first.seq, True)
        async with AsyncSession(database.client) as session, session.begin():
            [again] = await store.events.append_in(session, [Publication(event)])
        assert (again.seq, again.duplicate) == (first.seq, True)
        assert await database.count(events) == [21]
        [work, *_] = (await store.queue.claim(100, LEASE)).works
        assert work.event == event.recorded_at(work.event.time or pytest.fail("no time"))

    async def test_it_is_found_by_its_own_names(self, store: Store, database: Database, pair: str) -> None:
        event = self.event(pair)
        receipts, claim = await store.events.append_leased([Publication(event)], LEASE)
        records = SqlRecords(database.engine)
        for query in (EventQuery(id=event.id), EventQuery(source=event.source)):
            [view] = [each async for each in records.events(query)]
            assert (view.seq, view.event.source, view.event.id) == (receipts[0].seq, event.source, event.id)
        assert (await records.event(event.id)).event.extensions == {"n": 1}
        assert [each async for each in records.deliveries(DeliveryQuery())] == []
        assert claim is not None
        assert claim.works[0].event.id == event.id

    async def test_the_same_with_other_content_is_refused(self, store: Store, database: Database, pair: str) -> None:
        await store.events.append([Publication(self.event(pair))])
        for changed in (self.event(pair, datacontenttype="text/plain"), self.event(pair, extensions={"n": 2})):
            with pytest.raises(EventConflict):
                await store.events.append([Publication(changed)])

    async def test_a_session_records_what_append_knows(self, store: Store, database: Database, pair: str) -> None:
        event = self.event(pair)
        async with AsyncSession(database.client) as session, session.begin():
            [first] = await store.events.append_in(session, [Publication(event)])
        [again] = await store.events.append([Publication(event)])
        assert (again.seq, again.duplicate) == (first.seq, True)
