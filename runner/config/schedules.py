"""The schedules of the file: an event at regular times."""

from __future__ import annotations

import functools
import zoneinfo
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from .errors import got, suggestion
from .fields import Model, Name, context_of

__all__ = ["EventTemplate", "ScheduleEntry"]


def _cron(value: str) -> str:
    from cronsim import CronSim, CronSimError  # of use to schedules only

    try:
        next(CronSim(value, datetime(2024, 1, 1)))
    except StopIteration:
        raise ValueError(f"{got(value)} names no date that ever comes") from None
    except (CronSimError, ValueError, OverflowError) as error:
        reason = str(error).lower() or "it cannot be read"
        raise ValueError(f"expected a cron expression such as '0 2 * * *', got {got(value)}: {reason}") from error
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


class EventTemplate(Model):
    """The event that a schedule publishes."""

    type: str = Field(min_length=1, description="Event type.")
    source: str | None = Field(default=None, min_length=1, description="Event source; `/schedules/NAME` by default.")
    subject: str | None = Field(default=None, min_length=1, description="Event subject.")
    data: Any = Field(default=None, description="Data, written as JSON.")


class ScheduleEntry(Model):
    """An event at regular times."""

    name: Name = Field(description="Unique name.")
    cron: Annotated[str, AfterValidator(_cron)] = Field(
        description="Cron expression of five fields, or six with seconds."
    )
    timezone: Annotated[str, AfterValidator(_timezone)] = Field(
        default="UTC", description="IANA time zone of the expression."
    )
    catch_up: Literal["none", "one", "all"] = Field(
        default="one", description="What to publish for times that were missed."
    )
    event: EventTemplate = Field(description="The event.")

    @field_validator("name")
    @classmethod
    def _unique(cls, name: str, info: ValidationInfo) -> str:
        context_of(info).claim("schedule", name)
        return name
