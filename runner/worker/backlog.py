"""The backlog: single deliveries that wait, claimed when they are due and there is room for them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from time import monotonic

import structlog

from ..delivery import DeliveryState
from ..errors import StorageUnavailable
from ..service.background import Background
from ..service.clock import earlier, wait_for
from ..storage.contract.claims import DeliveryClaim, RegulatedRequest
from ..storage.contract.queue import DeliveryQueue
from ..storage.contract.settlements import DeliveryRecord
from ..subscription import Subscription
from .dead_letters import DeadLetters
from .delivery_starter import DeliveryStarter
from .intake import Intake
from .leases import Leases
from .look import Look
from .outlet import Outlet, Slots
from .settlement_writer import SettlementWriter

__all__ = ["Backlog"]

log = structlog.get_logger(__name__)

_CROWDED = timedelta(seconds=1)  # between looks whether there is room for events again
_IDLE_WAKES = 8  # signals in a row that brought nothing before signals are slowed down
_SLOWED = 0.05  # seconds between looks from then on, at least


class Backlog:
    """
    Claim deliveries that wait, retries and those a dispatch could not start, and feed the outlets.

    It sleeps until a wake, until something here makes room or adds to the backlog, or until the next due time.
    All deliveries of a subscription with an order or a rate come this way; for each of these it claims apart.
    """

    def __init__(
        self,
        queue: DeliveryQueue,
        intake: Intake,
        writer: SettlementWriter,
        leases: Leases,
        dead_letters: DeadLetters,
        slots: Slots,
        lease: timedelta,
        room_freed: asyncio.Event,
    ) -> None:
        """Args: room_freed is set whenever a delivery that is held ends."""
        self._queue = queue
        self._intake = intake
        self._leases = leases
        self._slots = slots
        self._lease = lease
        self._room_freed = room_freed
        self._outlets: Mapping[int, Outlet] = {}
        self._refill = asyncio.Event()
        self._signalled = False  # whether the next look is made for a signal
        self._idle_wakes = 0  # such looks in a row that found nothing
        self._began = 0.0  # when the first of the looks did that are not over
        self._lull = 0.0  # until then signals are put off
        self._put_off: asyncio.TimerHandle | None = None
        self._waiting = False  # whether the store may have deliveries that wait
        self._served_first = 0
        self._looks: dict[int, Look] = {}  # of the outlets that have an order or a rate
        self._line_up_at = 0.0
        self._stopping = False
        self.loop = Background("claim deliveries", self._claim, nudge=self._nudge)
        self._starter = DeliveryStarter(intake, writer, leases, dead_letters, room_freed, self.loop.rest)

    @property
    def waiting(self) -> bool:
        """Whether the store may have deliveries that wait."""
        return self._waiting

    def start(self) -> None:
        """Begin to claim, once there are outlets."""
        self._stopping = self._starter.stopping = False
        self.loop.start()

    async def stop(self) -> None:
        """Claim nothing more. Idempotent."""
        if self._put_off is not None:
            self._put_off.cancel()
            self._put_off = None
        await self.loop.stop()

    def wake(self) -> None:
        """Look again, if anything waits; a little later while signals go on that bring nothing."""
        if self._put_off is None:
            self._wake()

    def serve(self, outlets: Mapping[int, Outlet]) -> None:
        """Claim for these outlets from now on."""
        self._outlets = self._starter.outlets = outlets
        self._looks = {id: Look() for id, outlet in outlets.items() if outlet.subscription.regulated}
        self._line_up_at = 0.0
        self._refill.set()  # deliveries of a subscription that was paused, or had no sink here, may start now

    def expect(self) -> None:
        """Note that deliveries wait in the store."""
        if not self._waiting:
            self._waiting = True
            self._look_again()
            self._refill.set()

    def written(self, records: Sequence[DeliveryRecord]) -> bool:
        """Take account of written records; return whether some of them wait to be claimed."""
        waiting = any(each.state is DeliveryState.PENDING or each.dead_letter is not None for each in records)
        if self._looks:
            self._look_again(record.subscription_id for record in records)
        if records and (waiting or self._waiting or any(record.deferred for record in records)):
            self._waiting = True
            self._refill.set()
        return waiting

    def lane_ended(self, outlet: Outlet) -> None:
        """Note that there is room for another delivery of `outlet`, or of any other."""
        look = self._looks.get(outlet.id)
        if look is not None and look.full:
            look.at = 0.0
        if self._waiting:
            self._refill.set()

    def _wake(self) -> None:
        self._put_off = None
        lull = self._lull - monotonic()
        if lull > 0:
            self._put_off = asyncio.get_running_loop().call_later(lull, self._wake)
            return
        self._signalled = True
        self._look_again()
        self._refill.set()

    async def _claim(self) -> None:
        """Claim once, as many as can start; sleep when there is nothing more to take."""
        self._refill.clear()
        signalled, self._signalled = self._signalled, False
        if all(look.over for look in self._looks.values()):
            self._began = monotonic()
        if not self._waiting or not self._outlets or self._stopping:
            await self.loop.rest(self._refill.wait())
            return
        if self._looks and monotonic() >= self._line_up_at:
            await self._line_up()
        # Where receivers take all of the budget, there are quotas for those alone that run nothing here: one each.
        while self._intake.full and len(self._leases) and not self._stopping:
            self._room_freed.clear()
            await self.loop.rest(wait_for(self._room_freed, _CROWDED))
        due = self._pause()  # read before the quotas: a breaker whose pause has just ended has one
        quotas = self._quotas()
        found = False
        for ask in self._asks(quotas):
            sent = monotonic()
            claim = await ask()
            found = found or bool(claim.deliveries)
            due = earlier(due, claim.next_due)
            if not await self._starter.start(claim, sent, sent + self._lease.total_seconds()):
                return
        if not found:
            self._starter.suspects.clear()
        self._slow_down(signalled, found)
        if not found and due is None and all(quotas.values()) and not self._refill.is_set():
            self._waiting = False  # and nothing was written while we asked
        await self.loop.rest(wait_for(self._refill, earlier(due, self._lease if self._looks else None)))

    def _asks(self, quotas: Mapping[int, int]) -> Iterator[Callable[[], Awaitable[DeliveryClaim]]]:
        """Yield the claims to make: one for all outlets, then one for each that has an order or a rate."""
        others = {id: quota for id, quota in quotas.items() if id not in self._looks}
        if others:
            yield partial(self._intake.claim_deliveries, others)
        for id, look in list(self._looks.items()):
            if quotas.get(id, 0) > 0 and id in self._looks:  # it may have been removed since
                yield partial(self._claim_regulated, self._outlets[id].subscription, id, quotas[id], look)

    async def _claim_regulated(self, subscription: Subscription, id: int, quota: int, look: Look) -> DeliveryClaim:
        """Claim for one subscription, unless it is known that there is nothing to claim yet."""
        now = monotonic()
        claim = DeliveryClaim(0, ())
        if look.left(now) <= 0:
            look.begin(now + self._lease.total_seconds())
            request = RegulatedRequest(
                id, quota, subscription.order_by is not None, subscription.rate, look.after, look.since
            )
            try:
                claim = await self._intake.claim_regulated(request)
            except BaseException:
                look.stir()
                raise
            now = monotonic()
            look.end(claim, now, full=len(claim.deliveries) == quota)
        return replace(claim, next_due=None if look.idle else timedelta(seconds=look.left(now)))

    def _slow_down(self, signalled: bool, found: bool) -> None:
        """Delay further signals if the last ones have brought nothing."""
        if found:
            self._idle_wakes = 0
        elif signalled:
            self._idle_wakes += 1
        now = monotonic()
        self._lull = now + max(_SLOWED, now - self._began) if self._idle_wakes > _IDLE_WAKES else 0.0

    async def _line_up(self) -> None:
        """Repair the lines once per lease: a process that did not know of the order may have written deliveries."""
        for id, outlet in list(self._outlets.items()):
            order_by = outlet.subscription.order_by
            if order_by is not None:
                try:
                    mended = await self._queue.line_up(id, order_by)
                except StorageUnavailable:
                    raise
                except Exception as error:  # an event that cannot be read, say, is not to stop the others
                    log.error("cannot line up", subscription=outlet.subscription.name, error=type(error).__name__)
                    continue
                if mended:
                    log.info("lined up", subscription=outlet.subscription.name, deliveries=mended)
        self._line_up_at = monotonic() + self._lease.total_seconds()

    def _look_again(self, ids: Iterable[int] | None = None) -> None:
        """Claim again for these outlets, by default for all."""
        for id in self._looks if ids is None else ids:
            look = self._looks.get(id)
            if look is not None:
                look.stir()

    def _pause(self) -> timedelta | None:
        """Return how long until the first open breaker lets a delivery be tried; None without one."""
        now = monotonic()
        left = (outlet.breaker.left(now) for outlet in self._outlets.values() if not outlet.breaker.closed)
        first = min((each for each in left if each > 0), default=None)
        return None if first is None else timedelta(seconds=first)

    def _quotas(self) -> dict[int, int]:
        """Return how many deliveries of each outlet that serves could start now, another one first each time."""
        outlets = [outlet for outlet in self._outlets.values() if outlet.serving]
        self._served_first = (self._served_first + 1) % (len(outlets) or 1)
        shared = self._slots.left
        quotas = {}
        for outlet in outlets[self._served_first :] + outlets[: self._served_first]:
            quotas[outlet.id] = quota = outlet.free(max(shared, 0))
            shared -= outlet.lanes_for(quota)
        return quotas

    def _nudge(self) -> None:
        """Make the loop see that it must end."""
        self._stopping = self._starter.stopping = True
        self._refill.set()
        self._room_freed.set()
