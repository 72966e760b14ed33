"""A scan of the waiting deliveries of an ordered or rated subscription, and the time of the next one."""

from __future__ import annotations

from math import inf

from ..storage.contract.claims import DeliveryClaim

__all__ = ["Look"]

_HELD_UP = 0.025  # seconds between looks whether an earlier event has been dispatched by its holder, at least,
_HELD_UP_MOST = 1.0  # and at most: a quarter of the time for which it has held others up


class Look:
    """
    One look, in as many claims as it takes to go round all lines: a claim visits so many of them at most.

    Only at its end is it known that nothing may go before a certain time. Times are seconds on the monotonic clock.
    """

    __slots__ = ("_due", "_found", "_held_since", "_held_up", "_not_before", "_stirred", "after", "at", "full", "since")

    def __init__(self) -> None:
        self.at = 0.0  # of the next claim
        self.after = ""  # the key where the last one left off
        self.since = ""  # the key where the look began
        self.full = False  # whether the last one found all there was room for
        self._not_before = 0.0  # the rate has no permit until then
        self._due = inf  # when the first of what was seen is
        self._found = False  # whether anything was claimed
        self._held_up = False  # whether something waits for an earlier event to be dispatched
        self._held_since: float | None = None  # over the looks
        self._stirred = False  # whether what was seen may have changed since

    @property
    def over(self) -> bool:
        """Whether it has gone round."""
        return self.after == self.since

    @property
    def idle(self) -> bool:
        """Whether it found nothing, and nothing to come."""
        return self.over and not self._found and not self._held_up and self._due == inf

    def left(self, now: float) -> float:
        """Return the seconds until the next claim; zero if it may be made now."""
        return max(0.0, self.at - now, self._not_before - now)

    def stir(self) -> None:
        """Begin anew at once: something was written that may let a delivery go."""
        self.at, self._stirred = 0.0, True

    def begin(self, at: float) -> None:
        """Begin a claim, and a look unless one goes on; the next one is at `at`, or earlier."""
        if self._stirred or self.over:
            self.since = self.after
            self._due, self._found, self._held_up, self._stirred = inf, False, False, False
        self.at = at

    def end(self, claim: DeliveryClaim, now: float, *, full: bool) -> None:
        """Take over the findings of a claim; `full` if it found all there was room for."""
        self.after, self.since, self.full = claim.after, claim.since, full
        self._found = self._found or bool(claim.deliveries)
        self._held_up = self._held_up or claim.held_up
        if claim.next_due is not None:
            due = now + claim.next_due.total_seconds()
            self._due = min(self._due, due)
            if claim.paced:
                self._not_before = due
        self.at = 0.0 if claim.more else min(self.at, self._due, self._look_up(now))

    def _look_up(self, now: float) -> float:
        """Return when to look again at an event that holds others up; the longer it has, the later."""
        if not self._held_up or self._found:
            self._held_since = None
        if not self._held_up:
            return inf
        self._held_since = now if self._held_since is None else self._held_since
        return now + min(max(_HELD_UP, (now - self._held_since) / 4), _HELD_UP_MOST)
