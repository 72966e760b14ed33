"""The contract of `WorkQueue` as far as rates go."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from runner.delivery import DeliveryState
from runner.policies.rate import Rate
from runner.storage.contract.claims import RegulatedRequest
from runner.storage.tables import paces

from .storage_contract import LEASE, Database, Store, StoreTests, record, soon, taken, wait

HOURLY = Rate.parse("60/h")
BURST = Rate.parse("100/s")  # ten at once


def asked(rate: Rate, quota: int = 100, *, subscription: int = 1, ordered: bool = False) -> RegulatedRequest:
    return RegulatedRequest(subscription, quota, ordered, rate)


class TestRate(StoreTests):
    async def test_permits_are_charged_and_the_next_one_is_told(self, store: Store, other: Store) -> None:
        first, _ = await wait(store, 1, 2)
        claim = await store.queue.claim_regulated(asked(HOURLY), LEASE)
        assert taken(claim) == [(first, 1)]
        for each in (store, other):
            claim = await each.queue.claim_regulated(asked(HOURLY), LEASE)
            assert (taken(claim), claim.paced) == ([], True)
            assert claim.next_due is not None
            assert timedelta(seconds=30) < claim.next_due <= timedelta(minutes=1)

    async def test_a_burst_is_given_at_once_and_no_more(self, store: Store, database: Database) -> None:
        await wait(store, 1, 50)
        claim = await store.queue.claim_regulated(asked(BURST), LEASE)
        assert len(claim.deliveries) == BURST.burst
        assert claim.next_due == BURST.wait(BURST.burst * BURST.interval)

    async def test_only_what_is_claimed_is_charged(self, store: Store) -> None:
        assert not (await store.queue.claim_regulated(asked(HOURLY), LEASE)).paced  # nothing was there to claim
        [seq] = await wait(store)
        claim = await store.queue.claim_regulated(asked(HOURLY, 0), LEASE)
        assert (taken(claim), claim.paced) == ([], False)
        assert taken(await store.queue.claim_regulated(asked(HOURLY), LEASE)) == [(seq, 1)]

    async def test_no_more_than_the_quota(self, store: Store) -> None:
        await wait(store, 1, 50)
        slow = Rate.parse("100/s")
        claim = await store.queue.claim_regulated(asked(slow, 3), LEASE)
        assert (len(claim.deliveries), claim.paced) == (3, False)

    async def test_a_permit_comes_back_with_time(self, store: Store) -> None:
        await wait(store, 1, 2)
        quick = Rate.parse("10/s")
        assert len((await store.queue.claim_regulated(asked(quick), LEASE)).deliveries) == 1

        async def claimed() -> bool:
            return len((await store.queue.claim_regulated(asked(quick), LEASE)).deliveries) == 1

        assert await soon(claimed)

    async def test_a_retry_costs_a_permit(self, store: Store) -> None:
        [seq] = await wait(store)
        claim = await store.queue.claim_regulated(asked(HOURLY), LEASE)
        await store.queue.settle_deliveries([record(seq, 1, DeliveryState.PENDING, claim.token)])
        claim = await store.queue.claim_regulated(asked(HOURLY), LEASE)
        assert (taken(claim), claim.paced) == ([], True)

    async def test_what_is_due_first_goes_first(self, store: Store) -> None:
        [later] = await wait(store)
        [sooner] = await wait(store, due_in=timedelta(seconds=-10))
        assert taken(await store.queue.claim_regulated(asked(HOURLY), LEASE)) == [(sooner, 1)]
        assert later

    async def test_what_is_not_due_is_not_claimed(self, store: Store) -> None:
        await wait(store, due_in=timedelta(hours=1))
        claim = await store.queue.claim_regulated(asked(HOURLY), LEASE)
        assert (taken(claim), claim.paced) == ([], False)
        assert claim.next_due is not None
        assert claim.next_due > timedelta(minutes=59)

    async def test_each_subscription_has_its_own(self, store: Store, database: Database) -> None:
        await wait(store, 1)
        await wait(store, 2)
        for subscription in (1, 2):
            claim = await store.queue.claim_regulated(asked(HOURLY, subscription=subscription), LEASE)
            assert len(claim.deliveries) == 1
        assert await database.count(paces) == [2]

    async def test_claimers_share_it(self, store: Store, other: Store) -> None:
        await wait(store, 1, 60)
        hourly = Rate.parse("36000/h")  # a permit each 100 ms, none to spare
        claims = await asyncio.gather(
            *[each.queue.claim_regulated(asked(hourly), LEASE) for each in (store, other) * 10]
        )
        elapsed = len([claim for claim in claims if claim.deliveries])
        found = [key for claim in claims for key in taken(claim)]
        assert len(found) == len(set(found)) == elapsed

    async def test_order_and_rate_together(self, store: Store) -> None:
        await wait(store, 1, 2)
        assert await store.queue.line_up(1, "type") == 2
        claim = await store.queue.claim_regulated(asked(BURST, ordered=True), LEASE)
        assert len(claim.deliveries) == 1
        claim = await store.queue.claim_regulated(asked(HOURLY, ordered=True), LEASE)
        assert taken(claim) == []
