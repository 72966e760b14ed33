"""Call a sink with one delivery after the other, or with batches."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from time import monotonic
from typing import Any, cast

from ..delivery import ACCEPTED, Accepted, Deferred, Delivery, Failed, Outcome, Rejected
from ..event import Event
from ..service.histogram import FIRST
from ..service.tally import Tries
from ..sinks.base import EventSink, Sink
from ..tracing.causation import HANDLED
from .endings import Expired, expired
from .feedback import Feedback
from .flight import SUCCEEDED, Flight
from .lane import LOST, Lane

__all__ = ["BatchCalls", "Calls", "SingleCalls"]

Calls = Callable[[Lane, Flight[Any]], Awaitable[None]]
"""Deliver the part of a flight that has not started, within a lane."""


class SingleCalls:
    """
    Call `deliver()`, or the sink's faster `deliver_event()`, once for each delivery.

    Deliveries that are accepted at once follow each other in a stretch. Whatever happens to the flight meanwhile, for
    which a handler has to wait, takes its turn away and so ends the stretch.
    """

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
        deliver_event: Callable[[Event], Awaitable[object]] | None = getattr(self._sink, "deliver_event", None)
        sink = cast("EventSink", self._sink) if hasattr(self._sink, "outcome_of") and deliver_event else None
        plain = ACCEPTED if sink is None else None  # the answer that says no more than that it is accepted
        handle, cancelling, quick, slow = HANDLED.set, lane.task.cancelling, 0, 0.0
        answer: object
        outcome: object
        began = ended = monotonic()
        try:
            while (first := flight.next) < flight.stop:
                if ended >= flight.until:
                    flight.halt()
                    return
                if flight.expiring and ended >= works[first].deadline:
                    self._expire(lane, flight, ended)
                    continue
                flight.turn = None if flight.watched or flight.expiring else lane
                for index in range(first, flight.stop):
                    lane.since = started = ended
                    lane.index = index
                    flight.next = index + 1
                    work = works[index]
                    event = work.event
                    handle(event)
                    try:
                        if deliver_event is None:
                            answer = await deliver(Delivery(event, name, work.attempt))
                        else:
                            answer = await deliver_event(event)
                    except BaseException as error:
                        outcome = _failure(error, lane, sink)
                        seconds = (ended := monotonic()) - started
                        break
                    ended = monotonic()
                    seconds = ended - started
                    if answer is not plain or flight.turn is not lane or seconds > FIRST or ended >= flight.until:
                        outcome = ACCEPTED if answer is plain else answer
                        if answer is not plain and sink is not None:
                            outcome = sink.outcome_of(answer)
                        break
                    marks[index] = SUCCEEDED
                    quick += 1
                else:
                    return
                if outcome is ACCEPTED and not flight.watched and seconds <= FIRST:
                    marks[index] = SUCCEEDED
                    quick += 1
                else:
                    slow += seconds
                    self._land(flight, index, outcome, seconds, ended)
                if cancelling() or lane.verdict is not None:
                    return
        finally:
            self._tries.add_quick(quick, ended - began - slow)

    @staticmethod
    def _expire(lane: Lane, flight: Flight[Any], now: float) -> None:
        """Take the next delivery for one whose event has expired."""
        lane.since, lane.index = now, flight.next
        flight.next += 1
        flight.landed(lane.index, Expired(expired(flight.works[lane.index].event.expires_at)), 0.0)

    def _land(self, flight: Flight[Any], index: int, answer: object, seconds: float, now: float) -> None:
        """Take an outcome that is not a success within `FIRST`, or one that is to be reported."""
        if answer is ACCEPTED and not flight.watched:
            flight.marks[index] = SUCCEEDED
            self._tries.add("accepted", seconds)
            return
        HANDLED.set(None)  # what follows is not done for this event alone
        outcome = _checked(answer)
        self._tries.add(_result(outcome), seconds)
        flight.landed(index, outcome, seconds)
        self._feedback.successes(flight, now)
        self._feedback.outcome(outcome, now)


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


def _failure(error: BaseException, lane: Lane, sink: EventSink | None) -> Outcome:
    """Return the outcome of a delivery that raised; re-raise what ends the lane, or the process."""
    outcome = sink.failure_of(error) if sink is not None else None
    if outcome is None:
        # SystemExit from a handler, too: it must not take the process with it.
        outcome = lane.outcome_of(error)
        if isinstance(error, KeyboardInterrupt):
            raise error
    return outcome


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
