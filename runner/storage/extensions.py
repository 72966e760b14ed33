"""The extensions of an event as the stores write and read them with statements of their own: JSON, or nothing."""

from __future__ import annotations

from collections.abc import Mapping

import orjson

from ..errors import EventError
from ..event import NO_EXTENSIONS, ExtensionValue

__all__ = ["read_extensions", "write_extensions"]


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
