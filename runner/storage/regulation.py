"""What follows from a look at the lines and the pace of a subscription: pure, and the same for both databases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from ..clock import earlier
from .base import ClaimedDelivery, DeliveryClaim, Demand, UnreadableDelivery

__all__ = ["LINES", "Seen"]

LINES = 1000
"""Lines visited in one claim."""

_HELD_UP = timedelta(milliseconds=25)  # between looks whether an earlier event has been dispatched by its holder


@dataclass(frozen=True, slots=True)
class Seen:
    """
    What one claim of a regulated subscription saw.

    Attributes:
        room: how many it might have claimed: the quota, or what the rate had permits for.
        left_off: the key of the last line it visited, if there may be others behind it.
        held_up: whether a line waits for an earlier event to be dispatched.
        ahead: of the rate (see `Rate`), after the claim.
        next_due: until the next delivery that was not due yet.
    """

    room: int
    left_off: str | None
    held_up: bool
    ahead: timedelta | None
    next_due: timedelta | None

    def claim(
        self,
        demand: Demand,
        token: int,
        deliveries: Sequence[ClaimedDelivery],
        unreadable: Sequence[UnreadableDelivery] = (),
    ) -> DeliveryClaim:
        """Return what the claim brought, with until when the next one can wait, and where it is to begin."""
        due, paced, after = self._outlook(demand, len(deliveries) + len(unreadable))
        return DeliveryClaim(token, deliveries, due, unreadable, paced, after)

    def _outlook(self, demand: Demand, claimed: int) -> tuple[timedelta | None, bool, str]:
        if claimed == self.room:
            after = self.left_off or demand.after
            if demand.rate is not None and self.ahead is not None and self.room < demand.quota:
                return demand.rate.wait(self.ahead), True, after
            return self.next_due, False, after
        if self.left_off is not None:
            return timedelta(0), False, self.left_off
        if demand.after:
            return timedelta(0), False, ""  # once more, from the first line on
        return earlier(self.next_due, _HELD_UP if self.held_up else None), False, ""
