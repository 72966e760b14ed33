"""The counters by the minute of real runners, against what the tables say after a known load and a restart."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta

import pytest

from runner import Event, Failed, Rejected
from runner.diagnosis.look import look
from runner.diagnosis.shapes import report_json
from runner.diagnosis.status import judge
from runner.storage.contract.throughput import BUS, Throughput
from runner.storage.tables import attempts, subscriptions, throughput
from tests.support.eventually import eventually

from .buses import Bus, BusTests

HOUR = 60


class TestThroughput(BusTests):
    async def run(self, bus: Bus, name: str, count: int) -> None:
        """Have a process publish `count` events of a type and deliver them, and end in order."""
        tried: Counter[str] = Counter()

        def good(event: Event) -> None:
            return

        def flaky(event: Event) -> object:
            """A third is refused, the others fail once."""
            number = int(event.id.rpartition("-")[2])
            tried[event.id] += 1
            if number % 3 == 0:
                return Rejected("never")
            return Failed("not yet") if tried[event.id] == 1 else None

        runner = bus.runner()
        runner.subscribe("good", good)
        runner.subscribe("flaky", flaky)
        before = Counter(row["state"] for row in await bus.deliveries())
        async with runner:
            made = [Event.new("t", {}, source="/tests", id=f"{name}-{n}") for n in range(count)]
            await runner.publish_many(made)
            await runner.publish(made[0])  # a duplicate
            dead = len(range(0, count, 3))
            states = {"delivered": 2 * count - dead + before["delivered"], "dead": dead + before["dead"]}
            await eventually(lambda: bus.settled(**states))

    async def test_the_sums_are_what_the_tables_say(self, bus: Bus) -> None:
        await self.run(bus, "first", 60)
        await self.compare(bus, await bus.database.open().throughput.read(HOUR), 60)
        await self.run(bus, "second", 31)  # after a restart
        seen = await bus.database.open().throughput.read(HOUR)
        await self.compare(bus, seen, 91)
        assert len({row["holder"] for row in await bus.database.rows(throughput)}) == 2

        status = report_json(judge(await look(bus.database.open())))
        assert status["queue"]["rate_published"] > 0
        flaky, good = sorted(status["subscriptions"], key=lambda each: str(each["name"]))
        assert good["success_ratio"] == 1.0
        assert flaky["success_ratio"] == round(60 / 151, 4)  # 60 delivered, 31 dead, 60 first attempts that failed
        for each in (good, flaky):
            assert 0 < each["latency_p50"] <= each["latency_p95"] <= each["latency_p99"]

    async def compare(self, bus: Bus, seen: Throughput, published: int) -> None:
        names = {row["id"]: row["name"] for row in await bus.database.rows(subscriptions)}
        states = Counter((row["subscription_id"], row["state"]) for row in await bus.deliveries())
        failed = Counter(
            row["subscription_id"] for row in await bus.database.rows(attempts) if row["error"] is not None
        )
        assert seen.of(BUS).published == published
        assert set(seen.flows) == {BUS, *names}
        for id in names:
            flow = seen.of(id)
            assert (flow.delivered, flow.dead) == (states[id, "delivered"], states[id, "dead"])
            assert flow.failed == failed[id] - states[id, "dead"]  # the last attempt of a dead one ended it
            assert flow.latency.count == flow.delivered

    async def test_an_idle_instance_writes_nothing(self, bus: Bus) -> None:
        runner = bus.runner()
        async with runner:
            await runner._heartbeat.beat()
        assert await bus.database.rows(throughput) == []

    async def test_a_beat_whose_answer_is_lost_counts_once(self, bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
        """The store takes it, and the process does not hear that it did."""
        runner = bus.runner()
        runner.subscribe("all", lambda _event: None)
        async with runner:
            await runner.publish_many([Event.new("t", {}, source="/tests", id=str(n)) for n in range(10)])
            await eventually(lambda: bus.settled(delivered=10))
            beat = runner._heartbeat._registry.beat

            async def lost(*said: object) -> object:
                await beat(*said)  # type: ignore[arg-type]
                raise ConnectionError("lost")

            with monkeypatch.context() as patched:
                patched.setattr(runner._heartbeat._registry, "beat", lost)
                for _ in range(3):
                    with pytest.raises(ConnectionError):
                        await runner._heartbeat.beat()
            await asyncio.sleep(0)
        rows = await bus.database.rows(throughput)
        whole, its = ([row for row in rows if (row["subscription_id"] == BUS) == bus_] for bus_ in (True, False))
        assert sum(row["published"] for row in whole) == 10
        assert sum(row["delivered"] for row in whole) == sum(row["delivered"] for row in its) == 10

    async def test_a_running_pruner_deletes_old_counters(self, bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
        await self.run(bus, "first", 3)
        assert await bus.database.rows(throughput)
        monkeypatch.setattr("runner.runtime.place.KEPT", timedelta(minutes=-2))
        monkeypatch.setattr("runner.periodic.pruner._FIRST", timedelta(milliseconds=10))
        runner = bus.runner()
        monkeypatch.setattr(runner._pruner, "_wait", timedelta(milliseconds=10))

        async def gone() -> bool:
            return not await bus.database.rows(throughput)

        async with runner:
            await eventually(gone)
