"""The seam of the pruner, which removes events past their retention, and its values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

__all__ = ["Archive", "Pruned", "Retention"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """
    Retention of events without open deliveries, and of the audit log; None keeps for ever.

    Attributes:
        delivered: after the last of their deliveries succeeded, or after they were recorded if no subscription matched.
        dead: after a delivery died or was cancelled.
        audit: of actions in the audit log, after they began.
    """

    delivered: timedelta | None = None
    dead: timedelta | None = None
    audit: timedelta | None = None

    @property
    def shortest(self) -> timedelta | None:
        """The age below which no event is removed; None if none ever is."""
        return min((limit for limit in (self.delivered, self.dead) if limit is not None), default=None)


@dataclass(frozen=True, slots=True)
class Pruned:
    """
    The result of pruning one page of events.

    Attributes:
        events: how many were removed.
        after: the last one that was old enough to be looked at.
        ended: whether no older one is left behind it.
    """

    events: int
    after: int
    ended: bool


class Archive(Protocol):
    """The seam of the pruner."""

    async def prune(self, retention: Retention, after: int, limit: int, *, dry_run: bool = False) -> Pruned:
        """
        Remove, of the next `limit` events after the seq `after`, those past their retention.

        An event is past its retention when each of its deliveries has ended and is older than the retention of its
        state. It is removed with all of them and their attempts. One that waits to be dispatched, or has a delivery
        that is pending or leased, stays, and so does one that is locked.
        """
