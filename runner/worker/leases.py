"""Deliveries held under leases of their own: renewed, settled one by one, or given back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from time import monotonic
from typing import Any

import structlog

from ..delivery import Lease, Outcome
from ..event import weigh
from ..service.tally import Tally
from ..storage.contract.queue import DeliveryQueue
from ..storage.halves import IN_A_ROW, in_halves
from .budget import SPENT, Budget
from .flight import Flight
from .outlet import Outlet
from .settlement import given_back, settle
from .settlement_writer import SettlementWriter

__all__ = ["Leases"]

log = structlog.get_logger(__name__)

Key = tuple[int, int]  # seq of the event, id of the subscription


@dataclass(frozen=True, slots=True)
class _Held:
    lease: Lease
    outlet: Outlet
    flight: Flight[Any]
    index: int
    weight: int


class Leases:
    """Hold deliveries, from their claim or their dispatch on, until they are settled or lost."""

    def __init__(
        self,
        queue: DeliveryQueue,
        writer: SettlementWriter,
        lease: timedelta,
        room_freed: asyncio.Event,
        budget: Budget,
        tally: Tally | None = None,
    ) -> None:
        """Args: room_freed is set whenever one ends; tally counts those that are lost."""
        self._tally = tally or Tally()
        self._queue = queue
        self._writer = writer
        self._lease = lease
        self._room_freed = room_freed
        self._budget = budget
        self._held: dict[Key, _Held] = {}

    def __contains__(self, key: Key) -> bool:
        return key in self._held

    def __len__(self) -> int:
        return len(self._held)

    def outlets(self) -> set[Outlet]:
        """Return the outlets whose deliveries are held."""
        return {held.outlet for held in self._held.values()}

    def hold(self, outlet: Outlet, flight: Flight[Any], indexes: Iterable[int], token: int) -> None:
        """Settle the deliveries of `flight` as they land, and keep those at `indexes` until then."""
        for index in indexes:
            work = flight.works[index]
            weight = weigh((work.event,))
            self._budget.leased += weight
            lease = Lease(work.seq, outlet.id, work.attempt, token)
            self._let_go(lease.key)
            self._held[lease.key] = _Held(lease, outlet, flight, index, weight)
        flight.report_to(self._reporter(outlet, flight, token), partial(self._ended, outlet, flight))
        if flight.over:
            flight.end()

    async def renew(self) -> None:
        """
        Renew the leases; cancel deliveries whose lease is lost, give back those that will not start.

        What is not on record yet, because another session holds its event, gets its lease once it is.
        """
        for key, each in list(self._held.items()):
            if each.index >= each.flight.stop:
                self._give_back(key)
        held = {key: each for key, each in self._held.items() if not self._writer.awaits(each.lease)}
        if not held:
            return
        until = monotonic() + self._lease.total_seconds()
        leases = [each.lease for each in held.values()]
        renewed, refused = await in_halves(leases, lambda some: self._queue.renew(some, self._lease))
        kept = set(renewed)
        for lease, error in refused:  # it is ours for now, and nothing of it starts once it is not
            log.warning("lease not renewed", seq=lease.seq, subscription_id=lease.subscription_id, detail=str(error))
            held.pop(lease.key)
        for lease, _ in refused[:IN_A_ROW]:  # they go last the next time: all behind them may have been given up
            if lease.key in self._held:
                self._held[lease.key] = self._held.pop(lease.key)
        for key, each in held.items():
            if key in kept:
                each.flight.until = until
        for key, each in held.items():
            if key not in kept and self._held.get(key) is each:
                self._let_go(key)
                self._tally.leases_lost += 1
                log.warning("lease lost", seq=key[0], subscription=each.outlet.subscription.name)
                each.flight.halt()  # it may not have started: nor does anything else of it
                each.outlet.cancel(each.flight, each.index)
                self._room_freed.set()

    def give_back(self) -> None:
        """Make all held deliveries pending again, for any instance."""
        left = list(self._held)
        for key in left:
            self._give_back(key)
        if left:
            log.info("deliveries given back", count=len(left))

    def hand_back(self, outlet: Outlet) -> None:
        """Make the unstarted deliveries of `outlet` pending again."""
        for key, each in list(self._held.items()):
            if each.outlet is outlet and each.index >= each.flight.next:
                self._give_back(key)
        self._room_freed.set()

    def _ended(self, outlet: Outlet, flight: Flight[Any]) -> None:
        """Make the deliveries of an ended flight that have no outcome pending again."""
        keys = [(flight.works[index].seq, outlet.id) for index in flight.unanswered()]
        left = [key for key in keys if key in self._held and self._held[key].flight is flight]
        for key in left:
            self._give_back(key)
        if left:
            log.info("deliveries given back", subscription=outlet.subscription.name, count=len(left))
            self._room_freed.set()

    def _give_back(self, key: Key) -> None:
        held = self._held[key]
        self._let_go(key)
        self._writer.submit(given_back(held.lease, started=held.index < held.flight.next), None)

    def _let_go(self, key: Key) -> None:
        held = self._held.pop(key, None)
        if held is not None:
            self._budget.leased -= held.weight

    def _reporter(self, outlet: Outlet, flight: Flight[Any], token: int) -> Callable[[int, Outcome, float], None]:
        """Return the function that settles deliveries of `flight` as they land."""

        def report(index: int, outcome: Outcome, seconds: float) -> None:
            work = flight.works[index]
            lease = Lease(work.seq, outlet.id, work.attempt, token)
            retry = outlet.subscription.retry
            settlement = settle(retry, lease, outcome, seconds, work.age, left=work.deadline - monotonic())
            self._writer.submit(*settlement, flight.recorded_at(index))
            held = self._held.get(lease.key)
            if held is not None and held.lease.token == token:  # else it was lost, and perhaps claimed anew
                self._let_go(lease.key)
            work.event = SPENT
            self._room_freed.set()

        return report
