"""The contract of the gauges: how much waits in the store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

__all__ = ["Depth", "DepthReader", "Depths"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """
    The deliveries of one subscription that are not delivered.

    Attributes:
        pending, leased, dead: no more than `MOST + 1`; of the first two together, those that are due first.
        oldest_due: for how long the first pending one has been due.
    """

    name: str
    pending: int
    leased: int
    dead: int
    oldest_due: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Depths:
    """
    Depths of all queues at one moment.

    Attributes:
        queued: events that are not dispatched; above `MOST` the width of their positions, which is never too small.
        oldest_queued: the age of the first of them.
        scheduled: events that are due later, no more than `MOST + 1`.
    """

    queued: int
    oldest_queued: timedelta
    scheduled: int
    subscriptions: Sequence[Depth]


class DepthReader(Protocol):
    """The seam of `/metrics`. Not on the hot path; no cost grows with what is recorded."""

    async def read(self) -> Depths:
        """Return how much waits now, by one statement. Raise `StorageUnavailable`."""
