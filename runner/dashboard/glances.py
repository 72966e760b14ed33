"""Glances: the state of the deployment, looked at once for all who ask within two seconds."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING

from ..diagnosis.look import look
from ..diagnosis.status import Report, judge, unreachable
from ..errors import StorageUnavailable

if TYPE_CHECKING:
    from ..storage import Storage
    from ..storage.contract.throughput import Series
    from .plots import Range

__all__ = ["FRESH", "Glances"]

FRESH = 2.0
"""Seconds for which a look holds."""

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

    async def report(self) -> Report:
        """Return the verdict and its snapshot; without a snapshot while the store cannot be reached."""
        async with self._looking:
            began = monotonic()
            if self._report is None or began >= self._stale:
                try:
                    self._report = judge(await look(self._storage))
                except StorageUnavailable:
                    self._report = unreachable("the store cannot be reached", "start the database")
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
