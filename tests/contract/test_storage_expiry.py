"""The contract of events that are of use only until some time, on every store."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import BigInteger, literal, update
from sqlalchemy.ext.asyncio import AsyncSession

from runner.delivery import DeliveryState
from runner.event import Event, write_timestamp
from runner.storage.archive import SqlArchive
from runner.storage.contract.archive import Retention
from runner.storage.contract.claims import ExpiredClaim, RegulatedRequest
from runner.storage.contract.events import Publication, due_at_once
from runner.storage.contract.settlements import Run, Settled
from runner.storage.expressions import After
from runner.storage.tables import deliveries, dispatch, events, expiries, scheduled
from runner.subscription import Subscription

from .storage_contract import LEASE, Database, Store, StoreTests, publication, publish, record, settled, wait

HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
PENDING, LEASED, DELIVERED, DEAD, CANCELLED = DeliveryState


async def perishable(store: Store, expires_in: timedelta = -MINUTE, count: int = 1) -> list[Publication]:
    expiry = write_timestamp(await store.events.now() + expires_in)
    made = [publication(number).event for number in range(count)]
    return [Publication(each.replace(extensions={"expirytime": expiry})) for each in made]


async def age(database: Database, by: timedelta) -> None:
    """Have time go by for all that expires."""
    shift = literal(-by // timedelta(microseconds=1), BigInteger)
    values = {column.key: After(column, shift) for column in (expiries.c.expires_at, expiries.c.look_at)}
    await database.execute(update(expiries).values(values))


def keys(claim: ExpiredClaim) -> list[tuple[int, int]]:
    return sorted((each.seq, each.subscription_id) for each in claim.deliveries)


class TestAppend(StoreTests):
    async def test_events_without_it_leave_no_trace_and_go_the_short_way(
        self, store: Store, database: Database
    ) -> None:
        plain = [publication(number) for number in range(20)]
        assert due_at_once(plain)
        assert due_at_once([Publication(publication().event.replace(extensions={"tenant": "a"}))])
        assert not due_at_once([*plain, *await perishable(store)])
        await store.events.append(plain)
        assert await database.count(expiries) == [0]

    @pytest.mark.parametrize("count", [1, 40])
    async def test_when_it_expires_is_recorded_once(self, store: Store, database: Database, count: int) -> None:
        made = await perishable(store, HOUR, count)
        assert all(receipt.duplicate is False for receipt in await store.events.append([*made, publication()]))
        assert all(receipt.duplicate for receipt in await store.events.append(made))
        rows = await database.rows(expiries)
        found = {row["seq"]: row["extensions"] for row in await database.rows(events) if row["extensions"]}
        assert [row["event_seq"] for row in rows] == list(found)
        for row in rows:
            assert write_timestamp(row["expires_at"]) == found[row["event_seq"]]["expirytime"]
            assert row["look_at"] == row["expires_at"]
        assert await database.count(dispatch, scheduled) == [count + 1, 0]

    async def test_also_inside_a_session_and_later(self, store: Store, database: Database) -> None:
        [one], [other] = await perishable(store, HOUR), await perishable(store, HOUR)
        async with AsyncSession(database.engine) as session, session.begin():
            await store.events.append_in(session, [one])
        await store.events.append([other._replace(delay=MINUTE)])
        assert await database.count(expiries, dispatch, scheduled) == [2, 1, 1]

    async def test_it_goes_with_its_event(self, store: Store, database: Database) -> None:
        await store.events.append(await perishable(store, HOUR))
        await store.queue.settle(settled(await store.queue.claim(10, LEASE), ()))
        pruned = await SqlArchive(database.engine).prune(Retention(delivered=timedelta(microseconds=1)), 0, 10)
        assert pruned.events == 1
        assert await database.count(expiries, events) == [0, 0]


class TestClock(StoreTests):
    async def test_every_claim_tells_the_time_of_the_store(self, store: Store) -> None:
        before = await store.events.now()
        await wait(store, 1)
        await publish(store, 1)
        told: list[datetime | None] = [
            (await store.queue.claim(10, LEASE)).now,
            (await store.queue.claim(0, LEASE)).now,
        ]
        told.append((await store.queue.claim_deliveries({1: 1}, LEASE)).now)
        told.append((await store.queue.claim_deliveries({1: 1}, LEASE)).now)
        told.append((await store.queue.claim_regulated(RegulatedRequest(1, 5, True, None), LEASE)).now)
        after = await store.events.now()
        assert all(moment is not None and before <= moment <= after for moment in told), (before, told, after)


class TestClaimExpired(StoreTests):
    @pytest.fixture
    async def ids(self, store: Store) -> Sequence[int]:
        """The ids of three subscriptions; the last one is for the dead letters of the first."""
        made = [Subscription(name="one", sink="log", dead_letter="log"), Subscription(name="two", sink="log")]
        await store.registry.put_subscriptions(made, "file")
        known = {each.subscription.name: each.id for each in (await store.registry.subscriptions())[1]}
        return [known[name] for name in ("one", "two", "one.dead-letter")]

    async def left(self, store: Store, ids: Sequence[int], expires_in: timedelta = -MINUTE, **record_: Any) -> int:
        """Leave deliveries of one event that wait for each of `ids`; return its seq."""
        [receipt] = await store.events.append(await perishable(store, expires_in))
        claim = await store.queue.claim(1, LEASE)
        records = [record(receipt.seq, id, PENDING, claim.token, due_in=HOUR) for id in ids]
        await store.queue.settle(Settled(claim.token, claim.works, [Run((), 1)], records))
        return receipt.seq

    async def test_what_waits_whatever_for_but_no_dead_letter(
        self, store: Store, database: Database, ids: Sequence[int]
    ) -> None:
        await store.registry.set_paused("two", True)
        seq = await self.left(store, ids)
        await self.left(store, ids, HOUR)
        claim = await store.queue.claim_expired(10, LEASE)
        assert keys(claim) == [(seq, ids[0]), (seq, ids[1])]
        rows = {(row["event_seq"], row["subscription_id"]): row for row in await database.rows(deliveries)}
        assert {rows[key]["state"] for key in keys(claim)} == {"leased"}
        assert rows[seq, ids[2]]["state"] == "pending"
        [one, _] = claim.deliveries
        assert one.attempt == rows[one.seq, one.subscription_id]["attempts"]
        assert timedelta(0) < (await store.events.now() - one.expired_at) < HOUR
        dead = [record(each.seq, each.subscription_id, DEAD, claim.token) for each in claim.deliveries]
        assert len(await store.queue.settle_deliveries(dead)) == 2
        assert keys(await store.queue.claim_expired(10, LEASE)) == []

    async def test_what_runs_is_left_to_its_holder_until_its_lease_is_over(
        self, store: Store, database: Database, ids: Sequence[int]
    ) -> None:
        [seq] = await wait(store, ids[0])
        await store.events.append(await perishable(store, HOUR))
        moved = update(expiries).values(
            event_seq=seq, expires_at=await store.events.now(), look_at=await store.events.now()
        )
        await database.execute(moved)
        held = await store.queue.claim_deliveries({ids[0]: 1}, LEASE)
        assert keys(await store.queue.claim_expired(10, LEASE)) == []
        await database.execute(update(deliveries).values(due_at=await store.events.now()))
        await age(database, 2 * MINUTE)
        claim = await store.queue.claim_expired(10, LEASE)
        assert keys(claim) == [(seq, ids[0])]
        assert not await store.queue.settle_deliveries([record(seq, ids[0], DELIVERED, held.token)])

    async def test_two_never_take_the_same(
        self, store: Store, other: Store, database: Database, ids: Sequence[int]
    ) -> None:
        seqs = {await self.left(store, ids[:1]) for _ in range(6)}
        first, second = await store.queue.claim_expired(4, LEASE), await other.queue.claim_expired(4, LEASE)
        assert {seq for seq, _ in keys(first)}.isdisjoint(seq for seq, _ in keys(second))
        assert {seq for seq, _ in keys(first) + keys(second)} == seqs
        assert (first.again_in, len(first.deliveries)) == (timedelta(0), 4)
        assert first.token != second.token

    async def test_what_was_to_be_dispatched_later_is_due_now(self, store: Store, database: Database) -> None:
        [one] = await perishable(store)
        await store.events.append([one._replace(delay=HOUR)])
        claim = await store.queue.claim_expired(10, LEASE)
        assert (claim.due_now, list(claim.deliveries)) == (1, [])
        assert await store.queue.promote(10) == 1

    async def test_it_says_when_to_look_again(self, store: Store) -> None:
        assert (await store.queue.claim_expired(10, LEASE)).again_in is None
        await store.events.append(await perishable(store, HOUR))
        again_in = (await store.queue.claim_expired(10, LEASE)).again_in
        assert again_in is not None
        assert HOUR - MINUTE < again_in <= HOUR

    async def test_a_row_goes_once_nothing_can_come_any_more(
        self, store: Store, database: Database, ids: Sequence[int]
    ) -> None:
        """A dispatch that began before may write deliveries a little later."""
        await store.events.append(await perishable(store, timedelta(0)))
        assert (await store.queue.claim_expired(10, LEASE)).deliveries == []
        assert await database.count(expiries) == [1]
        await age(database, 2 * MINUTE)
        await store.queue.claim_expired(10, LEASE)
        assert await database.count(expiries) == [0]

    async def test_a_row_stays_while_something_waits_or_is_scheduled(
        self, store: Store, database: Database, ids: Sequence[int]
    ) -> None:
        seq = await self.left(store, ids[:1])
        [one] = await perishable(store)
        await store.events.append([one._replace(delay=HOUR)])
        for _ in range(2):
            await age(database, 2 * MINUTE)
            await store.queue.claim_expired(10, LEASE)
            assert await database.count(expiries) == [2]
        await store.queue.promote(10)
        claimed = [row for row in await database.rows(deliveries) if row["event_seq"] == seq]
        await store.queue.settle_deliveries([record(seq, ids[0], DEAD, row["lease_token"]) for row in claimed])
        await age(database, 2 * MINUTE)
        await store.queue.claim_expired(10, LEASE)
        assert await database.count(expiries) == [0]


def test_an_event_tells_when_it_expires() -> None:
    event = Event(type="t", source="/s", extensions={"expirytime": "2026-01-31T12:00:00+01:00"})
    assert event.expires_at is not None
    assert write_timestamp(event.expires_at) == "2026-01-31T11:00:00Z"
    assert Event(type="t", source="/s").expires_at is None
    assert Event(type="t", source="/s", extensions={"expirytime": "soon"}).expires_at is None
