"""The records that people read and correct, for both databases."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Row,
    Select,
    Text,
    and_,
    column,
    func,
    literal_column,
    or_,
    select,
    table,
    union_all,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from ..delivery import DeliveryState
from ..errors import NotFound
from ..event import NO_EXTENSIONS
from .acks import acknowledge
from .contract.records import AttemptView, DeliveryQuery, DeliveryView, EventQuery, EventView, InstanceView, TraceView
from .contract.registry import Instance, Registered, StrategyHealth
from .corrections import SqlCorrections
from .errors import mapped_errors
from .identity import restored
from .registry import ALIVE, compilable, named, readable
from .selection import (
    NEWEST_FIRST,
    OLDEST_FIRST,
    OPEN,
    SOONEST_FIRST,
    WITHOUT_DATA,
    Conditions,
    delivery_conditions,
    delivery_key,
    event_conditions,
    event_of,
    fetch,
    has_id,
    in_any_source,
    in_state,
)
from .tables import Now, attempts, deliveries, dispatch, events, instances, scheduled, subscriptions
from .traces import flow_of

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

_DELETED = "(deleted)"  # in place of a subscription's name
_PAGE = 500  # rows read in one transaction
_PIECE = 4 * 1024 * 1024  # bytes of data read in one


class SqlRecords(SqlCorrections):
    """
    `Records` on SQLAlchemy Core.

    Every page read is a transaction of its own, and none is open while a caller looks at what was yielded.
    """

    async def events(self, query: EventQuery) -> AsyncIterator[EventView]:
        """Yield the events `query` describes, read in pages."""
        async with self._read() as connection:
            conditions = await event_conditions(connection, query)
        order = events.c.seq.desc() if query.newest_first else events.c.seq
        left, beyond = query.limit, Conditions()
        while left > 0:
            size = min(left, _PAGE)
            size_of = func.coalesce(func.length(events.c.data), 0).label("size")
            page = select(*WITHOUT_DATA, size_of).where(*conditions, *beyond).order_by(order).limit(size)
            async with self._read() as connection:
                rows = await fetch(connection, page)
                views = await _event_views(connection, rows)
            for piece in _pieces(list(zip(views, (row.size for row in rows), strict=True))):
                contents: Mapping[int, bytes | None] = {}
                if query.data:
                    wanted = select(events.c.seq, events.c.data).where(events.c.seq.in_([each.seq for each in piece]))
                    async with self._read() as connection:
                        contents = {row.seq: row.data for row in await fetch(connection, wanted)}
                for view in piece:
                    if query.state not in (None, view.state):
                        continue  # it went on between two statements
                    if not query.data:
                        yield view
                    elif view.seq in contents:  # else it has been pruned
                        yield replace(view, event=view.event.replace(data=contents[view.seq]))
            if len(rows) < size:
                return
            left -= len(views)
            beyond = [events.c.seq < rows[-1].seq if query.newest_first else events.c.seq > rows[-1].seq]

    async def seqs(self, end: int | None, limit: int) -> Sequence[int]:
        """Return the seqs of the last `limit` events, up to `end`."""
        up_to = () if end is None else (events.c.seq <= end,)
        async with self._read() as connection:
            return (
                await connection.scalars(select(events.c.seq).where(*up_to).order_by(events.c.seq.desc()).limit(limit))
            ).all()

    async def writers(self) -> Collection[str]:
        """
        Return an id for each transaction that may be recording events.

        On PostgreSQL those hold a lock on the table from before they are given a seq, and everybody may see it;
        SQLite has one writer, whose seqs come in order.
        """
        if self._engine.dialect.name == "sqlite":
            return ()
        async with self._read() as connection:
            return (await connection.scalars(_WRITERS)).all()

    async def event(self, reference: str) -> EventView:
        """Return one event by its seq (digits) or its id. Raise `NotFound`; name the sources if an id has several."""
        async with self._read() as connection:
            rows: Sequence[Row[Any]] = ()
            if reference.isascii() and reference.isdigit() and len(reference) < 19:
                rows = await fetch(connection, select(events).where(events.c.seq == int(reference)))
            if not rows:
                by_id = select(events).where(has_id(reference), in_any_source())
                rows = await fetch(connection, by_id.order_by(events.c.seq).limit(10))
            if len(rows) == 1:
                return (await _event_views(connection, rows))[0]
        if not rows:
            raise NotFound(f"no event has the seq or the id {reference!r}")
        choices = ", ".join(f"{row.seq} (source {event_of(row).source})" for row in rows)
        raise NotFound(f"the id {reference!r} is that of several events; give the seq of one of them: {choices}")

    async def trace(self, reference: str, limit: int) -> TraceView:
        """Return the events that led to an event, or that it led to, as far as they carry the same correlation."""
        seq = (await self.event(reference)).seq
        async with self._read() as connection:
            correlation, rows, complete = await flow_of(connection, seq, limit)
            views = await _event_views(connection, rows)
            theirs = _delivery_views(deliveries.c.event_seq.in_([view.seq for view in views])).order_by(*OLDEST_FIRST)
            found = [_delivery_view(row) for row in await fetch(connection, theirs.limit(limit + 1))]
        by_event: dict[int, list[DeliveryView]] = {}
        for view in found[:limit]:
            by_event.setdefault(view.seq, []).append(view)
        return TraceView(correlation, views, by_event, complete and len(found) <= limit)

    async def deliveries(self, query: DeliveryQuery) -> AsyncIterator[DeliveryView]:
        """Yield the deliveries `query` describes, newest event first, read in pages."""
        conditions = delivery_conditions(query, (query.state,) if query.state else ())
        left, beyond = query.limit, Conditions()
        while left is None or left > 0:
            size = _PAGE if left is None else min(left, _PAGE)
            order = SOONEST_FIRST if query.soonest_first else NEWEST_FIRST
            page = _delivery_views(*conditions, *beyond).order_by(*order).limit(size)
            async with self._read() as connection:
                rows = await fetch(connection, page)
            for row in rows:
                yield _delivery_view(row)
            if len(rows) < size:
                return
            left = None if left is None else left - size
            beyond = [_beyond(rows[-1], soonest_first=query.soonest_first)]

    async def delivery(self, seq: int, subscription: str) -> tuple[DeliveryView, Sequence[AttemptView]]:
        """Return one delivery and its attempts in order. Raise `NotFound`."""
        async with self._read() as connection:
            one = _delivery_views(deliveries.c.event_seq == seq, subscriptions.c.name == subscription)
            rows = await fetch(connection, one)
            if not rows:
                raise NotFound(f"no delivery of event {seq} to subscription {subscription!r} is recorded")
            tried = select(attempts).where(
                attempts.c.event_seq == seq, attempts.c.subscription_id == rows[0].subscription_id
            )
            made = await fetch(connection, tried.order_by(attempts.c.serial))
        return _delivery_view(rows[0]), [_attempt_view(row) for row in made]

    async def ack(self, reference: str, subscription: str, *, failure: str | None = None) -> bool:
        """Acknowledge the delivery of an event, given by its seq or its id; return whether that changed anything."""
        return await acknowledge(self._engine, await self.event(reference), subscription, failure)

    async def registered(self) -> Sequence[tuple[Registered, bool, Mapping[str, int]]]:
        """
        Return every subscription ever known, whether it is active, and its open and dead deliveries, by state.

        Cancelled ones are not counted: no index finds them, and this is asked every few seconds.
        """
        async with self._read() as connection:
            counts = await _unfinished(connection)
            rows = await fetch(connection, select(subscriptions, Now().label("now")).order_by(subscriptions.c.id))
        return [(each, row.active, counts.get(row.id, {})) for row, each in readable(rows)]

    async def subscription(self, name: str) -> tuple[Registered, bool, Mapping[str, int]]:
        """Return the same of one. Raise `NotFound`, with the names there are."""
        async with self._read() as connection:
            row = await named(connection, name)
            counts = await _unfinished(connection, deliveries.c.subscription_id == row.id)
        return compilable(row), row.active, counts.get(row.id, {})

    async def instances(self) -> Sequence[InstanceView]:
        """Return the processes that reported, the latest first."""
        async with self._read() as connection:
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
            )
            for row in rows
        ]

    @contextlib.asynccontextmanager
    async def _read(self) -> AsyncIterator[AsyncConnection]:
        with mapped_errors():
            async with self._reading.connect() as connection:
                yield connection


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


def _pieces(views: Sequence[tuple[EventView, int]]) -> Iterator[list[EventView]]:
    """Yield the views, each with the bytes of its data, in pieces that hold no more than `_PIECE` of it."""
    piece: list[EventView] = []
    bytes_ = 0
    for view, size in views:
        if piece and bytes_ + size > _PIECE:
            yield piece
            piece, bytes_ = [], 0
        piece.append(view)
        bytes_ += size
    if piece:
        yield piece


async def _event_views(connection: AsyncConnection, rows: Sequence[Row[Any]]) -> list[EventView]:
    """Look for the work of the events in the order it moves in, so that none is missed between two statements."""
    seqs = [row.seq for row in rows]
    if not seqs:
        return []
    later = select(scheduled).where(scheduled.c.event_seq.in_(seqs))
    due = {row.event_seq: row.due_at for row in await connection.execute(later)}
    queued = set(await connection.scalars(select(dispatch.c.event_seq).where(dispatch.c.event_seq.in_(seqs))))
    by_state = (
        select(deliveries.c.event_seq, deliveries.c.state, func.count().label("number"))
        .where(deliveries.c.event_seq.in_(seqs))
        .group_by(deliveries.c.event_seq, deliveries.c.state)
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


def _beyond(last: Row[Any], *, soonest_first: bool) -> ColumnElement[bool]:
    """Return the condition for what comes after the last row of a page."""
    key = (last.event_seq, last.subscription_id)
    if not soonest_first:
        return delivery_key < key
    at_once = and_(deliveries.c.due_at == last.due_at, delivery_key > key)
    return or_(deliveries.c.due_at > last.due_at, at_once)


def _delivery_views(*conditions: ColumnElement[bool]) -> Select[*tuple[Any, ...]]:
    return (
        select(
            deliveries,
            func.coalesce(subscriptions.c.name, _DELETED).label("subscription"),
            events.c.source.label("event_source"),
            events.c.id.label("event_id"),
            events.c.type.label("event_type"),
            events.c.extensions.label("event_extensions"),
        )
        .outerjoin(subscriptions, subscriptions.c.id == deliveries.c.subscription_id)
        .join(events, events.c.seq == deliveries.c.event_seq)
        .where(*conditions)
    )


def _delivery_view(row: Row[Any]) -> DeliveryView:
    source, id, _ = restored(row.event_source, row.event_id, row.event_extensions or NO_EXTENSIONS)
    return DeliveryView(
        seq=row.event_seq,
        subscription=row.subscription,
        event_source=source,
        event_id=id,
        event_type=row.event_type,
        state=DeliveryState(row.state),
        attempts=row.attempts,
        due_at=row.due_at,
        last_error=row.last_error,
        updated_at=row.updated_at,
    )


def _strategy(stored: Mapping[str, Any]) -> StrategyHealth:
    """Return what an instance said of a strategy; one of a later version may say more."""
    return StrategyHealth(stored["name"], stored["hears"], stored["detail"])


def _attempt_view(row: Row[Any]) -> AttemptView:
    return AttemptView(
        number=row.number,
        at=row.at,
        duration=timedelta(microseconds=row.duration_us),
        status=row.status,
        error=row.error,
        excerpt=row.excerpt,
    )
