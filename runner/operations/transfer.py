"""Publish many events batch by batch, and count the results."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ..errors import EventConflict
from ..event import EXPIRY
from ..storage.contract.events import Publication

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta

    from ..bus.bus import EventBus
    from ..event import Event
    from ..storage.contract.events import Receipt
    from ..subscription import Matcher

__all__ = ["Transfer"]

PATIENCE = 5.0  # seconds in which a batch under way is still waited for after an interrupt


class Transfer:
    """
    Publish batches of events, and count them.

    An event whose source and id are taken by another is left out and reported; the rest is published.

    Attributes:
        new: how many events were recorded.
        unwanted: how many of all match no subscription.
        unknown: how many were on their way when this was interrupted, and may have been recorded.
        duplicates: how many had been recorded before.
        conflicts: a line about each that is in conflict, with its place.
    """

    def __init__(
        self,
        bus: EventBus,
        *,
        delay: timedelta | None = None,
        deliver_at: datetime | None = None,
        expires_in: timedelta | None = None,
        exported: bool = False,
        matcher: Matcher[str] | None = None,
    ) -> None:
        """
        Publish into `bus`.

        Args:
            delay, deliver_at: when all of them are due, as for `EventBus.publish()`.
            expires_in: how long they are of use, but for those that say it themselves.
            exported: what is recorded is left as it is, also where its time was the bus's own; the syntax of URIs is
                not checked.
            matcher: tells who gets them.
        """
        self._bus = bus
        self._delay = delay
        self._deliver_at = deliver_at
        self._expires_in = expires_in
        self._exported = exported
        self._matcher = matcher
        self.new = 0
        self.unwanted = 0
        self.unknown = 0
        self.duplicates = 0
        self.conflicts: list[str] = []

    async def publish(self, batch: Sequence[tuple[str, Event]]) -> Sequence[Receipt]:
        """
        Publish events, each with its place (`events.jsonl:17`); return the receipts of the recorded ones.

        An interrupted call counts what it had under way, too, because that is recorded all the same.
        """
        publishing = asyncio.create_task(self._publish(batch, exported=self._exported))
        try:
            receipts = await asyncio.shield(publishing)
        except asyncio.CancelledError:
            await asyncio.wait({publishing}, timeout=PATIENCE)
            if publishing.done() and not publishing.cancelled() and publishing.exception() is None:
                self._count(batch, publishing.result())
            else:
                self.unknown = len(batch)
            raise
        self._count(batch, receipts)
        return receipts

    def _count(self, batch: Sequence[tuple[str, Event]], receipts: Sequence[Receipt]) -> None:
        again = sum(receipt.duplicate for receipt in receipts)
        self.duplicates += again
        self.new += len(receipts) - again
        if self._matcher is not None:
            self.unwanted += sum(not self._matcher.match(event) for _, event in batch)

    async def _publish(self, batch: Sequence[tuple[str, Event]], *, exported: bool) -> Sequence[Receipt]:
        """Publish in order the events without a conflict; find the others by halving, not by one commit each."""
        try:
            return await self._bus.publish_many(
                [
                    Publication(event, self._delay, self._deliver_at, self._life(event), self._exported)
                    for _, event in batch
                ]
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

    def _life(self, event: Event) -> timedelta | None:
        return None if EXPIRY in event.extensions else self._expires_in
