"""The contract of `Registry`: who owns the tables, what is subscribed, who is alive."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import delete, null, update

from runner.delivery import DeliveryState
from runner.errors import ForeignDeployment, NotFound, SchemaMismatch, StorageUnavailable
from runner.policies.breaker import BreakerPolicy, Trip
from runner.policies.retry import RetryPolicy
from runner.storage.contract.registry import Health, Instance, Orphan, StrategyHealth
from runner.storage.contract.settlements import Run, Settled
from runner.storage.records import SqlRecords
from runner.storage.tables import bus, deliveries, instances, subscriptions
from runner.storage.tokens import holder_of
from runner.subscription import Subscription

from .storage_contract import LEASE, Database, Store, StoreTests, publication, publish, record, settled, soon, wait

ORDERS = Subscription(
    name="orders",
    sink="crm",
    types=("order.*", "refund"),
    source="/shop/*",
    filter={"prefix": {"subject": "eu/"}, "not": {"exact": {"tenant": "größe"}}},
    concurrency=3,
    timeout=timedelta(seconds=1.5),
    retry=RetryPolicy(max_attempts=5, delay=timedelta(milliseconds=250), max_delay=timedelta(hours=2), jitter=0.5),
    breaker=BreakerPolicy(failures=7, pause=timedelta(milliseconds=500), max_pause=timedelta(hours=1)),
)
AUDIT = Subscription(name="audit", sink="log", breaker=None)


async def names(store: Store) -> list[str]:
    _, registered = await store.registry.subscriptions()
    return [each.subscription.name for each in registered]


async def version(store: Store) -> int:
    return (await store.registry.subscriptions())[0]


class TestAdopt(StoreTests):
    async def test_the_first_deployment_owns_the_tables(self, store: Store, other: Store, database: Database) -> None:
        await store.registry.adopt("prod")
        await other.registry.adopt("prod")
        assert [row["deployment_id"] for row in await database.rows(bus)] == ["prod"]

    async def test_another_deployment_is_refused_by_name_with_the_cure(
        self, store: Store, other: Store, database: Database
    ) -> None:
        await store.registry.adopt("prod")
        with pytest.raises(ForeignDeployment, match=r"'prod'.*'staging'.*storage\.schema"):
            await other.registry.adopt("staging")
        assert [row["deployment_id"] for row in await database.rows(bus)] == ["prod"]

    async def test_of_two_that_come_at_once_one_wins(self, store: Store, other: Store) -> None:
        results = await asyncio.gather(store.registry.adopt("a"), other.registry.adopt("b"), return_exceptions=True)
        assert sum(isinstance(result, ForeignDeployment) for result in results) == 1
        assert sum(result is None for result in results) == 1

    @pytest.fixture(params=["sqlite", "postgres"])
    def empty_dsn(self, request: pytest.FixtureRequest, tmp_path: Path) -> str:
        if request.param == "sqlite":
            return f"sqlite:///{tmp_path / 'empty.db'}"
        return str(request.getfixturevalue("postgres_dsn"))

    async def test_without_tables_the_error_says_so(self, empty_dsn: str) -> None:
        empty = Database(empty_dsn)
        try:
            with pytest.raises(SchemaMismatch, match="migrate"):
                await empty.open().registry.adopt("prod")
        finally:
            await empty.close()


class TestPutSubscriptions(StoreTests):
    async def test_what_is_put_is_what_is_read(self, store: Store, other: Store) -> None:
        await store.registry.put_subscriptions([ORDERS, AUDIT], "file")
        _, registered = await other.registry.subscriptions()
        assert [each.subscription for each in registered] == [ORDERS, AUDIT]
        assert [each.id for each in registered] == sorted({each.id for each in registered})
        assert [(each.paused, each.origin) for each in registered] == [(False, "file")] * 2

    async def test_the_version_goes_up_when_and_only_when_something_changed(self, store: Store) -> None:
        seen = [await version(store)]
        for wanted, changes in (
            ([ORDERS, AUDIT], True),
            ([ORDERS, AUDIT], False),
            ([AUDIT, ORDERS], False),
            ([replace(ORDERS, concurrency=4), AUDIT], True),
            ([AUDIT], True),
            ([AUDIT], False),
            ([], True),
            ([], False),
        ):
            await store.registry.put_subscriptions(wanted, "file")
            seen.append(await version(store))
            assert (seen[-1] > seen[-2]) == changes, wanted

    async def test_two_that_differ_by_their_filter_only_are_two(self, store: Store) -> None:
        pair = [replace(ORDERS, name=name, filter={"exact": {"source": f"/{name}"}}) for name in ("one", "two")]
        await store.registry.put_subscriptions(pair, "file")
        assert [each.subscription for each in (await store.registry.subscriptions())[1]] == pair
        await store.registry.put_subscriptions([], "file")
        assert (await store.registry.subscriptions())[1] == []

    async def test_a_claim_brings_the_version(self, store: Store, other: Store) -> None:
        assert (await other.queue.claim(1, LEASE)).version == await version(store)
        await store.registry.put_subscriptions([ORDERS], "file")
        await publish(store, 1)
        assert (await other.queue.claim(1, LEASE)).version == await version(store)
        assert (await other.queue.claim(1, LEASE)).version == await version(store)

    async def test_a_name_keeps_its_id_over_change_removal_and_return(self, store: Store) -> None:
        await store.registry.put_subscriptions([AUDIT, ORDERS], "file")
        _, [_, before] = await store.registry.subscriptions()
        await store.registry.put_subscriptions([replace(ORDERS, sink="elsewhere")], "file")
        _, [changed] = await store.registry.subscriptions()
        await store.registry.put_subscriptions([], "file")
        assert await names(store) == []
        await store.registry.put_subscriptions([ORDERS], "file")
        _, [back] = await store.registry.subscriptions()
        assert before.id == changed.id == back.id
        assert changed.subscription.sink == "elsewhere"

    async def test_a_removed_name_keeps_its_deliveries(self, store: Store, database: Database) -> None:
        await store.registry.put_subscriptions([ORDERS], "file")
        _, [registered] = await store.registry.subscriptions()
        [seq] = await publish(store, 1)
        claim = await store.queue.claim(1, LEASE)
        waiting = record(seq, registered.id, DeliveryState.PENDING, 0)
        await store.queue.settle(Settled(claim.token, claim.works, [Run((), 1)], [waiting]))
        await store.registry.put_subscriptions([], "file")
        assert [row["subscription_id"] for row in await database.rows(deliveries)] == [registered.id]
        assert await database.count(subscriptions) == [1]

    async def test_a_pause_survives_change_removal_and_return(self, store: Store) -> None:
        await store.registry.put_subscriptions([ORDERS], "file")
        await store.registry.set_paused("orders", True)
        for wanted in ([replace(ORDERS, concurrency=9)], [], [ORDERS]):
            await store.registry.put_subscriptions(wanted, "file")
        _, [registered] = await store.registry.subscriptions()
        assert registered.paused

    async def test_origins_do_not_touch_each_other(self, store: Store) -> None:
        await store.registry.put_subscriptions([ORDERS], "file")
        await store.registry.put_subscriptions([AUDIT], "api")
        await store.registry.put_subscriptions([], "file")
        assert await names(store) == ["audit"]

    async def test_a_name_belongs_to_the_origin_that_gave_it_last(self, store: Store) -> None:
        await store.registry.put_subscriptions([ORDERS], "api")
        await store.registry.put_subscriptions([ORDERS], "file")
        await store.registry.put_subscriptions([], "api")
        _, [registered] = await store.registry.subscriptions()
        assert registered.origin == "file"

    async def test_instances_that_start_together_agree(self, store: Store, other: Store) -> None:
        before = await version(store)
        wanted = [replace(AUDIT, name=f"s{number}") for number in range(10)]
        await asyncio.gather(*[each.registry.put_subscriptions(wanted, "file") for each in (store, other) * 3])
        after, registered = await store.registry.subscriptions()
        assert [each.subscription for each in registered] == wanted
        assert after == before + 1


class TestBreaker(StoreTests):
    MINUTE = Trip(1, timedelta(minutes=1))

    async def read(self, store: Store) -> tuple[int, Trip | None, int]:
        """Return the subscription's id, how its breaker is, and the version of the set."""
        version, [one] = await store.registry.subscriptions()
        return one.id, one.breaker, version

    async def test_what_one_instance_tells_all_know(self, store: Store, other: Store) -> None:
        await store.registry.put_subscriptions(
            [replace(ORDERS, breaker=BreakerPolicy(pause=timedelta(minutes=1)))], "file"
        )
        id, trip, before = await self.read(other)
        assert trip is None
        assert await store.registry.set_breaker(id, self.MINUTE, known=0)
        _, trip, opened = await self.read(other)
        assert trip is not None
        assert trip.number == 1
        assert timedelta(seconds=30) < trip.left <= timedelta(minutes=1)
        assert (await other.queue.claim(1, LEASE)).version == opened == before + 1
        assert await other.registry.set_breaker(id, None, known=1)
        assert await self.read(store) == (id, None, before + 2)
        assert not await store.registry.set_breaker(id, None, known=1)
        assert await self.read(store) == (id, None, before + 2)

    async def test_a_pause_that_is_over_is_not_closed(self, store: Store) -> None:
        await store.registry.put_subscriptions([ORDERS], "file")
        id, _, _ = await self.read(store)
        assert await store.registry.set_breaker(id, Trip(3, timedelta(seconds=-1)), known=0)
        _, trip, _ = await self.read(store)
        assert trip is not None
        assert (trip.number, trip.left <= timedelta(seconds=-1)) == (3, True)

    async def test_of_several_that_see_the_same_failures_one_counts(self, store: Store, other: Store) -> None:
        await store.registry.put_subscriptions([ORDERS], "file")
        id, _, before = await self.read(store)
        same = [each.registry.set_breaker(id, self.MINUTE, known=0) for each in (store, other) * 2]
        assert sorted(await asyncio.gather(*same)) == [False, False, False, True]
        _, trip, version = await self.read(store)
        assert trip is not None
        assert (trip.number, version) == (1, before + 1)

    async def test_a_success_counts_whoever_knew_what_and_a_failure_after_it_does_not(
        self, store: Store, other: Store
    ) -> None:
        await store.registry.put_subscriptions([ORDERS], "file")
        id, _, _ = await self.read(store)
        await store.registry.set_breaker(id, Trip(1, timedelta(0)), known=0)
        await store.registry.set_breaker(id, Trip(2, timedelta(0)), known=1)
        assert await other.registry.set_breaker(id, None, known=1)
        assert not await store.registry.set_breaker(id, Trip(3, timedelta(0)), known=2)
        assert (await self.read(store))[1] is None

    @pytest.mark.parametrize("paused", [True, False])
    async def test_a_resumption_closes_it(self, store: Store, paused: bool) -> None:
        await store.registry.put_subscriptions([ORDERS], "file")
        id, _, _ = await self.read(store)
        await store.registry.set_breaker(id, self.MINUTE, known=0)
        if paused:
            assert await store.registry.set_paused("orders", True)
            assert (await self.read(store))[1] is not None
        assert await store.registry.set_paused("orders", False)
        assert (await self.read(store))[1] is None
        assert not await store.registry.set_paused("orders", False)

    async def test_a_subscription_that_changes_begins_anew_and_one_that_does_not_stays(self, store: Store) -> None:
        await store.registry.put_subscriptions([ORDERS], "file")
        id, _, _ = await self.read(store)
        await store.registry.set_breaker(id, self.MINUTE, known=0)
        await store.registry.put_subscriptions([ORDERS], "file")
        assert (await self.read(store))[1] is not None
        await store.registry.put_subscriptions([replace(ORDERS, sink="elsewhere")], "file")
        assert (await self.read(store))[1] is None


