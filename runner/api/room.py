"""Room for more events: refuse to publish while too many wait (`api.limits.pending`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .problems import Problem

if TYPE_CHECKING:
    from ..storage.contract.depths import Depths
    from .depths import DepthGauge

__all__ = ["Room"]

_RETRY_AFTER = "5"  # seconds


class Room:
    """
    Admit publishes while fewer events wait than the file allows.

    The store is asked again once as many were admitted as it had room for, so a publish costs no query while few events
    wait.
    """

    def __init__(self, most: int | None, depths: DepthGauge) -> None:
        """Admit while fewer than `most` wait; None is no limit."""
        self._most = most
        self._depths = depths
        self._waiting: int | None = None  # as the store last said
        self._admitted = 0  # events, since the store was asked

    async def check(self) -> None:
        """Raise a `Problem` of status 503 while too many events wait."""
        if self._most is None:
            return
        if self._waiting is None or self._waiting + self._admitted >= self._most:
            seen = await self._depths.look(0.0)
            self._waiting, self._admitted = (None if seen is None else _waiting(seen)), 0
        if (self._waiting or 0) >= self._most:
            detail = f"{self._most} events or more are waiting, which api.limits.pending allows; nothing was recorded"
            raise Problem(503, "too-many-waiting", detail, headers={"retry-after": _RETRY_AFTER})

    def admitted(self, count: int) -> None:
        """Count events that were recorded."""
        self._admitted += count


def _waiting(depths: Depths) -> int:
    """Return how many events wait: those not dispatched, and the longest backlog of a subscription."""
    return depths.queued + max((each.pending for each in depths.subscriptions), default=0)
