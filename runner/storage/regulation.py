"""Evaluate a scan of the lines and the pace of a subscription. Pure, and the same for both databases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from .contract.claims import ClaimedDelivery, DeliveryClaim, RegulatedRequest, UnreadableDelivery

__all__ = ["LINES", "RegulatedScan"]

LINES = 1000
"""Lines visited in one claim."""


@dataclass(frozen=True, slots=True)
class RegulatedScan:
    """
    The findings of one claim of a regulated subscription.

    Attributes:
        room: how many it might have claimed: the quota, or what the rate had permits for.
        left_off: the key of the last line it visited, if there may be others behind it.
        held_up: whether a line waits for an earlier event to be dispatched.
        ahead: of the rate (see `Rate`), after the claim.
        next_due: until the first of a line it visited is due, or any delivery where there are no lines.
        cut: whether what it might have claimed weighed too much; `room` is then what it did claim.
        now: the time on the clock of the store.
    """

    room: int
    left_off: str | None
    held_up: bool
    ahead: timedelta | None
    next_due: timedelta | None
    cut: bool = False
    now: datetime | None = None

    def claim(
        self,
        request: RegulatedRequest,
        token: int,
        deliveries: Sequence[ClaimedDelivery],
        unreadable: Sequence[UnreadableDelivery] = (),
    ) -> DeliveryClaim:
        """Return the result of the claim, with the time and the beginning of the next one."""
        due, paced, more, held_up = self.next_due, False, False, False
        if self.cut:
            since = after = self.left_off or request.after
            more = True
        elif len(deliveries) + len(unreadable) == self.room:
            since = after = self.left_off or request.after
            if request.rate is not None and self.ahead is not None and self.room < request.quota:
                due, paced = request.rate.wait(self.ahead), True
        else:
            after, since, more = self._onward(request.after, request.since)
            held_up = self.held_up
        return DeliveryClaim(token, deliveries, due, unreadable, paced, after, since, more, held_up, self.now)

    def _onward(self, after: str, since: str) -> tuple[str, str, bool]:
        """Return where to go on, where the round that `since` began is to end, and whether it goes on."""
        second_half = after < since  # keys are compared by code points, which is how the databases compare their bytes
        if self.left_off is None:
            return ("", "", False) if second_half or not since else ("", since, True)
        if second_half and self.left_off >= since:
            return self.left_off, self.left_off, False
        return self.left_off, since, True
