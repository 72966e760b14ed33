"""A dispatch: delivers one claim of events to every matching subscription, and settles it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence, Set
from datetime import timedelta
from math import inf
from time import monotonic

import structlog

from ..delivery import DeliveryState, Lease
from ..policies.limits import WorkerLimits
from ..policies.order import order_key
from ..storage.contract.claims import Claim, UnreadableWork, Work
from ..storage.contract.settlements import AttemptRecord, DeliveryRecord, Run, Settled, Turn
from ..subscription import Matcher
from .endings import endings, set_deadlines, with_extensions
from .flight import SUCCEEDED, Flight, to_end
from .outlet import Outlet
from .settlement import dead_untried, given_back, settle, unreadable

__all__ = ["Dispatch"]

log = structlog.get_logger(__name__)

_LIMITS = WorkerLimits()


class Dispatch:
    """
    One claim: start its deliveries, wait a short grace, return the settlement.

    While subscriptions keep up, the grace goes on, and events whose deliveries have all ended are settled meanwhile: a
    row for each of the others would cost more than their deliveries.

    What has finished by the end is settled. What is still running is written as leased, and settles later under its own
    lease. What could not start, because its subscription is at its limit, paused, or not served here, is written as
    pending, free for any instance. An unreadable event is dead for every subscription that may match it, and an event
    with too many hops for every subscription that matches.
    """

    def __init__(
        self,
        claim: Claim,
        matcher: Matcher[Outlet],
        closed: Set[Outlet],
        *,
        crash_limit: int,
        max_hops: int = _LIMITS.max_hops,
        sent: float = inf,
        until: float = inf,
    ) -> None:
        """
        Match every event of `claim`.

        Args:
            closed: the outlets whose deliveries it may not start.
            crash_limit: how often an event may be claimed before its deliveries are tried one by one.
            max_hops: the most hops of an event that is delivered.
            sent, until: when it was requested, and when its lease ends, on the monotonic clock.
        """
        self.claim = claim
        self.flights: dict[Outlet, Flight[Work]] = {}
        # a result of the matcher, and how many events in a row have it
        self._runs: list[tuple[tuple[Outlet, ...], int]] = []
        self._records: list[DeliveryRecord] = []
        self._attempts: list[AttemptRecord] = []
        self._turns: list[Turn] = []
        self.until = until
        self._front = 0  # how many of the first events are settled
        # of each outlet, when it was last asked: the marks of what was to end, and how many of them were missing
        self._left: Mapping[Outlet, tuple[Sequence[bytearray], int]] = {}
        self._loop = asyncio.get_running_loop()
        self._waiting: asyncio.Future[None] | None = None
        self._over = False
        self._flying = 0
        extended = with_extensions(claim.works)
        self._expiring = bool(extended) and set_deadlines(extended, claim.now, sent)
        self._assign(matcher, closed, crash_limit, endings(extended, max_hops))
        for each in claim.unreadable:
            self._bury(each, matcher)

    @property
    def held(self) -> int:
        """How many of its events are not settled."""
        return len(self.claim.works) - self._front

    def start(self) -> None:
        """Give every delivery to its outlet."""
        self._flying = len(self.flights)
        for outlet, flight in self.flights.items():
            if outlet.open:
                outlet.start(flight)
            else:  # since it was assigned
                flight.end()
        self._left = self._to_end()
        if not self._flying:
            self.hurry()

    async def wait(self, grace: float) -> bool:
        """Return when everything has finished, or at `hurry()`; False if neither came within `grace` seconds."""
        if not self._over:
            self._waiting = self._loop.create_future()
            timer = self._loop.call_later(grace, _wake, self._waiting)
            try:
                await self._waiting
            finally:
                timer.cancel()
        return self._over

    def hurry(self) -> None:
        """End the grace now."""
        self._over = True
        if self._waiting is not None:
            _wake(self._waiting)

    def keeps_up(self, left: float, passed: float) -> bool:
        """
        Return whether a subscription will be through within `left` seconds at its pace since the last call.

        False if deliveries that others could make, or that are to run later, wait to be recorded: since the events were
        assigned, or because an outlet has closed.

        Args:
            passed: seconds since the last call, or since the start.
        """
        before, self._left = self._left, self._to_end()
        if self._records or self.claim.unreadable:
            return False
        for outlet, flight in self.flights.items():
            if flight.stop < len(flight.works) or (flight.next < flight.stop and not outlet.open):
                return False
        return any(
            (count - _missing(marks)) * left >= self._left[outlet][1] * passed
            for outlet, (marks, count) in before.items()
            if outlet in self._left
        )

    def front(self, lease: timedelta) -> Settled | None:
        """Return the settlement of the first events whose deliveries have all ended; None if there are none."""
        if len(self._runs) != 1:
            return None  # an event has another place in the flight of each subscription
        start, stop = self._front, min(flight.ended_before for flight in self.flights.values())
        if start == stop:
            return None
        self._front = stop
        [(matched, _)] = self._runs
        rows = {outlet for outlet, flight in self.flights.items() if not flight.clean(start, stop)}
        for outlet in rows:
            self._write(outlet, self.flights[outlet], lease, range(start, stop))
        ids = tuple(outlet.id for outlet in matched if outlet not in rows)
        return self._settlement(self.claim.works[start:stop], [Run(ids, stop - start)], start)

    def settled(self, lease: timedelta) -> Settled:
        """Cut unfinished flights, and return the settlement of what is not settled."""
        start, rows = self._front, set()
        for outlet, flight in self.flights.items():
            if not flight.clean(start):
                rows.add(outlet)
                outlet.withdraw(flight)
                self._write(outlet, flight, lease, range(start, len(flight.works)))
        runs: list[Run] = []
        kept: dict[int, tuple[int, ...]] = {}
        for matched, count in self._runs:
            ids = kept.get(id(matched))
            if ids is None:
                ids = kept[id(matched)] = tuple(outlet.id for outlet in matched if outlet not in rows)
            runs.append(Run(ids, count - start))  # of a front there is one run
        works: Sequence[Work | UnreadableWork] = self.claim.works[start:] if start else self.claim.works
        if self.claim.unreadable:
            works = [*works, *self.claim.unreadable]
            runs.append(Run((), len(self.claim.unreadable)))
        return self._settlement(works, runs, start)

    def withdraw(self) -> None:
        """Start nothing more."""
        for outlet, flight in self.flights.items():
            outlet.withdraw(flight)

    def unfinished(self) -> list[tuple[Outlet, Flight[Work]]]:
        """Return the flights that were running when they were cut."""
        return [(outlet, flight) for outlet, flight in self.flights.items() if flight.watched]

    def _assign(
        self, matcher: Matcher[Outlet], closed: Set[Outlet], crash_limit: int, endings: Mapping[int, str]
    ) -> None:
        """Match every event, and assign the works to the open outlets, except those that end here."""
        match = matcher.match
        last: tuple[Outlet, ...] = ()
        count = 0
        splits: dict[int, tuple[tuple[Outlet, ...], tuple[Outlet, ...], list[Outlet]]] = {}
        for work in self.claim.works:
            try:
                matched = match(work.event)
            except Exception as error:
                fault = f"{type(error).__name__}: {error}"
                self._bury(UnreadableWork(work.position, work.attempt, work.seq, work.event.type, fault), matcher)
                matched = ()
            if endings and work.position in endings:
                matched = self._end(work, matched, endings[work.position])
            elif work.attempt > 1:
                matched = self._startable(work, matched, crash_limit)
            elif closed and not closed.isdisjoint(matched):
                # Equal matches are split into the same objects, so that events in a row stay one run.
                split = splits.get(id(matched))
                if split is None:
                    startable = tuple(outlet for outlet in matched if outlet not in closed)
                    split = (matched, startable, [outlet for outlet in matched if outlet in closed])
                    splits[id(matched)] = split
                _, matched, withheld = split
                self._records += [self._pending(work, outlet) for outlet in withheld]
            if matched is not last:
                if count:
                    self._runs.append((last, count))
                last, count = matched, 0
            count += 1
        if count:
            self._runs.append((last, count))
        for outlet, works in self._shares().items():
            self.flights[outlet] = Flight(
                works, self.until, expiring=self._expiring, ended=self._ended, recorded=self.claim.recorded
            )

    def _shares(self) -> Mapping[Outlet, Sequence[Work]]:
        """Return the works of each outlet; consecutive events with equal targets are grouped."""
        works = self.claim.works
        if len(self._runs) == 1:
            return dict.fromkeys(self._runs[0][0], works)
        shares: dict[Outlet, list[Work]] = {}
        start = 0
        for matched, count in self._runs:
            for outlet in matched:
                shares.setdefault(outlet, []).extend(works[start : start + count])
            start += count
        return shares

    def _bury(self, work: UnreadableWork, matcher: Matcher[Outlet]) -> None:
        """Record an unreadable event as dead for every subscription that may have matched it."""
        log.error("event cannot be read", seq=work.seq, reason=work.reason)
        for outlet in matcher.concerned(work.type):
            lease = Lease(work.seq, outlet.id, work.attempt, self.claim.token)
            self._records.append(unreadable(lease, work.reason))

    def _end(self, work: Work, matched: Sequence[Outlet], reason: str) -> tuple[Outlet, ...]:
        """Record the event as dead for every subscription that matched; return those that may deliver it: none."""
        leases = [Lease(work.seq, outlet.id, work.attempt, self.claim.token) for outlet in matched]
        self._records += [dead_untried(lease, reason) for lease in leases]
        return ()

    def _startable(self, work: Work, matched: Sequence[Outlet], crash_limit: int) -> tuple[Outlet, ...]:
        """Return the outlets that may deliver `work` now; record pending deliveries for the others."""
        startable = []
        for outlet in matched:
            # The attempts are the event's: a delivery of it may never have started, and gets its own counter.
            crashed = work.attempt > crash_limit or outlet.subscription.retry.exhausted(work.attempt)
            if crashed or not outlet.immediate:
                self._records.append(self._pending(work, outlet))
            else:
                startable.append(outlet)
        return tuple(startable)

    def _to_end(self) -> Mapping[Outlet, tuple[Sequence[bytearray], int]]:
        """Return what is to end in each outlet before it is through with this claim, if it is not."""
        left = {outlet: to_end(flight, outlet.flights) for outlet, flight in self.flights.items()}
        return {outlet: (marks, _missing(marks)) for outlet, marks in left.items() if marks}

    def _settlement(self, works: Sequence[Work | UnreadableWork], runs: Sequence[Run], start: int) -> Settled:
        """Return the settlement of events from `start` on, with the rows that are written."""
        recorded = self.claim.recorded
        if recorded is not None and works is not self.claim.works:
            first, last = recorded
            step = (last - first) / max(len(self.claim.works) - 1, 1)
            recorded = first + step * start, first + step * (start + len(works) - 1)
        settled = Settled(self.claim.token, works, runs, self._records, self._attempts, self._turns, recorded)
        self._records, self._attempts, self._turns = [], [], []
        return settled

    def _write(self, outlet: Outlet, flight: Flight[Work], lease: timedelta, indexes: range) -> None:
        """Record the deliveries of an outlet that did not all succeed."""
        running = set(outlet.in_flight(flight))
        troubles = {index: (outcome, seconds) for index, outcome, seconds in flight.troubles}
        token, policy = self.claim.token, outlet.subscription.retry
        for index in indexes:
            work = flight.works[index]
            if index >= flight.next:
                self._records.append(self._pending(work, outlet))
            elif index in running:
                leased = DeliveryState.LEASED
                self._records.append(DeliveryRecord(work.seq, outlet.id, leased, work.attempt, token, lease))
            elif index in troubles:
                held = Lease(work.seq, outlet.id, work.attempt, token)
                record, attempt = settle(policy, held, *troubles[index], left=work.deadline - monotonic())
                self._records.append(record)
                if attempt is not None:
                    self._attempts.append(attempt)
            elif flight.marks[index] == SUCCEEDED:
                done = DeliveryState.DELIVERED
                self._records.append(DeliveryRecord(work.seq, outlet.id, done, work.attempt, token))
            else:  # ended by a stop
                self._records.append(given_back(Lease(work.seq, outlet.id, work.attempt, token), started=True))

    def _pending(self, work: Work, outlet: Outlet) -> DeliveryRecord:
        order_by = outlet.subscription.order_by
        if order_by is not None:
            key = order_key(order_by, work.event, work.seq)
            self._turns.append(Turn(work.seq, outlet.id, key, work.position))
        return DeliveryRecord(work.seq, outlet.id, DeliveryState.PENDING, 0, self.claim.token)

    def _ended(self) -> None:
        self._flying -= 1
        if self._flying == 0:
            self.hurry()


def _missing(marks: Sequence[bytearray]) -> int:
    """Return how many deliveries have not ended."""
    return sum(each.count(0) for each in marks)


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
