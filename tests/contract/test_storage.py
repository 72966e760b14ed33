"""The contract of `EventStore`: what publishing promises, on every store."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from runner.errors import EventConflict, EventError, StorageError
from runner.event import Event
from runner.storage.contract.claims import Work
from runner.storage.contract.events import Publication
from runner.storage.contract.settlements import Run, Settled
from runner.storage.tables import dispatch, events, scheduled
from runner.subscription import Subscription
from tests.support.eventually import eventually

from .storage_contract import LEASE, Database, Store, StoreTests, identity, publication, publish

HOUR = timedelta(hours=1)


async def claimed_event(store: Store, limit: int = 100) -> Event:
    """Return the one event that is due."""
    [work] = (await store.queue.claim(limit, LEASE)).works
    return work.event if not work.size else work.event.replace(data=(await store.queue.contents([work.seq]))[work.seq])


SIZES = [1, 2, 16, 17, 40]  # of calls: a store may write a few events in another way than many


class TestAppend(StoreTests):
    @pytest.mark.parametrize("size", SIZES)
    async def test_receipts_come_in_the_order_of_the_events_and_number_them_upwards(
        self, store: Store, database: Database, size: int
    ) -> None:
        publications = [publication(number) for number in range(size)]
        receipts = await store.events.append(publications)
        assert [identity(each) for each in receipts] == [(each.event.source, each.event.id) for each in publications]
        recorded = {row["seq"]: (row["source"], row["id"], row["data"]) for row in await database.rows(events)}
        assert recorded == {
            receipt.seq: (each.event.source, each.event.id, each.event.data)
            for receipt, each in zip(receipts, publications, strict=True)
        }
        seqs = [each.seq for each in receipts]
        assert seqs == sorted(set(seqs))
        assert not any(each.duplicate for each in receipts)

    async def test_a_later_call_gets_higher_numbers(self, store: Store, other: Store) -> None:
        assert max(await publish(store, 3)) < min(await publish(other, 3))

    async def test_nothing_to_append_is_no_error(self, store: Store, database: Database) -> None:
        assert list(await store.events.append([])) == []
        assert await database.count(events, dispatch) == [0, 0]

    async def test_each_event_has_one_row_of_work(self, store: Store, database: Database) -> None:
        seqs = await publish(store, 5)
        assert [row["event_seq"] for row in await database.rows(dispatch)] == seqs
        assert await database.count(events, scheduled) == [5, 0]

    async def test_the_same_event_again_is_a_duplicate_of_the_first(self, store: Store, database: Database) -> None:
        again, new = publication(), publication()
        [first] = await store.events.append([again])
        second, third = await store.events.append([again, new])
        assert (second.seq, second.duplicate, third.duplicate) == (first.seq, True, False)
        assert await database.count(events, dispatch) == [2, 2]

    async def test_the_same_event_twice_in_one_call_is_recorded_once(self, store: Store, database: Database) -> None:
        twice, between = publication(), publication()
        first, middle, second = await store.events.append([twice, between, twice])
        assert (first.duplicate, middle.duplicate, second.duplicate) == (False, False, True)
        assert first.seq == second.seq != middle.seq
        assert await database.count(events, dispatch) == [2, 2]

    @pytest.mark.parametrize("leased", [False, True])
    async def test_among_hundreds_each_receipt_is_that_of_its_event(
        self, store: Store, other: Store, *, leased: bool
    ) -> None:
        known = [publication(number) for number in (3, 300, 699)]
        before = {identity(each): each.seq for each in await store.events.append(known)}
        call = [publication(number) for number in range(700)]
        call[3], call[300], call[699], call[400] = *known, call[100]
        if leased:
            receipts, claim = await store.events.append_leased(call, LEASE)
        else:
            receipts, claim = await store.events.append(call), None
        handed_out = [*(claim.works if claim else ()), *(await other.queue.claim(1000, LEASE)).works]
        recorded = {work.seq: (work.event.source, work.event.id) for work in handed_out}
        assert [recorded[each.seq] for each in receipts] == [(each.event.source, each.event.id) for each in call]
        assert [place for place, each in enumerate(receipts) if each.duplicate] == [3, 300, 400, 699]
        assert {identity(each): each.seq for each in receipts} | before == {
            identity(each): each.seq for each in receipts
        }
        new = [each.seq for each in receipts if not each.duplicate]
        assert new == sorted(set(new))
        assert len(recorded) == len(new) + 3

    async def test_a_duplicate_changes_neither_the_work_nor_its_time(self, store: Store, database: Database) -> None:
        one = publication()
        await store.events.append([one])
        [receipt] = await store.events.append([Publication(one.event, delay=HOUR)])
        assert receipt.duplicate
        assert await database.count(dispatch, scheduled) == [1, 0]

    async def test_the_same_id_from_another_source_is_another_event(self, store: Store) -> None:
        event = Event.new("t", source="/a", id="1")
        first, second = await store.events.append(
            [Publication(event), Publication(Event.new("t", source="/b", id="1"))]
        )
        assert first.seq != second.seq
        assert not second.duplicate

    async def test_fifty_concurrent_publishers_of_one_event_record_it_once(
        self, store: Store, other: Store, database: Database
    ) -> None:
        one = publication()
        calls = [(store if number % 2 else other).events.append([one]) for number in range(50)]
        receipts = [receipt for [receipt] in await asyncio.gather(*calls)]
        assert len({receipt.seq for receipt in receipts}) == 1
        assert sum(not receipt.duplicate for receipt in receipts) == 1
        assert await database.count(events, dispatch) == [1, 1]


CHANGES: dict[str, Any] = {
    "type": "order.changed",
    "subject": "elsewhere",
    "time": datetime(2026, 1, 1, tzinfo=UTC),
    "datacontenttype": "text/plain",
    "dataschema": "urn:other",
    "extensions": {"tenant": "acme"},
    "data": b"{}",
    "data-gone": None,
}


class TestConflict(StoreTests):
    @pytest.mark.parametrize("changed", CHANGES)
    async def test_other_content_is_refused_and_nothing_of_the_call_is_recorded(
        self, store: Store, database: Database, changed: str
    ) -> None:
        attributes: dict[str, Any] = {"type": "order.created", "source": "/tests", "id": "1", "data": b"[1]"}
        await store.events.append([Publication(Event(**attributes))])
        other = Publication(Event(**{**attributes, changed.partition("-")[0]: CHANGES[changed]}))
        with pytest.raises(EventConflict, match="'1'"):
            await store.events.append([publication(1), other, publication(2)])
        assert await database.count(events, dispatch) == [1, 1]

    @pytest.mark.parametrize("size", [1, 20])
    async def test_how_an_event_came_about_is_no_content_and_stays_as_it_was_first(
        self, store: Store, database: Database, size: int
    ) -> None:
        """Who publishes again does so in another span, for another event; with nothing else different."""
        first, second, lasting = {"causationid": "a", "traceparent": "00-1"}, {"runnerhops": 2}, {"tenant": "acme"}
        for extensions in ({}, lasting):
            made = [publication(number, id=f"{number} {sorted(extensions)}") for number in range(size)]

            def with_(given: dict[str, Any], made: list[Publication] = made) -> list[Publication]:
                return [Publication(each.event.replace(extensions=given)) for each in made]

            await store.events.append(with_(extensions | first))
            for again in (first, second, {}):
                assert all(receipt.duplicate for receipt in await store.events.append(with_(extensions | again)))
            mixed = [*with_(extensions | first), *with_(extensions | second)]
            assert all(receipt.duplicate for receipt in await store.events.append(mixed))
            async with AsyncSession(database.engine) as session:
                assert all(each.duplicate for each in await store.events.append_in(session, with_(extensions | second)))
            with pytest.raises(EventConflict):
                await store.events.append(with_({"tenant": "other"} | second))
        rows = await database.rows(events)
        assert [row["extensions"] for row in rows] == [first] * size + [lasting | first] * size

    async def test_nor_is_it_where_the_identity_is_long(self, store: Store) -> None:
        long = Event(type="t", source="/s" * 2000, id="i" * 2000, extensions={"causationid": "a"})
        await store.events.append([Publication(long)])
        [receipt] = await store.events.append([Publication(long.replace(extensions={}))])
        assert receipt.duplicate

    async def test_empty_data_and_no_data_are_not_the_same(self, store: Store) -> None:
        await store.events.append([Publication(Event(type="t", source="/s", id="1", data=b""))])
        with pytest.raises(EventConflict):
            await store.events.append([Publication(Event(type="t", source="/s", id="1", data=None))])

    async def test_two_contents_for_one_identity_in_one_call_are_refused(
        self, store: Store, database: Database
    ) -> None:
        first, second = (Publication(Event(type="t", source="/s", id="1", data=data)) for data in (b"1", b"2"))
        with pytest.raises(EventConflict):
            await store.events.append([first, second])
        assert await database.count(events, dispatch) == [0, 0]

    @pytest.mark.parametrize("size", [1, 3, 40])
    async def test_the_error_says_which_event_of_several_it_is(
        self, store: Store, database: Database, size: int
    ) -> None:
        attributes: dict[str, Any] = {"type": "t", "data": b"1"}
        recorded = [
            Event(**attributes, source="/s", id="1"),
            Event(**attributes, source="/s", id="2"),
            Event(**attributes, source="/s" * 2000, id="i" * 2000),  # is stored in another form
        ]
        await store.events.append([Publication(each) for each in recorded])
        for place, known in zip((0, size - 1, size // 2), recorded, strict=True):
            several = [publication(number) for number in range(size)]
            several[place] = Publication(known.replace(data=b"changed"))
            for call in (
                store.events.append(several),
                store.events.append_leased(several, LEASE),
                self.append_in(store, database, several),
            ):
                with pytest.raises(EventConflict, match=re.escape(f"event '{known.id}' of source")) as caught:
                    await call
                assert caught.value.index == (place if size > 1 else None)
                assert str(caught.value).startswith(f"event {place + 1} of {size}: " if size > 1 else "event '")

    async def test_of_two_contents_in_one_call_the_second_is_at_fault(self, store: Store, database: Database) -> None:
        one = publication(1, id="1")
        several = [publication(2), one, one, Publication(one.event.replace(data=b"changed"))]
        for call in (store.events.append(several), self.append_in(store, database, several)):
            with pytest.raises(EventConflict, match=r"^event 4 of 4: event '1' .* comes twice") as caught:
                await call
            assert caught.value.index == 3

    @staticmethod
    async def append_in(store: Store, database: Database, publications: Sequence[Publication]) -> None:
        async with AsyncSession(database.client) as session, session.begin():
            await store.events.append_in(session, publications)

    async def test_the_error_does_not_show_the_data(self, store: Store) -> None:
        await store.events.append([Publication(Event(type="t", source="/s", id="1", data=b"hunter2"))])
        with pytest.raises(EventConflict) as caught:
            await store.events.append([Publication(Event(type="t", source="/s", id="1", data=b"hunter3"))])
        assert "hunter" not in str(caught.value)

    async def test_extensions_in_another_order_are_the_same_content(self, store: Store) -> None:
        attributes: dict[str, Any] = {"type": "t", "source": "/s", "id": "1"}
        await store.events.append([Publication(Event(**attributes, extensions={"a": 1, "b": "2"}))])
        [receipt] = await store.events.append([Publication(Event(**attributes, extensions={"b": "2", "a": 1}))])
        assert receipt.duplicate


TEXT = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Cn"], exclude_characters="\ufffe\uffff"), min_size=1, max_size=40
)
EVENTS = st.builds(
    Event,
    type=TEXT,
    source=TEXT,
    subject=st.none() | TEXT,
    time=st.none() | st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)),
    datacontenttype=st.sampled_from([None, "application/json", 'text/plain; charset="utf-8"']),
    dataschema=st.sampled_from([None, "urn:schema:1"]),
    extensions=st.dictionaries(
        st.from_regex(r"x[a-z0-9]{0,19}", fullmatch=True),
        TEXT | st.just("") | st.booleans() | st.integers(-(2**31), 2**31 - 1),
    ),
    data=st.none() | st.binary(max_size=200),
)


class TestContent(StoreTests):
    @given(event=EVENTS)
    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    async def test_what_is_claimed_is_what_was_published(self, store: Store, event: Event) -> None:
        event.validate()
        await store.events.append([Publication(event)])
        claim = await store.queue.claim(100, LEASE)
        [found] = [work.event for work in claim.works if work.event.id == event.id]
        self.check_same(found, event)

    @given(events=st.lists(EVENTS, min_size=17, max_size=25, unique_by=lambda event: event.id))
    @settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
    async def test_so_it_is_with_many_in_one_call(self, store: Store, events: list[Event]) -> None:
        await store.events.append([Publication(event) for event in events])
        found = {(work.event.source, work.event.id): work.event for work in (await store.queue.claim(100, LEASE)).works}
        assert len(found) == len(events)
        for event in events:
            self.check_same(found[event.source, event.id], event)

    @pytest.mark.parametrize("character", ["\x1e", "\x1f"])
    async def test_a_control_character_is_kept_or_refused(
        self, store: Store, database: Database, character: str
    ) -> None:
        """Never lets an attribute of one event become another's. The bus takes no such event."""
        subjects = ["a", f"b{character}c", character, None] * 5
        many = [publication(number, id=str(number)) for number in range(len(subjects))]
        odd = [Publication(each.event.replace(subject=subject)) for each, subject in zip(many, subjects, strict=True)]
        with contextlib.suppress(EventError):
            await store.events.append(odd)
        for row in await database.rows(events):
            assert row["subject"] == subjects[int(row["id"])]

    @staticmethod
    def check_same(found: Event, event: Event) -> None:
        """Assert that an event has come out as it went in."""
        for name in ("type", "source", "subject", "datacontenttype", "dataschema", "data"):
            assert getattr(found, name) == getattr(event, name)
        assert {name: (value, type(value)) for name, value in found.extensions.items()} == {
            name: (value, type(value)) for name, value in event.extensions.items()
        }
        assert event.time is None or found.time == event.time

    @pytest.mark.parametrize("data", [None, b"", b"null", b"0", bytes(range(256)), b"\0" * (1024 * 1024)])
    async def test_data_is_kept_to_the_byte(self, store: Store, data: bytes | None) -> None:
        await store.events.append([Publication(Event(type="t", source="/s", data=data))])
        found = (await claimed_event(store)).data
        assert found == data
        assert data is None or type(found) is bytes

    async def test_a_time_with_an_offset_is_the_same_moment_to_the_microsecond(self, store: Store) -> None:
        time = datetime(2026, 3, 29, 2, 30, 0, 123456, tzinfo=timezone(timedelta(hours=-5, minutes=-30)))
        await store.events.append([Publication(Event(type="t", source="/s", time=time))])
        found = (await claimed_event(store)).time
        assert found == time
        assert found is not None
        assert found.utcoffset() == timedelta(0)

    async def test_an_event_without_a_time_has_the_moment_it_was_recorded(
        self, store: Store, database: Database
    ) -> None:
        one = publication()
        await store.events.append([one])
        [row] = await database.rows(events)
        assert (await claimed_event(store)).time == row["created_at"]
        [receipt] = await store.events.append([one])
        assert receipt.duplicate


