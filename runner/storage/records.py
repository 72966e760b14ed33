"""The records that people read, for both databases."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from time import monotonic
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Row,
    Text,
    column,
    func,
    literal_column,
    select,
    table,
    union_all,
)
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from typing_extensions import override

from ..delivery import DeliveryState
from ..errors import NotFound
from .contract.records import (
    AttemptView,
    DeliveryQuery,
    DeliveryView,
    EventQuery,
    EventView,
    Found,
    FoundDeliveries,
    InstanceView,
    Records,
    SubscriptionView,
    TraceView,
)
from .contract.registry import Configuration, Instance, StrategyHealth
from .delivery_views import delivery_pages, delivery_view, delivery_views, list_deliveries
from .event_search import event_pages, with_data
from .event_views import event_views, find_event
from .expressions import Now
from .registry import ALIVE, named
from .selection import (
    OPEN,
    fetch,
    in_state,
)
from .subscription_rows import compilable, readable
from .tables import attempts, deliveries, delivery_states, events, instances, subscriptions
from .traces import flow_of
from .transactions import Transactions

__all__ = ["SqlRecords"]

_LOCKS = table(
    "pg_locks",
    *(column(name) for name in ("database", "relation", "mode")),
    column("virtualtransaction", Text),
    schema="pg_catalog",
)
_WRITERS = select(_LOCKS.c.virtualtransaction).where(
    _LOCKS.c.database
    == literal_column("(SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())"),
    # The oid of the table, wherever it is; a gap is seen only where there are rows.
    _LOCKS.c.relation == select(literal_column("tableoid")).select_from(events).limit(1).scalar_subquery(),
    _LOCKS.c.mode == "RowExclusiveLock",
)


class SqlRecords(Records):
    """
    `Records` on SQLAlchemy Core.

    Every page read is a transaction of its own, and none is open while a caller looks at what was yielded.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._transactions = Transactions(engine)

    @override
    async def events(self, query: EventQuery) -> AsyncIterator[EventView]:
        async for page in event_pages(self._transactions, query):
            if not query.data:
                for view in page.views:
                    yield view
                continue
            async for view in with_data(self._transactions, page):
                yield view

    @override
    async def search(self, query: EventQuery, patience: timedelta) -> Found:
        ends, found, reached = monotonic() + patience.total_seconds(), list[EventView](), None
        async for page in event_pages(self._transactions, query):
            found += [each async for each in with_data(self._transactions, page)] if query.data else page.views
            reached = page.reached
            if monotonic() >= ends:
                break
        return Found(found, None if len(found) >= query.limit else reached)

    @override
    async def seqs(self, end: int | None, limit: int) -> Sequence[int]:
        up_to = () if end is None else (events.c.seq <= end,)
        async with self._transactions.read() as connection:
            return (
                await connection.scalars(select(events.c.seq).where(*up_to).order_by(events.c.seq.desc()).limit(limit))
            ).all()

    @override
    async def writers(self) -> Collection[str]:
        # On PostgreSQL they hold a lock on the table from before they are given a seq, and everybody may see it.
        # SQLite has one writer, whose seqs come in order.
        if self._transactions.dialect == "sqlite":
            return ()
        async with self._transactions.read() as connection:
            return (await connection.scalars(_WRITERS)).all()

    @override
    async def event(self, reference: str) -> EventView:
        async with self._transactions.read() as connection:
            return await find_event(connection, reference)

    @override
    async def trace(self, reference: str, limit: int) -> TraceView:
        async with self._transactions.read() as connection:
            seq, states = (await find_event(connection, reference)).seq, delivery_states.c
            correlation, rows, complete = await flow_of(connection, seq, limit)
            views = await event_views(connection, rows)
            theirs = delivery_views(delivery_states, states.event_seq.in_([view.seq for view in views]))
            theirs = theirs.order_by(states.event_seq, states.subscription_id)
            found = [delivery_view(row) for row in await fetch(connection, theirs.limit(limit + 1))]
        by_event: dict[int, list[DeliveryView]] = {}
        for view in found[:limit]:
            by_event.setdefault(view.seq, []).append(view)
        return TraceView(correlation, views, by_event, complete and len(found) <= limit)

    @override
    async def deliveries(self, query: DeliveryQuery) -> AsyncIterator[DeliveryView]:
        async for view in list_deliveries(self._transactions, query):
            yield view

    @override
    async def search_deliveries(self, query: DeliveryQuery, patience: timedelta) -> FoundDeliveries:
        ends, found, reached = monotonic() + patience.total_seconds(), list[DeliveryView](), None
        async for page in delivery_pages(self._transactions, query):
            found += page.views
            reached = page.reached
            if monotonic() >= ends:
                break
        full = query.limit is not None and len(found) >= query.limit
        return FoundDeliveries(found, None if full else reached)

    @override
    async def delivery(self, seq: int, subscription: str) -> tuple[DeliveryView, Sequence[AttemptView]]:
        async with self._transactions.read() as connection:
            this = (delivery_states.c.event_seq == seq, subscriptions.c.name == subscription)
            one = delivery_views(delivery_states, *this)
            rows = await fetch(connection, one)
            if not rows:
                raise NotFound(f"no delivery of event {seq} to subscription {subscription!r} is recorded")
            tried = select(attempts).where(
                attempts.c.event_seq == seq, attempts.c.subscription_id == rows[0].subscription_id
            )
            made = await fetch(connection, tried.order_by(attempts.c.serial))
        return delivery_view(rows[0]), [_attempt_view(row) for row in made]

    @override
    async def attempts(self, seq: int, names: Sequence[str]) -> Mapping[str, Sequence[AttemptView]]:
        theirs = select(attempts, subscriptions.c.name).join(
            subscriptions, subscriptions.c.id == attempts.c.subscription_id
        )
        mine = (attempts.c.event_seq == seq, subscriptions.c.name.in_(names))
        made: dict[str, list[AttemptView]] = {name: [] for name in names}
        async with self._transactions.read() as connection:
            for row in await fetch(connection, theirs.where(*mine).order_by(attempts.c.serial)):
                made[row.name].append(_attempt_view(row))
        return made

    @override
    async def registered(self) -> Sequence[SubscriptionView]:
        async with self._transactions.read() as connection:
            counts = await _unfinished(connection)
            rows = await fetch(connection, select(subscriptions, Now().label("now")).order_by(subscriptions.c.id))
        return [
            SubscriptionView(each, row.active and not each.expired, counts.get(row.id, {}))
            for row, each in readable(rows)
        ]

    @override
    async def subscription(self, name: str) -> SubscriptionView:
        async with self._transactions.read() as connection:
            row = await named(connection, name)
            counts = await _unfinished(connection, deliveries.c.subscription_id == row.id)
        found = compilable(row)
        return SubscriptionView(found, row.active and not found.expired, counts.get(row.id, {}))

    @override
    async def instances(self) -> Sequence[InstanceView]:
        async with self._transactions.read() as connection:
            latest_first = select(instances, Now().label("now")).order_by(instances.c.heartbeat_at.desc())
            rows = await fetch(connection, latest_first)
        return [
            InstanceView(
                instance=Instance(id=row.id, host=row.host, pid=row.pid, version=row.version),
                started_at=row.started_at,
                heartbeat_at=row.heartbeat_at,
                alive=abs(row.now - row.heartbeat_at) < ALIVE,  # a beat to come is of a clock that was set back
                progress_at=row.progress_at,
                lag=None if row.lag_us is None else timedelta(microseconds=row.lag_us),
                running=row.running,
                sinks=row.sinks,
                strategies=None if row.strategies is None else [_strategy(each) for each in row.strategies],
                holder=row.holder,
                configuration=None if row.configuration is None else _configuration(row.configuration),
            )
            for row in rows
        ]


