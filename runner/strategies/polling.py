"""Polling: wakes this process at intervals."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from datetime import timedelta

from pydantic import Field
from typing_extensions import override

from ..config.duration import PositiveDuration
from ..config.plugin import Options
from ..service.background import Background
from .base import StrategyContext, Wake

__all__ = ["Polling", "PollingOptions"]

TICK = 0.25  # seconds between two looks at whether the push strategies still hear


class PollingOptions(Options):
    """Look for work at intervals, independent of signals."""

    main = "every"

    every: PositiveDuration = Field(
        default=timedelta(seconds=30), description="Time between two looks at the database."
    )
    deaf: PositiveDuration = Field(
        default=timedelta(seconds=2), description="The same while no other strategy is known to hear."
    )

    @override
    def build(self, context: StrategyContext) -> Polling:
        return Polling(self.every, self.deaf, context.deaf)


class Polling:
    """
    Wake this process every `every`, and every `deaf_every` while `deaf()` is true.

    Each interval is shortened by up to a tenth at random, so that the processes of a deployment do not
    ask the database in step.
    """

    def __init__(
        self,
        every: timedelta,
        deaf_every: timedelta | None = None,
        deaf: Callable[[], bool] = lambda: False,
    ) -> None:
        self._every = every.total_seconds()
        self._deaf_every = min(deaf_every or every, every).total_seconds()
        self._deaf = deaf
        self._wake: Wake | None = None
        self._woken_at = 0.0
        self._share = _share()
        self._loop = Background("polling", self._step)

    @property
    def interval(self) -> float:
        """The interval in force now, in seconds."""
        return self._deaf_every if self._deaf() else self._every

    @property
    def detail(self) -> str:
        """The state of the strategy, as `health` shows it."""
        return f"every {self.interval:g} s"

    async def start(self, wake: Wake) -> None:
        """Begin; the first wake comes after one interval."""
        self._wake = wake
        self._woken_at = time.monotonic()
        self._loop.start()

    async def notify(self, event_id: str) -> None:
        """Do nothing: polling reaches no other process."""

    async def stop(self) -> None:
        """Stop waking."""
        await self._loop.stop()

    async def _step(self) -> None:
        """Wait one tick, since the interval may become shorter meanwhile, or wake."""
        left = self._woken_at + self.interval * self._share - time.monotonic()
        if left > 0:
            await asyncio.sleep(min(left, TICK))
            return
        self._woken_at = time.monotonic()
        self._share = _share()
        if self._wake is not None:
            self._wake()


def _share() -> float:
    return random.uniform(0.9, 1.0)
