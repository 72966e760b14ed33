"""Order: the key by which deliveries of a subscription wait for each other."""

from __future__ import annotations

import re
from hashlib import sha256

from ..event import Event

__all__ = ["check_order_by", "order_key"]

_NAME = re.compile(r"[a-z0-9]{1,100}", re.ASCII)
_LONGEST = 500  # bytes of a key that are kept as they are; PostgreSQL takes an index row of 2,704


def check_order_by(name: str) -> str:
    """Return `name` if events can be ordered by that attribute. Raise `ValueError` if not."""
    if not _NAME.fullmatch(name) or name in ("data", "specversion"):
        raise ValueError("expected the name of an attribute, such as subject or an extension: 1-100 of a-z and 0-9")
    return name


def order_key(order_by: str, event: Event, seq: int) -> str:
    """
    Return the key of the line of `event`, never empty.

    An event without the attribute stands in a line of its own, which its place `seq` in the store names. The first
    character keeps the kinds of keys apart.
    """
    value = event.attribute(order_by)
    if value is None:
        return f"-{seq}"
    encoded = value.encode("utf-8", "replace")
    return f"={encoded.decode()}" if len(encoded) <= _LONGEST else f"#{sha256(encoded).hexdigest()}"
