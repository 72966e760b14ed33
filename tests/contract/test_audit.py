"""The contract of the audit log."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import literal, update

from runner.errors import NotFound
from runner.storage.contract.audit import Action, ActionOutcome, ActionQuery, ActionView
from runner.storage.expressions import After
from runner.storage.tables import audit

from .storage_contract import NOTHING, Database, Store, StoreTests

DAY = timedelta(days=1)


def action(name: str = "deliveries.retry", actor: str = "cli:ann@host", **parameters: object) -> Action:
    return Action(actor, name, "12 crm", parameters)


async def newest(store: Store, **query: object) -> list[ActionView]:
    return list(await store.audit.actions(ActionQuery(**query)))  # type: ignore[arg-type]  # as the test names them


class TestAction(StoreTests):
    async def test_one_that_begins_is_on_record_for_others(self, store: Store, other: Store) -> None:
        seq = await store.audit.begin(action(state="dead", rate="10/s"))
        [view] = await newest(other)
        assert view.seq == seq
        assert view.action == action(state="dead", rate="10/s")
        assert (view.outcome, view.touched, view.detail, view.ended_at) == (ActionOutcome.BEGUN, 0, None, None)

    async def test_its_times_are_those_of_the_store(self, store: Store, database: Database) -> None:
        seq = await store.audit.begin(action())
        await store.audit.end(seq, ActionOutcome.DONE, 3)
        [view] = await newest(store)
        assert view.ended_at is not None
        assert NOTHING <= view.ended_at - view.at < DAY
        assert view.at.utcoffset() == NOTHING

    async def test_the_first_end_stands(self, store: Store) -> None:
        seq = await store.audit.begin(action())
        await store.audit.end(seq, ActionOutcome.REFUSED, 0, "no such subscription")
        await store.audit.end(seq, ActionOutcome.DONE, 3)
        [view] = await newest(store)
        assert (view.outcome, view.touched, view.detail) == (ActionOutcome.REFUSED, 0, "no such subscription")

    async def test_text_that_no_database_holds_is_escaped_and_cut(self, store: Store) -> None:
        odd = Action("cli:\0\ud800", "x.y", "t" * 5000, {"failure": "a\0b"})
        await store.audit.end(await store.audit.begin(odd), ActionOutcome.FAILED, 0, "e\0" * 5000)
        [view] = await newest(store)
        assert "\0" not in view.action.actor + (view.detail or "")
        assert len(view.action.target or "") == len(view.detail or "") == 2000


class TestList(StoreTests):
    async def put(self, store: Store) -> None:
        for number in range(3):
            await store.audit.begin(action("deliveries.retry", "api:ops", number=number))
            await store.audit.begin(action("schedules.run", "dashboard:ops"))

    async def test_the_newest_come_first_page_by_page(self, store: Store) -> None:
        await self.put(store)
        first = await newest(store, limit=4)
        rest = await newest(store, limit=4, before_seq=first[-1].seq)
        assert [len(first), len(rest)] == [4, 2]
        seqs = [each.seq for each in [*first, *rest]]
        assert seqs == sorted(seqs, reverse=True)

    async def test_by_actor_by_action_and_by_both(self, store: Store) -> None:
        await self.put(store)
        assert len(await newest(store, actor="api:*")) == 3
        assert len(await newest(store, actor="*:ops", name="schedules.*")) == 3
        assert len(await newest(store, name="deliveries.retry")) == 3
        assert await newest(store, actor="api:o") == []
        assert await newest(store, actor="API:*") == []

    async def test_by_the_time_at_which_they_began(self, store: Store) -> None:
        await self.put(store)
        [latest, *_] = await newest(store)
        assert len(await newest(store, since=latest.at)) == 1
        assert len(await newest(store, until=latest.at)) == 5


class TestPrune(StoreTests):
    async def aged(self, store: Store, database: Database, ages: tuple[int, ...]) -> None:
        for days in ages:
            seq = await store.audit.begin(action())
            back = After(audit.c.at, literal(-days * 86_400_000_000))
            async with database.engine.begin() as connection:
                await connection.execute(update(audit).where(audit.c.seq == seq).values(at=back))

    async def test_what_is_older_goes_page_by_page(self, store: Store, database: Database) -> None:
        await self.aged(store, database, (9, 8, 7, 1, 0))
        assert await store.audit.prune(5 * DAY, 2) == 2
        assert await store.audit.prune(5 * DAY, 2) == 1
        assert await store.audit.prune(5 * DAY, 2) == 0
        assert len(await newest(store)) == 2

    async def test_nothing_goes_while_all_are_young(self, store: Store, database: Database) -> None:
        await self.aged(store, database, (1, 0))
        assert await store.audit.prune(5 * DAY, 1000) == 0


class TestAck(StoreTests):
    async def test_what_is_refused_leaves_none(self, store: Store) -> None:
        with pytest.raises(NotFound):
            await store.corrections.ack("nothing", "crm", action=action("deliveries.ack"))
        assert await newest(store) == []
