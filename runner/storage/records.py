"""What people look at and correct, for both databases."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import groupby
from operator import itemgetter
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, func, literal_column, select, tuple_, union_all, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ..delivery import DeliveryState
from ..errors import NotFound
from ..event import Event
from ..subscription import matches_pattern
from .acks import acknowledge
from .base import Instance, Registered
from .engine import mapped_errors
from .registry import registered
from .tables import Now, attempts, deliveries, dispatch, events, instances, scheduled, subscriptions
from .views import AttemptView, DeliveryQuery, DeliveryView, EventQuery, EventView, InstanceView

__all__ = ["SqlRecords"]

_PAGE = 500  # rows read in one transaction
_BATCH = 1000  # rows changed in one transaction

_ALIVE = timedelta(seconds=30)

# How far the order of seq and the order of recording may be apart: a transaction that waited, a clock set back.
_DISORDER = timedelta(hours=1)

_OPEN = (DeliveryState.PENDING, DeliveryState.LEASED)
_ENDED = (DeliveryState.DEAD, DeliveryState.CANCELLED)

Conditions = list[ColumnElement[bool]]
Key = tuple[int, int]


class SqlRecords:
    """
    The `Records` of `base.py` on SQLAlchemy Core.

    Every page read is a transaction of its own, and none is open while a caller looks at what was yielded.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._reading = engine.execution_options(sqlite_begin="DEFERRED")

    async def events(self, query: EventQuery) -> AsyncIterator[EventView]:
        """Yield the events `query` describes, read in pages."""
        async with self._read() as connection:
            conditions = await _event_conditions(connection, query)
        order = events.c.seq.desc() if query.newest_first else events.c.seq
        left, beyond = query.limit, Conditions()
        while left > 0:
            size = min(left, _PAGE)
            async with self._read() as connection:
                rows = await _rows(connection, select(events).where(*conditions, *beyond).order_by(order).limit(size))
                views = await _event_views(connection, [row for row in rows if _fits(query, row)])
            for view in views:
                yield view
            if len(rows) < size:
                return
            left -= len(views)
            beyond = [events.c.seq < rows[-1].seq if query.newest_first else events.c.seq > rows[-1].seq]

    async def event(self, reference: str) -> EventView:
        """Return one event by its seq (digits) or its id. Raise `NotFound`; name the sources if an id has several."""
        async with self._read() as connection:
            rows: Sequence[Row[Any]] = ()
            if reference.isascii() and reference.isdigit() and len(reference) < 19:
                rows = await _rows(connection, select(events).where(events.c.seq == int(reference)))
            if not rows:
                by_id = select(events).where(events.c.id == reference, _in_any_source())
                rows = await _rows(connection, by_id.order_by(events.c.seq).limit(10))
            if len(rows) == 1:
                return (await _event_views(connection, rows))[0]
        if not rows:
            raise NotFound(f"no event has the seq or the id {reference!r}")
        choices = ", ".join(f"{row.seq} (source {row.source})" for row in rows)
        raise NotFound(f"the id {reference!r} is that of several events; give the seq of one of them: {choices}")

    async def deliveries(self, query: DeliveryQuery) -> AsyncIterator[DeliveryView]:
        """Yield the deliveries `query` describes, newest event first, read in pages."""
        conditions = _delivery_conditions(query, (query.state,) if query.state else ())
        left, beyond = query.limit, Conditions()
        while left is None or left > 0:
            size = _PAGE if left is None else min(left, _PAGE)
            page = _delivery_views(*conditions, *beyond).order_by(*_NEWEST_FIRST).limit(size)
            async with self._read() as connection:
                rows = await _rows(connection, page)
            for row in rows:
                yield _delivery_view(row)
            if len(rows) < size:
                return
            left = None if left is None else left - size
            beyond = _after((rows[-1].event_seq, rows[-1].subscription_id))

    async def delivery(self, seq: int, subscription: str) -> tuple[DeliveryView, Sequence[AttemptView]]:
        """Return one delivery and its attempts in order. Raise `NotFound`."""
        async with self._read() as connection:
            one = _delivery_views(deliveries.c.event_seq == seq, subscriptions.c.name == subscription)
            rows = await _rows(connection, one)
            if not rows:
                raise NotFound(f"no delivery of event {seq} to subscription {subscription!r} is recorded")
            tried = select(attempts).where(
                attempts.c.event_seq == seq, attempts.c.subscription_id == rows[0].subscription_id
            )
            made = await _rows(connection, tried.order_by(attempts.c.serial))
        return _delivery_view(rows[0]), [_attempt_view(row) for row in made]

    async def retry(self, query: DeliveryQuery, *, dry_run: bool = False) -> int:
        """Make the matching dead or cancelled deliveries pending and due now, with fresh attempts; return how many."""
        fresh = {"state": DeliveryState.PENDING, "attempts": 0, "due_at": Now(), "lease_token": None}
        return await self._change(query, _ENDED, fresh, ((_BATCH, False),), dry_run=dry_run)

    async def cancel(self, query: DeliveryQuery, *, dry_run: bool = False) -> int:
        """Cancel the matching pending or leased deliveries, leases and all; return how many."""
        ended = {"state": DeliveryState.CANCELLED, "due_at": None, "lease_token": None}
        # A worker that settles locks several rows, and so does a batch here: each could wait for the other. So the
        # batches pass over what is locked, and what they left is then waited for, one by one, with nothing held.
        passes = ((_BATCH, True), (1, False))
        return await self._change(query, _OPEN, ended, passes, dry_run=dry_run)

    async def ack(self, reference: str, subscription: str, *, failure: str | None = None) -> bool:
        """Acknowledge the delivery of an event, given by its seq or its id; return whether that changed anything."""
        return await acknowledge(self._engine, await self.event(reference), subscription, failure)

    async def registered(self) -> Sequence[tuple[Registered, bool, Mapping[str, int]]]:
        """
        Return every subscription ever known, whether it is active, and its open and dead deliveries, by state.

        Cancelled ones are not counted: no index finds them, and this is asked every few seconds.
        """
        kinds = [
            select(deliveries.c.subscription_id, deliveries.c.state, func.count().label("number"))
            .where(_in_state(states))
            .group_by(deliveries.c.subscription_id, deliveries.c.state)
            for states in (_OPEN, (DeliveryState.DEAD,))
        ]
        counts: dict[int, dict[str, int]] = {}
        async with self._read() as connection:
            for row in await connection.execute(union_all(*kinds)):
                counts.setdefault(row.subscription_id, {})[row.state] = row.number
            rows = await _rows(connection, select(subscriptions).order_by(subscriptions.c.id))
        return [(registered(row), row.active, counts.get(row.id, {})) for row in rows]

    async def instances(self) -> Sequence[InstanceView]:
        """Return the processes that reported, the latest first."""
        async with self._read() as connection:
            latest_first = select(instances, Now().label("now")).order_by(instances.c.heartbeat_at.desc())
            rows = await _rows(connection, latest_first)
        return [
            InstanceView(
                instance=Instance(id=row.id, host=row.host, pid=row.pid, version=row.version),
                started_at=row.started_at,
                heartbeat_at=row.heartbeat_at,
                alive=row.now - row.heartbeat_at < _ALIVE,
            )
            for row in rows
        ]

    @contextlib.asynccontextmanager
    async def _read(self) -> AsyncIterator[AsyncConnection]:
        with mapped_errors():
            async with self._reading.connect() as connection:
                yield connection

    async def _change(
        self,
        query: DeliveryQuery,
        states: Sequence[DeliveryState],
        values: Mapping[str, Any],
        passes: Sequence[tuple[int, bool]],
        *,
        dry_run: bool,
    ) -> int:
        """
        Give `values` to the deliveries that `query` describes and that are in one of `states`; return how many.

        Args:
            passes: ways through the table: rows in one transaction, and whether to leave out locked ones.
        """
        if query.state is not None:
            states = [state for state in states if state == query.state]
        if not states:
            return 0
        conditions = _delivery_conditions(query, states)
        if dry_run:
            async with self._read() as connection:
                found = _keys(conditions).limit(query.limit).subquery()
                return await connection.scalar(select(func.count()).select_from(found)) or 0
        changed = 0
        for size, skip_locked in passes:
            last: Key | None = None
            while room := size if query.limit is None else min(size, query.limit - changed):
                page = _keys([*conditions, *_after(last)]).limit(room).with_for_update(skip_locked=skip_locked)
                with mapped_errors():
                    async with self._engine.begin() as connection:
                        keys = [(row.event_seq, row.subscription_id) for row in await connection.execute(page)]
                        await _update(connection, keys, values)
                changed += len(keys)
                if len(keys) < room:
                    break
                last = keys[-1]
        return changed


