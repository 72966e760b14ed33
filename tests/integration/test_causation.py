"""Events that handlers publish, on real stores: what they carry, and where a circle ends."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from runner import Event, caused_by, load
from runner.policies.retry import RetryPolicy
from runner.storage.tables import deliveries, events
from tests.support.eventually import eventually

from .buses import Bus, BusTests


def event(type: str, id: str, **extensions: str | int) -> Event:
    return Event(type=type, source="/tests", id=id, extensions=extensions)


async def recorded(bus: Bus) -> Mapping[str, Mapping[str, Any]]:
    """Return the extensions of every event on record, by its id."""
    return {row["id"]: row["extensions"] or {} for row in await bus.database.rows(events)}


async def told(bus: Bus) -> Sequence[tuple[str, int, str]]:
    return [(row["state"], row["attempts"], row["last_error"] or "") for row in await bus.database.rows(deliveries)]


LINKED = {"correlationid": "first", "causationid": "first", "runnerhops": 1}


class TestLinks(BusTests):
    async def test_what_a_handler_publishes_says_what_led_to_it(self, bus: Bus) -> None:
        runner = bus.runner()
        later: list[asyncio.Task[Any]] = []

        async def first(handled: Event) -> None:
            await runner.publish(event("second", "second"))
            await runner.publish_many([event("other", f"many-{n}") for n in range(20)])
            await runner.publish(event("other", "own", correlationid="mine", causationid="yours"))
            later.append(asyncio.create_task(after()))

        async def after() -> None:
            await started.wait()
            await runner.publish(event("other", "later"))

        async def second(handled: Event) -> None:
            await runner.publish(event("third", "third"))

        started = asyncio.Event()
        runner.subscribe("first", first, types=["first"])
        runner.subscribe("second", second, types=["second"])
        async with runner:
            await runner.publish(event("first", "first"))
            await eventually(lambda: bus.settled(delivered=2))
            started.set()
            await asyncio.gather(*later)
            await runner.publish(event("other", "outside"))
        found = await recorded(bus)
        assert found["first"] == found["outside"] == {}
        assert found["second"] == found["many-0"] == found["many-19"] == found["later"] == LINKED
        assert found["third"] == {"correlationid": "first", "causationid": "second", "runnerhops": 2}
        assert found["own"] == {"correlationid": "mine", "causationid": "yours", "runnerhops": 1}

    async def test_so_does_what_a_synchronous_handler_publishes_from_its_thread(self, bus: Bus) -> None:
        runner = bus.runner()
        loop = asyncio.get_running_loop()

        def handler(handled: Event) -> None:
            asyncio.run_coroutine_threadsafe(runner.publish(event("b", f"from-{handled.id}")), loop).result(10)

        runner.subscribe("first", handler, types=["a"], concurrency=4)
        async with runner:
            await runner.publish_many([event("a", str(n)) for n in range(12)])
            await eventually(lambda: bus.settled(delivered=12))
        found = await recorded(bus)
        assert {id: found[f"from-{id}"].get("causationid") for id in map(str, range(12))} == {
            str(n): str(n) for n in range(12)
        }

    async def test_one_event_of_a_batch_is_named_by_the_handler(self, bus: Bus) -> None:
        runner = bus.runner()

        async def handler(batch: Sequence[Event]) -> None:
            await runner.publish(event("b", f"of-all-{len(batch)}"))
            for each in batch:
                with caused_by(each):
                    await runner.publish(event("b", f"from-{each.id}"))

        runner.subscribe("first", handler, types=["a"], batch=10, concurrency=1)
        async with runner:
            await runner.publish_many([event("a", str(n)) for n in range(3)])
            await eventually(lambda: bus.settled(delivered=3))
        found = await recorded(bus)
        assert [found[f"from-{n}"]["causationid"] for n in range(3)] == ["0", "1", "2"]
        assert found["of-all-3"] == {}

    async def test_a_handler_that_is_tried_again_publishes_a_duplicate(self, bus: Bus) -> None:
        """Also where another handler, of another event, has published it first."""
        runner = bus.runner()

        async def handler(handled: Event, delivery: Any) -> None:
            await runner.publish(event("c", "seen"))
            if delivery.attempt == 1:
                raise RuntimeError("once more")

        retry = RetryPolicy(delay=timedelta(milliseconds=10), jitter=0)
        runner.subscribe("first", handler, types=["a", "b"], retry=retry)
        async with runner:
            await runner.publish_many([event("a", "1"), event("b", "2")])
            await eventually(lambda: bus.settled(delivered=2))
        assert sorted(await recorded(bus)) == ["1", "2", "seen"]


class TestCircles(BusTests):
    async def test_end_with_a_dead_letter_that_says_so(self, bus: Bus) -> None:
        path = bus.write()
        path.write_text(path.read_text().replace("worker: {", "worker: {max_hops: 5, "))
        runner = load(path)
        dead: list[Event] = []
        runner.subscribe("letters", dead.append, types=["never"])

        async def again(handled: Event) -> None:
            await runner.publish(handled.replace(id=str(int(handled.id) + 1)))

        runner.subscribe("circle", again, types=["ping"], dead_letter="function:letters")
        async with runner:
            await runner.publish(event("ping", "0"))
            await eventually(lambda: bus.settled(delivered=7, dead=1))
        found = await recorded(bus)
        assert sorted(found) == ["0", "1", "2", "3", "4", "5", "6"]
        [(_, attempts, reason)] = [each for each in await told(bus) if each[0] == "dead"]
        assert attempts == 0
        assert reason.startswith("6 events led to this one")
        assert "worker.max_hops is 5" in reason
        assert [each.id for each in dead] == ["6"]
