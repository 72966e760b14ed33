from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, update

from runner.config.dsn import Dsn
from runner.delivery import DeliveryState
from runner.errors import NotFound, StateConflict
from runner.operations import DeliveryRef, Operations
from runner.storage import Storage, corrections, open_storage
from runner.storage.contract.archive import Retention
from runner.storage.contract.corrections import ReplayQuery
from runner.storage.contract.records import DeliveryQuery
from runner.storage.tables import deliveries, events, instances, scheduled, subscriptions
from runner.subscription import Subscription

PENDING, LEASED, DELIVERED, DEAD, CANCELLED = DeliveryState
START = datetime(2026, 1, 31, 12, tzinfo=UTC)
CRM = DeliveryRef("o1", "crm")


class Bus:
    """A store with one event, how often workers were told of a change, and what a person may do to it."""

    def __init__(self, storage: Storage, **options: Any) -> None:
        self.storage = storage
        self.told = 0
        self.operations = Operations(storage, self._tell, **options)

    def _tell(self) -> None:
        self.told += 1

    async def put(self, table: Any, **values: Any) -> None:
        async with self.storage.engine.begin() as connection:
            await connection.execute(insert(table), [values])

    async def put_delivery(self, state: DeliveryState, **more: Any) -> None:
        row = {"event_seq": 1, "subscription_id": 1, "state": state.value, "attempts": 1, "updated_at": START}
        await self.put(deliveries, **row | more)


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[Bus]:
    storage = open_storage(Dsn.parse(f"sqlite:///{tmp_path}/runner.db", base=tmp_path))
    await storage.migrate()
    bus = Bus(storage)
    await bus.put(events, seq=1, id="o1", source="/s", type="order.created", created_at=START)
    crm = {"id": 1, "name": "crm", "spec": Subscription(name="crm", sink="log").to_json(), "origin": "file"}
    await bus.put(subscriptions, **crm, active=True, paused=False, created_at=START, updated_at=START)
    yield bus
    await storage.close()


Change = Callable[[Operations], Awaitable[Any]]

CHANGES: dict[str, tuple[DeliveryState, Change, Any]] = {
    "retry": (DEAD, lambda o: o.retry(DeliveryQuery()), 1),
    "retry one": (CANCELLED, lambda o: o.retry(CRM), 1),
    "cancel": (PENDING, lambda o: o.cancel(DeliveryQuery(subscription="crm")), 1),
    "cancel one": (LEASED, lambda o: o.cancel(CRM), 1),
    "ack": (PENDING, lambda o: o.ack("o1", "crm"), True),
    "replay": (DELIVERED, lambda o: o.replay(ReplayQuery(subscription="crm")), 1),
    "pause": (DELIVERED, lambda o: o.subscriptions.set_paused("crm", True), True),
}
NOTHING: dict[str, tuple[DeliveryState, Change, Any]] = {
    "retry": (DELIVERED, lambda o: o.retry(DeliveryQuery()), 0),
    "rehearsed retry": (DEAD, lambda o: o.retry(DeliveryQuery(), dry_run=True), 1),
    "rehearsed retry of one": (DEAD, lambda o: o.retry(CRM, dry_run=True), 1),
    "cancel": (DELIVERED, lambda o: o.cancel(DeliveryQuery()), 0),
    "rehearsed cancel": (PENDING, lambda o: o.cancel(DeliveryQuery(), dry_run=True), 1),
    "ack": (DELIVERED, lambda o: o.ack("o1", "crm"), False),
    "replay": (PENDING, lambda o: o.replay(ReplayQuery(subscription="crm")), 0),
    "rehearsed replay": (DEAD, lambda o: o.replay(ReplayQuery(subscription="crm"), dry_run=True), 1),
    "resume": (DELIVERED, lambda o: o.subscriptions.set_paused("crm", False), False),
    "prune": (DELIVERED, lambda o: o.prune(Retention(delivered=timedelta(0))), 1),
}


