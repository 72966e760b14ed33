"""The worker: claims, dispatches, delivers, settles."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from time import monotonic

import structlog

from .complaints import Complaints
from .delivery import DeliveryState
from .dispatch import Dispatch
from .leases import Leases
from .limits import WorkerLimits
from .outlet import Flight, Outlet, Slots
from .service import Background
from .settler import Settler
from .settling import crashed, given_back
from .sinks.base import Sink
from .storage.base import Claim, ClaimedDelivery, DeliveryRecord, Registered, Registry, WorkQueue
from .subscription import Matcher

__all__ = ["Worker"]

log = structlog.get_logger(__name__)

_PROMOTED = 1000  # scheduled events moved into the queue at once
_WATCH = 0.25  # seconds between looks at running deliveries for their timeouts
_FRUITLESS = 8  # wakes in a row that brought nothing before wakes are slowed down
_SUSPECTED = 3  # the attempt from which a delivery that ended without an answer is tried alone
_HANDED_OVER = timedelta(seconds=5)  # lease of what publishers hand over: dispatched at once, or its process is gone
_SLOWED = 0.02  # seconds between claims from then on


class Worker:
    """
    Take what is due, hand it to the sinks, write down what became of it.

    Two loops feed the outlets: one claims events and dispatches them, one claims single deliveries that
    wait (retries, and what a dispatch could not start). Both sleep until a wake or the next due time.
    """

    def __init__(
        self,
        queue: WorkQueue,
        registry: Registry,
        sinks: Mapping[str, Sink],
        limits: WorkerLimits,
        *,
        notify: Callable[[], Awaitable[None]],
    ) -> None:
        """Args: notify tells other instances that there are deliveries anyone may take."""
        self._queue = queue
        self._registry = registry
        self._sinks = dict(sinks)
        self._limits = limits
        self._notify = notify
        self._slots = Slots(limits.concurrency)
        self._settled = asyncio.Event()
        self._settler = Settler(queue, self._written)
        self._leases = Leases(queue, self._settler, limits.lease, self._settled)
        self._outlets: dict[int, Outlet] = {}
        self._closed: frozenset[Outlet] = frozenset()
        self._matcher: Matcher[Outlet] = Matcher([])
        self._version = -1
        self._woken = asyncio.Event()
        self._refill = asyncio.Event()
        self._fruitless = 0
        self._held = 0  # events claimed and not yet settled
        self._waiting = False  # whether the store may have deliveries that wait
        self._taking: set[asyncio.Task[None]] = set()
        self._dispatches: dict[Dispatch, asyncio.Task[None]] = {}
        self._suspects: set[tuple[int, int]] = set()  # deliveries that are to run alone
        self._stopping = False
        self._declining = False
        self._stale = False  # whether the subscriptions are to be read again before anything is claimed
        self._turn = 0
        self._complaints = Complaints()
        self._drained = False  # whether the last claim took all there was
        self._loops = (
            Background("claim", self._claim, nudge=self._nudge),
            Background("claim deliveries", self._claim_deliveries, nudge=self._nudge),
        )
        self._watch = Background("watch", self._watch_once, every=_WATCH)
        self._renew = Background("renew", self._leases.renew, every=limits.lease.total_seconds() / 3)

    def wake(self) -> None:
        """Look for work now. Cheap, and safe to call at any time from the event loop."""
        self._woken.set()
        self._refill.set()

    def serve(self, name: str, sink: Sink) -> None:
        """Deliver through `sink` for the subscriptions that name it, from the next reload on."""
        self._sinks[name] = sink

    async def start(self) -> None:
        """Begin to work; whatever is due is found without a wake."""
        self._stopping = self._declining = False
        self._settler.start()
        for loop in (*self._loops, self._watch, self._renew):
            loop.start()

    def decline(self) -> None:
        """Take nothing more from publishers; `stop()` is about to come."""
        self._declining = True

    async def stop(self, grace: timedelta = timedelta(seconds=25)) -> None:
        """
        Stop claiming, give what runs up to `grace` to finish, settle it, and give back the rest.

        What was running when the grace ended is pending again and due at once, for any instance.
        """
        ends = monotonic() + grace.total_seconds()
        self._stopping = self._declining = True
        for loop in self._loops:
            await loop.stop()
        if self._taking:
            await asyncio.wait(self._taking, timeout=max(1.0, ends - monotonic()))
        for dispatch in self._dispatches:
            dispatch.hurry()
        if self._dispatches:
            await asyncio.wait(self._dispatches.values(), timeout=max(1.0, ends - monotonic()))
        while self._leases and monotonic() < ends:
            self._settled.clear()
            await _wait(self._settled, timedelta(seconds=ends - monotonic()))
        await asyncio.gather(*[outlet.stop() for outlet in self._running_outlets()])
        self._leases.give_back()  # without what has still answered
        await self._watch.stop()
        await self._renew.stop()
        await self._settler.stop()
        if self._dispatches:
            await asyncio.wait(self._dispatches.values(), timeout=2.0)
        if self._waiting:
            await self._notify()

    @property
    def busy(self) -> int:
        """How many deliveries run now."""
        return self._slots.used

    async def _claim(self) -> None:
        """Claim once and start the dispatch; sleep when nothing more is due."""
        await self._room()
        if self._stopping:
            return
        limits = self._limits
        self._woken.clear()
        if self._stale:
            await self.reload()
        claim = await self._queue.claim(limits.batch, limits.lease)
        self._drained = len(claim.works) < limits.batch
        if claim.version != self._version:
            # Should that fail, nothing more is claimed before it succeeds: others may be able to.
            self._stale = True
            await self._settler.patiently(self.reload)
        if claim.waiting and not self._waiting:
            self._waiting = True
            self._refill.set()
        if claim.works:
            self._fruitless = 0
            self._launch(claim)
        if claim.scheduled_in is not None and claim.scheduled_in <= timedelta(0):
            await self._queue.promote(_PROMOTED)
        elif len(claim.works) < limits.batch:
            await self._sleep(_earlier(claim.scheduled_in, claim.again_in), found=bool(claim.works))

    def lease_for(self, count: int) -> timedelta | None:
        """Return the lease under which `count` events published here are taken without a claim; None for not now."""
        if self._declining or self._stale or not self._drained or self._held + count > self._limits.batch:
            return None
        return min(self._limits.lease, _HANDED_OVER)

    def take(self, claim: Claim) -> None:
        """Dispatch events that were recorded as leased to this worker."""
        if claim.version == self._version:
            self._launch(claim)
        else:
            task = asyncio.create_task(self._take_late(claim), name="reload")
            self._taking.add(task)
            task.add_done_callback(self._taking.discard)

    async def _take_late(self, claim: Claim) -> None:
        """Dispatch what was taken once the subscriptions have been read again."""
        self._stale = True
        try:
            await self._settler.patiently(self.reload)
        except Exception as error:
            log.error("cannot read the subscriptions", error=type(error).__name__, detail=str(error))
            return  # the lease ends, and whoever can read them takes over
        self._launch(claim)

    def _launch(self, claim: Claim) -> None:
        """Begin to dispatch a claim under the subscriptions known now."""
        if not claim.works:
            return
        dispatch = Dispatch(claim, self._matcher.match, self._closed, crash_limit=self._limits.crash_limit)
        self._held += len(claim.works)
        self._dispatches[dispatch] = asyncio.create_task(self._dispatch(dispatch), name="dispatch")

    async def _room(self) -> None:
        """Return once another batch fits; hurry the oldest dispatch rather than wait for its grace."""
        while self._held >= self._limits.ahead * self._limits.batch and not self._stopping:
            if any(outlet.open and not outlet.running for outlet in self._outlets.values()):
                next(iter(self._dispatches)).hurry()  # somebody could deliver what has not been claimed yet
            self._settled.clear()
            await self._settled.wait()

    async def _sleep(self, due: timedelta | None, *, found: bool) -> None:
        """Sleep until a wake, or until `due`."""
        if not found:
            self._fruitless += 1
            if self._fruitless > _FRUITLESS:
                # Signals that bring nothing, from others' work or from a flood, must not cost a claim each.
                await asyncio.sleep(_SLOWED)
        # Look at least once in a lease, to learn when the lease of an instance that died will end.
        await _wait(self._woken, _earlier(due, self._limits.lease))

    async def _dispatch(self, dispatch: Dispatch) -> None:
        """See one dispatch to its end."""
        try:
            dispatch.start()
            await dispatch.wait(self._limits.grace.total_seconds())
            settled = dispatch.settled(self._limits.lease)
            await self._settler.patiently(lambda: self._queue.settle(settled))
        except Exception as error:
            events = len(dispatch.claim.works)
            log.error("dispatch failed", error=type(error).__name__, detail=str(error), events=events)
            return  # its lease ends, and the events are dispatched again
        finally:
            self._held -= len(dispatch.claim.works)
            del self._dispatches[dispatch]
            self._settled.set()
        for outlet, flight in dispatch.unfinished():
            self._leases.hold(outlet, flight, outlet.in_flight(flight), dispatch.claim.token)
        if self._written(settled.records):
            await self._notify()

    async def reload(self) -> None:
        """Read the subscriptions again and compile the match."""
        version, registered = await self._registry.subscriptions()
        outlets = {each.id: self._outlet(each) for each in registered}
        self._outlets = outlets
        self._closed = frozenset(outlet for outlet in outlets.values() if not outlet.open)
        self._matcher = Matcher((outlet.subscription, outlet) for outlet in outlets.values())
        self._version = version
        self._stale = False
        self._refill.set()  # what waited for a subscription that was paused, or had no sink here, may go now
        log.debug("subscriptions loaded", version=version, count=len(outlets))

    def _outlet(self, registered: Registered) -> Outlet:
        """Return the outlet of a subscription: the one that is there, unless it has changed."""
        known = self._outlets.get(registered.id)
        sink = self._sinks.get(registered.subscription.sink)
        if known and known.subscription == registered.subscription and known.sink is sink:
            known.paused = registered.paused
            return known
        outlet = Outlet(registered.id, registered.subscription, sink, paused=registered.paused, slots=self._slots)
        outlet.room = self._lane_ended
        return outlet

    async def _claim_deliveries(self) -> None:
        """Claim waiting deliveries once, as many as can start; sleep when there is nothing more to take."""
        self._refill.clear()
        if not self._waiting or self._version < 0 or self._stopping:
            await self._refill.wait()
            return
        quotas = self._quotas()
        claim = await self._queue.claim_deliveries(quotas, self._limits.lease)
        due = claim.next_due
        left = [each for each in claim.deliveries if not self._worn_out(each, claim.token)]
        self._suspects |= {(each.seq, each.subscription_id) for each in left if self._suspicious(each)}
        suspect = next((each for each in left if (each.seq, each.subscription_id) in self._suspects), None)
        if suspect is not None:
            await self._fly_alone(suspect, left, claim.token)
            return
        self._fly(left, claim.token)
        if not claim.deliveries:
            self._suspects.clear()
        if not claim.deliveries and due is None and all(quotas.values()) and not self._refill.is_set():
            self._waiting = False  # and nothing was written while we asked
        await _wait(self._refill, due)

    def _quotas(self) -> dict[int, int]:
        """Return how many deliveries of each open outlet could start now, beginning with another one each time."""
        outlets = [outlet for outlet in self._outlets.values() if outlet.open]
        self._turn = (self._turn + 1) % (len(outlets) or 1)
        shared = self._slots.limit - self._slots.used
        quotas = {}
        for outlet in outlets[self._turn :] + outlets[: self._turn]:
            quotas[outlet.id] = quota = outlet.free(max(shared, 0))
            shared -= quota
        return quotas

    def _fly(self, claimed: Sequence[ClaimedDelivery], token: int) -> None:
        """Start claimed deliveries; each settles by itself."""
        groups: dict[int, list[ClaimedDelivery]] = {}
        for each in claimed:
            groups.setdefault(each.subscription_id, []).append(each)
        for id, group in groups.items():
            outlet = self._outlets.get(id)
            if outlet is None or not outlet.open:
                for each in group:
                    self._settler.submit(given_back(each.seq, id, each.attempt, token, started=False), None)
                continue
            flight = Flight(group, _nothing)
            self._leases.hold(outlet, flight, range(len(group)), token)
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
            await self._settled.wait()

    def _suspicious(self, claimed: ClaimedDelivery) -> bool:
        """Whether the holders of the delivery keep vanishing, and it may be the cause."""
        outlet = self._outlets.get(claimed.subscription_id)
        if not claimed.suspect or outlet is None:
            return False
        return claimed.attempt >= min(_SUSPECTED, outlet.subscription.retry.max_attempts)

    def _worn_out(self, claimed: ClaimedDelivery, token: int) -> bool:
        """Whether the delivery has no attempt left; then write it down as dead."""
        outlet = self._outlets.get(claimed.subscription_id)
        if outlet is None or not outlet.subscription.retry.exhausted(claimed.attempt):
            return False
        self._settler.submit(*crashed(claimed.seq, claimed.subscription_id, claimed.attempt, token))
        return True

    def _written(self, records: Sequence[DeliveryRecord]) -> bool:
        """Note what was written; return whether some of it waits to be claimed."""
        if not records:
            return False
        for record in records:
            outlet = self._outlets.get(record.subscription_id)
            self._complaints.note(outlet.subscription.name if outlet else str(record.subscription_id), record)
        waiting = any(record.state is DeliveryState.PENDING for record in records)
        if waiting or self._waiting:
            self._waiting = True
            self._refill.set()
        return waiting

    def _lane_ended(self) -> None:
        self._settled.set()
        if self._waiting:
            self._refill.set()

    async def _watch_once(self) -> None:
        """Cancel deliveries that have run for too long."""
        if self._slots.used:
            now = monotonic()
            for outlet in self._running_outlets():
                outlet.overdue(now)

    def _running_outlets(self) -> set[Outlet]:
        return {*self._outlets.values(), *self._leases.outlets()}

    def _nudge(self) -> None:
        """Let every loop see that it is to end."""
        self._stopping = True
        self._woken.set()
        self._refill.set()
        self._settled.set()


def _earlier(one: timedelta | None, other: timedelta | None) -> timedelta | None:
    if one is None or other is None:
        return one if other is None else other
    return min(one, other)


async def _wait(event: asyncio.Event, longest: timedelta | None) -> None:
    """Return when `event` is set, or after `longest`."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(None if longest is None else max(0.0, longest.total_seconds())):
            await event.wait()


def _nothing() -> None:
    return None
