"""The lines of ordered subscriptions, outside the hot paths, for both databases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, delete, exists, insert, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ..policies.order import order_key
from .bus_row import lock_bus
from .errors import mapped_errors
from .event_rows import event_of
from .selection import OPEN, WITHOUT_DATA, in_state
from .tables import deliveries, dispatch, events, subscriptions, turns

__all__ = ["join_lines", "leave_lines", "line_up"]

_BATCH = 500  # turns given in one transaction
_FRONT = -(2**62)  # below every position: what waits already when an order is asked for goes first

_theirs: ColumnElement[bool] = and_(
    turns.c.event_seq == deliveries.c.event_seq, turns.c.subscription_id == deliveries.c.subscription_id
)
_unfinished = in_state(OPEN)


async def line_up(engine: AsyncEngine, subscription_id: int, order_by: str) -> int:
    """Give a turn to each unfinished delivery that has none, and end the turns of finished ones; return how many."""
    without_turn = (deliveries.c.subscription_id == subscription_id, _unfinished, ~exists().where(_theirs))
    finished = (turns.c.subscription_id == subscription_id, ~exists().where(_theirs, _unfinished))
    page = (
        select(*WITHOUT_DATA)
        .join(deliveries, deliveries.c.event_seq == events.c.seq)
        .where(*without_turn)
        .order_by(events.c.seq)
        .limit(_BATCH)
        .with_for_update(of=deliveries, skip_locked=True)
    )
    with mapped_errors():
        async with engine.execution_options(sqlite_begin="DEFERRED").connect() as connection:
            amiss = or_(exists().where(*without_turn), exists().where(*finished))
            if not await connection.scalar(select(amiss)):
                return 0
        changed = 0
        while True:
            async with engine.begin() as connection:
                await lock_bus(connection)
                changed += (await connection.execute(delete(turns).where(*finished))).rowcount
                rows = (await connection.execute(page)).all()
                await _give(connection, subscription_id, order_by, rows, [_FRONT + row.seq for row in rows])
            changed += len(rows)
            if len(rows) < _BATCH:
                return changed


async def join_lines(connection: AsyncConnection, subscription_id: int, seqs: Sequence[int]) -> None:
    """
    Put unfinished deliveries without a turn at the end of their lines.

    They go in the order of their events. Without an order there is nothing to do.
    """
    spec = await connection.scalar(select(subscriptions.c.spec).where(subscriptions.c.id == subscription_id))
    order_by = spec.get("order_by") if isinstance(spec, dict) else None  # it may be no spec
    if not order_by:
        return
    mine = (deliveries.c.subscription_id == subscription_id, deliveries.c.event_seq.in_(seqs))
    joining = select(*WITHOUT_DATA).join(deliveries, deliveries.c.event_seq == events.c.seq)
    joining = joining.where(*mine, _unfinished, ~exists().where(_theirs)).order_by(events.c.seq)
    rows = (await connection.execute(joining)).all()
    if not rows:
        return
    # Only the queue gives out positions. These rows of it are gone before others can see them.
    places = insert(dispatch).returning(dispatch.c.position)
    taken = await connection.scalars(places, [{"event_seq": row.seq} for row in rows])
    positions = sorted(taken)
    await connection.execute(delete(dispatch).where(dispatch.c.position.in_(positions)))
    await _give(connection, subscription_id, order_by, rows, positions)


async def leave_lines(connection: AsyncConnection, subscription_id: int, seqs: Sequence[int] | None = None) -> None:
    """End the turns of deliveries, by default all of the subscription, so that the next ones may go."""
    conditions = [turns.c.subscription_id == subscription_id]
    if seqs is not None:
        conditions.append(turns.c.event_seq.in_(seqs))
    await connection.execute(delete(turns).where(*conditions))


async def _give(
    connection: AsyncConnection,
    subscription_id: int,
    order_by: str,
    rows: Sequence[Row[Any]],
    positions: Sequence[int],
) -> None:
    """Insert the turns of the events in `rows`."""
    values = [
        {
            "subscription_id": subscription_id,
            "order_key": order_key(order_by, event_of(row), row.seq),
            "position": position,
            "event_seq": row.seq,
        }
        for row, position in zip(rows, positions, strict=True)
    ]
    if values:
        await connection.execute(insert(turns), values)
