"""Orphans die: at once where the subscription is gone, with patience where only the sink is."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence, Set
from datetime import timedelta
from typing import cast

from runner.delivery import DeliveryState
from runner.event import Event
from runner.storage.contract.claims import ClaimedDelivery, DeliveryClaim, UnreadableDelivery
from runner.storage.contract.queue import WorkQueue
from runner.storage.contract.registry import Orphan, Registry
from runner.storage.contract.settlements import AttemptRecord, DeliveryRecord
from runner.worker.orphans import Orphans
from runner.worker.settlement_writer import SettlementWriter
from tests.support.eventually import eventually

LEASE = timedelta(seconds=30)
GONE = Orphan(1, True, "its subscription was deleted")
HOMELESS = Orphan(2, False, "no live instance has a sink 'x'")


class Store:
    """A registry with orphans, and a queue in which each subscription has one readable and one unreadable delivery."""

    def __init__(self, *orphans: Orphan) -> None:
        self.found = list(orphans)
        self.looks = 0
        self.dead: list[DeliveryRecord] = []

    async def orphans(self) -> Sequence[Orphan]:
        self.looks += 1
        return self.found

    async def claim_deliveries(self, quotas: Mapping[int, int], lease: timedelta, weight: int = 0) -> DeliveryClaim:
        [id] = quotas
        if any(record.subscription_id == id for record in self.dead):
            return DeliveryClaim(7, ())
        claimed = ClaimedDelivery(1, id, 3, False, Event(type="t", source="/s"))
        return DeliveryClaim(7, [claimed], None, [UnreadableDelivery(2, id, 1, "no event")])

    async def settle_deliveries(
        self, records: Sequence[DeliveryRecord], attempts: Sequence[AttemptRecord] = (), ordered: Set[int] = frozenset()
    ) -> Sequence[tuple[int, int]]:
        self.dead += records
        return [(record.seq, record.subscription_id) for record in records]


class Nobody:
    """No subscription has a dead letter."""

    def addressed(self, records: Sequence[DeliveryRecord]) -> Sequence[DeliveryRecord]:
        return records


def orphans_of(store: Store, patience: timedelta) -> Orphans:
    queue = cast("WorkQueue", store)
    writer = SettlementWriter(queue, Nobody(), lambda _: None)  # type: ignore[arg-type]  # all it is asked here
    every = timedelta(milliseconds=5)
    return Orphans(queue, cast("Registry", store), writer, LEASE, every=every, patience=patience)


async def test_what_was_deleted_dies_at_once_and_what_has_no_sink_does_not() -> None:
    store = Store(GONE, HOMELESS)
    orphans = orphans_of(store, timedelta(hours=1))
    orphans.start()
    await eventually(lambda: store.looks >= 3)
    await orphans.stop()
    dead = DeliveryState.DEAD
    assert store.dead == [DeliveryRecord(seq, 1, dead, used, 7, error=GONE.reason) for seq, used in ((1, 2), (2, 0))]


async def test_a_sink_that_is_missing_for_long_enough() -> None:
    store = Store(HOMELESS)
    orphans = orphans_of(store, timedelta(milliseconds=50))
    orphans.start()
    await eventually(lambda: len(store.dead) == 2)
    await orphans.stop()
    assert store.looks >= 2
    assert {record.error for record in store.dead} == {HOMELESS.reason}


async def test_a_sink_that_comes_back_in_between_starts_the_patience_anew() -> None:
    store = Store(HOMELESS)
    orphans = orphans_of(store, timedelta(seconds=1))
    orphans.start()
    await eventually(lambda: orphans._since)
    began = dict(orphans._since)
    store.found = []
    await eventually(lambda: orphans._since == {})
    store.found = [HOMELESS]
    await asyncio.sleep(0)
    await eventually(lambda: orphans._since)
    await orphans.stop()
    assert orphans._since[2] > began[2]
    assert store.dead == []
