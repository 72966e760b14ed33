"""Report outcomes to the breaker of a subscription."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from ..delivery import ACCEPTED, Failed, Outcome, Withheld
from ..policies.breaker import Breaker
from .flight import Flight
from .lane import LOST

__all__ = ["Feedback"]


class Feedback:
    """Report outcomes to the breaker, and halt the flights of the outlet when it opens."""

    __slots__ = ("_breaker", "_flights", "_on_change")

    def __init__(self, breaker: Breaker, flights: deque[Flight[Any]], on_change: Callable[[], None]) -> None:
        """
        Watch over `breaker`.

        Args:
            flights: those of the outlet, some of which may have something left to start.
            on_change: called when the breaker opens or closes.
        """
        self._breaker = breaker
        self._flights = flights
        self._on_change = on_change

    def successes(self, flight: Flight[Any], now: float) -> None:
        """Count the unreported successes of `flight`."""
        if (succeeded := flight.succeeded) > flight.credited:
            flight.credited = succeeded
            self.outcome(ACCEPTED, now)

    def outcome(self, outcome: Outcome, now: float) -> None:
        """Count one outcome; that a lease was lost, or nothing sent, says nothing of the receiver."""
        if not isinstance(outcome, Failed):
            if self._breaker.answered(now):
                self._on_change()
        elif outcome is LOST or (isinstance(outcome, Withheld) and outcome.blameless):
            return
        elif self._breaker.failed(now):
            self._halt()
            self._on_change()

    def _halt(self) -> None:
        for flight in self._flights:
            if flight.next < flight.stop:
                flight.halt()
                if flight.over:  # so no lane will say it
                    flight.end()
