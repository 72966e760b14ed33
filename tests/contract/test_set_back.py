"""The contract of the store when its clock is set back: nothing waits for the time to come again."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import BigInteger, literal, update

from runner.delivery import DeliveryState
from runner.policies.breaker import BreakerPolicy, Trip
from runner.policies.rate import Rate
from runner.storage.contract.claims import RegulatedRequest
from runner.storage.contract.registry import Health, Instance
from runner.storage.contract.settlements import Run, Settled
from runner.storage.expressions import After, Instant
from runner.storage.records import SqlRecords
from runner.storage.tables import metadata
from runner.subscription import Subscription

from .storage_contract import LEASE, Database, Store, StoreTests, leased, publish, record, settled, taken, wait

HOUR = timedelta(hours=1)
FIRST, SECOND = (Instance(name, "host", 1, "1") for name in ("first", "second"))
SLOW = timedelta(minutes=5)


async def set_clock_back(database: Database, by: timedelta = HOUR) -> None:
    """Move everything on record ahead, which is the same to all who look."""
    for table in metadata.sorted_tables:
        for column in table.columns:
            if isinstance(column.type, Instant):
                later = After(column, literal(by // timedelta(microseconds=1), BigInteger))
                await database.execute(update(table).where(column.is_not(None)).values({column.key: later}))


async def beat(store: Store, instance: Instance = FIRST) -> timedelta:
    return (await store.registry.beat(instance, Health())).back


class TestRate(StoreTests):
    @pytest.mark.parametrize("rate", ["60/h", "100/s"])
    async def test_a_pace_further_ahead_than_it_can_be_counts_for_nothing(
        self, store: Store, database: Database, rate: str
    ) -> None:
        asked = RegulatedRequest(1, 100, ordered=False, rate=Rate.parse(rate))
        await wait(store, 1, 30)
        assert (await store.queue.claim_regulated(asked, LEASE)).deliveries
        assert (await store.queue.claim_regulated(asked, LEASE)).paced
        await set_clock_back(database)
        await wait(store, 1, 30)
        claim = await store.queue.claim_regulated(asked, LEASE)
        assert len(claim.deliveries) == asked.rate.burst  # type: ignore[union-attr]  # it has one
        assert (await store.queue.claim_regulated(asked, LEASE)).paced  # and counts again from then on

    async def test_what_another_rate_left_behind_counts_for_nothing(self, store: Store) -> None:
        await wait(store, 1, 2)
        for rate in ("1/h", "100/s"):
            asked = RegulatedRequest(1, 100, ordered=False, rate=Rate.parse(rate))
            assert len((await store.queue.claim_regulated(asked, LEASE)).deliveries) == 1


class TestBreaker(StoreTests):
    async def test_it_stays_open_no_longer_than_its_policy_says(self, store: Store, database: Database) -> None:
        policy = BreakerPolicy(pause=timedelta(seconds=10))
        await store.registry.put_subscriptions([Subscription(name="crm", sink="log", breaker=policy)], "file")
        _, [registered] = await store.registry.subscriptions()
        assert await store.registry.set_breaker(registered.id, Trip(2, timedelta(seconds=20)), known=0)
        await set_clock_back(database)
        _, [registered] = await store.registry.subscriptions()
        assert registered.breaker == Trip(2, timedelta(seconds=20))


class TestBeat(StoreTests):
    async def test_a_clock_that_goes_on_is_not_set_back(self, store: Store, database: Database) -> None:
        await publish(store, 1)
        for instance in (FIRST, SECOND, FIRST):
            assert await beat(store, instance) == timedelta(0)
        await set_clock_back(database, timedelta(seconds=20))
        assert await beat(store) == timedelta(0)

    async def test_it_is_told_once(self, store: Store, database: Database) -> None:
        await beat(store, FIRST)
        await beat(store, SECOND)
        await publish(store, 1)
        await set_clock_back(database)
        assert HOUR - timedelta(minutes=1) < await beat(store, FIRST) <= HOUR
        assert await beat(store, SECOND) == timedelta(0)
        assert await beat(store, FIRST) == timedelta(0)

    async def test_nobody_is_alive_because_of_a_beat_to_come(self, store: Store, database: Database) -> None:
        records = SqlRecords(database.engine)
        await beat(store)
        assert [view.alive for view in await records.instances()] == [True]
        await set_clock_back(database)
        assert [view.alive for view in await records.instances()] == [False]

    async def test_leases_of_the_dead_end_in_time(self, store: Store, other: Store, database: Database) -> None:
        """What was claimed, and what was running, by a process that died before the clock was set back."""
        await beat(store, FIRST)
        await publish(store, 3)
        claim = await store.queue.claim(2, SLOW)
        running = record(claim.works[0].seq, 1, DeliveryState.LEASED, claim.token, due_in=SLOW)
        await store.queue.settle(Settled(claim.token, claim.works[:1], [Run((), 1)], [running]))
        await set_clock_back(database)
        assert await beat(other, SECOND) > timedelta(0)
        left = await other.queue.claim(1, LEASE)  # of what is queued, one was free
        assert len(left.works) == 1
        outlook = await other.queue.claim(1, LEASE)
        assert outlook.again_in is not None
        assert outlook.again_in <= SLOW + timedelta(seconds=1)
        claimed = await other.queue.claim_deliveries({1: 10}, LEASE)
        assert taken(claimed) == []
        assert claimed.next_due is not None
        assert claimed.next_due <= SLOW + timedelta(seconds=1)

    async def test_what_was_leased_since_stays_with_its_holder(
        self, store: Store, other: Store, database: Database
    ) -> None:
        await beat(store, FIRST)
        await set_clock_back(database)
        await publish(store, 1)
        claim = await store.queue.claim(1, LEASE)
        assert await beat(other, SECOND) > timedelta(0)
        assert not (await other.queue.claim(1, LEASE)).works
        assert await store.queue.settle(settled(claim)) == 1

    async def test_what_is_renewed_stays_with_its_holder(self, store: Store, other: Store, database: Database) -> None:
        await beat(store, FIRST)
        [seq] = await publish(store, 1)
        claim = await store.queue.claim(1, LEASE)
        running = record(seq, 1, DeliveryState.LEASED, claim.token, due_in=LEASE)
        await store.queue.settle(Settled(claim.token, claim.works, [Run((), 1)], [running]))
        await set_clock_back(database)
        assert await store.queue.renew([leased(seq, 1, claim.token)], LEASE)
        assert await beat(other, SECOND) > timedelta(0)
        assert taken(await other.queue.claim_deliveries({1: 10}, LEASE)) == []

    @pytest.mark.parametrize("beats", [True, False])
    async def test_a_retry_waits_as_long_as_it_was_to(self, store: Store, database: Database, beats: bool) -> None:
        """Also where the last process had signed off: then the last event tells."""
        if beats:
            await beat(store, FIRST)
        await wait(store, 1, due_in=SLOW)
        await set_clock_back(database)
        assert await beat(store, SECOND) > timedelta(0)
        claim = await store.queue.claim_deliveries({1: 10}, LEASE)
        assert claim.next_due is not None
        assert SLOW - timedelta(minutes=1) < claim.next_due <= SLOW

    async def test_a_deferral_waits_as_long_as_it_was_to(self, store: Store, database: Database) -> None:
        await beat(store, FIRST)
        [seq] = await wait(store)
        claim = await store.queue.claim_deliveries({1: 1}, LEASE)
        deferred = replace(record(seq, 1, DeliveryState.LEASED, claim.token, due_in=SLOW), deferred=True)
        assert await store.queue.settle_deliveries([deferred])
        await set_clock_back(database)
        await beat(store, FIRST)
        claim = await store.queue.claim_deliveries({1: 1}, LEASE)
        assert claim.next_due is not None
        assert SLOW - timedelta(minutes=1) < claim.next_due <= SLOW

    async def test_what_waits_since_then_is_left_alone(self, store: Store, database: Database) -> None:
        await beat(store, FIRST)
        await set_clock_back(database)
        await wait(store, 1, due_in=2 * HOUR)
        assert await beat(store, FIRST) > timedelta(0)
        claim = await store.queue.claim_deliveries({1: 10}, LEASE)
        assert claim.next_due is not None
        assert claim.next_due > HOUR
