"""Signals to the other processes: that there may be work."""

from __future__ import annotations

import asyncio

from ..service.background import spawn
from ..service.backoff import doubling
from ..strategies.base import NotifyStrategy

__all__ = ["Signals"]

SPACING = 0.001  # seconds between two signals, doubled up to the longest while publishes continue without a pause:
LONGEST_SPACING = 0.005  # the others are busy then, and a signal costs every process more than a publish


class Signals:
    """Send signals through a strategy in the background; merge those that pile up."""

    def __init__(self, strategy: NotifyStrategy) -> None:
        """Args: strategy may be slow."""
        self._strategy = strategy
        self._unsent: str | None = None  # the id the next signal carries
        self._sending: asyncio.Task[None] | None = None

    def notify(self, event_id: str) -> None:
        """Signal the other processes soon."""
        self._unsent = event_id
        if self._sending is None:
            self._sending = spawn(self._send(), "notify")

    async def stop(self) -> None:
        """Return once every signal is sent."""
        if self._sending is not None:
            await asyncio.wait({self._sending})

    async def _send(self) -> None:
        spacings = doubling(SPACING, LONGEST_SPACING)
        try:
            while self._unsent is not None:
                latest, self._unsent = self._unsent, None
                await self._strategy.notify(latest)
                await asyncio.sleep(next(spacings))
        finally:
            self._sending = None
