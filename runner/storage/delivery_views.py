"""Views of recorded deliveries: single ones by their key, and lists, merged page by page from rows and runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from datetime import datetime
from heapq import merge
from itertools import islice, takewhile
from operator import itemgetter
from time import monotonic
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Row, Select, Table, and_, func, literal, or_, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from ..delivery import DeliveryState
from ..event import NO_EXTENSIONS
from .contract.records import DeliveryQuery, DeliveryView, EventQuery
from .expressions import Among, Holds, Keys
from .identity import restored
from .runs import BLOCK, block_of
from .selection import (
    NEWEST_FIRST,
    SOONEST_FIRST,
    Conditions,
    Key,
    delivery_conditions,
    delivery_key,
    fetch,
    of_type,
    seq_range,
)
from .stretches import Stretches
from .tables import deliveries, delivery_states, events, runs, subscriptions
from .transactions import Transactions

__all__ = ["DeliveryPage", "delivery_pages", "delivery_view", "delivery_views", "list_deliveries"]

_DELETED = "(deleted)"  # in place of a subscription's name
_PAGE = 500  # rows read in one transaction
_RUNS = 32  # read at once
_STRETCH = 1000  # seqs of the first stretch, each of which may have hundreds of deliveries
_UNMATCHED = 5000  # deliveries of runs that are looked at in one transaction, where the type decides which are wanted


class DeliveryPage(NamedTuple):
    """
    Some of the deliveries that a query finds.

    Attributes:
        reached: down to where that is all, a seq and the name of a subscription; None where there is nothing below.
    """

    views: Sequence[DeliveryView]
    reached: tuple[int, str] | None


class _Recorded(NamedTuple):
    """A delivery of a run."""

    key: Key
    settled_at: datetime


def delivery_views(of: Table, *conditions: ColumnElement[bool]) -> Select[*tuple[Any, ...]]:
    """Return the query for the views of deliveries: rows of `deliveries`, or of `delivery_states`."""
    return (
        select(
            of,
            func.coalesce(subscriptions.c.name, _DELETED).label("subscription"),
            events.c.source.label("event_source"),
            events.c.id.label("event_id"),
            events.c.type.label("event_type"),
            events.c.extensions.label("event_extensions"),
        )
        .outerjoin(subscriptions, subscriptions.c.id == of.c.subscription_id)
        .join(events, events.c.seq == of.c.event_seq)
        .where(*conditions)
    )


def delivery_view(row: Row[Any]) -> DeliveryView:
    """Return the view in a row of `delivery_views()`."""
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


async def list_deliveries(transactions: Transactions, query: DeliveryQuery) -> AsyncIterator[DeliveryView]:
    """Yield the deliveries `query` describes; each page is a transaction of its own."""
    async for page in delivery_pages(transactions, query):
        for view in page.views:
            yield view


async def delivery_pages(transactions: Transactions, query: DeliveryQuery) -> AsyncIterator[DeliveryPage]:
    """
    Yield the deliveries `query` describes, page by page; each is a transaction of its own.

    A page may be empty: what no index leads to is looked for by statements that take a fraction of a second each.
    """
    states = (query.state,) if query.state else ()
    if query.seq is not None and not query.soonest_first:
        pages = _pages(transactions, query, delivery_states, delivery_conditions(query, states, delivery_states))
    elif query.soonest_first or query.state not in (None, DeliveryState.DELIVERED):
        pages = _pages(transactions, query, deliveries, delivery_conditions(query, states))
    else:
        pages = _merged_pages(transactions, query, delivery_conditions(query, states))
    left = query.limit
    async for page in pages:
        yield page if left is None else page._replace(views=page.views[:left])
        left = None if left is None else left - len(page.views)
        if left is not None and left <= 0:
            return


def _size(query: DeliveryQuery) -> int:
    return _PAGE if query.limit is None else min(query.limit, _PAGE)


async def _stretches(transactions: Transactions, query: DeliveryQuery) -> Stretches | None:
    """Return the stretches to look through; None where an index leads to the deliveries, or nearly all of them fit."""
    filtered = (query.subscription, query.type, query.since, query.until) != (None,) * 4
    if query.seq is not None or query.soonest_first:
        return None
    if query.state is not DeliveryState.CANCELLED and not (filtered and query.state in (None, DeliveryState.DELIVERED)):
        return None
    async with transactions.read() as connection:
        before = None if query.before is None else query.before[0] + 1
        first, last = await seq_range(connection, EventQuery(before_seq=before))
    return Stretches(first, last, length=_STRETCH)


async def _pages(
    transactions: Transactions, query: DeliveryQuery, of: Table, conditions: Conditions
) -> AsyncIterator[DeliveryPage]:
    """Yield pages of rows of one table or view."""
    size, beyond, within, first = _size(query), Conditions(), Conditions(), 0
    order = SOONEST_FIRST if query.soonest_first else (of.c.event_seq.desc(), of.c.subscription_id.desc())
    stretches = await _stretches(transactions, query)
    while size and (stretches is None or stretches.left):
        if stretches is not None:
            first, last = stretches.next()
            within = [of.c.event_seq.between(first, last)]
        began = monotonic()
        page = delivery_views(of, *conditions, *beyond, *within).order_by(*order).limit(size)
        async with transactions.read() as connection:
            rows = await fetch(connection, page)
        full = len(rows) == size
        more = full
        if stretches is not None:
            # The event of the last row may have more of them.
            stretches.looked_through(rows[-1].event_seq + 1 if full else first, monotonic() - began)
            more = stretches.left
        views = [delivery_view(row) for row in rows]
        reached = (views[-1].seq, views[-1].subscription) if full else (first, "")
        yield DeliveryPage(views, reached if more else None)
        if not more:
            return
        if full:
            beyond = [_beyond(rows[-1], of, soonest_first=query.soonest_first)]


def _beyond(last: Row[Any], of: Table, *, soonest_first: bool) -> ColumnElement[bool]:
    """Return the condition for what comes after the last row of a page."""
    key = (last.event_seq, last.subscription_id)
    place = tuple_(of.c.event_seq, of.c.subscription_id)
    if not soonest_first:
        return place < key
    at_once = and_(of.c.due_at == last.due_at, place > key)
    return or_(of.c.due_at > last.due_at, at_once)


# --- rows and runs, merged ------------------------------------------------------------------------------------------


async def _merged_pages(
    transactions: Transactions, query: DeliveryQuery, conditions: Conditions
) -> AsyncIterator[DeliveryPage]:
    """Yield pages of what rows and runs record, the newest event first."""
    async with transactions.read() as connection:
        known = select(subscriptions.c.id, subscriptions.c.name)
        names = {row.id: row.name for row in await fetch(connection, known)}
    ids = {name: id for id, name in names.items()}
    subscription_id = None if query.subscription is None else ids.get(query.subscription, 0)
    before = None if query.before is None else (query.before[0], ids.get(query.before[1], 0))
    recorded = _run_conditions(query, subscription_id)
    stretches = await _stretches(transactions, query)
    size = _size(query)
    while size:
        began = monotonic()
        async with transactions.read() as connection:
            found, floor = await _recorded(connection, recorded, before, subscription_id, query.type, size)
            floor = _higher(floor, stretches)
            found = [each for each in found if floor is None or each.key >= floor]
            found = await _plain(connection, found, subscription_id)
            beyond = [*_under(before), *_from(floor)]
            page = delivery_views(deliveries, *conditions, *beyond).order_by(*NEWEST_FIRST).limit(size)
            rows = await fetch(connection, page)
            views = await _views_of(connection, found, query.type, names)
        if len(rows) == size:
            floor = (rows[-1].event_seq, rows[-1].subscription_id)
        views |= {(row.event_seq, row.subscription_id): delivery_view(row) for row in rows}
        keys = sorted((key for key in views if floor is None or key >= floor), reverse=True)[:size]
        before = keys[-1] if len(keys) == size else floor
        reached = None if before is None else (before[0], names.get(before[1], ""))
        yield DeliveryPage([views[key] for key in keys], reached)
        if before is None:
            return
        if stretches is not None:
            # Of the event of the last key there may be more, unless the key is the end of a stretch.
            stretches.looked_through(before[0] + bool(before[1]), monotonic() - began)


def _higher(floor: Key | None, stretches: Stretches | None) -> Key | None:
    """Return the first key of the next stretch, or where that is higher, or there is no further stretch, `floor`."""
    if stretches is None or not stretches.left or stretches.is_last:
        return floor
    start = (stretches.next()[0], 0)
    return start if floor is None else max(floor, start)


def _run_conditions(query: DeliveryQuery, subscription_id: int | None) -> Conditions:
    conditions: Conditions = []
    if subscription_id is not None:
        conditions.append(Holds(runs.c.subscriptions, literal(subscription_id)))
    if query.since is not None:
        conditions.append(runs.c.settled_at >= query.since)
    if query.until is not None:
        conditions.append(runs.c.settled_at < query.until)
    return conditions


def _under(before: Key | None) -> Conditions:
    return [] if before is None else [delivery_key < before]


def _from(floor: Key | None) -> Conditions:
    return [] if floor is None else [delivery_key >= floor]


async def _recorded(
    connection: AsyncConnection,
    conditions: Conditions,
    before: Key | None,
    subscription_id: int | None,
    type: str | None,
    size: int,
) -> tuple[list[_Recorded], Key | None]:
    """
    Return the next deliveries that runs record, the newest event first, and down to where that is all of them.

    Returns:
        the deliveries; and the last key for which that holds, None if there are no more.
    """
    rows, start = await _next_runs(connection, conditions, before)
    floor = None if start is None else (start, 0)
    most = size if type is None else max(size, _UNMATCHED)
    found = list(islice(_expanded(rows, before, subscription_id), most))
    return found, found[-1].key if len(found) == most else floor


async def _next_runs(
    connection: AsyncConnection, conditions: Conditions, before: Key | None
) -> tuple[Sequence[Row[Any]], int | None]:
    """
    Return the next runs of whole blocks, and the first seq of the last of these; None if no others are left.

    Runs of one block lie in each other, those of two do not.
    """
    up_to = [] if before is None else [runs.c.first <= before[0]]
    ordered = select(runs).where(*conditions, *up_to).order_by(runs.c.first.desc())
    rows = await fetch(connection, ordered.limit(_RUNS))
    if len(rows) < _RUNS:
        return rows, None
    last = block_of(rows[-1].first)
    whole = list(takewhile(lambda row: block_of(row.first) != last, rows))
    if whole:
        return whole, last + BLOCK
    return await fetch(connection, ordered.where(runs.c.first >= last)), last


def _expanded(rows: Sequence[Row[Any]], before: Key | None, subscription_id: int | None) -> Iterator[_Recorded]:
    """Yield the deliveries of runs, the newest event first, from `before` on."""
    highest = None if before is None else before[0]
    for seq, row in merge(*(_seqs(row, highest) for row in rows), key=itemgetter(0), reverse=True):
        ids = row.subscriptions if subscription_id is None else (subscription_id,)
        for id in sorted(ids, reverse=True):
            if before is None or (seq, id) < before:
                yield _Recorded((seq, id), row.settled_at)


def _seqs(row: Row[Any], highest: int | None) -> Iterator[tuple[int, Row[Any]]]:
    for first, last in reversed(row.seqs):
        for seq in range(last if highest is None else min(last, highest), first - 1, -1):
            yield seq, row


async def _plain(
    connection: AsyncConnection, found: Sequence[_Recorded], subscription_id: int | None
) -> list[_Recorded]:
    """Return those of which no row says something newer."""
    if not found:
        return []
    theirs = select(deliveries.c.event_seq, deliveries.c.subscription_id).where(_among(deliveries.c.event_seq, found))
    if subscription_id is not None:
        theirs = theirs.where(deliveries.c.subscription_id == subscription_id)
    newer = {(row.event_seq, row.subscription_id) for row in await fetch(connection, theirs)}
    return [each for each in found if each.key not in newer]


async def _views_of(
    connection: AsyncConnection, found: Sequence[_Recorded], type: str | None, names: Mapping[int, str]
) -> dict[Key, DeliveryView]:
    """Return the views of what runs record, of the events that are there, and of the type."""
    if not found:
        return {}
    columns = (events.c.seq, events.c.source, events.c.id, events.c.type, events.c.extensions)
    wanted = [_among(events.c.seq, found), *([] if type is None else [of_type(type)])]
    there = {row.seq: row for row in await fetch(connection, select(*columns).where(*wanted))}
    views: dict[Key, DeliveryView] = {}
    for each in found:
        if (event := there.get(each.key[0])) is not None:
            source, id, _ = restored(event.source, event.id, event.extensions or NO_EXTENSIONS)
            views[each.key] = DeliveryView(
                seq=event.seq,
                subscription=names.get(each.key[1], _DELETED),
                event_source=source,
                event_id=id,
                event_type=event.type,
                state=DeliveryState.DELIVERED,
                attempts=1,
                due_at=None,
                last_error=None,
                updated_at=each.settled_at,
            )
    return views


def _among(column: ColumnElement[int], found: Collection[_Recorded]) -> ColumnElement[bool]:
    return Among(column, literal(sorted({each.key[0] for each in found}), Keys()))