class TestForDeadLetters(StoreTests):
    async def test_it_comes_changes_and_goes_with_its_subscription(self, store: Store) -> None:
        wanted = replace(ORDERS, dead_letter="log")
        await store.registry.put_subscriptions([wanted, AUDIT], "file")
        _, [orders, _, letters] = await store.registry.subscriptions()
        assert orders.subscription == wanted
        assert letters.subscription == wanted.for_dead_letters()
        assert (letters.subscription.name, letters.subscription.sink) == ("orders.dead-letter", "log")
        assert (letters.subscription.dead_letter_of, letters.origin) == ("orders", "file")
        seen = await version(store)
        await store.registry.put_subscriptions([wanted, AUDIT], "file")
        assert await version(store) == seen
        await store.registry.put_subscriptions([replace(wanted, dead_letter="mail"), AUDIT], "file")
        _, [_, _, changed] = await store.registry.subscriptions()
        assert (changed.id, changed.subscription.sink) == (letters.id, "mail")
        await store.registry.put_subscriptions([ORDERS, AUDIT], "file")
        assert await names(store) == ["orders", "audit"]
        await store.registry.put_subscriptions([wanted], "file")
        await store.registry.put_subscriptions([], "file")
        assert await names(store) == []


class TestPause(StoreTests):
    async def test_it_says_whether_it_changed_anything_and_everybody_hears(self, store: Store, other: Store) -> None:
        await store.registry.put_subscriptions([ORDERS, AUDIT], "file")
        seen = await version(store)
        assert await store.registry.set_paused("orders", True)
        assert not await other.registry.set_paused("orders", True)
        paused, [orders, audit] = await other.registry.subscriptions()
        assert (orders.paused, audit.paused) == (True, False)
        assert paused == seen + 1
        assert await other.registry.set_paused("orders", False)
        resumed, [orders, _] = await store.registry.subscriptions()
        assert not orders.paused
        assert resumed == seen + 2

    async def test_an_unknown_name_is_named(self, store: Store) -> None:
        with pytest.raises(NotFound, match="'oders'"):
            await store.registry.set_paused("oders", True)


