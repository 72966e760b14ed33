"""The scheduler: publishes the events of schedules when they are due."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from time import monotonic

import structlog

from ..errors import described
from ..policies.schedule import Schedule, tick_text
from ..policies.ticking import EXAMINED, Decision, decide
from ..service.background import Background
from ..service.clock import wait_for
from ..service.tally import Tally
from ..storage.contract.schedules import Due, DueSchedule, Fired, Firing, Occurrence, Schedules

__all__ = ["Missed", "Scheduler"]

log = structlog.get_logger(__name__)

_BATCH = 500  # schedules in one transaction
_TICKS = 2000  # examined before a write, because a schedule that is far behind has many
_BYTES = 8 * 1024 * 1024  # of the data of their events
_NAMED = 10  # schedules, in a line of the log
_KEPT = 20_000  # schedules that are remembered as they were read
_LONGEST = 30.0  # seconds between looks, whatever is due: the store's clock may be set
_SECOND_BEST = (0.02, 0.06)  # seconds that the other instances wait for the one that published the last tick
_CROWDED = (0.01, 0.04)  # seconds, after another instance was faster
_UNREADABLE = timedelta(minutes=1)  # between looks at a schedule that cannot be read
_NEVER = datetime(1970, 1, 1, tzinfo=UTC)
_MARGIN = timedelta(hours=1)  # for which occurrences are kept beyond the window: clocks are set


@dataclass(frozen=True, slots=True)
class Missed:
    """Ticks of one schedule that were too late to be published."""

    schedule: str
    count: int
    first: datetime
    last: datetime


class Scheduler:
    """
    Publish the events of schedules when they are due.

    Every instance of a deployment has one, and none is special: each looks when the next schedule is due, and of
    several that see the same one the store lets one fire it. The one that was first the last time looks first.
    """

    def __init__(
        self,
        schedules: Schedules,
        tally: Tally,
        *,
        announce: Callable[[], object],
        on_missed: Callable[[Missed], object] = lambda _: None,
    ) -> None:
        """
        Publish through `schedules`.

        Args:
            tally: counts the events that are recorded here.
            announce: wakes the worker of this process and notifies the others.
            on_missed: called with each number of ticks that were missed, once it is on record.
        """
        self._schedules = schedules
        self._announce = announce
        self._tally = tally
        self._on_missed = on_missed
        self._known: dict[tuple[int, int], Schedule] = {}  # by id and revision
        self._woken = asyncio.Event()
        self._ending = False
        self._look_at = 0.0  # on the monotonic clock
        self._first = False  # whether this instance published the last tick
        self.loop = Background("schedule", self._look, nudge=self._nudge)

    def wake(self) -> None:
        """Look now: a schedule may have changed. Cheap, and safe to call at any time from the event loop."""
        self._woken.set()

    async def start(self) -> None:
        """Begin; due schedules are found without a wake."""
        self._ending, self._look_at = False, 0.0
        self.loop.start()

    async def stop(self) -> None:
        """Return once the events in progress are recorded."""
        await self.loop.stop()

    @property
    def stalled(self) -> float:
        """Seconds for which the loop has been stuck in one step."""
        return self.loop.stalled

    async def _look(self) -> None:
        """Sleep until a schedule is due, and publish what is."""
        wait = self._look_at - monotonic()
        if wait > 0:
            await self.loop.rest(wait_for(self._woken, timedelta(seconds=wait)))
        self._woken.clear()
        if self._ending:
            return
        self._look_at = 0.0  # if this step fails, the next one looks at once
        due = await self._schedules.due(_BATCH)
        seen_at = monotonic()
        if not due.schedules:
            self._first = False  # if anything was due, another instance published it
            self._sleep(seen_at, due.next_in)
            return
        firings = self._firings(due)
        fired = await self._schedules.fire([firing for firing, _ in firings])
        if fired.events:
            self._announce()
            held = (firing for firing, _ in firings if firing.seen.id in fired.ids)
            sources = (each.event.source for firing in held for each in firing.occurrences)
            self._tally.add_ticks(islice(sources, fired.events))  # others were on record before
        _report_taken([firing for firing, _ in firings], fired)
        for firing, decision in firings:
            if firing.seen.id in fired.ids:
                self._report(firing.seen.name, decision)
        self._first = len(fired.ids) == len(firings)
        if not self._first:
            self._look_at = monotonic() + random.uniform(*_CROWDED)
        elif len(firings) == len(due.schedules) and not due.more:
            looks = [firing.look_at - due.now for firing, _ in firings if firing.look_at is not None]
            self._sleep(seen_at, min([*looks, *filter(None, [due.next_in])], default=None))

    def _sleep(self, since: float, wait: timedelta | None) -> None:
        """Note when to look next: so long after `since`, and a little later if another instance is likely to do it."""
        seconds = _LONGEST if wait is None else min(wait.total_seconds(), _LONGEST)
        self._look_at = since + seconds + (0.0 if self._first else random.uniform(*_SECOND_BEST))

    def _firings(self, due: Due) -> list[tuple[Firing, Decision]]:
        """Return what is to be written about the first schedules that are due, as many as one transaction takes."""
        firings: list[tuple[Firing, Decision]] = []
        ticks, left = 0, _BYTES
        for seen in due.schedules:
            schedule = self._read(seen)
            if schedule is None:
                later = due.now + _UNREADABLE
                tick = seen.standing.tick
                firings.append((Firing(seen=seen, tick=tick, look_at=later, forget=_NEVER), Decision()))
                continue
            size = len(schedule.event.data or "") or 1
            decision = decide(schedule, seen.standing, due.now, most=max(1, min(EXAMINED, left // size)))
            firings.append((_firing(seen, schedule, decision), decision))
            ticks += decision.examined
            left -= size * len(decision.fire)
            if ticks >= _TICKS or left <= 0:
                break
        return firings

    def _read(self, seen: DueSchedule) -> Schedule | None:
        """Return the schedule; None, and a line in the log, where a newer version wrote what cannot be read here."""
        key = (seen.id, seen.revision)
        known = self._known.get(key)
        if known is None:
            try:
                known = Schedule.from_json(seen.name, seen.stored)
            except Exception as error:
                log.error("schedule cannot be read", schedule=seen.name, detail=described(error))
                return None
            if len(self._known) >= _KEPT:
                self._known.clear()
            self._known[key] = known
        return known

    def _report(self, name: str, decision: Decision) -> None:
        """Report missed ticks."""
        if decision.skipped:
            log.info("ticks skipped, the last occurrence has not ended", schedule=name, ticks=decision.skipped)
        if decision.missed:
            missed = Missed(name, len(decision.missed), decision.missed[0], decision.missed[-1])
            bounds = {"first": tick_text(missed.first), "last": tick_text(missed.last)}
            log.warning("ticks missed", schedule=name, ticks=missed.count, **bounds)
            self._on_missed(missed)

    def _nudge(self) -> None:
        """Let the loop see that it is to end."""
        self._ending = True
        self._woken.set()


def _report_taken(firings: Sequence[Firing], fired: Fired) -> None:
    """Report ticks that published nothing, because events of their source and id had been recorded before."""
    ours = [each for each in firings if each.seen.id in fired.ids]
    taken = sum(len(each.occurrences) for each in ours) - fired.events
    if taken > 0:
        names = sorted(each.seen.name for each in ours if each.occurrences)
        log.warning("ticks taken, their events were recorded before", count=taken, schedules=names[:_NAMED])


def _firing(seen: DueSchedule, schedule: Schedule, decision: Decision) -> Firing:
    occurrences = [Occurrence(tick, schedule.event_of(tick)) for tick in decision.fire]
    return Firing(
        seen=seen,
        occurrences=occurrences,
        tick=decision.tick,
        look_at=decision.look_at,
        missed=len(decision.missed),
        skipped=decision.skipped,
        queued_until=decision.queued_until,
        forget=(decision.fire[0] if decision.fire else seen.standing.tick) - schedule.window - _MARGIN,
    )
