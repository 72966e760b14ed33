"""The contract of the counters by the minute."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import insert, select

from runner.service.histogram import Histogram
from runner.storage.contract.registry import Health, Instance
from runner.storage.contract.throughput import BUS, KEPT, Counted, Throughput
from runner.storage.expressions import Now
from runner.storage.tables import throughput

from .storage_contract import Database, Store, StoreTests

ONE, TWO = (Instance(name, "host", 1, "1") for name in ("one", "two"))
MINUTE = timedelta(minutes=1)


async def this_minute(store: Store) -> datetime:
    return (await store.registry.beat(ONE, Health())).now.replace(second=0, microsecond=0)


def counted(minute: datetime, delivered: int, holder: int = 1, subscription_id: int = 7) -> Counted:
    return Counted(
        minute=minute,
        subscription_id=subscription_id,
        holder=holder,
        delivered=delivered,
        latency={3: delivered} if delivered else {},
    )


class TestBeat(StoreTests):
    async def test_it_says_what_time_it_is(self, store: Store, database: Database) -> None:
        said = (await store.registry.beat(ONE, Health())).now
        async with database.engine.begin() as connection:
            now = await connection.scalar(select(Now()))
        assert now is not None
        assert timedelta(0) <= now - said < MINUTE

    async def test_without_counts_none_are_written(self, store: Store, database: Database) -> None:
        await store.registry.beat(ONE, Health(), [])
        assert await database.rows(throughput) == []
        assert await store.throughput.read(5) == Throughput()

    async def test_counts_of_two_instances_add_up(self, store: Store) -> None:
        minute = await this_minute(store)
        bus = [Counted(minute=minute, subscription_id=BUS, holder=holder, published=holder) for holder in (1, 2)]
        first = Counted(minute=minute, subscription_id=7, holder=1, delivered=3, failed=2, dead=1, latency={0: 1, 4: 2})
        second = Counted(minute=minute, subscription_id=7, holder=2, delivered=2, latency={4: 1, 89: 1})
        await store.registry.beat(ONE, Health(), [bus[0], first, counted(minute - MINUTE, 4)])
        await store.registry.beat(TWO, Health(), [bus[1], second, counted(minute, 9, 2, subscription_id=8)])
        seen = await store.throughput.read(5)
        assert seen.of(BUS).published == 3
        flow = seen.of(7)
        assert (flow.delivered, flow.failed, flow.dead) == (9, 2, 1)
        assert flow.latency.counts == {0: 1, 3: 4, 4: 3, 89: 1}
        assert flow.success_ratio == 0.75
        assert seen.of(8).delivered == 9
        assert 60 <= seen.seconds < 180
        assert seen.rate(60) == 60 / seen.seconds

    async def test_what_is_said_again_or_late_counts_nothing_twice(self, store: Store) -> None:
        minute = await this_minute(store)
        for delivered in (2, 5, 5, 3):
            await store.registry.beat(ONE, Health(), [counted(minute, delivered)])
        flow = (await store.throughput.read(5)).of(7)
        assert (flow.delivered, flow.latency.counts) == (5, {3: 5})

    async def test_more_than_one_statement_takes(self, store: Store) -> None:
        minute = await this_minute(store)
        await store.registry.beat(ONE, Health(), [counted(minute, 1, subscription_id=id) for id in range(1, 1502)])
        assert len((await store.throughput.read(5)).flows) == 1501


class TestRead(StoreTests):
    async def test_only_the_last_minutes(self, store: Store) -> None:
        minute = await this_minute(store)
        ages = (0, 1, 2, 3, 59, 60 * 24 * 6)
        await store.registry.beat(ONE, Health(), [counted(minute - age * MINUTE, 1 + n) for n, age in enumerate(ages)])
        # The minute may have become the one before since.
        assert (await store.throughput.read(2)).of(7).delivered in (1 + 2 + 3, 1 + 2)
        assert (await store.throughput.read(61)).of(7).delivered == 1 + 2 + 3 + 4 + 5
        assert (await store.throughput.read(60 * 24 * 7)).of(7).delivered == 21

    async def test_what_is_of_a_time_to_come_does_not_count(self, store: Store) -> None:
        minute = await this_minute(store)
        await store.registry.beat(ONE, Health(), [counted(minute + 60 * MINUTE, 1)])
        assert await store.throughput.read(5) == Throughput()

    @pytest.mark.parametrize("seed", range(3))
    async def test_quantiles_are_those_of_all_instances_but_for_nine_percent(self, store: Store, seed: int) -> None:
        chosen, minute = random.Random(seed), await this_minute(store)
        everything: list[float] = []
        for holder in range(4):
            for age in range(3):
                some = [chosen.lognormvariate(-2.0 + holder, 1.5) + 0.001 for _ in range(200)]
                everything += some
                histogram = Histogram()
                for seconds in some:
                    histogram.add(seconds)
                row = Counted(
                    minute=minute - age * MINUTE,
                    subscription_id=7,
                    holder=holder,
                    latency=histogram.counts,
                    delivered=200,
                )
                await store.registry.beat(ONE, Health(), [row])
        everything.sort()
        latency = (await store.throughput.read(5)).of(7).latency
        assert latency.count == len(everything)
        for share in (0.5, 0.95, 0.99):
            exact = everything[round(share * len(everything)) - 1]
            assert latency.quantile(share) == pytest.approx(exact, rel=0.091)


class TestSeries(StoreTests):
    async def test_steps_of_all_instances_in_order(self, store: Store) -> None:
        minute, step = await this_minute(store), 5 * MINUTE
        begin = minute - (minute - datetime(1970, 1, 1, tzinfo=UTC)) % step
        for holder, backlog in ((1, 8), (2, 30)):
            rows = [counted(begin - age * MINUTE, age, holder) for age in (1, 5, 6, 60 * 24)]
            waiting = Counted(minute=begin - MINUTE, subscription_id=BUS, holder=holder, backlog=backlog)
            await store.registry.beat(ONE, Health(), [*rows, waiting])
        series = await store.throughput.series(7, timedelta(hours=6), step)
        assert timedelta(0) <= series.now - minute < 2 * MINUTE
        seen = [((begin - each.at) // MINUTE, each.flow.delivered, each.flow.latency.counts) for each in series.points]
        assert seen == [(10, 12, {3: 12}), (5, 12, {3: 12})]
        assert [each.backlog for each in series.points] == [None, None]
        [point] = (await store.throughput.series(BUS, timedelta(hours=6), step)).points
        assert (point.at, point.backlog) == (begin - step, 30)

    async def test_without_counts_there_is_the_time(self, store: Store) -> None:
        series = await store.throughput.series(BUS, 15 * MINUTE, MINUTE)
        assert series.points == []
        assert timedelta(0) <= series.now - await this_minute(store) < 2 * MINUTE

    async def test_it_reaches_back_as_far_as_is_asked(self, store: Store) -> None:
        minute = await this_minute(store)
        await store.registry.beat(ONE, Health(), [counted(minute - age * MINUTE, 1) for age in range(20)])
        series = await store.throughput.series(7, 15 * MINUTE, MINUTE)
        assert len(series.points) in (15, 16)  # the minute may have become the one before since
        assert series.points == sorted(series.points, key=lambda each: each.at)


class TestRollUp(StoreTests):
    @staticmethod
    async def seen(store: Store, id: int, length: timedelta, step: timedelta) -> list[object]:
        points = (await store.throughput.series(id, length, step)).points
        return [
            (each.at, each.backlog, each.flow.published, each.flow.delivered, sorted(each.flow.latency.counts.items()))
            for each in points
        ]

    async def test_old_minutes_become_coarser_and_nothing_is_lost_or_counted_twice(
        self, store: Store, other: Store, database: Database
    ) -> None:
        now, rows = await this_minute(store), list[Counted]()
        for age in (*range(0, 20), *range(58, 130), *range(410, 560, 3)):
            for holder, id in ((1, 7), (2, 7), (2, 8)):
                rows.append(counted(now - age * MINUTE, 1 + age % 5, holder, id))
        rows.append(Counted(minute=now - 90 * MINUTE, subscription_id=BUS, holder=1, published=4, backlog=9))
        rows.append(Counted(minute=now - 90 * MINUTE, subscription_id=BUS, holder=2, published=5, backlog=30))
        await store.registry.beat(ONE, Health(), rows)
        steps = [(timedelta(hours=1), MINUTE), (timedelta(hours=6), 5 * MINUTE), (KEPT, 60 * MINUTE)]
        before = [[await self.seen(store, id, *step) for step in steps] for id in (BUS, 7, 8)]

        while max(await asyncio.gather(*[each.throughput.roll_up(40) for each in (store, other)])):
            pass

        after = [[await self.seen(store, id, *step) for step in steps] for id in (BUS, 7, 8)]
        assert after == before or await this_minute(store) != now  # a step may have passed meanwhile
        kept = await database.rows(throughput)
        ages = {
            holder: [(now - each["minute"]) // MINUTE for each in kept if each["holder"] == holder]
            for holder in (-5, -60)
        }
        assert len(kept) < len(rows) / 2
        assert all(each["holder"] < 0 for each in kept if each["minute"] < now - 66 * MINUTE)
        assert min(ages[-5]) > 60
        assert max(ages[-5]) < 7 * 60 + 60
        assert min(ages[-60]) > 7 * 60

    async def test_what_comes_late_is_added(self, store: Store) -> None:
        minute = await this_minute(store) - 100 * MINUTE
        for holder in (1, 2, 3):
            await store.registry.beat(ONE, Health(), [counted(minute, holder, holder)])
            while await store.throughput.roll_up(100):
                pass
        assert (await store.throughput.read(200)).of(7).delivered == 6
        assert (await store.throughput.read(200)).of(7).latency.counts == {3: 6}

    async def test_it_takes_no_more_than_it_is_told(self, store: Store, database: Database) -> None:
        minute = await this_minute(store) - 100 * MINUTE
        await store.registry.beat(ONE, Health(), [counted(minute, 1, 1, id) for id in range(1, 301)])
        taken = await store.throughput.roll_up(50)
        assert 50 <= taken < 300
        assert sum(each["holder"] < 0 for each in await database.rows(throughput)) == taken


class TestPrune(StoreTests):
    async def test_the_oldest_go_by_whole_minutes(self, store: Store, database: Database) -> None:
        now = datetime.now(UTC).replace(second=0, microsecond=0)
        old = [now - KEPT - number * MINUTE for number in (1, 2, 3, 4)]
        young = [now, now - KEPT + 5 * MINUTE]
        rows = [
            {
                "minute": minute,
                "subscription_id": id,
                "holder": 1,
                "published": 0,
                "delivered": 1,
                "failed": 0,
                "dead": 0,
            }
            for minute in (*old, *young)
            for id in (1, 2, 3)
        ]
        async with database.engine.begin() as connection:
            await connection.execute(insert(throughput), [row | {"latency": {}} for row in rows])

        async def left() -> set[datetime]:
            return {row["minute"] for row in await database.rows(throughput)}

        assert await store.throughput.prune(KEPT, 2) == 3
        assert await left() == {*old[:3], *young}
        assert await store.throughput.prune(KEPT, 4) == 6
        assert await left() == {old[0], *young}
        assert await store.throughput.prune(KEPT, 100) == 3
        assert await store.throughput.prune(KEPT, 100) == 0
        assert await left() == set(young)
