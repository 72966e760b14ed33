"""Schedules on a real store: each tick once, on time, whoever is there and whoever was not."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from runner import Delivery, Event, NotFound, StateConflict
from runner.builder import open_operations
from runner.config import load_config
from runner.policies.schedule import EventTemplate, Schedule
from runner.storage.tables import events, occurrences
from tests.contract.test_schedules import let_pass
from tests.support.eventually import eventually

from .buses import Bus, BusTests, Gate, Handler, crash

SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)


def every(length: timedelta, name: str = "pulse", **fields: Any) -> Schedule:
    return Schedule(name=name, event=EventTemplate(type="tick", data='{"n":1}'), every=length, **fields)


class Clock(Handler):
    """A handler that notes the time of each event, and how late it came."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[datetime] = []
        self.late: list[timedelta] = []

    async def handle(self, event: Event, delivery: Delivery) -> None:
        assert event.time is not None
        self.times.append(event.time)
        self.late.append(datetime.now(UTC) - event.time)


def gaps(times: Sequence[datetime]) -> set[timedelta]:
    return {later - earlier for earlier, later in pairwise(sorted(times))}


class TestTicks(BusTests):
    async def test_every_second_with_three_instances_of_which_one_dies(self, bus: Bus) -> None:
        clock, runners = Clock(), []
        for _ in range(3):
            runner = bus.runner(schedules=[every(SECOND, catch_up="all")])
            runner.subscribe("clock", clock, types=["tick"])
            before = asyncio.all_tasks()
            await runner.start()
            runners.append((runner, before))
        await eventually(lambda: len(clock.times) >= 2)
        await crash(runners[-1][1])
        await eventually(lambda: len(set(clock.times)) >= 5)
        for runner, _ in runners[:2]:
            await runner.stop()
        recorded = [row["time"] for row in await bus.database.rows(events)]
        assert gaps(recorded) == {SECOND}, "a tick was left out"
        assert len(set(recorded)) == len(recorded), "a tick came twice"
        assert [row["tick"] for row in await bus.database.rows(occurrences)] == sorted(recorded)

    async def test_a_tick_comes_when_it_is_due_although_nobody_polls(self, bus: Bus) -> None:
        """The file polls every 30 s, and nothing is signalled."""
        clock = Clock()
        runner = bus.runner(schedules=[every(SECOND, catch_up="all")])
        runner.subscribe("clock", clock, types=["tick"])
        async with runner:
            # A busy machine may hold up some, and the first poll is still to come.
            await eventually(lambda: len(clock.late) >= 4 and sorted(clock.late)[1] < SECOND, timeout=25)
        assert min(clock.late) >= timedelta(0)

    async def test_a_schedule_runs_whether_or_not_anybody_subscribes(self, bus: Bus) -> None:
        async with bus.runner(schedules=[every(SECOND)]):
            await eventually(lambda: bus.settled())
            await eventually(lambda: _recorded(bus, 2))

    async def test_one_subscriber_that_fails_changes_nothing_for_the_others(self, bus: Bus) -> None:
        """Neither for its own next tick, nor is any tick recorded twice for it."""
        clock = Clock()

        async def refuse(event: Event) -> None:
            raise RuntimeError("no")

        runner = bus.runner(schedules=[every(SECOND, catch_up="all")])
        runner.subscribe("refuses", refuse, types=["tick"])
        runner.subscribe("clock", clock, types=["tick"])
        async with runner:
            await eventually(lambda: len(clock.times) >= 3)
        assert gaps(clock.times) == {SECOND}
        ids = [row["id"] for row in await bus.database.rows(events)]
        assert len(set(ids)) == len(ids)

    async def test_an_acknowledgement_is_of_one_tick(self, bus: Bus) -> None:
        clock = Clock()
        runner = bus.runner(schedules=[every(SECOND, catch_up="all")])
        runner.subscribe("clock", clock, types=["tick"])
        async with runner:
            await eventually(lambda: len(clock.times) >= 1)
            await runner.ack(clock.seen[0][0], "clock")
            await eventually(lambda: len(clock.times) >= 3)
        assert set(Counter(clock.times).values()) == {1}


class TestAbsence(BusTests):
    @pytest.mark.parametrize(
        ("catch_up", "window", "published", "missed"),
        [("all", 48 * HOUR, 30, 0), ("one", 24 * HOUR, 1, 29), ("none", 24 * HOUR, 0, 30), ("all", 10 * HOUR, 10, 20)],
    )
    async def test_each_policy_does_what_it_says_and_counts_the_rest(
        self, bus: Bus, catch_up: Any, window: timedelta, published: int, missed: int
    ) -> None:
        """Thirty ticks passed while nobody was there; the last one half an hour ago, about."""
        clock = Clock()
        now = datetime.now(UTC)
        schedule = every(HOUR, catch_up=catch_up, window=window, anchor=(now - HOUR / 2).replace(microsecond=0))
        async with bus.runner(schedules=[schedule]):
            pass
        await let_pass(bus.database, 30 * HOUR)
        runner = bus.runner(schedules=[schedule])
        runner.subscribe("clock", clock, types=["tick"])
        async with runner:
            book = runner.schedules

            async def over() -> bool:
                view = await book.one("pulse")
                return view.tick is not None and view.tick > datetime.now(UTC)

            await eventually(over)
            await eventually(lambda: len(clock.times) == published)
            view = await book.one("pulse")
            await eventually(lambda: runner._tally.schedules_missed.get("pulse", 0) == missed)
        assert view.missed == missed
        assert len(await bus.database.rows(occurrences)) == published
        if published:
            assert max(clock.times) + HOUR == view.tick