class TestDue(StoreTests):
    @pytest.mark.parametrize("given", ["delay", "deliver_at"])
    async def test_a_scheduled_event_waits_and_says_for_how_long(
        self, store: Store, database: Database, given: str
    ) -> None:
        timing: dict[str, Any] = {"delay": HOUR} if given == "delay" else {"deliver_at": datetime.now(UTC) + HOUR}
        await publish(store, 1, **timing)
        assert await store.queue.promote(10) == 0
        claim = await store.queue.claim(10, LEASE)
        assert not claim.works
        assert claim.scheduled_in is not None
        assert HOUR - timedelta(seconds=10) < claim.scheduled_in <= HOUR + timedelta(seconds=1)
        assert await database.count(dispatch, scheduled) == [0, 1]

    @pytest.mark.parametrize(
        "timing",
        [
            {"delay": timedelta(0)},
            {"delay": -HOUR},
            {"deliver_at": datetime(1999, 12, 31, 23, 59, tzinfo=UTC)},
            {"deliver_at": datetime(1999, 12, 31, 23, 59, tzinfo=timezone(-HOUR))},
        ],
        ids=str,
    )
    async def test_a_time_that_has_passed_is_now(self, store: Store, timing: dict[str, Any]) -> None:
        seqs = await publish(store, 2, **timing)
        await store.queue.promote(10)
        assert [work.seq for work in (await store.queue.claim(10, LEASE)).works] == seqs

    async def test_one_call_may_mix_what_is_due_now_and_later(self, store: Store) -> None:
        now, later = publication(1), publication(2)
        first, second = await store.events.append([now, Publication(later.event, delay=HOUR)])
        claim = await store.queue.claim(10, LEASE)
        assert [work.seq for work in claim.works] == [first.seq]
        assert not second.duplicate


