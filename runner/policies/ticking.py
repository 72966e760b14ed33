"""Ticks of a schedule that are due: which are published, missed, skipped or put off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import chain
from typing import NamedTuple

from .schedule import Schedule

__all__ = ["EXAMINED", "Decision", "Standing", "decide"]

EXAMINED = 1000
"""Ticks that one decision looks at: a schedule that was late for a year must not stop the event loop."""

_SHORTEST_GRACE, _LONGEST_GRACE = timedelta(seconds=1), timedelta(minutes=1)
_SHORTEST_HOLD, _LONGEST_HOLD = timedelta(milliseconds=250), timedelta(seconds=5)
_ABSENCE = 3 * _LONGEST_HOLD  # without a look at a tick that is put off for so long, no instance was there


@dataclass(frozen=True, slots=True)
class Standing:
    """
    How far a schedule is.

    Attributes:
        tick: the first one that is not done with.
        busy: whether deliveries of the last occurrence are still to come or under way.
        queued_until: of `overlap: queue`, the ticks up to then were there in time, and only wait for their turn.
    """

    tick: datetime
    busy: bool = False
    queued_until: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """
    The decision about a schedule that is due.

    Attributes:
        fire: ticks whose events are published, in order.
        tick: the first one that is not done with then; None if there is none any more.
        look_at: when to look at it; None for never.
        missed: ticks that were too late to be published.
        skipped: how many were left out because the last occurrence had not ended.
        queued_until: as in `Standing`.
        examined: how many ticks were looked at.
    """

    fire: Sequence[datetime] = ()
    tick: datetime | None = None
    look_at: datetime | None = None
    missed: Sequence[datetime] = ()
    skipped: int = 0
    queued_until: datetime | None = None
    examined: int = 0


class _Due(NamedTuple):
    """Ticks that are due, and the one after them; `cut` if that may be due as well."""

    ticks: Sequence[datetime]
    following: datetime | None
    cut: bool


def decide(schedule: Schedule, standing: Standing, now: datetime, most: int = EXAMINED) -> Decision:
    """
    Return what is to be done about the ticks that are due at `now`.

    Where more than `most` are, the decision leads to the next of them, which is to be looked at immediately.
    """
    due = _due(schedule, standing.tick, now, most)
    if not due.ticks:
        tick = standing.tick
        return Decision(tick=tick, look_at=schedule.due_at(tick), queued_until=standing.queued_until)
    queued_until = standing.queued_until
    if schedule.overlap == "queue" and queued_until is not None and standing.tick <= queued_until:
        # Whatever `catch_up` says, this one was not missed; nor was what has come since, if somebody has been there.
        until = now if now - queued_until <= _ABSENCE else queued_until
        turn = Decision(queued_until=until, examined=1)
        rest = due.ticks[1] if len(due.ticks) > 1 else due.following
        return _in_turn(schedule, standing, rest, now, turn)
    wanted, missed = _caught_up(schedule, due, now)
    if schedule.overlap == "allow" and not due.cut:  # nearly all there are, and a thousand of them at once
        look_at = None if due.following is None else schedule.due_at(due.following)
        return Decision(fire=wanted, tick=due.following, look_at=look_at, missed=missed, examined=len(due.ticks))
    turn = Decision(missed=missed, examined=len(due.ticks))
    following = due.following
    if due.cut and schedule.catch_up != "all":
        following = due.ticks[-1]  # perhaps not the last one that is due
    elif schedule.overlap == "queue" and wanted:
        following = wanted[1] if len(wanted) > 1 else following
        head = replace(standing, tick=wanted[0])
        return _in_turn(schedule, head, following, now, replace(turn, queued_until=now))
    elif schedule.overlap == "skip" and standing.busy:
        turn = replace(turn, skipped=len(wanted))
    elif schedule.overlap == "skip" and len(wanted) > 1:
        following = wanted[1]  # to be looked at when the first one has been published
        turn = replace(turn, fire=wanted[:1])
    else:
        turn = replace(turn, fire=wanted)
    return _followed_by(schedule, turn, following)


def _due(schedule: Schedule, first: datetime, now: datetime, most: int) -> _Due:
    ticks: list[datetime] = []
    following: datetime | None = first
    for following in chain((first,), schedule.ticks(first)):
        due = schedule.due_at(following) <= now
        if not due or len(ticks) == most:
            return _Due(ticks, following, due)
        ticks.append(following)
    return _Due(ticks, None, cut=False)


def _caught_up(schedule: Schedule, due: _Due, now: datetime) -> tuple[Sequence[datetime], Sequence[datetime]]:
    """Return the ticks that `catch_up` wants to be published, and those that are missed."""
    ticks = due.ticks
    if due.cut and schedule.catch_up != "all":
        return (), ticks[:-1]
    limit = schedule.window
    if schedule.catch_up == "none":
        limit = _grace(ticks[-1], due.following)
    candidates = ticks if schedule.catch_up == "all" else ticks[-1:]
    wanted = [tick for tick in candidates if now - schedule.due_at(tick) <= limit]
    kept = frozenset(wanted)
    return wanted, [tick for tick in ticks if tick not in kept]


def _grace(tick: datetime, following: datetime | None) -> timedelta:
    """Return how late a tick may be and still count as in time: half the time to the next one, within bounds."""
    if following is None:
        return _LONGEST_GRACE
    return min(max((following - tick) / 2, _SHORTEST_GRACE), _LONGEST_GRACE)


def _in_turn(
    schedule: Schedule, standing: Standing, following: datetime | None, now: datetime, turn: Decision
) -> Decision:
    """Return the decision about a tick that waits until its predecessor's deliveries have ended."""
    if not standing.busy:
        return _followed_by(schedule, replace(turn, fire=(standing.tick,)), following)
    late = now - schedule.due_at(standing.tick)
    look_at = now + min(max(late / 4, _SHORTEST_HOLD), _LONGEST_HOLD)
    return replace(turn, tick=standing.tick, look_at=look_at)


def _followed_by(schedule: Schedule, turn: Decision, tick: datetime | None) -> Decision:
    return replace(turn, tick=tick, look_at=None if tick is None else schedule.due_at(tick))
