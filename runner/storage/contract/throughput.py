"""The contract of the counters by the minute: what every instance has counted, and rates from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from ...service.histogram import Histogram

__all__ = ["BUS", "KEPT", "Counted", "Flow", "Point", "Series", "Throughput", "ThroughputReader"]

BUS = 0
"""The id of no subscription: under it stands what is counted for the bus as a whole."""

KEPT = timedelta(days=7)
"""How long counters are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """
    The counts of one holder for one subscription since the beginning of a minute.

    Attributes:
        holder: who counted; never two at once.
        published: events that were published in the process of an instance, for `BUS`.
        dispatched: events that were given to their subscriptions, also those of other publishers, for `BUS`.
        delivered, dead: deliveries that have ended so; for `BUS` those to all subscriptions.
        failed: attempts of deliveries that go on.
        latency: of those that were delivered, by the number of the bucket in `Histogram`.
        backlog: events and deliveries that waited, for `BUS`; None where they were not counted.
    """

    minute: datetime
    subscription_id: int
    holder: int
    published: int = 0
    dispatched: int = 0
    delivered: int = 0
    failed: int = 0
    dead: int = 0
    latency: Mapping[int, int] = field(default_factory=dict)
    backlog: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """The counts of all instances for one subscription, within some minutes; the attributes are those of `Counted`."""

    published: int = 0
    dispatched: int = 0
    delivered: int = 0
    failed: int = 0
    dead: int = 0
    latency: Histogram = field(default_factory=Histogram)

    @property
    def success_ratio(self) -> float | None:
        """The share of the attempts counted here that delivered; None without any."""
        tried = self.delivered + self.failed + self.dead
        return self.delivered / tried if tried else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """
    The counts of some minutes up to now.

    Attributes:
        seconds: from the first of these minutes in which anything was counted to now.
        flows: by the id of the subscription, and `BUS`.
    """

    seconds: float = 0.0
    flows: Mapping[int, Flow] = field(default_factory=dict)

    def of(self, subscription_id: int) -> Flow:
        """Return what was counted for a subscription, or for `BUS`."""
        return self.flows.get(subscription_id, Flow())

    def rate(self, count: int) -> float:
        """Return how many per second a count is."""
        return count / max(self.seconds, 1.0)


@dataclass(frozen=True, slots=True)
class Point:
    """
    The counts of all instances for one subscription within one step of a series.

    Attributes:
        at: when the step begins.
        backlog: the most that waited; None where they were not counted.
    """

    at: datetime
    flow: Flow
    backlog: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """
    The counts of one subscription, or of `BUS`, step by step.

    Attributes:
        now: by the clock of the store.
        step: how long each is; they begin at multiples of it since 1970.
        points: those steps in which anything was counted, the earliest first; the last may not be over.
    """

    now: datetime
    step: timedelta
    points: Sequence[Point]


class ThroughputReader(Protocol):
    """The seam of those who ask for rates. `Registry.beat()` writes what is read here."""

    async def read(self, minutes: int) -> Throughput:
        """
        Return what was counted in the last minutes, by one statement.

        Its answer has a row for each bucket of each subscription at most, however many minutes and instances there are.

        Args:
            minutes: whole ones before the present one, by the clock of the store.
        """

    async def series(self, subscription_id: int, length: timedelta, step: timedelta) -> Series:
        """
        Return what was counted for a subscription, or for `BUS`, in the last steps, by one statement.

        Args:
            length: how far back, a multiple of `step`.
            step: a multiple of a minute; of five where `length` exceeds one hour, and of an hour beyond seven hours,
                because rows become coarser as they age (`roll_up()`).
        """

    async def roll_up(self, limit: int) -> int:
        """
        Merge rows of minutes older than one hour into rows of five minutes, and those older than seven into hours.

        Instances are merged as well. Return about how many rows it took, in short transactions; fewer than `limit`
        where none is left.
        """

    async def prune(self, keep: timedelta, limit: int) -> int:
        """Delete about `limit` rows that are older, whole minutes, the oldest first; return how many."""
