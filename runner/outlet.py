"""An outlet: a subscription as this process serves it, running as many of its deliveries at once as it may."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from time import monotonic
from typing import Any

from .breaker import Breaker
from .delivery import ACCEPTED, Accepted, Deferred, Delivery, Failed, Outcome, Rejected
from .errors import described
from .event import Event
from .flight import Flight
from .sinks.base import Sink
from .subscription import Subscription

__all__ = ["Outlet", "Slots"]


class Slots:
    """How many deliveries run in this process, over all outlets. Each outlet may have one beyond the limit."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0


_MOST = 1000  # deliveries in batches that are asked for at once
_LOST = Failed("its lease was lost")  # which says nothing of the receiver


class _Lane:
    """One of the deliveries, or batches of them, an outlet runs at a time."""

    __slots__ = ("count", "flight", "index", "lost", "since", "task", "verdict")

    task: asyncio.Task[None]

    def __init__(self) -> None:
        self.flight: Flight[Any] | None = None
        self.index = 0
        self.count = 1  # of deliveries, from `index` on
        self.lost: set[int] = set()  # those of a batch that are no longer ours
        self.since = 0.0
        self.verdict: Failed | None = None  # why the delivery, not the lane, was cancelled

    @property
    def indexes(self) -> range:
        """What it runs of its flight."""
        return range(self.index, self.index + self.count)

    def lose(self, index: int) -> None:
        """Cancel what it runs, once nothing of it is ours: the others of a batch go on."""
        self.lost.add(index)
        if self.lost.issuperset(self.indexes):
            self.interrupt(_LOST)

    def interrupt(self, verdict: Failed) -> None:
        """Cancel what it runs, and go on with the next one."""
        if self.verdict is None:
            self.verdict = verdict
            self.task.cancel()

    def resume(self) -> None:
        """Go on after an interruption."""
        self.verdict = None
        self.lost.clear()
        self.task.uncancel()

    def outcome_of(self, error: BaseException) -> Failed:
        """Return what a delivery that raised amounts to; let go on what is to end the lane itself."""
        if isinstance(error, KeyboardInterrupt | GeneratorExit):
            raise error
        if isinstance(error, asyncio.CancelledError) and self.task.cancelling() > (self.verdict is not None):
            raise error
        return self.verdict or Failed(described(error))


