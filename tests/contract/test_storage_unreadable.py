"""The contract of claims: a row that cannot be read as an event stops nobody else's, and is handed out as such."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from runner.delivery import DeliveryState
from runner.errors import EventConflict, StorageError
from runner.storage.contract.claims import RegulatedRequest, UnreadableWork, Work
from runner.storage.contract.settlements import Run, Settled
from runner.storage.records import SqlRecords
from runner.storage.tables import deliveries, dispatch
from runner.subscription import Subscription

from .storage_contract import LEASE, Database, Store, StoreTests, publication, publish, record, taken, wait

# name -> what is planted on SQLite and on PostgreSQL; whether the type can still be read
FAULTS = {
    "extensions are a list": ("extensions = '[1]'", "extensions = '[1]'", True),
    "extensions with half a character": ('extensions = \'{"a": "\\ud800"}\'',) * 2 + (True,),
    "a time beyond the calendar": ("time = 9000000000000000000", "time = '200000-01-01'", True),
    "no JSON": ("extensions = '{'", None, True),
    "a time that is none": ("time = 'soon'", None, True),
    "a subject that is no UTF-8": ("subject = CAST(x'ff61' AS TEXT)", None, True),
    "a type that is no UTF-8": ("type = CAST(x'ff61' AS TEXT)", None, False),
}


@pytest.mark.parametrize("fault", FAULTS)
class TestUnreadable(StoreTests):
    async def plant(self, database: Database, fault: str, seq: int) -> bool:
        """Plant the fault in an event; return whether its type can still be read."""
        sqlite, postgres, typed = FAULTS[fault]
        change = sqlite if database.dsn.scheme == "sqlite" else postgres
        if change is None:
            pytest.skip("PostgreSQL takes no such value")
        await database.execute(text(f"UPDATE events SET {change} WHERE seq = {seq}".replace(":", r"\:")))
        return typed

    async def test_the_rest_of_a_claim_goes_on(
        self, store: Store, other: Store, database: Database, fault: str
    ) -> None:
        first, bad, last = await publish(store, 3)
        typed = await self.plant(database, fault, bad)
        claim = await store.queue.claim(100, LEASE)
        assert [(work.seq, work.attempt) for work in claim.works] == [(first, 1), (last, 1)]
        [unreadable] = claim.unreadable
        assert (unreadable.seq, unreadable.attempt) == (bad, 1)
        assert unreadable.type == ("order.created" if typed else None)
        assert unreadable.reason
        version, _ = await store.registry.subscriptions()
        assert claim.version == version
        assert (await other.queue.claim(100, LEASE)).unreadable == ()  # it is leased like the others

        works: list[Work | UnreadableWork] = [*claim.works, *claim.unreadable]
        dead = record(bad, 1, DeliveryState.DEAD, claim.token, error=unreadable.reason)
        assert await store.queue.settle(Settled(claim.token, works, [Run((1,), 2), Run((), 1)], [dead])) == 3
        assert await database.rows(dispatch) == []
        states = [row["state"] for row in await database.rows(deliveries)]
        assert states == ["delivered", "dead", "delivered"]

    async def test_publishing_it_again_is_refused(self, store: Store, database: Database, fault: str) -> None:
        again = publication()
        [receipt] = await store.events.append([again])
        await self.plant(database, fault, receipt.seq)
        with pytest.raises((EventConflict, StorageError)):  # and not: that what is published is no event
            await store.events.append([again])

    async def test_the_rest_of_the_deliveries_goes_on(self, store: Store, database: Database, fault: str) -> None:
        first, bad, last = await wait(store, count=3)
        await self.plant(database, fault, bad)
        claim = await store.queue.claim_deliveries({1: 10}, LEASE)
        assert taken(claim) == [(first, 1), (last, 1)]
        assert [each.attempt for each in claim.deliveries] == [2, 2]
        [unreadable] = claim.unreadable
        assert (unreadable.seq, unreadable.subscription_id, unreadable.attempt) == (bad, 1, 2)
        dead = record(bad, 1, DeliveryState.DEAD, claim.token, error=unreadable.reason)
        assert await store.queue.settle_deliveries([dead]) == [(bad, 1)]
        assert not (await store.queue.claim_deliveries({1: 10}, LEASE)).unreadable

    @pytest.mark.parametrize("regulated", [False, True], ids=["together", "regulated"])
    async def test_what_is_known_of_the_other_deliveries_is_not_lost(
        self, store: Store, database: Database, fault: str, regulated: bool
    ) -> None:
        """Or a delivery that waits for its acknowledgement would be made again, and one that kills would look new."""
        deferred, bad, left = await wait(store, count=3)
        token = (await store.queue.claim_deliveries({1: 3}, timedelta(0))).token
        at_once = replace(record(deferred, 1, DeliveryState.LEASED, token), deferred=True)
        assert await store.queue.settle_deliveries([at_once]) == [(deferred, 1)]
        await self.plant(database, fault, bad)
        if regulated:
            claim = await store.queue.claim_regulated(RegulatedRequest(1, 10, False, None), LEASE)
        else:
            claim = await store.queue.claim_deliveries({1: 10}, LEASE)
        known = {each.seq: (each.expired is not None, each.suspect) for each in claim.deliveries}
        assert known == {deferred: (True, False), left: (False, True)}
        assert [each.seq for each in claim.unreadable] == [bad]


@pytest.mark.parametrize(
    "spec",
    ["[]", "{}", """{"types": [1], "sink": "s"}""", """{"filter": {"sql": 1}}""", "{"],
)
class TestUnreadableSubscription(StoreTests):
    async def test_who_works_is_told_and_who_looks_sees_the_others(
        self, store: Store, database: Database, spec: str
    ) -> None:
        if spec == "{" and database.dsn.scheme != "sqlite":
            pytest.skip("PostgreSQL takes no such value")
        known = [Subscription(name=name, sink="s") for name in ("a", "b", "c")]
        await store.registry.put_subscriptions(known, "file")
        whole = spec
        if len(spec) > 2:  # the rest of it is sound
            whole = json.dumps(known[1].to_json() | json.loads(spec))
        plant = text("UPDATE subscriptions SET spec = :spec WHERE name = 'b'")
        if database.dsn.scheme != "sqlite":
            plant = text("UPDATE subscriptions SET spec = CAST(:spec AS json) WHERE name = 'b'")
        async with database.client.begin() as connection:
            await connection.execute(plant, {"spec": whole})
        records = SqlRecords(database.new_engine())
        with pytest.raises(
            StorageError, match=r"subscription 'b' cannot be read: .*; start a runner whose file has it"
        ):
            await store.registry.subscriptions()
        with capture_logs() as logged:
            listed = await records.registered()
        assert [each.subscription.name for each, _, _ in listed] == ["a", "c"]
        assert {line["event"] for line in logged} == {"subscription left out"}
        await store.registry.put_subscriptions(known, "file")  # the next start mends it
        assert len((await store.registry.subscriptions())[1]) == 3
