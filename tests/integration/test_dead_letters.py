"""What is dead reaches the sink for it, whichever way it died."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

from aiohttp import web

from runner import Delivery, Event, Failed, Outcome, Rejected
from runner.builder import open_storage
from runner.config import load_config
from runner.delivery import DeliveryState
from runner.policies.retry import RetryPolicy
from runner.storage.contract.records import DeliveryQuery
from runner.storage.contract.settlements import Run, Settled
from tests.contract.storage_contract import LEASE, SHORT, record
from tests.support.eventually import eventually
from tests.support.process import RunnerProcess
from tests.support.receivers import receiver

from .buses import Bus, BusTests, Gate, Handler, events, ids

ONCE = RetryPolicy(max_attempts=1)


class Undertaker(Handler):
    """A subscribed function that keeps the dead letters it is given, and fails the first times."""

    def __init__(self, failures: int = 0) -> None:
        super().__init__()
        self.letters: list[Event] = []
        self._failures = failures

    async def handle(self, event: Event, delivery: Delivery) -> None:
        if self._failures:
            self._failures -= 1
            raise RuntimeError("not today")
        self.letters.append(event)

    def told(self, name: str) -> set[Any]:
        return {event.extensions.get(f"deadletter{name}") for event in self.letters}


def subscribe(runner: Any, handler: Any, undertaker: Undertaker, **options: Any) -> None:
    runner.subscribe("orders", handler, types="order.*", dead_letter="function:undertaker", **options)
    runner.subscribe("undertaker", undertaker, types="nothing")


class TestDeaths(BusTests):
    async def test_rejected_in_the_dispatch(self, bus: Bus) -> None:
        runner, undertaker = bus.runner(), Undertaker()
        subscribe(runner, lambda event: Rejected("no such customer", 410), undertaker)
        async with runner:
            await runner.publish_many(events(5))
            await eventually(lambda: bus.settled(dead=5, delivered=5))
        assert ids(undertaker.letters) == ids(events(5))
        assert undertaker.told("sub") == {"orders"}
        assert undertaker.told("reason") == {"no such customer"}
        assert undertaker.told("attempts") == {1}

    async def test_out_of_attempts_and_the_letter_is_retried_on_its_own(self, bus: Bus) -> None:
        runner, undertaker = bus.runner(), Undertaker(failures=1)
        retry = RetryPolicy(max_attempts=3, delay=timedelta(milliseconds=10))
        subscribe(runner, lambda event: Failed("busy"), undertaker, retry=retry)
        async with runner:
            await runner.publish(events(1)[0])
            await eventually(lambda: bus.settled(dead=1, delivered=1))
        assert undertaker.seen == [("order.created-0", 1), ("order.created-0", 2)]
        assert undertaker.told("reason") == {"busy (attempt 3 of 3)"}
        assert undertaker.told("attempts") == {3}

    async def test_its_holder_died(self, bus: Bus) -> None:
        """A delivery whose attempts were all lost with their processes is dead when it is claimed again."""
        runner, undertaker, gate = bus.runner(), Undertaker(), Gate()
        subscribe(runner, gate, undertaker, retry=ONCE)
        async with runner:  # makes the subscriptions known
            pass
        store = bus.database.open()
        _, registered = await store.registry.subscriptions()
        await bus.publish(events(1))
        claim = await store.queue.claim(1, LEASE)
        held = record(claim.works[0].seq, registered[0].id, DeliveryState.LEASED, claim.token, due_in=SHORT)
        await store.queue.settle(Settled(claim.token, claim.works, [Run((), 1)], [held]))
        async with runner:
            await eventually(lambda: bus.settled(dead=1, delivered=1))
        assert gate.seen == []
        [reason] = undertaker.told("reason")
        assert "ended without an answer" in reason

    async def test_a_dead_letter_that_dies_stays_dead(self, bus: Bus) -> None:
        runner, seen = bus.runner(), []

        def bury(event: Event) -> Outcome:
            seen.append(event)
            return Rejected("no")

        runner.subscribe("orders", lambda event: Rejected("no"), types="order.*", dead_letter="function:bury")
        runner.subscribe("bury", bury, types="nothing")
        async with runner:
            await runner.publish(events(1)[0])
            await eventually(lambda: bus.settled(dead=2))
        assert len(seen) == 1

    async def test_what_is_cancelled_sends_none_and_what_is_retried_and_dies_again_sends_another(
        self, bus: Bus
    ) -> None:
        runner, undertaker = bus.runner(), Undertaker()
        subscribe(runner, lambda event: Failed("busy"), undertaker, retry=RetryPolicy(delay=timedelta(hours=1)))
        async with runner, open_storage(load_config(bus.write())) as storage:
            await runner.publish(events(1)[0])
            await eventually(lambda: bus.settled(pending=1))
            query = DeliveryQuery(subscription="orders")
            assert await storage.corrections.cancel(query) == 1
            assert await bus.settled(cancelled=1)
        subscribe(runner, lambda event: Rejected("no"), undertaker)
        async with runner, open_storage(load_config(bus.write())) as storage:
            for letters in (1, 2):
                assert await storage.corrections.retry(query) == 1
                runner.worker.wake()
                await eventually(lambda: bus.settled(dead=1, delivered=1))
                await eventually(lambda: len(undertaker.letters) == letters)  # noqa: B023  # awaited before it changes


HANDLERS = """\
import json

def fail(event):
    raise RuntimeError("no such customer: \\u00fc")

def keep(event):
    with open("letters", "a") as journal:
        journal.write(json.dumps([event.id, event.json(), dict(event.extensions)]) + "\\n")
"""

MORE = """\
sinks:
  crm: {{python: "handlers:fail"}}
  keep: {{python: "handlers:keep"}}
  hook: {{webhook: {{url: "{url}", headers: {{x-token: t}}}}}}
subscriptions:
  - {{name: by-function, sink: crm, retry: {{max_attempts: 2}}, dead_letter: keep}}
  - {{name: by-webhook, sink: crm, retry: {{max_attempts: 1}}, dead_letter: hook}}
"""


class TestProcess(BusTests):
    async def test_it_arrives_at_a_function_and_at_a_webhook(self, bus: Bus, tmp_path: Path) -> None:
        requests: list[tuple[dict[str, str], Any]] = []

        async def answer(request: web.Request) -> web.StreamResponse:
            requests.append((dict(request.headers), await request.json()))
            return web.Response(status=503 if len(requests) == 1 else 204, headers={"retry-after": "0"})

        (tmp_path / "handlers.py").write_text(HANDLERS)
        async with receiver(answer) as url:
            await bus.publish([Event.new("order.created", {"n": 1}, source="/tests", id="e1")])
            path = bus.write(MORE.format(url=url))
            with RunnerProcess("start", "-c", path, cwd=tmp_path) as process:
                await eventually(lambda: bus.reached(dead=2, delivered=2))
                assert process.stop() == 0
        [kept] = [json.loads(line) for line in (tmp_path / "letters").read_text().splitlines()]
        assert kept[:2] == ["e1", {"n": 1}]
        assert kept[2].items() >= {"deadlettersub": "by-function", "deadletterattempts": 2}.items()
        assert kept[2]["deadletterreason"] == "RuntimeError: no such customer: ü (attempt 2 of 2)"
        [(_, _), (headers, data)] = requests
        assert data == {"n": 1}
        assert headers["ce-id"] == "e1"
        assert headers["ce-deadlettersub"] == "by-webhook"
        assert headers["ce-deadletterattempts"] == "1"
        assert headers["ce-deadletterreason"].startswith("RuntimeError:")
        assert headers["ce-deadletterat"].endswith("Z")
