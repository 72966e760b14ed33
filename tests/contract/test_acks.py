"""The contract of `Records.ack()`, and of what a store makes of deliveries that were deferred."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import pytest
from sqlalchemy import update

from runner.delivery import DeliveryState
from runner.errors import NotFound, StateConflict
from runner.storage.contract.settlements import AttemptRecord, DeliveryRecord, Run, Settled
from runner.storage.corrections import SqlCorrections
from runner.storage.records import SqlRecords
from runner.storage.tables import attempts, deliveries, dispatch, subscriptions
from runner.subscription import Subscription

from .storage_contract import (
    LEASE,
    SHORT,
    Database,
    Store,
    StoreTests,
    claim_delivery_soon,
    leased,
    publish,
    record,
    settled,
)

DEFERRED = DeliveryState.LEASED
MINUTE = timedelta(minutes=1)


def deferred(seq: int, token: int, within: timedelta = MINUTE, attempts: int = 1) -> DeliveryRecord:
    return DeliveryRecord(seq, 1, DEFERRED, attempts, token, within, deferred=True)


class AckTests(StoreTests):
    """Subscription 1 is `crm` and takes every order, 2 is `audit` and takes invoices alone."""

    @pytest.fixture
    async def corrections(self, database: Database, store: Store) -> SqlCorrections:
        crm = Subscription(name="crm", sink="s", types=("order.*",))
        await store.registry.put_subscriptions(
            [crm, Subscription(name="audit", sink="s", types=("invoice.*",))], "file"
        )
        assert [row["id"] for row in await database.rows(subscriptions)] == [1, 2]
        return SqlCorrections(database.engine)

    @pytest.fixture
    def records(self, corrections: SqlCorrections, database: Database) -> SqlRecords:
        return SqlRecords(database.engine)

    async def defer(self, store: Store, within: timedelta = MINUTE) -> int:
        """Publish one event, and settle it with its delivery deferred."""
        [seq] = await publish(store, 1)
        claim = await store.queue.claim(1, LEASE)
        await store.queue.settle(Settled(claim.token, claim.works, [Run((), 1)], [deferred(seq, claim.token, within)]))
        return seq

    async def state(self, database: Database) -> str:
        [row] = await database.rows(deliveries)
        return str(row["state"])


class TestDeferred(AckTests):
    async def test_nobody_holds_it_and_nobody_may_take_it_yet(
        self, store: Store, records: SqlRecords, database: Database
    ) -> None:
        await self.defer(store)
        [row] = await database.rows(deliveries)
        assert (row["state"], row["attempts"], row["lease_token"]) == ("leased", 1, None)
        claim = await store.queue.claim_deliveries({1: 5}, LEASE)
        assert not claim.deliveries
        assert claim.next_due is not None
        assert MINUTE / 2 < claim.next_due <= MINUTE

    async def test_a_single_delivery_can_be_deferred_too(
        self, store: Store, records: SqlRecords, database: Database
    ) -> None:
        seq = await self.defer(store, timedelta(0))
        claim = await claim_delivery_soon(store)
        assert await store.queue.settle_deliveries([deferred(seq, claim.token, SHORT, attempts=2)])
        assert not await store.queue.renew([leased(seq, 1, claim.token)], LEASE)
        [again] = (await claim_delivery_soon(store)).deliveries
        assert again.expired is not None
        assert (again.attempt, again.suspect) == (3, False)
        assert SHORT * 0.99 < again.expired.waited < SHORT + timedelta(seconds=25)

    async def test_without_an_acknowledgement_it_is_claimed_for_what_follows(
        self, store: Store, records: SqlRecords, other: Store
    ) -> None:
        seq = await self.defer(store, SHORT)
        claim = await claim_delivery_soon(other, lease=SHORT)
        [expired] = claim.deliveries
        assert (expired.seq, expired.attempt, expired.suspect) == (seq, 2, False)
        assert expired.expired is not None
        assert expired.expired.refusal is None
        assert SHORT * 0.99 < expired.expired.waited < SHORT + timedelta(seconds=25)
        # Whoever claimed it and died is one to be suspected again.
        [suspect] = (await claim_delivery_soon(store)).deliveries
        assert (suspect.suspect, suspect.expired) == (True, None)

    async def test_its_age_does_not_count_from_an_earlier_series(
        self, store: Store, records: SqlRecords, database: Database
    ) -> None:
        seq = await self.defer(store)
        claim = await self.expired(store, database)
        again = record(seq, 1, DeliveryState.PENDING, claim, attempts=1)
        assert await store.queue.settle_deliveries([again], [AttemptRecord(seq, 1, 1, timedelta(hours=1), "no")])
        [second] = (claimed := await store.queue.claim_deliveries({1: 1}, LEASE)).deliveries
        assert second.age >= timedelta(hours=1)
        # Retried by hand, and deferred in its first attempt.
        assert await store.queue.settle_deliveries([deferred(seq, claimed.token)])
        await database.execute(update(deliveries).values(due_at=deliveries.c.updated_at))
        [expired] = (await store.queue.claim_deliveries({1: 1}, LEASE)).deliveries
        assert (expired.attempt, expired.age) == (2, timedelta(0))

    async def expired(self, store: Store, database: Database) -> int:
        await database.execute(update(deliveries).values(due_at=deliveries.c.updated_at))
        return (await store.queue.claim_deliveries({1: 1}, LEASE)).token


class TestAck(AckTests):
    async def test_a_deferred_one_is_delivered_once_it_is_acknowledged(
        self, store: Store, corrections: SqlCorrections, database: Database
    ) -> None:
        seq = await self.defer(store)
        assert await corrections.ack(str(seq), "crm")
        [row] = await database.rows(deliveries)
        assert (row["state"], row["due_at"], row["attempts"]) == ("delivered", None, 1)
        assert not await corrections.ack(str(seq), "crm")  # and again is no error
        assert await database.rows(deliveries) == [row]
        assert await database.count(attempts) == [0]

    async def test_it_is_found_by_the_id_of_the_event(
        self, store: Store, records: SqlRecords, corrections: SqlCorrections, database: Database
    ) -> None:
        seq = await self.defer(store)
        assert await corrections.ack((await records.event(str(seq))).event.id, "crm")
        assert await self.state(database) == "delivered"

    @pytest.mark.parametrize("state", [DeliveryState.PENDING, DeliveryState.LEASED])
    async def test_after_failures_the_attempt_that_ended_it_is_recorded(
        self, store: Store, corrections: SqlCorrections, database: Database, state: DeliveryState
    ) -> None:
        seq = await self.defer(store)
        await database.execute(update(deliveries).values(state=state, attempts=3, last_error="no"))
        assert await corrections.ack(str(seq), "crm")
        [row] = await database.rows(deliveries)
        assert (row["state"], row["last_error"]) == ("delivered", None)
        [attempt] = await database.rows(attempts)
        assert (attempt["number"], attempt["error"]) == (3, None)
        assert 0 <= attempt["duration_us"] < 60_000_000

    @pytest.mark.parametrize("state", ["dead", "cancelled"])
    async def test_what_has_ended_otherwise_refuses_with_its_state(
        self, store: Store, corrections: SqlCorrections, database: Database, state: str
    ) -> None:
        seq = await self.defer(store)
        await database.execute(update(deliveries).values(state=state, due_at=None))
        with pytest.raises(StateConflict, match=f"event {seq} is {state}"):
            await corrections.ack(str(seq), "crm")
        assert await self.state(database) == state

    async def test_what_is_not_there_is_named(self, store: Store, corrections: SqlCorrections) -> None:
        seq = await self.defer(store)
        with pytest.raises(NotFound, match="'nobody'"):
            await corrections.ack(str(seq), "nobody")
        with pytest.raises(NotFound, match=f"event {seq} to subscription 'audit'"):
            await corrections.ack(str(seq), "audit")
        with pytest.raises(NotFound, match="'999'"):
            await corrections.ack("999", "crm")
        [later] = await publish(store, 1, delay=MINUTE)
        with pytest.raises(NotFound, match=f"event {later} "):
            await corrections.ack(str(later), "crm")

    async def test_a_running_one_is_delivered_and_its_late_answer_dropped(
        self, store: Store, corrections: SqlCorrections, database: Database
    ) -> None:
        seq = await self.defer(store, timedelta(0))
        claim = await claim_delivery_soon(store)
        assert await corrections.ack(str(seq), "crm")
        for late in (DeliveryState.DEAD, DeliveryState.PENDING, DeliveryState.LEASED):
            assert not await store.queue.settle_deliveries([record(seq, 1, late, claim.token)])
        assert not await store.queue.renew([leased(seq, 1, claim.token)], LEASE)
        assert await self.state(database) == "delivered"


class TestFailure(AckTests):
    async def test_it_is_claimed_at_once_with_the_reason(self, store: Store, corrections: SqlCorrections) -> None:
        seq = await self.defer(store)
        assert await corrections.ack(str(seq), "crm", failure="no such\0 customer")
        [expired] = (await claim_delivery_soon(store)).deliveries
        assert expired.expired is not None
        assert expired.expired.refusal == "no such\ufffd customer"
        assert timedelta(0) <= expired.expired.waited < MINUTE

    async def test_only_what_waits_for_its_acknowledgement_can_fail(
        self, store: Store, corrections: SqlCorrections, database: Database
    ) -> None:
        seq = await self.defer(store, timedelta(0))
        await claim_delivery_soon(store)
        with pytest.raises(StateConflict, match="is running"):
            await corrections.ack(str(seq), "crm", failure="no")
        assert await corrections.ack(str(seq), "crm")
        with pytest.raises(StateConflict, match="is delivered"):
            await corrections.ack(str(seq), "crm", failure="no")
        [early] = await publish(store, 1)
        with pytest.raises(NotFound):
            await corrections.ack(str(early), "crm", failure="no")


class TestEarlyAck(AckTests):
    """The acknowledgement comes while its event is still being dispatched: no delivery is on record yet."""

    @pytest.mark.parametrize(
        "late",
        [
            deferred(0, 0),
            DeliveryRecord(0, 1, DeliveryState.DEAD, 1, 0, error="no", dead_letter=2),
            DeliveryRecord(0, 1, DeliveryState.PENDING, 1, 0),
            DeliveryRecord(0, 1, DeliveryState.LEASED, 1, 0, MINUTE),
            None,
        ],
        ids=["deferred", "dead", "pending", "running", "delivered"],
    )
    async def test_it_stands_whatever_the_dispatch_writes(
        self, store: Store, corrections: SqlCorrections, database: Database, late: DeliveryRecord | None
    ) -> None:
        seqs = await publish(store, 3)
        claim = await store.queue.claim(3, LEASE)
        assert await corrections.ack(str(seqs[1]), "crm")
        assert not await corrections.ack(str(seqs[1]), "crm")
        delivered: Sequence[Run] = [Run((1, 2), 3)]
        written: list[DeliveryRecord] = []
        if late is not None:
            delivered = [Run((1, 2), 1), Run((2,), 1), Run((1, 2), 1)]
            written = [
                DeliveryRecord(
                    seqs[1],
                    1,
                    late.state,
                    1,
                    claim.token,
                    late.due_in,
                    late.error,
                    3 if late.error else None,
                    late.deferred,
                )
            ]
        tried = [AttemptRecord(seqs[1], 1, 1, SHORT, "no")] if late is not None and late.error else []
        assert await store.queue.settle(Settled(claim.token, claim.works, delivered, written, tried)) == 3
        rows = await database.rows(deliveries)
        assert [(row["event_seq"], row["subscription_id"], row["state"]) for row in rows] == [
            (seq, id, "delivered") for seq in seqs for id in (1, 2)
        ]
        assert await database.count(dispatch, attempts) == [0, 0]

    async def test_only_a_subscription_that_wants_the_event_can_acknowledge_it(
        self, store: Store, corrections: SqlCorrections, database: Database
    ) -> None:
        [seq] = await publish(store, 1)
        with pytest.raises(NotFound, match="'audit'"):
            await corrections.ack(str(seq), "audit")
        assert await database.count(deliveries) == [0]

    async def test_it_wins_whenever_it_comes(
        self, store: Store, corrections: SqlCorrections, database: Database
    ) -> None:
        for _ in range(25):
            [seq] = await publish(store, 1)
            claim = await store.queue.claim(1, LEASE)
            end = Settled(claim.token, claim.works, [Run((2,), 1)], [deferred(seq, claim.token)])
            answered, held = await asyncio.gather(corrections.ack(str(seq), "crm"), store.queue.settle(end))
            assert (answered, held) == (True, 1)
        assert {row["state"] for row in await database.rows(deliveries)} == {"delivered"}
        assert await database.count(deliveries, dispatch) == [50, 0]

    async def test_and_when_everything_succeeded_at_once(
        self, store: Store, corrections: SqlCorrections, database: Database
    ) -> None:
        for _ in range(25):
            [seq] = await publish(store, 1)
            claim = await store.queue.claim(1, LEASE)
            _, held = await asyncio.gather(corrections.ack(str(seq), "crm"), store.queue.settle(settled(claim, (1, 2))))
            assert held == 1
        assert {row["state"] for row in await database.rows(deliveries)} == {"delivered"}
        assert await database.count(deliveries, dispatch) == [50, 0]
