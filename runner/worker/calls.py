"""Call a sink with one delivery after the other, or with batches."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from time import monotonic
from typing import Any

from ..delivery import ACCEPTED, Accepted, Deferred, Delivery, Failed, Outcome, Rejected
from ..event import Event
from ..service.histogram import FIRST
from ..service.tally import Tries
from ..sinks.base import Sink
from ..tracing.causation import HANDLED
from .endings import Expired, expired
from .feedback import Feedback
from .flight import SUCCEEDED, Flight
from .lane import LOST, Lane

__all__ = ["BatchCalls", "Calls", "SingleCalls"]

Calls = Callable[[Lane, Flight[Any]], Awaitable[None]]
"""Deliver the part of a flight that has not started, within a lane."""


class SingleCalls:
    """Call `deliver()`, or the sink's faster `deliver_event()`, once for each delivery."""

    __slots__ = ("_feedback", "_name", "_sink", "_tries")

    def __init__(self, name: str, sink: Sink, feedback: Feedback, tries: Tries) -> None:
        """Args: name is that of the subscription."""
        self._name = name
        self._sink = sink
        self._feedback = feedback
        self._tries = tries

    async def __call__(self, lane: Lane, flight: Flight[Any]) -> None:
        """Deliver the unstarted part of `flight`, until none is left or the lane must end."""
        deliver, name, works, marks = self._sink.deliver, self._name, flight.works, flight.marks
        deliver_event: Callable[[Event], Awaitable[Outcome]] | None = getattr(self._sink, "deliver_event", None)
        cancelling, handle, expiring = lane.task.cancelling, HANDLED.set, flight.expiring
        tries = self._tries
        quick, total = 0, 0.0  # of the attempts that were accepted at once: counted when all are over
        ended = monotonic()
        try:
            while (index := flight.next) < flight.stop:
                lane.since = started = ended
                if started >= flight.until:
                    flight.halt()
                    return
                flight.next = index + 1
                work = works[index]
                lane.index = index
                if expiring and started >= work.deadline:
                    flight.landed(index, Expired(expired(work.event.expires_at)), 0.0)
                    continue
                handle(work.event)
                try:
                    if deliver_event is not None:
                        outcome = await deliver_event(work.event)
                    else:
                        outcome = await deliver(Delivery(work.event, name, work.attempt))
                except BaseException as error:
                    # SystemExit from a handler, too: it must not take the process with it.
                    outcome = lane.outcome_of(error)
                    if isinstance(error, KeyboardInterrupt):
                        raise
                ended = monotonic()
                if outcome is ACCEPTED and not flight.watched:
                    marks[index] = SUCCEEDED
                    if ended - started <= FIRST:
                        quick += 1
                        total += ended - started
                    else:
                        tries.add("accepted", ended - started)
                else:
                    handle(None)  # what follows is not done for this event alone
                    outcome = _checked(outcome)
                    tries.add(_result(outcome), ended - started)
                    flight.landed(index, outcome, ended - started)
                    self._feedback.successes(flight, ended)
                    self._feedback.outcome(outcome, ended)
                if cancelling() or lane.verdict is not None:
                    return
        finally:
            tries.add_quick(quick, total)


class BatchCalls:
    """Call `deliver_batch()` with several deliveries; those that were tried before go alone."""

    __slots__ = ("_deliver_batch", "_feedback", "_most", "_name", "_tries")

    def __init__(
        self,
        name: str,
        deliver_batch: Callable[[Sequence[Delivery]], Awaitable[object]],
        most: int,
        feedback: Feedback,
        tries: Tries,
    ) -> None:
        """Args: most is how many deliveries a batch has at most."""
        self._tries = tries
        self._name = name
        self._deliver_batch = deliver_batch
        self._most = most
        self._feedback = feedback

    async def __call__(self, lane: Lane, flight: Flight[Any]) -> None:
        """Deliver the unstarted part of `flight` in batches, until none is left or the lane must end."""
        deliver_batch, name = self._deliver_batch, self._name
        while flight.next < flight.stop and not lane.tainted:
            lane.since = started = monotonic()
            if started >= flight.until:
                flight.halt()
                return
            lane.index, lane.count = flight.next, self._size(flight, started)
            first = flight.works[lane.index]
            if first.deadline <= started:
                flight.next += 1
                flight.landed(lane.index, Expired(expired(first.event.expires_at)), 0.0)
                continue
            works = flight.works[lane.index : lane.index + lane.count]
            flight.next += len(works)
            HANDLED.set(works[0].event if len(works) == 1 else None)
            answer: object
            try:
                answer = await deliver_batch([Delivery(work.event, name, work.attempt) for work in works])
            except BaseException as error:
                answer = [lane.outcome_of(error)] * len(works)
                if isinstance(error, KeyboardInterrupt):
                    raise
            lane.lost.clear()
            HANDLED.set(None)
            ended = monotonic()
            outcomes = [_checked(each) for each in _answers(answer, len(works))]
            for index, outcome in zip(lane.indexes, outcomes, strict=True):
                self._tries.add(_result(outcome), ended - started)
                if outcome is ACCEPTED and not flight.watched:
                    flight.marks[index] = SUCCEEDED
                    flight.credited += 1
                else:
                    flight.landed(index, outcome, ended - started)
            # A batch counts as one delivery, which failed if all of it did.
            best = next((each for each in outcomes if not isinstance(each, Failed)), outcomes[0])
            self._feedback.outcome(best, ended)

    def _size(self, flight: Flight[Any], now: float) -> int:
        """Return the size of the next batch: consecutive first attempts in time, one retry, or one that has expired."""
        first, stop = flight.next, min(flight.next + self._most, flight.stop)
        works = flight.works
        single = (index for index in range(first, stop) if works[index].attempt > 1 or works[index].deadline <= now)
        return max(next(single, stop) - first, 1)


def _result(outcome: Outcome) -> str:
    """Return the name of an outcome in metrics."""
    return "lost" if outcome is LOST else type(outcome).__name__.lower()


def _answers(answer: object, count: int) -> Sequence[object]:
    """Return the outcome of each delivery of a batch."""
    if isinstance(answer, list | tuple) and len(answer) == count:
        return answer
    given = f"{len(answer)} outcomes" if isinstance(answer, list | tuple) else type(answer).__name__
    return [Failed(f"the sink returned {given} for a batch of {count}")] * count


def _checked(outcome: object) -> Outcome:
    """Return the answer of a sink if it is an outcome, else a failure that says so."""
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
