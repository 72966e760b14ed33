"""Holds: the state in which a subscription gets no deliveries, and the pause by hand that is one of them."""

from __future__ import annotations

from datetime import timedelta
from math import ceil
from typing import TYPE_CHECKING, Protocol

from ..config.duration import format_duration

if TYPE_CHECKING:
    from ..storage.contract.registry import Registered

__all__ = ["Pausing", "hold_of"]


class Pausing(Protocol):
    """Operations on what can be paused: subscriptions or schedules."""

    async def set_paused(self, name: str, paused: bool, by: str | None = None) -> bool:
        """Pause or resume one of them; return whether that changed anything. Raise `NotFound`."""


def hold_of(registered: Registered, active: bool) -> str | None:
    """Return the reason why a subscription is not delivered to; None if it is."""
    if registered.expired:
        return "expired"
    if not active:
        return "inactive"
    if registered.paused:
        return "paused"
    if registered.breaker is None:
        return None
    left = ceil(registered.breaker.left.total_seconds())
    return f"breaker open, {format_duration(timedelta(seconds=left))} left" if left > 0 else "breaker half-open"
