"""The heartbeat: reports to the store that this instance is alive, how it is, and what it has counted."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from ..service.background import Background, Errands
from ..service.vitals import INTERVAL, Vitals
from ..storage.contract.depths import DepthReader
from ..storage.contract.registry import Health, Instance, Registry
from .minutes import Minutes

__all__ = ["Heartbeat"]

log = structlog.get_logger(__name__)


_SAMPLED = 60.0  # seconds between two looks at the backlog


class Heartbeat:
    """Beat every ten seconds, and once on request; look at the backlog every minute."""

    def __init__(
        self,
        registry: Registry,
        instance: Instance,
        health: Callable[[], Health],
        *,
        vitals: Vitals,
        minutes: Minutes,
        depths: DepthReader,
        set_back: Callable[[], object],
        notice: Callable[..., object] = lambda *_, **__: None,
    ) -> None:
        """
        Prepare to beat.

        Args:
            health: says how the instance is.
            vitals: are told whether the store answers.
            minutes: what this instance counts, which is written with the beat.
            depths: say how much waits.
            notice: has a lifecycle event published.
            set_back: called when the clock of the store has been set back, and work may be due that was not.
        """
        self._registry = registry
        self._instance = instance
        self._health = health
        self._vitals = vitals
        self._minutes = minutes
        self._depths = depths
        self._set_back = set_back
        self._notice = notice
        self._lost = False
        self._beaten = False  # ever
        self._errands = Errands()
        self.loop = Background("heartbeat", self.beat, every=INTERVAL)
        self._sampling = Background("backlog", self._sample, every=_SAMPLED)

    def start(self) -> None:
        """Begin to beat."""
        self.loop.start()
        self._sampling.start()

    async def stop(self) -> None:
        """Beat no more, but for what is counted and not written. Idempotent."""
        await self._sampling.stop()
        await self.loop.stop()
        await self._errands.stop()
        if self._beaten and self._minutes.unwritten():
            await self.beat()

    def say_soon(self) -> None:
        """Tell the store how we are between two beats, because that has changed; what is counted can wait."""
        if self._beaten:
            self._errands.spawn(self._say(), "heartbeat")

    async def _say(self) -> None:
        back, _ = await self._registry.beat(self._instance, self._health())
        if back:
            self._set_back()

    async def beat(self) -> None:
        """Tell the store how we are."""
        counted = self._minutes.unwritten()
        try:
            back, now = await self._registry.beat(self._instance, self._health(), counted)
        except Exception:
            self._vitals.unanswered()
            if self._beaten and not self._lost:
                self._lost = True
                self._notice("store.lost", "", {"instance": self._instance.id})
            raise
        self._minutes.written(counted, now)
        self._vitals.answered()
        self._beaten = True
        if self._lost:
            self._lost = False
            self._notice("store.back", "", {"instance": self._instance.id})
        if back:
            log.warning("clock of the store set back", by=back.total_seconds())
            self._set_back()

    async def _sample(self) -> None:
        seen = await self._depths.read()
        self._minutes.note_backlog(seen.queued + sum(each.pending + each.leased for each in seen.subscriptions))