class TestRemove(StoreTests):
    async def test_it_goes_with_the_one_for_its_dead_letters_and_everybody_hears(
        self, store: Store, other: Store
    ) -> None:
        await store.registry.put_subscriptions([replace(ORDERS, dead_letter="log"), AUDIT], "file")
        seen, [orders, *_] = await other.registry.subscriptions()
        await store.registry.remove("orders")
        assert await names(other) == ["audit"]
        assert await version(other) == seen + 1
        await store.registry.put_subscriptions([ORDERS, AUDIT], "file")
        _, [_, again] = await store.registry.subscriptions()
        assert again.subscription == ORDERS
        assert again.id > orders.id  # what was recorded of the old one is not the new one's

    async def test_what_waits_for_it_is_a_stray(self, store: Store) -> None:
        await store.registry.put_subscriptions([ORDERS], "file")
        _, [orders] = await store.registry.subscriptions()
        await wait(store, orders.id)
        await store.registry.remove("orders")
        assert await store.registry.orphans() == [Orphan(orders.id, True, "its subscription was deleted")]

    async def test_an_unknown_name_is_named(self, store: Store) -> None:
        with pytest.raises(NotFound, match="'oders'"):
            await store.registry.remove("oders")


class TestPaused(StoreTests):
    async def test_who_paused_it_and_when_is_kept_until_it_is_resumed(self, store: Store, database: Database) -> None:
        await store.registry.put_subscriptions([ORDERS], "file")
        await store.registry.set_paused("orders", True, "ops@bastion")
        _, [paused] = await store.registry.subscriptions()
        assert paused.paused_by == "ops@bastion"
        assert paused.paused_at is not None
        assert abs(paused.paused_at - datetime.now(UTC)) < timedelta(minutes=1)
        await store.registry.set_paused("orders", True, "somebody else")  # it is paused already
        assert await store.registry.subscriptions() == (2, [paused])
        await store.registry.set_paused("orders", False, "ops@bastion")
        _, [resumed] = await store.registry.subscriptions()
        assert (resumed.paused_at, resumed.paused_by) == (None, None)

    async def test_one_that_the_version_before_paused_says_neither(self, store: Store, database: Database) -> None:
        await store.registry.put_subscriptions([ORDERS], "file")
        await database.execute(update(subscriptions).values(paused=True))
        _, [paused] = await store.registry.subscriptions()
        assert (paused.paused, paused.paused_at, paused.paused_by) == (True, None, None)


