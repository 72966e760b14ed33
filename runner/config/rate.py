"""Rates in the configuration file."""

from __future__ import annotations

from typing import Annotated

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

from ..policies.rate import Rate
from .errors import got

__all__ = ["RATE", "RateField"]

RATE = "^[1-9][0-9]{0,8}/[smh]$"
"""The form of a rate, for JSON Schema."""


def _rate(value: object) -> Rate:
    if isinstance(value, Rate):
        return value
    try:
        return Rate.parse(value if isinstance(value, str) else "")
    except ValueError as error:
        raise ValueError(f"{error}, got {got(value)}") from None


RateField = Annotated[
    Rate,
    PlainValidator(_rate),
    PlainSerializer(str, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": RATE, "examples": ["20/s", "100/m"]}),
]
"""A field that holds a `Rate`."""
