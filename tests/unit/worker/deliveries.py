"""What the tests of the worker's parts share: sinks made of functions, work to hand out, and time in ticks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from runner.delivery import ACCEPTED, Delivery, Outcome
from runner.event import Event
from runner.policies.retry import RetryPolicy
from runner.storage.contract.claims import Work
from runner.subscription import Subscription
from runner.worker.outlet import Outlet, Slots

RETRY = RetryPolicy(max_attempts=3, delay=timedelta(seconds=1), jitter=0)


class FunctionSink:
    """A sink that is one function, and remembers what it was given."""

    def __init__(self, function: Callable[[Delivery], Awaitable[Any]]) -> None:
        self._function = function
        self.taken: list[int] = []  # numbers of the events in the order of their start
        self.running = 0
        self.most = 0  # that ever ran at once

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def deliver(self, delivery: Delivery) -> Outcome:
        self.taken.append(number(delivery.event))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            answer: Outcome = await self._function(delivery)
            return answer
        finally:
            self.running -= 1


async def accept(_: Delivery) -> Outcome:
    return ACCEPTED


async def tick(times: int = 1) -> None:
    """Let the event loop go round."""
    for _ in range(times):
        await asyncio.sleep(0)


def number(event: Event) -> int:
    return int(event.id)


def works(count: int, attempt: int = 1) -> list[Work]:
    """Return claimed events whose number, and place in the store, is their index."""
    return [Work(n, attempt, n, Event(type="t", source="/s", id=str(n))) for n in range(count)]


def outlet(
    sink: FunctionSink | None,
    *,
    id: int = 1,
    slots: Slots | None = None,
    paused: bool = False,
    on_lane_end: Callable[[Outlet], None] = lambda _: None,
    on_breaker_change: Callable[[Outlet], None] = lambda _: None,
    **options: Any,
) -> Outlet:
    fields: dict[str, Any] = {"name": f"sub-{id}", "sink": "sink", "retry": RETRY, **options}
    return Outlet(
        id,
        Subscription(**fields),
        sink,
        paused=paused,
        slots=slots or Slots(256),
        on_lane_end=on_lane_end,
        on_breaker_change=on_breaker_change,
    )
