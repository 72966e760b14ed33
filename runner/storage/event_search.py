"""The search of events: pages of those that fit, read stretch by stretch where no index leads to them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from time import monotonic
from typing import NamedTuple

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from .contract.records import EventQuery, EventView
from .event_views import event_views
from .selection import WITHOUT_DATA, Conditions, attribute_conditions, event_conditions, fetch, seq_range
from .stretches import Stretches
from .tables import events
from .transactions import Transactions

__all__ = ["EventPage", "event_pages", "with_data"]

_PAGE = 500  # rows read in one transaction
_PIECE = 4 * 1024 * 1024  # bytes of data read in one


class EventPage(NamedTuple):
    """
    Some of the events that a query finds, with the size of the data of each.

    Attributes:
        reached: the seq up to which that is all; None where there is nothing beyond.
    """

    views: Sequence[EventView]
    sizes: Sequence[int]
    reached: int | None


async def event_pages(transactions: Transactions, query: EventQuery) -> AsyncIterator[EventPage]:
    """
    Yield the events that `query` finds, without data, page by page; each is a transaction of its own.

    A page may be empty: events are looked through for a type, a source, a subject or a state that few have, by
    statements that take a fraction of a second each, whatever is recorded.
    """
    async with transactions.read() as connection:
        conditions, stretches = await _scope(connection, query)
    order = events.c.seq.desc() if query.newest_first else events.c.seq
    size_of = func.coalesce(func.length(events.c.data), 0).label("size")
    left, within = query.limit, Conditions()
    while left > 0 and (stretches is None or stretches.left):
        size = min(left, _PAGE)
        end = 0
        if stretches is not None:
            first, last = stretches.next()
            end, within = first if query.newest_first else last, [events.c.seq.between(first, last)]
        began = monotonic()
        page = select(*WITHOUT_DATA, size_of).where(*conditions, *within).order_by(order).limit(size)
        async with transactions.read() as connection:
            rows = await fetch(connection, page)
            views = await event_views(connection, rows)
        full = len(rows) == size
        end = rows[-1].seq if full else end
        if stretches is not None:
            stretches.looked_through(end, monotonic() - began)
            more = stretches.left
        else:
            within, more = [events.c.seq < end if query.newest_first else events.c.seq > end], full
        # What went on between the two statements is in another state now.
        fitting = [each for each in zip(views, rows, strict=True) if query.state in (None, each[0].state)]
        yield EventPage([view for view, _ in fitting], [row.size for _, row in fitting], end if more else None)
        if not more:
            return
        left -= len(views)


async def with_data(transactions: Transactions, page: EventPage) -> AsyncIterator[EventView]:
    """Yield the events of a page with their data; those that have been pruned meanwhile are left out."""
    for piece in _pieces(page):
        wanted = select(events.c.seq, events.c.data).where(events.c.seq.in_([each.seq for each in piece]))
        async with transactions.read() as connection:
            contents: Mapping[int, bytes | None] = {row.seq: row.data for row in await fetch(connection, wanted)}
        for view in piece:
            if view.seq in contents:
                yield replace(view, event=view.event.replace(data=contents[view.seq]))


async def _scope(connection: AsyncConnection, query: EventQuery) -> tuple[Conditions, Stretches | None]:
    """Return the conditions of a query, and the stretches to look through; None where an index leads to the events."""
    if not _is_search(query):
        return await event_conditions(connection, query), None
    stretches = Stretches(*await seq_range(connection, query), newest_first=query.newest_first)
    return attribute_conditions(connection, query), stretches


def _is_search(query: EventQuery) -> bool:
    """Return whether events have to be looked through: no index has types, subjects, ends, or parts of a source."""
    if query.id is not None or query.gaps or (query.source is not None and "*" not in query.source):
        return False
    return not (query.type is query.source is query.subject is None) or query.state in ("settled", "cancelled")


def _pieces(page: EventPage) -> Iterator[list[EventView]]:
    """Yield the events in pieces that hold no more than `_PIECE` of data."""
    piece: list[EventView] = []
    bytes_ = 0
    for view, size in zip(page.views, page.sizes, strict=True):
        if piece and bytes_ + size > _PIECE:
            yield piece
            piece, bytes_ = [], 0
        piece.append(view)
        bytes_ += size
    if piece:
        yield piece
