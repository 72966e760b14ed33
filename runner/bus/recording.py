"""Record events in one transaction, and hand them straight to the worker of this process where it has room."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from time import monotonic
from typing import Protocol

from ..event import weigh
from ..storage.contract.claims import Claim
from ..storage.contract.events import EventStore, Publication, Receipt, due_at_once
from .callers import Caller

__all__ = ["LocalWorker", "Recording"]


class LocalWorker(Protocol):
    """A worker in the publisher's own process, which takes events that are recorded as leased to it."""

    def lease_for(self, count: int, weight: int) -> timedelta | None:
        """Return the lease under which it would take `count` events of `weight` bytes now; None if it has no room."""

    def take(self, claim: Claim, until: float) -> None:
        """
        Dispatch these events; never refuse them after a lease was given.

        Args:
            until: when that lease ends, on the monotonic clock.
        """


class Recording:
    """Record the events of callers, and answer them."""

    def __init__(self, store: EventStore, announce: Callable[[str], None], local_worker: LocalWorker | None) -> None:
        """Args: announce signals work that was not handed over, with the id of its newest event."""
        self._store = store
        self._announce = announce
        self._local_worker = local_worker

    async def __call__(self, callers: list[Caller]) -> None:
        """Record the events of `callers` in one transaction, and answer them; errors of the store propagate."""
        events = callers[0][0] if len(callers) == 1 else [each for publications, _ in callers for each in publications]
        receipts, handed_over = await self._append(events)
        start = 0
        for publications, answer in callers:
            if not answer.done():  # a caller that was cancelled has its event recorded all the same
                answer.set_result(receipts[start : start + len(publications)])
            start += len(publications)
        if not handed_over:
            self._announce(receipts[-1].id)

    async def _append(self, publications: Sequence[Publication]) -> tuple[Sequence[Receipt], bool]:
        """Record the events; return their receipts, and whether the work went to the worker in this process."""
        lease = None
        if self._local_worker is not None and due_at_once(publications):
            lease = self._local_worker.lease_for(len(publications), weigh([each.event for each in publications]))
        if self._local_worker is None or lease is None:
            return await self._store.append(publications), False
        until = monotonic() + lease.total_seconds()
        receipts, claim = await self._store.append_leased(publications, lease)
        if claim is None or monotonic() >= until:
            return receipts, False  # the lease has ended meanwhile; the work is claimed like any other
        self._local_worker.take(claim, until)
        return receipts, True
