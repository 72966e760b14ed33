"""Publish inside a transaction of the caller, on any driver."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import BigInteger, CursorResult, insert, literal, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from ..errors import EventError
from ..event import Event, lasting
from .batch import Batch, distinct
from .contract.events import Publication, Receipt
from .expressions import Later, Now
from .identity import shortened
from .tables import dispatch, events, expiries, scheduled

__all__ = ["append_in"]

Execute = Callable[[Any], Awaitable[CursorResult[Any]]]


async def append_in(
    session: AsyncSession, publications: Sequence[Publication], schema: str | None
) -> Sequence[Receipt]:
    """
    Record the events inside the caller's own transaction, on whatever driver it uses.

    Args:
        schema: PostgreSQL schema of the tables; the caller's engine knows nothing of it.
    """
    connection = await session.connection()
    # With each statement: an option of the connection would redirect the caller's own statements, too.
    options = {} if schema is None else {"schema_translate_map": {None: schema}}
    execute = partial(connection.execute, execution_options=options)
    batch = distinct(publications)
    # Check all events before any is recorded: the caller's transaction may go on after the error.
    known = [await _known(execute, publication.event, batch) for publication in batch.unique]
    receipts = [
        Receipt(publication.event.source, publication.event.id, seq, True)
        if seq is not None
        else await _append_one(execute, connection.dialect.name, publication, batch)
        for publication, seq in zip(batch.unique, known, strict=True)
    ]
    return batch.receipts(receipts)


async def _append_one(execute: Execute, dialect: str, publication: Publication, batch: Batch) -> Receipt:
    event = publication.event
    match dialect:
        case "postgresql":
            put: Any = postgresql.insert(events)
        case "sqlite":
            put = sqlite.insert(events)
        case other:
            raise EventError(f"session: expected one on PostgreSQL or SQLite, got {other}")
    statement = put.values(**_values(event), created_at=Now()).on_conflict_do_nothing(index_elements=["source", "id"])
    seq = (await execute(statement.returning(events.c.seq))).scalar()
    if seq is None:  # another session has recorded it since we looked
        return Receipt(event.source, event.id, await _known(execute, event, batch) or 0, True)
    if (expires_at := event.expires_at) is not None:
        await execute(insert(expiries).values(event_seq=seq, expires_at=expires_at, look_at=expires_at))
    if publication.deliver_at is not None:
        await execute(insert(scheduled).values(event_seq=seq, due_at=publication.deliver_at))
    elif publication.delay is not None:
        delay = literal(publication.delay // timedelta(microseconds=1), BigInteger)
        await execute(insert(scheduled).values(event_seq=seq, due_at=Later(delay)))
    else:
        await execute(insert(dispatch).values(event_seq=seq))
    return Receipt(event.source, event.id, seq, False)


async def _known(execute: Execute, event: Event, batch: Batch) -> int | None:
    """Return the seq of an event of the batch if it is recorded. Raise `EventConflict` when its content differs."""
    values = _values(event)
    query = select(events).where(events.c.source == values["source"], events.c.id == values["id"])
    row = (await execute(query)).one_or_none()
    if row is None:
        return None
    if any(_lasting(getattr(row, name)) != _lasting(value) for name, value in values.items()):
        raise batch.conflict(event, row.seq)
    return int(row.seq)


def _lasting(value: Any) -> Any:
    """Return a value of an event as it is compared: extensions without circumstances."""
    return lasting(value) or None if isinstance(value, dict) else value


def _values(event: Event) -> dict[str, Any]:
    event = shortened(event)
    return {
        "id": event.id,
        "source": event.source,
        "type": event.type,
        "subject": event.subject,
        "time": event.time,
        "datacontenttype": event.datacontenttype,
        "dataschema": event.dataschema,
        "extensions": dict(event.extensions) or None,
        "data": event.data,
    }
