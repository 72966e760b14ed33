"""Long sources and ids, which the unique index of PostgreSQL cannot hold; the same on both stores."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import TypeVar

from ..event import NO_EXTENSIONS, Event

__all__ = ["key_of", "restored", "shortened"]

T = TypeVar("T")

_LONGEST = 2600  # bytes of source and id together: PostgreSQL takes an index row of 2,704
_LONG = _LONGEST // 2  # bytes of one of them
_SURELY_SHORT = _LONGEST // 4  # characters: UTF-8 has four bytes at most for each


def shortened(event: Event) -> Event:
    """
    Return the event as it is recorded: itself, unless its identity is too long for the index.

    Then its long parts are stored with the extensions, under their own names, which no extension may have, and digests
    in their places. No attribute can be such a digest: it begins with a control character. `publish_event` does the
    same.
    """
    if len(event.source) + len(event.id) <= _SURELY_SHORT:
        return event
    sizes = {"source": len(event.source.encode()), "id": len(event.id.encode())}
    if sum(sizes.values()) <= _LONGEST:
        return event
    long = {name: str(getattr(event, name)) for name, size in sizes.items() if size > _LONG}
    keys = {name: key_of(value) for name, value in long.items()}
    return event.replace(**keys, extensions={**event.extensions, **long})


def key_of(text: str) -> str:
    """Return the recorded form of a long source or id."""
    return f"\x01{sha256(text.encode()).hexdigest()}"


def restored(source: str, id: str, extensions: Mapping[str, T]) -> tuple[str, str, Mapping[str, T]]:
    """Return source, id and extensions as they were published."""
    if "id" not in extensions and "source" not in extensions:
        return source, id, extensions
    rest = {name: value for name, value in extensions.items() if name not in ("id", "source")}
    return str(extensions.get("source", source)), str(extensions.get("id", id)), rest or NO_EXTENSIONS  # type: ignore[return-value]  # an empty mapping holds any values
