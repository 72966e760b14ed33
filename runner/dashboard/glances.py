"""Glances: the state of the deployment, looked at once for all who ask within two seconds."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING

from ..diagnosis.look import MINUTES, look
from ..diagnosis.status import Report, judge, snapshot, unreachable
from ..errors import StorageUnavailable
from ..storage.contract.overview import Load, Queue, Recent
from ..storage.contract.throughput import BUS

if TYPE_CHECKING:
    from datetime import datetime

    from ..storage import Storage
    from ..storage.contract.depths import Depth
    from ..storage.contract.throughput import Series
    from .plots import Range

__all__ = ["FRESH", "Glances"]

FRESH = 2.0
"""Seconds for which a look holds."""

_AWAY = unreachable("the store cannot be reached", "start the database")
_HELD = 10.0  # seconds for which a page may show what was looked at for others
_SERIES = 100  # that are held
_SHARE = 0.02  # of the time that looking may take


class Glances:
    """
    Look at the store for the verdict and what it rests on.

    However many ask, there is one look at a time. It holds for two seconds, and for fifty times as long as it took, so
    that looking takes a fiftieth of the time at most.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._report: Report | None = None
        self._stale = 0.0  # when the report is too old
        self._looking = asyncio.Lock()
        self._series: dict[tuple[int, str], tuple[Series, float]] = {}

    async def first(self, chosen: Range) -> tuple[Report, Series | None]:
        """
        Return the verdict and the series of the bus by five statements, none of which grows with what is recorded.

        While a live page is open it is the verdict of `report()`. Otherwise it knows neither the last errors
        nor since when a subscription fails.
        """
        if self._report is not None and monotonic() < self._stale + _HELD:
            return self._report, await self.series(BUS, chosen) if self._report.snapshot else None
        try:
            series = await self.series(BUS, chosen)
            return await self._quick(series.now), series
        except StorageUnavailable:
            return _AWAY, None

    async def _quick(self, now: datetime) -> Report:
        depths = await self._storage.depths.read()
        known = await self._storage.overview.subscribed()
        instances = await self._storage.records.instances()
        counted = await self._storage.throughput.read(MINUTES)
        oldest = now - depths.oldest_queued if depths.queued else None
        queue = Queue(now=now, queued=depths.queued, oldest_at=oldest, scheduled=depths.scheduled)
        waiting = {each.name: each for each in depths.subscriptions}
        loads = {
            each.id: load_of(waiting[name], now) for each, _ in known if (name := each.subscription.name) in waiting
        }
        recent = {BUS: Recent(since=now)}  # no deliveries are looked at, so that rates are those of the counters
        return judge(snapshot(queue, (), instances, known, loads, recent, counted))

    async def report(self) -> Report:
        """Return the verdict and its snapshot; without a snapshot while the store cannot be reached."""
        async with self._looking:
            began = monotonic()
            if self._report is None or began >= self._stale:
                try:
                    self._report = judge(await look(self._storage))
                except StorageUnavailable:
                    self._report = _AWAY
                took = monotonic() - began
                self._stale = monotonic() + max(FRESH, took / _SHARE)
            return self._report

    async def series(self, subscription_id: int, range_: Range) -> Series:
        """Return what was counted for a subscription or the bus; the same series holds for a part of its step."""
        key = subscription_id, range_.name
        held, stale = self._series.get(key, (None, 0.0))
        if held is not None and monotonic() < stale:
            return held
        found = await self._storage.throughput.series(subscription_id, range_.length, range_.step)
        if len(self._series) >= _SERIES:
            self._series.clear()
        self._series[key] = found, monotonic() + max(FRESH, range_.step.total_seconds() / 12)
        return found


def load_of(depth: Depth, now: datetime) -> Load:
    """Return the load of a subscription as far as a gauge tells it: since when the first delivery has been due."""
    oldest = now - depth.oldest_due if depth.pending and depth.oldest_due else None
    return Load(pending=depth.pending, leased=depth.leased, dead=depth.dead, oldest_at=oldest)
