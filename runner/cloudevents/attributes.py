"""Attributes: an event from what a message gives, and values in their canonical text form."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

from ..errors import EventError
from ..event import NO_EXTENSIONS, Event, ExtensionValue

__all__ = ["NAMES", "SPECVERSION", "check_version", "event_of", "shown", "time_of", "timestamp"]

SPECVERSION = "1.0"
NAMES = ("type", "source", "id", "subject", "time", "datacontenttype", "dataschema")
"""The attributes CloudEvents 1.0 defines, other than `specversion`, in the order in which they are written."""

_REQUIRED = ("id", "source", "type")
_RFC3339 = re.compile(
    r"(?P<day>\d{4}-\d\d-\d\d)[Tt](?P<minute>(?:[01]\d|2[0-3]):[0-5]\d):(?P<second>[0-5]\d|60)"
    r"(?:\.(?P<fraction>\d+))?(?P<offset>[Zz]|[+-](?:[01]\d|2[0-3]):[0-5]\d)\Z",
    re.ASCII,
)


def check_version(version: object, name: str = "specversion") -> None:
    """Raise `EventError` unless this is version 1.0; an absent one is None."""
    if version != SPECVERSION:
        raise EventError(f"{name}: expected {SPECVERSION!r}, got {shown(version)}", attribute="specversion")


def event_of(given: dict[str, Any], data: bytes | None) -> Event:
    """
    Return the event that has these attributes and no others.

    Args:
        given: attributes by name, as they were read; `time` as text, without `specversion`. It is used up.
        data: the bytes of its data; None without any.

    Raises:
        EventError: a required attribute is missing, or one breaks CloudEvents 1.0.
    """
    take = given.pop
    id_, source, type_, time = take("id", None), take("source", None), take("type", None), take("time", None)
    if id_ is None or source is None or type_ is None:
        name = next(name for name, value in zip(_REQUIRED, (id_, source, type_), strict=True) if value is None)
        raise EventError(f"{name}: missing; CloudEvents 1.0 requires it", attribute=name)
    event = Event(
        type=type_,
        source=source,
        id=id_,
        subject=take("subject", None),
        time=None if time is None else time_of(time),
        datacontenttype=take("datacontenttype", None),
        dataschema=take("dataschema", None),
        extensions=_extensions(given) if given else NO_EXTENSIONS,
        data=data,
    )
    event.validate()
    return event


def _extensions(given: dict[str, Any]) -> dict[str, ExtensionValue]:
    for name, value in given.items():
        if not isinstance(value, str | int):
            raise EventError(
                f"extension {name!r}: expected a string, an integer or a boolean, got {shown(value)}", attribute=name
            )
    return given


def time_of(value: object) -> datetime:
    """
    Return a timestamp of RFC 3339 §5.6 in UTC; digits beyond microseconds are cut off.

    A leap second is the first moment of the next day, as on every clock that has none.

    Raises:
        EventError: it is none.
    """
    found = _RFC3339.match(value) if isinstance(value, str) else None
    try:
        if found is None:
            raise ValueError("no match")
        leap = found["second"] == "60"
        fraction = "0" if leap else (found["fraction"] or "0")[:6]
        offset = "+00:00" if found["offset"] in "Zz" else found["offset"]
        second = "59" if leap else found["second"]
        text = f"{found['day']}T{found['minute']}:{second}.{fraction.ljust(6, '0')}{offset}"
        time = datetime.fromisoformat(text).astimezone(UTC)
        return _after_leap_second(time) if leap else time
    except (ValueError, OverflowError) as error:
        raise EventError(
            f"time: expected RFC 3339, such as '2026-01-31T12:00:00Z', got {shown(value)}", attribute="time"
        ) from error


def _after_leap_second(last: datetime) -> datetime:
    """Return the moment after `last`, the 60th second of a month's last minute (RFC 3339 §5.7)."""
    following = last + timedelta(seconds=1)
    if (following.day, following.hour, following.minute) != (1, 0, 0):
        raise ValueError("no leap second")
    return following


def timestamp(time: datetime) -> str:
    """Return the canonical text of a time: RFC 3339, in UTC (CloudEvents 1.0 §3.1)."""
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def shown(value: object) -> str:
    """Return how an error shows a value: short, and with nothing in it that could drive a terminal."""
    if value is None:
        return "nothing"
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "an array"
    return ascii(value if not isinstance(value, str) or len(value) <= 40 else value[:40] + "...")
