"""Events on SQLite: a batch is one transaction, in one hop to the connection's thread."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from ...event import Event, lasting, weigh
from ..batch import Batch, distinct
from ..contract.claims import UNREADABLE, Claim, Work
from ..contract.events import EventStore, Publication, Receipt, due_at_once
from ..errors import mapped_errors
from ..event_rows import read_extensions, write_extensions
from ..identity import shortened
from ..tokens import new_token
from .joined import record_on
from .rows import EPOCH, MICROSECOND, ago, clock, microseconds, sql, transaction

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from .database import SqliteDatabase

__all__ = ["SqliteEvents"]

_Row = tuple[Any, ...]

_ROWS = (256, 64, 16, 4, 1)  # of one statement: few lengths, so that each is parsed once


class SqliteEvents(EventStore):
    """`EventStore` on SQLite."""

    appends_at_once = 1  # there is one writer; the more go together the better

    def __init__(self, database: SqliteDatabase) -> None:
        self._run = database.run

    @override
    async def append(self, publications: Sequence[Publication]) -> Sequence[Receipt]:
        return await self._run(transaction, _append, publications)

    @override
    async def append_leased(
        self, publications: Sequence[Publication], lease: timedelta
    ) -> tuple[Sequence[Receipt], Claim]:
        return await self._run(transaction, _append_leased, publications, new_token(), lease)

    @override
    async def now(self) -> datetime:
        return EPOCH + await self._run(clock) * MICROSECOND

    @override
    async def append_in(self, session: AsyncSession, publications: Sequence[Publication]) -> Sequence[Receipt]:
        from ..session_publish import append_in

        with mapped_errors():
            return await append_in(session, publications, None)

    @override
    async def recorder(self, publications: Sequence[Publication]) -> Callable[[Any], Sequence[Receipt]]:
        return partial(record_on, record=partial(_append, publications=publications))


def _append(db: sqlite3.Connection, publications: Sequence[Publication]) -> Sequence[Receipt]:
    now = clock(db)
    receipts = _record_events(db, publications, now)
    if due_at_once(publications):
        if new := _new(receipts):
            db.execute(sql("queue_recorded"), new)
        return receipts
    queued, scheduled, expiries = [], [], []
    for publication, receipt in zip(publications, receipts, strict=True):
        if not receipt.duplicate:
            due_at = _due_at(publication, now)
            if due_at <= now:
                queued.append((receipt.seq,))
            else:
                scheduled.append((receipt.seq, due_at))
            if (expires_at := publication.event.expires_at) is not None:
                ends = microseconds(expires_at - EPOCH)
                expiries.append((receipt.seq, ends, ends))
    db.executemany(sql("queue"), queued)
    db.executemany(sql("schedule"), scheduled)
    db.executemany(sql("expire"), expiries)
    return receipts


def _append_leased(
    db: sqlite3.Connection, publications: Sequence[Publication], token: int, lease: timedelta
) -> tuple[Sequence[Receipt], Claim]:
    now = clock(db)
    receipts = _record_events(db, publications, now)
    works = []
    if new := _new(receipts):
        queued = db.execute(sql("queue_leased"), (now + microseconds(lease), token, *new))
        position = (queued.lastrowid or 0) - queued.rowcount  # of the one before: there is no gap within a statement
        moment = EPOCH + now * MICROSECOND
        for publication, receipt in zip(publications, receipts, strict=True):
            if not receipt.duplicate:
                position += 1
                works.append(Work(position, 1, receipt.seq, publication.event.recorded_at(moment)))
    [(version, _, _)] = db.execute(sql("outlook")).fetchall()
    started = ago(now, now)
    weight = weigh([work.event for work in works])
    return receipts, Claim(token, works, version, weight=weight, recorded=(started, started))


def _new(receipts: Sequence[Receipt]) -> tuple[int, int] | None:
    """Return the first and the last seq of the events that are new, between which there are no others; None without."""
    seqs = [receipt.seq for receipt in receipts if not receipt.duplicate]
    return (seqs[0], seqs[-1]) if seqs else None


def _record_events(db: sqlite3.Connection, publications: Sequence[Publication], now: int) -> list[Receipt]:
    """
    Record the events, many with a statement.

    With each step of a statement the driver lets go of the interpreter's lock, and waits for it while the event loop is
    busy; and a row costs less than a statement.
    """
    batch = Batch(publications, publications)
    events = [publication.event for publication in publications]
    receipts: list[Receipt] = []
    for rows in _ROWS:
        while len(events) - len(receipts) >= rows:
            receipts += _record_together(db, events[len(receipts) : len(receipts) + rows], now, batch)
    return receipts


def _record_together(db: sqlite3.Connection, events: Sequence[Event], now: int, batch: Batch) -> list[Receipt]:
    if len(events) > 1:
        values = [value for event in events for value in (*_row(event), now)]
        try:
            first = (db.execute(_insert(len(events)), values).lastrowid or 0) - len(events) + 1
        except sqlite3.IntegrityError:
            pass  # one of them is known; nothing was inserted
        else:
            return [Receipt(event.source, event.id, seq, False) for seq, event in enumerate(events, first)]
    return [_record_event(db, event, now, batch) for event in events]


@cache
def _insert(rows: int) -> str:
    """Return the statement that records so many new events."""
    head, row = sql("insert_events").rstrip().rsplit("VALUES", 1)
    return f"{head}VALUES{','.join([row] * rows)}"


def _record_event(db: sqlite3.Connection, event: Event, now: int, batch: Batch) -> Receipt:
    inserted = db.execute(sql("insert_event"), (*_row(event), now))
    if inserted.rowcount == 0:
        return Receipt(event.source, event.id, _known_seq(db, event, batch), True)
    return Receipt(event.source, event.id, inserted.lastrowid or 0, False)  # an INSERT that took a row has its rowid


def _known_seq(db: sqlite3.Connection, event: Event, batch: Batch) -> int:
    source, id, *content = _row(event)
    content[-1] = write_extensions(lasting(shortened(event).extensions))
    [(seq, *known, extensions)] = db.execute(sql("known_event"), (source, id)).fetchall()
    try:
        stored = None if extensions is None else write_extensions(lasting(read_extensions(extensions)))
        same = [*known, stored] == content
    except UNREADABLE:
        same = False
    if not same:
        distinct(batch.publications)  # raises where the other content is in the batch itself
        raise batch.conflict(event, seq)
    return int(seq)


def _due_at(publication: Publication, now: int) -> int:
    at = publication.deliver_at
    return now + microseconds(publication.delay or timedelta(0)) if at is None else microseconds(at - EPOCH)


def _row(event: Event) -> _Row:
    """Return the event as it is stored."""
    event = shortened(event)
    return (
        event.source,
        event.id,
        event.type,
        event.subject,
        None if event.time is None else microseconds(event.time - EPOCH),
        event.datacontenttype,
        event.dataschema,
        event.data,
        write_extensions(event.extensions),
    )
