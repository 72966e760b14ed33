"""The contract of `WorkQueue` as far as order goes: lines, turns, and who may go."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import delete, literal, update

from runner.delivery import DeliveryState
from runner.policies.order import order_key
from runner.policies.rate import Rate
from runner.storage import regulation
from runner.storage.contract.claims import Claim, DeliveryClaim, RegulatedRequest
from runner.storage.contract.corrections import ReplayQuery
from runner.storage.contract.events import Publication
from runner.storage.contract.records import DeliveryQuery
from runner.storage.contract.settlements import AttemptRecord, Run, Settled, Turn
from runner.storage.corrections import SqlCorrections
from runner.storage.expressions import Later
from runner.storage.records import SqlRecords
from runner.storage.tables import deliveries, turns
from runner.subscription import Subscription

from .storage_contract import LEASE, SHORT, Database, Store, StoreTests, publication, record, soon, taken

HOUR = timedelta(hours=1)


def asked(quota: int = 100, after: str = "", since: str = "") -> RegulatedRequest:
    return RegulatedRequest(1, quota, ordered=True, rate=None, after=after, since=since)


async def go_round(store: Store, after: str = "") -> list[DeliveryClaim]:
    """Claim on and on from the key `after` until each line has been seen."""
    claims = [await store.queue.claim_regulated(asked(after=after, since=after), LEASE)]
    while claims[-1].more:
        assert len(claims) < 20
        claims.append(await store.queue.claim_regulated(asked(after=claims[-1].after, since=claims[-1].since), LEASE))
    return claims


def first_due(claims: Sequence[DeliveryClaim]) -> timedelta:
    return min(claim.next_due for claim in claims if claim.next_due is not None)


async def publish_keys(store: Store, keys: str) -> Sequence[int]:
    """Publish one event for each letter, whose subject that is."""
    receipts = await store.events.append([publication(n, subject=key) for n, key in enumerate(keys)])
    return [receipt.seq for receipt in receipts]


async def dispatch(store: Store, claim: Claim) -> None:
    """Settle a claim as the dispatch of an ordered subscription does."""
    records = [record(work.seq, 1, DeliveryState.PENDING, claim.token, attempts=0) for work in claim.works]
    lined = [Turn(work.seq, 1, order_key("subject", work.event, work.seq), work.position) for work in claim.works]
    settled = Settled(claim.token, claim.works, [Run((), len(claim.works))], records, turns=lined)
    assert await store.queue.settle(settled) == len(claim.works)


async def line(store: Store, keys: str) -> Sequence[int]:
    """Have a delivery of a new event wait in the line of each letter."""
    seqs = await publish_keys(store, keys)
    await dispatch(store, await store.queue.claim(len(keys), LEASE))
    return seqs


async def go(store: Store, quota: int = 100, lease: timedelta = LEASE) -> tuple[list[int], int]:
    """Claim all that may go; return it, and the token."""
    claim = await store.queue.claim_regulated(asked(quota), lease)
    return [each.seq for each in claim.deliveries], claim.token


async def end(store: Store, token: int, state: DeliveryState, *seqs: int, due_in: timedelta = timedelta(0)) -> None:
    ends = [record(seq, 1, state, token, due_in=due_in) for seq in seqs]
    assert len(await store.queue.settle_deliveries(ends, (), frozenset({1}))) == len(seqs)


class TestOrder(StoreTests):
    async def test_only_the_first_of_each_line_may_go(self, store: Store) -> None:
        a1, b1, _, c1, _ = await line(store, "abaca")
        found, token = await go(store)
        assert sorted(found) == [a1, b1, c1]
        assert (await go(store))[0] == []
        await end(store, token, DeliveryState.DELIVERED, b1, c1)
        assert (await go(store))[0] == []

    @pytest.mark.parametrize("state", [DeliveryState.DELIVERED, DeliveryState.DEAD])
    async def test_what_has_ended_lets_the_next_one_go(
        self, store: Store, other: Store, database: Database, state: DeliveryState
    ) -> None:
        first, second = await line(store, "aa")
        found, token = await go(store)
        assert found == [first]
        await end(store, token, state, first)
        assert (await go(other))[0] == [second]
        assert [row["event_seq"] for row in await database.rows(turns)] == [second]

    async def test_what_ends_after_failures_leaves_its_line_too(self, store: Store, database: Database) -> None:
        [seq] = await line(store, "a")
        _, token = await go(store)
        dead, tried = record(seq, 1, DeliveryState.DEAD, token), AttemptRecord(seq, 1, 1, timedelta(0), "no")
        assert list(await store.queue.settle_deliveries([dead], [tried], frozenset({1}))) == [(seq, 1)]
        assert await database.rows(turns) == []

    async def test_a_late_answer_ends_no_turn(self, store: Store, database: Database) -> None:
        [seq] = await line(store, "a")
        _, token = await go(store)
        late = record(seq, 1, DeliveryState.DELIVERED, token + 1)
        assert not await store.queue.settle_deliveries([late], (), frozenset({1}))
        assert await database.count(turns) == [1]

    async def test_a_retry_holds_its_line(self, store: Store) -> None:
        first, _ = await line(store, "aa")
        _, token = await go(store)
        await end(store, token, DeliveryState.PENDING, first, due_in=HOUR)
        claim = await store.queue.claim_regulated(asked(), LEASE)
        assert not claim.deliveries
        assert claim.next_due is not None
        assert HOUR - timedelta(seconds=30) < claim.next_due <= HOUR

    async def test_a_lost_lease_holds_the_line_and_the_same_comes_again(self, store: Store, other: Store) -> None:
        first, _ = await line(store, "aa")
        assert (await go(store, lease=SHORT))[0] == [first]

        async def again() -> list[int]:
            return (await go(other))[0]

        assert await soon(again) == [first]

    async def test_the_attempt_and_a_lost_answer_are_told(self, store: Store) -> None:
        await line(store, "a")
        await go(store, lease=SHORT)

        async def again() -> list[tuple[int, bool]]:
            claim = await store.queue.claim_regulated(asked(), LEASE)
            return [(each.attempt, each.suspect) for each in claim.deliveries]

        assert await soon(again) == [(2, True)]

    async def test_nothing_overtakes_an_event_that_is_not_dispatched_yet(self, store: Store, other: Store) -> None:
        await publish_keys(store, "a")
        earlier = await store.queue.claim(1, LEASE)
        [second] = await publish_keys(store, "a")
        await dispatch(other, await other.queue.claim(1, LEASE))
        claim = await other.queue.claim_regulated(asked(), LEASE)
        assert not claim.deliveries
        assert claim.held_up  # nobody tells when the other is dispatched
        await dispatch(store, earlier)
        found, token = await go(other)
        assert found == [earlier.works[0].seq]
        await end(other, token, DeliveryState.DELIVERED, *found)
        assert (await go(other))[0] == [second]

    async def test_without_the_attribute_there_is_no_order(self, store: Store) -> None:
        receipts = await store.events.append([publication(n) for n in range(3)])
        await dispatch(store, await store.queue.claim(3, LEASE))
        assert sorted((await go(store))[0]) == [receipt.seq for receipt in receipts]

    async def test_claims_go_round_the_lines(self, store: Store) -> None:
        seqs = await line(store, "abcd" * 2)
        after, found = "", []
        for _ in range(2):
            claim = await store.queue.claim_regulated(asked(2, after), LEASE)
            assert len(claim.deliveries) == 2
            await end(store, claim.token, DeliveryState.DELIVERED, *[each.seq for each in claim.deliveries])
            found += [each.seq for each in claim.deliveries]
            after = claim.after
        assert sorted(found) == list(seqs[:4])
        claim = await store.queue.claim_regulated(asked(2, after, since=after), LEASE)
        assert (taken(claim), claim.more, claim.after) == ([], True, "")  # there may be others before that key
        claim = await store.queue.claim_regulated(asked(2), LEASE)
        assert sorted(each.seq for each in claim.deliveries) == list(seqs[4:6])

    async def test_a_claim_visits_so_many_lines_and_says_where_it_left_off(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for module in ("postgres.queue", "sqlite.regulated"):
            monkeypatch.setattr(f"runner.storage.{module}.LINES", 3)
        assert regulation.LINES > 3
        seqs = await line(store, "abcdefg")
        assert len((await go(store, 3))[0]) == 3
        claim = await store.queue.claim_regulated(asked(), LEASE)
        assert (taken(claim), claim.more, claim.after) == ([], True, "=c")
        claim = await store.queue.claim_regulated(asked(after=claim.after), LEASE)
        assert [each.seq for each in claim.deliveries] == list(seqs[3:6])
        claim = await store.queue.claim_regulated(asked(after=claim.after), LEASE)
        assert [each.seq for each in claim.deliveries] == [seqs[6]]

    async def test_two_claimers_never_get_the_same_and_keep_the_order(self, store: Store, other: Store) -> None:
        keys = "abcdefgh"
        seqs = await line(store, keys * 6)
        key_of = dict(zip(seqs, keys * 6, strict=True))
        done: list[int] = []

        async def drain(each: Store) -> None:
            while len(done) < len(seqs):
                found, token = await go(each, 3)
                done.extend(found)  # in the order in which they are claimed
                await asyncio.sleep(0)
                await end(each, token, DeliveryState.DELIVERED, *found)

        async with asyncio.timeout(60):
            await asyncio.gather(drain(store), drain(other), drain(store))
        assert sorted(done) == sorted(seqs)
        for key in keys:
            mine = [seq for seq in done if key_of[seq] == key]
            assert mine == sorted(mine)

    async def test_another_subscription_is_not_touched(self, store: Store) -> None:
        await line(store, "a")
        claim = await store.queue.claim_regulated(RegulatedRequest(2, 5, ordered=True, rate=None), LEASE)
        assert (taken(claim), claim.next_due) == ([], None)


class TestRounds(StoreTests):
    """More lines than one claim visits: what all of them together tell."""

    @pytest.fixture(autouse=True)
    def few(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in ("postgres.queue", "sqlite.regulated"):
            monkeypatch.setattr(f"runner.storage.{module}.LINES", 3)

    async def fail(self, store: Store, *due_in: timedelta) -> None:
        """Let the first of each line fail, to be tried again so much later; the same for all if one is given."""
        found = [each for claim in await go_round(store) for each in ((claim.token, d.seq) for d in claim.deliveries)]
        for (token, seq), due in zip(found, due_in * (1 if len(due_in) > 1 else len(found)), strict=True):
            await end(store, token, DeliveryState.PENDING, seq, due_in=due)

    async def test_where_nothing_is_due_one_claim_is_enough(self, store: Store) -> None:
        await line(store, "abcdefg")
        await self.fail(store, HOUR)
        [claim] = await go_round(store)
        assert not claim.deliveries
        assert HOUR - timedelta(minutes=1) < first_due([claim]) <= HOUR

    @pytest.mark.parametrize(("after", "number"), [("", 3), ("=a", 4), ("=d", 4), ("=g", 4), ("=z", 4)])
    async def test_a_round_ends_wherever_it_began(self, store: Store, after: str, number: int) -> None:
        """Behind the first of each line stands one that is due."""
        await line(store, "abcdefg" * 2)
        await self.fail(store, HOUR)
        claims = await go_round(store, after)
        assert [taken(claim) for claim in claims] == [[]] * len(claims)
        assert len(claims) <= number
        assert HOUR - timedelta(minutes=1) < first_due(claims) <= HOUR
        assert not any(claim.held_up for claim in claims)

    async def test_the_first_due_time_of_all_lines_is_told(self, store: Store) -> None:
        await line(store, "abcdefg" * 2)
        await self.fail(store, HOUR, *[n * HOUR for n in range(2, 8)])
        assert HOUR - timedelta(minutes=1) < first_due(await go_round(store, "=d")) <= HOUR

    async def test_what_falls_due_behind_another_is_no_reason_to_look(self, store: Store, database: Database) -> None:
        """As what is replayed at a rate, behind one that waits for its retry."""
        seqs = await line(store, "abcd" * 3)
        await self.fail(store, HOUR)
        behind = update(deliveries).where(deliveries.c.event_seq.in_(seqs[5:]))
        await database.execute(behind.values(due_at=Later(literal(60_000_000))))
        assert first_due(await go_round(store)) > timedelta(minutes=50)

    async def test_what_another_holds_is_due_when_its_lease_ends(self, store: Store, other: Store) -> None:
        await line(store, "abcde" * 2)
        assert sum(len(claim.deliveries) for claim in await go_round(other)) == 5
        claims = await go_round(store)
        assert [taken(claim) for claim in claims] == [[]] * len(claims)
        assert LEASE - timedelta(seconds=15) < first_due(claims) <= LEASE

    async def test_one_that_waits_for_a_dispatch_is_told_by_the_claim_that_sees_it(
        self, store: Store, other: Store
    ) -> None:
        await line(store, "abc" * 2)
        await self.fail(store, HOUR)
        await publish_keys(store, "x")
        waiting = await store.queue.claim(1, LEASE)
        await publish_keys(store, "y")
        await dispatch(other, await other.queue.claim(1, LEASE))
        claims = await go_round(store)
        assert [claim.held_up for claim in claims] == [False, True]
        await dispatch(store, waiting)
        assert sum(len(claim.deliveries) for claim in await go_round(store)) == 2

    async def test_with_a_rate_as_well(self, store: Store) -> None:
        await line(store, "abcdefg" * 2)
        await self.fail(store, HOUR)
        claims, wanted = [], RegulatedRequest(1, 100, True, Rate.parse("100/s"))
        for _ in range(3):
            claims.append(await store.queue.claim_regulated(wanted, LEASE))
            wanted = replace(wanted, after=claims[-1].after, since=claims[-1].since)
        assert [taken(claim) for claim in claims] == [[]] * 3
        assert [claim.more for claim in claims] == [True, True, False]
        assert not any(claim.paced for claim in claims)


class TestLines(StoreTests):
    """What puts deliveries in line, and takes them out, apart from a worker."""

    @pytest.fixture
    async def corrections(self, store: Store, database: Database) -> SqlCorrections:
        await store.registry.put_subscriptions([Subscription(name="crm", sink="log", order_by="subject")], "file")
        return SqlCorrections(database.engine)

    @pytest.fixture
    def records(self, corrections: SqlCorrections, database: Database) -> SqlRecords:
        return SqlRecords(database.engine)

    async def test_what_is_cancelled_lets_the_next_one_go(self, store: Store, corrections: SqlCorrections) -> None:
        first, second = await line(store, "aa")
        await go(store)
        assert await corrections.cancel(DeliveryQuery(seq=first)) == 1
        assert (await go(store))[0] == [second]

    async def test_a_retry_by_hand_goes_to_the_end_of_the_line(self, store: Store, corrections: SqlCorrections) -> None:
        one, two, three = await line(store, "aaa")
        for seq in (one, two):
            found, token = await go(store)
            assert found == [seq]
            await end(store, token, DeliveryState.DEAD, seq)
        assert await corrections.retry(DeliveryQuery(limit=10)) == 2
        [four] = await line(store, "a")
        order = []
        for _ in range(4):
            [seq], token = await go(store)
            order.append(seq)
            await end(store, token, DeliveryState.DELIVERED, seq)
        assert order == [three, one, two, four]
        assert not (await store.queue.claim(10, LEASE)).works

    async def test_what_waited_before_there_was_an_order_goes_first(self, store: Store, database: Database) -> None:
        one, two, _ = await line(store, "aba")
        await database.execute(delete(turns))
        assert (await go(store))[0] == []
        [last] = await line(store, "a")
        assert await store.queue.line_up(1, "subject") == 3
        assert await store.queue.line_up(1, "subject") == 0
        found, token = await go(store)
        assert sorted(found) == [one, two]
        assert last not in found
        await end(store, token, DeliveryState.DELIVERED, *found)

    async def test_a_turn_without_an_unfinished_delivery_ends(self, store: Store, database: Database) -> None:
        first, second = await line(store, "aa")
        await database.execute(update(deliveries).where(deliveries.c.event_seq == first).values(state="cancelled"))
        assert (await go(store))[0] == []
        assert await store.queue.line_up(1, "subject") == 1
        assert (await go(store))[0] == [second]

    async def test_many_line_up_at_once(self, store: Store, other: Store, database: Database) -> None:
        await line(store, "ab" * 10)
        await database.execute(delete(turns))
        both = await asyncio.gather(store.queue.line_up(1, "subject"), other.queue.line_up(1, "subject"))
        assert sum(both) == 20
        assert await database.count(turns) == [20]

    async def test_another_order_begins_anew(self, store: Store, database: Database, records: SqlRecords) -> None:
        await line(store, "ab")
        await store.registry.put_subscriptions(
            [Subscription(name="crm", sink="log", order_by="subject", concurrency=3)], "file"
        )
        assert await database.count(turns) == [2]
        await store.registry.put_subscriptions([Subscription(name="crm", sink="log", order_by="type")], "file")
        assert await database.count(turns) == [0]
        assert await store.queue.line_up(1, "type") == 2
        assert len((await go(store))[0]) == 1

    async def test_two_events_of_one_batch_keep_their_order(self, store: Store) -> None:
        events = [Publication(publication(n, subject="a").event) for n in range(50)]
        _, claim = await store.events.append_leased(events, LEASE)
        assert claim is not None
        await dispatch(store, claim)
        done = []
        for _ in events:
            [seq], token = await go(store)
            done.append(seq)
            await end(store, token, DeliveryState.DELIVERED, seq)
        assert done == [work.seq for work in claim.works]

    async def test_what_is_replayed_goes_to_the_end_of_the_line(
        self, store: Store, corrections: SqlCorrections
    ) -> None:
        one, two = await line(store, "aa")
        [seq], token = await go(store)
        await end(store, token, DeliveryState.DELIVERED, seq)
        assert await corrections.replay(ReplayQuery(subscription="crm")) == 1
        order = []
        for _ in range(2):
            [seq], token = await go(store)
            order.append(seq)
            await end(store, token, DeliveryState.DELIVERED, seq)
        assert order == [two, one]

    async def test_a_deferral_holds_its_line_until_it_is_acknowledged(
        self, store: Store, corrections: SqlCorrections
    ) -> None:
        first, second = await line(store, "aa")
        _, token = await go(store)
        deferred = replace(record(first, 1, DeliveryState.LEASED, token, due_in=HOUR), deferred=True)
        await store.queue.settle_deliveries([deferred], (), frozenset({1}))
        assert (await go(store))[0] == []
        assert await corrections.ack(str(first), "crm")
        assert (await go(store))[0] == [second]
