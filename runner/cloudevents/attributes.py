"""Attributes: an event from what a message gives, and values in their canonical text form."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from ..errors import EventError
from ..event import NO_EXTENSIONS, Event, ExtensionValue, read_timestamp, shown
from ..event import write_timestamp as timestamp

__all__ = ["NAMES", "SPECVERSION", "check_version", "event_of", "shown", "time_of", "timestamp"]

SPECVERSION = "1.0"
NAMES = ("type", "source", "id", "subject", "time", "datacontenttype", "dataschema")
"""The attributes CloudEvents 1.0 defines, other than `specversion`, in the order in which they are written."""

_REQUIRED = ("id", "source", "type")


def check_version(version: object, name: str = "specversion") -> None:
    """Raise `EventError` unless this is version 1.0; an absent one is None."""
    if version != SPECVERSION:
        raise EventError(f"{name}: expected {SPECVERSION!r}, got {shown(version)}", attribute="specversion")


def event_of(given: dict[str, Any], data: bytes | None) -> Event:
    """
    Return the event that has these attributes and no others.

    Args:
        given: attributes by name, as they were read; `time` as text, without `specversion`. The mapping is consumed.
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
    """Return the `time` of an event; see `read_timestamp()`."""
    return read_timestamp("time", value)
