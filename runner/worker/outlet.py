"""An outlet: serves one subscription in this process, with limited concurrency."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any

import structlog

from ..delivery import Failed
from ..errors import described
from ..policies.breaker import Breaker
from ..service.tally import Tries
from ..sinks.base import Sink
from ..subscription import Subscription
from ..tracing.causation import HANDLED
from .budget import Budget
from .calls import BatchCalls, Calls, SingleCalls
from .feedback import Feedback
from .flight import Flight
from .lane import Lane

__all__ = ["Outlet", "Slots"]

log = structlog.get_logger(__name__)


class Slots:
    """
    Count the running deliveries of all outlets. Each outlet may have one beyond the limit.

    None is left while what waits for receivers weighs too much.
    """

    __slots__ = ("_budget", "limit", "used")

    def __init__(self, limit: int, budget: Budget | None = None) -> None:
        self.limit = limit
        self.used = 0
        self._budget = budget or Budget()

    @property
    def left(self) -> int:
        """How many more may start."""
        return 0 if self._budget.crowded else self.limit - self.used


_MOST = 1000  # deliveries of a subscription with batches that are claimed at once


class Outlet:
    """
    A subscription with its sink.

    Deliveries run in lanes, each a task that takes one after the other, so that a sink that answers
    at once costs no task of its own. Lanes are added while there is more to start, up to the
    subscription's concurrency and the process's slots; the first lane needs no slot, so that no
    subscription can starve another. While its breaker is not closed, it takes one delivery at a time from the
    backlog once the pause is over, and nothing else.

    With a subscription that takes batches each lane runs one batch at a time, of the deliveries at hand: it never waits
    for a batch to fill. A retry goes alone, so that an event that cannot be delivered does not fail the retries of
    others.

    Attributes:
        flights: what is left to start, first in, first out.
    """

    def __init__(
        self,
        id: int,
        subscription: Subscription,
        sink: Sink | None,
        *,
        paused: bool,
        slots: Slots,
        on_lane_end: Callable[[Outlet], None],
        on_breaker_change: Callable[[Outlet], None],
        tries: Tries | None = None,
    ) -> None:
        """
        Serve `subscription`, known to the store as `id`.

        Args:
            sink: None where this process has none by that name.
            paused: deliveries wait until the subscription is resumed.
            slots: shared by all outlets of the process.
            on_lane_end: called when there is room for another delivery.
            on_breaker_change: called when the breaker opens or closes.
            tries: counts its attempts.
        """
        self.id = id
        self.subscription = subscription
        self.sink = sink
        self.paused = paused
        self.breaker = Breaker(subscription.breaker)
        self._slots = slots
        self._on_lane_end = on_lane_end
        self.flights: deque[Flight[Any]] = deque()
        self._lanes: set[Lane] = set()
        self._feedback = Feedback(self.breaker, self.flights, lambda: on_breaker_change(self))
        self._most = 1  # deliveries that a lane takes at once
        self._calls: Calls | None = None
        if sink is not None:
            deliver_batch = getattr(sink, "deliver_batch", None) if subscription.batch else None
            self._most = subscription.batch if subscription.batch and deliver_batch else 1
            tries = tries or Tries()
            self._calls = (
                SingleCalls(subscription.name, sink, self._feedback, tries)
                if deliver_batch is None
                else BatchCalls(subscription.name, deliver_batch, self._most, self._feedback, tries)
            )

    @property
    def open(self) -> bool:
        """Whether this process delivers for it now, as fast as it can."""
        return self.sink is not None and not self.paused and self.breaker.closed

    @property
    def serving(self) -> bool:
        """Whether this process delivers for it now, a single probe of a half-open breaker included."""
        return self.sink is not None and not self.paused and self.breaker.left(monotonic()) <= 0

    @property
    def immediate(self) -> bool:
        """Whether a dispatch may start its deliveries, because it has neither order nor rate."""
        return self.open and not self.subscription.regulated

    @property
    def running(self) -> int:
        """How many of its deliveries run here."""
        return len(self._lanes)

    def free(self, shared: int | None = None) -> int:
        """Return how many more deliveries could start now; `shared` is what is left of the process's slots."""
        if not self.serving:
            return 0
        if shared is None:
            shared = self._slots.left
        waiting = sum(flight.stop - flight.next for flight in self.flights)
        if not self.breaker.closed:
            return 0 if self._lanes or waiting else 1
        lanes = max(min(self.subscription.concurrency - len(self._lanes), shared), 0 if self._lanes else 1)
        return max(min(lanes * self._most, max(lanes, _MOST)) - waiting, 0)

    def lanes_for(self, deliveries: int) -> int:
        """Return how many lanes so many deliveries take at least."""
        return -(-deliveries // self._most)

    def accepts(self, count: int) -> int:
        """Return how many of `count` claimed deliveries can be started now; things may have changed since the claim."""
        return count if self.open else min(count, self.free())

    def start(self, flight: Flight[Any]) -> None:
        """Run the deliveries of `flight` as lanes become free."""
        self.flights.append(flight)
        if not self._lanes:
            self._add_lane()
        self._widen_soon()

    def withdraw(self, flight: Flight[Any]) -> None:
        """Cut `flight`, so that nothing more of it starts."""
        flight.cut()
        with contextlib.suppress(ValueError):
            self.flights.remove(flight)

    def overdue(self, now: float) -> None:
        """Cancel the deliveries that have run for longer than the subscription allows."""
        timeout = self.subscription.timeout.total_seconds()
        for lane in self._lanes:
            if lane.flight is not None and lane.since < now - timeout:
                lane.interrupt(Failed(f"no answer within {timeout:g} s"))

    def in_flight(self, flight: Flight[Any]) -> list[int]:
        """Return the indexes of `flight` that are running now."""
        return [index for lane in self._lanes if lane.flight is flight for index in lane.indexes]

    def cancel(self, flight: Flight[Any], index: int) -> None:
        """Stop a running delivery whose lease is lost; in a batch, once all leases are."""
        for lane in self._lanes:
            if lane.flight is flight and index in lane.indexes:
                lane.lose(index)

    async def stop(self) -> None:
        """Start nothing more, cancel running deliveries, and wait at most a second for them."""
        for flight in self.flights:
            flight.halt()
        for lane in self._lanes:
            if lane.flight is not None:  # an idle lane ends by itself; a task cancelled before it began never would
                lane.end()
        if self._lanes:
            await asyncio.wait({lane.task for lane in self._lanes}, timeout=1)

    def _add_lane(self) -> None:
        lane = Lane()
        self._lanes.add(lane)
        self._slots.used += 1
        lane.begin(self._run(lane), f"deliver {self.subscription.name}")
        lane.task.add_done_callback(lambda _: self._leave(lane))  # one cancelled before it began never ran

    def _widen_soon(self) -> None:
        if len(self._lanes) < self.subscription.concurrency:
            asyncio.get_running_loop().call_soon(self._widen)

    def _widen(self) -> None:
        """Double the lanes while they leave something to start."""
        waiting = sum(flight.stop - flight.next for flight in self.flights)
        more = min(
            waiting,
            len(self._lanes) or 1,
            self.subscription.concurrency - len(self._lanes),
            self._slots.left,
        )
        for _ in range(more):
            self._add_lane()
        if more > 0:
            self._widen_soon()

    async def _run(self, lane: Lane) -> None:
        """Take deliveries until none is left to start, or until the task is cancelled: then another lane goes on."""
        assert self._calls is not None
        try:
            while self.flights and not lane.tainted:
                flight = self.flights[0]
                if flight.next < flight.stop:
                    await self._take(lane, flight, self._calls)
                elif self.flights and self.flights[0] is flight:
                    self.flights.popleft()
        finally:
            self._leave(lane)

    async def _take(self, lane: Lane, flight: Flight[Any], call: Calls) -> None:
        """Deliver from one flight; only a stop leaves a delivery without an outcome."""
        lane.flight = flight
        flight.running += 1
        first = flight.next
        try:
            await call(lane, flight)
        except BaseException as error:
            if lane.ending:
                raise
            # it failed before it began, and would do so for ever without progress
            if flight.next == first < flight.stop:
                lane.index, lane.count, lane.since, flight.next = first, 1, monotonic(), first + 1
            for index in lane.indexes:
                flight.landed(index, Failed(described(error)), monotonic() - lane.since)
            if not isinstance(error, Exception):
                raise
            log.error("delivering failed", subscription=self.subscription.name, error=type(error).__name__)
        finally:
            HANDLED.set(None)
            lane.flight = None
            flight.running -= 1
            if flight.over and not lane.abandoned:
                flight.end()
                if self.breaker.failures:
                    self._feedback.successes(flight, monotonic())

    def _leave(self, lane: Lane) -> None:
        """Remove a lane, and have another one continue its work."""
        if lane not in self._lanes:
            return
        self._lanes.remove(lane)
        del lane.task  # which holds the lane
        self._slots.used -= 1
        if self.flights and not lane.ending:
            if not self._lanes:
                self._add_lane()
            self._widen_soon()
        self._on_lane_end(self)
