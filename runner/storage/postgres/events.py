"""Events on PostgreSQL: each statement is one round trip and one transaction."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from typing_extensions import override

from ...errors import EventConflict, EventError, StorageError
from ...event import Event, weigh
from ..batch import Batch, distinct
from ..contract.claims import Claim, Work
from ..contract.events import EventStore, Publication, Receipt, due_at_once
from ..encoding import check_storable, holds_everything
from ..errors import mapped_errors
from ..identity import shortened
from ..tokens import new_token
from .joined import record_on
from .rows import event_columns, event_values, joined_columns
from .statements import statement_for

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from .database import PostgresDatabase

__all__ = ["PostgresEvents"]

_FEW = 16  # events whose values go one by one; of more, each column goes as one


class PostgresEvents(EventStore):
    """`EventStore` on PostgreSQL."""

    appends_at_once = 2  # one of them is written while the callers of the other are answered, and call again

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database
        self._home = database.home
        self._connections = database.connections
        self._sql = database.sql

    @override
    async def append(self, publications: Sequence[Publication]) -> Sequence[Receipt]:
        if not publications:
            return []
        await self._check(publications)
        batch = distinct(publications)
        if due_at_once(batch.unique):
            added = await self._append_new([each.event for each in batch.unique])
            if added is not None:
                return batch.receipts(added.receipts)
        return await self._append_each(batch)

    @override
    async def append_leased(
        self, publications: Sequence[Publication], lease: timedelta
    ) -> tuple[Sequence[Receipt], Claim | None]:
        await self._check(publications)
        batch = distinct(publications)
        events = [each.event for each in batch.unique]
        token, started = new_token(), time.monotonic()
        added = await self._append_new(events, lease, token)
        if added is None:
            return await self._append_each(batch), None
        assert added.created_at is not None
        works = [
            Work(position, 1, receipt.seq, event.recorded_at(added.created_at))
            for position, receipt, event in zip(added.positions, added.receipts, events, strict=True)
        ]
        return batch.receipts(added.receipts), Claim(
            token, works, added.version, weight=weigh(events), recorded=(started, started)
        )

    @override
    async def now(self) -> datetime:
        return await self._database.now()

    @override
    async def append_in(self, session: AsyncSession, publications: Sequence[Publication]) -> Sequence[Receipt]:
        from ..session_publish import append_in

        await self._check(publications)
        with mapped_errors():
            return await append_in(session, publications, self._home.schema)

    @override
    async def recorder(self, publications: Sequence[Publication]) -> Callable[[Any], Sequence[Receipt]]:
        await self._check(publications)
        return partial(record_on, publications=publications, schema=self._home.schema)

    async def _append_new(self, events: Sequence[Event], *leasing: timedelta | int) -> _Added | None:
        """
        Record what is due at once; None, and nothing recorded, where some of it is known or just being recorded.

        Args:
            leasing: lease and token, if it is to be leased.
        """
        try:
            append = self._append_few if len(events) <= _FEW else self._append_many
            return await append(events, *leasing)
        except StorageError as error:
            import asyncpg

            # The other side of a deadlock records some of the same events in another order, and has gone on.
            if isinstance(error.__cause__, asyncpg.UniqueViolationError | asyncpg.DeadlockDetectedError):
                return None
            raise

    async def _append_few(self, events: Sequence[Event], *leasing: timedelta | int) -> _Added:
        """Have each value go as a parameter of its own."""
        values = [value for event in events for value in event_values(event)]
        sql = statement_for(len(events), "append_few_leased" if leasing else "append_few", self._home.schema)
        rows = await self._connections.fetch(sql, *values, *leasing)
        rows.sort(key=itemgetter(0))
        receipts = _receipts(events, [row[0] for row in rows])
        return _Added(receipts, [row[1] for row in rows], rows[0][2], rows[0][3]) if leasing else _Added(receipts)

    async def _append_many(self, events: Sequence[Event], *leasing: timedelta | int) -> _Added:
        """Have each column go as one parameter."""
        sql = self._sql("append_leased" if leasing else "append")
        [(seqs, *leased)] = await self._connections.fetch(sql, *joined_columns(events), *leasing)
        receipts = _receipts(events, sorted(seqs))
        return _Added(receipts, sorted(leased[0]), leased[1], leased[2]) if leasing else _Added(receipts)

    async def _append_each(self, batch: Batch) -> Sequence[Receipt]:
        """Record what may be known already, and what may be due later."""
        import asyncpg

        events = [each.event for each in batch.unique]
        due = [each.deliver_at for each in batch.unique], [each.delay for each in batch.unique]
        times = *due, [each.expires_at for each in events]
        try:
            rows = await self._connections.fetch(self._sql("append_each"), *event_columns(events), len(events), *times)
        except StorageError as error:
            if not isinstance(error.__cause__, asyncpg.DivisionByZeroError):
                raise
            rows = []
        if len(rows) < len(events):
            raise await self._conflict(batch)
        found = {(row["source"], row["id"]): (row["seq"], not row["fresh"]) for row in rows}
        keys = [(each.source, each.id) for each in map(shortened, events)]
        return batch.receipts(
            [Receipt(each.source, each.id, *found[key]) for each, key in zip(events, keys, strict=True)]
        )

    async def _conflict(self, batch: Batch) -> EventConflict:
        """Return the error that names the first event whose recorded content differs."""
        for publication in batch.unique:
            id, source, *content = event_values(publication.event)
            rows = await self._connections.fetch(self._sql("content"), source, id, *content)
            if rows and not rows[0]["same"]:
                return batch.conflict(publication.event, rows[0]["seq"])
        return EventConflict("an event with the same source and id, but other content, is being recorded; try again")

    async def _check(self, publications: Sequence[Publication]) -> None:
        """Refuse events that the database cannot hold."""
        if not self._home.encoding:
            await self._database.find()
        if not holds_everything(self._home.encoding):
            for index, publication in enumerate(publications):
                try:
                    check_storable(publication.event, self._home.encoding)
                except EventError as error:
                    if len(publications) == 1:
                        raise
                    raise error.in_batch(index, len(publications)) from error


class _Added(NamedTuple):
    """The result of recording new events, in their order; all but the receipts under a token only."""

    receipts: Sequence[Receipt]
    positions: Sequence[int] = ()
    version: int = 0
    created_at: datetime | None = None


def _receipts(events: Sequence[Event], seqs: Sequence[int]) -> list[Receipt]:
    return [Receipt(event.source, event.id, seq, False) for event, seq in zip(events, seqs, strict=True)]