class TestStrays(StoreTests):
    SECOND = timedelta(seconds=1)

    async def there(self, store: Store, name: str = "i1", sinks: Sequence[str] = ("log",)) -> None:
        await store.registry.beat(Instance(name, "host", 7, "0.1"), Health(sinks=sinks))

    async def test_a_sink_that_no_live_instance_has(self, store: Store, database: Database) -> None:
        await store.registry.put_subscriptions([ORDERS, AUDIT], "file")
        assert await store.registry.orphans() == []  # nobody says anything
        await self.there(store)
        _, [orders, _] = await store.registry.subscriptions()
        assert await store.registry.orphans() == [Orphan(orders.id, False, "no live instance has a sink 'crm'")]
        await self.there(store, "i2", ["crm"])
        assert await store.registry.orphans() == []
        late = update(instances).where(instances.c.id == "i2")
        await database.execute(late.values(heartbeat_at=datetime.now(UTC) - 31 * self.SECOND))
        assert [orphan.subscription_id for orphan in await store.registry.orphans()] == [orders.id]
        await self.there(store, "older")
        await database.execute(update(instances).where(instances.c.id == "older").values(sinks=null()))
        assert await store.registry.orphans() == []  # it may have it

    async def test_what_is_paused_inactive_or_of_a_function_waits(self, store: Store) -> None:
        await self.there(store, sinks=())
        await store.registry.put_subscriptions([replace(ORDERS, name="f")], "function:f")
        await store.registry.put_subscriptions([ORDERS, AUDIT], "file")
        await store.registry.set_paused("orders", True)
        await store.registry.put_subscriptions([ORDERS], "file")
        assert await store.registry.orphans() == []

    async def test_a_subscription_that_is_no_more(self, store: Store, database: Database) -> None:
        await store.registry.put_subscriptions([AUDIT], "file")
        _, [audit] = await store.registry.subscriptions()
        await wait(store, audit.id)
        assert await store.registry.orphans() == []
        for gone in (audit.id + 3, audit.id + 9):
            await wait(store, gone, 2, due_in=timedelta(hours=1))
        why = "its subscription was deleted"
        assert await store.registry.orphans() == [Orphan(audit.id + 3, True, why), Orphan(audit.id + 9, True, why)]
        await database.execute(delete(subscriptions))
        assert [orphan.subscription_id for orphan in await store.registry.orphans()] == [
            audit.id,
            audit.id + 3,
            audit.id + 9,
        ]


