"""Claim events, or take them from publishers of this process, and dispatch them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from time import monotonic

import structlog

from ..errors import text_of
from ..policies.limits import WorkerLimits
from ..service.background import Background, spawn
from ..service.clock import earlier, wait_for
from ..storage.contract.claims import Claim
from ..storage.contract.settlements import DeliveryRecord
from .budget import Budget, spend
from .claims_ahead import ClaimsAhead
from .dispatch import Dispatch
from .intake import Intake
from .leases import Leases
from .roster import Roster
from .settlement_writer import SettlementWriter

__all__ = ["Dispatcher"]

log = structlog.get_logger(__name__)

_PROMOTED = 1000  # scheduled events moved into the queue at once
_IDLE_WAKES = 8  # wakes in a row that brought nothing before wakes are slowed down
_HANDED_OVER = timedelta(seconds=5)  # lease of what publishers hand over: dispatched at once, or its process is gone
_SLOWED = 0.02  # seconds between claims from then on


class Dispatcher:
    """
    Claim due events and dispatch them under the subscriptions as they were last read.

    One loop claims. It sleeps until a wake or the next due time; while there is more than one claim takes, the next
    claims are on their way before the deliveries of this one begin.
    """

    def __init__(
        self,
        intake: Intake,
        roster: Roster,
        writer: SettlementWriter,
        leases: Leases,
        limits: WorkerLimits,
        room_freed: asyncio.Event,
        *,
        on_written: Callable[[Sequence[DeliveryRecord]], Awaitable[None]],
        on_waiting: Callable[[], None],
    ) -> None:
        """
        Claim through `intake` for the outlets of `roster`.

        Args:
            room_freed: set whenever a delivery or a dispatch ends.
            on_written: called with the records of each dispatch.
            on_waiting: called when a claim has seen that single deliveries wait.
        """
        self._intake = intake
        self._budget = intake.budget
        self._roster = roster
        self._writer = writer
        self._leases = leases
        self._limits = limits
        self._room_freed = room_freed
        self._on_written = on_written
        self._on_waiting = on_waiting
        self._handed_over = min(limits.lease, _HANDED_OVER)
        self._woken = asyncio.Event()
        self._claims = ClaimsAhead(intake, self._woken, intake.budget, limits)
        self._idle_wakes = 0  # in a row
        self._held = 0  # events claimed and not yet settled
        self._more_waiting = False  # whether the last claim left something
        self._queue_empty = False  # whether it took all there was
        self._due: timedelta | None = timedelta(0)  # until the next claim, unless woken
        self._taking: set[asyncio.Task[None]] = set()
        self._dispatches: dict[Dispatch, asyncio.Task[None]] = {}
        self._stopping = False
        self._accepting = True  # from publishers in this process
        self.loop = Background("claim", self._claim, nudge=self._nudge)

    def wake(self) -> None:
        """Look for events now."""
        self._woken.set()

    def start(self) -> None:
        """Begin to claim; due events are found without a wake."""
        self._stopping, self._accepting = False, True
        self.loop.start()

    def stop_accepting(self) -> None:
        """Accept nothing more from publishers; `stop()` follows."""
        self._accepting = False

    async def stop(self) -> None:
        """Claim nothing more; `drain()` follows."""
        self._stopping, self._accepting = True, False
        await self.loop.stop()

    async def drain(self, ends: float) -> None:
        """Dispatch what was claimed, and let dispatches end until `ends`, on the monotonic clock, or a second more."""
        async for sent, claim in self._claims.drain(max(1.0, ends - monotonic())):
            self._accept(claim, sent + self._limits.lease.total_seconds())
        if self._taking:
            await asyncio.wait(self._taking, timeout=max(1.0, ends - monotonic()))
        for dispatch in self._dispatches:
            dispatch.hurry()
        await self.ended(max(1.0, ends - monotonic()))

    async def ended(self, timeout: float) -> None:
        """Return once every dispatch is settled, or after `timeout` seconds."""
        if self._dispatches:
            await asyncio.wait(self._dispatches.values(), timeout=timeout)

    def lease_for(self, count: int, weight: int) -> timedelta | None:
        """Return the lease for events published in this process; None if they must be claimed instead."""
        if not self._accepting or self._roster.stale or not self._queue_empty:
            return None
        if self._unsettled + count > self._limits.ahead * self._limits.batch or weight > self._budget.left:
            return None
        return self._handed_over

    def take(self, claim: Claim, until: float) -> None:
        """Dispatch events that are leased to this worker until `until`."""
        self._budget.claimed += claim.weight
        self._accept(claim, until)

    def claim_ahead(self, taken: int = 0) -> None:
        """Send as many claims as there is room for beside `taken` events, if the last one was full."""
        if self._more_waiting and not self._roster.stale and not self._stopping:
            self._claims.send(self._unsettled + taken)

    async def _claim(self) -> None:
        """Claim, once something is due and there is room, and start the dispatch."""
        if not self._claims:
            await self._sleep()
            await self._room()
        self._due = timedelta(0)  # unless the claim says otherwise
        if self._stopping:
            return
        if self._roster.stale:
            await self._roster.load()
        sent, claim = await self._claims.next()
        until = sent + self._limits.lease.total_seconds()
        if _expired(claim, until, self._budget):
            return
        full = claim.more or len(claim.works) >= self._limits.batch
        self._more_waiting = full and claim.version == self._roster.version
        self.claim_ahead(len(claim.works))
        self._queue_empty = not full and not self._claims.unanswered
        if claim.version != self._roster.version:
            # Until that succeeds nothing more is claimed, because other processes may be able to read them.
            self._roster.stale = True
            try:
                await self._writer.patiently(self._roster.load)
            except BaseException:
                self._budget.claimed -= claim.weight
                raise
        if claim.waiting:
            self._on_waiting()
        if claim.works or claim.unreadable:
            self._idle_wakes = 0
            self._launch(claim, until)
        elif self._queue_empty:
            self._idle_wakes += 1
        if claim.scheduled_in is not None and claim.scheduled_in <= timedelta(0):
            await self._intake.promote(_PROMOTED)
        elif not full and self._claims.saw_everything(sent):  # else some may have been locked
            self._due = earlier(claim.scheduled_in, claim.again_in)

    @property
    def _unsettled(self) -> int:
        """The number of events claimed and not settled, not counting a batch of those held by other sessions."""
        return self._held + max(0, self._writer.delayed - self._limits.batch)

    def _accept(self, claim: Claim, until: float) -> None:
        if claim.version == self._roster.version:
            self._launch(claim, until)
        else:
            task = spawn(self._take_late(claim, until), "reload")
            self._taking.add(task)
            task.add_done_callback(self._taking.discard)

    async def _take_late(self, claim: Claim, until: float) -> None:
        """Read the subscriptions again, then dispatch the claim."""
        self._roster.stale = True
        try:
            await self._writer.patiently(self._roster.load)
        except Exception as error:
            log.error("cannot read the subscriptions", error=type(error).__name__, detail=text_of(error))
            self._budget.claimed -= claim.weight
            return  # the lease ends, and a process that can read them takes over
        self._launch(claim, until)

    def _launch(self, claim: Claim, until: float) -> None:
        """Begin to dispatch a claim under the subscriptions known now, unless its lease is over."""
        if not claim.works and not claim.unreadable:
            self._budget.claimed -= claim.weight
            return
        if _expired(claim, until, self._budget):  # while waiting for the subscriptions
            return
        roster, limits = self._roster, self._limits
        dispatch = Dispatch(
            claim,
            roster.matcher,
            roster.closed,
            crash_limit=limits.crash_limit,
            max_hops=limits.max_hops,
            sent=until - limits.lease.total_seconds(),
            until=until,
        )
        dispatch.start()  # before the first turn of the task below, so that deliveries begin at once
        self._held += len(claim.works)
        self._dispatches[dispatch] = spawn(self._dispatch(dispatch), "dispatch")

    async def _room(self) -> None:
        """Return once another batch fits; hurry the oldest dispatch rather than wait for its grace."""
        # One event is claimed even if it is large, or many bytes wait for receivers.
        while not self._stopping and (
            self._unsettled >= self._limits.ahead * self._limits.batch or (self._budget.full and self._dispatches)
        ):
            if any(outlet.open and not outlet.running for outlet in self._roster.outlets.values()):
                for dispatch in list(self._dispatches)[:1]:
                    dispatch.hurry()  # another process could deliver what has not been claimed yet
            self._room_freed.clear()
            await self._room_freed.wait()

    async def _sleep(self) -> None:
        """Sleep until a wake, or until something is due."""
        if self._due == timedelta(0):
            return
        if self._idle_wakes > _IDLE_WAKES:
            # Signals without work for this process, or a flood of them, must not cost a claim each.
            await asyncio.sleep(_SLOWED)
        # Look at least once in a lease, to learn when the lease of an instance that died will end.
        await self.loop.rest(wait_for(self._woken, earlier(self._due, self._limits.lease)))

    async def _dispatch(self, dispatch: Dispatch) -> None:
        """Wait for a dispatch, settle it, and keep what still runs under leases of its own."""
        try:
            await self._wait(dispatch)
            records = await self._writer.settle(dispatch.settled(self._limits.lease))
        except Exception as error:
            dispatch.withdraw()
            events = dispatch.held
            log.error("dispatch failed", error=type(error).__name__, detail=text_of(error), events=events)
            return  # its lease ends, and the events are dispatched again
        finally:
            self._held -= dispatch.held
            self._budget.claimed -= dispatch.claim.weight
            del self._dispatches[dispatch]
            self._room_freed.set()
            self.claim_ahead()
        unfinished = [(outlet, flight, outlet.in_flight(flight)) for outlet, flight in dispatch.unfinished()]
        if unfinished:
            spend(
                dispatch.claim.works,
                {flight.works[index].seq for _, flight, running in unfinished for index in running},
            )
        for outlet, flight, running in unfinished:
            self._leases.hold(outlet, flight, running, dispatch.claim.token)
        await self._on_written(records)

    async def _wait(self, dispatch: Dispatch) -> None:
        """
        Wait for the grace, and for as long as a dispatch keeps up that delays nobody; settle what ends meanwhile.

        However long settlements take, half of the lease is left for the last one, unless it is shorter than the grace.
        """
        grace, lease = self._limits.grace.total_seconds(), self._limits.lease
        looked, pause = monotonic(), grace
        ends = looked + min(self._limits.stretch * grace, (dispatch.until - looked) / 2)
        # what has an order waits until no earlier event is left to dispatch
        while not await dispatch.wait(pause) and not self._writer.ordered:
            now = monotonic()
            if (
                now >= ends
                or not self._roster.serves(dispatch.flights)
                or not dispatch.keeps_up(ends - now, now - looked)
            ):
                return
            looked = now
            front = dispatch.front(lease)
            if front is not None:
                try:
                    records = await self._writer.settle(front)
                finally:
                    self._held -= len(front.works)
                    self._room_freed.set()
                    self.claim_ahead()
                try:
                    await self._on_written(records)
                except Exception as error:  # the rest is settled all the same
                    log.error("task failed", task="dispatch", error=type(error).__name__, detail=text_of(error))
            pause = min(grace, ends - monotonic())
            if pause <= 0:
                return

    def _nudge(self) -> None:
        """Make the loop see that it must end."""
        self._stopping = True
        self._woken.set()
        self._room_freed.set()


def _expired(claim: Claim, until: float, budget: Budget) -> bool:
    """Drop a claim whose lease has ended, because others may own it now; return whether it has."""
    if monotonic() < until:
        return False
    log.warning("late claim dropped", events=len(claim.works))
    budget.claimed -= claim.weight
    return True
