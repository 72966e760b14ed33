"""The contract of `Schedules`: who may make one, what is due, and that a tick is published once."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import BigInteger, literal, update

from runner.delivery import DeliveryState
from runner.errors import NotFound, StateConflict
from runner.policies.schedule import EventTemplate, Schedule
from runner.policies.ticking import decide
from runner.storage.contract.events import Publication
from runner.storage.contract.schedules import Due, DueSchedule, Fired, Firing, Occurrence, Schedules
from runner.storage.contract.settlements import Run, Settled
from runner.storage.expressions import After
from runner.storage.tables import bus, dispatch, events, occurrences, schedules

from .storage_contract import LEASE, Database, Store, StoreTests, record, settled

HOUR, MINUTE, SECOND = timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1)
TEMPLATE = EventTemplate(type="report.due", data='{"n":1}')


def hourly(name: str = "hourly", **fields: Any) -> Schedule:
    given: dict[str, Any] = {"name": name, "event": TEMPLATE, "every": HOUR} | fields
    return Schedule(**given)


class SchedulesTests(StoreTests):
    @pytest.fixture
    def book(self, database: Database) -> Schedules:
        return database.open().schedules

    @pytest.fixture
    def other_book(self, database: Database) -> Schedules:
        """The schedules as another instance has them."""
        return database.open().schedules


async def let_pass(database: Database, by: timedelta) -> None:
    """Move schedules and occurrences back, which is the same to all who look: time has passed."""
    for table in (schedules, occurrences):
        for name in ("tick", "next_at", "last_tick", "queued_until"):
            if name in table.columns:
                column = table.columns[name]
                earlier = After(column, literal(-by // timedelta(microseconds=1), BigInteger))
                await database.execute(update(table).where(column.is_not(None)).values({name: earlier}))


async def seen(book: Schedules, name: str | None = None) -> DueSchedule:
    due = await book.due(10_000)
    return next(each for each in due.schedules if name in (None, each.name))


def firing(each: DueSchedule, *ticks: datetime, **fields: Any) -> Firing:
    """Return that a schedule publishes these ticks, by default the one that is due, and goes on an hour later."""
    schedule = Schedule.from_json(each.name, each.stored)
    ticks = ticks or (each.standing.tick,)
    following = ticks[-1] + HOUR
    values: dict[str, Any] = {"tick": following, "look_at": following, "forget": ticks[0] - 48 * HOUR} | fields
    return Firing(seen=each, occurrences=[Occurrence(tick, schedule.event_of(tick)) for tick in ticks], **values)


def decided(due: Due) -> list[Firing]:
    """Return what the scheduler would write."""
    firings = []
    for each in due.schedules:
        schedule = Schedule.from_json(each.name, each.stored)
        decision = decide(schedule, each.standing, due.now)
        firings.append(
            Firing(
                seen=each,
                occurrences=[Occurrence(tick, schedule.event_of(tick)) for tick in decision.fire],
                tick=decision.tick,
                look_at=decision.look_at,
                missed=len(decision.missed),
                skipped=decision.skipped,
                queued_until=decision.queued_until,
                forget=due.now - schedule.window,
            )
        )
    return firings


async def fire_due(book: Schedules) -> Fired:
    return await book.fire(decided(await book.due(10_000)))


async def published(database: Database) -> list[str]:
    return sorted(row["id"] for row in await database.rows(events))


class TestDue(SchedulesTests):
    async def test_nothing_is_due_without_schedules(self, book: Schedules) -> None:
        due = await book.due(10)
        assert (list(due.schedules), due.next_in, due.more) == ([], None, False)

    async def test_the_next_one_is_known(self, book: Schedules, database: Database) -> None:
        await book.put_file((), [hourly(), hourly("daily", every=24 * HOUR)])
        due = await book.due(10)
        assert not due.schedules
        assert due.next_in is not None
        next_tick = hourly().after(due.now)
        assert next_tick is not None
        assert abs(due.next_in - (next_tick - due.now)) < timedelta(milliseconds=2)

    async def test_what_is_due_comes_earliest_first(self, book: Schedules, database: Database) -> None:
        await book.put_file((), [hourly(f"s{number}", anchor=_past(number)) for number in range(5)])
        await let_pass(database, 2 * HOUR)
        due = await book.due(10)
        assert [each.standing.tick for each in due.schedules] == sorted(each.standing.tick for each in due.schedules)
        assert {each.name for each in due.schedules} == {f"s{number}" for number in range(5)}
        assert due.next_in is None
        assert not due.more
        limited = await book.due(2)
        assert [each.name for each in limited.schedules] == [each.name for each in due.schedules[:2]]
        assert limited.more

    async def test_to_look_writes_nothing(self, book: Schedules, database: Database) -> None:
        await book.put_file((), [hourly()])
        await let_pass(database, 2 * HOUR)
        before = await database.rows(schedules)
        await book.due(10)
        assert await database.rows(schedules) == before

    async def test_what_cannot_be_read_is_given_as_it_is(self, book: Schedules, database: Database) -> None:
        await book.put_file((), [hourly()])
        await let_pass(database, 2 * HOUR)
        await database.execute(update(schedules).values(spec=["nonsense"]))
        [each] = (await book.due(10)).schedules
        assert each.stored == ["nonsense"]


class TestFire(SchedulesTests):
    async def test_occurrence_event_work_and_next_tick_are_one_write(
        self, book: Schedules, database: Database, store: Store
    ) -> None:
        await book.put_file((), [hourly()])
        await let_pass(database, HOUR)
        each = await seen(book)
        tick = each.standing.tick
        fired = await book.fire([firing(each, missed=3, skipped=2)])
        assert fired == Fired(frozenset({each.id}), 1)
        [claimed] = (await store.queue.claim(10, LEASE)).works
        assert claimed.event == hourly().event_of(tick)
        [occurrence] = await database.rows(occurrences)
        assert (occurrence["schedule_id"], occurrence["tick"], occurrence["event_seq"]) == (each.id, tick, claimed.seq)
        view = await book.one("hourly")
        assert (view.tick, view.due_at, view.last_tick) == (tick + HOUR, tick + HOUR, tick)
        assert (view.missed, view.skipped) == (3, 2)

    @pytest.mark.parametrize("table", ["occurrences", "dispatch"])
    async def test_it_takes_effect_whole_or_not_at_all(self, book: Schedules, database: Database, table: str) -> None:
        await book.put_file((), [hourly()])
        await let_pass(database, HOUR)
        each = await seen(book)
        await database.rename(table, "away")
        with pytest.raises(Exception, match=r".*"):
            await book.fire([firing(each)])
        await database.rename("away", table)
        assert await database.count(events, occurrences, dispatch) == [0, 0, 0]
        assert (await book.one("hourly")).tick == each.standing.tick
        assert (await book.fire([firing(each)])).events == 1

    async def test_who_comes_second_finds_it_done(
        self, book: Schedules, other_book: Schedules, database: Database
    ) -> None:
        await book.put_file((), [hourly()])
        await let_pass(database, HOUR)
        one, other = await seen(book), await seen(other_book)
        assert (await book.fire([firing(one)])).events == 1
        assert await other_book.fire([firing(other)]) == Fired(frozenset(), 0)
        assert await database.count(events, occurrences, dispatch) == [1, 1, 1]

    async def test_of_many_at_once_one_succeeds(self, database: Database, book: Schedules) -> None:
        await book.put_file((), [hourly(f"s{number}") for number in range(40)])
        await let_pass(database, HOUR)
        books = [database.open().schedules for _ in range(4)]

        async def until_done(each: Schedules) -> int:
            fired = 0
            while (due := await each.due(7)).schedules:
                fired += (await each.fire(decided(due))).events
            return fired

        assert sum(await asyncio.gather(*map(until_done, books))) == 40
        assert await database.count(events, occurrences, dispatch) == [40, 40, 40]

    async def test_a_tick_that_has_an_occurrence_gets_no_second_event(
        self, book: Schedules, database: Database
    ) -> None:
        """Whatever the row of the schedule says: as after a clock that was set back, or a schedule put anew."""
        await book.put_file((), [hourly()])
        await let_pass(database, HOUR)
        each = await seen(book)
        tick = each.standing.tick
        await book.fire([firing(each)])
        await database.execute(update(schedules).values(tick=tick, next_at=tick))
        assert (await book.fire([firing(await seen(book))])).events == 0
        assert await database.count(events, occurrences, dispatch) == [1, 1, 1]
        assert (await book.one("hourly")).tick == tick + HOUR

    async def test_nor_does_one_whose_event_is_recorded(
        self, book: Schedules, database: Database, store: Store
    ) -> None:
        await book.put_file((), [hourly()])
        await let_pass(database, HOUR)
        each = await seen(book)
        await store.events.append(
            [Publication(hourly().event_of(each.standing.tick).replace(data=b"other", subject="x"))]
        )
        assert await book.fire([firing(each)]) == Fired(frozenset({each.id}), 0)
        assert await database.count(events, occurrences, dispatch) == [1, 1, 1]

    async def test_what_is_not_due_by_the_clock_of_the_store_is_not_published(
        self, book: Schedules, database: Database
    ) -> None:
        await book.put_file((), [hourly()])
        await let_pass(database, HOUR)
        each = await seen(book)
        await let_pass(database, -2 * HOUR)  # the clock is set back after it was read
        moved = replace(each, standing=replace(each.standing, tick=each.standing.tick + 2 * HOUR))
        assert await book.fire([firing(moved)]) == Fired(frozenset(), 0)
        assert await database.count(events) == [0]

    async def test_a_schedule_that_has_changed_since_is_not_fired(self, book: Schedules, database: Database) -> None:
        await book.put_file((), [hourly()])
        await let_pass(database, HOUR)
        each = await seen(book)
        await book.put_file((), [hourly(event=EventTemplate(type="other"))])
        assert (await book.fire([firing(each)])).events == 0
        assert (await fire_due(book)).events == 1
        assert [row["type"] for row in await database.rows(events)] == ["other"]

    async def test_nor_one_that_was_paused_or_removed(self, book: Schedules, database: Database) -> None:
        await book.put_file((), [hourly("paused"), hourly("gone"), hourly("inactive")])
        await let_pass(database, HOUR)
        due = await book.due(10)
        await book.set_paused("paused", True)
        await book.remove("gone")
        await book.put_file((), [hourly("paused")])
        assert await book.fire([firing(each) for each in due.schedules]) == Fired(frozenset(), 0)
        assert not (await book.due(10)).schedules

    async def test_several_ticks_go_in_order(self, book: Schedules, database: Database, store: Store) -> None:
        await book.put_file((), [hourly(catch_up="all")])
        await let_pass(database, 5 * HOUR)
        fired = await fire_due(book)
        assert fired.events == 5
        works = (await store.queue.claim(10, LEASE)).works
        times = [work.event.time for work in works]
        assert times == sorted(times)  # type: ignore[type-var]  # each has one
        assert (await book.one("hourly")).last_tick == times[-1]

    async def test_a_thousand_cost_a_few_statements(self, book: Schedules, database: Database) -> None:
        await book.put_file((), [hourly(f"s{number}") for number in range(1000)])
        await let_pass(database, HOUR)
        statements = 0
        while (due := await book.due(500)).schedules:
            assert (await book.fire(decided(due))).events == len(due.schedules)
            statements += 2
        assert statements == 4
        assert await database.count(events, occurrences, dispatch) == [1000, 1000, 1000]

    async def test_of_ten_thousand_only_those_that_are_due_are_read(self, book: Schedules, database: Database) -> None:
        far = [hourly(f"far{number}", every=9000 * HOUR) for number in range(2000)]
        await book.put_file((), [*far, hourly()])
        await let_pass(database, HOUR)
        assert [each.name for each in (await book.due(500)).schedules] == ["hourly"]

    async def test_occurrences_are_forgotten_behind_the_window(self, book: Schedules, database: Database) -> None:
        await book.put_file((), [hourly()])
        for _ in range(6):
            await let_pass(database, HOUR)
            each = await seen(book)
            await book.fire([firing(each, forget=each.standing.tick - 2 * HOUR - MINUTE)])
        rows = await database.rows(occurrences)
        assert len(rows) == 3

    async def test_an_end(self, book: Schedules, database: Database) -> None:
        await book.put_file((), [hourly()])
        await let_pass(database, HOUR)
        each = await seen(book)
        await book.fire([firing(each, tick=None, look_at=None)])
        view = await book.one("hourly")
        assert (view.state, view.tick, view.due_at) == ("ended", None, None)
        assert not (await book.due(10)).schedules


class TestConnections(SchedulesTests):
    async def test_ticks_wait_for_no_connection_of_others(self, store: Store) -> None:
        """The reads of people and the heartbeat have the engine's; ticks have those of the claims."""
        await store.schedules.put_file((), [hourly()])
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(store.engine.pool.size()):  # type: ignore[attr-defined]  # of this kind of pool
                await stack.enter_async_context(store.engine.connect())
            assert (await store.schedules.due(1)).next_in is not None
            assert await store.schedules.fire([]) == Fired(frozenset(), 0)


