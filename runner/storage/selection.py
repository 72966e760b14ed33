"""The conditions of queries, written so that both databases can use their indexes for them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    Boolean,
    ColumnElement,
    Integer,
    Row,
    Select,
    Table,
    Text,
    and_,
    case,
    func,
    literal,
    literal_column,
    null,
    or_,
    select,
    tuple_,
)
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from ..delivery import DeliveryState
from .contract.records import DeliveryQuery, EventQuery
from .expressions import Instant
from .identity import key_of
from .tables import deliveries, dispatch, events, scheduled, subscriptions

__all__ = [
    "NEWEST_FIRST",
    "OLDEST_FIRST",
    "OPEN",
    "SOONEST_FIRST",
    "WITHOUT_DATA",
    "Conditions",
    "Key",
    "attribute_conditions",
    "delivery_conditions",
    "delivery_key",
    "event_conditions",
    "fetch",
    "fits",
    "has_id",
    "in_any_source",
    "in_state",
    "of_type",
    "seq_range",
]

# How far the order of seq and the order of recording may be apart: a transaction that waited, a clock set back.
_DISORDER = timedelta(hours=1)

OPEN = (DeliveryState.PENDING, DeliveryState.LEASED)

Conditions = list[ColumnElement[bool]]
Key = tuple[int, int]


class _Fits(FunctionElement[bool]):
    """Test that text fits a pattern, given for LIKE and for the GLOB of SQLite, whose LIKE knows no case."""

    type = Boolean()
    inherit_cache = True


@compiles(_Fits)
def _fits_like(element: _Fits, compiler: SQLCompiler, **options: Any) -> str:
    column, like, _ = element.clauses
    return f"{compiler.process(column, **options)} LIKE {compiler.process(like, **options)}"


@compiles(_Fits, "sqlite")
def _fits_glob(element: _Fits, compiler: SQLCompiler, **options: Any) -> str:
    column, _, glob = element.clauses
    return f"{compiler.process(column, **options)} GLOB {compiler.process(glob, **options)}"


def fits(column: ColumnElement[str], pattern: str) -> ColumnElement[bool]:
    """Return whether `column` fits `pattern`, in which `*` stands for any run of characters."""
    if "*" not in pattern:
        return column.in_([pattern, key_of(pattern)]) if column is events.c.source else column == pattern
    stars = re.sub(r"\*+", "*", pattern)
    like = re.sub(r"[\\%_]", r"\\\g<0>", stars).replace("*", "%")
    return _Fits(column, literal(like, Text), literal(re.sub(r"[?\[]", r"[\g<0>]", stars), Text))


async def event_conditions(connection: AsyncConnection, query: EventQuery) -> Conditions:
    """Return the conditions of `query`; its times are looked up, so that the primary key can serve them."""
    conditions = attribute_conditions(connection, query)
    if query.after_seq is not None and query.gaps:
        conditions.append(events.c.seq >= min(first for first, _ in query.gaps))  # where the index is entered
        in_gaps = [events.c.seq.between(first, last) for first, last in query.gaps]
        conditions.append(or_(events.c.seq > query.after_seq, *in_gaps))
    elif query.after_seq is not None:
        conditions.append(events.c.seq > query.after_seq)
    if query.before_seq is not None:
        conditions.append(events.c.seq < query.before_seq)
    if query.since is not None:
        conditions.append(events.c.seq >= await _seq_at(connection, query.since - _DISORDER))
    if query.until is not None:
        conditions.append(events.c.seq <= await _seq_at(connection, query.until + _DISORDER))
    return conditions


def attribute_conditions(connection: AsyncConnection, query: EventQuery) -> Conditions:
    """Return the conditions of `query` but for those on the seq."""
    conditions: Conditions = []
    patterns = ((events.c.type, query.type), (events.c.source, query.source), (events.c.subject, query.subject))
    for column, pattern in patterns:
        if pattern is not None:
            conditions.append(fits(column, pattern))
    if query.id is not None:
        conditions += [has_id(query.id), in_any_source()]
    if query.state is not None:
        conditions += _in_event_state(connection, query.state)
    if query.since is not None:
        conditions.append(events.c.created_at >= query.since)
    if query.until is not None:
        conditions.append(events.c.created_at < query.until)
    return conditions


async def seq_range(connection: AsyncConnection, query: EventQuery) -> tuple[int, int]:
    """Return the first and the last seq that `query` can find; the first is greater where it can find nothing."""
    ends = (await connection.execute(select(_least(), _most()))).one()
    first, last = ends
    if None in ends:
        return 1, 0
    if query.after_seq is not None:
        first = max(first, query.after_seq + 1)
    if query.before_seq is not None:
        last = min(last, query.before_seq - 1)
    if query.since is not None:
        first = max(first, await _seq_at(connection, query.since - _DISORDER))
    if query.until is not None:
        last = min(last, await _seq_at(connection, query.until + _DISORDER))
    return first, last


def _in_event_state(connection: AsyncConnection, state: str) -> Conditions:
    """Return the conditions under which `EventView.state` is `state`."""
    if state == "scheduled":
        return [events.c.seq.in_(select(scheduled.c.event_seq))]
    later = _has_row(connection, scheduled)
    if state == "queued":
        unfinished = select(deliveries.c.event_seq).where(in_state(OPEN))
        return [~later, events.c.seq.in_(select(dispatch.c.event_seq).union(unfinished))]
    ended = [~later, ~_has_row(connection, dispatch), ~_has_row(connection, deliveries, in_state(OPEN))]
    return [*ended, events.c.cancelled_at.is_not(None) if state == "cancelled" else events.c.cancelled_at.is_(None)]


def _has_row(connection: AsyncConnection, table: Table, *conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    """Return whether an event has a row in a table: PostgreSQL joins for EXISTS, SQLite reads once for IN."""
    if connection.dialect.name == "sqlite":
        return events.c.seq.in_(select(table.c.event_seq).where(*conditions))
    return select(table.c.event_seq).where(table.c.event_seq == events.c.seq, *conditions).exists()


def has_id(id: str) -> ColumnElement[bool]:
    """Return whether an event has this id, in either way in which it may be recorded."""
    return events.c.id.in_([id, key_of(id)])


def in_any_source() -> ColumnElement[bool]:
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
    steps = select(_least().label("low"), (_most() + 1).label("high")).cte("steps", recursive=True)
    middle = (steps.c.low + steps.c.high) // literal_column("2", Integer)
    at = select(events.c.created_at).where(events.c.seq >= middle).order_by(events.c.seq).limit(1)
    earlier = at.correlate(steps).scalar_subquery() < literal(moment, Instant)
    low, high = case((earlier, middle + 1), else_=steps.c.low), case((earlier, steps.c.high), else_=middle)
    steps = steps.union_all(select(low, high).where(steps.c.low < steps.c.high))
    return await connection.scalar(select(steps.c.low).where(steps.c.low >= steps.c.high)) or 0


def _least() -> ColumnElement[int]:
    """Return the first seq, found by one probe; both ends at once SQLite would look for in the whole table."""
    return select(func.min(events.c.seq)).scalar_subquery()


def _most() -> ColumnElement[int]:
    """Return the last seq, found by one probe."""
    return select(func.max(events.c.seq)).scalar_subquery()


WITHOUT_DATA = [null().label("data") if column is events.c.data else column for column in events.c]
"""The columns of an event that a match, a line and a list read: all but its data, which may be large."""

delivery_key = tuple_(deliveries.c.event_seq, deliveries.c.subscription_id)
NEWEST_FIRST = (deliveries.c.event_seq.desc(), deliveries.c.subscription_id.desc())
OLDEST_FIRST = (deliveries.c.event_seq, deliveries.c.subscription_id)
SOONEST_FIRST = (deliveries.c.due_at, *OLDEST_FIRST)


def delivery_conditions(query: DeliveryQuery, states: Sequence[DeliveryState], of: Table = deliveries) -> Conditions:
    """
    Return the conditions of `query`, whose own `state` is left to `states`; no states are all.

    Args:
        of: the table or the view they are for.
    """
    if query.soonest_first:
        states = states or OPEN
    conditions: Conditions = [in_state(states, of)] if states else []
    indexed = states and not {DeliveryState.DELIVERED, DeliveryState.CANCELLED}.intersection(states)
    if states and set(states) < set(OPEN):
        conditions.append(in_state(OPEN, of))  # in the very words of the index: SQLite draws no conclusions
    if query.subscription is not None:
        named = select(subscriptions.c.id).where(subscriptions.c.name == query.subscription)
        conditions.append(of.c.subscription_id == named.scalar_subquery())
    elif indexed and query.seq is None:
        # Always true, and the indexes by state begin with the subscription.
        conditions.append(of.c.subscription_id.in_(select(subscriptions.c.id)))
    if query.soonest_first:
        conditions.append(of.c.due_at.is_not(None))
    if query.seq is not None:
        conditions.append(of.c.event_seq == query.seq)
    if query.type is not None:
        its = select(events.c.seq).where(events.c.seq == of.c.event_seq, of_type(query.type))
        conditions.append(its.correlate(of).exists())  # not `events`, which a list joins as well
    if query.since is not None:
        conditions.append(of.c.updated_at >= query.since)
    if query.until is not None:
        conditions.append(of.c.updated_at < query.until)
    if query.before is not None:
        seq, name = query.before
        last = func.coalesce(select(subscriptions.c.id).where(subscriptions.c.name == name).scalar_subquery(), 0)
        same = and_(of.c.event_seq == seq, of.c.subscription_id < last)
        conditions.append(or_(of.c.event_seq < seq, same))
    return conditions


def of_type(pattern: str) -> ColumnElement[bool]:
    """Return whether the type of an event fits a pattern."""
    return fits(events.c.type, pattern)


def in_state(states: Sequence[DeliveryState], of: Table = deliveries) -> ColumnElement[bool]:
    """Write the states as the partial indexes do: no planner can use those for a parameter."""
    names: list[ColumnElement[str]] = [literal_column(f"'{state}'") for state in states]
    return of.c.state == names[0] if len(names) == 1 else of.c.state.in_(names)


async def fetch(connection: AsyncConnection, statement: Select[*tuple[Any, ...]]) -> Sequence[Row[Any]]:
    """Return all rows of a query."""
    return (await connection.execute(statement)).all()