class Outlet:
    """
    A subscription with its sink.

    Deliveries run in lanes, each a task that takes one after the other, so that a sink that answers
    at once costs no task of its own. Lanes are added while there is more to start, up to the
    subscription's concurrency and the process's slots; the first lane needs no slot, so that no
    subscription can starve another. While its breaker is not closed, it takes one delivery at a time from the
    backlog once the pause is over, and nothing else.

    With a subscription that takes batches each lane runs one batch at a time, of what is there: it
    never waits for a batch to fill. What has been tried before goes alone, so that one event that cannot be
    delivered spoils no other's second attempt.
    """

    def __init__(self, id: int, subscription: Subscription, sink: Sink | None, *, paused: bool, slots: Slots) -> None:
        """
        Serve `subscription`, known to the store as `id`.

        Args:
            sink: None where this process has none by that name.
            paused: deliveries wait until the subscription is resumed.
            slots: shared by all outlets of the process.
        """
        self.id = id
        self.subscription = subscription
        self.sink = sink
        self.paused = paused
        self.breaker = Breaker(subscription.breaker)
        self.room: Callable[[], None] = _nothing  # called when a lane ends
        self.turned: Callable[[Outlet], None] = _ignored  # called when the breaker opens or closes
        self._slots = slots
        deliver_batch = getattr(sink, "deliver_batch", None) if subscription.batch else None
        self._deliver_batch: Callable[[Sequence[Delivery]], Awaitable[object]] | None = deliver_batch
        self._most = subscription.batch if subscription.batch and deliver_batch else 1  # that a lane takes at once
        self._flights: deque[Flight[Any]] = deque()
        self._lanes: set[_Lane] = set()

    @property
    def open(self) -> bool:
        """Whether this process delivers for it now, as fast as it can."""
        return self.sink is not None and not self.paused and self.breaker.closed

    @property
    def serving(self) -> bool:
        """Whether this process delivers for it now, be it a single delivery to see whether that is possible again."""
        return self.sink is not None and not self.paused and self.breaker.left(monotonic()) <= 0

    @property
    def immediate(self) -> bool:
        """Whether a dispatch may start its deliveries: no order and no rate, kept by all processes, has a say."""
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
            shared = self._slots.limit - self._slots.used
        waiting = sum(flight.stop - flight.next for flight in self._flights)
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
        self._flights.append(flight)
        if not self._lanes:
            self._add_lane()
        self._widen_soon()

    def withdraw(self, flight: Flight[Any]) -> None:
        """Cut `flight`: what of it has not started is not ours to start any more."""
        flight.cut()
        with contextlib.suppress(ValueError):
            self._flights.remove(flight)

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
        """Stop one running delivery, which is no longer ours; in a batch, once none of the batch is."""
        for lane in self._lanes:
            if lane.flight is flight and index in lane.indexes:
                lane.lose(index)

    async def stop(self) -> None:
        """Start nothing more, cancel whatever runs and wait for it, at most a second."""
        for flight in self._flights:
            flight.stop = flight.next
        for lane in self._lanes:
            if lane.flight is not None:  # else it ends by itself; a task cancelled before it began never would
                lane.task.cancel()
        if self._lanes:
            await asyncio.wait({lane.task for lane in self._lanes}, timeout=1)

    def _add_lane(self) -> None:
        lane = _Lane()
        self._lanes.add(lane)
        self._slots.used += 1
        lane.task = asyncio.create_task(self._run(lane), name=f"deliver {self.subscription.name}")

    def _widen_soon(self) -> None:
        if len(self._lanes) < self.subscription.concurrency:
            asyncio.get_running_loop().call_soon(self._widen)

    def _widen(self) -> None:
        """Double the lanes while they leave something to start."""
        waiting = sum(flight.stop - flight.next for flight in self._flights)
        more = min(
            waiting,
            len(self._lanes) or 1,
            self.subscription.concurrency - len(self._lanes),
            self._slots.limit - self._slots.used,
        )
        for _ in range(more):
            self._add_lane()
        if more > 0:
            self._widen_soon()

    async def _run(self, lane: _Lane) -> None:
        """Take deliveries until none is left to start."""
        fly = self._fly if self._deliver_batch is None else self._fly_in_batches
        try:
            while self._flights:
                flight = self._flights[0]
                if flight.next < flight.stop:
                    lane.flight = flight
                    flight.running += 1
                    try:
                        await fly(lane, flight)
                    finally:
                        lane.flight = None
                        flight.running -= 1
                        if flight.over:
                            if self.breaker.failures and flight.silent > flight.heard:
                                self._heed(ACCEPTED, monotonic())
                            flight.end()
                elif self._flights and self._flights[0] is flight:
                    self._flights.popleft()
        finally:
            self._lanes.discard(lane)
            self._slots.used -= 1
            self.room()

    async def _fly(self, lane: _Lane, flight: Flight[Any]) -> None:
        """Take deliveries of one flight until none of it is left to start."""
        sink = self.sink
        assert sink is not None
        deliver, name, works = sink.deliver, self.subscription.name, flight.works
        deliver_event: Callable[[Event], Awaitable[Outcome]] | None = getattr(sink, "deliver_event", None)
        while (index := flight.next) < flight.stop:
            flight.next = index + 1
            work = works[index]
            lane.index = index
            lane.since = started = monotonic()
            try:
                if deliver_event is not None:
                    outcome = await deliver_event(work.event)
                else:
                    outcome = await deliver(Delivery(work.event, name, work.attempt))
            except BaseException as error:
                # SystemExit from a handler, too: it must not take the process with it.
                outcome = lane.outcome_of(error)
            if lane.verdict is not None:
                lane.resume()
            if flight.watched or outcome is not ACCEPTED:
                outcome, ended = _checked(outcome), monotonic()
                self._note(flight, outcome, ended)
                flight.landed(index, outcome, ended - started)

    async def _fly_in_batches(self, lane: _Lane, flight: Flight[Any]) -> None:
        """Do the same, several at a time."""
        deliver_batch, name = self._deliver_batch, self.subscription.name
        assert deliver_batch is not None
        while flight.next < flight.stop:
            lane.index, lane.count = flight.next, self._batch(flight)
            works = flight.works[lane.index : lane.index + lane.count]
            flight.next += len(works)
            lane.since = started = monotonic()
            answer: object
            try:
                answer = await deliver_batch([Delivery(work.event, name, work.attempt) for work in works])
            except BaseException as error:
                answer = [lane.outcome_of(error)] * len(works)
            if lane.verdict is not None:
                lane.resume()
            lane.lost.clear()
            ended = monotonic()
            outcomes = [_checked(each) for each in _answers(answer, len(works))]
            flight.told += len(works)
            # A batch counts as one delivery, which failed if all of it did.
            self._heed(next((each for each in outcomes if not isinstance(each, Failed)), outcomes[0]), ended)
            for index, outcome in zip(lane.indexes, outcomes, strict=True):
                if flight.watched or outcome is not ACCEPTED:
                    flight.landed(index, outcome, ended - started)

    def _batch(self, flight: Flight[Any]) -> int:
        """Return how many of `flight` go next: those that follow each other untried, or one that was tried before."""
        first, stop = flight.next, min(flight.next + self._most, flight.stop)
        tried = (index for index in range(first, stop) if flight.works[index].attempt > 1)
        return max(next(tried, stop) - first, 1)

    def _note(self, flight: Flight[Any], outcome: Outcome, now: float) -> None:
        """Tell the breaker of one delivery, and of those that succeeded silently before it."""
        if (silent := flight.silent) > flight.heard:
            flight.heard = silent
            self._heed(ACCEPTED, now)
        flight.told += 1
        self._heed(outcome, now)

    def _heed(self, outcome: Outcome, now: float) -> None:
        """Tell the breaker what the receiver did."""
        if not isinstance(outcome, Failed):
            if self.breaker.answered(now):
                self.turned(self)
        elif outcome is not _LOST and self.breaker.failed(now):
            self._halt()
            self.turned(self)

    def _halt(self) -> None:
        """Start nothing more of what was given."""
        for flight in self._flights:
            if flight.next < flight.stop:
                flight.stop = flight.next
                if flight.over:  # so no lane will say it
                    flight.end()


def _answers(answer: object, count: int) -> Sequence[object]:
    """Return the outcome of each delivery of a batch."""
    if isinstance(answer, list | tuple) and len(answer) == count:
        return answer
    given = f"{len(answer)} outcomes" if isinstance(answer, list | tuple) else type(answer).__name__
    return [Failed(f"the sink returned {given} for a batch of {count}")] * count


def _checked(outcome: object) -> Outcome:
    """Return what the sink answered, if that is an outcome."""
    match outcome:
        case Accepted() | Deferred(timedelta()):
            return outcome
        case Failed(str(), None | timedelta(), status, None | str()) if _fits(status):
            return outcome
        case Rejected(str(), status, None | str()) if _fits(status):
            return outcome
    # Whatever is wrong with it must fail this delivery alone, not the batch it would be written with.
    known = isinstance(outcome, Failed | Rejected | Deferred)
    expected = "its fields of the documented types" if known else "an outcome"
    return Failed(f"the sink returned {type(outcome).__name__}, expected {expected}")


def _fits(status: object) -> bool:
    return status is None or (isinstance(status, int) and 0 <= status < 2**31)


def _nothing() -> None:
    return None


def _ignored(outlet: Outlet) -> None:
    return None