async def _event_conditions(connection: AsyncConnection, query: EventQuery) -> Conditions:
    conditions: Conditions = []
    for column, pattern in ((events.c.type, query.type), (events.c.source, query.source)):
        if pattern is not None:
            conditions.append(column.like(_like(pattern), escape="\\") if "*" in pattern else column == pattern)
    if query.id is not None:
        conditions += [events.c.id == query.id, _in_any_source()]
    if query.after_seq is not None:
        conditions.append(events.c.seq > query.after_seq)
    if query.since is not None:
        conditions.append(events.c.created_at >= query.since)
        conditions.append(events.c.seq >= await _seq_at(connection, query.since - _DISORDER))
    if query.until is not None:
        conditions.append(events.c.created_at < query.until)
        conditions.append(events.c.seq <= await _seq_at(connection, query.until + _DISORDER))
    return conditions


def _like(pattern: str) -> str:
    return re.sub(r"\*+", "%", re.sub(r"[\\%_]", r"\\\g<0>", pattern))


def _fits(query: EventQuery, row: Row[Any]) -> bool:
    """Check the patterns again: SQLite's LIKE takes upper and lower case for the same."""
    return (query.type is None or matches_pattern(query.type, row.type)) and (
        query.source is None or matches_pattern(query.source, row.source)
    )


