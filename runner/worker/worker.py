"""The worker: claims, dispatches, delivers, settles."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from time import monotonic

import structlog

from ..errors import text_of
from ..policies.limits import WorkerLimits
from ..service.background import Background, spawn
from ..service.clock import earlier, wait_for
from ..sinks.base import Sink
from ..storage.contract.claims import Claim
from ..storage.contract.queue import WorkQueue
from ..storage.contract.registry import Registry
from ..storage.contract.settlements import DeliveryRecord
from .backlog import Backlog
from .breaker_sync import BreakerSync
from .budget import Budget, spend
from .claims_ahead import ClaimsAhead
from .dead_letters import DeadLetters
from .dispatch import Dispatch
from .failure_log import FailureLog
from .intake import Intake
from .leases import Leases
from .orphans import Orphans
from .outlet import Outlet, Slots
from .roster import Roster
from .settlement_writer import SettlementWriter

__all__ = ["Worker"]

log = structlog.get_logger(__name__)

_PROMOTED = 1000  # scheduled events moved into the queue at once
_WATCH = 0.25  # seconds between looks at running deliveries for their timeouts
_IDLE_WAKES = 8  # wakes in a row that brought nothing before wakes are slowed down
_HANDED_OVER = timedelta(seconds=5)  # lease of what publishers hand over: dispatched at once, or its process is gone
_SLOWED = 0.02  # seconds between claims from then on


class Worker:
    """
    Claim due events, deliver them through sinks, and write the outcomes.

    Two loops feed the outlets: the one here claims events and dispatches them, the backlog's claims single
    deliveries that wait. Both sleep until a wake or the next due time. While there is more than one claim takes,
    the next claims are on their way before the deliveries of this one begin.
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
        self._limits = limits
        self._handed_over = min(limits.lease, _HANDED_OVER)
        self._notify = notify
        self._budget = Budget()
        self._intake = Intake(queue, self._budget, limits.lease, crash_limit=limits.crash_limit)
        self._slots = Slots(limits.concurrency, self._budget)
        self._room_freed = asyncio.Event()
        self._dead_letters = DeadLetters(queue)
        self._writer = SettlementWriter(queue, self._dead_letters, self._written, self._written_late)
        self._leases = Leases(queue, self._writer, limits.lease, self._room_freed, self._budget)
        self._backlog = Backlog(
            queue,
            self._intake,
            self._writer,
            self._leases,
            self._dead_letters,
            self._slots,
            limits.lease,
            self._room_freed,
        )
        self._breaker_sync = BreakerSync(registry, self._agreed)
        self._roster = Roster(
            registry,
            sinks,
            self._slots,
            self._breaker_sync,
            on_lane_end=self._on_lane_end,
            on_breaker_change=self._on_breaker_change,
        )
        self._orphans = Orphans(queue, registry, self._writer, limits.lease)
        self._woken = asyncio.Event()
        self._claims = ClaimsAhead(self._intake, self._woken, self._budget, limits)
        self._idle_wakes = 0  # in a row
        self._held = 0  # events claimed and not yet settled
        self._more_waiting = False  # whether the last claim left something
        self._due: timedelta | None = timedelta(0)  # when the next one is worth it, unless woken
        self._taking: set[asyncio.Task[None]] = set()
        self._dispatches: dict[Dispatch, asyncio.Task[None]] = {}
        self._stopping = False
        self._accepting = True  # from publishers in this process
        self._failure_log = FailureLog()
        self._queue_empty = False  # whether the last claim took all there was
        self._loop = Background("claim", self._claim, nudge=self._nudge)
        self._watch = Background("watch", self._watch_once, every=_WATCH)
        self._renew = Background("renew", self._leases.renew, every=limits.lease.total_seconds() / 3)

    def wake(self) -> None:
        """Look for work now. Cheap, and safe to call at any time from the event loop."""
        self._woken.set()
        self._backlog.wake()

    def serve(self, name: str, sink: Sink) -> None:
        """Deliver through `sink` for the subscriptions that name it, from the next reload on."""
        self._roster.serve(name, sink)

    async def start(self) -> None:
        """Begin to work; whatever is due is found without a wake."""
        self._stopping, self._accepting = False, True
        self._writer.start()
        for part in (self._loop, self._backlog, self._watch, self._renew, self._breaker_sync, self._orphans):
            part.start()

    def stop_accepting(self) -> None:
        """Accept nothing more from publishers; `stop()` follows."""
        self._accepting = False

    async def stop(self, grace: timedelta = timedelta(seconds=25)) -> None:
        """
        Stop claiming, give what runs up to `grace` to finish, settle it, and give back the rest.

        What was running when the grace ended is pending again and due at once, for any instance.
        """
        ends = monotonic() + grace.total_seconds()
        self._stopping, self._accepting = True, False
        await asyncio.gather(self._loop.stop(), self._backlog.stop())
        async for sent, claim in self._claims.drain(max(1.0, ends - monotonic())):
            self._accept(claim, sent + self._limits.lease.total_seconds())
        if self._taking:
            await asyncio.wait(self._taking, timeout=max(1.0, ends - monotonic()))
        for dispatch in self._dispatches:
            dispatch.hurry()
        if self._dispatches:
            await asyncio.wait(self._dispatches.values(), timeout=max(1.0, ends - monotonic()))
        while self._leases and monotonic() < ends:
            self._room_freed.clear()
            await wait_for(self._room_freed, timedelta(seconds=ends - monotonic()))
        await asyncio.gather(*[outlet.stop() for outlet in self._running_outlets()])
        self._leases.give_back()  # without what has still answered
        await self._orphans.stop()
        await self._watch.stop()
        await self._renew.stop()
        await self._breaker_sync.stop()
        await self._writer.stop()
        if self._dispatches:
            await asyncio.wait(self._dispatches.values(), timeout=2.0)
        if self._backlog.waiting:
            await self._notify()

    def in_order(self, name: str) -> bool:
        """Whether the deliveries of the subscription wait for each other."""
        return self._roster.in_order(name)

    @property
    def busy(self) -> int:
        """How many deliveries run now."""
        return self._slots.used

    @property
    def stalled(self) -> timedelta:
        """For how long a loop that claims, or keeps what was claimed, has neither gone round nor slept as it should."""
        loops = (self._loop, self._backlog, self._watch, self._renew)
        return timedelta(seconds=max(loop.stalled for loop in loops))

    async def _claim(self) -> None:
        """Claim, once something is due and there is room, and start the dispatch."""
        if not self._claims:
            await self._sleep()
            await self._room()
        self._due = timedelta(0)  # unless the claim says otherwise
        if self._stopping:
            return
        if self._roster.stale:
            await self.reload()
        sent, claim = await self._claims.next()
        until = sent + self._limits.lease.total_seconds()
        if self._expired(claim, until):
            return
        full = claim.more or len(claim.works) >= self._limits.batch
        self._more_waiting = full and claim.version == self._roster.version
        self._claim_ahead(len(claim.works))
        self._queue_empty = not full and not self._claims.unanswered
        if claim.version != self._roster.version:
            # Should that fail, nothing more is claimed before it succeeds: others may be able to.
            self._roster.stale = True
            try:
                await self._writer.patiently(self.reload)
            except BaseException:
                self._budget.claimed -= claim.weight
                raise
        if claim.waiting:
            self._backlog.expect()
        if claim.works or claim.unreadable:
            self._idle_wakes = 0
            self._launch(claim, until)
        elif self._queue_empty:
            self._idle_wakes += 1
        if claim.scheduled_in is not None and claim.scheduled_in <= timedelta(0):
            await self._queue.promote(_PROMOTED)
        elif not full and self._claims.saw_everything(sent):  # else some may have been locked
            self._due = earlier(claim.scheduled_in, claim.again_in)

    def _claim_ahead(self, taken: int = 0) -> None:
        """Send what claims there is room for beside `taken` events, if the last one has left something."""
        if self._more_waiting and not self._roster.stale and not self._stopping:
            self._claims.send(self._unsettled + taken)

    @property
    def _unsettled(self) -> int:
        """How many events are claimed and not settled, but for a batch of those that other sessions hold."""
        return self._held + max(0, self._writer.delayed - self._limits.batch)

    def lease_for(self, count: int, weight: int) -> timedelta | None:
        """Return the lease under which events published here are taken without a claim; None for not now."""
        if not self._accepting or self._roster.stale or not self._queue_empty:
            return None
        if self._unsettled + count > self._limits.batch or weight > self._budget.left:
            return None
        return self._handed_over

    def take(self, claim: Claim, until: float) -> None:
        """Dispatch events that are leased to this worker `until` then."""
        self._budget.claimed += claim.weight
        self._accept(claim, until)

    def _accept(self, claim: Claim, until: float) -> None:
        if claim.version == self._roster.version:
            self._launch(claim, until)
        else:
            task = spawn(self._take_late(claim, until), "reload")
            self._taking.add(task)
            task.add_done_callback(self._taking.discard)

    async def _take_late(self, claim: Claim, until: float) -> None:
        """Dispatch what was taken once the subscriptions have been read again."""
        self._roster.stale = True
        try:
            await self._writer.patiently(self.reload)
        except Exception as error:
            log.error("cannot read the subscriptions", error=type(error).__name__, detail=text_of(error))
            self._budget.claimed -= claim.weight
            return  # the lease ends, and whoever can read them takes over
        self._launch(claim, until)

    def _launch(self, claim: Claim, until: float) -> None:
        """Begin to dispatch a claim under the subscriptions known now, unless its lease is over."""
        if not claim.works and not claim.unreadable:
            self._budget.claimed -= claim.weight
            return
        if self._expired(claim, until):  # whatever was waited for in between
            return
        roster, crash_limit = self._roster, self._limits.crash_limit
        dispatch = Dispatch(claim, roster.matcher, roster.closed, crash_limit=crash_limit, until=until)
        dispatch.start()  # before the task below has its first turn: what is to be delivered waits for nothing else
        self._held += len(claim.works)
        self._dispatches[dispatch] = spawn(self._dispatch(dispatch), "dispatch")

    def _expired(self, claim: Claim, until: float) -> bool:
        """Drop a claim whose lease is over, for others may have taken it over; return whether it is."""
        if monotonic() < until:
            return False
        log.warning("late claim dropped", events=len(claim.works))
        self._budget.claimed -= claim.weight
        return True

    async def _room(self) -> None:
        """Return once another batch fits; hurry the oldest dispatch rather than wait for its grace."""
        # One event goes whatever it weighs, and whatever weight waits for receivers.
        while not self._stopping and (
            self._unsettled >= self._limits.ahead * self._limits.batch or (self._budget.full and self._dispatches)
        ):
            if any(outlet.open and not outlet.running for outlet in self._roster.outlets.values()):
                for dispatch in list(self._dispatches)[:1]:
                    dispatch.hurry()  # somebody could deliver what has not been claimed yet
            self._room_freed.clear()
            await self._room_freed.wait()

    async def _sleep(self) -> None:
        """Sleep until a wake, or until something is due."""
        if self._due == timedelta(0):
            return
        if self._idle_wakes > _IDLE_WAKES:
            # Signals that bring nothing, from others' work or from a flood, must not cost a claim each.
            await asyncio.sleep(_SLOWED)
        # Look at least once in a lease, to learn when the lease of an instance that died will end.
        await self._loop.rest(wait_for(self._woken, earlier(self._due, self._limits.lease)))

    async def _dispatch(self, dispatch: Dispatch) -> None:
        """See one dispatch to its end."""
        try:
            await dispatch.wait(self._limits.grace.total_seconds())
            records = await self._writer.settle(dispatch.settled(self._limits.lease))
        except Exception as error:
            events = len(dispatch.claim.works)
            log.error("dispatch failed", error=type(error).__name__, detail=text_of(error), events=events)
            return  # its lease ends, and the events are dispatched again
        finally:
            self._held -= len(dispatch.claim.works)
            self._budget.claimed -= dispatch.claim.weight
            del self._dispatches[dispatch]
            self._room_freed.set()
            self._claim_ahead()
        unfinished = [(outlet, flight, outlet.in_flight(flight)) for outlet, flight in dispatch.unfinished()]
        if unfinished:
            spend(
                dispatch.claim.works,
                {flight.works[index].seq for _, flight, running in unfinished for index in running},
            )
        for outlet, flight, running in unfinished:
            self._leases.hold(outlet, flight, running, dispatch.claim.token)
        if self._written(records):
            await self._notify()

    async def reload(self) -> None:
        """Read the subscriptions again, and tell every part that serves them."""
        registered = await self._roster.load()
        outlets = self._roster.outlets
        self._dead_letters.learn(registered)
        self._writer.ordered |= {id for id, outlet in outlets.items() if outlet.subscription.order_by is not None}
        self._backlog.serve(outlets)

    def _written(self, records: Sequence[DeliveryRecord]) -> bool:
        """Note what was written; return whether some of it waits to be claimed."""
        for record in records:
            self._failure_log.note(self._roster.name_of(record.subscription_id), record)
        return self._backlog.written(records)

    def _written_late(self, records: Sequence[DeliveryRecord]) -> None:
        """Note what was written of events that another session held."""
        if self._written(records):
            spawn(self._tell_others(), "notify")
        self._room_freed.set()
        self._claim_ahead()

    async def _tell_others(self) -> None:
        await self._notify()

    def _on_breaker_change(self, outlet: Outlet) -> None:
        """Act on a breaker that has opened or closed."""
        if not outlet.breaker.closed:
            self._leases.hand_back(outlet)
        if self._roster.note_breaker(outlet):  # else it has been replaced, and runs out
            self._breaker_sync.changed(outlet)
            self._backlog.wake()

    async def _agreed(self) -> None:
        """Have every instance read the breakers again, this one included: another may have written first."""
        self._roster.stale = True
        self._woken.set()
        await self._notify()

    def _on_lane_end(self, outlet: Outlet) -> None:
        self._room_freed.set()
        self._backlog.lane_ended(outlet)

    async def _watch_once(self) -> None:
        """Cancel deliveries that have run for too long."""
        if self._slots.used:
            now = monotonic()
            for outlet in self._running_outlets():
                outlet.overdue(now)

    def _running_outlets(self) -> set[Outlet]:
        return {*self._roster.outlets.values(), *self._leases.outlets()}

    def _nudge(self) -> None:
        """Let the loop see that it is to end."""
        self._stopping = True
        self._woken.set()
        self._room_freed.set()
