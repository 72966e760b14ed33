"""The start of claimed deliveries: with others, alone, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from math import inf
from time import monotonic

import structlog

from ..delivery import Lease
from ..storage.contract.claims import ClaimedDelivery, DeliveryClaim
from .dead_letters import DeadLetters
from .endings import expired, set_deadlines, with_extensions
from .flight import Flight
from .intake import Intake
from .leases import Leases
from .outlet import Outlet
from .settlement import crashed, dead_untried, given_back, overdue, unacknowledged, unreadable
from .settlement_writer import SettlementWriter

__all__ = ["DeliveryStarter"]

log = structlog.get_logger(__name__)

_ASKED_AGAIN = timedelta(seconds=1)  # until what could not be fetched is claimed again
_SUSPECTED = 3  # the attempt from which a delivery that ended without an answer is tried alone


class DeliveryStarter:
    """
    Start claimed deliveries in their outlets, settle those that may not be tried again, give back the rest.

    Attributes:
        outlets: by the ids of their subscriptions.
        suspects: deliveries that are to run alone, because their holders keep vanishing.
        stopping: unstarted deliveries are given back, due at once.
    """

    def __init__(
        self,
        intake: Intake,
        writer: SettlementWriter,
        leases: Leases,
        dead_letters: DeadLetters,
        room_freed: asyncio.Event,
        rest: Callable[[Awaitable[bool]], Awaitable[bool]],
    ) -> None:
        """
        Start what is claimed through `intake`.

        Args:
            room_freed: set whenever a delivery that is held ends.
            rest: awaits a step that may take as long as a receiver.
        """
        self._intake = intake
        self._writer = writer
        self._leases = leases
        self._dead_letters = dead_letters
        self._room_freed = room_freed
        self._rest = rest
        self.outlets: Mapping[int, Outlet] = {}
        self.suspects: set[tuple[int, int]] = set()
        self.stopping = False

    async def start(self, claim: DeliveryClaim, sent: float, until: float) -> bool:
        """
        Start a claim that was asked for at `sent` and is leased until `until`, both on the monotonic clock.

        Returns:
            False if one delivery had to run alone.
        """
        self._set_deadlines(claim, sent)
        left = [each for each in claim.deliveries if not self._over(each, claim.token)]
        for each in claim.unreadable:
            self._writer.submit(unreadable(Lease.of(each, claim.token), each.reason), None)
        try:
            await self._writer.patiently(lambda: self._dead_letters.add_reasons(left))
        except BaseException:
            self._return(left, claim.token)
            raise
        self.suspects |= {(each.seq, each.subscription_id) for each in left if self._suspicious(each)}
        suspect = next((each for each in left if (each.seq, each.subscription_id) in self.suspects), None)
        if suspect is not None:
            await self._start_alone(suspect, left, claim.token, until)
            return False
        self._start(await self._fetched(left, claim.token), claim.token, until)
        return True

    def _set_deadlines(self, claim: DeliveryClaim, sent: float) -> None:
        """Set when deliveries are not to begin any more, but for dead letters: those tell of what has expired, too."""
        extended = with_extensions(claim.deliveries)
        if not extended:
            return
        letters = {id for id, outlet in self.outlets.items() if outlet.subscription.dead_letter_of is not None}
        set_deadlines([each for each in extended if each.subscription_id not in letters], claim.now, sent)

    async def _fetched(self, claimed: Sequence[ClaimedDelivery], token: int) -> Sequence[ClaimedDelivery]:
        """Return the deliveries whose data has arrived; give the others back without an attempt."""
        there: Sequence[ClaimedDelivery] = ()
        try:
            there = await self._intake.fetch(claimed)
        finally:
            complete = {id(each) for each in there}
            self._return([each for each in claimed if id(each) not in complete], token)
        return there

    def _return(self, claimed: Iterable[ClaimedDelivery], token: int) -> None:
        """Give back deliveries without data: due at once at a stop, else a little later."""
        due_in = timedelta(0) if self.stopping else _ASKED_AGAIN
        for each in claimed:
            self._writer.submit(replace(given_back(Lease.of(each, token), started=False), due_in=due_in), None)

    def _start(self, claimed: Sequence[ClaimedDelivery], token: int, until: float) -> None:
        """Start claimed deliveries; each settles by itself."""
        groups: dict[int, list[ClaimedDelivery]] = {}
        for each in claimed:
            groups.setdefault(each.subscription_id, []).append(each)
        for id, group in groups.items():
            outlet = self.outlets.get(id)
            startable = 0 if outlet is None else outlet.accepts(len(group))
            for each in group[startable:]:
                self._writer.submit(given_back(Lease.of(each, token), started=False), None)
            if outlet is not None and startable:
                if not outlet.breaker.closed:
                    log.info("breaker half-open", subscription=outlet.subscription.name)
                expiring = any([each.deadline < inf for each in group])
                flight = Flight(group[:startable], until, expiring=expiring)
                self._leases.hold(outlet, flight, range(startable), token)
                outlet.start(flight)

    async def _start_alone(
        self, suspect: ClaimedDelivery, claimed: Sequence[ClaimedDelivery], token: int, until: float
    ) -> None:
        """
        Deliver a suspect alone, and wait for its end: if it kills the process, nothing else is affected.

        The others go back first, as if nothing had been tried: if it kills the process, it alone has lost an attempt,
        and the others are delivered while its lease runs out. Until then they are tried alone, too.
        """
        for each in claimed:
            if each is not suspect:
                self._writer.submit(given_back(Lease.of(each, token), started=False), None)
        await self._writer.written()  # other outcomes must be written before a delivery that may kill the process
        there = await self._fetched([suspect], token)
        if there:
            self.suspects.discard((suspect.seq, suspect.subscription_id))
        self._start(there, token, until)
        while (suspect.seq, suspect.subscription_id) in self._leases and not self.stopping:
            self._room_freed.clear()
            await self._rest(self._room_freed.wait())

    def _suspicious(self, claimed: ClaimedDelivery) -> bool:
        """Return whether the delivery may be the one that kills its holders."""
        outlet = self.outlets.get(claimed.subscription_id)
        if not claimed.suspect or outlet is None:
            return False
        return claimed.attempt >= min(_SUSPECTED, outlet.subscription.retry.attempts)

    def _over(self, claimed: ClaimedDelivery, token: int) -> bool:
        """Return whether no further attempt is allowed; then settle the delivery."""
        outlet = self.outlets.get(claimed.subscription_id)
        if outlet is None:
            return False
        policy, lease = outlet.subscription.retry, Lease.of(claimed, token)
        if claimed.expired is not None:
            left = claimed.deadline - monotonic()
            self._writer.submit(*unacknowledged(policy, lease, claimed.expired, claimed.age, left=left))
        elif policy.exhausted(claimed.attempt):
            self._writer.submit(*crashed(lease))
        elif claimed.deadline <= monotonic():
            self._writer.submit(dead_untried(lease, expired(claimed.event.expires_at)), None)
        elif policy.outlived(claimed.age):
            self._writer.submit(overdue(policy, lease), None)
        else:
            return False
        return True