class TestDueAboutNow(StoreTests):
    async def test_an_event_that_falls_due_while_it_is_recorded_is_in_one_place(
        self, store: Store, database: Database
    ) -> None:
        for delay in range(0, 6000, 50):
            await publish(store, 20, delay=timedelta(microseconds=delay))
        queued = [row["event_seq"] for row in await database.rows(dispatch)]
        waiting = [row["event_seq"] for row in await database.rows(scheduled)]
        assert sorted(queued + waiting) == list(range(1, 2401))


class TestInvariant1PublishIsOneTransaction(StoreTests):
    @pytest.mark.parametrize(("table", "delay"), [("dispatch", None), ("scheduled", HOUR)])
    async def test_no_event_is_recorded_without_its_row_of_work(
        self, store: Store, database: Database, table: str, delay: timedelta | None
    ) -> None:
        await database.rename(table, "elsewhere")
        with pytest.raises(StorageError):
            await publish(store, 3, delay=delay)
        await database.rename("elsewhere", table)
        assert await database.count(events, dispatch, scheduled) == [0, 0, 0]
        assert len(await publish(store, 3, delay=delay)) == 3


class TestAppendLeased(StoreTests):
    async def test_what_is_recorded_is_leased_to_the_publisher(self, store: Store, other: Store) -> None:
        publications = [publication(number) for number in range(5)]
        receipts, claim = await store.events.append_leased(publications, LEASE)
        assert claim
        assert [identity(each) for each in receipts] == [(each.event.source, each.event.id) for each in publications]
        assert [(work.seq, work.attempt) for work in claim.works] == [(each.seq, 1) for each in receipts]
        assert not (await other.queue.claim(100, LEASE)).works
        assert await store.queue.settle(Settled(claim.token, claim.works, [Run((), 5)])) == 5

    async def test_what_is_settled_already_is_not_settled_with_the_rest(self, store: Store) -> None:
        _, claim = await store.events.append_leased([publication(number) for number in range(10)], LEASE)
        assert claim
        assert await store.queue.settle(Settled(claim.token, claim.works[2:5], [Run((), 3)])) == 3
        assert await store.queue.settle(Settled(claim.token, claim.works, [Run((), 10)])) == 7

    @pytest.mark.parametrize("size", SIZES)
    async def test_the_events_are_those_a_claim_would_bring(self, store: Store, other: Store, size: int) -> None:
        _, claim = await store.events.append_leased([publication(n) for n in range(size)], timedelta(milliseconds=50))
        assert claim

        works: list[Work] = []

        async def all_again() -> bool:
            works.extend((await other.queue.claim(100, LEASE)).works)
            return len(works) == size

        await eventually(all_again)
        assert [(work.position, work.seq, work.event) for work in works] == [
            (work.position, work.seq, work.event) for work in claim.works
        ]
        assert all(work.event.time is not None and work.attempt == 2 for work in works)

    async def test_the_version_of_the_subscriptions_comes_with_it(self, store: Store) -> None:
        await store.registry.put_subscriptions([Subscription(name="a", sink="s")], "file")
        _, claim = await store.events.append_leased([publication()], LEASE)
        assert claim
        assert claim.version == (await store.registry.subscriptions())[0] > 0

    async def test_a_known_event_is_not_handed_out_again(self, store: Store, other: Store, database: Database) -> None:
        """Whether the new one beside it is, or is left to a claim, is the store's business."""
        known, new = publication(), publication()
        await store.events.append([known])
        receipts, claim = await store.events.append_leased([known, new, new], LEASE)
        assert [each.duplicate for each in receipts] == [True, False, True]
        handed_out = [work.seq for work in claim.works] if claim else []
        assert receipts[0].seq not in handed_out
        claimed = [work.seq for work in (await other.queue.claim(100, LEASE)).works]
        assert sorted(handed_out + claimed) == [receipts[0].seq, receipts[1].seq]
        assert await database.count(events, dispatch) == [2, 2]

    async def test_a_conflict_leaves_nothing(self, store: Store, database: Database) -> None:
        await store.events.append([Publication(Event(type="t", source="/s", id="1", data=b"1"))])
        changed = Publication(Event(type="t", source="/s", id="1", data=b"2"))
        for call in ([changed], [publication(), changed], [changed, publication()]):
            with pytest.raises(EventConflict):
                await store.events.append_leased(call, LEASE)
        assert await database.count(events, dispatch) == [1, 1]


