"""The clock of this process. The database's clock decides what is due, never this one."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta

__all__ = ["earlier", "utcnow", "wait_for"]


def utcnow() -> datetime:
    """Return the wall clock as an aware UTC datetime; for display and for stamps, never for decisions."""
    return datetime.now(UTC)


def earlier(one: timedelta | None, other: timedelta | None) -> timedelta | None:
    """Return the shorter of two waits, where None is one without end."""
    if one is None or other is None:
        return one if other is None else other
    return min(one, other)


async def wait_for(event: asyncio.Event, longest: timedelta | None) -> None:
    """Return when `event` is set, or after `longest`."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(None if longest is None else max(0.0, longest.total_seconds())):
            await event.wait()
