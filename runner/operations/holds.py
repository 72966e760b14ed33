"""The reason why a subscription is not delivered to."""

from __future__ import annotations

from datetime import timedelta
from math import ceil
from typing import TYPE_CHECKING

from ..config.duration import format_duration

if TYPE_CHECKING:
    from ..storage.contract.registry import Registered

__all__ = ["hold_of"]


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
