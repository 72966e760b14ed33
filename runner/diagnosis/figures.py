"""The figures of a diagnosis as text for people: counts, ages, latencies, shares."""

from __future__ import annotations

from datetime import datetime, timedelta

from ..config.duration import format_duration
from ..storage.contract.overview import MOST

__all__ = ["age", "latency", "number", "percent"]


def age(since: datetime, now: datetime) -> str:
    """Return an age in whole seconds."""
    return _seconds((now - since).total_seconds())


def latency(seconds: float | None) -> str:
    """Return a latency in at most six characters below a day; empty for None."""
    if seconds is None:
        return ""
    if seconds < 1:
        return f"{1000 * seconds:.1f}ms" if seconds < 0.01 else f"{1000 * seconds:.0f}ms"
    return f"{seconds:.1f}s" if seconds < 100 else _seconds(seconds)


def number(count: int, *, exact: bool = True) -> str:
    """Return a count for people: `10,000+` where counting stopped, `~` before an estimate."""
    if count > MOST and exact:
        return f"{MOST:,}+"
    return f"{count:,}" if exact else f"~{count:,}"


def percent(share: float | None) -> str:
    """Return a share as a percentage; empty for None. Less than all is never rounded up to 100 %."""
    if share is None:
        return ""
    return f"{min(100 * share, 99.9) if share < 1 else 100:.1f}%"


def _seconds(seconds: float) -> str:
    return format_duration(timedelta(seconds=max(0, round(seconds))))
