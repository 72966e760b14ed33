"""Corrections against work that is under way: whoever comes first wins, and nothing is undone or written twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta

import pytest
from sqlalchemy import delete, insert

from runner.delivery import DeliveryState
from runner.storage.contract.corrections import ReplayQuery
from runner.storage.contract.events import Publication
from runner.storage.contract.settlements import Run, Settled
from runner.storage.corrections import SqlCorrections
from runner.storage.expressions import Now
from runner.storage.tables import deliveries, dispatch, events, scheduled
from runner.subscription import Subscription
from tests.support.eventually import eventually

from .storage_contract import LEASE, Database, Store, StoreTests, leased, publication, publish, record, settled, wait

LEASED, CANCELLED, DELIVERED, PENDING = (
    DeliveryState.LEASED,
    DeliveryState.CANCELLED,
    DeliveryState.DELIVERED,
    DeliveryState.PENDING,
)


class TestCancelledEvents(StoreTests):
    @pytest.fixture
    async def corrections(self, store: Store, database: Database) -> SqlCorrections:
        await store.registry.adopt("tests")
        await store.registry.put_subscriptions([Subscription(name=name, sink="log") for name in ("one", "two")], "file")
        return SqlCorrections(database.engine)

    async def states(self, database: Database) -> list[tuple[int, int, str]]:
        rows = await database.rows(deliveries)
        return [(row["event_seq"], row["subscription_id"], row["state"]) for row in rows]

    async def test_a_running_dispatch_writes_nothing_of_it(
        self, corrections: SqlCorrections, store: Store, database: Database
    ) -> None:
        [seq, other] = await publish(store, 2)
        claim = await store.queue.claim(10, LEASE)
        assert await corrections.cancel_event(seq) == 2
        held = [record(each, 2, LEASED, claim.token, due_in=LEASE) for each in (seq, other)]
        assert await store.queue.settle(Settled(claim.token, claim.works, [Run((1,), 2)], held)) == 1
        cancelled = [(seq, 1, CANCELLED), (seq, 2, CANCELLED)]
        assert await self.states(database) == [*cancelled, (other, 1, DELIVERED), (other, 2, LEASED)]
        # What of it still ran belongs to nobody: it is not renewed, and its answer not taken.
        assert await store.queue.renew([leased(seq, 2, claim.token), leased(other, 2, claim.token)], LEASE) == [
            (other, 2)
        ]
        assert await store.queue.settle_deliveries([record(seq, 2, DELIVERED, claim.token)]) == []
        assert await self.states(database) == [*cancelled, (other, 1, DELIVERED), (other, 2, LEASED)]
        assert await database.count(dispatch) == [0]

    async def test_a_late_answer_of_a_delivery_is_not_taken(
        self, corrections: SqlCorrections, store: Store, database: Database
    ) -> None:
        [seq] = await wait(store)
        claim = await store.queue.claim_deliveries({1: 1}, LEASE)
        assert await corrections.cancel_event(seq) == 1
        assert await store.queue.settle_deliveries([record(seq, 1, DELIVERED, claim.token)]) == []
        assert await store.queue.settle_deliveries([record(seq, 1, PENDING, claim.token)]) == []
        assert await self.states(database) == [(seq, 1, CANCELLED)]
        assert not (await store.queue.claim_deliveries({1: 1}, LEASE)).deliveries

    async def test_publishing_it_again_does_not_bring_it_back(self, corrections: SqlCorrections, store: Store) -> None:
        again = publication()
        [first] = await store.events.append([Publication(again.event, delay=timedelta(hours=1))])
        assert await corrections.cancel_event(first.seq) == 2
        [second] = await store.events.append([again])
        assert (second.seq, second.duplicate) == (first.seq, True)
        claim = await store.queue.claim(10, LEASE)
        assert not claim.works
        assert claim.scheduled_in is None

    async def test_cancelling_races_with_settling(
        self, corrections: SqlCorrections, store: Store, database: Database
    ) -> None:
        seqs = await publish(store, 40)
        claims = [await store.queue.claim(10, LEASE) for _ in range(4)]
        cancels = [corrections.cancel_event(seq) for seq in seqs]
        settles = [store.queue.settle(settled(claim, (1, 2))) for claim in claims]
        done = await asyncio.gather(*cancels[:20], *settles, *cancels[20:])
        withdrawn = {seq for seq, number in zip(seqs, [*done[:20], *done[24:]], strict=True) if number is not None}
        assert sum(number or 0 for number in done[20:24]) == 40 - len(withdrawn)
        states = Counter((row[0], row[2]) for row in await self.states(database))
        assert states == {(seq, CANCELLED if seq in withdrawn else DELIVERED): 2 for seq in seqs}
        marked = {row["seq"] for row in await database.rows(events) if row["cancelled_at"] is not None}
        assert marked == withdrawn
        assert await database.count(dispatch) == [0]

    @pytest.mark.parametrize("moves", ["falls due", "is settled"])
    async def test_work_that_moves_on_meanwhile_is_met_where_it_goes(
        self, corrections: SqlCorrections, store: Store, database: Database, moves: str
    ) -> None:
        if database.dsn.scheme == "sqlite":
            pytest.skip("a database with one writer at a time")
        falls_due = moves == "falls due"
        [seq] = await publish(store, 1, delay=timedelta(hours=1) if falls_due else None)
        work, following = (scheduled, insert(dispatch)) if falls_due else (dispatch, insert(deliveries))
        values = {"subscription_id": 1, "state": LEASED, "attempts": 1, "lease_token": 7, "updated_at": Now()}
        async with database.engine.connect() as connection:
            await connection.execute(delete(work))
            await connection.execute(following.values(event_seq=seq, **({} if falls_due else values)))
            cancelling = asyncio.create_task(corrections.cancel_event(seq))
            await eventually(database.waits_for_lock)
            await connection.commit()
        assert await cancelling == (2 if falls_due else 1)
        assert {state for _, _, state in await self.states(database)} == {CANCELLED}
        assert await database.count(scheduled, dispatch) == [0, 0]

    async def test_replaying_races_with_dispatching(
        self, corrections: SqlCorrections, store: Store, database: Database
    ) -> None:
        seqs = await publish(store, 200)
        claims = [await store.queue.claim(50, LEASE) for _ in range(4)]
        query = ReplayQuery(subscription="one")
        assert await corrections.replay(query) == 0  # all of it is still to be delivered for the first time
        done = await asyncio.gather(
            *(store.queue.settle(settled(claim, (1, 2))) for claim in claims),
            *(corrections.replay(query) for _ in range(4)),
        )
        assert done[:4] == [50] * 4
        states = Counter(state for _, subscription, state in await self.states(database) if subscription == 1)
        assert states[PENDING] == sum(done[4:])
        assert states.total() == len(seqs)