class TestInstances(StoreTests):
    async def test_a_beat_moves_the_heartbeat_and_not_the_start(self, store: Store, database: Database) -> None:
        one, two = Instance("i1", "host", 7, "0.1"), Instance("i2", "host", 8, "0.1")
        await store.registry.beat(one, Health())
        await store.registry.beat(two, Health())
        [first, _] = await database.rows(instances)
        assert (first["id"], first["host"], first["pid"], first["version"]) == ("i1", "host", 7, "0.1")

        async def later() -> bool:
            await store.registry.beat(one, Health())
            [row, _] = await database.rows(instances)
            assert row["started_at"] == first["started_at"]
            return bool(row["heartbeat_at"] > first["heartbeat_at"])

        await soon(later)

    async def test_a_beat_says_how_the_instance_is(self, store: Store, database: Database) -> None:
        one = Instance("i1", "host", 7, "0.1")
        await store.registry.beat(one, Health())
        stalled, lag = timedelta(seconds=40), timedelta(milliseconds=1500)
        await store.registry.beat(one, Health(stalled=stalled, lag=lag, running=3, sinks=["a", "ü"]))
        [row] = await database.rows(instances)
        assert (row["lag_us"], row["running"], row["sinks"]) == (1_500_000, 3, ["a", "ü"])
        assert stalled <= row["heartbeat_at"] - row["progress_at"] + timedelta(milliseconds=1) < 2 * stalled

    async def test_a_beat_says_how_its_strategies_are_and_whose_leases_it_holds(
        self, store: Store, database: Database
    ) -> None:
        told = [StrategyHealth("polling", None, "every 30 s"), StrategyHealth("nats", False, "not connected")]
        await store.registry.beat(Instance("i1", "host", 7, "0.1"), Health(strategies=told))
        [view] = await SqlRecords(database.engine).instances()
        assert view.strategies == told
        await publish(store, 1)
        claim = await store.queue.claim(1, timedelta(seconds=30))
        assert holder_of(claim.token) == view.holder
        await store.registry.beat(Instance("i1", "host", 7, "0.1"), Health())
        [row] = await database.rows(instances)
        assert row["strategies"] is None  # not started

    async def test_what_a_version_before_or_after_says_of_strategies_is_read(
        self, store: Store, database: Database
    ) -> None:
        await store.registry.beat(Instance("i1", "host", 7, "0.1"), Health())
        said = [{"name": "nats", "hears": True, "detail": "", "lag": 3}]
        await database.execute(update(instances).values(strategies=said, holder=null()))
        [view] = await SqlRecords(database.engine).instances()
        assert (view.strategies, view.holder) == ([StrategyHealth("nats", True, "")], None)

    async def test_who_was_silent_for_a_day_is_forgotten_when_another_comes(
        self, store: Store, database: Database
    ) -> None:
        now = datetime.now(UTC)
        for name, silence in (("old", timedelta(hours=25)), ("late", timedelta(hours=23))):
            await store.registry.beat(Instance(name, "host", 7, "0.1"), Health())
            row = update(instances).where(instances.c.id == name)
            await database.execute(row.values(heartbeat_at=now - silence))
        await store.registry.beat(Instance("new", "host", 8, "0.1"), Health())
        assert [row["id"] for row in await database.rows(instances)] == ["late", "new"]
        await store.registry.beat(Instance("old", "host", 7, "0.1"), Health())  # it was only asleep
        assert [row["id"] for row in await database.rows(instances)] == ["late", "new", "old"]

    async def test_who_leaves_is_gone(self, store: Store, database: Database) -> None:
        await store.registry.beat(Instance("i1", "host", 7, "0.1"), Health())
        await store.registry.beat(Instance("i2", "host", 8, "0.1"), Health())
        await store.registry.leave("i1")
        await store.registry.leave("i1")
        await store.registry.leave("never was")
        assert [row["id"] for row in await database.rows(instances)] == ["i2"]

    async def test_the_channel_is_kept_for_sql_publishers(self, store: Store, database: Database) -> None:
        for channel in ("evb_1", "evb_1", "evb_2", None):
            await store.registry.set_channel(channel)
            assert [row["channel"] for row in await database.rows(bus)] == [channel]


