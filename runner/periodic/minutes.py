"""The minutes: the counts of this instance in each minute, until the store has them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from time import monotonic

from ..service.histogram import Histogram
from ..service.tally import Tally
from ..storage.contract.throughput import BUS, Counted

__all__ = ["Minutes"]

_MINUTE = timedelta(minutes=1)


class Minutes:
    """
    Turn the tally, which only grows, into counts of minutes of the store's clock.

    The store says at each beat what time it is; in between the monotonic clock goes on. What was counted since the last
    look belongs to the minute of the look. Of each minute the counts as a whole are written, again and again while it
    lasts, so that a beat that is repeated, or whose answer was lost, counts nothing twice. When the clock of the store
    has been set back, the same minutes come again, and are counted under another holder.
    """

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._holder = _new_holder()
        self._told: tuple[datetime, float] | None = None  # the time of the store, and when it was read
        self._minute: datetime | None = None  # the newest minute with counts
        self._counted: dict[tuple[datetime, int], Counted] = {}
        self._dirty: set[tuple[datetime, int]] = set()
        self._published = self._dispatched = 0  # of the tally, at the last look
        self._seen: dict[int, tuple[int, int, int, Histogram]] = {}

    def unwritten(self) -> Sequence[Counted]:
        """Return the counts that the store does not have in their current state; none before its time is known."""
        if self._told is not None:
            told, when = self._told
            self._look(told + timedelta(seconds=monotonic() - when))
        return [self._counted[key] for key in sorted(self._dirty)]

    def written(self, counted: Sequence[Counted], now: datetime) -> None:
        """Note that the store has these counts, and what time it was there."""
        self._told = now, monotonic()
        for each in counted:
            key = each.minute, each.subscription_id
            if self._counted.get(key) is each:
                self._dirty.discard(key)
        if self._minute is not None and _begin(now) < self._minute - _MINUTE:
            self._holder, self._minute = _new_holder(), None
            self._counted = {key: self._counted[key] for key in self._dirty}
        else:
            self._counted = {
                key: each for key, each in self._counted.items() if key in self._dirty or key[0] == self._minute
            }

    def note_backlog(self, waiting: int) -> None:
        """Note how many events and deliveries wait in the store; of several in a minute the most."""
        if self._told is not None:
            told, when = self._told
            minute = max(_begin(told + timedelta(seconds=monotonic() - when)), self._minute or _begin(told))
            self._add(minute, Counted(minute=minute, subscription_id=BUS, holder=0, backlog=waiting))

    def _look(self, now: datetime) -> None:
        """Add what was counted since the last look to the minute, which never goes back by itself."""
        minute = max(_begin(now), self._minute or _begin(now))
        published = sum(self._tally.published.values())
        if published > self._published:
            self._add(
                minute, Counted(minute=minute, subscription_id=BUS, holder=0, published=published - self._published)
            )
            self._published = published
        dispatched = self._tally.dispatched
        if dispatched > self._dispatched:
            more = Counted(minute=minute, subscription_id=BUS, holder=0, dispatched=dispatched - self._dispatched)
            self._add(minute, more)
            self._dispatched = dispatched
        for id, each in list(self._tally.outcomes.items()):
            delivered, failed, dead, latency = self._seen.get(id) or (0, 0, 0, Histogram())
            if (each.delivered, each.failed, each.dead) == (delivered, failed, dead):
                continue
            more = Counted(
                minute=minute,
                subscription_id=id,
                holder=0,
                delivered=each.delivered - delivered,
                failed=each.failed - failed,
                dead=each.dead - dead,
                latency=each.latency.since(latency).counts,
            )
            self._seen[id] = each.delivered, each.failed, each.dead, each.latency.copy()
            self._add(minute, more)
            self._add(minute, replace(more, subscription_id=BUS))

    def _add(self, minute: datetime, more: Counted) -> None:
        self._minute = minute
        key = minute, more.subscription_id
        before = self._counted.get(key) or Counted(
            minute=minute, subscription_id=more.subscription_id, holder=self._holder
        )
        latency = Histogram(before.latency)
        latency.merge(Histogram(more.latency))
        self._dirty.add(key)
        self._counted[key] = replace(
            before,
            published=before.published + more.published,
            dispatched=before.dispatched + more.dispatched,
            delivered=before.delivered + more.delivered,
            failed=before.failed + more.failed,
            dead=before.dead + more.dead,
            latency=latency.counts,
            backlog=max((each for each in (before.backlog, more.backlog) if each is not None), default=None),
        )


def _begin(moment: datetime) -> datetime:
    return moment.replace(second=0, microsecond=0)


def _new_holder() -> int:
    return random.getrandbits(63)
