"""The circuit breaker: suspend deliveries to a failing receiver, and probe it with single ones."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

__all__ = ["Breaker", "BreakerPolicy", "Trip"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerPolicy:
    """
    When deliveries are suspended, and for how long.

    After `failures` failed deliveries in a row for `pause`; then twice as long each time the next one
    fails, too, at most `max_pause`.
    """

    failures: int = 20
    pause: timedelta = timedelta(seconds=10)
    max_pause: timedelta = timedelta(minutes=5)

    def pause_after(self, trips: int) -> timedelta:
        """Return the pause when it opens for the `trips`-th time in a row, counted from 1."""
        doublings = min(trips - 1, 62)
        return timedelta(seconds=min(self.pause.total_seconds() * 2**doublings, self.max_pause.total_seconds()))


@dataclass(frozen=True, slots=True)
class Trip:
    """An open breaker: the number of openings in a row, and the time until a probe (zero or less: now)."""

    number: int
    left: timedelta


class Breaker:
    """
    Closed, open or half-open.

    Closed, it counts failures in a row. Open, nothing is to be tried, and the answers of what was running
    change nothing. Half-open, once the pause is over, one delivery at a time may be tried: an answer
    closes it, a failure opens it again. Times are seconds of the monotonic clock.
    """

    __slots__ = ("_policy", "_until", "failures", "known", "trips")

    def __init__(self, policy: BreakerPolicy | None) -> None:
        """Args: policy is None for a breaker that never opens."""
        self._policy = policy
        self._until: float | None = None  # when a delivery may be tried; None while closed
        self.failures = 0  # in a row, while closed
        self.trips = 0  # in a row, since it was closed
        self.known = 0  # the same as all instances know it

    @property
    def closed(self) -> bool:
        """Whether deliveries run without restriction."""
        return self._until is None

    def left(self, now: float) -> float:
        """Return the seconds until a delivery may be tried; zero if one may."""
        return 0.0 if self._until is None else max(0.0, self._until - now)

    def failed(self, now: float) -> bool:
        """Count a failed delivery; return whether the breaker opened."""
        if self._policy is None or self.left(now) > 0:
            return False
        self.failures += 1
        if self.closed and self.failures < self._policy.failures:
            return False
        self.failures = 0
        self.trips += 1
        self._until = now + self._policy.pause_after(self.trips).total_seconds()
        return True

    def answered(self, now: float) -> bool:
        """Count a delivery that did not fail, a rejected one included; return whether the breaker closed."""
        if self.left(now) > 0:
            return False
        self.failures = 0
        if self.closed:
            return False
        self._close()
        return True

    def trip(self, now: float) -> Trip | None:
        """Return the state to share with other instances; None while closed."""
        return None if self._until is None else Trip(self.trips, timedelta(seconds=self._until - now))

    def learn(self, trip: Trip | None, now: float) -> None:
        """Apply the state shared by other instances."""
        if self._policy is None:
            return
        if trip is not None:
            self.failures, self.trips = 0, trip.number
            self._until = now + trip.left.total_seconds()
        elif not self.closed:
            self._close()
        self.known = self.trips

    def _close(self) -> None:
        self._until = None
        self.failures = self.trips = 0
