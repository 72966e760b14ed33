"""Read the store for a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .shares import sinks_of
from .status import Snapshot, snapshot

if TYPE_CHECKING:
    from ..storage import Storage
    from ..subscription import Subscription

__all__ = ["MINUTES", "look", "unserved"]

MINUTES = 5
"""Whole minutes before the current one whose counters are read."""

_MATCHED = 1000  # events that are matched one by one; the rest is estimated from these


async def look(storage: Storage) -> Snapshot:
    """Return a snapshot of the store, by a few statements of bounded cost."""
    overview, records = storage.overview, storage.records
    queue = await overview.queue()
    return snapshot(
        queue=queue,
        undispatched=await overview.undispatched(_MATCHED) if queue.queued else (),
        instances=await records.instances(),
        known=await overview.subscribed(),
        loads=await overview.loads(),
        recent=await overview.recent(),
        throughput=await storage.throughput.read(MINUTES),
        recorded=await overview.recorded(_MATCHED),
    )


async def unserved(storage: Storage) -> Sequence[Subscription]:
    """Return the active subscriptions whose sink no live instance has; none where that is not known."""
    there = sinks_of(await storage.records.instances())
    if there is None:
        return ()
    _, known = await storage.registry.subscriptions()
    return [each.subscription for each in known if each.subscription.sink not in there]