class TestAppendIn(StoreTests):
    @pytest.fixture(autouse=True)
    async def orders(self, database: Database) -> None:
        async with database.client.begin() as connection:
            await connection.exec_driver_sql("CREATE TABLE orders (id INTEGER PRIMARY KEY)")

    async def count_orders(self, database: Database) -> int:
        async with database.client.begin() as connection:
            return int(await connection.scalar(text("SELECT count(*) FROM orders")) or 0)

    async def test_the_event_is_there_if_and_when_the_transaction_commits(
        self, store: Store, other: Store, database: Database
    ) -> None:
        async with AsyncSession(database.client) as session, session.begin():
            await session.execute(text("INSERT INTO orders VALUES (1)"))
            first, second = await store.events.append_in(session, [publication(1), publication(2)])
            assert not (await other.queue.claim(10, LEASE)).works
        assert first.seq < second.seq
        assert [work.seq for work in (await other.queue.claim(10, LEASE)).works] == [first.seq, second.seq]
        assert await self.count_orders(database) == 1

    async def test_a_rollback_leaves_nothing(self, store: Store, database: Database) -> None:
        async with AsyncSession(database.client) as session:
            await session.execute(text("INSERT INTO orders VALUES (1)"))
            await store.events.append_in(session, [publication(1), Publication(publication(2).event, delay=HOUR)])
            await session.rollback()
        assert await database.count(events, dispatch, scheduled) == [0, 0, 0]
        assert await self.count_orders(database) == 0

    async def test_duplicates_and_times_are_those_of_append(self, store: Store, database: Database) -> None:
        known, later = publication(1), Publication(publication(2).event, delay=HOUR)
        [first] = await store.events.append([known])
        async with AsyncSession(database.client) as session, session.begin():
            again, scheduled_one, twice = await store.events.append_in(session, [known, later, later])
        assert (again.seq, again.duplicate) == (first.seq, True)
        assert (scheduled_one.duplicate, twice.duplicate, twice.seq) == (False, True, scheduled_one.seq)
        assert await database.count(events, dispatch, scheduled) == [2, 1, 1]

    async def test_append_knows_what_a_session_recorded(self, store: Store, database: Database) -> None:
        one = publication(1, extensions={"tenant": "näh", "priority": 3, "urgent": True}, time=datetime.now(UTC))
        async with AsyncSession(database.client) as session, session.begin():
            [first] = await store.events.append_in(session, [one])
        [again] = await store.events.append([one])
        assert (again.seq, again.duplicate) == (first.seq, True)

    async def test_a_session_knows_what_append_recorded(self, store: Store, database: Database) -> None:
        one = publication(1, extensions={"tenant": "näh", "priority": 3, "urgent": True}, time=datetime.now(UTC))
        [first] = await store.events.append([one])
        async with AsyncSession(database.client) as session, session.begin():
            [again] = await store.events.append_in(session, [one])
        assert (again.seq, again.duplicate) == (first.seq, True)

    async def test_a_conflict_leaves_nothing_of_the_call_in_a_transaction_that_goes_on(
        self, store: Store, database: Database
    ) -> None:
        await store.events.append([Publication(Event(type="t", source="/s", id="1", data=b"1"))])
        changed = Publication(Event(type="t", source="/s", id="1", data=b"2"))
        async with AsyncSession(database.client) as session, session.begin():
            await session.execute(text("INSERT INTO orders VALUES (1)"))
            with pytest.raises(EventError):
                await store.events.append_in(session, [publication(1), changed, publication(2)])
        assert await database.count(events, dispatch) == [1, 1]
        assert await self.count_orders(database) == 1
