"""The pruner: deletes events past retention, and other old records."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from time import monotonic

import structlog

from ..service.background import Background
from ..service.clock import wait_for
from ..storage.contract.archive import Archive, Retention

__all__ = ["PrunePage", "Pruner"]

log = structlog.get_logger(__name__)

PrunePage = Callable[[int], Awaitable[int]]
"""Delete about this many of the oldest expired records; return how many were deleted."""

_PAGE = 4000  # events looked at in one transaction
_EVERY = timedelta(minutes=10)  # between two passes
_FIRST = timedelta(seconds=10)  # before the first one
_WHOLE = timedelta(days=1)  # after it, at the latest, a pass begins with the oldest event again


class Pruner:
    """
    Delete the events past retention, page by page from the oldest, and then other records: counters, the audit log.

    After each page it rests as long as the page took. A pass goes on where the last one ended; what was not over then
    (a delivery that is dead, or still tried) is looked at again by a whole pass, which comes after a tenth of the
    shortest retention, and at least once a day. An event may stay that much longer.
    """

    def __init__(
        self,
        archive: Archive,
        retention: Retention,
        others: Sequence[PrunePage] = (),
        *,
        every: timedelta = _EVERY,
        page: int = _PAGE,
    ) -> None:
        """Args: others delete records that are old for another reason; each deletes a page, and returns how many."""
        self._archive = archive
        self._retention = retention
        self._others = tuple(others)
        self._every = every
        self._page = page
        self._after = 0
        self._whole_at = 0.0
        self._wait = min(_FIRST, every)
        self._ending = asyncio.Event()
        self.loop = Background("prune", self._pass, nudge=self._ending.set, longest=60.0)

    async def start(self) -> None:
        """Begin with a pass soon; do nothing if there is nothing that is not kept for ever."""
        self._ending.clear()
        if self._retention.shortest is not None or self._others:
            self.loop.start()

    def keep(self, retention: Retention, others: Sequence[PrunePage]) -> None:
        """Delete by another retention from the next page on; the next pass is a whole one."""
        self._others = tuple(others)
        if retention != self._retention:
            self._retention, self._whole_at = retention, 0.0

    async def stop(self) -> None:
        """Return once the current page is done."""
        await self.loop.stop()

    async def run(self, *, dry_run: bool = False, report: Callable[[int], object] = lambda _number: None) -> int:
        """
        Delete events from where the last pass ended; return how many.

        Args:
            dry_run: only count them.
            report: called with the number of each page.
        """
        total = 0
        while not self._ending.is_set():
            began = monotonic()
            pruned = await self._archive.prune(self._retention, self._after, self._page, dry_run=dry_run)
            self._after = pruned.after
            total += pruned.events
            report(pruned.events)
            self.loop.progressed()
            if pruned.ended:
                break
            await wait_for(self._ending, timedelta(seconds=monotonic() - began))
        return total

    async def _pass(self) -> None:
        """Wait for the next pass, with jitter, and run it."""
        await self.loop.rest(wait_for(self._ending, self._wait * random.uniform(0.5, 1.5)))
        if monotonic() >= self._whole_at:
            self._after = 0
            whole = max(self._every, (self._retention.shortest or _WHOLE) / 10)
            self._whole_at = monotonic() + min(_WHOLE, whole).total_seconds()
        count = await self.run()
        for each in self._others:
            await self._prune(each)
        self._wait = self._every
        if count:
            log.info("pruned", events=count)

    async def _prune(self, prune: PrunePage) -> None:
        while not self._ending.is_set():
            began = monotonic()
            pruned = await prune(self._page)
            self.loop.progressed()
            if pruned < self._page:
                break
            await wait_for(self._ending, timedelta(seconds=monotonic() - began))