class TestEnds(StoreTests):
    async def test_closing_is_safe_at_any_time(self, store: Store, database: Database) -> None:
        await database.open().close()
        await publish(store, 1)
        await store.close()
        await store.close()

    @pytest.mark.parametrize("unreachable", ["postgresql://u:sesame@127.0.0.1:1/db", "sqlite:///missing/runner.db"])
    async def test_an_unreachable_store_is_named_as_such_without_secrets(
        self, unreachable: str, tmp_path: Path
    ) -> None:
        nowhere = Database(unreachable, tmp_path)
        try:
            store = nowhere.open()
            for call in (
                store.events.append([publication()]),
                store.queue.claim(1, LEASE),
                store.registry.adopt("prod"),
                store.queue.promote(1),
            ):
                with pytest.raises(StorageUnavailable) as caught:
                    await call
                assert "sesame" not in str(caught.value)
                assert "number" not in str(caught.value)
        finally:
            await nowhere.close()

    async def test_a_full_circle(self, store: Store, other: Store, database: Database) -> None:
        await store.registry.adopt("prod")
        await store.registry.put_subscriptions([AUDIT], "file")
        _, [audit] = await other.registry.subscriptions()
        seqs = await publish(store, 3)
        assert await other.queue.settle(settled(await other.queue.claim(10, LEASE), (audit.id,))) == 3
        rows = await database.rows(deliveries)
        assert [(row["event_seq"], row["subscription_id"], row["state"]) for row in rows] == [
            (seq, audit.id, "delivered") for seq in seqs
        ]
