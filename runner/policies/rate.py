"""Rates as text (`20/s`, `100/m`), and the permits of a rate."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta

__all__ = ["Rate"]

_UNITS = {"s": timedelta(seconds=1), "m": timedelta(minutes=1), "h": timedelta(hours=1)}
_RATE = re.compile(r"([1-9][0-9]{0,8})/([smh])", re.ASCII)
_MICROSECOND = timedelta(microseconds=1)
_BURST = timedelta(milliseconds=100)


@dataclass(frozen=True, slots=True)
class Rate:
    """
    So many per second, minute or hour, evenly: a permit every `interval`.

    What was not used is kept for a burst of 100 ms worth, at least one. The only state is one instant, from which on
    the full rate is available again (the theoretical arrival time of the generic cell rate algorithm, ITU-T I.371 annex
    A). `ahead` is its distance from now: the share of the rate in use; zero or less for none.
    """

    count: int
    unit: str

    @classmethod
    def parse(cls, text: str) -> Rate:
        """Parse a rate. Raise `ValueError` unless it is a whole number above zero, `/` and s, m or h."""
        found = _RATE.fullmatch(text)
        if not found:
            raise ValueError("expected a rate such as 20/s, 100/m or 1000/h")
        return cls(int(found[1]), found[2])

    @property
    def per(self) -> timedelta:
        """The time in which at most `count` may happen."""
        return _UNITS[self.unit]

    @property
    def interval(self) -> timedelta:
        """The time between two permits, in whole microseconds, rounded up."""
        return -(-(self.per // _MICROSECOND) // self.count) * _MICROSECOND

    @property
    def burst(self) -> int:
        """How many may start at once after a pause."""
        return max(1, _BURST // self.interval)

    @property
    def tolerance(self) -> timedelta:
        """How far ahead the instant may be while there is still a permit."""
        return (self.burst - 1) * self.interval

    @property
    def furthest(self) -> timedelta:
        """How far ahead the instant can be; beyond it, the rate or the clock has been changed since."""
        return self.tolerance + self.interval

    def believed(self, ahead: timedelta) -> timedelta:
        """Return `ahead`, or zero if it is out of range."""
        return ahead if ahead <= self.furthest else timedelta(0)

    def permits(self, ahead: timedelta) -> int:
        """Return how many may start now."""
        left = self.tolerance - max(ahead, timedelta(0))
        return 0 if left < timedelta(0) else left // self.interval + 1

    def charged(self, ahead: timedelta, number: int) -> timedelta:
        """Return how far ahead the instant is after `number` have started now."""
        return max(ahead, timedelta(0)) + number * self.interval

    def wait(self, ahead: timedelta) -> timedelta:
        """
        Return the time until more may start: one, or of a rate with a burst half of it.

        So a claim asks at most twenty times a second for permits that come, evenly, a thousand times a second.
        """
        worthwhile = (self.burst + 1) // 2
        return max(ahead + (worthwhile - 1) * self.interval - self.tolerance, timedelta(0))

    def __str__(self) -> str:
        return f"{self.count}/{self.unit}"
