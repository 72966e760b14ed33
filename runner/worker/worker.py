"""The worker: assembles, starts and stops the parts that claim, deliver and settle."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import timedelta
from time import monotonic
from typing import Any

import structlog

from ..delivery import DeliveryState
from ..policies.limits import WorkerLimits
from ..service.background import Background, Service, spawn
from ..service.clock import wait_for
from ..service.tally import Tally
from ..sinks.base import Sink
from ..storage.contract.queue import WorkQueue
from ..storage.contract.registry import Registered, Registry
from ..storage.contract.settlements import DeliveryRecord
from .backlog import Backlog
from .breaker_sync import BreakerSync
from .budget import Budget
from .dead_letters import DeadLetters
from .dispatcher import Dispatcher
from .expiry import Expiry
from .failure_log import FailureLog
from .intake import Intake
from .leases import Leases
from .orphans import Orphans
from .outlet import Outlet, Slots
from .roster import Roster
from .settlement_writer import SettlementWriter

__all__ = ["Worker"]

log = structlog.get_logger(__name__)

_WATCH = 0.25  # seconds between looks at running deliveries for their timeouts


class Worker:
    """
    Claim due events, deliver them through sinks, and write the outcomes.

    Two loops feed the outlets: the dispatcher's claims events and dispatches them, the backlog's claims single
    deliveries that wait. Both sleep until a wake or the next due time.

    Attributes:
        dispatcher: takes events straight from publishers of this process.
        roster: the subscriptions that are served, and the sinks they brought with them.
    """

    def __init__(
        self,
        queue: WorkQueue,
        registry: Registry,
        sinks: Mapping[str, Sink],
        limits: WorkerLimits,
        *,
        notify: Callable[[], Coroutine[Any, Any, None]],
        on_load: Callable[[], object] = lambda: None,
        tally: Tally | None = None,
        notice: Callable[..., object] = lambda *_, **__: None,
    ) -> None:
        """
        Work off `queue`.

        Args:
            notify: notifies other instances that deliveries wait.
            on_load: called whenever the subscriptions have been read.
            tally: counts what is done.
            notice: has a lifecycle event published (see `Lifecycle.notice()`).
        """
        self._notice = notice
        self._paused: dict[str, bool] = {}  # of each subscription, as it was last read
        self._tally = tally = tally or Tally()
        self._notify = notify
        self._loaded = on_load
        budget, lease = Budget(), limits.lease
        intake = Intake(queue, budget, lease, crash_limit=limits.crash_limit, tally=tally)
        letters = DeadLetters(queue)
        self._dead_letters = letters
        self._slots = slots = Slots(limits.concurrency, budget)
        self._room_freed = freed = asyncio.Event()
        self._writer = writer = SettlementWriter(queue, letters, self._written, self._written_late, tally=tally)
        self._leases = leases = Leases(queue, writer, lease, freed, budget, tally)
        self._backlog = Backlog(queue, intake, writer, leases, letters, slots, lease, freed)
        self._breaker_sync = BreakerSync(registry, self._agreed)
        self.roster = Roster(
            registry,
            sinks,
            slots,
            self._breaker_sync,
            on_load=self._on_load,
            on_lane_end=self._on_lane_end,
            on_breaker_change=self._on_breaker_change,
            tally=tally,
        )
        self.dispatcher = Dispatcher(
            intake,
            self.roster,
            writer,
            leases,
            limits,
            freed,
            on_written=self._dispatched,
            on_waiting=self._backlog.expect,
        )
        self._orphans = Orphans(queue, registry, writer, lease)
        self._expiry = Expiry(queue, writer, lease, self.wake)
        self._failure_log = FailureLog()
        self._watch = Background("watch", self._watch_once, every=_WATCH)
        self._renew = Background("renew", leases.renew, every=lease.total_seconds() / 3)
        self._claiming = (self.dispatcher.loop, self._backlog.loop, self._watch, self._renew)
        self.loops = (*self._claiming, self._breaker_sync.loop, self._orphans.loop, self._expiry.loop)

    def wake(self) -> None:
        """Look for work now. Cheap, and safe to call at any time from the event loop."""
        self.dispatcher.wake()
        self._backlog.wake()

    def serve(self, name: str, sink: Sink) -> None:
        """Deliver through `sink` for the subscriptions that name it, from the next load on."""
        self.roster.serve(name, sink)

    def replace_sinks(
        self, sinks: Mapping[str, Sink], retired: Mapping[str, Sink], then: Sequence[Service] = ()
    ) -> None:
        """
        Deliver through `sinks`, and through none that are not among them, from now on.

        Args:
            retired: the sinks that are no longer used; each is stopped after its last delivery.
            then: the services that they use, stopped after them.
        """
        self.roster.replace_sinks(sinks)
        self.roster.retirement.retire(retired, then)
        self.wake()

    async def start(self) -> None:
        """Begin to work; due events and deliveries are found without a wake."""
        self._writer.start()
        loops = (self._watch, self._renew, self._breaker_sync, self._orphans, self._expiry)
        for part in (self.dispatcher, self._backlog, *loops):
            part.start()

    def stop_accepting(self) -> None:
        """Accept nothing more from publishers; `stop()` follows."""
        self.dispatcher.stop_accepting()

    async def stop(self, grace: timedelta = timedelta(seconds=25)) -> None:
        """
        Stop claiming, give what runs up to `grace` to finish, settle it, and give back the rest.

        What was running when the grace ended is pending again and due at once, for any instance.
        """
        ends = monotonic() + grace.total_seconds()
        await asyncio.gather(self.dispatcher.stop(), self._backlog.stop())
        await self.dispatcher.drain(ends)
        while self._leases and monotonic() < ends:
            self._room_freed.clear()
            await wait_for(self._room_freed, timedelta(seconds=ends - monotonic()))
        await asyncio.gather(*[outlet.stop() for outlet in self._running_outlets()])
        self._leases.give_back()  # except deliveries that have finished
        await self.roster.retirement.stop()
        await self._orphans.stop()
        await self._expiry.stop()
        await self._watch.stop()
        await self._renew.stop()
        await self._breaker_sync.stop()
        await self._writer.stop()
        await self.dispatcher.ended(2.0)
        await self.roster.stop()
        if self._backlog.waiting:
            await self._notify()

    def in_order(self, name: str) -> bool:
        """Whether the deliveries of the subscription wait for each other."""
        return self.roster.in_order(name)

    @property
    def busy(self) -> int:
        """How many deliveries run now."""
        return self._slots.used

    @property
    def stalled(self) -> timedelta:
        """The longest time for which a loop that claims, or keeps what was claimed, has been stuck."""
        return timedelta(seconds=max(loop.stalled for loop in self._claiming))

    def breakers(self) -> Mapping[str, bool]:
        """Return, for each subscription served here, whether its breaker is open or half-open."""
        return {each.subscription.name: not each.breaker.closed for each in self.roster.outlets.values()}

    def _on_load(self, registered: Sequence[Registered]) -> None:
        """Pass the loaded subscriptions to the parts that serve them."""
        outlets = self.roster.outlets
        self._tally.learn_subscriptions({each.id: each.subscription.name for each in registered})
        self._dead_letters.learn(registered)
        self._writer.ordered |= {id for id, outlet in outlets.items() if outlet.subscription.order_by is not None}
        self._backlog.serve(outlets)
        for each in registered:
            name = each.subscription.name
            if self._paused.get(name, each.paused) != each.paused:
                change = "paused" if each.paused else "resumed"
                self._notice(f"subscription.{change}", name, {"by": each.paused_by}, about=each.subscription)
        self._paused = {each.subscription.name: each.paused for each in registered}
        self._loaded()

    async def _dispatched(self, records: Sequence[DeliveryRecord]) -> None:
        if self._written(records):
            await self._notify()

    def _written(self, records: Sequence[DeliveryRecord]) -> bool:
        """Take account of written records; return whether some of them wait to be claimed."""
        for record in records:
            name = self.roster.name_of(record.subscription_id)
            self._failure_log.note(name, record)
            if record.state is DeliveryState.DEAD:
                data = {"seq": record.seq, "reason": record.error, "attempts": record.attempts}
                self._notice("delivery.dead", name, data, seq=record.seq)
        return self._backlog.written(records)

    def _written_late(self, records: Sequence[DeliveryRecord]) -> None:
        """Take account of records written late, after another session had held their events."""
        if self._written(records):
            spawn(self._notify(), "notify")
        self._room_freed.set()
        self.dispatcher.claim_ahead()

    def _on_breaker_change(self, outlet: Outlet) -> None:
        """Act on a breaker that has opened or closed."""
        if not outlet.breaker.closed:
            self._leases.hand_back(outlet)
        if self.roster.note_breaker(outlet):  # a replaced outlet only finishes its deliveries
            self._breaker_sync.changed(outlet)
            trip = outlet.breaker.trip(monotonic())
            data = {} if trip is None else {"trip": trip.number, "tries_in": round(trip.left.total_seconds(), 3)}
            about = outlet.subscription
            self._notice(f"breaker.{'closed' if trip is None else 'opened'}", about.name, data, about=about)
            self._backlog.wake()

    async def _agreed(self) -> None:
        """Make every instance read the breakers again, this one included, because another may have written first."""
        self.roster.stale = True
        self.dispatcher.wake()
        await self._notify()

    def _on_lane_end(self, outlet: Outlet) -> None:
        self._room_freed.set()
        self._backlog.lane_ended(outlet)
        self.roster.retirement.lane_ended()

    async def _watch_once(self) -> None:
        """Cancel deliveries that have run for too long."""
        if self._slots.used:
            now = monotonic()
            for outlet in self._running_outlets():
                outlet.overdue(now)

    def _running_outlets(self) -> set[Outlet]:
        return {*self.roster.outlets.values(), *self._leases.outlets()}
