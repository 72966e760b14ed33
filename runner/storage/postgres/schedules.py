"""Schedules on PostgreSQL: the statements of every tick, each one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

import orjson

from ...policies.ticking import Standing
from ..contract.schedules import Due, DueSchedule, Fired, Firing

if TYPE_CHECKING:
    import asyncpg

    from .connections import DriverConnections

__all__ = ["due_schedules", "fire_schedules"]


async def due_schedules(connections: DriverConnections, sql: str, limit: int) -> Due:
    """Return at most `limit` schedules that are due."""
    outlook, *rows = await connections.fetch(sql)
    due = [
        DueSchedule(row["id"], row["revision"], row["name"], orjson.loads(row["spec"]), _standing(row)) for row in rows
    ]
    next_in: timedelta | None = outlook["next_in"]
    return Due(due, outlook["tick"], next_in, len(due) == limit)


async def fire_schedules(connections: DriverConnections, sql: str, firings: Sequence[Firing]) -> Fired:
    """Record the occurrences of the schedules that are as they were seen."""
    occurrences = [(each.seen.id, *occurrence) for each in firings for occurrence in each.occurrences]
    events = [event for _, _, event in occurrences]
    rows = await connections.fetch(
        sql,
        [each.seen.id for each in firings],
        [each.seen.revision for each in firings],
        [each.seen.standing.tick for each in firings],
        [each.tick for each in firings],
        [each.look_at for each in firings],
        [each.occurrences[-1].tick if each.occurrences else None for each in firings],
        [each.missed for each in firings],
        [each.skipped for each in firings],
        [each.queued_until for each in firings],
        [each.forget for each in firings],
        [id for id, _, _ in occurrences],
        [tick for _, tick, _ in occurrences],
        [event.id for event in events],
        [event.source for event in events],
        [event.type for event in events],
        [event.subject for event in events],
        [event.datacontenttype for event in events],
        [event.data for event in events],
    )
    return Fired(frozenset(row["id"] for row in rows), rows[0]["events"] if rows else 0)


def _standing(row: asyncpg.Record) -> Standing:
    return Standing(row["tick"], row["busy"], row["queued_until"])
