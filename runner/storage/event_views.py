"""Views of recorded events, and the lookup of one by its reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ..errors import NotFound
from .contract.records import EventView
from .event_rows import event_of
from .selection import OPEN, fetch, has_id, in_any_source
from .tables import delivery_states, dispatch, events, scheduled

__all__ = ["event_views", "find_event"]


async def find_event(connection: AsyncConnection, reference: str) -> EventView:
    """Return one event by its seq (digits) or its id. Raise `NotFound`; name the sources if an id has several."""
    rows: Sequence[Row[Any]] = ()
    if reference.isascii() and reference.isdigit() and len(reference) < 19:
        rows = await fetch(connection, select(events).where(events.c.seq == int(reference)))
    if not rows:
        by_id = select(events).where(has_id(reference), in_any_source())
        rows = await fetch(connection, by_id.order_by(events.c.seq).limit(10))
    if len(rows) == 1:
        return (await event_views(connection, rows))[0]
    if not rows:
        raise NotFound(f"no event has the seq or the id {reference!r}")
    choices = ", ".join(f"{row.seq} (source {event_of(row).source})" for row in rows)
    raise NotFound(f"the id {reference!r} is that of several events; give the seq of one of them: {choices}")


async def event_views(connection: AsyncConnection, rows: Sequence[Row[Any]]) -> list[EventView]:
    """
    Return the events in `rows`, each with its state.

    Their work is looked for in the order it moves in, so that none is missed between two statements.
    """
    seqs = [row.seq for row in rows]
    if not seqs:
        return []
    later = select(scheduled).where(scheduled.c.event_seq.in_(seqs))
    due = {row.event_seq: row.due_at for row in await connection.execute(later)}
    queued = set(await connection.scalars(select(dispatch.c.event_seq).where(dispatch.c.event_seq.in_(seqs))))
    by_state = (
        select(delivery_states.c.event_seq, delivery_states.c.state, func.count().label("number"))
        .where(delivery_states.c.event_seq.in_(seqs))
        .group_by(delivery_states.c.event_seq, delivery_states.c.state)
    )
    counts: dict[int, dict[str, int]] = {}
    for row in await connection.execute(by_state):
        counts.setdefault(row.event_seq, {})[row.state] = row.number
        if row.state in OPEN:
            queued.add(row.event_seq)
    return [
        EventView(
            seq=row.seq,
            event=event_of(row),
            created_at=row.created_at,
            state=_state(row, scheduled=row.seq in due, queued=row.seq in queued),
            due_at=due.get(row.seq),
            deliveries=counts.get(row.seq, {}),
        )
        for row in rows
    ]


def _state(row: Row[Any], *, scheduled: bool, queued: bool) -> str:
    if scheduled or queued:
        return "scheduled" if scheduled else "queued"
    return "settled" if row.cancelled_at is None else "cancelled"
