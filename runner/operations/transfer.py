"""Publishing many events batch by batch, as from a file, with an account of what became of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import EventConflict
from ..storage.base import Publication

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta

    from ..bus import EventBus
    from ..event import Event
    from ..storage.base import Receipt

__all__ = ["Transfer"]


class Transfer:
    """
    Publish batches of events, and count them.

    An event whose source and id are taken by another is left out and reported; the rest is published.

    Attributes:
        new: how many events were recorded.
        duplicates: how many had been recorded before.
        conflicts: a line about each that is in conflict, with its place.
    """

    def __init__(
        self,
        bus: EventBus,
        *,
        delay: timedelta | None = None,
        deliver_at: datetime | None = None,
        exported: bool = False,
    ) -> None:
        """
        Publish into `bus`.

        Args:
            delay, deliver_at: when all of them are due, as for `EventBus.publish()`.
            exported: what is recorded is left as it is, also where its time was the bus's own.
        """
        self._bus = bus
        self._delay = delay
        self._deliver_at = deliver_at
        self._exported = exported
        self.new = 0
        self.duplicates = 0
        self.conflicts: list[str] = []

    async def publish(self, batch: Sequence[tuple[str, Event]]) -> Sequence[Receipt]:
        """Publish events, each given with its place (`events.jsonl:17`); return the receipts of those that were."""
        receipts = await self._publish(batch, exported=self._exported)
        again = sum(receipt.duplicate for receipt in receipts)
        self.duplicates += again
        self.new += len(receipts) - again
        return receipts

    async def _publish(self, batch: Sequence[tuple[str, Event]], *, exported: bool) -> Sequence[Receipt]:
        """Publish in order what is in no conflict; halving finds the few that are without a commit for each event."""
        try:
            return await self._bus.publish_many(
                [Publication(event, self._delay, self._deliver_at) for _, event in batch]
            )
        except EventConflict as error:
            if len(batch) == 1:
                [(place, event)] = batch
                if exported and event.time is not None:  # recorded without one, it was exported with the bus's own
                    return await self._publish([(place, event.replace(time=None))], exported=False)
                self.conflicts.append(f"{place}: {error}")
                return []
        half = len(batch) // 2
        first = await self._publish(batch[:half], exported=exported)
        return [*first, *await self._publish(batch[half:], exported=exported)]
