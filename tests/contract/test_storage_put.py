"""The contract of what changes one subscription, or one schedule, depending on what is there."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from runner.errors import ChangedMeanwhile, NotFound, StateConflict
from runner.operations.preconditions import UNCONDITIONAL, Precondition, schedule_tag, subscription_tag
from runner.policies.schedule import EventTemplate, Schedule
from runner.storage.contract.registry import Put
from runner.storage.contract.schedules import PutSchedule
from runner.subscription import Destination, Subscription

from .storage_contract import Store, StoreTests

MINE = Subscription(name="mine", sink="log", types=("a",))
OWN = replace(
    MINE,
    sink="destination:mine",
    destination=Destination(kind="webhook", shown={"url": "https://a.example/"}, sealed="k:text"),
    expires_at=datetime(2037, 1, 1, tzinfo=UTC),
)
PULSE = Schedule(name="pulse", every=timedelta(hours=1), event=EventTemplate(type="pulse"))
ANY = UNCONDITIONAL.check_subscription
NONE_YET = Precondition(none_match={"*"})


def only(tag: str) -> Precondition:
    return Precondition(frozenset({tag}))


async def put(store: Store, subscription: Subscription = MINE, precondition: Precondition = UNCONDITIONAL) -> Put:
    return await store.registry.put(subscription, f"api:{subscription.name}", precondition.check_subscription)


class TestPut(StoreTests):
    async def test_it_says_what_it_did_and_returns_what_is_there(self, store: Store) -> None:
        made = await put(store, OWN)
        assert (made.created, made.changed, made.registered.subscription) == (True, True, OWN)
        assert (await put(store, OWN))[1:] == (False, False)
        assert (await put(store))[1:] == (False, True)
        _, [kept] = await store.registry.subscriptions()
        assert (kept.subscription, kept.id) == (MINE, made.registered.id)

    async def test_what_is_for_dead_letters_comes_and_goes_with_it(self, store: Store) -> None:
        await put(store, replace(MINE, dead_letter="log"))
        assert len((await store.registry.subscriptions())[1]) == 2
        assert (await put(store)).changed
        assert len((await store.registry.subscriptions())[1]) == 1

    async def test_that_of_the_file_stays_the_file_s(self, store: Store) -> None:
        await store.registry.put_subscriptions([MINE], "file")
        with pytest.raises(StateConflict, match="in the file; change it there"):
            await put(store, replace(MINE, types=("b",)))
        assert [each.subscription for each in (await store.registry.subscriptions())[1]] == [MINE]

    @pytest.mark.parametrize("precondition", ["same tag", "none yet"])
    async def test_of_two_at_once_one_is_refused(self, store: Store, other: Store, precondition: str) -> None:
        wanted = NONE_YET
        if precondition == "same tag":
            wanted = only(subscription_tag((await put(store)).registered))
        for number in range(10):
            results = await asyncio.gather(
                put(store, replace(MINE, types=(f"left.{number}",)), wanted),
                put(other, replace(MINE, types=(f"right.{number}",)), wanted),
                return_exceptions=True,
            )
            assert sorted(type(each).__name__ for each in results) == ["ChangedMeanwhile", "Put"]
            [done] = [each for each in results if isinstance(each, Put)]
            _, [kept] = await store.registry.subscriptions()
            assert kept.subscription == done.registered.subscription
            if precondition == "same tag":
                wanted = only(subscription_tag(done.registered))
            else:
                await store.registry.remove("mine")

    async def test_a_change_refused_changes_nothing(self, store: Store) -> None:
        with pytest.raises(ChangedMeanwhile):
            await put(store, precondition=only('"none"'))
        assert (await store.registry.subscriptions())[1] == []
        await put(store)
        version, before = await store.registry.subscriptions()
        for refused in (NONE_YET, only('"other"')):
            with pytest.raises(ChangedMeanwhile):
                await put(store, OWN, refused)
        assert await store.registry.subscriptions() == (version, before)


class TestRetire(StoreTests):
    async def test_a_retired_one_is_served_no_more_and_can_be_removed(self, store: Store) -> None:
        tag = subscription_tag((await put(store, replace(MINE, dead_letter="log"))).registered)
        with pytest.raises(ChangedMeanwhile):
            await store.registry.retire("mine", only('"other"').check_subscription)
        await store.registry.retire("mine", only(tag).check_subscription)
        assert (await store.registry.subscriptions())[1] == []
        await store.registry.remove("mine", retired=True)
        with pytest.raises(NotFound):
            await store.registry.retire("mine", ANY)

    async def test_one_that_is_put_again_meanwhile_stays(self, store: Store) -> None:
        await put(store)
        await store.registry.retire("mine", ANY)
        await put(store, OWN)
        await store.registry.remove("mine", retired=True)
        assert [each.subscription for each in (await store.registry.subscriptions())[1]] == [OWN]

    async def test_of_a_put_and_a_removal_for_one_state_one_is_refused(self, store: Store, other: Store) -> None:
        for number in range(6):
            tag = subscription_tag((await put(store)).registered)
            results = await asyncio.gather(
                put(store, replace(MINE, types=(f"b.{number}",)), only(tag)),
                other.registry.retire("mine", only(tag).check_subscription),
                return_exceptions=True,
            )
            assert sum(isinstance(each, ChangedMeanwhile) for each in results) >= 1
            await store.registry.remove("mine")


class TestReseal(StoreTests):
    async def test_it_writes_what_means_the_same_where_nothing_has_changed(self, store: Store) -> None:
        await put(store, OWN)
        assert OWN.destination is not None
        resealed = replace(OWN, destination=replace(OWN.destination, sealed="new:text"))
        before = (await store.registry.subscriptions())[0]
        assert await store.registry.reseal("mine", OWN, resealed)
        version, [kept] = await store.registry.subscriptions()
        assert (kept.subscription, version) == (resealed, before + 1)
        assert not await store.registry.reseal("mine", OWN, resealed)


class TestExpiry(StoreTests):
    async def test_the_store_s_clock_says_what_has_expired(self, store: Store) -> None:
        await put(store, replace(MINE, expires_at=datetime(2001, 1, 1, tzinfo=UTC)))
        await put(store, replace(OWN, name="later"))
        await put(store, replace(MINE, name="never"))
        _, known = await store.registry.subscriptions()
        assert {each.subscription.name: each.expired for each in known} == {
            "mine": True,
            "later": False,
            "never": False,
        }
        listed = {each.subscription.name: active for each, active, _ in await store.records.registered()}
        assert listed == {"mine": False, "later": True, "never": True}


class TestPutSchedule(StoreTests):
    async def test_of_two_at_once_one_is_refused(self, store: Store, other: Store) -> None:
        wanted = NONE_YET
        for number in range(10):
            left, right = (replace(PULSE, every=timedelta(minutes=number * 2 + each)) for each in (2, 3))
            results = await asyncio.gather(
                store.schedules.put(left, "api", wanted.check_schedule),
                other.schedules.put(right, "api", wanted.check_schedule),
                return_exceptions=True,
            )
            assert sorted(type(each).__name__ for each in results) == ["ChangedMeanwhile", "PutSchedule"]
            [done] = [each for each in results if isinstance(each, PutSchedule)]
            assert (await store.schedules.one("pulse")).schedule == done.view.schedule
            wanted = only(schedule_tag(done.view))

    async def test_a_removal_for_another_state_is_refused(self, store: Store) -> None:
        made = await store.schedules.put(PULSE, "api")
        with pytest.raises(ChangedMeanwhile):
            await store.schedules.remove("pulse", only('"other"').check_schedule)
        await store.schedules.remove("pulse", only(schedule_tag(made.view)).check_schedule)
        assert await store.schedules.all() == []
