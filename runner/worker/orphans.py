"""Orphans: deliveries that no instance can make any more. They end as dead with the reason."""

from __future__ import annotations

from datetime import timedelta
from time import monotonic

from ..delivery import Lease
from ..service.background import Background
from ..storage.contract.claims import ClaimedDelivery, UnreadableDelivery
from ..storage.contract.queue import DeliveryQueue
from ..storage.contract.registry import Orphan, Registry
from .settlement import dead_untried
from .settlement_writer import SettlementWriter

__all__ = ["Orphans"]

_EVERY = timedelta(seconds=30)  # between two looks
_PATIENCE = timedelta(minutes=10)  # longer than a deployment replaces its processes
_AT_ONCE = 500  # deliveries claimed in one statement


class Orphans:
    """
    Find subscriptions that no instance serves, and end their due deliveries as dead.

    One that was deleted never comes back. Where only the sink is missing, a process that has it may be on its way:
    then it must have been missing at every look for as long as `patience`, as this process saw it.
    """

    def __init__(
        self,
        queue: DeliveryQueue,
        registry: Registry,
        writer: SettlementWriter,
        lease: timedelta,
        *,
        every: timedelta = _EVERY,
        patience: timedelta = _PATIENCE,
    ) -> None:
        self._queue = queue
        self._registry = registry
        self._writer = writer
        self._lease = lease
        self._patience = patience.total_seconds()
        self._since: dict[int, float] = {}  # id of the subscription -> when it was first seen to be one
        self.loop = Background("orphans", self._look, every=every.total_seconds())

    def start(self) -> None:
        """Start the loop."""
        self._since = {}
        self.loop.start()

    async def stop(self) -> None:
        """Stop the loop. Idempotent."""
        await self.loop.stop()

    async def _look(self) -> None:
        orphans = await self._registry.orphans()
        now = monotonic()
        self._since = {orphan.subscription_id: self._since.get(orphan.subscription_id, now) for orphan in orphans}
        for orphan in orphans:
            if orphan.deleted or now - self._since[orphan.subscription_id] >= self._patience:
                await self._bury(orphan)

    async def _bury(self, orphan: Orphan) -> None:
        """Claim the due deliveries, and write them as dead."""
        while True:
            claim = await self._queue.claim_deliveries({orphan.subscription_id: _AT_ONCE}, self._lease)
            claimed: list[ClaimedDelivery | UnreadableDelivery] = [*claim.deliveries, *claim.unreadable]
            for each in claimed:
                self._writer.submit(dead_untried(Lease.of(each, claim.token), orphan.reason), None)
            if not claimed:
                return
            await self._writer.written()
            self.loop.progressed()
