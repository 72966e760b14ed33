"""The backlog: single deliveries that wait, claimed when they are due and there is room for them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta
from time import monotonic

import structlog

from .clock import earlier, wait_for
from .dead_letters import DeadLetters
from .delivery import DeliveryState
from .flight import Flight
from .leases import Leases
from .outlet import Outlet, Slots
from .service import Background
from .settler import Settler
from .settling import crashed, given_back, overdue, unacknowledged, unreadable
from .storage.base import ClaimedDelivery, DeliveryRecord, WorkQueue

__all__ = ["Backlog"]

log = structlog.get_logger(__name__)

_SUSPECTED = 3  # the attempt from which a delivery that ended without an answer is tried alone


class Backlog:
    """
    Retries, and what a dispatch could not start: one loop claims them and feeds the outlets.

    It sleeps until a wake, until something here makes room or adds to the backlog, or until the next due time.
    """

    def __init__(
        self,
        queue: WorkQueue,
        settler: Settler,
        leases: Leases,
        dead_letters: DeadLetters,
        slots: Slots,
        lease: timedelta,
        settled: asyncio.Event,
    ) -> None:
        """Args: settled is set whenever a delivery that is held ends."""
        self._queue = queue
        self._settler = settler
        self._leases = leases
        self._dead_letters = dead_letters
        self._slots = slots
        self._lease = lease
        self._settled = settled
        self._outlets: Mapping[int, Outlet] = {}
        self._refill = asyncio.Event()
        self._waiting = False  # whether the store may have deliveries that wait
        self._suspects: set[tuple[int, int]] = set()  # deliveries that are to run alone
        self._turn = 0
        self._stopping = False
        self._loop = Background("claim deliveries", self._claim, nudge=self._nudge)

    @property
    def waiting(self) -> bool:
        """Whether the store may have deliveries that wait."""
        return self._waiting

    @property
    def stalled(self) -> float:
        """Seconds for which the loop has been stuck in one step."""
        return self._loop.stalled

    def start(self) -> None:
        """Begin to claim, once there are outlets."""
        self._stopping = False
        self._loop.start()

    async def stop(self) -> None:
        """Claim nothing more. Idempotent."""
        await self._loop.stop()

    def wake(self) -> None:
        """Look again, if anything waits."""
        self._refill.set()

    def serve(self, outlets: Mapping[int, Outlet]) -> None:
        """Claim for these outlets from now on."""
        self._outlets = outlets
        self._refill.set()  # what waited for a subscription that was paused, or had no sink here, may go now

    def expect(self) -> None:
        """Note that deliveries wait in the store."""
        if not self._waiting:
            self._waiting = True
            self._refill.set()

    def written(self, records: Sequence[DeliveryRecord]) -> bool:
        """Note what was written; return whether some of it waits to be claimed."""
        waiting = any(each.state is DeliveryState.PENDING or each.dead_letter is not None for each in records)
        if records and (waiting or self._waiting or any(record.deferred for record in records)):
            self._waiting = True
            self._refill.set()
        return waiting

    def lane_ended(self) -> None:
        """Note that there is room for another delivery."""
        if self._waiting:
            self._refill.set()

    async def _claim(self) -> None:
        """Claim once, as many as can start; sleep when there is nothing more to take."""
        self._refill.clear()
        if not self._waiting or not self._outlets or self._stopping:
            await self._loop.rest(self._refill.wait())
            return
        pause = self._pause()  # looked at before the quotas: where it has just ended there is one
        quotas = self._quotas()
        claim = await self._queue.claim_deliveries(quotas, self._lease)
        left = [each for each in claim.deliveries if not self._over(each, claim.token)]
        for each in claim.unreadable:
            record = unreadable(each.seq, each.subscription_id, each.attempt, claim.token, each.reason)
            self._settler.submit(record, None)
        await self._settler.patiently(lambda: self._dead_letters.tell(left))
        self._suspects |= {(each.seq, each.subscription_id) for each in left if self._suspicious(each)}
        suspect = next((each for each in left if (each.seq, each.subscription_id) in self._suspects), None)
        if suspect is not None:
            await self._fly_alone(suspect, left, claim.token)
            return
        self._fly(left, claim.token)
        if not claim.deliveries:
            self._suspects.clear()
        due = earlier(claim.next_due, pause)
        if not claim.deliveries and due is None and all(quotas.values()) and not self._refill.is_set():
            self._waiting = False  # and nothing was written while we asked
        await self._loop.rest(wait_for(self._refill, due))

    def _pause(self) -> timedelta | None:
        """Return how long until the first open breaker lets a delivery be tried; None without one."""
        now = monotonic()
        left = (outlet.breaker.left(now) for outlet in self._outlets.values() if not outlet.breaker.closed)
        first = min((each for each in left if each > 0), default=None)
        return None if first is None else timedelta(seconds=first)

    def _quotas(self) -> dict[int, int]:
        """Return how many deliveries of each outlet that serves could start now, another one first each time."""
        outlets = [outlet for outlet in self._outlets.values() if outlet.serving]
        self._turn = (self._turn + 1) % (len(outlets) or 1)
        shared = self._slots.limit - self._slots.used
        quotas = {}
        for outlet in outlets[self._turn :] + outlets[: self._turn]:
            quotas[outlet.id] = quota = outlet.free(max(shared, 0))
            shared -= outlet.lanes_for(quota)
        return quotas

    def _fly(self, claimed: Sequence[ClaimedDelivery], token: int) -> None:
        """Start claimed deliveries; each settles by itself."""
        groups: dict[int, list[ClaimedDelivery]] = {}
        for each in claimed:
            groups.setdefault(each.subscription_id, []).append(each)
        for id, group in groups.items():
            outlet = self._outlets.get(id)
            startable = 0 if outlet is None else outlet.accepts(len(group))
            for each in group[startable:]:
                self._settler.submit(given_back(each.seq, id, each.attempt, token, started=False), None)
            if outlet is not None and startable:
                if not outlet.breaker.closed:
                    log.info("breaker half-open", subscription=outlet.subscription.name)
                flight = Flight(group[:startable], _nothing)
                self._leases.hold(outlet, flight, range(startable), token)
                outlet.start(flight)

    async def _fly_alone(self, suspect: ClaimedDelivery, claimed: Sequence[ClaimedDelivery], token: int) -> None:
        """
        Deliver one whose holders keep vanishing, and wait for its end: if it kills, it kills alone.

        The others go back first, as if nothing had been tried: when it does kill, it alone has lost an
        attempt, and they are delivered while its lease runs out. Until then they are tried alone, too.
        """
        self._suspects.discard((suspect.seq, suspect.subscription_id))
        others = [each for each in claimed if each is not suspect]
        if others:
            back = [given_back(each.seq, each.subscription_id, each.attempt, token, started=False) for each in others]
            await self._settler.patiently(lambda: self._queue.settle_deliveries(back))
        await self._settler.written()  # if this one kills, it must not take other answers with it
        self._refill.set()
        self._fly([suspect], token)
        while (suspect.seq, suspect.subscription_id) in self._leases and not self._stopping:
            self._settled.clear()
            await self._loop.rest(self._settled.wait())

    def _suspicious(self, claimed: ClaimedDelivery) -> bool:
        """Whether the holders of the delivery keep vanishing, and it may be the cause."""
        outlet = self._outlets.get(claimed.subscription_id)
        if not claimed.suspect or outlet is None:
            return False
        return claimed.attempt >= min(_SUSPECTED, outlet.subscription.retry.attempts)

    def _over(self, claimed: ClaimedDelivery, token: int) -> bool:
        """Whether no attempt is to be made now; then write down what follows."""
        outlet = self._outlets.get(claimed.subscription_id)
        if outlet is None:
            return False
        policy, what = outlet.subscription.retry, (claimed.seq, claimed.subscription_id, claimed.attempt, token)
        if claimed.unanswered is not None:
            self._settler.submit(*unacknowledged(policy, claimed, claimed.unanswered, token))
        elif policy.exhausted(claimed.attempt):
            self._settler.submit(*crashed(*what))
        elif policy.outlived(claimed.age):
            self._settler.submit(overdue(policy, *what), None)
        else:
            return False
        return True

    def _nudge(self) -> None:
        """Let the loop see that it is to end."""
        self._stopping = True
        self._refill.set()
        self._settled.set()


def _nothing() -> None:
    return None
