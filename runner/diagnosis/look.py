"""Read the store for a verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .status import Snapshot, snapshot

if TYPE_CHECKING:
    from ..storage import Storage

__all__ = ["look"]

_UNDISPATCHED = 1000  # events that are matched one by one; what else is queued is taken to be alike


async def look(storage: Storage) -> Snapshot:
    """Return a snapshot of the store, by a few statements of bounded cost."""
    overview, records = storage.overview, storage.records
    return snapshot(
        await overview.queue(),
        await overview.undispatched(_UNDISPATCHED),
        await records.instances(),
        await overview.subscribed(),
        await overview.loads(),
        await overview.recent(),
    )
