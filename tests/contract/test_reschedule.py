"""The contract of `Records.reschedule()` on every store, and what a person is told."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from runner.delivery import DeliveryState
from runner.errors import EventError, NotFound, StateConflict
from runner.operations import Operations
from runner.storage.tables import deliveries, dispatch, scheduled
from runner.subscription import Subscription

from .storage_contract import LEASE, Database, Store, StoreTests, publish, record, settled, taken, wait

HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
LATER = datetime.now(UTC).replace(microsecond=0) + timedelta(days=30)


class TestReschedule(StoreTests):
    @pytest.fixture
    def announced(self) -> list[None]:
        return []

    @pytest.fixture
    def operations(self, store: Store, announced: list[None]) -> Operations:
        return Operations(store, lambda: announced.append(None))

    @pytest.fixture
    async def ids(self, store: Store) -> Sequence[int]:
        await store.registry.put_subscriptions([Subscription(name=name, sink="log") for name in ("one", "two")], "file")
        return [each.id for each in (await store.registry.subscriptions())[1]]

    async def test_a_scheduled_event_is_due_then(
        self, operations: Operations, store: Store, database: Database, announced: list[None]
    ) -> None:
        [seq] = await publish(store, 1, delay=HOUR)
        view, moved = await operations.reschedule(str(seq), deliver_at=LATER)
        assert (view.state, moved.due_at, moved.whole, moved.deliveries, moved.running) == (
            "scheduled",
            LATER,
            True,
            0,
            0,
        )
        [row] = await database.rows(scheduled)
        assert row["due_at"] == LATER
        assert announced == [None]

    @pytest.mark.parametrize("when", [{"delay": timedelta(0)}, {"deliver_at": datetime(2020, 1, 1, tzinfo=UTC)}])
    async def test_now_and_the_past_are_now(
        self, operations: Operations, store: Store, database: Database, when: dict[str, Any]
    ) -> None:
        [seq] = await publish(store, 1, delay=HOUR)
        _, moved = await operations.reschedule(str(seq), **when)
        assert moved.due_at > datetime(2026, 1, 1, tzinfo=UTC) - HOUR
        assert await store.queue.promote(10) == 1
        assert [work.seq for work in (await store.queue.claim(10, LEASE)).works] == [seq]

    async def test_a_queued_event_waits_again(self, operations: Operations, store: Store, database: Database) -> None:
        first, second = await publish(store, 2)
        _, moved = await operations.reschedule(str(first), delay=HOUR)
        assert moved.whole
        assert await database.count(dispatch, scheduled) == [1, 1]
        claim = await store.queue.claim(10, LEASE)
        assert [work.seq for work in claim.works] == [second]
        assert claim.scheduled_in is not None
        assert HOUR - MINUTE < claim.scheduled_in <= HOUR

    async def test_one_that_is_being_dispatched_is_left_alone(
        self, operations: Operations, store: Store, database: Database, announced: list[None]
    ) -> None:
        [seq] = await publish(store, 1)
        claim = await store.queue.claim(10, LEASE)
        before = await database.rows(dispatch)
        with pytest.raises(StateConflict, match=f"event {seq} is queued.* being dispatched|being dispatched"):
            await operations.reschedule(str(seq), delay=HOUR)
        assert await database.rows(dispatch) == before
        assert announced == []
        assert await store.queue.settle(settled(claim)) == 1

    async def test_nor_is_one_whose_dispatch_has_crashed(self, operations: Operations, store: Store) -> None:
        """It counts how often it was tried, and may have arrived."""
        [seq] = await publish(store, 1)
        await store.queue.claim(10, timedelta(0))
        with pytest.raises(StateConflict, match="being dispatched"):
            await operations.reschedule(str(seq), delay=HOUR)

    async def test_what_waits_of_an_event_that_is_dispatched(
        self, operations: Operations, store: Store, database: Database, ids: Sequence[int]
    ) -> None:
        [seq], [other] = await wait(store, ids[0], due_in=MINUTE), await wait(store, ids[0], due_in=MINUTE)
        _, moved = await operations.reschedule(str(seq), delay=timedelta(0))
        assert (moved.whole, moved.deliveries, moved.running) == (False, 1, 0)
        assert taken(await store.queue.claim_deliveries({ids[0]: 10}, LEASE)) == [(seq, ids[0])]
        assert other != seq

    async def test_only_that_of_one_subscription(
        self, operations: Operations, store: Store, database: Database, ids: Sequence[int]
    ) -> None:
        from runner.storage.contract.settlements import Run, Settled

        [seq] = await publish(store, 1)
        claim = await store.queue.claim(1, LEASE)
        records = [record(seq, id, DeliveryState.PENDING, claim.token) for id in ids]
        await store.queue.settle(Settled(claim.token, claim.works, [Run((), 1)], records))
        _, moved = await operations.reschedule(str(seq), delay=HOUR, subscription="two")
        assert moved.deliveries == 1
        assert taken(await store.queue.claim_deliveries(dict.fromkeys(ids, 10), LEASE)) == [(seq, ids[0])]
        _, moved = await operations.reschedule(str(seq), delay=MINUTE)
        assert (moved.deliveries, moved.running) == (1, 1)
        with pytest.raises(StateConflict, match=r"to one is being delivered at this moment"):
            await operations.reschedule(str(seq), delay=HOUR, subscription="one")

    async def test_a_lease_is_never_touched(
        self, operations: Operations, store: Store, database: Database, ids: Sequence[int]
    ) -> None:
        [seq] = await wait(store, ids[0])
        claim = await store.queue.claim_deliveries({ids[0]: 1}, LEASE)
        before = await database.rows(deliveries)
        with pytest.raises(StateConflict, match="being delivered"):
            await operations.reschedule(str(seq), delay=HOUR)
        assert await database.rows(deliveries) == before
        assert await store.queue.settle_deliveries([record(seq, ids[0], DeliveryState.DELIVERED, claim.token)])

    @pytest.mark.parametrize("state", [DeliveryState.DELIVERED, DeliveryState.DEAD])
    async def test_what_has_ended_is_told(
        self, operations: Operations, store: Store, ids: Sequence[int], state: DeliveryState
    ) -> None:
        [seq] = await wait(store, ids[0])
        claim = await store.queue.claim_deliveries({ids[0]: 1}, LEASE)
        await store.queue.settle_deliveries([record(seq, ids[0], state, claim.token)])
        with pytest.raises(StateConflict, match=rf"event {seq} is settled \(1 {state}\).*runner deliveries retry"):
            await operations.reschedule(str(seq), delay=HOUR)
        with pytest.raises(StateConflict, match=rf"event {seq} to one is {state}; .*retry {seq} one"):
            await operations.reschedule(str(seq), delay=HOUR, subscription="one")

    async def test_what_does_not_exist_is_named(self, operations: Operations, store: Store, ids: Sequence[int]) -> None:
        [seq] = await wait(store, ids[0])
        for reference, subscription, named in (("nope", None, "nope"), (str(seq), "three", "three")):
            with pytest.raises(NotFound, match=named):
                await operations.reschedule(reference, delay=HOUR, subscription=subscription)
        with pytest.raises(NotFound, match=f"event {seq} to subscription 'two'"):
            await operations.reschedule(str(seq), delay=HOUR, subscription="two")

    @pytest.mark.parametrize(
        "when",
        [
            {},
            {"delay": HOUR, "deliver_at": LATER},
            {"delay": -HOUR},
            {"delay": timedelta(days=367)},
            {"deliver_at": datetime(2026, 1, 1)},
            {"deliver_at": LATER + timedelta(days=367)},
        ],
    )
    async def test_times_that_are_none(self, operations: Operations, when: dict[str, Any]) -> None:
        with pytest.raises(EventError):
            await operations.reschedule("1", **when)
