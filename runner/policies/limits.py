"""The limits of a worker."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

__all__ = ["WorkerLimits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLimits:
    """
    The limits of a worker.

    Attributes:
        batch: events in one claim.
        concurrency: deliveries that run at once; each subscription may have one beyond it.
        lease: how long claimed work is ours; renewed at a third of it while a delivery runs.
        grace: how long a dispatch waits for its deliveries before it writes down what is unfinished.
        stretch: how many times the grace a dispatch takes at most, while its deliveries will have ended by then;
            half of its lease is left in any case.
        ahead: events claimed and not yet settled, as a multiple of `batch`.
        crash_limit: claims of an event before its deliveries are tried one by one.
        max_hops: events that may follow from each other, each published by a handler of the one before.
    """

    batch: int = 500
    concurrency: int = 256
    lease: timedelta = timedelta(seconds=30)
    grace: timedelta = timedelta(milliseconds=100)
    stretch: int = 10
    ahead: int = 2
    crash_limit: int = 3
    max_hops: int = 32
