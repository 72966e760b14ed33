"""A publisher in a process of its own: `python -m tests.chaos.publisher PLAN`, where the plan is JSON.

It writes down what it is about to publish, publishes it, and writes down the answer. What it got no answer to, in
this life or an earlier one, it publishes again under the same id, until it has an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

from runner import Event, RunnerError, StorageUnavailable
from runner.builder import open_bus
from runner.bus.bus import EventBus
from runner.config import load_config

from . import sabotage
from .journals import Journal, Pen, Publishing, digest, now

SOURCE = "/chaos"
CANARY = "canary-9f3c1e"  # in every body and every password; no output may show it


@dataclass(frozen=True, slots=True)
class Plan:
    """
    What to publish.

    Attributes:
        first, count: events are numbered from `first`.
        rate: events per second.
        types: taken in turn.
        padding: bytes that a body is longer by, at most; how many depends on the seed and the number.
        wave: events published at once.
        retry: publish again what got no answer.
        delay: seconds until an event is due.
        kills: how often it is killed (kill -9) in the middle of it, and goes on in a new process.
    """

    config: str
    journal: str
    count: int
    first: int = 0
    rate: float = 200.0
    types: tuple[str, ...] = ("load",)
    padding: int = 200
    wave: int = 10
    retry: bool = True
    delay: float = 0.0
    kills: int = 0
    seed: str = ""

    def event(self, number: int) -> Event:
        """Return an event that is the same in every life of the publisher."""
        padding = "x" * random.Random(f"{self.seed}:{number}").randint(0, self.padding)
        body = {"n": number, "canary": CANARY, "padding": padding}
        return Event.new(self.types[number % len(self.types)], body, source=SOURCE, id=f"event-{number:06}")

    def dump(self) -> str:
        """Return the plan as an argument."""
        return json.dumps(asdict(self))


class Publisher:
    """Publishes what a plan says, wave by wave."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.stopping = False
        self._pen = Pen(plan.journal)
        self._answered = {
            line.id: line.step in ("ok", "fail") or not plan.retry
            for line in Journal(Path(plan.journal), Publishing).read()
        }

    async def run(self, bus: EventBus) -> None:
        """Publish until everything has an answer, or until a signal."""
        plan = self.plan
        events = [plan.event(number) for number in range(plan.first, plan.first + plan.count)]
        left = [event for event in events if not self._answered.get(event.id)]
        began = asyncio.get_running_loop().time()
        for start in range(0, len(left), plan.wave):
            if self.stopping:
                return
            await self._publish(bus, left[start : start + plan.wave])
            pause = began + (start + plan.wave) / plan.rate - asyncio.get_running_loop().time()
            await asyncio.sleep(max(0.0, pause))

    async def _publish(self, bus: EventBus, events: list[Event]) -> None:
        """Publish events at once; try again, as long as it takes, those that got no answer."""
        left = events
        while left and not self.stopping:
            new = [event for event in left if event.id not in self._answered]
            if new:
                lines = [Publishing(each.id, each.type, "invoke", now(), digest(each.data)) for each in new]
                self._pen.write(*lines, sync=True)
            answers = await asyncio.gather(*[self._answer(bus, event) for event in left])
            self._pen.write(*answers, sync=True)
            self._answered |= {line.id: line.step != "unknown" or not self.plan.retry for line in answers}
            left = [event for event in left if not self._answered[event.id]]
            if left:
                await asyncio.sleep(0.1)  # a store that is away is asked again at a human pace

    async def _answer(self, bus: EventBus, event: Event) -> Publishing:
        try:
            receipt = await bus.publish(event, delay=timedelta(seconds=self.plan.delay) if self.plan.delay else None)
        except StorageUnavailable:
            return Publishing(event.id, event.type, "unknown", now())
        except RunnerError:
            return Publishing(event.id, event.type, "fail", now())
        return Publishing(event.id, event.type, "ok", now(), duplicate=receipt.duplicate)


async def main(plan: Plan) -> None:
    """Publish, and say when it is done."""
    publisher = Publisher(plan)

    def stop() -> None:
        publisher.stopping = True

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
    async with contextlib.AsyncExitStack() as stack:
        while True:
            try:
                bus = await stack.enter_async_context(open_bus(load_config(plan.config)))
                break
            except StorageUnavailable:
                await asyncio.sleep(0.1)
        await publisher.run(bus)
    print("published", flush=True)


async def _load(plan: Plan) -> None:
    """Import what a child needs, once for all of them; each would spend most of its life on that."""
    async with open_bus(load_config(plan.config)):
        pass


def live_again_and_again(plan: Plan) -> None:
    """Publish in one child after the other, of which all but the last are killed soon after they began."""
    asyncio.run(_load(plan))
    chance = random.Random(f"{plan.seed}:kills")
    journal = Journal(Path(plan.journal), Publishing)
    for _ in range(plan.kills):
        before = len(journal.read())
        child = os.fork()
        if not child:
            asyncio.run(main(plan))
            os._exit(0)
        while len(journal.read()) == before:  # it has not begun to publish
            if os.waitpid(child, os.WNOHANG) != (0, 0):
                return  # nothing was left to publish
            time.sleep(0.001)
        time.sleep(chance.uniform(0.0, 0.06))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        steps = Counter(line.step for line in journal.read())
        print(f"killed {steps['invoke'] - steps['ok']}", flush=True)
    asyncio.run(main(plan))


if __name__ == "__main__":
    sabotage.apply(os.environ.get("CHAOS_SABOTAGE", ""))
    given = Plan(**json.loads(sys.argv[1]))
    if given.kills:
        live_again_and_again(given)
    else:
        asyncio.run(main(given))
