"""The schedules of the file: an event at regular times."""

from __future__ import annotations

import contextlib
import functools
import re
import zoneinfo
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from ..errors import EventError
from ..event import Event
from ..policies.cron import Cron, CronError, NeverFires
from ..policies.schedule import EventTemplate, Schedule, tick_text
from .duration import Duration, PositiveDuration, format_duration
from .errors import got, suggestion
from .fields import Model, Name, context_of
from .source import unplaced

__all__ = ["ScheduleEntry", "Template"]

_EXAMPLE = "2026-01-31T02:00:00Z"
_MOST_DATA = 64 * 1024  # bytes; hundreds of schedules may be due at the same moment
_MOST_TEXT = 1024
_SECOND = timedelta(seconds=1)
_WHOLE = "expected whole seconds: the id of an event has no more of its time"
_YEARS = range(1970, 9000)
_RFC3339 = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9:.,]+([Zz]|[+-][0-9]{2}:?[0-9]{2})", re.ASCII)
_DEFAULTS = Schedule(name="defaults", every=timedelta(hours=1), event=EventTemplate(type="defaults"))


def _cron(value: str) -> str:
    try:
        Cron(value)
    except NeverFires:
        raise ValueError(f"{got(value)} names no date that ever comes") from None
    except CronError as error:
        named = repr(value) if re.fullmatch("@[A-Za-z]{1,20}", value) else got(value)  # not a login, in spite of its @
        raise ValueError(f"expected a cron expression such as '0 2 * * *', got {named}: {error}") from error
    return value


@functools.cache
def _zones() -> frozenset[str]:
    return frozenset(zoneinfo.available_timezones())  # reads hundreds of files


def _timezone(value: str) -> str:
    try:
        zoneinfo.ZoneInfo(value)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        hint = suggestion(value, _zones())
        raise ValueError(f"expected an IANA time zone such as Europe/Paris, got {got(value)}{hint}") from error
    return value


def _moment(value: object) -> datetime:
    if isinstance(value, str) and _RFC3339.fullmatch(value):
        with contextlib.suppress(ValueError):
            value = datetime.fromisoformat(value.upper())
    if not isinstance(value, datetime):
        raise ValueError(f"expected a time such as {_EXAMPLE}, with Z or an offset, got {got(value)}")
    if value.tzinfo is None:
        raise ValueError(f"expected a time with an offset, such as {_EXAMPLE}, got {got(value.isoformat())}")
    if value.year not in _YEARS:
        raise ValueError(f"expected a year from {_YEARS[0]} to {_YEARS[-1]}, got {got(value.isoformat())}")
    return value.astimezone(UTC)


def _length(value: timedelta) -> timedelta:
    if value < _SECOND:
        raise ValueError(f"expected at least 1s, got {format_duration(value)}")
    if value % _SECOND:
        raise ValueError(_WHOLE)
    return value


def _anchor(value: datetime) -> datetime:
    if value.microsecond:
        raise ValueError(_WHOLE)
    return value


