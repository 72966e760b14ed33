"""Events on SQLite: a batch is one transaction, in one hop to the connection's thread."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from ...errors import EventConflict
from ...event import Event, lasting, weigh
from ..contract.claims import UNREADABLE, Claim, Work
from ..contract.events import EventStore, Publication, Receipt
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
    receipts, queued, scheduled, expiries = [], [], [], []
    for publication in publications:
        receipt = _record_event(db, publication.event, now)
        receipts.append(receipt)
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
    receipts, works = [], []
    for publication in publications:
        receipt = _record_event(db, publication.event, now)
        receipts.append(receipt)
        if not receipt.duplicate:
            queued = db.execute(sql("queue_leased"), (receipt.seq, now + microseconds(lease), token))
            event = publication.event.recorded_at(EPOCH + now * MICROSECOND)
            works.append(Work(queued.lastrowid or 0, 1, receipt.seq, event))
    [(version, _, _)] = db.execute(sql("outlook")).fetchall()
    started = ago(now, now)
    weight = weigh([work.event for work in works])
    return receipts, Claim(token, works, version, weight=weight, recorded=(started, started))


def _record_event(db: sqlite3.Connection, event: Event, now: int) -> Receipt:
    source, id, *content = row = _row(event)
    inserted = db.execute(sql("insert_event"), (*row, now))
    if inserted.rowcount == 0:
        content[-1] = write_extensions(lasting(shortened(event).extensions))
        return Receipt(event.source, event.id, _known_seq(db, source, id, content), True)
    return Receipt(event.source, event.id, inserted.lastrowid or 0, False)  # an INSERT that took a row has its rowid


def _known_seq(db: sqlite3.Connection, source: str, id: str, content: Sequence[Any]) -> int:
    [(seq, *known, extensions)] = db.execute(sql("known_event"), (source, id)).fetchall()
    try:
        stored = None if extensions is None else write_extensions(lasting(read_extensions(extensions)))
        same = [*known, stored] == content
    except UNREADABLE:
        same = False
    if not same:
        raise EventConflict(
            f"event {id!r} of source {source!r} is already recorded (seq {seq}) with other content; "
            "give a changed event a new id"
        )
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
