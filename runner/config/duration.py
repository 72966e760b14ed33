"""Durations as text: `30s`, `25ms`, `1h30m`, `7d`."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, WithJsonSchema

from .errors import got

__all__ = ["DURATION", "Duration", "PositiveDuration", "format_duration", "parse_duration"]

_UNITS = {
    "w": timedelta(weeks=1),
    "d": timedelta(days=1),
    "h": timedelta(hours=1),
    "m": timedelta(minutes=1),
    "s": timedelta(seconds=1),
    "ms": timedelta(milliseconds=1),
    "us": timedelta(microseconds=1),
}
_PART = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,12})?)(us|ms|[wdhms])", re.ASCII)
_WHOLE = re.compile(f"(?:{_PART.pattern})+", re.ASCII)
DURATION = f"^{_WHOLE.pattern}$"
"""The form of a duration, for JSON Schema."""
_LONGEST = timedelta(days=3653)  # ten years, far below the limits of a database's clock arithmetic
_LONGEST_TEXT = 200
_EXAMPLES = "30s, 25ms, 1h30m or 7d"


def parse_duration(text: object) -> timedelta:
    """
    Parse a duration.

    Own code, because common libraries accept `1h, er, 30m` and read `5mm` as five months.

    Raises:
        ValueError: not a sequence of number and unit (w, d, h, m, s, ms, us), or longer than ten years.
    """
    if isinstance(text, timedelta):
        return text
    if not isinstance(text, str) or len(text) > _LONGEST_TEXT or not _WHOLE.fullmatch(text):
        raise ValueError(f"expected a duration such as {_EXAMPLES}, got {got(text)}")
    parts = [float(number) * _UNITS[unit].total_seconds() for number, unit in _PART.findall(text)]
    if sum(parts) > _LONGEST.total_seconds():
        raise ValueError(f"expected at most {format_duration(_LONGEST)}, got {got(text)}")
    return timedelta(seconds=sum(parts))


def format_duration(duration: timedelta) -> str:
    """Return the shortest text that `parse_duration` reads as the same duration; weeks are written as days."""
    rest, text = abs(duration), ""
    for unit, size in _UNITS.items():
        count = 0 if unit == "w" else rest // size
        if count:
            text += f"{count}{unit}"
            rest -= count * size
    return ("-" if duration < timedelta(0) else "") + (text or "0s")


def _positive(duration: timedelta) -> timedelta:
    if duration <= timedelta(0):
        raise ValueError(f"expected a duration above zero, got {format_duration(duration)}")
    return duration


Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": DURATION, "examples": ["30s", "25ms", "1h30m", "7d"]}),
]
"""A field that holds a `timedelta`, from zero upwards."""

PositiveDuration = Annotated[Duration, AfterValidator(_positive)]
"""The same, above zero."""