async def _unfinished(connection: AsyncConnection, *conditions: ColumnElement[bool]) -> dict[int, dict[str, int]]:
    """Return how many deliveries of each subscription are open and dead, by state."""
    kinds = [
        select(deliveries.c.subscription_id, deliveries.c.state, func.count().label("number"))
        .where(in_state(states), *conditions)
        .group_by(deliveries.c.subscription_id, deliveries.c.state)
        for states in (OPEN, (DeliveryState.DEAD,))
    ]
    counts: dict[int, dict[str, int]] = {}
    for row in await connection.execute(union_all(*kinds)):
        counts.setdefault(row.subscription_id, {})[row.state] = row.number
    return counts


def _strategy(stored: Mapping[str, Any]) -> StrategyHealth:
    """Return the reported state of a strategy; a later version may report more."""
    return StrategyHealth(stored["name"], stored["hears"], stored["detail"])


def _configuration(stored: Mapping[str, Any]) -> Configuration:
    """Return the reported file of an instance; a later version may report more."""
    loaded, tried = (None if stored[name] is None else datetime.fromisoformat(stored[name]) for name in _MOMENTS)
    assert loaded is not None
    return Configuration(stored["digest"], loaded, stored["outcome"], tried, tuple(stored["faults"]))


_MOMENTS = ("loaded_at", "tried_at")


def _attempt_view(row: Row[Any]) -> AttemptView:
    return AttemptView(
        number=row.number,
        at=row.at,
        duration=timedelta(microseconds=row.duration_us),
        status=row.status,
        error=row.error,
        excerpt=row.excerpt,
    )
