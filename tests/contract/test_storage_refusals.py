"""A row that the store refuses, or that another session holds, concerns nothing beside it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from http import HTTPStatus
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from structlog.testing import capture_logs

from runner.delivery import Accepted, Deferred, DeliveryState, Failed, Lease, Outcome, Rejected
from runner.errors import StorageLocked, StorageRefused
from runner.policies.retry import RetryPolicy
from runner.storage.contract.claims import Work
from runner.storage.contract.registry import Registered
from runner.storage.contract.settlements import AttemptRecord, DeliveryRecord, Run, Settled
from runner.storage.halves import in_halves
from runner.storage.tables import attempts, deliveries, dispatch
from runner.subscription import Subscription
from runner.worker.dead_letters import DeadLetters
from runner.worker.settlement import settle
from runner.worker.settlement_writer import SettlementWriter
from tests.support.eventually import eventually

from .storage_contract import LEASE, Database, Store, StoreTests, leased, publish, record, wait

COUNT = 25
DEAD, DELIVERED, LEASED, PENDING = (
    DeliveryState.DEAD,
    DeliveryState.DELIVERED,
    DeliveryState.LEASED,
    DeliveryState.PENDING,
)
REASON = "not this one: £"


async def refuse(database: Database, condition: str, table: str = "deliveries", *, at_commit: bool = False) -> None:
    """Have the database refuse each row of `table` for which `condition`, about NEW, holds."""
    if database.dsn.scheme == "sqlite":
        for verb in ("INSERT", "UPDATE"):
            await database.execute(
                text(
                    f"CREATE TRIGGER refuse_{table}_{verb} BEFORE {verb} ON {table} WHEN {condition} "
                    f"BEGIN SELECT RAISE(ABORT, '{REASON}'); END"
                )
            )
        return
    await database.execute(
        text(
            f"CREATE FUNCTION refuse_{table}() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{REASON}'; END $$"
        )
    )
    when = "CONSTRAINT TRIGGER {} AFTER" if at_commit else "TRIGGER {} BEFORE"
    await database.execute(
        text(
            f"CREATE {when.format('refuse_' + table)} INSERT OR UPDATE ON {table} "
            f"{'DEFERRABLE INITIALLY DEFERRED ' if at_commit else ''}"
            f"FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION refuse_{table}()"
        )
    )


async def refuse_runs(database: Database, seq: int, *, at_commit: bool = False) -> None:
    """Have the database refuse each run that holds `seq`."""
    if database.dsn.scheme == "sqlite":
        condition = (
            "EXISTS (SELECT 1 FROM json_each(NEW.seqs) p"
            f" WHERE {seq} BETWEEN json_extract(p.value, '$[0]') AND json_extract(p.value, '$[1]'))"
        )
        await refuse(database, condition, "runs")
    else:
        await refuse(database, f"NEW.seqs @> {seq}::bigint", "runs", at_commit=at_commit)


class Bench(StoreTests):
    """A writer on a store, and what it has said was written."""

    @pytest.fixture
    def written(self) -> list[DeliveryRecord]:
        return []

    @pytest.fixture
    def letters(self, store: Store) -> DeadLetters:
        return DeadLetters(store.queue)

    @pytest.fixture
    async def writer(
        self, store: Store, letters: DeadLetters, written: list[DeliveryRecord]
    ) -> AsyncIterator[SettlementWriter]:
        writer = SettlementWriter(store.queue, letters, written.extend)
        writer.start()
        yield writer
        await writer.stop()

    @staticmethod
    async def states(database: Database, subscription: int = 1) -> dict[int, tuple[str, int]]:
        rows = await database.rows(deliveries)
        return {
            row["event_seq"]: (row["state"], row["attempts"]) for row in rows if row["subscription_id"] == subscription
        }


class TestOfAClaim(Bench):
    """The end of a claim: each event has gone to subscriptions 1 and 2 at once, unless `records` say otherwise."""

    async def claimed(self, store: Store) -> tuple[list[int], int, Sequence[Work]]:
        seqs = await publish(store, COUNT)
        claim = await store.queue.claim(COUNT, LEASE)
        return seqs, claim.token, claim.works

    async def test_the_store_refuses_all_of_it_and_writes_nothing(self, store: Store, database: Database) -> None:
        seqs, token, works = await self.claimed(store)
        await refuse(database, f"NEW.event_seq = {seqs[7]}")
        await refuse_runs(database, seqs[7])
        with pytest.raises(StorageRefused):
            await store.queue.settle(Settled(token, works, [Run((1, 2), COUNT)]))
        assert await database.count(deliveries, dispatch) == [0, COUNT]

    @pytest.mark.parametrize("at_commit", [False, True])
    async def test_the_others_are_settled_and_the_one_is_dead_with_its_reason(
        self, store: Store, database: Database, writer: SettlementWriter, at_commit: bool
    ) -> None:
        if at_commit and database.dsn.scheme == "sqlite":
            pytest.skip("SQLite has no triggers that wait for the commit")
        seqs, token, works = await self.claimed(store)
        condition = f"NEW.event_seq = {seqs[7]} AND NEW.subscription_id = 1 AND NEW.state = 'delivered'"
        await refuse(database, condition, at_commit=at_commit)
        await refuse_runs(database, seqs[7], at_commit=at_commit)
        with capture_logs() as lines:
            records = await writer.settle(Settled(token, works, [Run((1, 2), COUNT)]))
            await writer.written()
        assert list(records) == []
        assert await database.count(dispatch) == [0]
        assert await self.states(database, 2) == dict.fromkeys(seqs, (DELIVERED, 1))
        assert await self.states(database, 1) == {**dict.fromkeys(seqs, (DELIVERED, 1)), seqs[7]: (DEAD, 1)}
        [error] = [row["last_error"] for row in await database.rows(deliveries) if row["state"] == DEAD]
        assert error.isascii()
        assert error.startswith("it was to be recorded as delivered, and the store refuses that: ")
        assert error.endswith(r"not this one: \xa3")
        [line] = lines
        assert (line["event"], line["seq"], line["recorded_as"]) == ("settlement refused", seqs[7], "dead")

    async def test_what_runs_and_what_waits_of_the_refused_one_stay_as_they_were(
        self, store: Store, database: Database, writer: SettlementWriter
    ) -> None:
        seqs, token, works = await self.claimed(store)
        await refuse(database, f"NEW.event_seq = {seqs[3]} AND NEW.state = 'delivered'")
        await refuse_runs(database, seqs[3])
        records = [
            record(seqs[3], 2, LEASED, token, due_in=LEASE),
            record(seqs[3], 3, PENDING, token, attempts=0),
            record(seqs[3], 4, PENDING, token, due_in=LEASE, error="busy"),
        ]
        failed = [AttemptRecord(seqs[3], 4, 1, timedelta(seconds=1), "busy")]
        await writer.settle(Settled(token, works, [Run((1,), COUNT)], records, failed))
        await writer.written()
        found = {row["subscription_id"]: row for row in await database.rows(deliveries) if row["event_seq"] == seqs[3]}
        assert {id: (row["state"], row["attempts"]) for id, row in found.items()} == {
            1: (DEAD, 1),
            2: (LEASED, 1),
            3: (PENDING, 0),
            4: (PENDING, 1),
        }
        assert (found[2]["lease_token"], found[4]["last_error"]) == (token, "busy")
        assert [row["error"] for row in await database.rows(attempts)] == ["busy"]

    async def test_an_event_of_which_nothing_at_all_may_be_written_holds_up_no_other(
        self, store: Store, database: Database, writer: SettlementWriter
    ) -> None:
        seqs, token, works = await self.claimed(store)
        await refuse(database, f"NEW.event_seq = {seqs[0]}")
        await refuse_runs(database, seqs[0])
        with capture_logs() as lines:
            await writer.settle(Settled(token, works, [Run((1,), COUNT)]))
        assert await self.states(database) == dict.fromkeys(seqs[1:], (DELIVERED, 1))
        assert [row["event_seq"] for row in await database.rows(dispatch)] == [seqs[0]]
        assert [(line["event"], line["seq"]) for line in lines] == [("settlement refused", seqs[0])]

    async def test_a_table_that_is_missing_is_nothing_against_any_row(
        self, store: Store, database: Database, writer: SettlementWriter
    ) -> None:
        _, token, works = await self.claimed(store)
        await database.rename("runs", "gone")
        with pytest.raises(Exception, match="refused") as raised:
            await writer.settle(Settled(token, works, [Run((1,), COUNT)]))
        assert not isinstance(raised.value, StorageRefused)
        await database.rename("gone", "runs")
        assert await writer.settle(Settled(token, works, [Run((1,), COUNT)])) == ()
        assert await database.count(deliveries, dispatch) == [COUNT, 0]


class TestOfDeliveries(Bench):
    """Deliveries that are held each under a lease of its own."""

    async def held(self, store: Store) -> tuple[list[int], int]:
        seqs = await wait(store, 1, COUNT)
        claim = await store.queue.claim_deliveries({1: COUNT}, LEASE)
        return seqs, claim.token

    @staticmethod
    def ended(seqs: Sequence[int], token: int, **errors: str) -> list[DeliveryRecord]:
        """Return that all are delivered, but those which failed."""
        return [
            record(seq, 1, PENDING, token, attempts=1, due_in=LEASE, error=errors[f"at{index}"])
            if f"at{index}" in errors
            else record(seq, 1, DELIVERED, token, attempts=1)
            for index, seq in enumerate(seqs)
        ]

    @pytest.mark.parametrize("at_commit", [False, True])
    async def test_the_others_are_settled_and_the_one_is_dead_with_its_reason(
        self,
        store: Store,
        database: Database,
        writer: SettlementWriter,
        written: list[DeliveryRecord],
        at_commit: bool,
    ) -> None:
        if at_commit and database.dsn.scheme == "sqlite":
            pytest.skip("SQLite has no triggers that wait for the commit")
        seqs, token = await self.held(store)
        await refuse(database, f"NEW.event_seq = {seqs[7]} AND NEW.state = 'delivered'", at_commit=at_commit)
        for each in self.ended(seqs, token):
            writer.submit(each, None)
        await writer.written()
        assert await self.states(database) == {**dict.fromkeys(seqs, (DELIVERED, 1)), seqs[7]: (DEAD, 1)}
        assert sorted((each.seq, each.state) for each in written) == [
            (seq, DEAD if seq == seqs[7] else DELIVERED) for seq in seqs
        ]

    async def test_text_that_the_store_does_not_take_goes_in_ascii_and_the_delivery_is_tried_again(
        self, store: Store, database: Database, writer: SettlementWriter
    ) -> None:
        """As a database of another encoding would refuse it."""
        seqs, token = await self.held(store)
        length = "length(CAST({} AS blob))" if database.dsn.scheme == "sqlite" else "octet_length({})"
        for table, column in (("deliveries", "NEW.last_error"), ("attempts", "NEW.error")):
            await refuse(database, f"{length.format(column)} > length({column})", table)
        for each in self.ended(seqs, token, at3="card expired: 3 €", at4="plain"):
            failed = each.error and AttemptRecord(each.seq, 1, 1, timedelta(seconds=1), each.error)
            writer.submit(each, failed or None)
        await writer.written()
        states = {**dict.fromkeys(seqs, (DELIVERED, 1)), seqs[3]: (PENDING, 1), seqs[4]: (PENDING, 1)}
        assert await self.states(database) == states
        errors = {row["event_seq"]: row["last_error"] for row in await database.rows(deliveries) if row["last_error"]}
        assert errors == {seqs[3]: r"card expired: 3 \u20ac", seqs[4]: "plain"}
        assert {row["error"] for row in await database.rows(attempts)} == set(errors.values())

    async def test_a_refused_attempt_or_dead_letter_is_left_out(
        self, store: Store, database: Database, writer: SettlementWriter, letters: DeadLetters
    ) -> None:
        seqs, token = await self.held(store)
        letters.learn(
            [
                Registered(1, Subscription(name="s", sink="x"), False, "file"),
                Registered(9, Subscription(name="s.dead-letter", sink="x", dead_letter_of="s"), False, "file"),
            ]
        )
        await refuse(database, f"NEW.event_seq = {seqs[1]}", "attempts")
        await refuse(database, f"NEW.event_seq = {seqs[2]} AND NEW.subscription_id = 9")
        for seq in seqs:
            failed = AttemptRecord(seq, 1, 1, timedelta(seconds=1), "gone")
            writer.submit(record(seq, 1, DEAD, token, error="gone"), failed)
        await writer.written()
        assert await self.states(database) == dict.fromkeys(seqs, (DEAD, 1))
        assert set(await self.states(database, 9)) == set(seqs) - {seqs[2]}
        assert {row["event_seq"] for row in await database.rows(attempts)} >= set(seqs) - {seqs[1], seqs[2]}

    async def test_what_may_not_be_written_at_all_is_left_to_its_lease(
        self, store: Store, database: Database, writer: SettlementWriter
    ) -> None:
        seqs, token = await self.held(store)
        await refuse(database, f"NEW.event_seq = {seqs[0]}")
        with capture_logs() as lines:
            for each in self.ended(seqs, token):
                writer.submit(each, None)
            await writer.written()
        assert await self.states(database) == {**dict.fromkeys(seqs, (DELIVERED, 1)), seqs[0]: (LEASED, 2)}
        assert [(line["event"], line.get("recorded_as")) for line in lines] == [("settlement refused", None)]

    async def test_a_number_out_of_range_is_refused_and_nothing_else_is(
        self, store: Store, database: Database, writer: SettlementWriter
    ) -> None:
        seqs, token = await self.held(store)
        for index, each in enumerate(self.ended(seqs, token)):
            failed = AttemptRecord(each.seq, 1, 2**70, timedelta(0), "x") if index == 5 else None
            writer.submit(each, failed)
        await writer.written()
        assert await self.states(database) == dict.fromkeys(seqs, (DELIVERED, 1))

    async def test_renewals(self, store: Store, database: Database) -> None:
        seqs, token = await self.held(store)
        await refuse(database, f"NEW.event_seq = {seqs[0]}")
        with pytest.raises(StorageRefused):
            await store.queue.renew([leased(seq, 1, token) for seq in seqs], LEASE)
        assert await store.queue.renew([leased(seq, 1, token) for seq in seqs[1:]], LEASE)


class TestHeld:
    """PostgreSQL only: SQLite has one writer at a time."""

    @pytest.fixture
    async def database(self, tables_dsn: str) -> AsyncIterator[Database]:
        from .storage_contract import opened

        async with opened(tables_dsn) as database:
            yield database

    async def test_what_another_session_holds_waits_alone(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("runner.worker.settlement_writer._HELD", 0.05)
        store = database.open()
        seqs = await wait(store, 1, COUNT)
        token = (await store.queue.claim_deliveries({1: COUNT}, LEASE)).token
        written: list[Any] = []
        writer = SettlementWriter(store.queue, DeadLetters(store.queue), written.extend)
        writer.start()
        await shorten_lock_waits(store)
        async with database.engine.connect() as other:
            await other.execute(text(f"SELECT 1 FROM public.deliveries WHERE event_seq = {seqs[3]} FOR UPDATE"))
            for each in TestOfDeliveries.ended(seqs, token):
                writer.submit(each, None)
            await eventually(lambda: len(written) == COUNT - 1)
            with pytest.raises(StorageLocked):
                await store.queue.renew([leased(seq, 1, token) for seq in seqs], LEASE)
            await other.rollback()
        await eventually(lambda: len(written) == COUNT)
        assert await Bench.states(database) == dict.fromkeys(seqs, (DELIVERED, 1))
        await writer.stop()
        await store.close()

    async def test_an_event_that_another_session_holds_is_settled_alone(self, database: Database) -> None:
        store = database.open()
        seqs = await publish(store, COUNT)
        claim = await store.queue.claim(COUNT, LEASE, 2**30)
        writer = SettlementWriter(store.queue, DeadLetters(store.queue), lambda _: None)
        writer.start()
        await shorten_lock_waits(store)
        async with database.engine.connect() as other:
            await other.execute(text(f"SELECT 1 FROM public.dispatch WHERE event_seq = {seqs[3]} FOR UPDATE"))
            settling = asyncio.create_task(writer.settle(Settled(claim.token, claim.works, [Run((1, 2), COUNT)])))
            rest = dict.fromkeys([seq for seq in seqs if seq != seqs[3]], (DELIVERED, 1))

            async def settled() -> bool:
                return await Bench.states(database) == rest

            await eventually(settled)
            await settling
            assert writer.delayed == 1
            await other.rollback()
        await eventually(lambda: writer.delayed == 0)
        assert await Bench.states(database, 2) == dict.fromkeys(seqs, (DELIVERED, 1))
        await writer.stop()
        await store.close()

    async def test_a_lock_on_the_whole_table_is_waited_for_a_few_times_and_not_once_for_each(
        self, database: Database
    ) -> None:
        store = database.open()
        seqs = await publish(store, COUNT)
        claim = await store.queue.claim(COUNT, LEASE, 2**30)
        writer = SettlementWriter(store.queue, DeadLetters(store.queue), lambda _: None)
        writer.start()
        await shorten_lock_waits(store)
        waits = 0

        async def write(some: Sequence[int]) -> Sequence[Any]:
            nonlocal waits
            waits += 1
            return await store.queue.settle_deliveries([record(seq, 1, DELIVERED, claim.token) for seq in some])

        async with database.engine.connect() as other:
            await other.execute(text("LOCK TABLE public.deliveries IN SHARE MODE"))
            _, refused = await in_halves(seqs, write)
            assert (len(refused), waits) == (COUNT, 3)
            assert await writer.settle(Settled(claim.token, claim.works, [Run((1,), COUNT)])) == ()
            await other.rollback()
        await eventually(lambda: writer.delayed == 0)
        assert await Bench.states(database) == dict.fromkeys(seqs, (DELIVERED, 1))
        await writer.stop()
        await store.close()


WORDS = st.text(max_size=30) | st.sampled_from(["\0", "\ud800", "\x85", "x" * 5000, "\U0010ffff" * 3000])
WAITS = st.timedeltas() | st.sampled_from([timedelta.min, timedelta.max])
STATUSES = st.none() | st.integers(0, 2**31 - 1) | st.booleans() | st.just(HTTPStatus.GONE)
OUTCOMES: st.SearchStrategy[Outcome] = (
    st.builds(Accepted)
    | st.builds(Deferred, WAITS)
    | st.builds(Failed, WORDS, st.none() | WAITS, STATUSES, st.none() | WORDS)
    | st.builds(Rejected, WORDS, STATUSES, st.none() | WORDS)
)


class TestOutcomes(Bench):
    async def test_whatever_a_sink_may_answer_can_be_recorded(
        self, store: Store, database: Database, writer: SettlementWriter
    ) -> None:
        """An outcome that passes the check of the outlet is refused by no table of ours."""
        outcomes: list[Outcome] = []

        @settings(max_examples=300, database=None, deadline=None)
        @given(OUTCOMES)
        def draw(outcome: Outcome) -> None:
            outcomes.append(outcome)

        draw()
        seqs = await wait(store, 1, len(outcomes))
        token = (await store.queue.claim_deliveries({1: len(outcomes)}, LEASE, 2**30)).token
        for seq, outcome in zip(seqs, outcomes, strict=True):
            writer.submit(*settle(RetryPolicy(), Lease(seq, 1, 2, token), outcome, 1e6))
        with capture_logs() as lines:
            await writer.written()
        assert lines == []
        states = await self.states(database)
        for seq, outcome in zip(seqs, outcomes, strict=True):
            expected = {Accepted: DELIVERED, Deferred: LEASED, Failed: PENDING, Rejected: DEAD}[type(outcome)]
            assert states[seq][0] == expected


async def shorten_lock_waits(store: Any) -> None:
    """Have a store wait for a lock for a moment only, on each of its connections."""
    async with store.queue._connections.take() as one, store.queue._connections.take() as two:
        for each in (one, two):
            await each.execute("SET lock_timeout = '100ms'")