class TestBusy(SchedulesTests):
    """Whether the last occurrence has ended, where that matters."""

    async def fired(self, book: Schedules, database: Database, overlap: Any) -> None:
        await book.put_file((), [hourly(overlap=overlap)])
        await let_pass(database, HOUR)
        assert (await fire_due(book)).events == 1
        await let_pass(database, HOUR)

    async def busy(self, book: Schedules) -> bool:
        return (await seen(book)).standing.busy

    @pytest.mark.parametrize("overlap", ["skip", "queue"])
    async def test_until_every_delivery_has_ended(
        self, book: Schedules, database: Database, store: Store, overlap: str
    ) -> None:
        await self.fired(book, database, overlap)
        assert await self.busy(book)  # it waits to be dispatched
        claim = await store.queue.claim(1, LEASE)
        assert await self.busy(book)  # it is
        [work] = claim.works
        waiting = record(work.seq, 2, DeliveryState.PENDING, claim.token)
        await store.queue.settle(Settled(claim.token, claim.works, [Run((1,), 1)], [waiting]))
        assert await self.busy(book)  # one of two waits
        retry = await store.queue.claim_deliveries({2: 1}, LEASE)
        assert await self.busy(book)  # it runs
        await store.queue.settle_deliveries([record(work.seq, 2, DeliveryState.DEAD, retry.token, attempts=2)])
        assert not await self.busy(book)

    async def test_one_that_nobody_wants_has_ended_when_it_is_dispatched(
        self, book: Schedules, database: Database, store: Store
    ) -> None:
        await self.fired(book, database, "skip")
        claim = await store.queue.claim(1, LEASE)
        await store.queue.settle(settled(claim, ()))
        assert not await self.busy(book)

    async def test_other_events_do_not_count(self, book: Schedules, database: Database, store: Store) -> None:
        await self.fired(book, database, "skip")
        claim = await store.queue.claim(1, LEASE)
        await store.queue.settle(settled(claim))
        await store.events.append([Publication(hourly().event_at(datetime(2026, 1, 1, tzinfo=UTC), "by hand"))])
        assert not await self.busy(book)

    async def test_nobody_asks_where_it_does_not_matter(self, book: Schedules, database: Database) -> None:
        await self.fired(book, database, "allow")
        assert not await self.busy(book)


