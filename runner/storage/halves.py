"""Write many rows together; separately if one of them makes the write fail."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

from ..errors import StorageError, StorageLocked, StorageRefused

__all__ = ["IN_A_ROW", "in_halves"]

T = TypeVar("T")
R = TypeVar("R")

IN_A_ROW = 2
"""After this many locked items in a row all may be locked, for example by a lock on the whole table."""


async def in_halves(
    items: Sequence[T], write: Callable[[Sequence[T]], Awaitable[Iterable[R]]]
) -> tuple[list[R], list[tuple[T, StorageError]]]:
    """
    Write `items` together; if refused, in halves down to single ones; if locked, one by one.

    Each that is locked is waited for as long as the store does; after `IN_A_ROW` of them the rest is given up untried.

    Returns:
        what the writes returned, one after the other; and what was refused alone or given up, with the reason. Any
        other error is raised.
    """
    try:
        return list(await write(items)), []
    except StorageLocked as error:
        refusal: StorageError = error
        size = 1  # otherwise each half with the locked item would wait for its lock
    except StorageRefused as error:
        refusal = error
        size = -(-len(items) // 2)
    if len(items) == 1:
        return [], [(items[0], refusal)]
    written: list[R] = []
    refused: list[tuple[T, StorageError]] = []
    locked = 0
    for start in range(0, len(items), size):
        if locked == IN_A_ROW:
            refused += [(item, refusal) for item in items[start:]]
            break
        some, others = await in_halves(items[start : start + size], write)
        written += some
        refused += others
        waited = isinstance(refusal, StorageLocked) and others and isinstance(others[0][1], StorageLocked)
        locked = locked + 1 if waited else 0
    return written, refused