def _in_any_source() -> ColumnElement[bool]:
    """
    Return a condition that is always true, and lets a search by id use the index on (source, id).

    The sources are found by hopping over that index, one probe each.
    """
    found = select(func.min(events.c.source).label("source")).cte("sources", recursive=True)
    following = select(func.min(events.c.source)).where(events.c.source > found.c.source).scalar_subquery()
    found = found.union_all(select(following).select_from(found).where(found.c.source.is_not(None)))
    return events.c.source.in_(select(found.c.source))


async def _seq_at(connection: AsyncConnection, moment: datetime) -> int:
    """Return the seq of about the first event recorded at `moment` or later: a binary search over the primary key."""
    low, high = (await connection.execute(select(func.min(events.c.seq), func.max(events.c.seq) + 1))).one()
    while low is not None and low < high:
        middle = (low + high) // 2
        at = select(events.c.created_at).where(events.c.seq >= middle).order_by(events.c.seq).limit(1)
        recorded = await connection.scalar(at)
        if recorded is not None and recorded < moment:
            low = middle + 1
        else:
            high = middle
    return low or 0


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
        if row.state in _OPEN:
            queued.add(row.event_seq)
    return [
        EventView(
            seq=row.seq,
            event=_event(row),
            created_at=row.created_at,
            state="scheduled" if row.seq in due else "queued" if row.seq in queued else "settled",
            due_at=due.get(row.seq),
            deliveries=counts.get(row.seq, {}),
        )
        for row in rows
    ]