class TestPutAll(SchedulesTests):
    async def test_a_new_one_begins_at_its_next_tick(self, book: Schedules) -> None:
        now = await book.now()
        await book.put_file((), [hourly(jitter=10 * MINUTE)])
        view = await book.one("hourly")
        assert view.schedule == hourly(jitter=10 * MINUTE)
        assert view.tick in (hourly().after(now), hourly().after(await book.now()))
        assert view.tick is not None
        assert view.due_at == view.schedule.due_at(view.tick)
        assert (view.origin, view.state, view.last_tick, view.missed) == ("file", "active", None, 0)

    async def test_what_has_not_changed_is_not_written(self, book: Schedules, database: Database) -> None:
        await book.put_file((), [hourly(), hourly("other")])
        before = await database.rows(schedules), await database.rows(bus)
        await book.put_file((), [hourly("other"), hourly()])
        assert (await database.rows(schedules), await database.rows(bus)) == before

    async def test_what_is_late_stays_late(self, book: Schedules, database: Database) -> None:
        """A runner that starts again catches up with what it missed."""
        await book.put_file((), [hourly()])
        await let_pass(database, 3 * HOUR)
        late = (await book.one("hourly")).tick
        await book.put_file((), [hourly()])
        await book.put_file((), [hourly(event=EventTemplate(type="other"), catch_up="all")])
        assert (await book.one("hourly")).tick == late

    async def test_one_with_other_times_replaces_the_old_one(self, book: Schedules) -> None:
        await book.put_file((), [hourly()])
        id = (await book.one("hourly")).id
        await book.put_file((), [hourly(every=24 * HOUR)])
        view = await book.one("hourly")
        assert view.id == id
        assert view.tick == hourly(every=24 * HOUR).after(await book.now())

    async def test_and_publishes_no_tick_twice(self, book: Schedules, database: Database) -> None:
        """The old and the new file side by side, each put again and again: every instance starts a few times."""
        old, new = hourly(catch_up="all"), hourly(every=HOUR / 2, catch_up="all")
        await book.put_file((), [old])
        for each in (old, new, old, old, new, new, old):
            await let_pass(database, HOUR)
            await book.put_file((), [each])
            while (await book.due(1)).schedules:
                await fire_due(book)
        assert len(set(await published(database))) == len(await database.rows(events))
        rows = await database.rows(occurrences)
        assert len({row["tick"] for row in rows}) == len(rows)

    async def test_one_that_is_no_longer_given_stops(self, book: Schedules, database: Database) -> None:
        await book.put_file((), [hourly(), hourly("gone")])
        await book.put_file((), [hourly()])
        view = await book.one("gone")
        assert (view.state, view.tick, view.due_at) == ("inactive", None, None)
        await let_pass(database, 2 * HOUR)
        assert [each.name for each in (await book.due(10)).schedules] == ["hourly"]

    async def test_one_that_comes_back_begins_anew(self, book: Schedules, database: Database) -> None:
        await book.put_file((), [hourly()])
        await book.put_file((), [])
        await let_pass(database, 5 * HOUR)
        await book.put_file((), [hourly()])
        view = await book.one("hourly")
        assert view.state == "active"
        assert view.tick == hourly().after(await book.now())

    async def test_each_origin_has_its_own(self, book: Schedules) -> None:
        await book.put(hourly("mine"), "api")
        await book.put_file((), [hourly()])
        await book.put_file((), [])
        assert [(view.schedule.name, view.state) for view in await book.all()] == [
            ("hourly", "inactive"),
            ("mine", "active"),
        ]

    async def test_a_file_takes_over_the_one_of_the_api(self, book: Schedules) -> None:
        await book.put(hourly(), "api")
        await book.put_file((), [hourly()])
        assert (await book.one("hourly")).origin == "file"

    async def test_a_pause_survives_a_change(self, book: Schedules) -> None:
        await book.put_file((), [hourly()])
        await book.set_paused("hourly", True, "me@here")
        await book.put_file((), [hourly(every=2 * HOUR)])
        view = await book.one("hourly")
        assert (view.state, view.paused_by, view.tick, view.due_at) == ("paused", "me@here", None, None)
        await book.set_paused("hourly", False)
        assert (await book.one("hourly")).tick == hourly(every=2 * HOUR).after(await book.now())

    async def test_instances_that_start_together_do_not_race(self, database: Database) -> None:
        books = [database.open().schedules for _ in range(4)]
        await asyncio.gather(*[book.put_file((), [hourly(), hourly("other")]) for book in books])
        assert len(await database.rows(schedules)) == 2

    async def test_every_change_is_seen_in_the_version(self, book: Schedules, store: Store) -> None:
        async def version() -> int:
            return (await store.registry.subscriptions())[0]

        versions: list[int] = [await version()]

        async def changed() -> bool:
            versions.append(await version())
            return versions[-1] > versions[-2]

        await book.put_file((), [hourly()])
        assert await changed()
        await book.put_file((), [hourly()])
        assert not await changed()
        await book.set_paused("hourly", True)
        assert await changed()
        await book.set_paused("hourly", True)
        assert not await changed()
        await book.set_paused("hourly", False)
        assert await changed()
        await book.put(hourly("mine"), "api")
        assert await changed()
        await book.put(hourly("mine"), "api")
        assert not await changed()
        await book.remove("mine")
        assert await changed()
        await book.put_file((), [])
        assert await changed()


