"""The worker: claims, dispatches, delivers, settles."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from datetime import timedelta
from time import monotonic
from typing import Any

import structlog

from .backlog import Backlog
from .breakers import Breakers
from .budget import Budget, spend
from .clock import earlier, wait_for
from .complaints import Complaints
from .dead_letters import DeadLetters
from .dispatch import Dispatch
from .errors import text_of
from .intake import Intake
from .leases import Leases
from .limits import WorkerLimits
from .outlet import Outlet, Slots
from .service import Background, spawn
from .settler import Settler
from .sinks.base import Sink
from .storage.base import Claim, DeliveryRecord, Registered, Registry, WorkQueue
from .strays import Strays
from .subscription import Matcher

__all__ = ["Worker"]

log = structlog.get_logger(__name__)

_PROMOTED = 1000  # scheduled events moved into the queue at once
_WATCH = 0.25  # seconds between looks at running deliveries for their timeouts
_FRUITLESS = 8  # wakes in a row that brought nothing before wakes are slowed down
_HANDED_OVER = timedelta(seconds=5)  # lease of what publishers hand over: dispatched at once, or its process is gone
_SLOWED = 0.02  # seconds between claims from then on


class Worker:
    """
    Take what is due, hand it to the sinks, write down what became of it.

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
        self._registry = registry
        self._sinks = dict(sinks)
        self._limits = limits
        self._handed_over = min(limits.lease, _HANDED_OVER)
        self._notify = notify
        self._budget = Budget()
        self._intake = Intake(queue, self._budget, limits.lease, crash_limit=limits.crash_limit)
        self._slots = Slots(limits.concurrency, self._budget)
        self._settled = asyncio.Event()
        self._dead_letters = DeadLetters(queue)
        self._settler = Settler(queue, self._dead_letters, self._written)
        self._leases = Leases(queue, self._settler, limits.lease, self._settled, self._budget)
        self._backlog = Backlog(
            queue,
            self._intake,
            self._settler,
            self._leases,
            self._dead_letters,
            self._slots,
            limits.lease,
            self._settled,
        )
        self._breakers = Breakers(registry, self._agreed)
        self._strays = Strays(queue, registry, self._settler, limits.lease)
        self._outlets: dict[int, Outlet] = {}
        self._closed: frozenset[Outlet] = frozenset()
        self._matcher: Matcher[Outlet] = Matcher([])
        self._version = -1
        self._woken = asyncio.Event()
        self._fruitless = 0
        self._held = 0  # events claimed and not yet settled
        self._claims: deque[tuple[float, asyncio.Task[Claim]]] = deque()  # on their way ahead of the loop, since when
        self._asked = 0  # claims whose answer is not taken yet
        self._failed_at = 0.0  # when one has last failed
        self._plenty = False  # whether the last claim left something
        self._due: timedelta | None = timedelta(0)  # when the next one is worth it, unless woken
        self._taking: set[asyncio.Task[None]] = set()
        self._dispatches: dict[Dispatch, asyncio.Task[None]] = {}
        self._stopping = False
        self._declining = False
        self._stale = False  # whether the subscriptions are to be read again before anything is claimed
        self._complaints = Complaints()
        self._drained = False  # whether the last claim took all there was
        self._loop = Background("claim", self._claim, nudge=self._nudge)
        self._watch = Background("watch", self._watch_once, every=_WATCH)
        self._renew = Background("renew", self._leases.renew, every=limits.lease.total_seconds() / 3)

    def wake(self) -> None:
        """Look for work now. Cheap, and safe to call at any time from the event loop."""
        self._woken.set()
        self._backlog.wake()

    def serve(self, name: str, sink: Sink) -> None:
        """Deliver through `sink` for the subscriptions that name it, from the next reload on."""
        self._sinks[name] = sink

    async def start(self) -> None:
        """Begin to work; whatever is due is found without a wake."""
        self._stopping = self._declining = False
        self._settler.start()
        for part in (self._loop, self._backlog, self._watch, self._renew, self._breakers, self._strays):
            part.start()

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
        await asyncio.gather(self._loop.stop(), self._backlog.stop())
        await self._end_claims(max(1.0, ends - monotonic()))
        if self._taking:
            await asyncio.wait(self._taking, timeout=max(1.0, ends - monotonic()))
        for dispatch in self._dispatches:
            dispatch.hurry()
        if self._dispatches:
            await asyncio.wait(self._dispatches.values(), timeout=max(1.0, ends - monotonic()))
        while self._leases and monotonic() < ends:
            self._settled.clear()
            await wait_for(self._settled, timedelta(seconds=ends - monotonic()))
        await asyncio.gather(*[outlet.stop() for outlet in self._running_outlets()])
        self._leases.give_back()  # without what has still answered
        await self._strays.stop()
        await self._watch.stop()
        await self._renew.stop()
        await self._breakers.stop()
        await self._settler.stop()
        if self._dispatches:
            await asyncio.wait(self._dispatches.values(), timeout=2.0)
        if self._backlog.waiting:
            await self._notify()

    def in_order(self, name: str) -> bool:
        """Whether the deliveries of the subscription wait for each other."""
        subscriptions = (outlet.subscription for outlet in self._outlets.values())
        return any(each.name == name and each.order_by is not None for each in subscriptions)

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
        if self._stale:
            await self.reload()
        sent, claim = await self._next()
        until = sent + self._limits.lease.total_seconds()
        if monotonic() >= until:
            log.warning("late claim dropped", events=len(claim.works))
            self._budget.claimed -= claim.weight
            return  # others may have taken it over
        full = claim.more or len(claim.works) >= self._limits.batch
        self._plenty = full and claim.version == self._version
        self._ask_ahead(len(claim.works))
        self._drained = not full and not self._asked
        if claim.version != self._version:
            # Should that fail, nothing more is claimed before it succeeds: others may be able to.
            self._stale = True
            try:
                await self._settler.patiently(self.reload)
            except BaseException:
                self._budget.claimed -= claim.weight
                raise
        if claim.waiting:
            self._backlog.expect()
        if claim.works or claim.unreadable:
            self._fruitless = 0
            self._launch(claim, until)
        elif self._drained:
            self._fruitless += 1
        if claim.scheduled_in is not None and claim.scheduled_in <= timedelta(0):
            await self._queue.promote(_PROMOTED)
        elif not full and sent > self._failed_at:  # else it may have passed over what the failed one had locked
            self._due = earlier(claim.scheduled_in, claim.again_in)

    async def _next(self) -> tuple[float, Claim]:
        """Return the answer to the oldest claim on its way, or to a new one, and when it was sent."""
        sent, asked = self._claims.popleft() if self._claims else (monotonic(), self._ask())
        try:
            return sent, await asked
        except BaseException:
            self._failed_at = monotonic()
            raise
        finally:
            self._asked -= 1

    def _ask(self) -> Coroutine[Any, Any, Claim]:
        """Claim what is due now; it counts until its answer is taken."""
        self._woken.clear()
        self._asked += 1
        return self._intake.claim(self._limits.batch)

    async def _end_claims(self, timeout: float) -> None:
        """Take over what comes of the claims on their way within `timeout` seconds; the lease of a later one ends."""
        claims, self._claims = {asked: sent for sent, asked in self._claims}, deque()
        self._asked -= len(claims)
        if not claims:
            return
        done, late = await asyncio.wait(claims, timeout=timeout)
        for asked in done:
            [ended] = await asyncio.gather(asked, return_exceptions=True)
            if isinstance(ended, BaseException):
                log.warning("claim failed", error=type(ended).__name__, detail=text_of(ended))
            else:
                self._accept(ended, claims[asked] + self._limits.lease.total_seconds())
        for asked in late:
            asked.cancel()
        if late:
            await asyncio.wait(late, timeout=1.0)

    def _ask_ahead(self, taken: int = 0) -> None:
        """Send what claims there is room for beside `taken` events, if the last one has left something."""
        if not self._plenty or self._stale or self._stopping:
            return
        batch = self._limits.batch
        room = self._limits.ahead * batch - self._held - self._asked * batch - taken
        for _ in range(room // batch):
            if self._budget.full:
                return
            self._claims.append((monotonic(), asyncio.create_task(self._ask(), name="claim ahead")))

    def lease_for(self, count: int, weight: int) -> timedelta | None:
        """Return the lease under which events published here are taken without a claim; None for not now."""
        if self._declining or self._stale or not self._drained or self._held + count > self._limits.batch:
            return None
        return None if weight > self._budget.left else self._handed_over

    def take(self, claim: Claim, until: float) -> None:
        """Dispatch events that are leased to this worker `until` then."""
        self._budget.claimed += claim.weight
        self._accept(claim, until)

    def _accept(self, claim: Claim, until: float) -> None:
        if claim.version == self._version:
            self._launch(claim, until)
        else:
            task = spawn(self._take_late(claim, until), "reload")
            self._taking.add(task)
            task.add_done_callback(self._taking.discard)

    async def _take_late(self, claim: Claim, until: float) -> None:
        """Dispatch what was taken once the subscriptions have been read again."""
        self._stale = True
        try:
            await self._settler.patiently(self.reload)
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
        if monotonic() >= until:  # whatever was waited for in between: others may have taken it over
            log.warning("late claim dropped", events=len(claim.works))
            self._budget.claimed -= claim.weight
            return
        dispatch = Dispatch(claim, self._matcher, self._closed, crash_limit=self._limits.crash_limit, until=until)
        dispatch.start()  # before the task below has its first turn: what is to be delivered waits for nothing else
        self._held += len(claim.works)
        self._dispatches[dispatch] = spawn(self._dispatch(dispatch), "dispatch")

    async def _room(self) -> None:
        """Return once another batch fits; hurry the oldest dispatch rather than wait for its grace."""
        # One event goes whatever it weighs, and whatever weight waits for receivers.
        while not self._stopping and (
            self._held >= self._limits.ahead * self._limits.batch or (self._budget.full and self._dispatches)
        ):
            if any(outlet.open and not outlet.running for outlet in self._outlets.values()):
                next(iter(self._dispatches)).hurry()  # somebody could deliver what has not been claimed yet
            self._settled.clear()
            await self._settled.wait()

    async def _sleep(self) -> None:
        """Sleep until a wake, or until something is due."""
        if self._due == timedelta(0):
            return
        if self._fruitless > _FRUITLESS:
            # Signals that bring nothing, from others' work or from a flood, must not cost a claim each.
            await asyncio.sleep(_SLOWED)
        # Look at least once in a lease, to learn when the lease of an instance that died will end.
        await self._loop.rest(wait_for(self._woken, earlier(self._due, self._limits.lease)))

    async def _dispatch(self, dispatch: Dispatch) -> None:
        """See one dispatch to its end."""
        try:
            await dispatch.wait(self._limits.grace.total_seconds())
            records = await self._settler.settle(dispatch.settled(self._limits.lease))
        except Exception as error:
            events = len(dispatch.claim.works)
            log.error("dispatch failed", error=type(error).__name__, detail=text_of(error), events=events)
            return  # its lease ends, and the events are dispatched again
        finally:
            self._held -= len(dispatch.claim.works)
            self._budget.claimed -= dispatch.claim.weight
            del self._dispatches[dispatch]
            self._settled.set()
            self._ask_ahead()
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
        """Read the subscriptions again and compile the match."""
        version, registered = await self._registry.subscriptions()
        outlets = {each.id: self._outlet(each) for each in registered}
        self._outlets = outlets
        self._closed = frozenset(outlet for outlet in outlets.values() if not outlet.immediate)
        self._dead_letters.learn(registered)
        self._matcher = Matcher((outlet.subscription, outlet) for outlet in outlets.values())
        self._version = version
        self._stale = False
        self._settler.ordered |= {id for id, outlet in outlets.items() if outlet.subscription.order_by is not None}
        self._backlog.serve(outlets)
        log.debug("subscriptions loaded", version=version, count=len(outlets))

    def _outlet(self, registered: Registered) -> Outlet:
        """Return the outlet of a subscription: the one that is there, unless it has changed."""
        known = self._outlets.get(registered.id)
        sink = self._sinks.get(registered.subscription.sink)
        if known and known.subscription == registered.subscription and known.sink is sink:
            known.paused = registered.paused
            outlet = known
        else:
            outlet = Outlet(
                registered.id,
                registered.subscription,
                sink,
                paused=registered.paused,
                slots=self._slots,
                on_lane_end=self._on_lane_end,
                on_breaker_change=self._on_breaker_change,
            )
        self._breakers.learn(outlet, registered.breaker)
        return outlet

    def _written(self, records: Sequence[DeliveryRecord]) -> bool:
        """Note what was written; return whether some of it waits to be claimed."""
        for record in records:
            outlet = self._outlets.get(record.subscription_id)
            self._complaints.note(outlet.subscription.name if outlet else str(record.subscription_id), record)
        return self._backlog.written(records)

    def _on_breaker_change(self, outlet: Outlet) -> None:
        """Act on a breaker that has opened or closed."""
        if not outlet.breaker.closed:
            self._leases.hand_back(outlet)
        if self._outlets.get(outlet.id) is outlet:  # else it has been replaced, and runs out
            self._closed = frozenset(each for each in self._outlets.values() if not each.immediate)
            self._breakers.turned(outlet)
            self._backlog.wake()

    async def _agreed(self) -> None:
        """Have every instance read how the breakers are, this one too: it may not have been the first to write."""
        self._stale = True
        self._woken.set()
        await self._notify()

    def _on_lane_end(self, outlet: Outlet) -> None:
        self._settled.set()
        self._backlog.lane_ended(outlet)

    async def _watch_once(self) -> None:
        """Cancel deliveries that have run for too long."""
        if self._slots.used:
            now = monotonic()
            for outlet in self._running_outlets():
                outlet.overdue(now)

    def _running_outlets(self) -> set[Outlet]:
        return {*self._outlets.values(), *self._leases.outlets()}

    def _nudge(self) -> None:
        """Let the loop see that it is to end."""
        self._stopping = True
        self._woken.set()
        self._settled.set()
