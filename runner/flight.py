"""A flight: deliveries of one outlet that were claimed together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from .delivery import Outcome
from .event import Event

__all__ = ["Flight", "Startable"]


class Startable(Protocol):
    """Something claimed that can be delivered: a `Work` or a `ClaimedDelivery`."""

    seq: int
    event: Event
    attempt: int


W = TypeVar("W", bound=Startable)


class Flight(Generic[W]):
    """
    Deliveries of one outlet that were claimed together.

    Until `cut()`, outcomes other than `ACCEPTED` gather in `troubles`; nothing is kept of a success.
    Afterwards no further delivery starts, and those that were running report one by one.
    """

    __slots__ = (
        "_ended",
        "_held",
        "_report",
        "heard",
        "next",
        "running",
        "stop",
        "told",
        "troubles",
        "watched",
        "works",
    )

    def __init__(self, works: Sequence[W], ended: Callable[[], None]) -> None:
        """Args: ended is called once, when nothing runs and nothing is left to start."""
        self.works = works
        self.next = 0  # index of the first one that has not started
        self.stop = len(works)
        self.running = 0
        self.troubles: list[tuple[int, Outcome, float]] = []  # index, outcome, seconds it took
        self.watched = False  # whether successes are reported too
        self.told = 0  # deliveries whose outcome the breaker knows
        self.heard = 0  # of those that were `silent`, how many it knows
        self._ended = ended
        self._held: list[tuple[int, Outcome, float]] | None = None
        self._report: Callable[[int, Outcome, float], None] | None = None

    @property
    def over(self) -> bool:
        """Whether nothing runs and nothing will start."""
        return self.running == 0 and self.next >= self.stop

    @property
    def clean(self) -> bool:
        """Whether every one of its deliveries has succeeded."""
        return self.running == 0 and self.next == len(self.works) and not self.troubles

    @property
    def silent(self) -> int:
        """How many have succeeded and were not told: whatever neither runs nor is known to have ended."""
        return self.next - self.running - self.told

    def cut(self) -> None:
        """Start nothing more, and hold back what still comes in until `report_to()`."""
        self.stop = self.next
        self.watched = True
        self._held = []

    def report_to(self, report: Callable[[int, Outcome, float], None]) -> None:
        """From now on hand each outcome to `report`, beginning with those held back."""
        self._report = report
        self.watched = True
        held, self._held = self._held or [], None
        for each in held:
            report(*each)

    def landed(self, index: int, outcome: Outcome, seconds: float) -> None:
        """Take the outcome of the delivery at `index`; a success only once `watched`."""
        if self._report is not None:
            self._report(index, outcome, seconds)
        elif self._held is not None:
            self._held.append((index, outcome, seconds))
        else:
            self.troubles.append((index, outcome, seconds))

    def end(self) -> None:
        """Say that nothing runs and nothing is left to start."""
        self._ended()
