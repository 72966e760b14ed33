"""The roster: the outlets of this process, one for each active subscription, and their matcher."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta

import structlog

from ..service.tally import Tally
from ..sinks.base import DestinationSinks, NoDestinations, Sink
from ..storage.contract.registry import Registered, Registry
from ..subscription import Matcher
from .breaker_sync import BreakerSync
from .outlet import Outlet, Slots
from .retirement import Retirement

__all__ = ["Roster"]

log = structlog.get_logger(__name__)

_LONGEST = timedelta(days=1)  # the longest timer


class Roster:
    """
    The outlets of the subscriptions as they were last read.

    Attributes:
        outlets: by the ids of their subscriptions.
        closed: those whose deliveries a dispatch may not start.
        matcher: finds the outlets of an event.
        version: of the subscriptions.
        stale: whether they are to be read again before anything is claimed.
        retirement: stops sinks that have been replaced.
        destinations: the sinks that subscriptions brought with them.
    """

    def __init__(
        self,
        registry: Registry,
        sinks: Mapping[str, Sink],
        slots: Slots,
        breaker_sync: BreakerSync,
        *,
        on_load: Callable[[Sequence[Registered]], None],
        on_lane_end: Callable[[Outlet], None],
        on_breaker_change: Callable[[Outlet], None],
        tally: Tally | None = None,
    ) -> None:
        """
        Serve the subscriptions of `registry` through `sinks`.

        Args:
            on_load: called with the subscriptions whenever they have been read.
            on_lane_end, on_breaker_change: given to each outlet.
            tally: counts their attempts.
        """
        self._tally = tally or Tally()
        self._registry = registry
        self._sinks = dict(sinks)
        self._slots = slots
        self._breaker_sync = breaker_sync
        self._on_load = on_load
        self._on_lane_end = on_lane_end
        self._on_breaker_change = on_breaker_change
        self.outlets: Mapping[int, Outlet] = {}
        self.closed: frozenset[Outlet] = frozenset()
        self.matcher: Matcher[Outlet] = Matcher([])
        self.version = -1
        self.stale = False
        self.retirement = Retirement(lambda: self.outlets.values())
        self.destinations: DestinationSinks = NoDestinations()
        self._brought: Mapping[str, Sink] = {}
        self._expiry: asyncio.TimerHandle | None = None

    def serve(self, name: str, sink: Sink) -> None:
        """Deliver through `sink` for the subscriptions that name it, from the next load on."""
        self._sinks[name] = sink

    def replace_sinks(self, sinks: Mapping[str, Sink]) -> None:
        """Deliver through `sinks`, and through none that are not among them, from the next load on, which is soon."""
        self._sinks = dict(sinks)
        self.stale = True

    async def load(self) -> None:
        """Read the subscriptions and compile the match."""
        version, registered = await self._registry.subscriptions()
        self._brought = await self.destinations.adopt([each.subscription for each in registered])
        outlets = {each.id: self._outlet(each) for each in registered}
        self.matcher = Matcher((each.subscription, outlets[each.id]) for each in registered if not each.expired)
        before, self.outlets = self.outlets, outlets
        self.retirement.replaced(outlet for id, outlet in before.items() if outlets.get(id) is not outlet)
        self._note_closed()
        self.version = version
        self.stale = False
        self._await_expiry([each.expires_in for each in registered if each.expires_in is not None and not each.expired])
        log.debug("subscriptions loaded", version=version, count=len(registered))
        self._on_load(registered)

    async def stop(self) -> None:
        """Stop the sinks that subscriptions brought with them. Idempotent."""
        self._await_expiry([])
        self._brought = {}
        await self.destinations.stop()

    def note_breaker(self, outlet: Outlet) -> bool:
        """Take account of a breaker that opened or closed; return False if the outlet has been replaced."""
        if self.outlets.get(outlet.id) is not outlet:
            return False
        self._note_closed()
        return True

    def serves(self, outlets: Iterable[Outlet]) -> bool:
        """Whether none of `outlets` has been replaced or removed."""
        return all(self.outlets.get(outlet.id) is outlet for outlet in outlets)

    def name_of(self, id: int) -> str:
        """Return the name of a subscription, or its id if it is not active any more."""
        outlet = self.outlets.get(id)
        return outlet.subscription.name if outlet else str(id)

    def in_order(self, name: str) -> bool:
        """Whether the deliveries of the subscription wait for each other."""
        subscriptions = (outlet.subscription for outlet in self.outlets.values())
        return any(each.name == name and each.order_by is not None for each in subscriptions)

    def _await_expiry(self, left: Sequence[timedelta]) -> None:
        """Have the subscriptions read again when the first of these times has passed."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        if left:
            after = min(_LONGEST, *left).total_seconds()
            self._expiry = asyncio.get_running_loop().call_later(after, self._note_expiry)

    def _note_expiry(self) -> None:
        self.stale = True

    def _note_closed(self) -> None:
        self.closed = frozenset(outlet for outlet in self.outlets.values() if not outlet.immediate)

    def _outlet(self, registered: Registered) -> Outlet:
        """Return the outlet of a subscription: the one that is there, unless it has changed."""
        known = self.outlets.get(registered.id)
        name = registered.subscription.sink
        sink = self._brought.get(name) if registered.subscription.destination is not None else self._sinks.get(name)
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
                tries=self._tally.tries_of(registered.id),
            )
        self._breaker_sync.learn(outlet, registered.breaker)
        return outlet