class TestWhoHears:
    @pytest.mark.parametrize("name", CHANGES)
    async def test_workers_hear_of_a_change_once(self, bus: Bus, name: str) -> None:
        state, change, answer = CHANGES[name]
        await bus.put_delivery(state)
        assert await change(bus.operations) == answer
        assert bus.told == 1

    @pytest.mark.parametrize("name", NOTHING)
    async def test_nobody_hears_of_what_gives_them_nothing_to_do(self, bus: Bus, name: str) -> None:
        state, change, answer = NOTHING[name]
        await bus.put_delivery(state)
        assert await change(bus.operations) == answer
        assert bus.told == 0

    async def test_workers_hear_of_each_batch_and_need_not_wait_for_the_last(
        self, bus: Bus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(corrections, "_BATCH", 1)
        await bus.put(events, seq=2, id="o2", source="/s", type="order.created", created_at=START)
        await bus.put_delivery(DEAD)
        await bus.put_delivery(DEAD, event_seq=2)
        heard: list[int] = []
        assert await bus.operations.retry(DeliveryQuery(), advance=lambda _: heard.append(bus.told)) == 2
        assert heard[:2] == [1, 2]

    async def test_a_success_concerns_those_that_stand_behind_it_in_a_line(self, bus: Bus) -> None:
        unordered = Bus(bus.storage, in_order=lambda _: False)
        await bus.put_delivery(PENDING)
        assert await unordered.operations.ack("o1", "crm")
        assert unordered.told == 0

    async def test_an_event_that_is_cancelled(self, bus: Bus) -> None:
        await bus.put(scheduled, event_seq=1, due_at=START)
        event, number = await bus.operations.cancel_event("o1")
        assert (event.seq, event.state, number, bus.told) == (1, "scheduled", 1, 1)
        with pytest.raises(StateConflict, match="event 1 is cancelled; nothing of it is still to come"):
            await bus.operations.cancel_event("1")
        assert bus.told == 1


class TestRefusals:
    @pytest.mark.parametrize(
        ("state", "change", "said"),
        [
            (DELIVERED, lambda o: o.retry(CRM), "is delivered; only dead or cancelled ones can be retried"),
            (DEAD, lambda o: o.cancel(CRM), "is dead; only pending or leased ones can be cancelled"),
        ],
        ids=["retry", "cancel"],
    )
    async def test_one_that_is_in_no_state_for_it(
        self, bus: Bus, state: DeliveryState, change: Change, said: str
    ) -> None:
        await bus.put_delivery(state)
        with pytest.raises(StateConflict, match=f"^the delivery of event 1 to crm {said}$"):
            await change(bus.operations)
        assert bus.told == 0

    @pytest.mark.parametrize(
        "look",
        [
            lambda o: o.retry(DeliveryRef("o1", "cmr")),
            lambda o: o.cancel(DeliveryQuery(subscription="cmr")),
            lambda o: o.ack("o1", "cmr"),
            lambda o: o.subscriptions.set_paused("cmr", True),
            lambda o: o.query(DeliveryQuery(subscription="cmr")),
            lambda o: o.records.subscription("cmr"),
        ],
        ids=["retry", "cancel", "ack", "pause", "list", "show"],
    )
    async def test_a_name_that_is_no_subscription_s(self, bus: Bus, look: Change) -> None:
        with pytest.raises(NotFound, match=r"^no subscription 'cmr'; there are: crm$"):
            await look(bus.operations)

    @pytest.mark.parametrize(
        ("ref", "said"),
        [
            (DeliveryRef("o2", "crm"), "no event has the seq or the id 'o2'"),
            (DeliveryRef("o1", "cmr"), "no subscription 'cmr'; there are: crm"),
            (CRM, "no delivery of event 1 to subscription 'crm' is recorded; the event is settled"),
        ],
        ids=["event", "subscription", "delivery"],
    )
    async def test_what_does_not_exist_is_named(self, bus: Bus, ref: DeliveryRef, said: str) -> None:
        with pytest.raises(NotFound, match=f"^{re.escape(said)}$"):
            await bus.operations.delivery(ref)


class TestHolds:
    @pytest.mark.parametrize(
        ("change", "hold"),
        [
            ({"paused": False}, None),
            ({"active": False}, "inactive"),
            ({"paused": True}, "paused"),
            ({"breaker_until": datetime(2999, 1, 1, tzinfo=UTC), "breaker_trips": 1}, "breaker open, 10s left"),
            ({"breaker_until": START, "breaker_trips": 1}, "breaker half-open"),
        ],
        ids=["nothing", "inactive", "paused", "open", "half-open"],
    )
    async def test_what_keeps_a_subscription_from_being_delivered_to(
        self, bus: Bus, change: dict[str, Any], hold: str | None
    ) -> None:
        async with bus.storage.engine.begin() as connection:
            await connection.execute(update(subscriptions).values(**change))
        assert (await bus.operations.holds()).get("crm") == hold


class TestRemove:
    async def serve(self, bus: Bus, *, age: float = 0.0) -> None:
        """Have a process report that has the sink."""
        beat = datetime.now(UTC) - timedelta(seconds=age)
        process = {"id": "i", "host": "h", "pid": 7, "version": "1", "started_at": START, "heartbeat_at": beat}
        await bus.put(instances, **process, sinks=["log"])

    async def test_what_waits_for_it_is_cancelled(self, bus: Bus) -> None:
        await bus.put_delivery(PENDING)
        await self.serve(bus, age=60)
        assert await bus.operations.subscriptions.remove("crm", dry_run=True) == 1
        assert (await bus.operations.holds(), bus.told) == ({}, 0)
        assert await bus.operations.subscriptions.remove("crm") == 1
        assert bus.told == 1
        [gone] = [view async for view in bus.operations.records.deliveries(DeliveryQuery())]
        assert (gone.subscription, gone.state) == ("(deleted)", CANCELLED)
        with pytest.raises(NotFound, match="no subscription 'crm'; there are: none"):
            await bus.operations.subscriptions.remove("crm")

    async def test_one_that_is_served_stays_unless_forced(self, bus: Bus) -> None:
        await self.serve(bus)
        with pytest.raises(StateConflict, match="crm is served by process 7 on h; stop that, or take"):
            await bus.operations.subscriptions.remove("crm")
        assert await bus.operations.subscriptions.remove("crm", force=True) == 0

    async def test_one_that_would_come_back_stays(self, bus: Bus) -> None:
        with pytest.raises(StateConflict, match="crm is in the file, and would come back with it"):
            await bus.operations.subscriptions.remove("crm", file={"crm"})
        assert bus.told == 0

    async def test_one_that_is_no_longer_wanted_goes_though_its_sink_is_there(self, bus: Bus) -> None:
        async with bus.storage.engine.begin() as connection:
            await connection.execute(update(subscriptions).values(active=False))
        await self.serve(bus)
        assert await bus.operations.subscriptions.remove("crm") == 0

    async def test_that_for_dead_letters_goes_with_its_own(self, bus: Bus) -> None:
        letters = Subscription(name="crm", sink="log", dead_letter="log").for_dead_letters()
        assert letters is not None
        row = {"id": 2, "name": letters.name, "spec": letters.to_json(), "origin": "file", "active": True}
        await bus.put(subscriptions, **row, paused=False, created_at=START, updated_at=START)
        with pytest.raises(
            StateConflict, match=r"crm\.dead-letter delivers the dead letters of crm, and is removed with it"
        ):
            await bus.operations.subscriptions.remove("crm.dead-letter")
