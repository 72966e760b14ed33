"""An event as the stores write and read it with statements of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson

from ..errors import EventError
from ..event import NO_EXTENSIONS, Event, ExtensionValue

__all__ = ["read_event", "read_extensions", "write_extensions"]


def read_event(row: Sequence[Any], moment: Callable[[Any], datetime]) -> Event:
    """
    Return the event in nine columns, type to data.

    Args:
        moment: reads the column of its time.
    """
    type, source, id, subject, time, datacontenttype, dataschema, extensions, data = row
    return Event(
        type=type,
        source=source,
        id=id,
        subject=subject,
        time=moment(time),
        datacontenttype=datacontenttype,
        dataschema=dataschema,
        extensions=read_extensions(extensions),
        data=data,
    )


def write_extensions(extensions: Mapping[str, ExtensionValue]) -> str | None:
    """Return what is stored of `extensions`: the same for equal ones, whatever their order."""
    return orjson.dumps(dict(extensions), option=orjson.OPT_SORT_KEYS).decode() if extensions else None


def read_extensions(stored: str | None) -> Mapping[str, ExtensionValue]:
    """Return what was stored. Raise `EventError` or `ValueError` when it is no JSON object."""
    if stored is None:
        return NO_EXTENSIONS
    extensions: object = orjson.loads(stored)
    if not isinstance(extensions, dict):
        raise EventError(f"extensions: expected an object, got {type(extensions).__name__}")
    return extensions or NO_EXTENSIONS
