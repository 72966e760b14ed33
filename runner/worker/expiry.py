"""Expiry: ends waiting deliveries of expired events as dead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

from ..delivery import Lease
from ..service.background import Background
from ..service.clock import wait_for
from ..storage.contract.queue import WorkQueue
from .endings import expired
from .settlement import dead_untried
from .settlement_writer import SettlementWriter

__all__ = ["Expiry"]

_EVERY = timedelta(seconds=10)  # the longest between two looks
_LEAST = timedelta(milliseconds=50)  # the shortest
_AT_ONCE = 500  # events in one statement


class Expiry:
    """
    End the deliveries of expired events that nothing else would look at in time.

    A claim of an event or a delivery looks at its expiry itself. What is not claimed, because its subscription is
    paused, not served, at its rate or behind another in its line, is ended here, a few seconds after it expired.
    """

    def __init__(
        self,
        queue: WorkQueue,
        writer: SettlementWriter,
        lease: timedelta,
        wake: Callable[[], object],
        *,
        every: timedelta = _EVERY,
    ) -> None:
        """Args: wake is called after a look that has made a scheduled event due."""
        self._queue = queue
        self._writer = writer
        self._lease = lease
        self._wake = wake
        self._every = every
        self._ending = asyncio.Event()
        self.loop = Background("expiry", self._look, nudge=self._ending.set)

    def start(self) -> None:
        """Start the loop."""
        self._ending.clear()
        self.loop.start()

    async def stop(self) -> None:
        """Stop the loop. Idempotent."""
        await self.loop.stop()

    async def _look(self) -> None:
        """End the deliveries of expired events, and sleep until the next event expires."""
        claim = await self._queue.claim_expired(_AT_ONCE, self._lease)
        for each in claim.deliveries:
            reason = expired(each.expired_at)
            self._writer.submit(dead_untried(Lease.of(each, claim.token), reason), None)
        if claim.deliveries:
            await self._writer.written()
        if claim.due_now:
            self._wake()
        wait = self._every if claim.again_in is None else min(self._every, max(_LEAST, claim.again_in))
        await self.loop.rest(wait_for(self._ending, wait))