class TestOverlap(BusTests):
    async def test_queue_waits_for_the_end_of_the_last_one(self, bus: Bus) -> None:
        gate = Gate()
        runner = bus.runner(schedules=[every(SECOND, overlap="queue")])
        runner.subscribe("slow", gate, types=["tick"])
        async with runner:
            await eventually(lambda: len(gate.seen) == 1)
            first = datetime.fromisoformat(gate.seen[0][0].removeprefix("pulse/"))
            await eventually(lambda: datetime.now(UTC) > first + 3 * SECOND)
            assert await _recorded(bus, 1)
            gate.opened.set()
            await eventually(lambda: len(gate.seen) >= 4)
        ticks = [datetime.fromisoformat(id.removeprefix("pulse/")) for id in gate.ids]
        assert gaps(ticks) == {SECOND}, "what came meanwhile is not lost"

    async def test_skip_leaves_out_what_comes_meanwhile(self, bus: Bus) -> None:
        gate = Gate()
        runner = bus.runner(schedules=[every(SECOND, overlap="skip", catch_up="all")])
        runner.subscribe("slow", gate, types=["tick"])
        async with runner:
            await eventually(lambda: len(gate.seen) == 1)

            async def skipped() -> bool:
                return (await runner.schedules.one("pulse")).skipped >= 2

            await eventually(skipped)
            assert await _recorded(bus, 1)
            gate.opened.set()
            await eventually(lambda: len(gate.seen) >= 2)
            view = await runner.schedules.one("pulse")
        first, second = [datetime.fromisoformat(id.removeprefix("pulse/")) for id in gate.ids[:2]]
        assert second - first >= 3 * SECOND
        assert view.missed == 0


class TestByHand(BusTests):
    async def test_what_another_process_puts_begins_without_a_restart(self, bus: Bus) -> None:
        clock = Clock()
        runner = bus.runner()
        runner.subscribe("clock", clock, types=["tick"])
        config = load_config(bus.write())
        async with runner:
            async with open_operations(config) as operations:
                assert await operations.schedules.put(every(SECOND, "mine"))
                assert not await operations.schedules.put(every(SECOND, "mine"))
            await eventually(lambda: len(clock.times) >= 2)
            async with open_operations(config) as operations:
                assert await operations.schedules.set_paused("mine", True, "me")
            count = len(await bus.database.rows(events))
            async with open_operations(config) as operations:
                receipt = await operations.schedules.run("mine")
            await eventually(lambda: receipt.id in clock.ids)
            assert len(await bus.database.rows(events)) == count + 1, "it is paused"
            async with open_operations(config) as operations:
                assert await operations.schedules.set_paused("mine", False)
            await eventually(lambda: _recorded(bus, count + 3))
            async with open_operations(config) as operations:
                await operations.schedules.remove("mine")
                with pytest.raises(NotFound, match="no schedule 'mine'; there are: none"):
                    await operations.schedules.run("mine")

    async def test_one_of_the_file_is_not_removed(self, bus: Bus) -> None:
        async with bus.runner(schedules=[every(HOUR)]) as runner:
            with pytest.raises(StateConflict, match=r"pulse is in the file, .*runner schedules pause pulse"):
                await runner.schedules.remove("pulse")
            with pytest.raises(StateConflict, match="change it there"):
                await runner.schedules.put(every(SECOND))
        async with bus.runner() as runner:
            with pytest.raises(StateConflict, match="in no file any more"):
                await runner.schedules.run("pulse")
            await runner.schedules.remove("pulse")

    async def test_the_next_times_of_one_that_is_paused(self, bus: Bus) -> None:
        async with bus.runner(schedules=[every(HOUR)]) as runner:
            await runner.schedules.set_paused("pulse", True)
            ticks = await runner.schedules.upcoming("pulse", 3)
        assert gaps(ticks) == {HOUR}
        assert ticks[0] > datetime.now(UTC) - HOUR


class TestFiles(BusTests):
    async def test_old_and_new_side_by_side_publish_each_tick_once(self, bus: Bus) -> None:
        """The table decides, and the last one to start wrote it: neither its times nor its events are mixed."""
        old, new = every(SECOND, catch_up="all"), every(2 * SECOND, catch_up="all")
        async with bus.runner(schedules=[old, every(SECOND, "gone", catch_up="all")]):
            await eventually(lambda: _recorded(bus, 4))
            async with bus.runner(schedules=[new]):
                changed = await bus.database.open().schedules.now()
                await eventually(lambda: _ticks_after(bus, changed, 3))
        rows = await bus.database.rows(events)
        later = sorted(row["time"] for row in rows if row["time"] > changed)
        assert gaps(later) == {2 * SECOND}
        assert {row["source"] for row in rows if row["time"] > changed} == {"/schedules/pulse"}
        assert len({row["id"] for row in rows}) == len(rows)


async def _recorded(bus: Bus, count: int) -> bool:
    return len(await bus.database.rows(events)) >= count


async def _ticks_after(bus: Bus, moment: datetime, count: int) -> bool:
    times = [row["time"] for row in await bus.database.rows(events)]
    return sum(1 for time in times if time > moment) >= count
