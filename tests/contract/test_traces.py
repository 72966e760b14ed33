"""The contract of `Records.trace()`: which events belong together, on every store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy import text

from runner.errors import NotFound
from runner.event import Event
from runner.storage.contract.events import Publication
from runner.storage.contract.records import Records
from runner.storage.records import SqlRecords

from .storage_contract import LEASE, Database, Store, StoreTests, settled


async def put(store: Store, *made: Event) -> list[int]:
    return [receipt.seq for receipt in await store.events.append([Publication(each) for each in made])]


def event(id: str, cause: str | None = None, flow: str | None = None, source: str = "/s") -> Event:
    given = {"causationid": cause, "correlationid": flow}
    extensions = {name: value for name, value in given.items() if value is not None}
    return Event(type="t", source=source, id=id, extensions=extensions)


class TestTrace(StoreTests):
    @pytest.fixture
    def records(self, database: Database) -> Records:
        return SqlRecords(database.engine)

    async def test_all_of_a_flow_from_wherever_one_looks(self, store: Store, records: Records) -> None:
        await put(store, event("z", source="/other"), event("a"), event("b", "a", "a"), event("x"))
        await put(store, event("c", "b", "a"), event("d", "a", "a"), event("y", "x", "x"))
        for id in "abcd":
            trace = await records.trace(id, 100)
            assert trace.correlation == "a"
            assert [view.event.id for view in trace.events] == ["a", "b", "c", "d"]
            assert trace.complete

    async def test_an_event_of_no_flow_stands_alone(self, store: Store, records: Records) -> None:
        [seq, *_] = await put(store, event("a"), event("b"))
        trace = await records.trace(str(seq), 100)
        assert ([view.seq for view in trace.events], trace.deliveries, trace.complete) == ([seq], {}, True)
        with pytest.raises(NotFound):
            await records.trace("nothing", 100)

    async def test_a_correlation_that_is_nobodys_id_and_a_cause_before_it(self, store: Store, records: Records) -> None:
        await put(store, event("early"), event("a", "early"), event("b", "a", "flow"), event("c", flow="flow"))
        trace = await records.trace("c", 100)
        assert trace.correlation == "flow"
        assert [view.event.id for view in trace.events] == ["early", "a", "b", "c"]

    async def test_of_namesakes_the_last_one_before_is_the_cause(self, store: Store, records: Records) -> None:
        seqs = await put(store, event("1", source="/a"), event("1", source="/b"), event("2", "1", "1"))
        [late] = await put(store, event("1", source="/c"))
        assert [view.seq for view in (await records.trace("2", 100)).events] == seqs[1:]
        assert late not in [view.seq for view in (await records.trace("2", 100)).events]

    async def test_a_circle_of_causes_ends(self, store: Store, records: Records) -> None:
        await put(store, event("a", "b", "f"), event("b", "a", "f"), event("c", "c", "f"))
        assert [view.event.id for view in (await records.trace("b", 100)).events] == ["a", "b", "c"]

    async def test_no_more_than_the_limit_and_always_the_event_itself(self, store: Store, records: Records) -> None:
        seqs = await put(store, event("n0"), *(event(f"n{n}", f"n{n - 1}", "n0") for n in range(1, 30)))
        trace = await records.trace("n29", 10)
        assert [view.seq for view in trace.events] == [*seqs[:9], seqs[-1]]
        assert not trace.complete
        assert (await records.trace("n29", 30)).complete

    async def test_with_their_deliveries(self, store: Store, database: Database, records: Records) -> None:
        from runner.subscription import Subscription

        await store.registry.put_subscriptions([Subscription(name=name, sink="log") for name in ("one", "two")], "file")
        _, known = await store.registry.subscriptions()
        first, second = await put(store, event("a"), event("b", "a", "a"))
        await store.queue.settle(settled(await store.queue.claim(10, LEASE), tuple(each.id for each in known)))
        trace = await records.trace("a", 4)
        assert {seq: [each.subscription for each in views] for seq, views in trace.deliveries.items()} == {
            first: ["one", "two"],
            second: ["one", "two"],
        }
        assert trace.complete
        assert not (await records.trace("a", 3)).complete

    @pytest.mark.parametrize("flow", ["f" * 4000, "f" * 127 + "é", "é" * 128, "it's"])
    async def test_correlations_of_any_length_and_script(self, store: Store, records: Records, flow: str) -> None:
        await put(store, event("a", None, flow), event("b", "a", flow), event("c", "a", flow + "x"))
        trace = await records.trace("a", 100)
        assert (trace.correlation, [view.event.id for view in trace.events]) == (flow, ["a", "b"])

    async def test_no_event_is_read_that_has_no_part_in_it(
        self, store: Store, database: Database, records: Records
    ) -> None:
        await put(store, *(event(f"n{n}", flow=f"flow{n}") for n in range(500)), *(event(f"m{n}") for n in range(500)))
        await put(store, event("a"), event("b", "a", "a"))
        if database.dsn.scheme != "sqlite":
            await database.execute(text("ANALYZE events"))
        statements: list[tuple[str, Any]] = []

        def note(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
            statements.append((statement, parameters))

        sqlalchemy_event.listen(database.engine.sync_engine, "before_cursor_execute", note)
        await records.trace("b", 100)
        [asked] = [each for each in statements if "correlationid" in each[0]]
        assert "events_correlation" in "\n".join(await self.plan(database, *asked))

    @staticmethod
    async def plan(database: Database, statement: str, parameters: Any) -> Sequence[str]:
        verb = "EXPLAIN QUERY PLAN" if database.dsn.scheme == "sqlite" else "EXPLAIN"
        async with database.engine.connect() as connection:
            rows = await connection.exec_driver_sql(f"{verb} {statement}", parameters)
            return [str(row[-1]) for row in rows]
