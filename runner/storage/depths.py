"""Depths of the queues for gauges: one query whose cost is bounded on tables of any size."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import Select, func, select, true
from sqlalchemy.ext.asyncio import AsyncEngine
from typing_extensions import override

from ..delivery import DeliveryState
from .contract.depths import Depth, DepthReader, Depths
from .contract.overview import MOST
from .expressions import Now
from .selection import OPEN, in_state
from .tables import deliveries, dispatch, events, scheduled, subscriptions
from .transactions import Transactions

__all__ = ["SqlDepths"]

_NONE = timedelta(0)


class SqlDepths(DepthReader):
    """`DepthReader` on SQLAlchemy Core."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._transactions = Transactions(engine)

    @override
    async def read(self) -> Depths:
        async with self._transactions.read() as connection:
            rows = (await connection.execute(_depths())).all()
        first = rows[0]
        counted = first.queued if first.queued <= MOST else max(first.width, first.queued)
        return Depths(
            queued=counted,
            oldest_queued=_NONE if first.oldest_at is None else max(_NONE, first.now - first.oldest_at),
            scheduled=first.scheduled,
            subscriptions=[
                Depth(
                    name=row.name,
                    pending=row.waiting - row.leased,
                    leased=row.leased,
                    dead=row.dead,
                    oldest_due=_NONE if row.due_at is None else max(_NONE, first.now - row.due_at),
                )
                for row in rows
                if row.name is not None
            ],
        )


def _depths() -> Select[*tuple[Any, ...]]:
    """Return one row for each subscription with the queue in each; at least one row."""
    queue = _queue().subquery()
    mine = deliveries.c.subscription_id == subscriptions.c.id
    unfinished = (
        select(deliveries.c.state, deliveries.c.due_at)
        .where(mine, in_state(OPEN))
        .order_by(deliveries.c.due_at)
        .limit(MOST + 1)
        .correlate(subscriptions)
    )
    waiting, leased, due = (unfinished.subquery() for _ in range(3))  # each is read by itself
    dead = select(deliveries.c.event_seq).where(mine, in_state((DeliveryState.DEAD,))).limit(MOST + 1)
    return (
        select(
            queue,
            subscriptions.c.name,
            select(func.count()).select_from(waiting).scalar_subquery().label("waiting"),
            select(func.count())
            .select_from(leased)
            .where(leased.c.state == "leased")
            .scalar_subquery()
            .label("leased"),
            select(func.min(due.c.due_at)).where(due.c.state == "pending").scalar_subquery().label("due_at"),
            select(func.count()).select_from(dead.correlate(subscriptions).subquery()).scalar_subquery().label("dead"),
        )
        .select_from(queue.outerjoin(subscriptions, true()))
        .order_by(subscriptions.c.id)
    )


def _queue() -> Select[*tuple[Any, ...]]:
    queued = select(dispatch.c.position).limit(MOST + 1).subquery()
    later = select(scheduled.c.due_at).order_by(scheduled.c.due_at).limit(MOST + 1).subquery()
    first = select(dispatch.c.event_seq).order_by(dispatch.c.position).limit(1).scalar_subquery()
    least, most = (select(each(dispatch.c.position)).scalar_subquery() for each in (func.min, func.max))
    return select(
        Now().label("now"),
        select(func.count()).select_from(queued).scalar_subquery().label("queued"),
        (most - least + 1).label("width"),
        select(events.c.created_at).where(events.c.seq == first).scalar_subquery().label("oldest_at"),
        select(func.count()).select_from(later).scalar_subquery().label("scheduled"),
    )
