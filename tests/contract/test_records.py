from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine

from runner.config.dsn import Dsn
from runner.delivery import DeliveryState
from runner.errors import NotFound
from runner.policies.retry import RetryPolicy
from runner.storage import stretches
from runner.storage.contract.corrections import Corrections, ReplayQuery
from runner.storage.contract.records import DeliveryQuery, EventQuery, EventView, Records
from runner.storage.contract.registry import Configuration, Health, Instance
from runner.storage.corrections import SqlCorrections
from runner.storage.expressions import Now
from runner.storage.records import SqlRecords
from runner.storage.registry import SqlRegistry
from runner.storage.tables import attempts, deliveries, dispatch, events, instances, scheduled, subscriptions
from runner.subscription import Subscription
from tests.support.engines import open_engine
from tests.support.eventually import eventually

PENDING, LEASED, DELIVERED, DEAD, CANCELLED = DeliveryState
START = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest) -> tuple[str, str | None]:
    """The DSN of migrated, empty tables, and their schema."""
    if request.param == "sqlite":
        return request.getfixturevalue("tables_file"), None
    return request.getfixturevalue("tables_in")("bus"), "bus"


@pytest.fixture
async def engine(place: tuple[str, str | None], tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    dsn, schema = place
    engine = open_engine(Dsn.parse(dsn, base=tmp_path), schema=schema, pool=5)
    yield engine
    await engine.dispose()


@pytest.fixture
def records(engine: AsyncEngine) -> Records:
    return SqlRecords(engine)


@pytest.fixture
def corrections(engine: AsyncEngine) -> Corrections:
    return SqlCorrections(engine)


async def put(engine: AsyncEngine, table: Any, *rows: dict[str, Any]) -> None:
    async with engine.begin() as connection:
        await connection.execute(insert(table), list(rows))


def event_row(seq: int, **columns: Any) -> dict[str, Any]:
    """Return an event that was recorded `seq` minutes after START."""
    moment = START + timedelta(minutes=seq)
    row = {"seq": seq, "id": f"e{seq}", "source": "/s", "type": "order.created", "created_at": moment}
    return {**row, **columns}


def delivery_row(seq: int, subscription: int, state: DeliveryState, **columns: Any) -> dict[str, Any]:
    row = {"event_seq": seq, "subscription_id": subscription, "state": state.value, "attempts": 3}
    moment = START + timedelta(minutes=seq)
    return {**row, "due_at": None, "lease_token": None, "last_error": None, "updated_at": moment, **columns}


async def put_events(engine: AsyncEngine, count: int) -> None:
    await put(engine, events, *(event_row(seq) for seq in range(1, count + 1)))


async def put_subscriptions(engine: AsyncEngine, *names: str) -> None:
    rows = [
        {"id": number, "name": name, "spec": Subscription(name=name, sink="log").to_json(), "origin": "file"}
        | {"active": True, "paused": False, "created_at": START, "updated_at": START}
        for number, name in enumerate(names, 1)
    ]
    await put(engine, subscriptions, *rows)


async def seqs(records: Records, **query: Any) -> list[int]:
    return [view.seq async for view in records.events(EventQuery(**query))]


async def keys(records: Records, **query: Any) -> list[tuple[int, str]]:
    return [(view.seq, view.subscription) async for view in records.deliveries(DeliveryQuery(**query))]


async def stored(engine: AsyncEngine, seq: int, subscription: int) -> Any:
    key = (deliveries.c.event_seq == seq, deliveries.c.subscription_id == subscription)
    async with engine.connect() as connection:
        return (await connection.execute(select(deliveries, Now().label("now")).where(*key))).one()


class TestEvents:
    async def test_none(self, records: Records) -> None:
        assert await seqs(records) == []
        assert await seqs(records, since=START, until=START) == []

    async def test_come_newest_first_or_oldest_first_up_to_the_limit(
        self, records: Records, engine: AsyncEngine
    ) -> None:
        await put_events(engine, 5)
        assert await seqs(records) == [5, 4, 3, 2, 1]
        assert await seqs(records, limit=2) == [5, 4]
        assert await seqs(records, limit=0) == []
        assert await seqs(records, newest_first=False, after_seq=2) == [3, 4, 5]
        assert await seqs(records, after_seq=2, limit=2) == [5, 4]

    @pytest.mark.parametrize("newest_first", [True, False])
    async def test_pages_join_up(self, records: Records, engine: AsyncEngine, newest_first: bool) -> None:
        await put_events(engine, 1203)
        expected = sorted(range(1, 1204), reverse=newest_first)
        assert await seqs(records, limit=5000, newest_first=newest_first) == expected
        assert await seqs(records, limit=1001, newest_first=newest_first) == expected[:1001]

    async def test_no_transaction_stays_open_between_two_events(self, records: Records, engine: AsyncEngine) -> None:
        await put_events(engine, 600)
        found: list[int] = []
        async for view in records.events(EventQuery(limit=1000)):
            if not found:
                await put(engine, events, event_row(601))
                if engine.dialect.name == "postgresql":
                    async with engine.connect() as connection:
                        idle = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
                        assert await connection.scalar(text(f"{idle} AND datname = current_database()")) == 0
            found.append(view.seq)
        assert found == list(range(600, 0, -1))

    async def test_patterns(self, records: Records, engine: AsyncEngine) -> None:
        types = ["order.created", "Order.created", "order_created", "order%", "order\\x", "a.order.b", "order.b\nc"]
        await put(engine, events, *(event_row(seq, type=each) for seq, each in enumerate(types, 1)))

        async def found(pattern: str) -> list[str]:
            return [types[seq - 1] for seq in await seqs(records, type=pattern, newest_first=False)]

        assert await found("*") == types
        assert await found("order.*") == ["order.created", "order.b\nc"]
        assert await found("order_*") == ["order_created"]
        assert await found("order%*") == ["order%"]
        assert await found("order\\*") == ["order\\x"]
        assert await found("*order*b*") == ["a.order.b", "order.b\nc"]
        assert await found("**.created") == ["order.created", "Order.created"]
        assert await found("order%") == ["order%"]
        assert await found("order") == []

    async def test_a_limit_counts_what_fits_the_pattern(self, records: Records, engine: AsyncEngine) -> None:
        rows = (event_row(seq, type="order.x" if seq % 3 else "ORDER.x") for seq in range(1, 31))
        await put(engine, events, *rows)
        assert await seqs(records, type="order.*", limit=4) == [29, 28, 26, 25]

    async def test_source_and_id(self, records: Records, engine: AsyncEngine) -> None:
        await put(engine, events, *(event_row(seq, source=f"/{seq % 4}", id=f"e{seq // 4}") for seq in range(40)))
        assert await seqs(records, source="/1", limit=2) == [37, 33]
        assert await seqs(records, source="/*", limit=2) == [39, 38]
        assert await seqs(records, id="e3") == [15, 14, 13, 12]
        assert await seqs(records, id="e3", source="/2") == [14]
        assert await seqs(records, id="none") == []

    async def test_since_and_until(self, records: Records, engine: AsyncEngine) -> None:
        await put_events(engine, 300)
        fifth, last = START + timedelta(minutes=5), START + timedelta(minutes=300)
        assert await seqs(records, since=fifth, newest_first=False, limit=2) == [5, 6]
        assert await seqs(records, until=fifth) == [4, 3, 2, 1]
        assert await seqs(records, since=fifth, until=fifth + timedelta(minutes=2)) == [6, 5]
        assert await seqs(records, since=last, until=last + timedelta(days=1)) == [300]
        assert await seqs(records, since=last + timedelta(days=1)) == []
        assert await seqs(records, until=START) == []

    async def test_a_time_is_found_though_the_clock_was_set_back(self, records: Records, engine: AsyncEngine) -> None:
        rows = [event_row(seq) for seq in range(1, 400)]
        for row in rows[200:260]:
            row["created_at"] -= timedelta(minutes=55)
        await put(engine, events, *rows)
        since = START + timedelta(minutes=180)
        expected = [row["seq"] for row in rows if row["created_at"] >= since]
        assert await seqs(records, since=since, newest_first=False, limit=1000) == expected
        expected = [row["seq"] for row in rows if row["created_at"] < since]
        assert await seqs(records, until=since, newest_first=False, limit=1000) == expected

    async def test_every_attribute_comes_back(self, records: Records, engine: AsyncEngine) -> None:
        columns = {
            "subject": "é",
            "time": START,
            "datacontenttype": "text/plain",
            "dataschema": "urn:schema",
            "extensions": {"tenant": "a", "n": 7},
            "data": b"\x00\xff",
        }
        await put(engine, events, event_row(1, **columns))
        found = (await records.event("1")).event
        assert {name: getattr(found, name) for name in columns} == columns
        assert (found.type, found.source, found.id) == ("order.created", "/s", "e1")

    async def test_a_time_that_was_not_given_is_that_of_recording(self, records: Records, engine: AsyncEngine) -> None:
        await put_events(engine, 1)
        view = await records.event("1")
        assert view.event.time == view.created_at == START + timedelta(minutes=1)
        assert view.event.extensions == {}
        assert view.event.data is None

    async def test_their_state(self, records: Records, engine: AsyncEngine) -> None:
        await put_events(engine, 6)
        await put(engine, dispatch, {"event_seq": 1})
        await put(engine, scheduled, {"event_seq": 2, "due_at": START + timedelta(days=1)})
        states = [(3, DELIVERED), (3, DEAD), (4, DELIVERED), (4, PENDING), (5, LEASED)]
        rows = (delivery_row(seq, number, state) for number, (seq, state) in enumerate(states))
        await put(engine, deliveries, *rows)
        found: list[EventView] = [view async for view in records.events(EventQuery(newest_first=False))]
        assert [view.state for view in found] == ["queued", "scheduled", "settled", "queued", "queued", "settled"]
        assert [view.due_at for view in found] == [None, START + timedelta(days=1), None, None, None, None]
        assert [view.deliveries for view in found] == [
            {},
            {},
            {"delivered": 1, "dead": 1},
            {"delivered": 1, "pending": 1},
            {"leased": 1},
            {},
        ]

    async def test_of_one_state(self, records: Records, engine: AsyncEngine) -> None:
        await put(engine, events, *(event_row(seq, cancelled_at=START if seq > 6 else None) for seq in range(1, 10)))
        await put(engine, dispatch, {"event_seq": 1}, {"event_seq": 8})
        await put(engine, scheduled, {"event_seq": 2, "due_at": START + timedelta(days=1)})
        states = [(3, DELIVERED), (3, DEAD), (4, DELIVERED), (4, PENDING), (5, LEASED), (9, PENDING)]
        await put(engine, deliveries, *(delivery_row(seq, n, state) for n, (seq, state) in enumerate(states)))
        found = {state: await seqs(records, state=state) for state in ("scheduled", "queued", "settled", "cancelled")}
        assert found == {"scheduled": [2], "queued": [9, 8, 5, 4, 1], "settled": [6, 3], "cancelled": [7]}
        assert {view.seq: view.state async for view in records.events(EventQuery())} == {
            seq: state for state, those in found.items() for seq in those
        }
        assert await seqs(records, state="queued", limit=2) == [9, 8]

    async def test_about_a_subject(self, records: Records, engine: AsyncEngine) -> None:
        subjects = ["order/1", "order/2", None, "Order/1"]
        await put(engine, events, *(event_row(seq, subject=each) for seq, each in enumerate(subjects, 1)))
        assert await seqs(records, subject="order/1") == [1]
        assert await seqs(records, subject="order/*") == [2, 1]


class TestSearch:
    """What no index leads to is looked for stretch by stretch."""

    SEQS = (1, 2, 3, 4, 5, 6, 7, 40, 41, 42, 43, 100)  # of which the odd ones are of a rare type

    @pytest.fixture(autouse=True)
    async def rows(self, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stretches, "_FIRST", 3)
        monkeypatch.setattr(stretches, "_MOST", 50)
        types = ("common", "rare")
        await put(engine, events, *(event_row(seq, type=types[seq % 2], subject=f"s{seq}") for seq in self.SEQS))

    async def test_all_that_fits_is_found_however_far_apart(self, records: Records) -> None:
        odd = [seq for seq in self.SEQS if seq % 2]
        assert await seqs(records, type="rare") == odd[::-1]
        assert await seqs(records, type="rare", newest_first=False) == odd
        assert await seqs(records, type="r*", limit=2) == odd[:-3:-1]
        assert await seqs(records, subject="s1") == [1]
        assert await seqs(records, source="/*", limit=100) == list(self.SEQS[::-1])
        assert await seqs(records, type="none") == []
        assert await seqs(records, state="settled") == list(self.SEQS[::-1])
        assert await seqs(records, state="cancelled") == []

    async def test_the_ends_of_a_query_are_kept(self, records: Records) -> None:
        assert await seqs(records, type="rare", before_seq=41) == [7, 5, 3, 1]
        assert await seqs(records, type="rare", after_seq=5, newest_first=False) == [7, 41, 43]
        at = {seq: START + timedelta(minutes=seq) for seq in self.SEQS}
        assert await seqs(records, type="rare", since=at[5], until=at[43]) == [41, 7, 5]
        assert await seqs(records, since=at[40]) == [100, 43, 42, 41, 40]
        assert await seqs(records, until=at[3]) == [2, 1]
        assert await seqs(records, type="rare", since=at[100] + timedelta(days=1)) == []

    async def test_one_that_is_broken_off_says_how_far_it_came_and_goes_on_from_there(self, records: Records) -> None:
        for newest_first in (True, False):
            found: list[int] = []
            reached: int | None = None
            rounds = 0
            while rounds == 0 or reached is not None:
                query = EventQuery(type="rare", newest_first=newest_first)
                query = replace(query, before_seq=reached) if newest_first else replace(query, after_seq=reached)
                views, reached = await records.search(query, timedelta(0))
                found += [view.seq for view in views]
                rounds += 1
            assert rounds > 3
            assert found == sorted((seq for seq in self.SEQS if seq % 2), reverse=newest_first)

    async def test_one_that_has_what_it_wants_or_all_there_is_is_complete(self, records: Records) -> None:
        views, reached = await records.search(EventQuery(type="common", limit=2, data=False), timedelta(minutes=1))
        assert [view.seq for view in views] == [100, 42]
        assert reached is None
        assert (await records.search(EventQuery(type="none"), timedelta(minutes=1))) == ([], None)
        assert (await records.search(EventQuery(), timedelta(0))).reached is None

    async def test_a_page_costs_the_same_however_many_deliveries_its_events_have(
        self, records: Records, engine: AsyncEngine
    ) -> None:
        await put(engine, deliveries, *(delivery_row(seq, id, DELIVERED) for seq in self.SEQS for id in range(1, 30)))
        seen = 0

        @event.listens_for(engine.sync_engine, "before_cursor_execute")
        def note(*_: object) -> None:
            nonlocal seen
            seen += 1

        assert len(await seqs(records, limit=10, data=False)) == 10
        assert seen <= 4  # of which one or two begin a transaction


class TestOneEvent:
    async def test_by_seq_or_id(self, records: Records, engine: AsyncEngine) -> None:
        await put(engine, events, event_row(1), event_row(2, id="77"), event_row(3, id="2"), event_row(4, id="²"))
        assert (await records.event("1")).event.id == "e1"
        assert (await records.event("e1")).seq == 1
        assert (await records.event("77")).seq == 2
        assert (await records.event("2")).seq == 2
        assert (await records.event("²")).seq == 4

    @pytest.mark.parametrize("reference", ["5", "e", "", "-1", "9" * 18, "9" * 19, "9" * 400])
    async def test_unknown(self, records: Records, engine: AsyncEngine, reference: str) -> None:
        await put_events(engine, 1)
        with pytest.raises(NotFound, match="no event has the seq or the id"):
            await records.event(reference)

    async def test_an_id_of_several_sources_is_not_guessed(self, records: Records, engine: AsyncEngine) -> None:
        await put(engine, events, *(event_row(seq, id="same", source=f"/{seq}") for seq in (1, 2)))
        with pytest.raises(NotFound, match=r"give the seq .* 1 \(source /1\), 2 \(source /2\)"):
            await records.event("same")

    async def test_the_attempts_of_several_deliveries_are_read_together(
        self, records: Records, engine: AsyncEngine
    ) -> None:
        await put_events(engine, 2)
        await put_subscriptions(engine, "crm", "audit", "mail")
        rows = [(1, 1, 1), (1, 2, 1), (1, 1, 2), (2, 1, 1)]
        one = {"at": START, "duration_us": 1500, "error": "no"}
        made = [{"event_seq": seq, "subscription_id": id, "number": number, **one} for seq, id, number in rows]
        await put(engine, attempts, *made)
        found = await records.attempts(1, ["crm", "mail", "nobody"])
        assert {name: [each.number for each in its] for name, its in found.items()} == {
            "crm": [1, 2],
            "mail": [],
            "nobody": [],
        }
        assert found["crm"][0].duration == timedelta(milliseconds=1.5)


class TestDeliveries:
    @pytest.fixture(autouse=True)
    async def rows(self, engine: AsyncEngine) -> None:
        await put_events(engine, 4)
        await put_subscriptions(engine, "crm", "audit")
        await put(
            engine,
            deliveries,
            delivery_row(1, 1, DELIVERED, attempts=1),
            delivery_row(1, 2, DEAD, last_error="refused", attempts=20),
            delivery_row(2, 1, PENDING, due_at=START + timedelta(hours=1)),
            delivery_row(3, 1, LEASED, lease_token=42),
            delivery_row(3, 2, CANCELLED),
            delivery_row(4, 2, DEAD),
        )

    async def test_come_newest_event_first(self, records: Records) -> None:
        everything = [(4, "audit"), (3, "audit"), (3, "crm"), (2, "crm"), (1, "audit"), (1, "crm")]
        assert await keys(records) == everything
        assert await keys(records, limit=None) == everything
        assert await keys(records, limit=3) == everything[:3]

    async def test_of_a_type(self, records: Records, engine: AsyncEngine) -> None:
        await put(engine, events, event_row(5, type="user.gone"))
        await put(engine, deliveries, delivery_row(5, 1, DEAD))
        assert await keys(records, type="user.*") == [(5, "crm")]
        assert await keys(records, type="user.gone", state=DEAD, subscription="crm") == [(5, "crm")]
        assert await keys(records, type="nothing.*") == []

    async def test_conditions_hold_together(self, records: Records) -> None:
        assert await keys(records, state=DEAD) == [(4, "audit"), (1, "audit")]
        assert await keys(records, state=PENDING) == [(2, "crm")]
        assert await keys(records, subscription="crm") == [(3, "crm"), (2, "crm"), (1, "crm")]
        assert await keys(records, subscription="crm", state=DEAD) == []
        assert await keys(records, subscription="none") == []
        assert await keys(records, seq=1) == [(1, "audit"), (1, "crm")]
        second, fourth = START + timedelta(minutes=2), START + timedelta(minutes=4)
        assert await keys(records, since=second, until=fourth) == [(3, "audit"), (3, "crm"), (2, "crm")]

    async def test_pages_join_up(self, records: Records, engine: AsyncEngine) -> None:
        await put(engine, events, *(event_row(seq) for seq in range(5, 805)))
        rows = [delivery_row(seq, subscription, DEAD) for seq in range(5, 805) for subscription in (1, 2)]
        await put(engine, deliveries, *rows)
        found = await keys(records, state=DEAD, limit=None)
        assert found == [(seq, name) for seq in range(804, 4, -1) for name in ("audit", "crm")] + [
            (4, "audit"),
            (1, "audit"),
        ]

    async def test_what_is_due_soonest_comes_first_and_pages_join_up(
        self, records: Records, engine: AsyncEngine
    ) -> None:
        await put(engine, events, *(event_row(seq) for seq in range(5, 805)))
        dues = {(seq, n): START + timedelta(seconds=seq * 7919 % 300) for seq in range(5, 805) for n in (1, 2)}
        await put(engine, deliveries, *(delivery_row(*key, PENDING, due_at=due) for key, due in dues.items()))
        in_turn = sorted(dues, key=lambda key: (dues[key], key))
        expected = [(seq, ("crm", "audit")[n - 1]) for seq, n in in_turn] + [(2, "crm")]
        assert await keys(records, soonest_first=True, limit=None) == expected
        assert await keys(records, soonest_first=True, limit=700) == expected[:700]
        assert await keys(records, soonest_first=True, subscription="audit", limit=1) == [
            next(each for each in expected if each[1] == "audit")
        ]

    async def test_what_one_says(self, records: Records) -> None:
        view, tried = await records.delivery(1, "audit")
        assert (view.seq, view.subscription, view.state, view.attempts) == (1, "audit", DEAD, 20)
        assert (view.event_source, view.event_id, view.event_type) == ("/s", "e1", "order.created")
        assert (view.last_error, view.due_at, view.updated_at) == ("refused", None, START + timedelta(minutes=1))
        assert tried == []
        assert (await records.delivery(2, "crm"))[0].due_at == START + timedelta(hours=1)

    async def test_attempts_come_in_order(self, records: Records, engine: AsyncEngine) -> None:
        attempt: dict[str, Any] = {"event_seq": 1, "subscription_id": 2, "at": START, "duration_us": 1_500_000}
        outcomes: list[dict[str, Any]] = [
            {"number": 1, "status": 503, "error": "busy", "excerpt": "try later"},
            {"number": 2, "status": None, "error": "timed out", "excerpt": None},
            {"number": 1, "status": 200, "error": None, "excerpt": None},  # after somebody asked for a retry
        ]
        other = {**attempt, **outcomes[0], "subscription_id": 1}
        await put(engine, attempts, *({**attempt, **each} for each in outcomes), other)
        _, tried = await records.delivery(1, "audit")
        assert [
            {"number": each.number, "status": each.status, "error": each.error, "excerpt": each.excerpt}
            for each in tried
        ] == outcomes
        assert {(each.at, each.duration) for each in tried} == {(START, timedelta(seconds=1.5))}

    @pytest.mark.parametrize(("seq", "name"), [(2, "audit"), (1, "none"), (99, "crm")])
    async def test_one_that_is_not_there(self, records: Records, seq: int, name: str) -> None:
        with pytest.raises(NotFound, match=f"event {seq} to subscription '{name}'"):
            await records.delivery(seq, name)


class TestRetry:
    @pytest.fixture(autouse=True)
    async def rows(self, engine: AsyncEngine) -> None:
        await put_events(engine, 5)
        await put_subscriptions(engine, "crm", "audit")
        for number in (1, 2):
            rows = (delivery_row(seq, number, state, last_error="no") for seq, state in enumerate(DeliveryState, 1))
            await put(engine, deliveries, *rows)

    async def test_makes_the_dead_and_the_cancelled_due_now(
        self, corrections: Corrections, engine: AsyncEngine
    ) -> None:
        assert await corrections.retry(DeliveryQuery(subscription="crm")) == 2
        for seq in (4, 5):
            row = await stored(engine, seq, 1)
            assert (row.state, row.attempts, row.lease_token, row.last_error) == (PENDING, 0, None, "no")
            assert timedelta(0) <= row.now - row.due_at < timedelta(seconds=10)
            assert row.updated_at <= row.now
        assert [(await stored(engine, seq, 1)).state for seq in (1, 2, 3)] == [PENDING, LEASED, DELIVERED]
        assert [(await stored(engine, seq, 2)).state for seq in (4, 5)] == [DEAD, CANCELLED]

    async def test_a_rehearsal_counts_and_changes_nothing(self, corrections: Corrections, engine: AsyncEngine) -> None:
        for query, count in (
            (DeliveryQuery(), 4),
            (DeliveryQuery(limit=3), 3),
            (DeliveryQuery(limit=None, state=DEAD), 2),
            (DeliveryQuery(state=DELIVERED), 0),
        ):
            assert await corrections.retry(query, dry_run=True) == count
        assert [(await stored(engine, seq, 1)).state for seq in (4, 5)] == [DEAD, CANCELLED]

    async def test_only_what_ended_without_success(self, corrections: Corrections) -> None:
        for state in (PENDING, LEASED, DELIVERED):
            assert await corrections.retry(DeliveryQuery(state=state)) == 0
        assert await corrections.retry(DeliveryQuery(state=DEAD)) == 2
        assert await corrections.retry(DeliveryQuery(state=DEAD)) == 0

    async def test_the_limit_is_kept_oldest_first(self, corrections: Corrections, engine: AsyncEngine) -> None:
        assert await corrections.retry(DeliveryQuery(limit=1, state=DEAD)) == 1
        assert [(await stored(engine, 4, number)).state for number in (1, 2)] == [PENDING, DEAD]
        assert await corrections.retry(DeliveryQuery(limit=0)) == 0

    async def test_many_go_in_batches(self, corrections: Corrections, engine: AsyncEngine) -> None:
        rows = (delivery_row(seq, number, DEAD) for seq in range(10, 1260) for number in (1, 2))
        await put(engine, deliveries, *rows)
        assert await corrections.retry(DeliveryQuery(limit=1001, state=DEAD)) == 1001
        batches = list[int]()
        assert await corrections.retry(DeliveryQuery(limit=None, state=DEAD), advance=batches.append) == 2502 - 1001
        assert max(batches) == 1000
        assert await corrections.retry(DeliveryQuery(limit=None, state=DEAD), dry_run=True) == 0

    async def test_at_a_rate_they_fall_due_one_after_the_other(
        self, corrections: Corrections, engine: AsyncEngine
    ) -> None:
        rows = (delivery_row(seq, 1, DEAD) for seq in range(10, 1510))
        await put(engine, deliveries, *rows)
        query = DeliveryQuery(limit=None, state=DEAD, subscription="crm")
        assert await corrections.retry(query, every=timedelta(milliseconds=100)) == 1501
        due = [(await stored(engine, seq, 1)).due_at for seq in (4, 10, 11, 1008, 1009, 1010, 1509)]
        assert [at - due[0] for at in due] == [
            timedelta(milliseconds=100 * n) for n in (0, 1, 2, 999, 1000, 1001, 1500)
        ]
        assert timedelta(0) <= (await stored(engine, 4, 1)).now - due[0] < timedelta(seconds=60)
        row = await stored(engine, 1509, 1)
        assert (row.state, row.attempts, row.lease_token) == (PENDING, 0, None)

    async def test_of_a_type(self, corrections: Corrections, engine: AsyncEngine) -> None:
        await put(engine, events, event_row(6, type="Order.created"), event_row(7, type="order[1]?"))
        await put(engine, deliveries, delivery_row(6, 1, DEAD), delivery_row(7, 1, DEAD))
        assert await corrections.retry(DeliveryQuery(type="Order.*")) == 1
        assert await corrections.retry(DeliveryQuery(type="order[1]*"), dry_run=True) == 1
        assert await corrections.retry(DeliveryQuery(type="order[1]?")) == 1
        assert await corrections.retry(DeliveryQuery(type="*.created", state=DEAD)) == 2
        assert await corrections.retry(DeliveryQuery(type="*e*e*")) == 2

    async def test_two_at_once_retry_each_delivery_once(self, engine: AsyncEngine) -> None:
        rows = (delivery_row(seq, number, DEAD) for seq in range(10, 1010) for number in (1, 2))
        await put(engine, deliveries, *rows)
        both = (SqlCorrections(engine).retry(DeliveryQuery(limit=None, state=DEAD)) for _ in range(2))
        assert sum(await asyncio.gather(*both)) == 2002


class TestCancel:
    @pytest.fixture(autouse=True)
    async def rows(self, engine: AsyncEngine) -> None:
        await put_events(engine, 5)
        await put_subscriptions(engine, "crm")
        moment = START + timedelta(days=1)
        rows = (
            delivery_row(seq, 1, state, lease_token=42, due_at=moment) for seq, state in enumerate(DeliveryState, 1)
        )
        await put(engine, deliveries, *rows)

    async def test_ends_what_is_open_and_takes_the_lease_away(
        self, corrections: Corrections, engine: AsyncEngine
    ) -> None:
        assert await corrections.cancel(DeliveryQuery(), dry_run=True) == 2
        assert await corrections.cancel(DeliveryQuery()) == 2
        assert await corrections.cancel(DeliveryQuery()) == 0
        for seq in (1, 2):
            row = await stored(engine, seq, 1)
            assert (row.state, row.lease_token, row.due_at, row.attempts) == (CANCELLED, None, None, 3)
        assert [(await stored(engine, seq, 1)).state for seq in (3, 4, 5)] == [DELIVERED, DEAD, CANCELLED]

    async def test_a_late_answer_finds_no_lease(self, corrections: Corrections, engine: AsyncEngine) -> None:
        await corrections.cancel(DeliveryQuery(seq=2))
        fenced = update(deliveries).where(deliveries.c.event_seq == 2, deliveries.c.lease_token == 42)
        async with engine.begin() as connection:
            assert (await connection.execute(fenced.values(state=DELIVERED))).rowcount == 0

    async def test_what_is_being_settled_is_waited_for(self, corrections: Corrections, engine: AsyncEngine) -> None:
        """Whoever settles has the row locked: cancelling waits, and then goes by what was settled."""
        if engine.dialect.name == "sqlite":
            pytest.skip("a database with one writer at a time")
        await put(engine, events, event_row(6))
        await put(engine, deliveries, delivery_row(6, 1, LEASED, lease_token=43))
        async with engine.connect() as connection:
            settle = update(deliveries).where(deliveries.c.event_seq == 2)
            await connection.execute(settle.values(state=DELIVERED))
            renew = update(deliveries).where(deliveries.c.event_seq == 6)
            await connection.execute(renew.values(due_at=Now()))
            cancelling = asyncio.create_task(corrections.cancel(DeliveryQuery(limit=None)))

            async def waiting() -> int:
                async with engine.connect() as other:
                    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = "
                    return await other.scalar(text(f"{query} current_database()")) or 0

            waiters: int = await eventually(waiting)
            assert waiters == 1
            assert (await stored(engine, 1, 1)).state == CANCELLED  # nobody had this one
            await connection.commit()
        assert await cancelling == 2
        assert (await stored(engine, 2, 1)).state == DELIVERED
        assert (await stored(engine, 6, 1)).state == CANCELLED


class TestCancelEvent:
    @pytest.fixture(autouse=True)
    async def rows(self, engine: AsyncEngine) -> None:
        await put_events(engine, 4)
        await put_subscriptions(engine, "crm", "audit")
        nobody = Subscription(name="gone", sink="log").to_json()
        gone = {"id": 9, "name": "gone", "spec": nobody, "origin": "file", "active": False, "paused": False}
        users = {**gone, "id": 3, "name": "users", "active": True}
        users["spec"] = Subscription(name="users", sink="log", types=("user.*",)).to_json()
        times = {"created_at": START, "updated_at": START}
        await put(engine, subscriptions, {**gone, **times}, {**users, **times})

    async def recorded(self, engine: AsyncEngine) -> list[tuple[int, int, str]]:
        async with engine.connect() as connection:
            rows = await connection.execute(select(deliveries).order_by("event_seq", "subscription_id"))
            return [(row.event_seq, row.subscription_id, row.state) for row in rows]

    async def test_a_scheduled_one_never_comes(
        self, records: Records, corrections: Corrections, engine: AsyncEngine
    ) -> None:
        await put(engine, scheduled, {"event_seq": 1, "due_at": START}, {"event_seq": 2, "due_at": START})
        assert await corrections.cancel_event(1) == 2
        assert await self.recorded(engine) == [(1, 1, CANCELLED), (1, 2, CANCELLED)]
        view = await records.event("1")
        assert (view.state, view.due_at, view.deliveries) == ("cancelled", None, {"cancelled": 2})
        assert (await records.event("2")).state == "scheduled"
        assert await corrections.cancel_event(1) is None

    async def test_a_queued_one_leaves_the_queue(self, corrections: Corrections, engine: AsyncEngine) -> None:
        await put(engine, dispatch, {"event_seq": 1}, {"event_seq": 2})
        assert await corrections.cancel_event(1) == 2
        async with engine.connect() as connection:
            assert (await connection.scalars(select(dispatch.c.event_seq))).all() == [2]
        assert ((await stored(engine, 1, 1)).attempts, (await stored(engine, 1, 1)).last_error) == (0, None)

    async def test_of_one_in_flight_it_is_said_that_it_may_have_arrived(
        self, corrections: Corrections, engine: AsyncEngine
    ) -> None:
        later = START + timedelta(days=36500)
        await put(engine, dispatch, {"event_seq": 1, "lease_until": later, "lease_token": 7, "attempts": 2})
        assert await corrections.cancel_event(1) == 2
        row = await stored(engine, 1, 2)
        assert (row.state, row.attempts, row.lease_token, row.due_at) == (CANCELLED, 2, None, None)
        assert "may have arrived" in row.last_error

    async def test_of_one_that_was_dispatched_what_is_open_ends(
        self, records: Records, corrections: Corrections, engine: AsyncEngine
    ) -> None:
        await put(engine, deliveries, *(delivery_row(1, number, state) for number, state in enumerate(DeliveryState)))
        assert await corrections.cancel_event(1) == 2
        states = [DELIVERED, DEAD, CANCELLED]
        assert [state for _, _, state in await self.recorded(engine)] == [CANCELLED, CANCELLED, *states]
        assert (await records.event("1")).state == "cancelled"

    async def test_one_that_nobody_wants_is_cancelled_all_the_same(
        self, records: Records, corrections: Corrections, engine: AsyncEngine
    ) -> None:
        async with engine.begin() as connection:
            await connection.execute(update(subscriptions).values(active=False))
        await put(engine, scheduled, {"event_seq": 1, "due_at": START})
        assert await corrections.cancel_event(1) == 0
        assert (await records.event("1")).state == "cancelled"

    async def test_one_that_is_settled_stays_so(
        self, records: Records, corrections: Corrections, engine: AsyncEngine
    ) -> None:
        await put(engine, deliveries, delivery_row(1, 1, DELIVERED), delivery_row(1, 2, DEAD))
        assert await corrections.cancel_event(1) is None
        assert (await records.event("1")).state == "settled"

    async def test_a_retry_afterwards_is_somebodys_wish(
        self, records: Records, corrections: Corrections, engine: AsyncEngine
    ) -> None:
        await put(engine, dispatch, {"event_seq": 1})
        await corrections.cancel_event(1)
        assert await corrections.retry(DeliveryQuery(seq=1, subscription="crm")) == 1
        assert (await records.event("1")).state == "queued"


class TestReplay:
    @pytest.fixture(autouse=True)
    async def rows(self, engine: AsyncEngine) -> None:
        rows = [event_row(seq, type="order.created" if seq % 2 else "user.created") for seq in range(1, 13)]
        await put(engine, events, *rows)
        wanted = Subscription(name="orders", sink="log", types=("order.*",), filter={"not": {"exact": {"id": "e11"}}})
        row = {"id": 1, "name": "orders", "spec": wanted.to_json(), "origin": "file", "active": True, "paused": False}
        await put(engine, subscriptions, {**row, "created_at": START, "updated_at": START})

    async def waiting(self, engine: AsyncEngine) -> list[int]:
        """Return the events of the fresh deliveries, in the order in which they fall due."""
        fresh = select(deliveries.c.event_seq).where(deliveries.c.state == PENDING, deliveries.c.attempts == 0)
        async with engine.connect() as connection:
            return list((await connection.scalars(fresh.order_by(deliveries.c.due_at))).all())

    async def test_what_the_subscription_matches_is_due_in_order(
        self, corrections: Corrections, engine: AsyncEngine
    ) -> None:
        query = ReplayQuery(subscription="orders")
        assert await corrections.replay(query, dry_run=True) == 5
        assert await self.waiting(engine) == []
        assert await corrections.replay(query) == 5
        assert await self.waiting(engine) == [1, 3, 5, 7, 9]
        row = await stored(engine, 9, 1)
        assert timedelta(0) <= row.now - row.due_at < timedelta(seconds=60)
        assert (row.lease_token, row.last_error) == (None, None)
        assert await corrections.replay(query) == 0  # they wait

    async def test_conditions_hold_together(self, corrections: Corrections, engine: AsyncEngine) -> None:
        third, ninth = START + timedelta(minutes=3), START + timedelta(minutes=9)
        query = ReplayQuery(subscription="orders", since=third, until=ninth)
        assert await corrections.replay(query) == 3
        assert await self.waiting(engine) == [3, 5, 7]
        assert await corrections.replay(ReplayQuery(subscription="orders", type="user.*")) == 0
        assert await corrections.replay(ReplayQuery(subscription="orders", source="/x*")) == 0
        assert await corrections.replay(ReplayQuery(subscription="orders", type="*.created", source="/s")) == 2

    async def test_what_ended_comes_again_and_what_is_open_or_cancelled_is_left_alone(
        self, corrections: Corrections, engine: AsyncEngine
    ) -> None:
        states = {1: DELIVERED, 3: DEAD, 5: CANCELLED, 7: LEASED, 9: PENDING}
        rows = [delivery_row(seq, 1, state, lease_token=7) for seq, state in states.items()]
        await put(engine, deliveries, *rows)
        assert await corrections.replay(ReplayQuery(subscription="orders", missing=True)) == 0
        assert await corrections.replay(ReplayQuery(subscription="orders"), dry_run=True) == 2
        assert await corrections.replay(ReplayQuery(subscription="orders")) == 2
        assert await self.waiting(engine) == [1, 3]
        assert [(await stored(engine, seq, 1)).lease_token for seq in states] == [None, None, 7, 7, 7]
        assert (await stored(engine, 9, 1)).attempts == 3

    async def test_only_what_is_missing(self, corrections: Corrections, engine: AsyncEngine) -> None:
        await put(engine, deliveries, delivery_row(1, 1, DELIVERED), delivery_row(3, 1, DEAD))
        assert await corrections.replay(ReplayQuery(subscription="orders", missing=True)) == 3
        assert await self.waiting(engine) == [5, 7, 9]

    async def test_what_is_still_to_be_dispatched_or_was_cancelled_is_left_to_that(
        self, corrections: Corrections, engine: AsyncEngine
    ) -> None:
        await put(engine, dispatch, {"event_seq": 1}, {"event_seq": 9})
        await put(engine, scheduled, {"event_seq": 3, "due_at": START})
        await corrections.cancel_event(9)
        async with engine.begin() as connection:
            await connection.execute(deliveries.delete())
        assert await corrections.replay(ReplayQuery(subscription="orders")) == 2
        assert await self.waiting(engine) == [5, 7]

    async def test_many_at_a_rate(self, corrections: Corrections, engine: AsyncEngine) -> None:
        await put(engine, events, *(event_row(seq) for seq in range(13, 1213)))
        pages = list[int]()
        second = timedelta(seconds=1)
        query = ReplayQuery(subscription="orders")
        assert await corrections.replay(query, every=second, advance=pages.append) == sum(pages) == 1205
        assert max(pages) <= 500
        due = [(await stored(engine, seq, 1)).due_at for seq in (1, 3, 13, 1212)]
        assert [at - due[0] for at in due] == [0 * second, second, 5 * second, 1204 * second]

    async def test_nobody_is_served_twice_by_two_at_once(self, engine: AsyncEngine) -> None:
        await put(engine, events, *(event_row(seq) for seq in range(13, 1213)))
        both = (SqlCorrections(engine).replay(ReplayQuery(subscription="orders")) for _ in range(2))
        assert sum(await asyncio.gather(*both)) == 1205

    async def test_only_for_a_subscription_that_is_served(self, corrections: Corrections, engine: AsyncEngine) -> None:
        with pytest.raises(NotFound, match="no active subscription 'order'; there are: orders"):
            await corrections.replay(ReplayQuery(subscription="order"))
        async with engine.begin() as connection:
            await connection.execute(update(subscriptions).values(active=False))
        with pytest.raises(NotFound, match="no active subscription 'orders'; there are: none"):
            await corrections.replay(ReplayQuery(subscription="orders"))


class TestParticipants:
    async def test_subscriptions_with_their_open_and_dead_deliveries(
        self, records: Records, engine: AsyncEngine
    ) -> None:
        assert await records.registered() == []
        await put_subscriptions(engine, "crm", "audit")
        wanted = Subscription(name="old", sink="s", types=("a.*",), retry=RetryPolicy(max_attempts=3))
        old = {"id": 7, "name": "old", "spec": wanted.to_json(), "origin": "api", "active": False, "paused": True}
        await put(engine, subscriptions, {**old, "created_at": START, "updated_at": START})
        states = [DELIVERED, DEAD, DEAD, PENDING, LEASED]
        await put(engine, deliveries, *(delivery_row(seq, 1, state) for seq, state in enumerate(states)))
        await put(engine, deliveries, delivery_row(9, 7, PENDING))

        found = await records.registered()
        assert [await records.subscription(each[0].subscription.name) for each in found] == found
        with pytest.raises(NotFound, match="no subscription 'nobody'; there are: "):
            await records.subscription("nobody")
        assert [(each.id, each.subscription.name, active) for each, active, _ in found] == [
            (1, "crm", True),
            (2, "audit", True),
            (7, "old", False),
        ]
        assert [dict(counts) for _, _, counts in found] == [{"dead": 2, "pending": 1, "leased": 1}, {}, {"pending": 1}]
        last = found[2][0]
        assert (last.subscription, last.paused, last.origin) == (wanted, True, "api")

    async def test_instances_latest_first(self, records: Records, engine: AsyncEngine) -> None:
        async with engine.connect() as connection:
            now = await connection.scalar(select(Now()))
        assert now is not None
        process = {"host": "h", "pid": 7, "version": "1.0", "started_at": START}
        ages = {"gone": 31, "here": 1, "late": 25}
        rows = ({**process, "id": name, "heartbeat_at": now - timedelta(seconds=age)} for name, age in ages.items())
        await put(engine, instances, *rows)
        found = await records.instances()
        assert [(view.instance.id, view.alive) for view in found] == [("here", True), ("late", True), ("gone", False)]
        assert (found[0].instance.host, found[0].instance.pid, found[0].instance.version) == ("h", 7, "1.0")
        assert (found[0].started_at, found[0].heartbeat_at) == (START, now - timedelta(seconds=1))
        assert (found[0].progress_at, found[0].lag, found[0].running, found[0].sinks) == (None,) * 4

    async def test_an_instance_without_progress_is_stuck_and_one_without_a_heartbeat_silent(
        self, records: Records, engine: AsyncEngine
    ) -> None:
        async with engine.connect() as connection:
            now = await connection.scalar(select(Now()))
        assert now is not None
        second = timedelta(seconds=1)
        for name, silence, stalled in (("fine", 1, 29), ("stuck", 2, 31), ("silent", 31, 0), ("old", 3, None)):
            beat = now - silence * second
            said: dict[str, Any] = {"lag_us": 1500, "running": 2, "sinks": ["a"]}
            if stalled is not None:
                said["progress_at"] = beat - stalled * second
            who = {"id": name, "host": "h", "pid": 7, "version": "1.0", "started_at": START, "heartbeat_at": beat}
            await put(engine, instances, {**who, **said})
        found = {view.instance.id: view for view in await records.instances()}
        assert {name: view.state for name, view in found.items()} == {
            "fine": "working",
            "stuck": "stuck",
            "silent": "silent",
            "old": "working",
        }
        assert (found["fine"].lag, found["fine"].running, found["fine"].sinks) == (1.5 * second / 1000, 2, ["a"])

    async def test_an_instance_says_which_file_it_has(self, records: Records, engine: AsyncEngine) -> None:
        said = [
            Configuration("abc", START),
            Configuration("abc", START, "failed", START + timedelta(hours=1), ("runner.yaml:1:1: bad",)),
            None,
        ]
        registry = SqlRegistry(engine, lambda: asyncio.sleep(0, (0, [])))
        one = Instance("one", "h", 7, "1.0")
        for configuration in said:
            await registry.beat(one, Health(configuration=configuration))
            [view] = await records.instances()
            assert view.configuration == configuration


class TestPlans:
    """What is asked of a big table goes by an index."""

    COUNT = 100_000

    @pytest.fixture
    async def plans(self, engine: AsyncEngine) -> Callable[[], Awaitable[str]]:
        """Fill the tables; return what shows the plan of every SELECT since then."""
        await put(engine, events, event_row(0, source="/0"))
        await put_subscriptions(engine, "crm", "audit")
        await put(engine, deliveries, delivery_row(0, 1, DELIVERED))
        postgresql = engine.dialect.name == "postgresql"
        minute = "interval '1 minute'" if postgresql else "60000000"
        numbers = f"WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {self.COUNT})"
        statements = [
            f"""{numbers} INSERT INTO events (seq, id, source, type, created_at)
                SELECT i, 'e' || i, '/' || (i % 5), type, created_at + i * {minute} FROM n, events""",
            f"""{numbers} INSERT INTO deliveries (event_seq, subscription_id, state, attempts, updated_at)
                SELECT i, 1 + i % 2, CASE WHEN i % 401 = 0 THEN 'dead' WHEN i % 403 = 0 THEN 'pending' ELSE state END,
                    1, updated_at FROM n, deliveries""",
        ]
        async with engine.begin() as connection:
            # An embedded database has no statistics, so there none are made.
            for statement in ["SET LOCAL search_path TO bus", *statements, "ANALYZE"] if postgresql else statements:
                await connection.execute(text(statement))
        seen: list[tuple[str, Any]] = []

        @event.listens_for(engine.sync_engine, "before_cursor_execute")
        def note(_: object, __: object, statement: str, parameters: Any, *___: object) -> None:
            if statement.startswith(("SELECT", "WITH")):
                seen.append((statement, parameters))

        async def show() -> str:
            explain = "EXPLAIN " if engine.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN "
            async with engine.connect() as connection:
                plans = [await connection.exec_driver_sql(explain + sql, parameters) for sql, parameters in list(seen)]
            assert plans
            return "\n".join(str(line[-1]) for plan in plans for line in plan)

        return show

    async def test_events_by_seq(self, records: Records, plans: Callable[[], Awaitable[str]]) -> None:
        assert await seqs(records, limit=2) == [self.COUNT, self.COUNT - 1]
        assert await seqs(records, type="order.*", after_seq=100, limit=1) == [self.COUNT]
        assert await seqs(records, since=START + timedelta(minutes=self.COUNT)) == [self.COUNT]
        plan = await plans()
        assert "Seq Scan on events" not in plan
        assert "Sort Key: seq" not in plan
        assert "TEMP B-TREE" not in plan.replace("USE TEMP B-TREE FOR GROUP BY", "")

    async def test_events_by_id(self, records: Records, plans: Callable[[], Awaitable[str]]) -> None:
        assert (await records.event("e7777")).seq == 7777
        assert await seqs(records, id="e7777") == [7777]
        plan = await plans()
        assert "Seq Scan on events" not in plan
        assert "SCAN events" not in plan

    @pytest.mark.parametrize(("state", "index"), [(DEAD, "deliveries_dead"), (PENDING, "deliveries_due")])
    async def test_deliveries_by_state(
        self,
        records: Records,
        corrections: Corrections,
        plans: Callable[[], Awaitable[str]],
        state: DeliveryState,
        index: str,
    ) -> None:
        query = DeliveryQuery(state=state, limit=None)
        count = self.COUNT // (401 if state == DEAD else 403)
        assert len(await keys(records, state=state, limit=None)) == count
        assert len(await keys(records, state=state, limit=None, subscription="crm")) == count // 2
        change = corrections.retry if state == DEAD else corrections.cancel
        assert await change(query, dry_run=True) == await change(query) == count
        await records.registered()
        plan = await plans()
        assert index in plan
        assert "Seq Scan on deliveries" not in plan
        assert "SCAN deliveries USING INDEX sqlite_autoindex" not in plan
        assert "Backward using deliveries_pkey" not in plan


class TestWeight:
    """What is listed is read a few megabytes at a time, and data that nobody looks at is not read at all."""

    @pytest.fixture
    async def sizes(self, engine: AsyncEngine) -> AsyncIterator[list[int]]:
        """The bytes of data in each row that the driver returns from now on, by statement."""
        mib = 1 << 20
        rows = [event_row(seq, data=b"x" * mib if seq % 3 else None) for seq in range(1, 22)]
        for row in rows:
            await put(engine, events, row)
        read: list[int] = []

        def ended(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
            rest = re.sub(r"length\([\w.]+\)", "", statement)
            read.append(int(re.search(r"SELECT.*\bevents\.data\b", rest, re.DOTALL) is not None))

        event.listen(engine.sync_engine, "after_cursor_execute", ended)
        yield read
        event.remove(engine.sync_engine, "after_cursor_execute", ended)

    async def test_events_come_in_pieces_and_in_order(self, records: Records, sizes: list[int]) -> None:
        found = [view async for view in records.events(EventQuery(newest_first=False))]
        assert [view.seq for view in found] == list(range(1, 22))
        assert [len(view.event.data or b"") >> 20 for view in found] == [int(seq % 3 > 0) for seq in range(1, 22)]
        assert sum(sizes) == 4  # statements that read data, for 14 MiB of it

    async def test_data_that_is_not_wanted_is_not_read(self, records: Records, sizes: list[int]) -> None:
        found = [view async for view in records.events(EventQuery(data=False))]
        assert [view.seq for view in found] == list(range(21, 0, -1))
        assert {view.event.data for view in found} == {None}
        assert sum(sizes) == 0
