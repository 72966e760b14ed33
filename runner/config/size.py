"""Sizes as people write them: `64KiB`, `1MiB`, `500kB`; a plain number is bytes."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from .errors import got

__all__ = ["Size", "format_size", "parse_size"]

_UNITS = {"B": 1, "kB": 1000, "MB": 1000**2, "GB": 1000**3, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
_TEXT = re.compile(r"([0-9]{1,12})(?: ?(B|kB|MB|GB|KiB|MiB|GiB))?", re.ASCII)


def parse_size(value: object) -> int:
    """
    Return the number of bytes `value` says.

    Raises:
        ValueError: no whole number from 1 on, with a unit (B, kB, MB, GB, KiB, MiB, GiB) or without.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    found = _TEXT.fullmatch(value) if isinstance(value, str) else None
    size = int(found[1]) * _UNITS[found[2] or "B"] if found else 0
    if size <= 0:
        raise ValueError(f"expected a size such as 64KiB or 1MiB, got {got(value)}")
    return size


def format_size(size: int) -> str:
    """Return the shortest text that `parse_size` reads as the same size."""
    for unit in ("GiB", "MiB", "KiB"):
        if size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit}"
    return str(size)


Size = Annotated[
    int,
    BeforeValidator(parse_size),
    PlainSerializer(format_size, return_type=str, when_used="json"),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "examples": ["64KiB", "1MiB"]}]}),
]
"""A field that holds a number of bytes, from 1 upwards."""
