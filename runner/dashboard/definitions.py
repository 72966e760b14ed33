"""Definitions for display: a line for each key of the file, durations in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import orjson

from ..config.duration import format_duration
from ..policies.rate import Rate
from ..subscription import Destination

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["lines"]

_NOTHING: tuple[object, ...] = (None, (), {}, "")


def lines(definition: DataclassInstance, before: str = "") -> Iterator[tuple[str, str]]:
    """Yield each key of a subscription or a schedule that is set, dotted, with its value in words; not its name."""
    for each in fields(definition):
        key, value = before + each.name, getattr(definition, each.name)
        if value in _NOTHING or key == "name":
            continue
        match value:
            case Rate() | str():
                yield key, str(value)
            case Destination():
                yield from ((f"{key}.{value.kind}.{name}", _words(option)) for name, option in value.shown.items())
            case tuple():
                yield key, ", ".join(map(_words, value))
            case _ if hasattr(value, "__dataclass_fields__"):
                yield from lines(value, f"{key}.")
            case _:
                yield key, _words(value)


def _words(value: Any) -> str:
    match value:
        case str():
            return value
        case timedelta():
            return format_duration(value)
        case datetime():
            return value.isoformat().replace("+00:00", "Z")
        case Mapping():
            return orjson.dumps(dict(value)).decode()
        case _:
            return orjson.dumps(value).decode()
