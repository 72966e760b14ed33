"""Rates as people write them: `20/s`, `100/m`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

from .errors import got

__all__ = ["Rate", "RateField"]

_UNITS = {"s": timedelta(seconds=1), "m": timedelta(minutes=1), "h": timedelta(hours=1)}
_RATE = re.compile(r"([1-9][0-9]{0,8})/([smh])", re.ASCII)


@dataclass(frozen=True, slots=True)
class Rate:
    """So many per second, minute or hour."""

    count: int
    unit: str

    @property
    def per(self) -> timedelta:
        """The time in which at most `count` may happen."""
        return _UNITS[self.unit]

    @classmethod
    def parse(cls, text: object) -> Rate:
        """Return the rate `text` says. Raise `ValueError` unless it is a whole number above zero, `/` and s, m or h."""
        if isinstance(text, Rate):
            return text
        found = _RATE.fullmatch(text) if isinstance(text, str) else None
        if not found:
            raise ValueError(f"expected a rate such as 20/s, 100/m or 1000/h, got {got(text)}")
        return cls(int(found[1]), found[2])

    def __str__(self) -> str:
        return f"{self.count}/{self.unit}"


RateField = Annotated[
    Rate,
    PlainValidator(Rate.parse),
    PlainSerializer(str, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "examples": ["20/s", "100/m"]}),
]
"""A field that holds a `Rate`."""
