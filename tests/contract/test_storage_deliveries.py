"""The contract of `WorkQueue` as far as single deliveries go: those that wait, run long, or failed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any

import pytest
from sqlalchemy import update

from runner.delivery import DeliveryState
from runner.errors import StorageError
from runner.storage.contract.settlements import AttemptRecord, Death, DeliveryRecord, Run, Settled
from runner.storage.tables import attempts, deliveries

from .storage_contract import (
    LEASE,
    SHORT,
    Database,
    Store,
    StoreTests,
    claim_delivery_soon,
    claim_soon,
    leased,
    publish,
    record,
    taken,
    wait,
)

HOUR = timedelta(hours=1)


class TestClaimDeliveries(StoreTests):
    async def test_nothing_waits_in_a_new_store(self, store: Store) -> None:
        claim = await store.queue.claim_deliveries({1: 10, 2: 0}, LEASE)
        assert not claim.deliveries
        assert claim.next_due is None

    async def test_no_more_than_the_quota(self, store: Store) -> None:
        seqs = await wait(store, 1, 10)
        first = await store.queue.claim_deliveries({1: 4}, LEASE)
        second = await store.queue.claim_deliveries({1: 100}, LEASE)
        assert len(first.deliveries) == 4
        assert sorted(taken(first) + taken(second)) == [(seq, 1) for seq in seqs]

    async def test_without_room_or_without_being_served_nothing_is_touched(
        self, store: Store, database: Database
    ) -> None:
        await wait(store, 1, 2)
        await wait(store, 2, 2)
        before = await database.rows(deliveries)
        assert not (await store.queue.claim_deliveries({1: 0, 3: 5}, LEASE)).deliveries
        assert not (await store.queue.claim_deliveries({}, LEASE)).deliveries
        assert await database.rows(deliveries) == before

    async def test_a_backlog_of_one_subscription_does_not_hide_another(self, store: Store) -> None:
        await wait(store, 1, 50)
        [seq] = await wait(store, 2, 1)
        claim = await store.queue.claim_deliveries({1: 5, 2: 5}, LEASE)
        assert (seq, 2) in taken(claim)
        assert len(claim.deliveries) == 6

    async def test_what_has_waited_longest_comes_first(self, store: Store) -> None:
        [later] = await wait(store, due_in=-timedelta(minutes=1))
        [sooner] = await wait(store, due_in=-HOUR)
        assert taken(await store.queue.claim_deliveries({1: 1}, LEASE)) == [(sooner, 1)]
        assert taken(await store.queue.claim_deliveries({1: 1}, LEASE)) == [(later, 1)]

    async def test_what_is_not_due_stays_and_next_due_says_until_when(self, store: Store) -> None:
        await wait(store, 1, due_in=HOUR)
        await wait(store, 2, due_in=2 * HOUR)
        await wait(store, 3, due_in=timedelta(minutes=1))
        for quotas, expected in (({1: 5, 2: 5}, HOUR), ({2: 5}, 2 * HOUR), ({1: 0, 2: 5}, HOUR), ({4: 5}, None)):
            claim = await store.queue.claim_deliveries(quotas, LEASE)
            assert not claim.deliveries
            if expected is None:
                assert claim.next_due is None
            else:
                assert claim.next_due is not None
                assert expected - timedelta(seconds=30) < claim.next_due <= expected

    async def test_what_has_fallen_due_is_taken(self, store: Store) -> None:
        began = monotonic()
        [seq] = await wait(store, due_in=SHORT)
        assert taken(await claim_delivery_soon(store)) == [(seq, 1)]
        assert monotonic() - began >= 0.99 * SHORT.total_seconds()

    async def test_two_claimers_never_get_the_same(self, store: Store, other: Store) -> None:
        seqs = await wait(store, 1, 60)
        found: list[tuple[int, int]] = []
        while len(found) < 60:
            both = [store.queue.claim_deliveries({1: 7}, LEASE), other.queue.claim_deliveries({1: 7}, LEASE)]
            claims = await asyncio.gather(*both)
            assert any(claim.deliveries for claim in claims)
            found += [key for claim in claims for key in taken(claim)]
        assert sorted(found) == [(seq, 1) for seq in seqs]

    async def test_the_event_comes_with_the_delivery(self, store: Store) -> None:
        [seq] = await wait(store)
        [delivery] = (await store.queue.claim_deliveries({1: 1}, LEASE)).deliveries
        assert (delivery.seq, delivery.subscription_id) == (seq, 1)
        assert (delivery.event.type, delivery.event.json()) == ("order.created", {"number": 0})

    async def test_a_claim_counts_as_an_attempt_and_a_lost_one_as_suspect(self, store: Store) -> None:
        await wait(store)
        [first] = (await claim_delivery_soon(store, lease=SHORT)).deliveries
        [second] = (await claim_delivery_soon(store, lease=SHORT)).deliveries
        [third] = (await claim_delivery_soon(store)).deliveries
        assert [first.attempt, second.attempt, third.attempt] == [2, 3, 4]
        assert [first.suspect, second.suspect, third.suspect] == [False, True, True]

    async def test_the_age_is_since_the_first_attempt_of_this_series_began(
        self, store: Store, database: Database
    ) -> None:
        async def tried(number: int, took: timedelta) -> None:
            claim = await store.queue.claim_deliveries({1: 1}, LEASE)
            again = record(seq, 1, DeliveryState.PENDING, claim.token, attempts=number)
            assert await store.queue.settle_deliveries([again], [AttemptRecord(seq, 1, number, took, "no")])

        async def age() -> timedelta:
            [claimed] = (await store.queue.claim_deliveries({1: 1}, timedelta(0))).deliveries
            return claimed.age

        [seq] = await wait(store)
        await database.execute(update(deliveries).values(attempts=0))
        assert await age() == timedelta(0)
        await tried(1, 2 * HOUR)
        await tried(2, timedelta(seconds=1))
        assert 2 * HOUR <= await age() < 2 * HOUR + timedelta(minutes=1)
        # A retry by hand begins anew, and its first attempt is nobody's second.
        await database.execute(update(deliveries).values(attempts=0, state="pending"))
        assert await age() == timedelta(0)
        await tried(1, HOUR)
        assert HOUR <= await age() < HOUR + timedelta(minutes=1)

    async def test_a_retry_is_not_suspect(self, store: Store) -> None:
        [seq] = await wait(store)
        claim = await store.queue.claim_deliveries({1: 1}, LEASE)
        await store.queue.settle_deliveries([record(seq, 1, DeliveryState.PENDING, claim.token, attempts=2)])
        [again] = (await store.queue.claim_deliveries({1: 1}, LEASE)).deliveries
        assert (again.attempt, again.suspect) == (3, False)


class TestRunningOn(StoreTests):
    """A delivery that was still running when its event was settled (invariant 7)."""

    async def leave_running(self, store: Store, lease: timedelta) -> tuple[int, int]:
        [seq] = await publish(store, 1)
        claim = await store.queue.claim(1, LEASE)
        running = record(seq, 1, DeliveryState.LEASED, claim.token, due_in=lease)
        assert await store.queue.settle(Settled(claim.token, claim.works, [Run((2,), 1)], [running])) == 1
        return seq, claim.token

    async def test_invariant_7_it_settles_later_under_its_own_lease(self, store: Store, database: Database) -> None:
        seq, token = await self.leave_running(store, LEASE)
        assert not (await store.queue.claim_deliveries({1: 5}, LEASE)).deliveries
        assert list(await store.queue.settle_deliveries([record(seq, 1, DeliveryState.DELIVERED, token)])) == [(seq, 1)]
        assert [row["state"] for row in await database.rows(deliveries)] == ["delivered", "delivered"]

    async def test_when_its_holder_is_gone_another_takes_it(self, store: Store, other: Store) -> None:
        seq, token = await self.leave_running(store, SHORT)
        claim = await claim_delivery_soon(other)
        [delivery] = claim.deliveries
        assert (delivery.seq, delivery.attempt, delivery.suspect) == (seq, 2, True)
        assert not await store.queue.settle_deliveries([record(seq, 1, DeliveryState.DELIVERED, token)])

    async def test_invariant_7_what_could_not_start_is_free_for_any_instance(self, store: Store, other: Store) -> None:
        [seq] = await wait(store)
        assert taken(await other.queue.claim_deliveries({1: 1}, LEASE)) == [(seq, 1)]


class TestSettleDeliveries(StoreTests):
    async def test_success_is_recorded(self, store: Store, database: Database) -> None:
        [seq] = await wait(store, error="at first")
        claim = await store.queue.claim_deliveries({1: 1}, LEASE)
        one = record(seq, 1, DeliveryState.DELIVERED, claim.token, attempts=2)
        last = AttemptRecord(seq, 1, 2, timedelta(milliseconds=3), status=204)
        assert list(await store.queue.settle_deliveries([one], [last])) == [(seq, 1)]
        [row] = await database.rows(deliveries)
        assert (row["state"], row["attempts"], row["last_error"]) == ("delivered", 2, None)
        assert (row["due_at"], row["lease_token"]) == (None, None)
        [attempt] = await database.rows(attempts)
        assert (attempt["number"], attempt["status"], attempt["error"]) == (2, 204, None)

    async def test_a_retry_waits(self, store: Store, database: Database) -> None:
        [seq] = await wait(store)
        claim = await store.queue.claim_deliveries({1: 1}, LEASE)
        again = record(seq, 1, DeliveryState.PENDING, claim.token, attempts=2, due_in=HOUR, error="503")
        assert list(await store.queue.settle_deliveries([again])) == [(seq, 1)]
        [row] = await database.rows(deliveries)
        assert (row["state"], row["attempts"], row["last_error"], row["lease_token"]) == ("pending", 2, "503", None)
        claim = await store.queue.claim_deliveries({1: 1}, LEASE)
        assert not claim.deliveries
        assert claim.next_due is not None
        assert HOUR - timedelta(seconds=30) < claim.next_due <= HOUR

    async def test_only_what_is_still_held_is_written_and_named(
        self, store: Store, other: Store, database: Database
    ) -> None:
        mine, lost = await wait(store, 1, 2)
        first = await store.queue.claim_deliveries({1: 2}, LEASE)
        foreign = record(lost, 1, DeliveryState.DEAD, first.token + 1, error="foreign")
        own = record(mine, 1, DeliveryState.DEAD, first.token, error="own")
        tried = [AttemptRecord(seq, 1, 2, timedelta(0), "no") for seq in (mine, lost)]
        assert list(await other.queue.settle_deliveries([foreign, own], tried)) == [(mine, 1)]
        rows = {row["event_seq"]: row for row in await database.rows(deliveries)}
        assert (rows[mine]["state"], rows[lost]["state"]) == ("dead", "leased")
        assert rows[lost]["last_error"] is None
        assert [row["event_seq"] for row in await database.rows(attempts)] == [mine]

    async def test_settling_twice_writes_once(self, store: Store, database: Database) -> None:
        [seq] = await wait(store)
        claim = await store.queue.claim_deliveries({1: 1}, LEASE)
        dead = record(seq, 1, DeliveryState.DEAD, claim.token)
        tried = AttemptRecord(seq, 1, 2, timedelta(0), "no")
        assert list(await store.queue.settle_deliveries([dead], [tried])) == [(seq, 1)]
        assert not await store.queue.settle_deliveries([dead], [tried])
        assert await database.count(attempts) == [1]

    @pytest.mark.parametrize("change", [{"lease_token": None}, {"due_at": None}], ids=str)
    async def test_a_cancellation_during_the_lease_beats_the_late_answer(
        self, store: Store, database: Database, change: dict[str, None]
    ) -> None:
        [seq] = await wait(store)
        claim = await store.queue.claim_deliveries({1: 1}, LEASE)
        await database.execute(update(deliveries).values(state="cancelled", **change))
        for state in (DeliveryState.DELIVERED, DeliveryState.PENDING, DeliveryState.DEAD):
            assert not await store.queue.settle_deliveries([record(seq, 1, state, claim.token)])
        assert not await store.queue.renew([leased(seq, 1, claim.token)], LEASE)
        assert [row["state"] for row in await database.rows(deliveries)] == ["cancelled"]

    async def test_nothing_to_settle_is_no_error(self, store: Store) -> None:
        assert not await store.queue.settle_deliveries([])
        assert not await store.queue.renew([], LEASE)


class TestDeadLetters(StoreTests):
    """What dies for subscription 1 is given to 2 by the same write."""

    async def die(self, store: Store, seq: int, **change: Any) -> tuple[DeliveryRecord, Sequence[tuple[int, int]]]:
        claim = await store.queue.claim_deliveries({1: 1}, LEASE)
        assert taken(claim) == [(seq, 1)]
        dead = record(seq, 1, DeliveryState.DEAD, claim.token, attempts=7, error="410 Gone")
        dead = replace(dead, dead_letter=2, **change)
        return dead, await store.queue.settle_deliveries([dead])

    async def test_a_death_in_a_dispatch(self, store: Store, database: Database) -> None:
        seqs = await publish(store, 3)
        claim = await store.queue.claim(3, LEASE)
        dead = [record(seq, 1, DeliveryState.DEAD, claim.token, error="no") for seq in seqs]
        letters = [replace(dead[0], dead_letter=2), dead[1], replace(dead[2], dead_letter=3)]
        assert await store.queue.settle(Settled(claim.token, claim.works, [Run((), 3)], letters)) == 3
        rows = await database.rows(deliveries)
        assert [(row["event_seq"], row["subscription_id"], row["state"], row["attempts"]) for row in rows] == [
            (seqs[0], 1, "dead", 1),
            (seqs[0], 2, "pending", 0),
            (seqs[1], 1, "dead", 1),
            (seqs[2], 1, "dead", 1),
            (seqs[2], 3, "pending", 0),
        ]
        claimed = await store.queue.claim_deliveries({2: 5, 3: 5}, LEASE)
        assert taken(claimed) == [(seqs[0], 2), (seqs[2], 3)]
        assert {each.attempt for each in claimed.deliveries} == {1}

    async def test_a_claim_that_was_lost_gives_nothing(self, store: Store, other: Store, database: Database) -> None:
        await publish(store, 1)
        lost = await store.queue.claim(1, SHORT)
        await claim_soon(other)
        dead = replace(record(lost.works[0].seq, 1, DeliveryState.DEAD, lost.token), dead_letter=2)
        assert await store.queue.settle(Settled(lost.token, lost.works, [Run((), 1)], [dead])) == 0
        assert await database.count(deliveries) == [0]

    async def test_the_death_of_a_single_delivery(self, store: Store) -> None:
        [seq] = await wait(store)
        dead, written = await self.die(store, seq)
        assert list(written) == [(seq, 1)]
        assert taken(await store.queue.claim_deliveries({2: 5}, LEASE)) == [(seq, 2)]
        assert not await store.queue.settle_deliveries([dead])  # and what comes late gives nothing
        assert not (await store.queue.claim_deliveries({2: 5}, LEASE)).deliveries

    async def test_a_death_that_is_not_ours_to_write_gives_nothing(self, store: Store, database: Database) -> None:
        [seq] = await wait(store)
        _, written = await self.die(store, seq, token=1)
        assert not written
        assert await database.count(deliveries) == [1]

    @pytest.mark.parametrize("end", [DeliveryState.DELIVERED, DeliveryState.DEAD, None], ids=str)
    async def test_what_is_retried_by_hand_and_dies_again_is_given_again(
        self, store: Store, database: Database, end: DeliveryState | None
    ) -> None:
        [seq] = await wait(store)
        await self.die(store, seq)
        first = await store.queue.claim_deliveries({2: 1}, LEASE)
        if end is not None:  # else it still runs
            await store.queue.settle_deliveries([record(seq, 2, end, first.token, attempts=4, error="no")])
        again = update(deliveries).where(deliveries.c.subscription_id == 1)
        await database.execute(again.values(state="pending", due_at=datetime(2020, 1, 1, tzinfo=UTC), attempts=0))
        await self.die(store, seq)
        [second] = (await store.queue.claim_deliveries({2: 1}, LEASE)).deliveries
        assert (second.seq, second.attempt, second.suspect) == (seq, 1, False)
        assert not await store.queue.settle_deliveries([record(seq, 2, DeliveryState.DELIVERED, first.token)])

    async def test_the_store_says_how_they_died(self, store: Store, database: Database) -> None:
        one, two, alive = await wait(store, 1, 3)
        claim = await store.queue.claim_deliveries({1: 3}, LEASE)
        dead = DeliveryState.DEAD
        known = record(one, 1, dead, claim.token, attempts=7, error="410 Gone")
        await store.queue.settle_deliveries([known, record(two, 1, dead, claim.token)])
        at = {row["event_seq"]: row["updated_at"] for row in await database.rows(deliveries)}
        assert await store.queue.deaths([(one, 1), (two, 1), (alive, 1), (one, 2), (999, 1)]) == {
            (one, 1): Death("410 Gone", 7, at[one]),
            (two, 1): Death("", 1, at[two]),
        }
        assert await store.queue.deaths([]) == {}

    async def test_both_are_written_or_neither(self, store: Store, database: Database) -> None:
        [seq] = await wait(store)
        claim = await store.queue.claim_deliveries({1: 1}, LEASE)
        before = await database.rows(deliveries)
        dead = replace(record(seq, 1, DeliveryState.DEAD, claim.token), dead_letter=2)
        await database.rename("attempts", "hidden")
        with pytest.raises(StorageError):
            await store.queue.settle_deliveries([dead], [AttemptRecord(seq, 1, 2, timedelta(0), "no")])
        assert await database.rows(deliveries) == before
        await database.rename("hidden", "attempts")


class TestRenew(StoreTests):
    async def test_a_renewed_lease_holds(self, store: Store, other: Store) -> None:
        [kept] = await wait(store, 1)
        [witness] = await wait(store, 2)
        claim = await store.queue.claim_deliveries({1: 1, 2: 1}, SHORT)
        assert list(await store.queue.renew([leased(kept, 1, claim.token)], LEASE)) == [(kept, 1)]
        assert taken(await claim_delivery_soon(other, 2)) == [(witness, 2)]  # so the unrenewed lease has ended
        assert not (await other.queue.claim_deliveries({1: 1}, LEASE)).deliveries
        assert list(await store.queue.settle_deliveries([record(kept, 1, DeliveryState.DELIVERED, claim.token)])) == [
            (kept, 1)
        ]

    async def test_only_what_is_still_held_is_renewed(self, store: Store, other: Store) -> None:
        held, lost = await wait(store, 1, 2)
        claim = await store.queue.claim_deliveries({1: 2}, LEASE)
        await store.queue.settle_deliveries([record(lost, 1, DeliveryState.DEAD, claim.token)])
        token = claim.token
        asked = [leased(held, 1, token), leased(lost, 1, token), leased(held, 1, token + 1), leased(held, 2, token)]
        assert list(await other.queue.renew(asked, LEASE)) == [(held, 1)]
