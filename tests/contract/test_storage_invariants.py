"""
The invariants of the store, each as a check, and the checks against stores that are broken on purpose.

A check that passes on a broken store would prove nothing about a sound one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from msgspec.structs import replace
from sqlalchemy import insert, text, update

from runner.delivery import DeliveryState
from runner.errors import StorageError
from runner.storage.contract.claims import Claim, DeliveryClaim
from runner.storage.contract.registry import Health, Instance
from runner.storage.contract.settlements import AttemptRecord, DeliveryRecord, Run, Settled
from runner.storage.errors import mapped_errors
from runner.storage.expressions import Now
from runner.storage.tables import attempts, deliveries, dispatch, scheduled
from runner.subscription import Subscription
from tests.support.faulty import Faulty
from tests.support.postgres import PostgresServer

from .storage_contract import (
    LEASE,
    SHORT,
    Database,
    Store,
    StoreTests,
    claim_delivery_soon,
    claim_soon,
    leased,
    opened,
    publish,
    record,
    settled,
    soon,
    wait,
)

# What a claim of three events comes to: one run of neighbours that went to the same subscriptions, or several.
ONE_RUN: Sequence[Run] = [Run((1,), 3)]
RUNS: Sequence[Run] = [Run((1,), 1), Run((1, 3), 1), Run((), 1)]


class Broken(Faulty):
    """A store with one fault, which a subclass puts around a sound one."""

    def __init__(self, store: Store, database: Database) -> None:
        super().__init__(store)
        self.database = database


# --- 2 ---------------------------------------------------------------------------------------------


async def check_settle_is_atomic(store: Any, database: Database, runs: Sequence[Run]) -> None:
    """Let a settlement fail at the last table it writes: nothing of it may remain."""
    [seq, *_] = await publish(store, 3)
    claim = await store.queue.claim(10, LEASE)
    failed = record(seq, 2, DeliveryState.DEAD, 0)
    answer = Settled(claim.token, claim.works, runs, [failed], [AttemptRecord(seq, 2, 1, LEASE, "no")])
    await database.rename("attempts", "elsewhere")
    with pytest.raises(StorageError):
        await store.queue.settle(answer)
    await database.rename("elsewhere", "attempts")
    assert await database.count(dispatch, deliveries, attempts) == [3, 0, 0]
    assert await store.queue.settle(answer) == 3
    assert await database.count(dispatch, deliveries, attempts) == [0, 4, 1]


class RecordsLater(Broken):
    """Removes the rows of work in one transaction, and records attempts in the next."""

    async def settle(self, answer: Settled) -> int:
        await self.database.rename("elsewhere", "attempts")  # nothing is amiss yet
        held: int = await self.store.queue.settle(replace(answer, attempts=()))
        await self.database.rename("attempts", "elsewhere")
        for each in answer.attempts:
            values = {"event_seq": each.seq, "subscription_id": each.subscription_id, "number": each.number}
            with mapped_errors():
                await self.database.execute(insert(attempts).values(**values, at=Now(), duration_us=0))
        return held


class TestInvariant2WorkGoesOnlyWithItsRecord(StoreTests):
    @pytest.mark.parametrize("runs", [ONE_RUN, RUNS])
    async def test_settle_is_atomic(self, store: Store, database: Database, runs: Sequence[Run]) -> None:
        await check_settle_is_atomic(store, database, runs)

    async def test_two_transactions_are_seen(self, store: Store, database: Database) -> None:
        with pytest.raises(AssertionError, match=r"\[0, 4, 0\]"):
            await check_settle_is_atomic(RecordsLater(store, database), database, ONE_RUN)


# --- 3 ---------------------------------------------------------------------------------------------


async def check_attempts_count_claims(store: Any) -> None:
    """Crash (that is: claim and never answer) again and again: every claim counts."""
    await publish(store, 1)
    works = [(await claim_soon(store, lease=SHORT)).works[0].attempt for _ in range(3)]
    assert works == [1, 2, 3]


async def check_attempts_of_deliveries_count_claims(store: Any) -> None:
    """Do the same with one delivery, which has had its first attempt."""
    await wait(store)
    found = [(await claim_delivery_soon(store, lease=SHORT)).deliveries[0].attempt for _ in range(3)]
    assert found == [2, 3, 4]


class CountsAtFailure(Broken):
    """Leaves counting to whoever settles, so that a crash does not count."""

    async def claim(self, limit: int, lease: timedelta, weight: int = 0) -> Claim:
        claim: Claim = await self.store.queue.claim(limit, lease)
        held = dispatch.c.lease_token == claim.token
        await self.database.execute(update(dispatch).where(held).values(attempts=dispatch.c.attempts - 1))
        return claim

    async def claim_deliveries(self, quotas: dict[int, int], lease: timedelta, weight: int = 0) -> DeliveryClaim:
        claim: DeliveryClaim = await self.store.queue.claim_deliveries(quotas, lease)
        held = deliveries.c.lease_token == claim.token
        await self.database.execute(update(deliveries).where(held).values(attempts=deliveries.c.attempts - 1))
        return claim


class TestInvariant3AttemptsAreCountedAtTheClaim(StoreTests):
    async def test_a_crash_counts(self, store: Store) -> None:
        await check_attempts_count_claims(store)

    async def test_a_crash_during_a_single_delivery_counts(self, store: Store) -> None:
        await check_attempts_of_deliveries_count_claims(store)

    async def test_counting_at_failure_is_seen(self, store: Store, database: Database) -> None:
        with pytest.raises(AssertionError, match=r"\[1, 1, 1\]"):
            await check_attempts_count_claims(CountsAtFailure(store, database))

    async def test_counting_at_failure_of_a_single_delivery_is_seen(self, store: Store, database: Database) -> None:
        broken = CountsAtFailure(store, database)
        with pytest.raises(AssertionError):
            await check_attempts_of_deliveries_count_claims(broken)


# --- 4 ---------------------------------------------------------------------------------------------


async def check_settle_is_fenced(paused: Any, other: Store, database: Database, runs: Sequence[Run]) -> None:
    """Let an instance sleep through its lease, and answer when another has the work."""
    [seq, *_] = await publish(paused, 3)
    late = await paused.queue.claim(10, SHORT)
    claim = await claim_soon(other)
    failed = record(seq, 2, DeliveryState.DEAD, 0)
    for answer in (
        Settled(late.token, late.works, runs, [failed], [AttemptRecord(seq, 2, 1, LEASE, "no")]),
        Settled(late.token, late.works, runs),
    ):
        assert await paused.queue.settle(answer) == 0
        assert await database.count(dispatch, deliveries, attempts) == [3, 0, 0]
    assert await other.queue.settle(settled(claim)) == 3
    assert await database.count(dispatch, deliveries, attempts) == [0, 3, 0]


async def check_settling_deliveries_is_fenced(paused: Any, other: Store, database: Database) -> None:
    """Do the same with one delivery, once while another has it and once when that one has settled it."""
    [seq] = await wait(paused)
    late = await paused.queue.claim_deliveries({1: 1}, SHORT)
    claim = await claim_delivery_soon(other)
    answer = [record(seq, 1, DeliveryState.DEAD, late.token, error="late")]
    assert list(await paused.queue.settle_deliveries(answer)) == []
    assert list(await paused.queue.renew([leased(seq, 1, late.token)], LEASE)) == []
    done = [record(seq, 1, DeliveryState.DELIVERED, claim.token)]
    assert list(await other.queue.settle_deliveries(done)) == [(seq, 1)]
    assert list(await paused.queue.settle_deliveries(answer)) == []
    assert [row["state"] for row in await database.rows(deliveries)] == ["delivered"]


class Unfenced(Broken):
    """Settles by key alone, whoever holds the lease."""

    async def settle(self, answer: Settled) -> int:
        mine = dispatch.c.position.in_([work.position for work in answer.works])
        await self.database.execute(update(dispatch).where(mine).values(lease_token=answer.token))
        held: int = await self.store.queue.settle(answer)
        return held

    async def settle_deliveries(self, records: list[DeliveryRecord]) -> Any:
        for each in records:
            mine = (deliveries.c.event_seq == each.seq) & (deliveries.c.subscription_id == each.subscription_id)
            await self.database.execute(update(deliveries).where(mine).values(lease_token=each.token))
        return await self.store.queue.settle_deliveries(records)


class TestInvariant4EverySettlementIsFenced(StoreTests):
    @pytest.mark.parametrize("runs", [ONE_RUN, RUNS])
    async def test_a_late_answer_settles_no_work(
        self, store: Store, other: Store, database: Database, runs: Sequence[Run]
    ) -> None:
        await check_settle_is_fenced(store, other, database, runs)

    async def test_a_late_answer_settles_no_delivery(self, store: Store, other: Store, database: Database) -> None:
        await check_settling_deliveries_is_fenced(store, other, database)

    async def test_settling_without_a_fence_is_seen(self, store: Store, other: Store, database: Database) -> None:
        with pytest.raises(AssertionError):
            await check_settle_is_fenced(Unfenced(store, database), other, database, ONE_RUN)

    async def test_settling_a_delivery_without_a_fence_is_seen(
        self, store: Store, other: Store, database: Database
    ) -> None:
        with pytest.raises(AssertionError):
            await check_settling_deliveries_is_fenced(Unfenced(store, database), other, database)


# --- 5 ---------------------------------------------------------------------------------------------


async def check_claims_are_bounded(store: Any, database: Database, waiting: int) -> None:
    """Claim five of many."""
    published = await publish(store, waiting)
    claim = await store.queue.claim(5, LEASE)
    assert [work.seq for work in claim.works] == published[:5]
    leased = [row["event_seq"] for row in await database.rows(dispatch) if row["lease_token"] is not None]
    assert leased == published[:5]


class TestInvariant5ClaimsAreBounded(StoreTests):
    async def test_a_claim_leases_no_more_than_its_limit(self, store: Store, database: Database) -> None:
        await check_claims_are_bounded(store, database, 300)


class ClaimsBySubselect(Broken):
    """Claims as one would write it first: the planner may run the subselect once for every row."""

    async def claim(self, limit: int, lease: timedelta, weight: int = 0) -> Claim:
        statement = """
            UPDATE dispatch SET lease_token = 1, lease_until = clock_timestamp() + interval '30s'
            WHERE position IN (SELECT position FROM dispatch WHERE lease_until IS NULL
                               ORDER BY position LIMIT 5 FOR UPDATE SKIP LOCKED)"""
        await self.database.execute(text(statement))
        return Claim(1, (await self.store.queue.claim(0, lease)).works, 0)


PLANS = (
    ("hashjoin", "mergejoin", "hashagg", "sort", "material"),
    ("hashjoin", "nestloop", "bitmapscan"),
    ("mergejoin", "nestloop", "indexscan", "indexonlyscan"),
    ("indexscan", "indexonlyscan", "bitmapscan", "memoize"),
)


class TestInvariant5UnderAnyPlan:
    """PostgreSQL only: SQLite has one plan for its claim, and one writer."""

    @pytest.fixture
    async def database(self, request: pytest.FixtureRequest, postgres: PostgresServer, tables_dsn: str) -> Any:
        for method in request.param:
            postgres.psql(f"ALTER DATABASE {tables_dsn.rsplit('/', 1)[1]} SET enable_{method} = off")
        async with opened(tables_dsn) as database:
            yield database

    @pytest.mark.parametrize("database", PLANS, indirect=True, ids="-".join)
    async def test_a_claim_of_events_is_bounded(self, database: Database) -> None:
        await check_claims_are_bounded(database.open(), database, 2000)

    @pytest.mark.parametrize("database", PLANS, indirect=True, ids="-".join)
    async def test_a_claim_of_deliveries_and_a_promotion_are_bounded(self, database: Database) -> None:
        store = database.open()
        await wait(store, 1, 500)
        await wait(store, 2, 500)
        assert len((await store.queue.claim_deliveries({1: 5, 2: 3}, LEASE)).deliveries) == 8
        leased = [row for row in await database.rows(deliveries) if row["state"] == "leased"]
        assert len(leased) == 8
        await publish(store, 500, delay=timedelta(milliseconds=300))
        [before, _] = await database.count(dispatch, scheduled)

        async def promoted() -> int:
            return await store.queue.promote(5)

        moved = await soon(promoted)
        assert moved <= 5
        assert await database.count(dispatch, scheduled) == [before + moved, 500 - before - moved]

    @pytest.mark.parametrize("database", PLANS[:1], indirect=True, ids="-".join)
    async def test_a_claim_by_subselect_is_seen(self, database: Database) -> None:
        with pytest.raises(AssertionError):
            await check_claims_are_bounded(ClaimsBySubselect(database.open(), database), database, 2000)
        leased = [row for row in await database.rows(dispatch) if row["lease_token"] is not None]
        assert len(leased) > 5


# --- 6 ---------------------------------------------------------------------------------------------


async def check_the_process_clock_has_no_say(store: Any) -> None:
    """Work with a clock that is a day ahead, then a day behind."""
    [first] = await publish(store, 1)
    await publish(store, 1, delay=timedelta(hours=1))
    assert len((await store.queue.claim(10, LEASE)).works) == 1
    for days in (1, -1):
        with time_machine.travel(datetime.now(UTC) + timedelta(days=days)):
            await publish(store, 1, delay=timedelta(hours=1))
            assert await store.queue.promote(10) == 0
            assert [work.seq for work in (await store.queue.claim(10, LEASE)).works] == []
            [seq] = await publish(store, 1)
            assert [work.seq for work in (await store.queue.claim(10, LEASE)).works] == [seq]
    assert first < seq


class TrustsItself(Broken):
    """Decides by the clock of the process which leases have ended."""

    async def claim(self, limit: int, lease: timedelta, weight: int = 0) -> Claim:
        ended = dispatch.c.lease_until <= datetime.now(UTC)
        await self.database.execute(update(dispatch).where(ended).values(lease_until=None))
        claim: Claim = await self.store.queue.claim(limit, lease)
        return claim


class TestInvariant6TheDatabaseClockDecides(StoreTests):
    async def test_the_process_clock_has_no_say(self, store: Store) -> None:
        await check_the_process_clock_has_no_say(store)

    async def test_trust_in_the_process_clock_is_seen(self, store: Store, database: Database) -> None:
        with pytest.raises(AssertionError):
            await check_the_process_clock_has_no_say(TrustsItself(store, database))


# --- 7 and 8 ---------------------------------------------------------------------------------------


class TestInvariant7NoTransactionIsHeldAcrossADelivery(StoreTests):
    async def test_what_is_claimed_is_not_locked(self, store: Store, database: Database) -> None:
        await wait(store)
        await publish(store, 3)
        await store.queue.claim(10, LEASE)
        await store.queue.claim_deliveries({1: 1}, LEASE)
        async with asyncio.timeout(2):  # a lock held would make this wait
            await database.execute(update(dispatch).values(attempts=dispatch.c.attempts))
            await database.execute(update(deliveries).values(attempts=deliveries.c.attempts))


class TestInvariant8NobodyResetsAnothersWork(StoreTests):
    async def test_starting_and_leaving_touch_no_lease(self, store: Store, other: Store, database: Database) -> None:
        [seq] = await wait(store)
        published = await publish(store, 5)
        claim, single = await store.queue.claim(10, LEASE), await store.queue.claim_deliveries({1: 1}, LEASE)
        before = [await database.rows(dispatch), await database.rows(deliveries)]
        await other.registry.adopt("prod")
        await other.registry.put_subscriptions([Subscription(name="s", sink="log")], "file")
        await other.registry.beat(Instance("new", "host", 1, "0.1"), Health())
        await other.queue.promote(10)
        assert not (await other.queue.claim(10, LEASE)).works
        assert not (await other.queue.claim_deliveries({1: 5}, LEASE)).deliveries
        await other.registry.leave("new")
        await other.close()
        assert [await database.rows(dispatch), await database.rows(deliveries)] == before
        assert await store.queue.settle(settled(claim)) == len(published)
        assert len(await store.queue.settle_deliveries([record(seq, 1, DeliveryState.DELIVERED, single.token)])) == 1
