"""Views of recorded events, and the lookup of one by its reference."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import CompoundSelect, Integer, Row, Text, cast, func, literal_column, null, select, union_all
from sqlalchemy.ext.asyncio import AsyncConnection

from ..errors import NotFound
from .contract.records import EventView
from .event_rows import event_of
from .selection import OPEN, fetch, has_id, in_any_source
from .tables import delivery_states, dispatch, events, scheduled

__all__ = ["event_views", "find_event"]


async def find_event(connection: AsyncConnection, reference: str) -> EventView:
    """
    Return one event by its seq or its id.

    Digits are a seq as it is written; `0017` is an id. Raise `NotFound`; name the sources if an id has several.
    """
    rows: Sequence[Row[Any]] = ()
    if reference.isascii() and reference.isdigit() and len(reference) < 19 and not reference.startswith("0"):
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
    """Return the events in `rows`, each with its state, by one statement."""
    seqs = [row.seq for row in rows]
    if not seqs:
        return []
    due: dict[int, datetime] = {}
    queued: set[int] = set()
    counts: dict[int, dict[str, int]] = {}
    for row in await connection.execute(_work(seqs)):
        if row.state == _SCHEDULED:
            due[row.event_seq] = row.due_at
        elif row.state == _QUEUED:
            queued.add(row.event_seq)
        else:
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


_SCHEDULED, _QUEUED = "scheduled", "queued"


def _work(seqs: Sequence[int]) -> CompoundSelect[*tuple[Any, ...]]:
    """Return the query for what is to come and what has become of events: one row for each state and its number."""
    later = select(
        scheduled.c.event_seq,
        literal_column(f"'{_SCHEDULED}'", Text).label("state"),
        scheduled.c.due_at,
        literal_column("0", Integer).label("number"),
    )
    now = select(dispatch.c.event_seq, literal_column(f"'{_QUEUED}'", Text), null(), literal_column("0", Integer))
    state = delivery_states.c.state
    made = select(delivery_states.c.event_seq, cast(state, Text), null(), func.count())
    return union_all(
        later.where(scheduled.c.event_seq.in_(seqs)),
        now.where(dispatch.c.event_seq.in_(seqs)),
        made.where(delivery_states.c.event_seq.in_(seqs)).group_by(delivery_states.c.event_seq, state),
    )
