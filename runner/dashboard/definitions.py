"""Definitions as a person reads them: a line for each key of the file, durations in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import orjson

from ..config.duration import format_duration

__all__ = ["lines"]

_NOTHING: tuple[object, ...] = (None, [], {}, "")
_DURATIONS = ("delay", "every", "jitter", "max_age", "max_delay", "max_pause", "pause", "schedule", "timeout", "window")
_SHARES = ("retry.jitter",)
_WHOLE = ("filter", "event.data")  # written as they are


def lines(stored: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Yield each key that is set, dotted, with its value in words; durations of `stored` are in seconds."""
    for name, value in stored.items():
        key = before + name
        if value in _NOTHING:
            continue
        if isinstance(value, Mapping) and key not in _WHOLE:
            yield from lines(value, f"{key}.")
        elif isinstance(value, list):
            yield key, ", ".join(_words(name, key, each) for each in value)
        else:
            yield key, _words(name, key, value)


def _words(name: str, key: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if name in _DURATIONS and key not in _SHARES and isinstance(value, int | float):
        return format_duration(timedelta(seconds=value))
    return orjson.dumps(value).decode()
