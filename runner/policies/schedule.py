"""A schedule: which event is published at which times."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, Literal

import msgspec

from ..event import Event
from .cron import Cron

__all__ = ["CATCH_UP", "OVERLAP", "SOURCES", "CatchUp", "EventTemplate", "Overlap", "Schedule", "tick_text"]

CatchUp = Literal["none", "one", "all"]
Overlap = Literal["allow", "skip", "queue"]
CATCH_UP: tuple[CatchUp, ...] = ("none", "one", "all")
OVERLAP: tuple[Overlap, ...] = ("allow", "skip", "queue")
SOURCES = "/schedules/"
"""The beginning of the sources of ticks; the name of the schedule follows."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)
_MILLISECOND = timedelta(milliseconds=1)
_MICROSECOND = timedelta(microseconds=1)
_NOTHING = timedelta(0)
_FAR = timedelta(days=1)
_TIMES = ("cron", "timezone", "every", "anchor", "start_at", "end_at")  # the fields that determine the ticks


def tick_text(tick: datetime) -> str:
    """Return a nominal time as the ids of events have it: `2026-01-31T02:00:00Z`."""
    return tick.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, slots=True, kw_only=True)
class EventTemplate:
    """
    The event of a schedule, but for its id and time.

    Attributes:
        source: `/schedules/NAME` by default.
        data: as JSON text.
    """

    type: str
    source: str | None = None
    subject: str | None = None
    data: str | None = None


# Without slots: what its expression was parsed into is kept with it.
@dataclass(frozen=True, kw_only=True)
class Schedule:
    """
    An event at regular times: of a cron expression in a time zone, or every so often from an anchor on.

    A tick is a nominal time, in whole seconds. It is due `offset()` later.

    Attributes:
        cron: five or six fields; or else `every`, in whole seconds.
        anchor: a time that ticks of `every` are counted from, in both directions.
        start_at, end_at: the first and the last time a tick may have.
        jitter: ticks are put off by up to so much, each by its own share.
        catch_up: which of the ticks missed during an outage are published: none, the last one, or all.
        window: how late a tick may be published.
        overlap: whether a tick whose predecessor's deliveries have not ended is published, skipped, or put off.
    """

    name: str
    event: EventTemplate
    cron: str | None = None
    timezone: str = "UTC"
    every: timedelta | None = None
    anchor: datetime = _EPOCH
    start_at: datetime | None = None
    end_at: datetime | None = None
    jitter: timedelta = _NOTHING
    catch_up: CatchUp = "one"
    window: timedelta = timedelta(days=1)
    overlap: Overlap = "allow"

    def __post_init__(self) -> None:
        if (self.cron is None) == (self.every is None):
            raise ValueError(f"schedule {self.name!r}: expected either cron or every")
        if self.every is not None and (self.every < _SECOND or self.every % _SECOND):
            raise ValueError(f"schedule {self.name!r}: every: expected whole seconds, one at least")
        if self.cron is not None:
            self._cron  # noqa: B018  # an expression or a zone that is none fails here

    @property
    def source(self) -> str:
        """The source of its events."""
        return self.event.source or f"{SOURCES}{self.name}"

    def event_id(self, tick: datetime) -> str:
        """Return the id of the event of a tick."""
        return f"{self.name}/{tick_text(tick)}"

    def event_of(self, tick: datetime) -> Event:
        """Return the event of a tick: the same in every process, so that a second one is a duplicate."""
        return self.event_at(tick, self.event_id(tick))

    def event_at(self, time: datetime, id: str) -> Event:
        """Return the event with another id, for another time than a tick."""
        data = self.event.data
        return Event(
            type=self.event.type,
            source=self.source,
            id=id,
            subject=self.event.subject,
            time=time,
            datacontenttype=None if data is None else "application/json",
            data=None if data is None else data.encode(),
        )

    def after(self, moment: datetime) -> datetime | None:
        """Return the first tick after `moment`; None if there is none any more."""
        if self.start_at is not None:
            moment = max(moment, self.start_at - _MICROSECOND)
        tick = self._next(moment)
        return None if tick is None or (self.end_at is not None and tick > self.end_at) else tick

    def ticks(self, after: datetime) -> Iterator[datetime]:
        """Yield the ticks after a moment."""
        tick = self.after(after)
        while tick is not None:
            yield tick
            tick = self.after(tick)

    def offset(self, tick: datetime) -> timedelta:
        """Return by how much a tick is put off: below `jitter`, a function of name and tick alone."""
        steps = self.jitter // _MILLISECOND
        if steps <= 0:
            return _NOTHING
        digest = hashlib.sha256(self.event_id(tick).encode()).digest()
        return int.from_bytes(digest[:8], "big") % steps * _MILLISECOND

    def due_at(self, tick: datetime) -> datetime:
        """Return when the event of a tick is to be published."""
        return tick + self.offset(tick)

    def in_place_of(self, other: Schedule, tick: datetime, now: datetime, last: datetime | None) -> datetime | None:
        """
        Return the first tick of a schedule that replaces another one at `now`; None if there is none.

        What the other one was late for is caught up by the new times; what was published is not published again.

        Args:
            tick: of the other one, the first that is not done with.
            last: of the other one, the last that was published.
        """
        if all(getattr(self, name) == getattr(other, name) for name in _TIMES):
            return tick
        since = min(now, tick - _MICROSECOND)
        if last is not None and last <= now + _FAR:  # else it is of a clock that was far ahead
            since = max(since, last)
        return self.after(since)

    @cached_property
    def _cron(self) -> Cron:
        return Cron(self.cron or "", self.timezone)

    def _next(self, moment: datetime) -> datetime | None:
        if self.every is None:
            return self._cron.after(moment)
        return self.anchor + ((moment - self.anchor) // self.every + 1) * self.every

    def to_json(self) -> dict[str, Any]:
        """Return the form in which it is stored: JSON types only, durations in seconds, times as RFC 3339."""
        return {
            "cron": self.cron,
            "timezone": self.timezone,
            "every": None if self.every is None else self.every.total_seconds(),
            "anchor": _written(self.anchor),
            "start_at": self.start_at and _written(self.start_at),
            "end_at": self.end_at and _written(self.end_at),
            "jitter": self.jitter.total_seconds(),
            "catch_up": self.catch_up,
            "window": self.window.total_seconds(),
            "overlap": self.overlap,
            "event": {name: getattr(self.event, name) for name in ("type", "source", "subject", "data")},
        }

    @classmethod
    def from_json(cls, name: str, stored: Mapping[str, Any]) -> Schedule:
        """Return what `to_json()` wrote, in this version or an earlier one."""
        return msgspec.convert({**stored, "name": name}, cls, strict=False)


def _written(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
