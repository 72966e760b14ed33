"""Claims are bounded by what their events weigh, as well as by their number."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from sqlalchemy import insert, update

from runner.delivery import DeliveryState
from runner.event import MAX_DATA_BYTES, Event, weigh
from runner.policies.rate import Rate
from runner.storage.contract.claims import AT_ONCE, CLAIM, LARGEST, Claim, DeliveryClaim, RegulatedRequest
from runner.storage.contract.events import Publication, Receipt
from runner.storage.contract.settlements import DeliveryRecord
from runner.storage.tables import deliveries, dispatch, events, turns
from tests.support.postgres import PostgresServer

from .storage_contract import LEASE, NOTHING, Database, Store, StoreTests, claim_soon, opened, settled

MIB = 1024 * 1024


async def heavy(store: Store, *sizes: int) -> list[int]:
    """Publish events with so many bytes of data each; return their numbers in the store."""
    made = [Event(type="t", source="/s", data=bytes([n]) * size) for n, size in enumerate(sizes)]
    receipts: list[Receipt] = []
    for event in made:  # one by one, as publishers of such events do
        receipts += await store.events.append([Publication(event)])
    return [receipt.seq for receipt in receipts]


async def pending(store: Store, *sizes: int, subscription: int = 1) -> list[int]:
    """Record a pending delivery of each of such events."""
    seqs = await heavy(store, *sizes)
    for _ in seqs:
        claim = await store.queue.claim(1, LEASE)
        [work] = claim.works
        record = DeliveryRecord(work.seq, subscription, DeliveryState.PENDING, 0, claim.token)
        await store.queue.settle(replace(settled(claim, ()), records=[record]))
    return seqs


def seqs_of(claim: Claim | DeliveryClaim) -> list[int]:
    return [each.seq for each in (claim.works if isinstance(claim, Claim) else claim.deliveries)]


class TestEvents(StoreTests):
    async def test_no_more_than_weigh_so_much(self, store: Store, database: Database) -> None:
        seqs = await heavy(store, *[MIB // 4] * 10)
        claim = await store.queue.claim(100, LEASE, MIB)
        assert seqs_of(claim) == seqs[:4]
        assert (claim.weight, claim.more, claim.again_in) == (MIB, True, None)
        assert [row["attempts"] for row in await database.rows(dispatch)] == [1] * 4 + [0] * 6
        rest = await store.queue.claim(100, LEASE, 100 * MIB)
        assert seqs_of(rest) == seqs[4:]
        assert not rest.more

    async def test_one_always_goes(self, store: Store) -> None:
        seqs = await heavy(store, MIB, MIB)
        assert [seqs_of(await store.queue.claim(100, LEASE, 1)) for _ in range(3)] == [seqs[:1], seqs[1:], []]

    async def test_extensions_weigh_sixteen_times_their_bytes(self, store: Store) -> None:
        made = [Event(type="t", source="/s", extensions={"x": "y" * 1000}) for _ in range(4)]
        await store.events.append([Publication(event) for event in made])
        claim = await store.queue.claim(100, LEASE, 2 * weigh(made[:1]))
        assert len(claim.works) == 2
        assert claim.weight == pytest.approx(weigh(made[:2]), rel=0.01)

    async def test_a_claim_without_a_word_is_bounded_too(self, store: Store) -> None:
        await heavy(store, *[MIB] * 12)
        assert len((await store.queue.claim(100, LEASE)).works) == CLAIM // MIB

    async def test_data_beyond_the_first_is_fetched_once_the_claim_is_recorded(
        self, store: Store, other: Store, database: Database
    ) -> None:
        seqs = await heavy(store, 3, *[MIB] * 3)
        claim = await store.queue.claim(100, LEASE)
        assert claim.works[0].event.data == b"\0" * 3
        assert sum(len(work.event.data or b"") for work in claim.works) <= AT_ONCE + 3
        left = [work.seq for work in claim.works if work.size]
        assert left
        assert [row["attempts"] for row in await database.rows(dispatch)] == [1] * 4
        contents = await other.queue.contents(left)
        assert {seq: data and (data[0], len(data)) for seq, data in contents.items()} == {
            seq: (seqs.index(seq), MIB) for seq in left
        }

    async def test_data_that_is_empty_is_not_missing(self, store: Store) -> None:
        """Whatever stands before it: `contents()` is not asked for what weighs nothing."""
        made = [Event(type="t", source="/s", data=data) for data in (b"x" * MIB, b"x", b"", None)]
        await store.events.append([Publication(event) for event in made])
        works = (await store.queue.claim(100, LEASE)).works
        assert [work.event.data for work in works if not work.size][-2:] == [b"", None]

    async def test_none_is_passed_over_when_claims_run_side_by_side(self, store: Store, other: Store) -> None:
        seqs = await heavy(store, *[MIB // 8] * 40)
        found: list[int] = []
        for _ in range(20):
            for each in (store, other):
                found += seqs_of(await each.queue.claim(16, LEASE, MIB // 4))
        assert found == seqs

    async def test_what_is_too_large_for_an_event_is_leased_unread(self, store: Store, database: Database) -> None:
        """Somebody wrote it past the bus."""
        [seq] = await heavy(store, 1)
        await database.execute(update(events).values(data=b"x" * (LARGEST + 1)))
        claim = await store.queue.claim(100, LEASE)
        assert claim.works == []
        assert [(each.seq, each.type) for each in claim.unreadable] == [(seq, "t")]
        assert "at most" in claim.unreadable[0].reason

    async def test_extensions_without_end_are_left_unread(self, store: Store, database: Database) -> None:
        [seq] = await heavy(store, 1)
        await database.execute(update(events).values(extensions={"x": "y" * (LARGEST // 8)}))
        assert [each.seq for each in (await store.queue.claim(100, LEASE)).unreadable] == [seq]

    async def test_what_is_handed_over_says_what_it_weighs(self, store: Store) -> None:
        made = [Event(type="t", source="/s", data=b"x" * 100) for _ in range(3)]
        _, claim = await store.events.append_leased([Publication(event) for event in made], LEASE)
        assert claim is not None
        assert claim.weight == 300

    async def test_a_batch_of_the_largest_events_is_one_claim_after_the_other(self, store: Store) -> None:
        seqs = await heavy(store, *[MAX_DATA_BYTES] * 20)
        found: list[int] = []
        while len(found) < len(seqs):
            claim = await claim_soon(store)
            assert claim.weight <= CLAIM
            found += seqs_of(claim)
        assert found == seqs


class TestDeliveries(StoreTests):
    async def test_no_more_than_weigh_so_much(self, store: Store, database: Database) -> None:
        seqs = await pending(store, *[MIB // 4] * 10)
        claim = await store.queue.claim_deliveries({1: 100}, LEASE, MIB)
        assert seqs_of(claim) == seqs[:4]
        assert claim.next_due == NOTHING  # it had not seen everything
        assert [row["attempts"] for row in await database.rows(deliveries)] == [1] * 4 + [0] * 6
        assert seqs_of(await store.queue.claim_deliveries({1: 100}, LEASE, 100 * MIB)) == seqs[4:]

    async def test_one_always_goes(self, store: Store) -> None:
        seqs = await pending(store, MIB, MIB)
        assert [seqs_of(await store.queue.claim_deliveries({1: 100}, LEASE, 1)) for _ in range(3)] == [
            seqs[:1],
            seqs[1:],
            [],
        ]

    async def test_data_beyond_the_first_is_fetched_later(self, store: Store) -> None:
        await pending(store, *[MIB] * 3)
        claim = await store.queue.claim_deliveries({1: 100}, LEASE)
        left = [each.seq for each in claim.deliveries if each.size]
        assert len(left) >= 2
        assert {len(data or b"") for data in (await store.queue.contents(left)).values()} == {MIB}

    async def test_what_is_too_large_for_an_event_is_leased_unread(self, store: Store, database: Database) -> None:
        [seq] = await pending(store, 1)
        await database.execute(update(events).values(data=b"x" * (LARGEST + 1)))
        claim = await store.queue.claim_deliveries({1: 100}, LEASE)
        assert [each.seq for each in claim.unreadable] == [seq]

    @pytest.mark.parametrize("ordered", [False, True])
    async def test_those_in_order_or_at_a_rate_are_bounded_and_only_they_are_charged(
        self, store: Store, database: Database, ordered: bool
    ) -> None:
        seqs = await pending(store, *[MIB // 4] * 6)
        if ordered:
            lines = [
                {"subscription_id": 1, "order_key": f"k{n}", "position": n, "event_seq": seq}
                for n, seq in enumerate(seqs)
            ]
            await database.execute(insert(turns).values(lines))
        asked = RegulatedRequest(1, 100, ordered, None if ordered else Rate.parse("1000/s"))
        found: list[int] = []
        for _ in range(6):
            claim = await store.queue.claim_regulated(asked, LEASE, MIB // 2)
            assert len(claim.deliveries) <= 2
            found += seqs_of(claim)
            asked = RegulatedRequest(1, 100, ordered, asked.rate, claim.after, claim.since)
            if len(found) < 6:
                assert claim.more
            else:
                break
        assert sorted(found) == seqs


class TestAnyPlan:
    async def test_the_bound_holds_under_every_plan(self, postgres: PostgresServer, tables_dsn: str) -> None:
        async with opened(tables_dsn) as database:
            for method in ("hashjoin", "mergejoin", "material", "sort", "hashagg", "memoize"):
                postgres.psql(f"ALTER DATABASE {tables_dsn.rsplit('/', 1)[1]} SET enable_{method} = off")
            store = database.open()
            seqs = await pending(store, *[MIB // 4] * 12)
            assert seqs_of(await store.queue.claim_deliveries({1: 100}, LEASE, MIB)) == seqs[:4]
            assert (
                seqs_of(await store.queue.claim_regulated(RegulatedRequest(1, 100, False, None), LEASE, MIB))
                == seqs[4:8]
            )
            seqs = await heavy(store, *[MIB // 4] * 12)
            assert seqs_of(await store.queue.claim(100, LEASE, MIB)) == seqs[:4]
