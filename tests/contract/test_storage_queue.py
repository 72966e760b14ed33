"""The contract of `WorkQueue` as far as whole events go: claim, settle, promote."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from runner.delivery import DeliveryState
from runner.errors import StorageError
from runner.storage.contract.claims import Claim
from runner.storage.contract.events import Publication
from runner.storage.contract.settlements import AttemptRecord, Run, Settled
from runner.storage.tables import attempts, deliveries, dispatch, scheduled

from .storage_contract import (
    LEASE,
    SHORT,
    Database,
    Store,
    StoreTests,
    claim_soon,
    publication,
    publish,
    record,
    settled,
    soon,
    wait,
)


def seqs(claim: Claim) -> list[int]:
    return [work.seq for work in claim.works]


class TestClaim(StoreTests):
    async def test_an_empty_queue_gives_nothing_and_waits_for_nothing(self, store: Store) -> None:
        claim = await store.queue.claim(10, LEASE)
        assert list(claim.works) == []
        assert claim.scheduled_in is None
        assert not claim.waiting

    async def test_the_oldest_come_first_and_no_more_than_the_limit(self, store: Store) -> None:
        published = await publish(store, 25)
        assert seqs(await store.queue.claim(10, LEASE)) == published[:10]
        assert seqs(await store.queue.claim(10, LEASE)) == published[10:20]
        assert seqs(await store.queue.claim(10, LEASE)) == published[20:]

    async def test_a_limit_of_nothing_claims_nothing(self, store: Store) -> None:
        await publish(store, 3)
        assert not (await store.queue.claim(0, LEASE)).works
        assert len((await store.queue.claim(10, LEASE)).works) == 3

    async def test_what_one_has_leased_another_does_not_get(self, store: Store, other: Store) -> None:
        published = await publish(store, 10)
        first, second = await store.queue.claim(6, LEASE), await other.queue.claim(10, LEASE)
        assert seqs(first) + seqs(second) == published
        assert first.token != second.token
        assert not (await store.queue.claim(10, LEASE)).works

    async def test_concurrent_claims_never_overlap(self, store: Store, other: Store) -> None:
        published = await publish(store, 300)
        found: list[int] = []
        while len(found) < 300:
            claims = await asyncio.gather(*[(store, other)[number % 2].queue.claim(20, LEASE) for number in range(8)])
            assert all(len(claim.works) <= 20 for claim in claims)
            assert any(claim.works for claim in claims)
            found += [seq for claim in claims for seq in seqs(claim)]
        assert sorted(found) == published

    async def test_again_in_says_when_a_lease_ends(self, store: Store, other: Store) -> None:
        await publish(store, 1)
        await store.queue.claim(10, LEASE)
        claim = await other.queue.claim(10, LEASE)
        assert claim.again_in is not None
        assert timedelta(0) < claim.again_in <= LEASE

    async def test_an_expired_lease_comes_back_to_its_own_store_too(self, store: Store) -> None:
        published = await publish(store, 2)
        assert seqs(await store.queue.claim(10, SHORT)) == published
        late = await publish(store, 1)
        found: list[int] = []
        while len(found) < 3:
            found += seqs(await claim_soon(store))
        assert sorted(found) == published + late

    async def test_scheduled_in_is_the_earliest(self, store: Store) -> None:
        await publish(store, 1, delay=timedelta(hours=2))
        await publish(store, 1, delay=timedelta(hours=1))
        claim = await store.queue.claim(10, LEASE)
        assert claim.scheduled_in is not None
        assert timedelta(minutes=59) < claim.scheduled_in <= timedelta(hours=1)

    async def test_scheduled_in_runs_out(self, store: Store) -> None:
        await publish(store, 1, delay=timedelta(milliseconds=50))

        async def overdue() -> bool:
            scheduled_in = (await store.queue.claim(10, LEASE)).scheduled_in
            assert scheduled_in is not None
            return scheduled_in <= timedelta(0)

        await soon(overdue)

    async def test_waiting_tells_of_pending_and_leased_deliveries_only(self, store: Store) -> None:
        await publish(store, 1)
        await store.queue.settle(settled(await store.queue.claim(10, LEASE)))
        assert not (await store.queue.claim(10, LEASE)).waiting
        [seq] = await wait(store, due_in=timedelta(0))
        assert (await store.queue.claim(10, LEASE)).waiting
        claim = await store.queue.claim_deliveries({1: 1}, LEASE)
        assert (await store.queue.claim(10, LEASE)).waiting
        await store.queue.settle_deliveries([record(seq, 1, DeliveryState.DEAD, claim.token)])
        assert not (await store.queue.claim(10, LEASE)).waiting


class TestSettle(StoreTests):
    async def test_the_work_goes_and_every_delivery_is_recorded(self, store: Store, database: Database) -> None:
        [seq] = await publish(store, 1)
        assert await store.queue.settle(settled(await store.queue.claim(10, LEASE), (7, 8))) == 1
        assert await database.count(dispatch) == [0]
        rows = await database.rows(deliveries)
        assert [(row["event_seq"], row["subscription_id"]) for row in rows] == [(seq, 7), (seq, 8)]
        for row in rows:
            assert (row["state"], row["attempts"]) == ("delivered", 1)
            assert (row["due_at"], row["lease_token"], row["last_error"]) == (None, None, None)

    async def test_an_event_that_matched_nothing_is_settled_too(self, store: Store, database: Database) -> None:
        await publish(store, 3)
        assert await store.queue.settle(settled(await store.queue.claim(10, LEASE), ())) == 3
        assert await database.count(dispatch, deliveries) == [0, 0]

    async def test_every_work_gets_its_own_subscriptions(self, store: Store, database: Database) -> None:
        published = await publish(store, 60)
        claim = await store.queue.claim(60, LEASE)
        shared, none = (1, 2, 3), ()
        groups = [(shared, none, (number,), (2, 1))[number % 4] for number in range(60)]
        assert await store.queue.settle(Settled(claim.token, claim.works, [Run(group, 1) for group in groups])) == 60
        expected = {(seq, id) for seq, ids in zip(published, groups, strict=True) for id in ids}
        rows = await database.rows(deliveries)
        assert {(row["event_seq"], row["subscription_id"]) for row in rows} == expected
        assert len(rows) == len(expected)

    async def test_settling_twice_changes_nothing(self, store: Store, database: Database) -> None:
        await publish(store, 3)
        claim = await store.queue.claim(10, LEASE)
        assert await store.queue.settle(settled(claim, (1,))) == 3
        before = await database.rows(deliveries)
        assert await store.queue.settle(settled(claim, (1, 2))) == 0
        assert await database.rows(deliveries) == before

    async def test_a_claim_may_be_settled_in_parts(self, store: Store, database: Database) -> None:
        await publish(store, 5)
        claim = await store.queue.claim(10, LEASE)
        assert await store.queue.settle(settled(claim, works=claim.works[3:])) == 2
        assert await database.count(dispatch, deliveries) == [3, 2]
        assert await store.queue.settle(settled(claim, works=claim.works[:3])) == 3
        assert await database.count(dispatch, deliveries) == [0, 5]

    async def test_nothing_to_settle_is_no_error(self, store: Store) -> None:
        assert await store.queue.settle(Settled(1, (), ())) == 0

    async def test_the_attempts_of_a_second_claim_are_recorded(self, store: Store, database: Database) -> None:
        await publish(store, 1)
        await store.queue.claim(10, SHORT)
        await store.queue.settle(settled(await claim_soon(store)))
        assert [row["attempts"] for row in await database.rows(deliveries)] == [2]

    async def test_each_state_is_recorded_as_it_is_to_be(self, store: Store, database: Database) -> None:
        [seq] = await publish(store, 1)
        claim = await store.queue.claim(10, LEASE)
        states = list(DeliveryState)
        records = [
            record(seq, id, state, 77, attempts=id, due_in=timedelta(minutes=id), error=f"because {id}")
            for id, state in enumerate(states, 1)
        ]
        assert await store.queue.settle(Settled(claim.token, claim.works, [Run((9,), 1)], records)) == 1
        *rows, delivered = await database.rows(deliveries)
        assert (delivered["subscription_id"], delivered["state"]) == (9, "delivered")
        for id, (state, row) in enumerate(zip(states, rows, strict=True), 1):
            assert (row["subscription_id"], row["state"], row["attempts"]) == (id, state.value, id)
            assert row["last_error"] == f"because {id}"
            assert row["lease_token"] == (77 if state is DeliveryState.LEASED else None)
            if state in (DeliveryState.PENDING, DeliveryState.LEASED):
                assert abs(row["due_at"] - row["updated_at"] - timedelta(minutes=id)) < timedelta(seconds=1)
            else:
                assert row["due_at"] is None

    async def test_attempts_are_recorded_with_their_deliveries(self, store: Store, database: Database) -> None:
        [seq] = await publish(store, 1)
        claim = await store.queue.claim(10, LEASE)
        failed = AttemptRecord(seq, 1, 1, timedelta(milliseconds=1500), "503 from there", 503, "come back later")
        crashed = AttemptRecord(seq, 2, 1, timedelta(microseconds=7))
        records = [record(seq, id, DeliveryState.PENDING, 0, due_in=LEASE) for id in (1, 2)]
        await store.queue.settle(Settled(claim.token, claim.works, [Run((), 1)], records, [failed, crashed]))
        first, second = await database.rows(attempts)
        assert (first["event_seq"], first["subscription_id"], first["number"]) == (seq, 1, 1)
        assert (first["duration_us"], first["status"]) == (1_500_000, 503)
        assert (first["error"], first["excerpt"]) == ("503 from there", "come back later")
        assert (second["subscription_id"], second["duration_us"]) == (2, 7)
        assert (second["status"], second["error"], second["excerpt"]) == (None, None, None)
        [row, _] = await database.rows(deliveries)
        assert abs(first["at"] - row["updated_at"]) < timedelta(seconds=1)

    @pytest.mark.parametrize("hostile", ["nul \0 inside", "lone \ud800 surrogate", "\U0001f980" * 50], ids=ascii)
    async def test_no_text_of_the_other_side_can_stop_a_settlement(
        self, store: Store, database: Database, hostile: str
    ) -> None:
        [seq] = await publish(store, 1)
        claim = await store.queue.claim(10, LEASE)
        one = record(seq, 1, DeliveryState.DEAD, 0, error=hostile)
        attempt = AttemptRecord(seq, 1, 1, timedelta(0), hostile, 500, hostile)
        assert await store.queue.settle(Settled(claim.token, claim.works, [Run((), 1)], [one], [attempt])) == 1
        assert await database.count(deliveries, attempts) == [1, 1]

    async def test_of_a_batch_lost_in_part_only_what_is_still_held_is_recorded(
        self, store: Store, other: Store, database: Database
    ) -> None:
        published = await publish(store, 10)
        late = await store.queue.claim(10, SHORT)
        lost = seqs(await claim_soon(other, limit=4))
        assert lost == published[:4]
        records = [record(seq, 2, DeliveryState.DEAD, 0) for seq in published]
        failed = [AttemptRecord(seq, 2, 1, timedelta(0), "no") for seq in published]
        answer = Settled(late.token, late.works, [Run((1,), 10)], records, failed)
        assert await store.queue.settle(answer) == 6
        kept = {(seq, id) for seq in published[4:] for id in (1, 2)}
        assert {(row["event_seq"], row["subscription_id"]) for row in await database.rows(deliveries)} == kept
        assert [row["event_seq"] for row in await database.rows(attempts)] == published[4:]
        assert [row["event_seq"] for row in await database.rows(dispatch)] == lost


class TestPromote(StoreTests):
    async def test_only_what_has_fallen_due_moves_earliest_first(self, store: Store) -> None:
        [never] = await publish(store, 1, delay=timedelta(hours=1))
        [later] = await publish(store, 1, delay=timedelta(seconds=2))
        [sooner] = await publish(store, 1, delay=timedelta(seconds=1))

        async def both_due() -> bool:
            scheduled_in = (await store.queue.claim(10, LEASE)).scheduled_in
            return scheduled_in is not None and scheduled_in < timedelta(seconds=-1)

        await soon(both_due)
        assert await store.queue.promote(100) == 2
        claim = await store.queue.claim(10, LEASE)
        assert seqs(claim) == [sooner, later]
        assert claim.scheduled_in is not None
        assert claim.scheduled_in > timedelta(minutes=59)
        assert never not in seqs(claim)

    async def test_no_more_than_the_limit_and_each_once(self, store: Store, other: Store, database: Database) -> None:
        published = await publish(store, 50, delay=timedelta(milliseconds=1))
        moved = 0
        while moved < 50:
            counts = await asyncio.gather(*[each.queue.promote(7) for each in (store, other, store, other)])
            assert all(count <= 7 for count in counts)
            moved += sum(counts)
        assert moved == 50
        assert await store.queue.promote(7) == 0
        assert sorted(row["event_seq"] for row in await database.rows(dispatch)) == published

    async def test_an_event_is_never_in_neither_place(self, store: Store, database: Database) -> None:
        await publish(store, 3, delay=timedelta(milliseconds=100))
        await database.rename("dispatch", "elsewhere")

        async def refused() -> bool:
            try:
                return await store.queue.promote(10) > 0
            except StorageError:
                return True

        await soon(refused)
        await database.rename("elsewhere", "dispatch")
        assert await database.count(dispatch, scheduled) == [0, 3]

        async def moved() -> bool:
            return await store.queue.promote(10) == 3

        await soon(moved)

    async def test_the_event_comes_whole(self, store: Store) -> None:
        one = publication(1, subject="läuft")
        await store.events.append([Publication(one.event, delay=timedelta(milliseconds=1))])

        async def promoted() -> bool:
            return await store.queue.promote(1) == 1

        await soon(promoted)
        [work] = (await store.queue.claim(1, LEASE)).works
        assert (work.event.id, work.event.subject, work.event.data) == (one.event.id, "läuft", one.event.data)
        assert work.attempt == 1
