"""The contract of the worker: claim and settle events, then single deliveries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

from ...delivery import Lease
from .claims import CLAIM

if TYPE_CHECKING:
    from .claims import Claim, DeliveryClaim, ExpiredClaim, RegulatedRequest
    from .settlements import AttemptRecord, Death, DeliveryRecord, Settled

__all__ = ["DeliveryQueue", "EventQueue", "WorkQueue"]


class EventQueue(Protocol):
    """Events that wait to be dispatched."""

    async def claim(self, limit: int, lease: timedelta, weight: int = CLAIM) -> Claim:
        """
        Lease at most `limit` events that are due, oldest first. Never waits for another claimer.

        Args:
            weight: no more than weigh so much, but always the first.
        """

    async def contents(self, seqs: Sequence[int]) -> Mapping[int, bytes | None]:
        """Return the data of events whose claim left it out."""

    async def settle(self, settled: Settled) -> int:
        """
        Remove the rows of work still held under the token and record their deliveries, atomically.

        A delivery that is on record already, acknowledged before this, stays as it is.

        Returns:
            how many were still held; the others are not recorded.
        """

    async def promote(self, limit: int) -> int:
        """Move at most `limit` scheduled events that have fallen due into the queue; return how many."""


class DeliveryQueue(Protocol):
    """Single deliveries: those that wait, run for long, or have failed."""

    async def claim_deliveries(self, quotas: Mapping[int, int], lease: timedelta, weight: int = CLAIM) -> DeliveryClaim:
        """
        Lease deliveries that are due.

        Args:
            quotas: for each subscription this caller can serve, how many it can take now; zero says
                that it serves it but has no room. No other subscription is touched or counted.
            weight: as for `claim()`.
        """

    async def claim_regulated(self, request: RegulatedRequest, lease: timedelta, weight: int = CLAIM) -> DeliveryClaim:
        """
        Lease deliveries of one subscription that are due, and whose turn it is; no more than `weight`, but always one.

        In order: only the first of each line, and only once no event before it waits to be dispatched in
        any process. One claim visits so many lines at most; a caller that goes on until there are no `more` has seen
        each, and when the next first one is due. By rate: at most as many as there are permits, each of which is
        charged.
        """

    async def claim_expired(self, limit: int, lease: timedelta) -> ExpiredClaim:
        """
        Lease waiting deliveries of expired events, of at most `limit` events.

        A subscription need not be active, served or free for that; what is a dead letter is left alone. Events that
        were to be dispatched later are due now, and end at their dispatch.
        """

    async def line_up(self, subscription_id: int, order_by: str) -> int:
        """
        Give a turn to each unfinished delivery that has none, before all others; end the turns of finished ones.

        That repairs lines after a change of `order_by`, or writes of a process that did not know of it yet.

        Returns:
            how many turns were given or ended.
        """

    async def settle_deliveries(
        self,
        records: Sequence[DeliveryRecord],
        attempts: Sequence[AttemptRecord] = (),
        ordered: Set[int] = frozenset(),
    ) -> Sequence[tuple[int, int]]:
        """
        Write each record whose delivery is still leased under its token, and the attempts of those.

        Args:
            ordered: ids of the subscriptions whose finished deliveries are to leave their line.

        Returns:
            (seq, subscription id) of what was written.
        """

    async def renew(self, leases: Sequence[Lease], duration: timedelta) -> Sequence[tuple[int, int]]:
        """
        Extend the leases of running deliveries: they end in `duration` from now.

        Returns:
            (seq, subscription id) of those still held.
        """

    async def deaths(self, keys: Sequence[tuple[int, int]]) -> Mapping[tuple[int, int], Death]:
        """Return how these deliveries, given as (seq, subscription id), died; those that are dead."""


class WorkQueue(EventQueue, DeliveryQueue, Protocol):
    """
    The work of a deployment. Every method is one transaction; every time is the database's.

    All raise `StorageUnavailable` when the store cannot be reached; all may be repeated then.
    """
