"""Traces: the events that led to each other, found by the correlation that they carry, for both databases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ..tracing.causation import CAUSATION, CORRELATION
from .event_rows import event_of
from .expressions import CORRELATION_KEY, Correlation, CorrelationKey
from .selection import WITHOUT_DATA, fetch, has_id, in_any_source
from .tables import events

__all__ = ["flow_of"]

_FURTHEST = 100  # ancestors that are looked up, one query each


async def flow_of(connection: AsyncConnection, seq: int, limit: int) -> tuple[str, Sequence[Row[Any]], bool]:
    """
    Return the correlation of an event, the rows of at most `limit` events that belong to it, and whether that is all.

    Those are the event itself, all that carry the same correlation, and what led to the first of them, as far as it
    is on record: an event that has none itself gives its id to what follows from it.
    """
    [start] = await fetch(connection, select(*WITHOUT_DATA).where(events.c.seq == seq))
    event = event_of(start)
    correlation = event.attribute(CORRELATION) or event.id
    together = select(*WITHOUT_DATA).where(_correlated(correlation)).order_by(events.c.seq).limit(limit + 1)
    rows = {row.seq: row for row in [start, *await fetch(connection, together)]}
    rows |= {row.seq: row for row in await _causes(connection, min(rows.items())[1])}
    kept = sorted(rows, key=lambda each: (each != seq, each))[:limit]
    return correlation, [rows[each] for each in sorted(kept)], len(rows) <= limit


def _correlated(correlation: str) -> ColumnElement[bool]:
    """Return whether an event carries the correlation: in the words of the index, and then exactly."""
    carried = Correlation(events.c.extensions)
    return and_(carried.is_not(None), CorrelationKey(carried) == correlation[:CORRELATION_KEY], carried == correlation)


async def _causes(connection: AsyncConnection, row: Row[Any]) -> Sequence[Row[Any]]:
    """Return the ancestors of an event in order: of each id the last event recorded before."""
    found: list[Row[Any]] = []
    while len(found) < _FURTHEST and (cause := event_of(row).attribute(CAUSATION)) is not None:
        before = select(*WITHOUT_DATA).where(has_id(cause), in_any_source(), events.c.seq < row.seq)
        rows = await fetch(connection, before.order_by(events.c.seq.desc()).limit(1))
        if not rows:
            break
        found += rows
        [row] = rows
    return found
