"""The seam of the scheduler and of the operations on schedules, and its values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Protocol

from ...event import Event
from ...policies.schedule import Schedule
from ...policies.ticking import Standing
from ...subscription import Subscription

__all__ = [
    "Check",
    "Due",
    "DueSchedule",
    "Fired",
    "Firing",
    "Occurrence",
    "PutSchedule",
    "ScheduleView",
    "Schedules",
    "unchecked",
]


@dataclass(frozen=True, slots=True)
class DueSchedule:
    """
    A schedule that is due, as it was read.

    Attributes:
        revision: changes with everything but its ticks.
        stored: as `Schedule.from_json()` takes it.
    """

    id: int
    revision: int
    name: str
    stored: Any
    standing: Standing


class Due(NamedTuple):
    """
    Schedules that are due, earliest first.

    Attributes:
        now: the store's clock.
        next_in: until the first of the others is due; None without one.
        more: whether there may be more that are due.
    """

    schedules: Sequence[DueSchedule]
    now: datetime
    next_in: timedelta | None
    more: bool


class Occurrence(NamedTuple):
    """The event of a tick."""

    tick: datetime
    event: Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Firing:
    """
    One write about a schedule, unless another instance was first.

    Attributes:
        seen: the schedule as read; the firing fails if it has changed.
        occurrences: in the order of their ticks.
        tick: the first one that is not done with then; None if there is none any more.
        look_at: when the schedule is due next; None for never.
        missed, skipped: are added to what has been counted.
        queued_until: as in `Standing`.
        forget: occurrences of earlier ticks are deleted.
    """

    seen: DueSchedule
    occurrences: Sequence[Occurrence] = ()
    tick: datetime | None
    look_at: datetime | None
    missed: int = 0
    skipped: int = 0
    queued_until: datetime | None = None
    forget: datetime


class Fired(NamedTuple):
    """The result of one write: the ids of the schedules it was about, and how many events it published."""

    ids: frozenset[int]
    events: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleView:
    """
    A schedule as it is on record.

    Attributes:
        origin: `file` or `api`.
        active: whether the file has it still.
        tick: the next one; None when there is none any more, or it is paused or inactive.
        due_at: when its event is published, or the store looks at it again.
        last_tick: the last one that was published.
        missed: ticks that were too late to be published, since the schedule was made.
        skipped: ticks that were left out because the last occurrence had not ended.
    """

    id: int
    schedule: Schedule
    origin: str
    active: bool
    paused: bool
    tick: datetime | None
    due_at: datetime | None
    last_tick: datetime | None
    missed: int
    skipped: int
    paused_at: datetime | None
    paused_by: str | None
    updated_at: datetime

    @property
    def state(self) -> str:
        """`active`, `paused`, `inactive` (in no file any more) or `ended` (no tick is left)."""
        if not self.active:
            return "inactive"
        if self.paused:
            return "paused"
        return "ended" if self.tick is None else "active"


class PutSchedule(NamedTuple):
    """
    The result of putting one schedule.

    Attributes:
        view: it, as it is now.
        created: whether there was none of that name.
        changed: whether anything was written.
    """

    view: ScheduleView
    created: bool
    changed: bool


Check = Callable[[ScheduleView | None], None]
"""Called with the current object, in the transaction of the change; raises if the change does not apply to it."""


def unchecked(_known: ScheduleView | None) -> None:
    """Change any schedule of that name."""


class Schedules(Protocol):
    """
    Schedules and their occurrences. Every method is one transaction; every time is the store's.

    All raise `StorageUnavailable` when the store cannot be reached; all may be repeated then.
    """

    async def due(self, limit: int) -> Due:
        """Return at most `limit` schedules that are due. Only read."""

    async def fire(self, firings: Sequence[Firing]) -> Fired:
        """
        Record the occurrences with their events, each with its row of work, and what follows them.

        A firing takes effect whole or not at all: only while the schedule is due and as it was seen. Of several
        callers one succeeds, and none waits for another. A tick that has an occurrence gets no second one, and an
        event that is recorded already is not recorded again.
        """

    async def put_file(self, subscriptions: Sequence[Subscription], schedules: Sequence[Schedule]) -> None:
        """
        Make the active subscriptions and schedules of the origin `file` be exactly these, both or neither.

        Subscriptions are put as by `Registry.put_subscriptions()`. A schedule keeps its id, its history and its pause
        over any change. One that has not changed goes on where it was; one with other times begins at the first tick
        after now, or after what the old one was late for. One that is no longer given stops. Nothing is written when
        nothing changed.
        """

    async def put(self, schedule: Schedule, origin: str, check: Check = unchecked) -> PutSchedule:
        """
        Make or replace one schedule.

        Args:
            check: called before anything is written; no other change comes between the two.

        Raises:
            StateConflict: it belongs to another origin.
        """

    async def all(self) -> Sequence[ScheduleView]:
        """Return every schedule on record, by name."""

    async def one(self, name: str) -> ScheduleView:
        """Return one of them. Raise `NotFound`, with the names there are."""

    async def set_paused(self, name: str, paused: bool, by: str | None = None) -> bool:
        """
        Pause or resume; return whether that changed anything. Raise `NotFound` for an unknown name.

        What would have been published meanwhile is not caught up.
        """

    async def remove(self, name: str, check: Check = unchecked) -> None:
        """Forget a schedule and its occurrences, as `check` lets it. Raise `NotFound` for an unknown name."""

    async def now(self) -> datetime:
        """Return the store's clock."""
