"""The contract of runs: what they record reads as rows do, and a row for the same delivery wins."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest
from sqlalchemy import Table, insert, select, text, update

from runner.delivery import DeliveryState
from runner.errors import NotFound, StateConflict
from runner.event import Event
from runner.storage import runs as recording
from runner.storage.acks import acknowledge
from runner.storage.archive import SqlArchive
from runner.storage.contract.archive import Pruned, Retention
from runner.storage.contract.claims import Work
from runner.storage.contract.corrections import ReplayQuery
from runner.storage.contract.events import Publication
from runner.storage.contract.records import DeliveryQuery, EventQuery
from runner.storage.contract.settlements import Run, Settled
from runner.storage.corrections import SqlCorrections
from runner.storage.overview import SqlOverview
from runner.storage.postgres import database as postgres_database
from runner.storage.postgres.statements import statement
from runner.storage.records import SqlRecords
from runner.storage.runs import in_runs
from runner.storage.sqlite import settlements
from runner.storage.tables import deliveries, delivery_states, events, runs
from runner.storage.transactions import Transactions
from runner.subscription import Subscription

from .storage_contract import (
    LEASE,
    SHORT,
    Database,
    Store,
    StoreTests,
    claim_soon,
    leased,
    publish,
    record,
    settled,
)

PENDING, _, DELIVERED, DEAD, CANCELLED = DeliveryState
WEEK = Retention(delivered=timedelta(days=7), dead=timedelta(days=90))
LONG_AGO = datetime.now(UTC) - timedelta(days=100)


async def raw(database: Database, table: Table) -> Sequence[Mapping[str, Any]]:
    """Return the rows of a table, in the order of its key."""
    async with database.engine.connect() as connection:
        found = await connection.execute(select(table).order_by(*table.primary_key))
        return [dict(row) for row in found.mappings()]


async def deliver(store: Store, count: int, ids: tuple[int, ...]) -> list[int]:
    """Publish events and deliver them to these subscriptions at once; return their seqs."""
    seqs = await publish(store, count)
    claim = await store.queue.claim(count, LEASE)
    assert await store.queue.settle(settled(claim, ids)) == count
    return seqs


async def check_only_what_is_held_is_recorded(store: Store, other: Store, database: Database) -> None:
    """Settle a claim of which another one has meanwhile taken a part, from the middle on."""
    seqs = await publish(store, 20)
    late = await store.queue.claim(20, SHORT)
    theirs = await claim_soon(other, 7)
    assert [work.seq for work in theirs.works] == seqs[:7]
    assert await store.queue.settle(settled(late, (1, 2))) == 13
    rows = await database.rows(delivery_states)
    assert sorted({row["event_seq"] for row in rows}) == seqs[7:]
    assert len(rows) == 26
    assert await store.queue.settle(settled(late, (1, 2))) == 0
    assert len(await database.rows(delivery_states)) == 26


async def check_a_row_wins(store: Store, database: Database) -> None:
    """Deliver again what runs record: neither the view nor a list knows each delivery but once, as the row says."""
    seqs = await deliver(store, 5, (1, 2))
    assert await SqlCorrections(database.engine).replay(ReplayQuery(subscription="one")) == 5
    rows = await database.rows(delivery_states)
    states = [(row["event_seq"], row["subscription_id"], row["state"]) for row in rows]
    assert sorted(states) == [(seq, id, PENDING if id == 1 else DELIVERED) for seq in seqs for id in (1, 2)]
    records = SqlRecords(database.engine)
    listed = [(view.subscription, view.state) async for view in records.deliveries(DeliveryQuery(limit=None))]
    assert listed == [("two", DELIVERED), ("one", PENDING)] * 5


class RunTests(StoreTests):
    """Subscription 1 is `one`, 2 is `two`, 3 is `three`; all take everything."""

    @pytest.fixture(autouse=True)
    async def subscribed(self, store: Store) -> None:
        names = ("one", "two", "three")
        await store.registry.put_subscriptions([Subscription(name=name, sink="s") for name in names], "file")

    @pytest.fixture
    def records(self, database: Database) -> SqlRecords:
        return SqlRecords(database.engine)

    @pytest.fixture
    def corrections(self, database: Database) -> SqlCorrections:
        return SqlCorrections(database.engine)

    @pytest.fixture
    def archive(self, database: Database) -> SqlArchive:
        return SqlArchive(database.engine)


class TestSettle(RunTests):
    async def test_many_deliveries_are_a_few_rows(self, store: Store, database: Database) -> None:
        seqs = await deliver(store, 300, (1, 2))
        assert await raw(database, deliveries) == []
        assert len(await raw(database, runs)) == 2  # seqs 1 to 255, 256 to 300
        rows = await database.rows(delivery_states)
        assert [(row["event_seq"], row["subscription_id"]) for row in rows] == [(s, id) for s in seqs for id in (1, 2)]
        assert {(row["state"], row["attempts"], row["due_at"], row["last_error"]) for row in rows} == {
            (DELIVERED, 1, None, None)
        }
        assert abs(rows[0]["updated_at"] - datetime.now(UTC)) < timedelta(minutes=1)

    async def test_what_is_no_longer_held_is_in_no_run(self, store: Store, other: Store, database: Database) -> None:
        await check_only_what_is_held_is_recorded(store, other, database)

    async def test_a_later_attempt_of_the_dispatch_is_recorded_row_by_row(
        self, store: Store, database: Database
    ) -> None:
        first, second = await publish(store, 2)
        assert len((await store.queue.claim(1, LEASE)).works) == 1
        await database.execute(text("UPDATE dispatch SET lease_until = NULL, lease_token = NULL"))
        claim = await store.queue.claim(2, LEASE)
        await store.queue.settle(settled(claim, (1, 2, 3, 4)))
        rows = {(row["event_seq"], row["attempts"]) for row in await raw(database, deliveries)}
        assert rows == {(first, 2)}
        assert [(row["first"], row["last"]) for row in await raw(database, runs)] == [(second, second)]
        assert len(await database.rows(delivery_states)) == 8

    async def test_what_was_acknowledged_before_stays(self, store: Store, database: Database) -> None:
        seqs = await publish(store, 5)
        claim = await store.queue.claim(5, LEASE)
        assert await acknowledge(Transactions(database.engine), "UTF8", str(seqs[0]), "one", None) is True
        assert await store.queue.settle(settled(claim, (1, 2))) == 5
        assert len(await database.rows(delivery_states)) == 10

    async def test_events_far_apart_are_in_runs_of_their_own(self, store: Store, database: Database) -> None:
        later = [Publication(Event.new("a.b", source="/s"), delay=timedelta(0.1)) for _ in range(2)]
        await store.events.append(later)
        await publish(store, 600)
        for each in range(3):
            claim = await store.queue.claim(200, LEASE)
            assert len(claim.works) == 200, each
            await store.queue.settle(settled(claim, (1, 2)))
        await database.execute(text("UPDATE scheduled SET due_at = " + self.past(database)))
        assert await store.queue.promote(10) == 2
        more = await publish(store, 2)
        await store.queue.settle(settled(await store.queue.claim(10, LEASE), (1, 2)))
        found = [(row["first"], row["last"]) for row in await raw(database, runs)]
        assert found[-2:] == [(1, 2), (more[0], more[1])]
        assert all(last - first < 256 for first, last in found)

    @staticmethod
    def past(database: Database) -> str:
        return "1" if database.dsn.scheme == "sqlite" else "now() - interval '1 day'"

    async def test_groups_and_records_of_one_claim(self, store: Store, database: Database) -> None:
        seqs = await publish(store, 9)
        claim = await store.queue.claim(9, LEASE)
        groups = [(1, 2), (), (1,), (2, 1), (1, 2), (1, 2, 3, 4), (2,), (1, 2), ()]
        records = [record(seqs[1], 1, DEAD, claim.token, error="no"), record(seqs[8], 2, PENDING, claim.token)]
        batch = Settled(claim.token, claim.works, [Run(ids, 1) for ids in groups], records)
        assert await store.queue.settle(batch) == 9
        found = {(row["event_seq"], row["subscription_id"]): row["state"] for row in await database.rows(deliveries)}
        plain = {(seq, id): DELIVERED for seq, ids in zip(seqs, groups, strict=True) for id in ids}
        assert found == plain | {(seqs[1], 1): DEAD, (seqs[8], 2): PENDING}


class TestReading(RunTests):
    async def mixture(self, store: Store, database: Database) -> list[int]:
        """Record some 700 events in runs that lie in each other, in rows, and in rows over runs."""
        random, seqs = Random(7), await publish(store, 700)
        works: list[Work] = []
        while found := (await store.queue.claim(100, LEASE)).works:
            works += found
        random.shuffle(works)
        await database.execute(text("UPDATE dispatch SET lease_token = 5"))
        for start in range(0, 700, 70):
            part = works[start : start + 70]
            ids = random.choice([(1, 2), (1,), (2,), (1, 2, 3)])
            assert await store.queue.settle(Settled(5, part, [Run(ids, 70)])) == 70
        moment = datetime.now(UTC)
        newer = [
            {"event_seq": seq, "subscription_id": id, "state": state, "attempts": 2, "updated_at": moment}
            for seq in random.sample(seqs, 90)
            for id, state in ((random.randint(1, 3), random.choice([DELIVERED, DEAD, PENDING])),)
        ]
        await database.execute(insert(deliveries).values(newer))
        gone = random.sample(seqs, 20)
        for column in (deliveries.c.event_seq, events.c.seq):
            await database.execute(column.table.delete().where(column.in_(gone)))
        return seqs

    @pytest.mark.parametrize("stretch", [200, 1000])  # seqs that are looked through at once
    async def test_a_list_is_that_of_the_view_whatever_is_asked_for(
        self, store: Store, database: Database, records: SqlRecords, stretch: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("runner.storage.delivery_views._STRETCH", stretch)
        monkeypatch.setattr("runner.storage.stretches._MOST", max(stretch, 100))
        seqs = await self.mixture(store, database)
        some = deliveries.c.event_seq % 5 == 0
        await database.execute(update(deliveries).where(some).values(state=CANCELLED.value))
        names = {1: "one", 2: "two", 3: "three"}
        rows = sorted(await database.rows(delivery_states), key=lambda row: (row["event_seq"], row["subscription_id"]))
        assert len({(row["event_seq"], row["subscription_id"]) for row in rows}) == len(rows)
        moment = rows[len(rows) // 2]["updated_at"]
        for query in (
            DeliveryQuery(limit=None),
            DeliveryQuery(limit=37),
            DeliveryQuery(state=DELIVERED, limit=1001),
            DeliveryQuery(state=DEAD, limit=None),
            DeliveryQuery(state=CANCELLED, limit=None),
            DeliveryQuery(subscription="two", limit=None),
            DeliveryQuery(subscription="nobody", limit=None),
            DeliveryQuery(subscription="one", state=DELIVERED, limit=None),
            DeliveryQuery(seq=seqs[300]),
            DeliveryQuery(since=moment, limit=None),
            DeliveryQuery(until=moment, limit=None),
            DeliveryQuery(before=(seqs[400], "two"), limit=99),
            DeliveryQuery(type="order.*", limit=None),
            DeliveryQuery(type="other", limit=None),
        ):
            bound = (query.before[0], 2) if query.before else (10**9, 0)
            expected = [
                (row["event_seq"], names[row["subscription_id"]], row["state"], row["attempts"], row["updated_at"])
                for row in reversed(rows)
                if query.state in (None, row["state"])
                and query.subscription in (None, names[row["subscription_id"]])
                and query.seq in (None, row["event_seq"])
                and (query.since is None or row["updated_at"] >= query.since)
                and (query.until is None or row["updated_at"] < query.until)
                and (row["event_seq"], row["subscription_id"]) < bound
                and query.type != "other"
            ][: query.limit]
            found = [
                (view.seq, view.subscription, view.state, view.attempts, view.updated_at)
                async for view in records.deliveries(query)
            ]
            assert found == expected, query
            searched: list[tuple[int, str]] = []
            going: DeliveryQuery | None = query
            while going is not None:
                part, reached = await records.search_deliveries(going, timedelta(0))
                searched += [(view.seq, view.subscription) for view in part]
                left = None if query.limit is None else query.limit - len(searched)
                going = None if reached is None else replace(query, before=reached, limit=left)
            assert searched == [each[:2] for each in expected], query

    async def test_an_event_counts_what_runs_record(
        self, store: Store, database: Database, records: SqlRecords
    ) -> None:
        await self.mixture(store, database)
        counts: dict[int, dict[str, int]] = {}
        for row in await database.rows(delivery_states):
            of = counts.setdefault(row["event_seq"], {})
            of[row["state"]] = of.get(row["state"], 0) + 1
        views = [view async for view in records.events(EventQuery(limit=1000))]
        assert len(views) == 680
        assert {view.seq: dict(view.deliveries) for view in views} == {view.seq: counts[view.seq] for view in views}
        one = await records.event(str(views[5].seq))
        assert one.deliveries == counts[one.seq]

    async def test_one_delivery(self, store: Store, records: SqlRecords) -> None:
        seq, *_ = await deliver(store, 3, (1, 2))
        view, attempts = await records.delivery(seq, "two")
        assert (view.seq, view.state, view.attempts, attempts) == (seq, DELIVERED, 1, [])
        with pytest.raises(NotFound):
            await records.delivery(seq, "three")
        trace = await records.trace(str(seq), 10)
        assert [each.subscription for each in trace.deliveries[seq]] == ["one", "two"]

    async def test_why_it_is_not_delivered_it_is(self, store: Store, database: Database) -> None:
        seq, *_ = await deliver(store, 3, (1, 2))
        hold = await SqlOverview(database.engine).hold(seq, "two")
        assert (hold.state, hold.attempts, hold.token, hold.queued) == (DELIVERED, 1, None, False)
        assert hold.changed_at is not None

    async def test_a_rate_counts_runs_and_rows(self, store: Store, database: Database) -> None:
        await deliver(store, 300, (1, 2))
        await deliver(store, 3, (1,))
        recent = await SqlOverview(database.engine).recent()
        assert {id: each.delivered for id, each in recent.items()} == {1: 303, 2: 300}
        assert {each.since for each in recent.values()} == {None}
        await deliver(store, 5000, (1,))
        recent = await SqlOverview(database.engine).recent()
        assert recent[1].delivered >= 5000
        assert recent[1].since is not None


class TestChanging(RunTests):
    async def test_a_row_wins(self, store: Store, database: Database) -> None:
        await check_a_row_wins(store, database)

    async def test_a_replay_puts_a_row_over_the_run(
        self, store: Store, database: Database, corrections: SqlCorrections, records: SqlRecords
    ) -> None:
        seqs = await deliver(store, 5, (1, 2))
        assert await corrections.replay(ReplayQuery(subscription="one"), dry_run=True) == 5
        assert await corrections.replay(ReplayQuery(subscription="one")) == 5
        states = {(row["event_seq"], row["subscription_id"]): row["state"] for row in await database.rows(deliveries)}
        assert states == {(seq, id): PENDING if id == 1 else DELIVERED for seq in seqs for id in (1, 2)}
        listed = [view.state async for view in records.deliveries(DeliveryQuery(subscription="one"))]
        assert listed == [PENDING] * 5
        assert await corrections.cancel(DeliveryQuery(seq=seqs[0], limit=None)) == 1
        view, _ = await records.delivery(seqs[0], "one")
        assert view.state == "cancelled"
        claim = await store.queue.claim_deliveries({1: 10}, LEASE)
        assert sorted(each.seq for each in claim.deliveries) == seqs[1:]
        dead = [record(seqs[1], 1, DEAD, claim.token, error="no")]
        assert await store.queue.settle_deliveries(dead) == [(seqs[1], 1)]
        view, _ = await records.delivery(seqs[1], "one")
        assert (view.state, view.last_error) == (DEAD, "no")

    async def test_what_a_run_records_is_not_missing(self, store: Store, corrections: SqlCorrections) -> None:
        await deliver(store, 5, (1,))
        assert await corrections.replay(ReplayQuery(subscription="one", missing=True)) == 0
        assert await corrections.replay(ReplayQuery(subscription="two", missing=True)) == 5
        assert await corrections.replay(ReplayQuery(subscription="two", missing=True)) == 0

    async def test_an_acknowledgement_changes_nothing(
        self, store: Store, corrections: SqlCorrections, database: Database
    ) -> None:
        seq, *_ = await deliver(store, 5, (1, 2))
        assert await corrections.ack(str(seq), "one") is False
        with pytest.raises(StateConflict, match="is delivered"):
            await corrections.ack(str(seq), "one", failure="no")
        assert await raw(database, deliveries) == []

    async def test_nothing_of_it_is_left_to_cancel_or_to_retry(self, store: Store, corrections: SqlCorrections) -> None:
        seq, *_ = await deliver(store, 5, (1, 2))
        assert await corrections.cancel_event(seq) is None
        assert await corrections.retry(DeliveryQuery(seq=seq, limit=None)) == 0
        assert await store.queue.renew([leased(seq, 1, 7)], LEASE) == []


class TestTwoVersions(RunTests):
    """A process of a version before runs, which records rows, works beside one of this version."""

    @pytest.fixture
    def before(self, other: Store) -> Callable[[Settled], Awaitable[int]]:
        """Settle as that version does."""

        async def settle(batch: Settled) -> int:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(recording, "_FEW", 1 << 62)
                return await other.queue.settle(batch)

        return settle

    @pytest.fixture
    async def seqs(self, store: Store, before: Callable[[Settled], Awaitable[int]]) -> list[int]:
        """Events that both have delivered to two subscriptions, ten and ten in turns."""
        seqs = await publish(store, 60)
        for settle in [store.queue.settle, before] * 3:
            assert await settle(settled(await store.queue.claim(10, LEASE), (1, 2))) == 10
        return seqs

    async def test_readers_know_each_delivery_once(
        self, seqs: list[int], store: Store, database: Database, records: SqlRecords, corrections: SqlCorrections
    ) -> None:
        assert (len(await raw(database, deliveries)), len(await raw(database, runs))) == (60, 3)
        rows = await database.rows(delivery_states)
        assert [(row["event_seq"], row["subscription_id"]) for row in rows] == [(s, id) for s in seqs for id in (1, 2)]
        assert {(row["state"], row["attempts"]) for row in rows} == {(DELIVERED, 1)}
        listed = [(view.seq, view.subscription) async for view in records.deliveries(DeliveryQuery(limit=None))]
        assert listed == [(seq, name) for seq in reversed(seqs) for name in ("two", "one")]
        views = [view async for view in records.events(EventQuery(limit=100))]
        assert {view.seq: dict(view.deliveries) for view in views} == {seq: {DELIVERED: 2} for seq in seqs}
        recent = await SqlOverview(database.engine).recent()
        assert {id: each.delivered for id, each in recent.items()} == {1: 60, 2: 60}
        assert await corrections.replay(ReplayQuery(subscription="one", missing=True)) == 0
        assert await corrections.replay(ReplayQuery(subscription="one")) == 60

    async def test_each_goes_by_its_own_age(
        self, seqs: list[int], database: Database, archive: SqlArchive, records: SqlRecords
    ) -> None:
        await database.execute(update(events).values(created_at=LONG_AGO))
        assert (await archive.prune(WEEK, 0, 1000)).events == 0
        await database.execute(update(deliveries).values(updated_at=LONG_AGO))
        assert (await archive.prune(WEEK, 0, 1000)).events == 30
        left = [seq for start in (0, 20, 40) for seq in seqs[start : start + 10]]
        assert sorted({row["event_seq"] for row in await database.rows(delivery_states)}) == left
        await database.execute(update(runs).values(settled_at=LONG_AGO))
        assert (await archive.prune(WEEK, 0, 1000)).events == 30
        assert await database.count(events, deliveries, runs) == [0, 0, 0]

    @pytest.mark.parametrize("late_one_is_older", [True, False])
    async def test_what_one_took_over_the_other_does_not_record(
        self, late_one_is_older: bool, store: Store, before: Callable[[Settled], Awaitable[int]], database: Database
    ) -> None:
        seqs = await publish(store, 20)
        late, taker = (before, store.queue.settle) if late_one_is_older else (store.queue.settle, before)
        stale = await store.queue.claim(20, SHORT)
        theirs = await claim_soon(store, 7)
        assert await taker(settled(theirs, (1, 2))) == 7
        assert await late(settled(stale, (1, 2))) == 13
        rows = await database.rows(delivery_states)
        assert sorted((row["event_seq"], row["subscription_id"]) for row in rows) == [
            (s, id) for s in seqs for id in (1, 2)
        ]
        assert {row["attempts"] for row in rows if row["event_seq"] in seqs[:7]} == {2}


class TestBite(RunTests):
    """The checks above fail where the guarantee is taken away."""

    @pytest.mark.parametrize(
        "instead",
        [
            "run.seqs AS seqs",
            "multirange(range_merge(run.seqs)) AS seqs",
            "run.seqs * '{[1,20]}'::int8multirange AS seqs",
        ],
        ids=["unfenced", "of all between", "of others"],
    )
    async def test_a_run_of_what_was_not_held(
        self, instead: str, store: Store, other: Store, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if database.dsn.scheme == "sqlite":
            monkeypatch.setattr(settlements, "in_runs", lambda settled, held: in_runs(settled))
        else:
            exact = "run.seqs * held.seqs AS seqs"
            assert all(exact in statement(name, None) for name in ("settle", "settle_runs"))

            def mutant(name: str, schema: str | None, limit: int = 0) -> str:
                return statement(name, schema, limit).replace(exact, instead)

            monkeypatch.setattr(postgres_database, "statement", mutant)
        with pytest.raises(AssertionError):
            await check_only_what_is_held_is_recorded(store, other, database)

    async def test_a_row_that_loses_to_a_run(self, store: Store, database: Database) -> None:
        sqlite = database.dsn.scheme == "sqlite"
        view = "SELECT sql FROM sqlite_master WHERE name = 'delivery_states'"
        if not sqlite:
            view = (
                "SELECT 'CREATE VIEW public.delivery_states AS ' || pg_get_viewdef('public.delivery_states'::regclass)"
            )
        async with database.client.begin() as connection:
            text_of = str((await connection.exec_driver_sql(view)).scalar_one())
            place = text_of.index("NOT" if sqlite else "(NOT (EXISTS", text_of.index("settled_at"))
            await connection.exec_driver_sql(f"DROP VIEW {'' if sqlite else 'public.'}delivery_states")
            await connection.exec_driver_sql(f"{text_of[:place]} 1 = 1")
        with pytest.raises(AssertionError):
            await check_a_row_wins(store, database)


class TestPrune(RunTests):
    async def age(self, database: Database, seqs: Sequence[int]) -> None:
        await database.execute(update(events).where(events.c.seq.in_(seqs)).values(created_at=LONG_AGO))

    async def test_a_run_goes_with_its_events(self, store: Store, database: Database, archive: SqlArchive) -> None:
        seqs = await deliver(store, 300, (1, 2))
        await self.age(database, seqs)
        assert (await archive.prune(WEEK, 0, 1000)).events == 0  # they were delivered a moment ago
        await database.execute(update(runs).values(settled_at=LONG_AGO))
        assert (await archive.prune(WEEK, 0, 1000, dry_run=True)).events == 300
        assert await archive.prune(WEEK, 0, 100) == Pruned(100, seqs[99], False)
        assert len(await database.rows(delivery_states)) == 400
        assert len(await raw(database, runs)) == 2
        assert await archive.prune(WEEK, 0, 1000) == Pruned(200, seqs[-1], False)
        assert await database.count(events, runs, deliveries) == [0, 0, 0]

    @pytest.mark.parametrize(("state", "left"), [(PENDING, 1), (DEAD, 1), (DELIVERED, 0)])
    async def test_a_row_over_the_run_decides(
        self, store: Store, database: Database, archive: SqlArchive, state: DeliveryState, left: int
    ) -> None:
        seqs = await deliver(store, 5, (1, 2))
        await self.age(database, seqs)
        await database.execute(update(runs).values(settled_at=LONG_AGO))
        newer = {"event_seq": seqs[2], "subscription_id": 1, "state": state, "attempts": 1}
        await database.execute(insert(deliveries).values(newer | {"updated_at": LONG_AGO + timedelta(days=50)}))
        assert (await archive.prune(WEEK, 0, 1000)).events == 5 - left
        assert await database.count(events, runs) == [left, left]
        assert len(await database.rows(delivery_states)) == 2 * left

    async def test_a_later_row_keeps_the_event(self, store: Store, database: Database, archive: SqlArchive) -> None:
        seqs = await deliver(store, 5, (1, 2))
        await self.age(database, seqs)
        old = {"event_seq": seqs[2], "subscription_id": 7, "state": DELIVERED, "attempts": 1, "updated_at": LONG_AGO}
        await database.execute(insert(deliveries).values(old))  # and the run is of today
        assert (await archive.prune(WEEK, 0, 1000)).events == 0

    async def test_runs_whose_events_somebody_else_removed_go(
        self, store: Store, database: Database, archive: SqlArchive
    ) -> None:
        """Two that prune at once do not see each other's; the version before knows of no runs."""
        seqs = await deliver(store, 600, (1, 2))
        gone = [seq for seq in seqs if not 256 <= seq < 300]
        await database.execute(events.delete().where(events.c.seq.in_(gone)))
        assert len(await raw(database, runs)) == 3
        await archive.prune(WEEK, 0, 1000, dry_run=True)
        assert len(await raw(database, runs)) == 3
        await archive.prune(WEEK, 0, 1000)
        assert [row["first"] for row in await raw(database, runs)] == [256]
        assert len(await database.rows(delivery_states)) == 88
