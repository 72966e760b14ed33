"""The intake: claims within a budget of bytes, and fetches large data afterwards."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from time import monotonic
from typing import TypeVar

import structlog
from msgspec.structs import replace

from ..service.tally import Tally
from ..storage.contract.claims import CLAIM, Claim, ClaimedDelivery, DeliveryClaim, RegulatedRequest, Work
from ..storage.contract.queue import WorkQueue
from .budget import Budget

__all__ = ["Intake"]

log = structlog.get_logger(__name__)

T = TypeVar("T")
C = TypeVar("C", Work, ClaimedDelivery)

_LEAST = 64 * 1024  # what a claim may bring after many failures, or where nothing is left; one event in any case
_PIECE = 4 * 1024 * 1024  # of data, in one statement: half a second on a link of 8 MB/s


class Intake:
    """
    Claim from the queue, within the budget.

    A claim that failed (no answer in time, a connection that was lost, no memory) halves what the next one may bring,
    down to one event; one that succeeded doubles it again.

    Attributes:
        budget: what the claims weigh counts towards it.
    """

    def __init__(
        self, queue: WorkQueue, budget: Budget, lease: timedelta, *, crash_limit: int, tally: Tally | None = None
    ) -> None:
        """Args: crash_limit is how often an event may be claimed before its deliveries are tried one by one."""
        self._queue = queue
        self._tally = tally or Tally()
        self.budget = budget
        self._lease = lease
        self._crash_limit = crash_limit
        self._reach = CLAIM

    @property
    def full(self) -> bool:
        """Whether the budget has no room until a dispatch ends, which takes no receiver's time."""
        return self.budget.full and not self.budget.crowded

    async def claim(self, limit: int) -> Claim:
        """
        Lease events that are due, with their data; its weight counts as claimed until it is settled.

        What has crashed too often comes without: nothing of it is delivered from here.
        """
        weight = self._ask()
        self._tally.claims += 1
        self.budget.claimed += weight
        try:
            claim = await self._guarded(lambda: self._queue.claim(limit, self._lease, weight))
            if any([work.size for work in claim.works]):
                claim = await self._completed(claim)
            self.budget.claimed += claim.weight
            return claim
        finally:
            self.budget.claimed -= weight

    async def promote(self, limit: int) -> None:
        """Move scheduled events that are due into the queue, up to `limit` of them."""
        await self._queue.promote(limit)

    async def claim_deliveries(self, quotas: Mapping[int, int]) -> DeliveryClaim:
        """Lease deliveries that are due; data that is left out is to be fetched."""
        return await self._guarded(lambda: self._queue.claim_deliveries(quotas, self._lease, self._ask()))

    async def claim_regulated(self, request: RegulatedRequest) -> DeliveryClaim:
        """Lease deliveries of one subscription that are due, and whose turn it is."""
        return await self._guarded(lambda: self._queue.claim_regulated(request, self._lease, self._ask()))

    async def fetch(self, claimed: Sequence[C]) -> list[C]:
        """
        Fetch the data that their claim left out, in pieces; return those that are complete.

        What has not come in half a lease is left out: a delivery is to be given back, an event is claimed again when
        its lease has ended.
        """
        missing = [each for each in claimed if each.size]
        if not missing:
            return list(claimed)
        ends = monotonic() + self._lease.total_seconds() / 2
        while missing and monotonic() < ends:
            piece = _first(missing, min(_PIECE, self._reach))
            try:
                contents = await self._guarded(partial(self._queue.contents, [each.seq for each in piece]))
            except Exception as error:
                log.warning("events not fetched", count=len(missing), error=type(error).__name__, detail=str(error))
                break
            for each in piece:
                if each.seq in contents:
                    each.event, each.size = each.event.replace(data=contents[each.seq]), 0
            missing = missing[len(piece) :]
        else:
            if missing:
                self._shrink()
                log.warning("events not fetched", count=len(missing), error="it took too long")
        return [each for each in claimed if not each.size]

    async def _completed(self, claim: Claim) -> Claim:
        """Return the claim with the data of its events, without those whose data did not come."""
        wanted = [work for work in claim.works if work.attempt <= self._crash_limit]
        complete = {work.position for work in await self.fetch(wanted)}
        works = [work for work in claim.works if work.position in complete or work.attempt > self._crash_limit]
        return replace(claim, works=works, more=True)

    def _ask(self) -> int:
        return max(_LEAST, min(self._reach, self.budget.left))

    async def _guarded(self, ask: Callable[[], Awaitable[T]]) -> T:
        try:
            answer = await ask()
        except Exception:
            self._shrink()
            raise
        self._reach = min(CLAIM, self._reach * 2)
        return answer

    def _shrink(self) -> None:
        self._reach = max(_LEAST, self._reach // 2)


def _first(missing: Sequence[C], most: int) -> Sequence[C]:
    """Return as many of the first as weigh at most `most`, but at least one."""
    weight = 0
    for number, each in enumerate(missing):
        weight += each.size
        if number and weight > most:
            return missing[:number]
    return missing