class TestOne(SchedulesTests):
    async def test_one_of_the_file_is_not_replaced_by_hand(self, book: Schedules) -> None:
        await book.put_file((), [hourly()])
        with pytest.raises(StateConflict, match="schedule hourly is in the file; change it there"):
            await book.put(hourly(every=2 * HOUR), "api")

    async def test_one_that_is_in_no_file_any_more_may_be(self, book: Schedules) -> None:
        await book.put_file((), [hourly()])
        await book.put_file((), [])
        assert (await book.put(hourly(), "api")).changed
        assert (await book.one("hourly")).origin == "api"

    async def test_put_says_whether_anything_changed(self, book: Schedules) -> None:
        assert (await book.put(hourly(), "api")).changed
        assert not (await book.put(hourly(), "api")).changed
        assert (await book.put(hourly(window=HOUR), "api")).changed

    async def test_what_passes_during_a_pause_is_not_caught_up(self, book: Schedules, database: Database) -> None:
        await book.put(hourly(catch_up="all"), "api")
        assert await book.set_paused("hourly", True, "me@here")
        assert not await book.set_paused("hourly", True)
        view = await book.one("hourly")
        assert (view.state, view.paused_by) == ("paused", "me@here")
        assert view.paused_at is not None
        await let_pass(database, 5 * HOUR)
        assert not (await book.due(10)).schedules
        assert await book.set_paused("hourly", False)
        view = await book.one("hourly")
        assert view.tick == hourly().after(await book.now())
        assert (view.missed, view.paused_at, view.paused_by) == (0, None, None)

    async def test_remove_forgets_it_with_its_occurrences(self, book: Schedules, database: Database) -> None:
        await book.put(hourly(), "api")
        await let_pass(database, HOUR)
        await fire_due(book)
        await book.remove("hourly")
        assert await database.count(schedules, occurrences, events) == [0, 0, 1]

    @pytest.mark.parametrize("call", ["one", "remove", "set_paused"])
    async def test_what_does_not_exist_is_named(self, book: Schedules, call: str) -> None:
        await book.put(hourly(), "api")
        arguments = ("nightly", True) if call == "set_paused" else ("nightly",)
        with pytest.raises(NotFound, match="no schedule 'nightly'; there are: hourly"):
            await getattr(book, call)(*arguments)

    async def test_one_that_cannot_be_read_does_not_hide_the_others(self, book: Schedules, database: Database) -> None:
        await book.put_file((), [hourly(), hourly("broken")])
        await database.execute(update(schedules).where(schedules.c.name == "broken").values(spec={"every": "x"}))
        assert [view.schedule.name for view in await book.all()] == ["hourly"]
        with pytest.raises(StateConflict, match="'broken' cannot be read"):
            await book.one("broken")
        await book.put_file((), [hourly(), hourly("broken")])
        assert (await book.one("broken")).state == "active"


def _past(minutes: int) -> datetime:
    return datetime(2026, 1, 1, tzinfo=UTC) + minutes * MINUTE
