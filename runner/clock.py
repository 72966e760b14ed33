"""Time, as this process sees it. What is due is decided by the database's clock, never here."""

from __future__ import annotations

from datetime import UTC, datetime

__all__ = ["utcnow"]


def utcnow() -> datetime:
    """Return the wall clock as an aware UTC datetime; for display and for stamps, never for decisions."""
    return datetime.now(UTC)
