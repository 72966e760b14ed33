"""A flight: deliveries of one outlet that were claimed together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import Any, Generic, Protocol, TypeVar

from ..delivery import Outcome
from ..event import Event

__all__ = ["REPORTED", "SUCCEEDED", "Flight", "Startable", "to_end"]

SUCCEEDED, REPORTED = 1, 2  # marks of a delivery that is accepted, and of one whose outcome was handed on


class Startable(Protocol):
    """A claimed item that can be delivered: a `Work` or a `ClaimedDelivery`."""

    seq: int
    event: Event
    attempt: int
    deadline: float


W = TypeVar("W", bound=Startable)


class Flight(Generic[W]):
    """
    Deliveries of one outlet that were claimed together.

    Each outcome is marked: a success by the lane that saw it, anything else by `landed()`. A delivery without a
    mark is never taken for a success. Until `cut()`, outcomes other than `ACCEPTED` gather in
    `troubles`. Afterwards no further delivery starts, and those that were running report one by one.
    """

    __slots__ = (
        "_ended",
        "_held",
        "_report",
        "credited",
        "expiring",
        "marks",
        "next",
        "recorded",
        "running",
        "stop",
        "troubles",
        "turn",
        "until",
        "watched",
        "works",
    )

    def __init__(
        self,
        works: Sequence[W],
        until: float = inf,
        *,
        expiring: bool = False,
        ended: Callable[[], None] | None = None,
        recorded: tuple[float, float] | None = None,
    ) -> None:
        """
        Begin with nothing started.

        Args:
            until: when the lease ends under which they are held, on the monotonic clock: nothing starts after that.
            expiring: whether any of them has a deadline of its own, after which it does not start.
            ended: called once, when nothing runs and nothing is left to start.
            recorded: when the first and the last of their events were recorded; None if each says that itself.
        """
        self.works = works
        self.recorded = recorded
        self.until = until
        self.expiring = expiring
        self.next = 0  # index of the first one that has not started
        self.stop = len(works)
        self.running = 0
        self.turn: object = None  # who started the last one, if nothing has happened to the flight since
        self.marks = bytearray(
            len(works)
        )  # of each, what is known: nothing, that it SUCCEEDED, or that it was REPORTED
        self.troubles: list[tuple[int, Outcome, float]] = []  # index, outcome, seconds it took
        self.watched = False  # whether successes are reported too
        self.credited = 0  # how many of the unreported successes the breaker has counted
        self._ended = ended
        self._held: list[tuple[int, Outcome, float]] | None = None
        self._report: Callable[[int, Outcome, float], None] | None = None

    @property
    def over(self) -> bool:
        """Whether nothing runs and nothing will start."""
        return self.running == 0 and self.next >= self.stop

    @property
    def succeeded(self) -> int:
        """How many have succeeded unreported."""
        return self.marks.count(SUCCEEDED)

    @property
    def ended_before(self) -> int:
        """The index of the first delivery without an outcome."""
        first = self.marks.find(0)
        return len(self.works) if first < 0 else first

    def clean(self, start: int = 0, stop: int | None = None) -> bool:
        """Return whether each of its deliveries has succeeded, or each of those between two indexes."""
        stop = len(self.works) if stop is None else stop
        return self.marks.count(SUCCEEDED, start, stop) == stop - start

    def unanswered(self) -> list[int]:
        """Return the indexes of deliveries without an outcome."""
        return [index for index, mark in enumerate(self.marks) if not mark]

    def recorded_at(self, index: int) -> float | None:
        """Return when the event at `index` was recorded, on the monotonic clock; an estimate between two others."""
        if self.recorded is None:
            return getattr(self.works[index], "recorded", None)
        first, last = self.recorded
        return first + (last - first) * index / max(len(self.works) - 1, 1)

    def halt(self) -> None:
        """Start nothing more."""
        self.stop, self.turn = self.next, None

    def cut(self) -> None:
        """Start nothing more, and hold back further outcomes until `report_to()`."""
        self.halt()
        self.watched = True
        self._held = []

    def report_to(self, report: Callable[[int, Outcome, float], None], ended: Callable[[], None] | None = None) -> None:
        """Pass each outcome to `report`, beginning with those held back; call `ended` at the end."""
        self._report = report
        self._ended = ended or self._ended
        self.watched, self.turn = True, None
        held, self._held = self._held or [], None
        for each in held:
            report(*each)

    def landed(self, index: int, outcome: Outcome, seconds: float) -> None:
        """Take the first outcome of the delivery at `index`; a success only once `watched`."""
        if self.marks[index]:
            return
        self.marks[index] = REPORTED
        if self._report is not None:
            self._report(index, outcome, seconds)
        elif self._held is not None:
            self._held.append((index, outcome, seconds))
        else:
            self.troubles.append((index, outcome, seconds))

    def end(self) -> None:
        """
        Report that nothing runs and nothing is left to start.

        Then let go of those it reports to: they hold the flight, and events in a circle stay until the collector comes.
        """
        ended, self._ended, self._report = self._ended, None, None
        if ended is not None:
            ended()


def to_end(flight: Flight[Any], queue: Iterable[Flight[Any]]) -> Sequence[bytearray]:
    """Return the marks of what is to end before `flight` has, itself and those before it in `queue`; none if it has."""
    if not flight.marks.count(0):
        return ()
    if flight.next >= flight.stop:
        return (flight.marks,)
    marks = []
    for each in queue:
        marks.append(each.marks)
        if each is flight:
            break
    return marks
