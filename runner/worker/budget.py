"""The budget: how many bytes of events a process may hold."""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Any

from ..event import Event

__all__ = ["MEMORY", "SPENT", "Budget", "spend"]

MEMORY = 32 * 1024 * 1024
"""The most bytes of events that a process holds claimed and not settled, apart from one more event."""

SPENT = Event(type="runner.spent", source="/runner", id="spent")
"""Stands in the place of an event whose data is not needed any more."""


class Budget:
    """
    The bytes of events that this process holds.

    Attributes:
        claimed: of claims on their way, and of dispatches.
        leased: of deliveries under a lease of their own; each has a copy on its way to a receiver.
    """

    __slots__ = ("claimed", "leased", "most")

    def __init__(self, most: int = MEMORY) -> None:
        self.most = most
        self.claimed = 0
        self.leased = 0

    @property
    def left(self) -> int:
        """Bytes that may still be claimed."""
        return self.most - self.claimed - self.leased

    @property
    def full(self) -> bool:
        """Whether nothing more may be claimed, except one event if nothing else would make progress."""
        return self.left <= 0

    @property
    def crowded(self) -> bool:
        """Whether deliveries that wait for receivers use all of it."""
        return self.leased >= self.most


def spend(works: Iterable[Any], but: Set[int]) -> None:
    """Release the events of `works`, except those with the seqs in `but`."""
    for work in works:
        if work.seq not in but:
            work.event = SPENT
