"""Share breaker state between instances."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic

import structlog

from ..policies.breaker import Trip
from ..service.background import Background
from ..storage.contract.registry import Registry
from .outlet import Outlet

__all__ = ["BreakerSync"]

log = structlog.get_logger(__name__)


class BreakerSync:
    """
    Write each breaker that opened or closed here to the store, in the background.

    While the store is unavailable the write is retried; this process acts on its own state at once.
    """

    def __init__(self, registry: Registry, written: Callable[[], Awaitable[None]]) -> None:
        """Args: written is called after a write, so that other instances can be notified."""
        self._registry = registry
        self._written = written
        self._unwritten: dict[int, Outlet] = {}
        self._changed = asyncio.Event()
        self.loop = Background("breakers", self._write, nudge=self._changed.set)

    def start(self) -> None:
        """Begin to write."""
        self.loop.start()

    async def stop(self) -> None:
        """Stop writing; other instances detect for themselves a change that was not written."""
        await self.loop.stop()

    def changed(self, outlet: Outlet) -> None:
        """Queue the change of a breaker to be written."""
        trip = outlet.breaker.trip(monotonic())
        name = outlet.subscription.name
        if trip is None:
            log.info("breaker closed", subscription=name)
        else:
            log.warning("breaker open", subscription=name, trip=trip.number, tries_in=trip.left.total_seconds())
        self._unwritten[outlet.id] = outlet
        self._changed.set()

    def learn(self, outlet: Outlet, trip: Trip | None) -> None:
        """Apply the state in the store, unless this process has a newer one that is not written yet."""
        if self._unwritten.get(outlet.id) is not outlet:
            self._unwritten.pop(outlet.id, None)  # it was about a subscription that has changed since
            outlet.breaker.learn(trip, monotonic())

    async def _write(self) -> None:
        """Write the breakers that have changed; sleep when none has."""
        if not self._unwritten:
            self._changed.clear()
            await self.loop.rest(self._changed.wait())
            return
        for id, outlet in list(self._unwritten.items()):
            breaker, now = outlet.breaker, monotonic()
            trip, number = breaker.trip(now), breaker.trips
            await self._registry.set_breaker(id, trip, known=breaker.known)
            if breaker.trips == number and self._unwritten.get(id) is outlet:  # else it has changed again
                del self._unwritten[id]
        await self._written()
