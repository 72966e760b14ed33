"""The contract of `Overview`: what sums a deployment up, the same on both stores."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import insert, update

from runner.delivery import DeliveryState
from runner.errors import NotFound
from runner.policies.rate import Rate
from runner.storage import overview
from runner.storage.contract.claims import RegulatedRequest
from runner.storage.contract.overview import Load, Overview, Queue
from runner.storage.contract.settlements import AttemptRecord, Run, Settled, Turn
from runner.storage.overview import SqlOverview
from runner.storage.tables import deliveries, events
from runner.subscription import Subscription
from runner.worker.endings import expired

from .storage_contract import LEASE, Database, Store, StoreTests, publication, publish, record

CRM = Subscription(name="crm", sink="crm", types=("order.*",))
HOUR = timedelta(hours=1)


class OverviewTests(StoreTests):
    @pytest.fixture
    def seen(self, database: Database) -> Overview:
        return SqlOverview(database.engine)

    async def subscribed(self, store: Store, *wanted: Subscription) -> list[int]:
        await store.registry.put_subscriptions(wanted, "file")
        _, known = await store.registry.subscriptions()
        return [each.id for each in known]


class TestQueue(OverviewTests):
    async def test_an_empty_one(self, seen: Overview) -> None:
        queue = await seen.queue()
        assert queue == Queue(now=queue.now)
        assert abs(queue.now - datetime.now(UTC)) < timedelta(minutes=1)
        assert await seen.undispatched(10) == []

    async def test_what_waits_and_what_is_to_come(self, store: Store, seen: Overview) -> None:
        await publish(store, 3)
        await publish(store, 2, delay=HOUR)
        await store.queue.claim(1, LEASE)  # what is leased has not been dispatched either
        queue = await seen.queue()
        assert (queue.queued, queue.scheduled, queue.recorded) == (3, 2, 5)
        assert queue.oldest_at is not None
        assert queue.next_at is not None
        assert queue.recorded_since is not None
        assert queue.recorded_since == queue.oldest_at <= queue.now < queue.next_at

    async def test_what_was_recorded_long_ago_is_no_rate(
        self, store: Store, seen: Overview, database: Database
    ) -> None:
        await publish(store, 3)
        await database.execute(update(events).where(events.c.seq < 3).values(created_at=datetime.now(UTC) - HOUR))
        assert (await seen.queue()).recorded == 1

    async def test_dead_ones_that_expired_are_told_from_others(
        self, store: Store, seen: Overview, database: Database
    ) -> None:
        [crm] = await self.subscribed(store, CRM)
        now, row = datetime.now(UTC), {"subscription_id": crm, "attempts": 1, "state": "dead"}
        for seq, error in enumerate([expired(now), expired(None), "expired card", None], 1):
            values = row | {"event_seq": seq, "updated_at": now, "last_error": error}
            await database.execute(insert(deliveries).values(**values))
        load = (await seen.loads())[crm]
        assert (load.dead, load.expired) == (4, 2)

    async def test_it_counts_no_further_than_it_says(
        self, store: Store, seen: Overview, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(overview, "MOST", 4)
        monkeypatch.setattr(overview, "SAMPLE", 3)
        await publish(store, 9)
        await publish(store, 9, delay=HOUR)
        queue = await seen.queue()
        assert (queue.queued, queue.scheduled, queue.recorded) == (5, 5, 3)

    async def test_the_first_events_come_without_data(self, store: Store, seen: Overview) -> None:
        await publish(store, 4)
        assert [(each.type, each.data) for each in await seen.undispatched(3)] == [("order.created", None)] * 3

    async def test_the_last_events_are_those_of_the_last_minute(
        self, store: Store, seen: Overview, database: Database
    ) -> None:
        await publish(store, 4)
        await publish(store, 1, delay=HOUR)  # recorded is not due
        await database.execute(update(events).where(events.c.seq < 3).values(created_at=datetime.now(UTC) - HOUR))
        lately = await seen.recorded(10)
        assert [(each.type, each.data) for each in lately] == [("order.created", None)] * 3
        assert len(await seen.recorded(2)) == 2


class TestLoads(OverviewTests):
    async def test_of_a_subscription_with_nothing_to_do(self, store: Store, seen: Overview) -> None:
        [crm] = await self.subscribed(store, CRM)
        await store.registry.put_subscriptions([], "file")
        assert [(each.id, each.subscription, active) for each, active in await seen.subscribed()] == [(crm, CRM, False)]
        assert await seen.loads() == {crm: Load()}
        assert await seen.recent() == {}

    async def test_what_waits_runs_or_is_dead_is_counted_for_each(
        self, store: Store, seen: Overview, database: Database
    ) -> None:
        crm, log = await self.subscribed(store, CRM, replace(CRM, name="log"))
        seqs = await publish(store, 5)
        claim = await store.queue.claim(5, LEASE)
        states = [DeliveryState.PENDING, DeliveryState.PENDING, DeliveryState.LEASED, DeliveryState.DEAD]
        records = [
            record(seq, crm, state, claim.token, due_in=HOUR, error="refused" if number else None)
            for number, (seq, state) in enumerate(zip(seqs, states, strict=False))
        ]
        attempts = [AttemptRecord(seqs[1], crm, number, timedelta(0), f"refused {number}") for number in (1, 2)]
        delivered = [Run((log,), 4), Run((crm, log), 1)]
        await store.queue.settle(Settled(claim.token, claim.works, delivered, records, attempts))
        loads, recent = await seen.loads(), await seen.recent()
        [first, *_] = await database.rows(events)
        assert (loads[crm].pending, loads[crm].leased, loads[crm].dead) == (2, 1, 1)
        assert loads[crm].oldest_at == first["created_at"]
        assert loads[log] == Load()
        assert (recent[crm].delivered, recent[log].delivered) == (1, 5)
        assert (recent[crm].last_error, recent[log].last_error) == ("refused 2", None)
        assert recent[crm].last_failure is not None
        failing_from = loads[crm].failing_from
        assert failing_from is not None
        assert failing_from <= (recent[crm].last_failure or failing_from)
        assert recent[crm].last_success is not None

    async def test_it_counts_no_further_than_it_says(
        self, store: Store, seen: Overview, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(overview, "MOST", 4)
        monkeypatch.setattr(overview, "SAMPLE", 6)
        [crm] = await self.subscribed(store, CRM)
        now = datetime.now(UTC)
        row = {"subscription_id": crm, "attempts": 1, "updated_at": now}
        rows = [
            row | {"event_seq": seq, "state": state, "due_at": None if state == "dead" else now}
            for seq, state in enumerate(["pending"] * 8 + ["dead"] * 8 + ["delivered"] * 8, 1)
        ]
        for each in rows:
            await database.execute(insert(deliveries).values(**each))
        load = (await seen.loads())[crm]
        assert (load.open, load.dead) == (5, 5)
        recent = (await seen.recent())[crm]
        assert (recent.delivered, recent.since) == (6, now)


class TestHold(OverviewTests):
    async def test_an_unknown_name(self, seen: Overview) -> None:
        with pytest.raises(NotFound, match="'nobody'"):
            await seen.hold(1, "nobody")

    async def test_an_event_that_is_queued_claimed_or_scheduled(self, store: Store, seen: Overview) -> None:
        await self.subscribed(store, CRM)
        [seq] = await publish(store, 1)
        hold = await seen.hold(seq, "crm")
        assert (hold.queued, hold.dispatch_token, hold.state, hold.active) == (True, None, None, True)
        assert hold.version > 0
        assert hold.created_at <= hold.updated_at <= hold.now
        claim = await store.queue.claim(1, LEASE)
        hold = await seen.hold(seq, "crm")
        assert hold.dispatch_token == claim.token
        assert hold.dispatch_until is not None
        assert hold.dispatch_until > hold.now
        [later] = await publish(store, 1, delay=HOUR)
        hold = await seen.hold(later, "crm")
        assert (hold.queued, hold.scheduled_at is not None) == (False, True)

    async def test_those_of_several_subscriptions_are_read_together(self, store: Store, seen: Overview) -> None:
        await self.subscribed(store, CRM, replace(CRM, name="mail"))
        [seq] = await publish(store, 1)
        holds = await seen.holds(seq, ["crm", "nobody", "mail"])
        assert {name: hold.registered.subscription.name for name, hold in holds.items()} == {
            "crm": "crm",
            "mail": "mail",
        }
        assert all(hold.queued for hold in holds.values())
        assert await seen.holds(seq, []) == {}

    async def test_a_delivery_that_waits_in_its_line(self, store: Store, seen: Overview) -> None:
        [crm] = await self.subscribed(store, replace(CRM, order_by="subject", rate=Rate.parse("1/h")))
        events_ = [publication(number, subject="a") for number in range(2)]
        one, two = (receipt.seq for receipt in await store.events.append(events_))
        claim = await store.queue.claim(2, LEASE)
        records = [record(seq, crm, DeliveryState.PENDING, claim.token, error="no") for seq in (one, two)]
        turns = [Turn(work.seq, crm, "a", work.position) for work in claim.works]
        await store.queue.settle(Settled(claim.token, claim.works, [Run((), 2)], records, turns=turns))
        held = await store.queue.claim_regulated(RegulatedRequest(crm, 1, True, Rate.parse("1/h")), LEASE)
        assert [each.seq for each in held.deliveries] == [one]
        hold = await seen.hold(two, "crm")
        assert hold.turn is not None
        assert (hold.turn.key, hold.turn.first, hold.turn.earlier) == ("a", one, None)
        assert (hold.state, hold.attempts, hold.last_error) == (DeliveryState.PENDING, 1, "no")
        assert hold.paced_until is not None
        assert hold.paced_until > hold.now
        first = await seen.hold(one, "crm")
        assert (first.state, first.token) == (DeliveryState.LEASED, held.token)
