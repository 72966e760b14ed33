"""The retry policy: the only place that decides what follows an outcome."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import assert_never

from .delivery import Accepted, Dead, Delivered, Failed, Outcome, Rejected, RetryIn, Settlement

__all__ = ["MAX_RETRY_AFTER", "RetryPolicy"]

MAX_RETRY_AFTER = timedelta(hours=24)
"""A wait a sink asks for is clamped to this."""

_DELIVERED = Delivered()


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """
    Exponential backoff with jitter: `delay * 2 ** (attempt - 1)`, at most `max_delay`.

    `jitter` is the share of the delay that is random, from 0 (none) to 1 (anything from zero to the
    full delay), so that deliveries that failed together do not come back together.
    """

    max_attempts: int = 20
    delay: timedelta = timedelta(seconds=1)
    max_delay: timedelta = timedelta(hours=1)
    jitter: float = 0.2

    def settle(self, outcome: Outcome, attempt: int, draw: Callable[[], float] = random.random) -> Settlement:
        """
        Return what is to be written after `attempt` ended with `outcome`.

        Args:
            attempt: the attempt that just ended, counted from 1.
            draw: returns a number in [0, 1).
        """
        match outcome:
            case Accepted():
                return _DELIVERED
            case Rejected(reason):
                return Dead(reason)
            case Failed(reason) if attempt >= self.max_attempts:
                return Dead(f"{reason} (attempt {attempt} of {self.max_attempts})")
            case Failed(reason, retry_after):
                return RetryIn(self.backoff(attempt, draw) if retry_after is None else _clamped(retry_after), reason)
            case _:
                assert_never(outcome)

    def exhausted(self, attempt: int) -> bool:
        """Return whether `attempt`, counted at its claim, is one more than the policy allows."""
        return attempt > self.max_attempts

    def backoff(self, attempt: int, draw: Callable[[], float] = random.random) -> timedelta:
        """Return the wait after `attempt` failed."""
        if self.delay <= timedelta(0):
            return timedelta(0)
        doublings = min(attempt - 1, 62)
        delay = min(self.delay.total_seconds() * 2**doublings, self.max_delay.total_seconds())
        return timedelta(seconds=delay * (1 - self.jitter * draw()))


def _clamped(retry_after: timedelta) -> timedelta:
    return min(max(retry_after, timedelta(0)), MAX_RETRY_AFTER)
