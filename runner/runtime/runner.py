"""The runner: starts and stops all parts of one process in order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple
from datetime import datetime, timedelta
from functools import partial
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import structlog

from ..api.door import Door
from ..api.process import Process
from ..bus.bus import EventBus
from ..errors import StorageUnavailable
from ..event import Event, new_id
from ..operations import Operations
from ..periodic.heartbeat import Heartbeat
from ..periodic.lifecycle import Lifecycle
from ..periodic.minutes import Minutes
from ..periodic.pruner import Pruner
from ..periodic.scheduler import Scheduler
from ..service.background import Errands
from ..service.ending import end
from ..service.loop_guard import LoopGuard
from ..service.tally import Tally
from ..service.version import __version__
from ..service.vitals import Vitals
from ..service.watchdog import Watchdog
from ..sinks.base import Sink, start_sink
from ..storage import Storage
from ..storage.contract.events import Publication, Receipt
from ..storage.contract.registry import Health, Instance, StrategyHealth
from ..strategies.stack import StrategyState
from ..subscription import check_dead_letters
from ..tracing.base import Tracing
from ..worker.worker import Worker
from .functions import Functions
from .parts import pages, serve
from .place import old_records, take_place
from .plan import Plan
from .revision import STOP_TIMEOUT, ConfigurationFile, Revision, reloading_of

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession
    from starlette.types import ASGIApp

    from ..service.background import Service
    from ..storage.contract.corrections import Rescheduled
    from ..strategies.stack import StrategyStack

__all__ = ["Runner"]

log = structlog.get_logger(__name__)


class Runner:
    """
    A bus built from a file: publish into it, subscribe functions to it, run it.

    `async with runner:` starts and stops it. Publishing works from `start()` on.

    Attributes:
        schedules: look at, put, pause and run schedules, once it has started (`ScheduleOperations`).
        reloading: takes the file as it is now, while it runs: `await runner.reloading.reload("program")`.
        subscriptions: pause subscriptions; put and remove those that are in no file (`SubscriptionOperations`).
    """

    def __init__(
        self,
        plan: Plan,
        storage: Storage,
        strategies: StrategyStack,
        sinks: Mapping[str, Sink],
        *,
        function_sink: Callable[[Callable[..., Any]], Sink],
        brokers: Iterable[Service] = (),
        tracing: Tracing | None = None,
        file: ConfigurationFile | None = None,
    ) -> None:
        """
        Run `plan`.

        Args:
            function_sink: makes the sink of a function that is subscribed.
            tracing: makes spans.
            file: can be read again.
        """
        self._plan = plan
        self._storage = storage
        self._strategies = strategies
        self._sinks = dict(sinks)
        self._brokers = tuple(brokers)
        self._file = file
        self._functions = Functions(function_sink)
        self._instance = Instance(new_id(), socket.gethostname(), os.getpid(), __version__)
        self._tally = tally = Tally(each.name for each in plan.schedules)

        def announce() -> None:
            self._bus.announce(self._instance.id)

        look_up = storage.records.event
        self._lifecycle = Lifecycle(plan.deployment_id, self.publish, look_up, tally, enabled=plan.lifecycle)
        self._scheduler = Scheduler(storage.schedules, tally, announce=announce, on_missed=self._lifecycle.on_missed)
        events, queue, registry = storage.events, storage.queue, storage.registry
        if tracing is not None:
            events, queue = tracing.store(events), tracing.store(queue)
        self.worker = Worker(
            queue,
            registry,
            self._sinks,
            plan.limits,
            notify=self._notify,
            on_load=self._scheduler.wake,
            tally=tally,
            notice=self._lifecycle.notice,
        )
        keeper = serve(file, self.worker, lambda: self._heartbeat.say_soon())
        woken, local = self.worker.wake, self.worker.dispatcher if plan.works else None
        bus = partial(EventBus, events, strategies, wake=woken, local_worker=local, schemas=plan.schemas)
        self._bus = bus(tally=tally, tracing=tracing)
        self._operations = Operations(storage, announce, in_order=self.worker.in_order, keeper=keeper)
        self.schedules, self.subscriptions = self._operations.schedules, self._operations.subscriptions
        self._watchdog, self._vitals = Watchdog(), Vitals()
        old = old_records(storage, plan.retention, self.subscriptions.remove_expired)
        self._pruner = Pruner(storage.archive, plan.retention, old)
        beating = partial(Heartbeat, vitals=self._vitals, set_back=woken, notice=self._lifecycle.notice)
        self._heartbeat = beating(registry, self._instance, self._health, minutes=Minutes(tally), depths=storage.depths)
        breakers, wakes = self.worker.breakers, strategies.wakes
        self.reloading = reloading_of(file, self._apply, self._vitals, lambda: self._heartbeat.say_soon())
        kept = (self._watchdog, lambda: self._plan.retention, self.reloading)
        process = Process(self._vitals, tally, self.strategies, breakers, wakes, *kept)
        self._door = Door(plan.api, plan.deployment_id, self._bus, self._operations, storage, process, pages=pages)
        self._started, self._loop_guard, self._errands = False, LoopGuard("runner"), Errands()
        self._turn = asyncio.Lock()  # one start or stop at a time

    async def publish(
        self,
        event: Event,
        *,
        delay: timedelta | None = None,
        deliver_at: datetime | None = None,
        expires_in: timedelta | None = None,
        session: AsyncSession | None = None,
    ) -> Receipt:
        """Record one event; see `EventBus.publish()`."""
        when: dict[str, Any] = {"delay": delay, "deliver_at": deliver_at, "expires_in": expires_in}
        return await self._bus.publish(event, **when, session=session)

    async def publish_many(
        self, events: Iterable[Event | Publication], *, session: AsyncSession | None = None
    ) -> Sequence[Receipt]:
        """Record events in one transaction; see `EventBus.publish_many()`."""
        return await self._bus.publish_many(events, session=session)

    def subscribe(self, name: str, handler: Callable[..., Any], **options: Any) -> None:
        """
        Have `handler` called with every event that matches; call this before `start()`.

        The subscription outlives the process: events wait for the next one that serves it. `unsubscribe()` ends it.

        Args:
            name: of the subscription, unique in the deployment.
            handler: `handler(event)` or `handler(event, delivery)`; async functions run on the loop, others
                in a thread. What it returns or raises is the outcome, as for a `python` sink. With `batch=100`
                it is `handler(events)`, a list of at most so many.
            options: the keys of a subscription of the file, such as `types="order.*"`, `rate="20/s"` or
                `timeout=timedelta(seconds=5)`. What `retry` and `breaker` leave out comes from those of the file.

        Raises:
            FilterError: the filter does not compile.
            ValueError: the file has a subscription of that name, or `worker.enabled: false`; options are invalid,
                a fault in each line; it has started.
        """
        if self._started:
            raise ValueError(f"subscribe({name!r}): it has started; subscribe before start(), or stop() it first")
        if not self._plan.works:
            raise ValueError(f"subscribe({name!r}): worker.enabled is false, so nothing would call the handler")
        if any(each.name == name for each in self._plan.subscriptions):
            raise ValueError(f"the file has a subscription {name!r}; a function needs a name of its own")
        sink = self._functions.add(name, handler, options, self._plan.defaults)
        self._sinks[sink] = self._functions.sinks[sink]
        self.worker.serve(sink, self._sinks[sink])

    async def unsubscribe(self, name: str) -> None:
        """End the subscription of a function; its open deliveries stay on record, undelivered."""
        self._loop_guard.enter()
        self._functions.remove(name)
        await self._storage.registry.put_subscriptions([], f"function:{name}")

    async def ack(self, reference: str, subscription: str, *, failure: str | None = None) -> bool:
        """
        Acknowledge a deferred delivery; return whether it changed.

        Args:
            reference: the event, by its seq or its id.
            failure: why it failed instead; the retry policy decides what follows.

        Raises:
            NotFound: there is no such event, subscription, or delivery.
            StateConflict: the delivery is dead or cancelled, or not deferred when it is to fail.
        """
        self._loop_guard.enter()
        return await self._operations.ack(reference, subscription, failure=failure)

    async def reschedule(
        self,
        reference: str,
        *,
        delay: timedelta | None = None,
        deliver_at: datetime | None = None,
        subscription: str | None = None,
    ) -> Rescheduled:
        """Have an event, or what waits of it, be due at another time; see `Operations.reschedule()`."""
        self._loop_guard.enter()
        when: dict[str, Any] = {"delay": delay, "deliver_at": deliver_at, "subscription": subscription}
        return (await self._operations.reschedule(reference, **when))[1]

    def pause(self, name: str, reason: str) -> None:
        """Pause a subscription soon, because its sink asks for it; `runner subscriptions resume` ends that."""

        async def pausing() -> None:
            if await self._operations.by("runner").subscriptions.set_paused(name, True, reason):
                log.warning("subscription paused", subscription=name, reason=reason)

        self._errands.spawn(pausing(), "pause")

    async def start(self) -> None:
        """
        Join the deployment and begin to work.

        Waits for the store, at most `start_timeout`; for nothing else. Until it ends `/readyz` says no. Idempotent.

        Raises:
            ListenError: the address of the HTTP interface is taken, or not to be had.
            StorageUnavailable: the store did not come up in time.
            ForeignDeployment: its tables belong to another deployment.
            SinkError: a sink can never work.
            ConfigError: the `dead_letter` of a function names no sink.
            RunnerError: it was started before in another event loop; `load()` another one for each.
        """
        from ..diagnosis.look import unserved

        self._loop_guard.enter()
        async with self._turn:
            if self._started:
                return
            check_dead_letters(self._functions.subscriptions.values(), self._sinks)
            self._vitals.starting()
            await self._watchdog.start()
            await self._door.start()
            await take_place(self._storage, self._plan, self._functions.subscriptions, self._heartbeat.beat)
            for concern in await self._storage.concerns():
                log.warning("store", concern=concern)
            for broker in self._brokers:
                await broker.start()
            for name, sink in self._sinks.items():
                await start_sink(name, sink)
            self._bus.start()
            await self._strategies.start(self.worker.wake)
            loops = [self._heartbeat.loop]
            if self._plan.works:
                await self.worker.start()
                await self._scheduler.start()
                await self._pruner.start()
                loops += [*self.worker.loops, self._scheduler.loop, self._pruner.loop]
            self._heartbeat.start()
            if self._plan.lifecycle:
                self._lifecycle.start()
                loops.append(self._lifecycle.loop)
            self._started = True
            self._vitals.running(loops)
            self.reloading.start()
            log.info("started", deployment=self._plan.deployment_id, instance=self._instance.id)
            with contextlib.suppress(StorageUnavailable):  # the worker waits for it
                for each in await unserved(self._storage):
                    log.warning("nobody serves it", subscription=each.name, sink=each.sink)

    async def stop(self) -> None:
        """
        Drain and stop: no new claims, running deliveries get their grace, leases are released.

        Never raises because of a part: its error is logged, and the other parts are stopped. Idempotent.
        """
        async with self._turn:
            ends = monotonic() + self._plan.shutdown_grace.total_seconds()
            if self._started:
                self._loop_guard.enter()
                self._vitals.stopping()
                log.info("stopping", running=self.worker.busy, grace=self._plan.shutdown_grace.total_seconds())
                await end("reloading", self.reloading.stop)
                self.worker.stop_accepting()
                await end("scheduler", self._scheduler.stop)
                await end("lifecycle", self._lifecycle.stop)
                await end("pruner", self._pruner.stop)
                # the worker still accepts the events of the commit in flight
                await end("publishing", self._bus.commits_done)
                await end("worker", partial(self.worker.stop, self._plan.shutdown_grace))
            await end("http", lambda: self._door.stop(timedelta(seconds=max(1.0, ends - monotonic()))))
            if self._started:
                await end("errands", self._errands.stop)  # nothing that asks for one runs any more
                await end("publishing", self._bus.stop)  # not before: handlers and requests that finish may publish
                await end("heartbeat", self._heartbeat.stop)
                await end("place among the instances", partial(self._storage.registry.leave, self._instance.id))
            await end("strategies", self._strategies.stop)
            for name, sink in self._sinks.items():
                await end(f"sink {name}", sink.stop, STOP_TIMEOUT)
            for broker in self._brokers:
                await end("broker", broker.stop)
            await end("watchdog", self._watchdog.stop)
            await end("storage", self._storage.close)
            self._vitals.stopped()
            if self._started:
                self._started = False
                log.info("stopped", instance=self._instance.id)

    async def __aenter__(self) -> Self:
        self._loop_guard.enter()
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    def describe(self) -> list[str]:
        """Return a summary, in one line or more."""
        return [self._plan.summary]

    def strategies(self) -> list[StrategyState]:
        """Return the state of each strategy."""
        return self._strategies.states()

    @property
    def addresses(self) -> list[str]:
        """Where the HTTP interface listens, such as `http://127.0.0.1:8080`; nothing unless it does."""
        return self._door.addresses

    def asgi(self) -> ASGIApp:
        """
        Return the HTTP interface as an ASGI application, to be mounted in a program of your own.

        Call it before `start()`, which then does not listen. Served alone, it starts and stops the runner (lifespan).
        """
        return self._door.mount(self)

    async def _apply(self, revision: Revision) -> None:
        """Use another state of the file from now on; raise a `RunnerError` if it cannot be used, and change nothing."""
        assert self._file is not None
        functions, plan = self._functions, revision.plan
        revision.check(functions.subscriptions.values(), functions.sinks)
        async with revision.started(), revision.logged_in(self._file):
            await self._storage.schedules.put_file(plan.subscriptions, plan.schedules)
            for changed in list(functions.with_defaults(plan.defaults)):
                await self._storage.registry.put_subscriptions([changed], changed.sink)
                functions.subscriptions[changed.name] = changed
        self._use(revision)

    def _use(self, revision: Revision) -> None:
        """Have every part go by `revision`."""
        assert self._file is not None
        self._file.use(revision)
        self._plan = plan = revision.plan
        self._sinks = {**self._functions.sinks, **revision.sinks}
        self._brokers = (*(each for each in self._brokers if each not in revision.idle_brokers), *revision.brokers)
        self.worker.replace_sinks(self._sinks, revision.retired, revision.idle_brokers)
        self._bus.use_schemas(plan.schemas)
        old = old_records(self._storage, plan.retention, self.subscriptions.remove_expired)
        self._pruner.keep(plan.retention, old)
        self._lifecycle.enable(plan.lifecycle)
        self._tally.expect_schedules(each.name for each in plan.schedules)
        self._door.change(plan.api)
        # deliveries that waited for a sink or a subscription may start now, in any process
        self._bus.announce(self._instance.id)

    def _health(self) -> Health:
        return Health(
            stalled=max(self.worker.stalled, timedelta(seconds=self._scheduler.stalled)),
            lag=self._watchdog.lag(),
            running=self.worker.busy,
            sinks=sorted([*self._sinks, *self.worker.roster.destinations.names]),
            strategies=[StrategyHealth(*astuple(each)) for each in self.strategies()] if self._started else None,
            configuration=self.reloading.state.configuration(),
        )

    async def _notify(self) -> None:
        # With a new id: a process would take a signal with the id it sent last for its own echo.
        self._bus.notify(self._instance.id)
