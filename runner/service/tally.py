"""Tally: the counters of this process since its start, as plain numbers read at a scrape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .histogram import Histogram

__all__ = ["Outcomes", "Tally", "Tries"]

_MOST_SOURCES = 100
_MOST_OF_SCHEDULES = 50  # sources that are schedules, so that hundreds of schedules leave room for others
_LONGEST_SOURCE = 200  # characters: a source may have 64 KiB, and a label is sent at every scrape
OTHER = "other"
"""The label of sources beyond the first hundred, and of sources too long for a label."""


@dataclass(slots=True)
class Tries:
    """
    The results of the attempts of one subscription.

    Attributes:
        results: how many were accepted, failed, rejected, deferred.
        seconds: how long the sink took for each.
    """

    results: dict[str, int] = field(default_factory=dict)
    seconds: Histogram = field(default_factory=Histogram)

    def add(self, result: str, seconds: float, times: int = 1) -> None:
        """Count attempts with one result, each of which took `seconds`."""
        self.results[result] = self.results.get(result, 0) + times
        self.seconds.add(seconds, times)

    def add_quick(self, times: int, total: float) -> None:
        """Count attempts that were accepted, each within `FIRST`, and which took `total` seconds together."""
        if times:
            self.results["accepted"] = self.results.get("accepted", 0) + times
            self.seconds.add_quick(times, total)


@dataclass(slots=True)
class Outcomes:
    """
    The ends of the deliveries of one subscription, as they were written.

    Attributes:
        delivered, dead: deliveries that have ended so.
        failed: attempts of deliveries that go on.
        latency: from the publish to the end, of those that were delivered.
    """

    delivered: int = 0
    dead: int = 0
    failed: int = 0
    latency: Histogram = field(default_factory=Histogram)


class Tally:
    """
    The counts of one process.

    Each part adds to them what it does, for a whole batch at once where there is one, and signals nothing.

    Attributes:
        published: events recorded here, by their source: the first hundred, and `other`.
        publish: how long publishers waited.
        tries, outcomes: by the id of the subscription.
        names: of the subscriptions, by their ids.
        dispatched: events whose dispatch was written.
        schedules_missed: ticks for which nothing was published, by schedule.
    """

    def __init__(self, schedules: Iterable[str] = ()) -> None:
        """Args: schedules are the names of those that are known; see `expect_schedules()`."""
        self.published: dict[str, int] = {}
        self.publish = Histogram()
        self.tries: dict[int, Tries] = {}
        self.outcomes: dict[int, Outcomes] = {}
        self.names: dict[int, str] = {}
        self.dispatched = 0
        self.claims = 0
        self.leases_lost = 0
        self.schedules_missed: dict[str, int] = dict.fromkeys(schedules, 0)

    def add_published(self, sources: Iterable[str], seconds: float) -> None:
        """Count events that a publisher had recorded, by their sources, and how long that took."""
        self.publish.add(seconds)
        self._count(sources, _MOST_SOURCES)

    def add_ticks(self, sources: Iterable[str]) -> None:
        """Count events that a schedule had recorded, for which no publisher waited, by their sources."""
        self._count(sources, _MOST_OF_SCHEDULES)

    def expect_schedules(self, names: Iterable[str]) -> None:
        """Count the missed ticks of these from zero, because a scraper sees no increase from nothing to one."""
        for name in names:
            self.schedules_missed.setdefault(name, 0)

    def add_missed(self, schedule: str, count: int) -> None:
        """Count ticks of a schedule for which nothing was published."""
        self.schedules_missed[schedule] = self.schedules_missed.get(schedule, 0) + count

    def learn_subscriptions(self, names: Mapping[int, str]) -> None:
        """
        Count by these names from now on, and forget the counts of subscriptions that are no more.

        One that is removed and made again has another id and the same name, of which two series would spoil a scrape.
        """
        self.names = dict(names)
        for counts in (self.tries, self.outcomes):
            for id in counts.keys() - names.keys():
                del counts[id]

    def tries_of(self, id: int) -> Tries:
        """Return the attempts of a subscription, to be added to."""
        found = self.tries.get(id)
        if found is None:
            found = self.tries[id] = Tries()
        return found

    def outcomes_of(self, id: int) -> Outcomes:
        """Return what became of the deliveries of a subscription, to be added to."""
        found = self.outcomes.get(id)
        if found is None:
            found = self.outcomes[id] = Outcomes()
        return found

    def _count(self, sources: Iterable[str], most: int) -> None:
        published = self.published
        for source in sources:
            if source in published:
                published[source] += 1
            elif len(source) <= _LONGEST_SOURCE and len(published) < most + (OTHER in published):
                published[source] = 1
            else:
                published[OTHER] = published.get(OTHER, 0) + 1