def _event(row: Row[Any]) -> Event:
    return Event(
        type=row.type,
        source=row.source,
        id=row.id,
        subject=row.subject,
        time=row.time or row.created_at,
        datacontenttype=row.datacontenttype,
        dataschema=row.dataschema,
        extensions=row.extensions or {},
        data=row.data,
    )


_key = tuple_(deliveries.c.event_seq, deliveries.c.subscription_id)
_NEWEST_FIRST = (deliveries.c.event_seq.desc(), deliveries.c.subscription_id.desc())


def _delivery_conditions(query: DeliveryQuery, states: Sequence[DeliveryState]) -> Conditions:
    conditions: Conditions = [_in_state(states)] if states else []
    indexed = states and not {DeliveryState.DELIVERED, DeliveryState.CANCELLED}.intersection(states)
    if states and set(states) < set(_OPEN):
        conditions.append(_in_state(_OPEN))  # in the very words of the index: SQLite draws no conclusions
    if query.subscription is not None:
        named = select(subscriptions.c.id).where(subscriptions.c.name == query.subscription)
        conditions.append(deliveries.c.subscription_id == named.scalar_subquery())
    elif indexed and query.seq is None:
        # Always true, and the indexes by state begin with the subscription.
        conditions.append(deliveries.c.subscription_id.in_(select(subscriptions.c.id)))
    if query.seq is not None:
        conditions.append(deliveries.c.event_seq == query.seq)
    if query.since is not None:
        conditions.append(deliveries.c.updated_at >= query.since)
    if query.until is not None:
        conditions.append(deliveries.c.updated_at < query.until)
    return conditions


def _in_state(states: Sequence[DeliveryState]) -> ColumnElement[bool]:
    """Write the states as the partial indexes do: no planner can use those for a parameter."""
    names: list[ColumnElement[str]] = [literal_column(f"'{state}'") for state in states]
    return deliveries.c.state == names[0] if len(names) == 1 else deliveries.c.state.in_(names)


def _after(last: Key | None) -> Conditions:
    return [] if last is None else [_key < last]


def _keys(conditions: Conditions) -> Select[int, int]:
    return select(deliveries.c.event_seq, deliveries.c.subscription_id).where(*conditions).order_by(*_NEWEST_FIRST)


async def _update(connection: AsyncConnection, keys: Sequence[Key], values: Mapping[str, Any]) -> None:
    subscription = itemgetter(1)
    for subscription_id, group in groupby(sorted(keys, key=subscription), key=subscription):
        ours = (deliveries.c.subscription_id == subscription_id, deliveries.c.event_seq.in_([seq for seq, _ in group]))
        await connection.execute(update(deliveries).where(*ours).values(**values, updated_at=Now()))


def _delivery_views(*conditions: ColumnElement[bool]) -> Select[*tuple[Any, ...]]:
    return (
        select(
            deliveries,
            subscriptions.c.name.label("subscription"),
            events.c.source.label("event_source"),
            events.c.id.label("event_id"),
            events.c.type.label("event_type"),
        )
        .join(subscriptions, subscriptions.c.id == deliveries.c.subscription_id)
        .join(events, events.c.seq == deliveries.c.event_seq)
        .where(*conditions)
    )


def _delivery_view(row: Row[Any]) -> DeliveryView:
    return DeliveryView(
        seq=row.event_seq,
        subscription=row.subscription,
        event_source=row.event_source,
        event_id=row.event_id,
        event_type=row.event_type,
        state=DeliveryState(row.state),
        attempts=row.attempts,
        due_at=row.due_at,
        last_error=row.last_error,
        updated_at=row.updated_at,
    )


def _attempt_view(row: Row[Any]) -> AttemptView:
    return AttemptView(
        number=row.number,
        at=row.at,
        duration=timedelta(microseconds=row.duration_us),
        status=row.status,
        error=row.error,
        excerpt=row.excerpt,
    )


async def _rows(connection: AsyncConnection, statement: Select[*tuple[Any, ...]]) -> Sequence[Row[Any]]:
    return (await connection.execute(statement)).all()