Moment = Annotated[
    datetime,
    BeforeValidator(_moment),
    PlainSerializer(lambda moment: moment.isoformat().replace("+00:00", "Z"), return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time", "examples": [_EXAMPLE]}),
]
"""A point in time by RFC 3339, with its offset; kept in UTC."""


class Template(Model):
    """The event that a schedule publishes."""

    type: str = Field(min_length=1, max_length=_MOST_TEXT, description="Event type.")
    source: str | None = Field(
        default=None, min_length=1, max_length=_MOST_TEXT, description="Event source; `/schedules/NAME` by default."
    )
    subject: str | None = Field(default=None, min_length=1, max_length=_MOST_TEXT, description="Event subject.")
    data: Annotated[Any, BeforeValidator(unplaced)] = Field(
        default=None, description="Data, written as JSON; at most 64 KiB."
    )

    @model_validator(mode="after")
    def _an_event(self) -> Self:
        self.to_template()
        return self

    def to_template(self) -> EventTemplate:
        """Return the template. Raise `ValueError` if it makes no valid event."""
        try:
            event = Event.new(self.type, self.data, source=self.source or "/schedules", subject=self.subject)
        except EventError as error:
            raise ValueError(str(error)) from error
        if event.data is not None and len(event.data) > _MOST_DATA:
            raise ValueError(f"data: {len(event.data)} bytes as JSON, at most {_MOST_DATA} are taken")
        data = None if event.data is None else event.data.decode()
        return EventTemplate(type=self.type, source=self.source, subject=self.subject, data=data)


class ScheduleEntry(Model):
    """An event at regular times, by `cron` or `every`."""

    name: Name = Field(description="Unique name.")
    cron: Annotated[str, AfterValidator(_cron)] | None = Field(
        default=None,
        description="Cron expression of five fields, or six with seconds, or `@daily` and the like; or else `every`.",
    )
    timezone: Annotated[str, AfterValidator(_timezone)] = Field(
        default=_DEFAULTS.timezone, description="IANA time zone of `cron`."
    )
    every: Annotated[Duration, AfterValidator(_length)] | None = Field(
        default=None, description="Time from one event to the next, in whole seconds; in place of `cron`."
    )
    anchor: Annotated[Moment, AfterValidator(_anchor)] = Field(
        default=_DEFAULTS.anchor, description="A time that `every` is counted from, in both directions."
    )
    start_at: Moment | None = Field(default=None, description="No event has an earlier time.")
    end_at: Moment | None = Field(default=None, description="No event has a later time.")
    jitter: Duration = Field(
        default=_DEFAULTS.jitter,
        description="Each event is put off by up to so much: always the same for one name and time.",
    )
    catch_up: Literal["none", "one", "all"] = Field(
        default=_DEFAULTS.catch_up, description="What to publish of times that were missed: none, the last one, or all."
    )
    window: PositiveDuration = Field(
        default=_DEFAULTS.window, description="What was missed longer ago than this is not published any more."
    )
    overlap: Literal["allow", "skip", "queue"] = Field(
        default=_DEFAULTS.overlap,
        description="While deliveries of the last event have not ended: publish the next one, skip it, or let it wait.",
    )
    event: Template = Field(description="The event.")

    @field_validator("name")
    @classmethod
    def _unique(cls, name: str, info: ValidationInfo) -> str:
        context_of(info).claim("schedule", name)
        return name

    @field_validator("timezone")
    @classmethod
    def _of_cron(cls, timezone: str, info: ValidationInfo) -> str:
        if info.data.get("cron", "") is None:
            raise ValueError("it belongs to cron; every is counted in elapsed time, from anchor")
        return timezone

    @field_validator("every")
    @classmethod
    def _instead_of_cron(cls, every: timedelta | None, info: ValidationInfo) -> timedelta | None:
        if every is not None and info.data.get("cron") is not None:
            raise ValueError("cron and every exclude each other; leave one of them out")
        return every

    @field_validator("anchor")
    @classmethod
    def _of_every(cls, anchor: datetime, info: ValidationInfo) -> datetime:
        if info.data.get("every", "") is None:
            raise ValueError("it belongs to every; for the first event of cron use start_at")
        return anchor

    @field_validator("end_at")
    @classmethod
    def _after_start(cls, end_at: datetime | None, info: ValidationInfo) -> datetime | None:
        start_at = info.data.get("start_at")
        if end_at is not None and start_at is not None and end_at < start_at:
            raise ValueError(f"expected a time after start_at, {tick_text(start_at)}, got {tick_text(end_at)}")
        return end_at

    @field_validator("jitter")
    @classmethod
    def _below_every(cls, jitter: timedelta, info: ValidationInfo) -> timedelta:
        every = info.data.get("every")
        if every is not None and jitter > every:
            raise ValueError("expected no more than every, or events would pass each other")
        return jitter

    @model_validator(mode="after")
    def _some_times(self) -> Self:
        if self.cron is None and self.every is None:
            raise ValueError("expected cron or every")
        return self

    def to_schedule(self) -> Schedule:
        """Return the schedule."""
        fields = {name: getattr(self, name) for name in type(self).model_fields if name != "event"}
        return Schedule(**fields, event=self.event.to_template())
