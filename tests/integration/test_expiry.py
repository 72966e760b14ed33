"""Events that are of use only for a while, on real stores: delivered in time or dead with the reason, never late."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
import time_machine

from runner import Deferred, Event, EventError, Failed, Publication, StateConflict
from runner.policies.retry import RetryPolicy
from runner.storage.tables import attempts
from runner.worker import worker
from runner.worker.expiry import Expiry
from tests.support.eventually import eventually

from .buses import Bus, BusTests, Gate, Handler, events

SOON, LATER = timedelta(milliseconds=300), timedelta(minutes=10)


async def died(bus: Bus) -> Sequence[Mapping[str, Any]]:
    return [row for row in await bus.deliveries() if row["state"] == "dead"]


def perishable(count: int, expires_in: timedelta = SOON) -> list[Publication]:
    return [Publication(event, expires_in=expires_in) for event in events(count)]


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for what expired while it waits twice a second, and not every ten seconds."""
    monkeypatch.setattr(worker, "Expiry", partial(Expiry, every=timedelta(milliseconds=500)))


class TestExpiry(BusTests):
    async def test_in_time_it_is_delivered_and_says_until_when(self, bus: Bus) -> None:
        runner, handler = bus.runner(), Handler()
        runner.subscribe("one", handler)
        runner.subscribe("batches", lambda _: None, batch=10)
        async with runner:
            await runner.publish_many(perishable(3, LATER))
            await runner.publish(Event(type="t", source="/s", id="alone"), expires_in=LATER)
            await eventually(lambda: bus.settled(delivered=8))
        assert len(handler.ids) == 4

    async def test_what_is_claimed_too_late_is_dead_for_everybody_who_matches(self, bus: Bus) -> None:
        runner, handler = bus.runner(), Handler()
        dead: list[Event] = []
        runner.subscribe("letters", dead.append, types=["never"])
        runner.subscribe("one", handler, dead_letter="function:letters")
        runner.subscribe("two", handler, order_by="subject")
        runner.subscribe("three", handler, rate="1/h")
        expiry = (datetime.now(UTC) - LATER).isoformat()
        made = [each.replace(extensions={"expirytime": expiry}) for each in events(2)]
        async with runner:
            await bus.publish([*made, *events(1, "fresh")])
            await eventually(lambda: bus.settled(delivered=3 + 2, dead=6))
            assert {row["last_error"] for row in await died(bus)} == {
                f"expired at {expiry.replace('+00:00', 'Z')}, undelivered"
            }
            assert {row["attempts"] for row in await died(bus)} == {0}
        assert set(handler.ids) == {"fresh-0"}
        assert sorted(each.id for each in dead) == sorted(each.id for each in made)
        assert all("expired at" in str(each.extensions["deadletterreason"]) for each in dead)
        assert await bus.database.rows(attempts) == []

    async def test_a_retry_that_would_come_too_late_is_not_waited_for(self, bus: Bus) -> None:
        runner = bus.runner()
        runner.subscribe("one", lambda _: Failed("busy"), retry=RetryPolicy(delay=timedelta(hours=1)))
        async with runner:
            await runner.publish_many(perishable(2, timedelta(seconds=60)))
            await eventually(lambda: bus.settled(dead=2))
        for row in await died(bus):
            assert row["last_error"] == "busy (attempt 1; the event expires before the next one)"
            assert row["attempts"] == 1

    async def test_retries_end_when_it_expires(self, bus: Bus) -> None:
        runner, handler = bus.runner(), Failing()
        runner.subscribe(
            "one", handler, retry=RetryPolicy(delay=timedelta(milliseconds=200), jitter=0, max_attempts=99)
        )
        async with runner:
            await runner.publish_many(perishable(1, timedelta(seconds=3)))
            await eventually(lambda: bus.settled(dead=1))
        [row] = await died(bus)
        assert "expire" in row["last_error"]
        assert 1 <= row["attempts"] < 20
        assert handler.latest < (await self.expiry(bus))

    @pytest.mark.parametrize("how", ["paused", "rate", "order", "no sink", "limit"])
    async def test_what_waits_for_anything_is_dead_by_then(self, bus: Bus, how: str) -> None:
        runner, gate = bus.runner(), Gate()
        options: dict[str, Any] = {"rate": {"rate": "1/h"}, "order": {"order_by": "source"}}.get(how, {})
        runner.subscribe("one", gate, concurrency=1, **options)
        async with runner:
            if how == "paused":
                await bus.pause("one", True)
            elif how == "no sink":
                runner.worker.roster._sinks.clear()
                await runner.worker.roster.load()
            else:
                await bus.publish(events(1, "first"))
                await eventually(lambda: len(gate.seen) == 1)
                if how == "rate":
                    gate.opened.set()
            await runner.publish_many(perishable(5))
            await eventually(lambda: self.all_dead(bus, 5))
            gate.opened.set()
            if how == "paused":
                await bus.pause("one", False)
            await bus.publish(events(1, "last"))
            if how in ("order", "limit", "paused"):
                await eventually(lambda: "last-0" in gate.ids)
        assert not [id for id in gate.ids if id.startswith("order")]

    async def test_a_scheduled_event_that_expires_before_it_is_due_is_dead_by_then(self, bus: Bus) -> None:
        runner, handler = bus.runner(), Handler()
        runner.subscribe("one", handler)
        async with runner:
            await runner.publish(events(1)[0], delay=timedelta(hours=1), expires_in=SOON)
            await eventually(lambda: bus.settled(dead=1))
        assert handler.seen == []

    async def test_what_runs_when_it_expires_is_delivered(self, bus: Bus) -> None:
        runner, gate = bus.runner(), Gate()
        runner.subscribe("one", gate)
        async with runner:
            await runner.publish_many(perishable(1, timedelta(seconds=2)))
            await eventually(lambda: gate.seen)
            expiry = await self.expiry(bus)
            await eventually(lambda: datetime.now(UTC) > expiry)
            gate.opened.set()
            await eventually(lambda: bus.settled(delivered=1))

    async def test_what_no_acknowledgement_comes_for_is_not_tried_again_too_late(self, bus: Bus) -> None:
        runner = bus.runner()
        runner.subscribe("one", lambda _: Deferred(within=SOON), retry=RetryPolicy(delay=timedelta(hours=1)))
        async with runner:
            await runner.publish_many(perishable(1, timedelta(seconds=60)))
            await eventually(lambda: bus.settled(dead=1))
        [row] = await died(bus)
        assert row["last_error"].startswith("not acknowledged within 0.3 s (attempt 1; the event expires")

    @pytest.mark.parametrize("wrong", [timedelta(hours=1), timedelta(hours=-1)])
    async def test_the_clock_of_the_database_decides_however_wrong_that_of_the_process_is(
        self, bus: Bus, wrong: timedelta
    ) -> None:
        runner, handler = bus.runner(), Handler()
        runner.subscribe("one", handler)
        runner.subscribe("ordered", handler, order_by="source")
        true = datetime.now(UTC)
        late = Event(type="t", source="/s", id="late", extensions={"expirytime": (true - LATER).isoformat()})
        early = Event(type="t", source="/s", id="early", extensions={"expirytime": (true + LATER).isoformat()})
        with time_machine.travel(true + wrong, tick=True):
            async with runner:
                await runner.publish(Event(type="t", source="/s", id="ten minutes"), expires_in=LATER)
                await bus.publish([late, early])
                await eventually(lambda: bus.settled(delivered=4, dead=2))
        assert set(handler.ids) == {"ten minutes", "early"}

    async def test_a_retry_by_hand_does_not_deliver_it_late(self, bus: Bus) -> None:
        from runner.operations import DeliveryRef

        runner, handler = bus.runner(), Handler()
        runner.subscribe("one", handler)
        expiry = (datetime.now(UTC) - LATER).isoformat()
        [made] = [each.replace(extensions={"expirytime": expiry}) for each in events(1)]
        async with runner:
            await bus.publish([made])
            await eventually(lambda: bus.settled(dead=1))
            assert await runner._operations.retry(DeliveryRef(made.id, "one")) == 1
            await eventually(lambda: bus.settled(dead=1))
            later = await runner.publish(events(1, "later")[0], delay=timedelta(hours=1), expires_in=2 * LATER)
            with pytest.raises(
                StateConflict, match=r"expires at [0-9-]{10}T[0-9:.]{12}Z, which is not after [0-9-]{10}T"
            ):
                await runner.reschedule(str(later.seq), delay=timedelta(hours=2))
        assert handler.seen == []

    async def test_publishing_again_keeps_the_first_expiry(self, bus: Bus) -> None:
        runner = bus.runner()
        async with runner:
            first = await runner.publish(events(1)[0], expires_in=LATER)
            again = await runner.publish(events(1)[0], expires_in=2 * LATER)
            assert (again.seq, again.duplicate) == (first.seq, True)

    @pytest.mark.parametrize("expires_in", [timedelta(0), -SOON, timedelta(days=4000), 5])
    async def test_times_that_are_none(self, bus: Bus, expires_in: Any) -> None:
        runner = bus.runner()
        async with runner:
            with pytest.raises(EventError, match="expires_in"):
                await runner.publish(events(1)[0], expires_in=expires_in)
            given = events(1)[0].replace(extensions={"expirytime": "2030-01-01T00:00:00Z"})
            with pytest.raises(EventError, match="not both"):
                await runner.publish(given, expires_in=LATER)
            with pytest.raises(EventError, match="expirytime: expected RFC 3339"):
                await runner.publish(given.replace(extensions={"expirytime": "soon"}))

    async def all_dead(self, bus: Bus, count: int) -> bool:
        rows = [row for row in await died(bus) if "expired at" in row["last_error"]]
        assert len(rows) == count
        return True

    async def expiry(self, bus: Bus) -> datetime:
        from runner.storage.tables import expiries

        [row] = await bus.database.rows(expiries)
        moment: datetime = row["expires_at"]
        return moment


class Failing(Handler):
    """A handler that fails, and notes when it was last called."""

    async def handle(self, event: Event, delivery: Any) -> None:
        self.latest = datetime.now(UTC)
        await asyncio.sleep(0)
        raise RuntimeError("no")
