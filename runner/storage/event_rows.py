"""The rows of events: how the stores read and write them, by statements of their own and by the tables."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import orjson

from ..errors import EventError
from ..event import NO_EXTENSIONS, Event, ExtensionValue
from .contract.claims import LARGEST
from .identity import restored

if TYPE_CHECKING:
    from sqlalchemy import Row

__all__ = ["check_size", "event_of", "read_event", "read_extensions", "write_extensions"]


def read_event(
    type: str,
    source: str,
    id: str,
    subject: str | None,
    time: datetime,
    datacontenttype: str | None,
    dataschema: str | None,
    extensions: str | None,
    data: bytes | None,
) -> Event:
    """Return the event in nine columns, of which the store has read the time already."""
    more = NO_EXTENSIONS
    if extensions is not None:
        source, id, more = restored(source, id, read_extensions(extensions))
    return Event(
        type=type,
        source=source,
        id=id,
        subject=subject,
        time=time,
        datacontenttype=datacontenttype,
        dataschema=dataschema,
        extensions=more,
        data=data,
    )


def event_of(row: Row[Any]) -> Event:
    """Return the event in a row of the table."""
    source, id, extensions = restored(row.source, row.id, row.extensions or NO_EXTENSIONS)
    return Event(
        type=row.type,
        source=source,
        id=id,
        subject=row.subject,
        time=row.time or row.created_at,
        datacontenttype=row.datacontenttype,
        dataschema=row.dataschema,
        extensions=extensions,
        data=row.data,
    )


def write_extensions(extensions: Mapping[str, ExtensionValue]) -> str | None:
    """Return what is stored of `extensions`: the same for equal ones, whatever their order."""
    return orjson.dumps(dict(extensions), option=orjson.OPT_SORT_KEYS).decode() if extensions else None


def read_extensions(stored: str) -> Mapping[str, ExtensionValue]:
    """Return what was stored. Raise `EventError` or `ValueError` when it is no JSON object."""
    extensions: object = orjson.loads(stored)
    if not isinstance(extensions, dict):
        raise EventError(f"extensions: expected an object, got {type(extensions).__name__}")
    return extensions or NO_EXTENSIONS


def check_size(weight: int) -> int:
    """Return what an event weighs. Raise `EventError` where that is more than any that the bus has taken."""
    if weight > LARGEST:
        raise EventError(f"it weighs {weight} bytes, at most {LARGEST} are read")
    return weight
