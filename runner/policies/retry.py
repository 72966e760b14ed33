"""The retry policy: decides the settlement of every outcome."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import assert_never

from ..delivery import Accepted, AwaitAck, Dead, Deferred, Delivered, Failed, Outcome, Rejected, RetryIn, Settlement

__all__ = ["MAX_DEFERRAL", "MAX_RETRY_AFTER", "RetryPolicy"]

MAX_RETRY_AFTER = timedelta(hours=24)
"""A wait a sink asks for is clamped to this."""

MAX_DEFERRAL = timedelta(days=365)
"""An acknowledgement is not waited for any longer."""

_DELIVERED = Delivered()


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """
    Exponential backoff with jitter: `delay * 2 ** (attempt - 1)`, at most `max_delay`; or the waits of `schedule`.

    `jitter` is the share of the wait that is random, from 0 (none) to 1 (anything from zero to the
    full wait), so that deliveries that failed together do not come back together. A delivery ends with
    `max_attempts`, with the last wait of a `schedule`, or `max_age` after its first attempt, whichever is first.
    """

    max_attempts: int = 20
    delay: timedelta = timedelta(seconds=1)
    max_delay: timedelta = timedelta(hours=1)
    jitter: float = 0.2
    schedule: tuple[timedelta, ...] = ()
    max_age: timedelta | None = None

    @property
    def attempts(self) -> int:
        """How many attempts a delivery has."""
        return min(self.max_attempts, len(self.schedule) + 1) if self.schedule else self.max_attempts

    def settle(
        self,
        outcome: Outcome,
        attempt: int,
        draw: Callable[[], float] = random.random,
        *,
        age: timedelta = timedelta(0),
        left: timedelta | None = None,
    ) -> Settlement:
        """
        Return the settlement of `attempt` that ended with `outcome`.

        Args:
            attempt: the attempt that just ended, counted from 1.
            draw: returns a number in [0, 1).
            age: how long ago the first attempt began.
            left: until the event expires; None if it never does.
        """
        match outcome:
            case Accepted():
                return _DELIVERED
            case Deferred(within):
                return AwaitAck(min(max(within, timedelta(0)), MAX_DEFERRAL))
            case Rejected(reason):
                return Dead(reason)
            case Failed(reason) if attempt >= self.attempts:
                return Dead(f"{reason} (attempt {attempt} of {self.attempts})")
            case Failed(reason, retry_after):
                wait = self.backoff(attempt, draw) if retry_after is None else _clamped(retry_after)
                if self.outlived(age + wait):
                    return Dead(f"{reason} (attempt {attempt}; the next would come after {self._limit()})")
                if left is not None and wait >= left:
                    return Dead(f"{reason} (attempt {attempt}; the event expires before the next one)")
                return RetryIn(wait, reason)
            case _:
                assert_never(outcome)

    def exhausted(self, attempt: int) -> bool:
        """Return whether `attempt`, counted at its claim, is one more than the policy allows."""
        return attempt > self.attempts

    def outlived(self, age: timedelta) -> bool:
        """Return whether an attempt may no longer begin `age` after the first one."""
        return self.max_age is not None and age > self.max_age

    def overdue(self, attempt: int) -> str:
        """Return the reason of death of a delivery whose next attempt, after `attempt`, was due too late."""
        return f"not tried again after attempt {attempt}: it was due too late for {self._limit()}"

    def backoff(self, attempt: int, draw: Callable[[], float] = random.random) -> timedelta:
        """Return the wait after `attempt` failed."""
        if self.schedule:
            full = self.schedule[min(attempt, len(self.schedule)) - 1].total_seconds()
        elif self.delay <= timedelta(0):
            return timedelta(0)
        else:
            full = min(self.delay.total_seconds() * 2 ** min(attempt - 1, 62), self.max_delay.total_seconds())
        return timedelta(seconds=full * (1 - self.jitter * draw()))

    def _limit(self) -> str:
        return "" if self.max_age is None else f"max_age, {self.max_age.total_seconds():g} s from the first attempt on"


def _clamped(retry_after: timedelta) -> timedelta:
    return min(max(retry_after, timedelta(0)), MAX_RETRY_AFTER)
