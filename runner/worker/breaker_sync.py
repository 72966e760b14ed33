"""The breakers of this process: whatever turns one is told to all instances, and what they tell is taken over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic

import structlog

from ..policies.breaker import Trip
from ..service import Background
from ..storage.base import Registry
from .outlet import Outlet

__all__ = ["Breakers"]

log = structlog.get_logger(__name__)


class Breakers:
    """
    Write down, behind the back of the deliveries, each breaker that opened or closed here.

    While the store is away it tries again and again; this process acts on what it knows at once.
    """

    def __init__(self, registry: Registry, written: Callable[[], Awaitable[None]]) -> None:
        """Args: written is called when others may know something new."""
        self._registry = registry
        self._written = written
        self._unwritten: dict[int, Outlet] = {}
        self._turned = asyncio.Event()
        self._writing = Background("breakers", self._write, nudge=self._turned.set)

    def start(self) -> None:
        """Begin to write."""
        self._writing.start()

    async def stop(self) -> None:
        """End; what could not be written is learnt anew by others."""
        await self._writing.stop()

    def turned(self, outlet: Outlet) -> None:
        """Take note of a breaker that opened or closed."""
        trip = outlet.breaker.trip(monotonic())
        name = outlet.subscription.name
        if trip is None:
            log.info("breaker closed", subscription=name)
        else:
            log.warning("breaker open", subscription=name, trip=trip.number, tries_in=trip.left.total_seconds())
        self._unwritten[outlet.id] = outlet
        self._turned.set()

    def learn(self, outlet: Outlet, trip: Trip | None) -> None:
        """Take over what the store says, unless we know better and have yet to write it."""
        if self._unwritten.get(outlet.id) is not outlet:
            self._unwritten.pop(outlet.id, None)  # it was about a subscription that has changed since
            outlet.breaker.learn(trip, monotonic())

    async def _write(self) -> None:
        """Write down what has turned; sleep when nothing has."""
        if not self._unwritten:
            self._turned.clear()
            await self._turned.wait()
            return
        for id, outlet in list(self._unwritten.items()):
            breaker, now = outlet.breaker, monotonic()
            trip, number = breaker.trip(now), breaker.trips
            await self._registry.set_breaker(id, trip, known=breaker.known)
            if breaker.trips == number and self._unwritten.get(id) is outlet:  # else it has turned again
                del self._unwritten[id]
        await self._written()
