"""The store on PostgreSQL 14 and later."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import accumulate, chain, groupby
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy.ext.asyncio import AsyncEngine

from ..delivery import DeliveryState
from ..errors import EventConflict, StorageError, StorageUnavailable
from ..event import Event
from .base import (
    UNREADABLE,
    AttemptRecord,
    Claim,
    ClaimedDelivery,
    Death,
    DeliveryClaim,
    DeliveryRecord,
    Demand,
    Publication,
    Receipt,
    Settled,
    Turn,
    Unanswered,
    UnreadableDelivery,
    UnreadableWork,
    Work,
)
from .engine import mapped_errors
from .event_rows import read_event, write_extensions
from .mark import LowWaterMark
from .publishing import Batch, append_in, distinct
from .registry import SqlRegistry
from .regulation import LINES, Seen
from .statements import statement, statement_for
from .turns import line_up
from .wires import Wires

if TYPE_CHECKING:
    import asyncpg
    from sqlalchemy.ext.asyncio import AsyncSession

__all__ = ["PostgresStore"]

_FEW = 16  # events whose values go one by one; of more, each column goes as an array
_WORKING = 4  # connections: two claims and two settlements are under way at once
_MILLENNIUM = datetime(2000, 1, 1, tzinfo=UTC)

# A cached plan made while a table of work was empty would scan all of it when it is full. And it is to be cached at
# once: no value of a parameter changes it, and a new connection would plan each statement five times before.
_PLAN_BY_INDEX = "SET enable_seqscan = off; SET enable_sort = off; SET plan_cache_mode = force_generic_plan"


class PostgresStore(SqlRegistry):
    """
    Events, work and subscriptions in PostgreSQL (see `base.py` for what each method promises).

    The statements that run all the time live in `sql/postgres/` and go straight to held driver
    connections; each is one round trip and one transaction.
    """

    appends_at_once = 2  # one of them is written while the callers of the other are answered, and call again

    def __init__(
        self, engine: AsyncEngine, *, schema: str | None = None, wires: int = 4, pgbouncer: bool = False
    ) -> None:
        super().__init__(engine)
        self._schema = schema
        self._wires = Wires(engine, wires, "" if pgbouncer else _PLAN_BY_INDEX)
        self._mark = LowWaterMark()

    async def open(self) -> None:
        """Open what a worker with a backlog uses at once, so that its first claims wait for no connection."""
        with contextlib.suppress(StorageUnavailable), mapped_errors():
            async with self._engine.connect():  # should the server have few left, one of them stays with the engine
                await self._wires.open(_WORKING)

    async def close(self) -> None:
        """Let go of the held connections; the engine is the caller's."""
        await self._wires.close()

    async def append(self, publications: Sequence[Publication]) -> Sequence[Receipt]:
        """Record the events, all or none."""
        if not publications:
            return []
        batch = distinct(publications)
        if all(each.delay is None and each.deliver_at is None for each in batch.unique):
            added = await self._append_new(batch, None, None)
            if added is not None:
                return batch.receipts(added.receipts(batch))
        return await self._append_each(batch)

    async def append_leased(
        self, publications: Sequence[Publication], lease: timedelta
    ) -> tuple[Sequence[Receipt], Claim | None]:
        """Record the events, all or none, and lease them to the caller if all are new."""
        batch = distinct(publications)
        token = _token()
        added = await self._append_new(batch, lease, token)
        if added is None:
            return await self._append_each(batch), None
        assert added.created_at is not None
        works = [
            Work(position, 1, seq, publication.event.recorded_at(added.created_at))
            for position, seq, publication in zip(added.positions, added.seqs, batch.unique, strict=True)
        ]
        return batch.receipts(added.receipts(batch)), Claim(token, works, added.version)

    async def _append_new(self, batch: Batch, lease: timedelta | None, token: int | None) -> _Added | None:
        """Record what is due at once; None, and nothing recorded, where some of it is known or just being recorded."""
        try:
            events = [each.event for each in batch.unique]
            if len(events) <= _FEW:
                return await self._append_few(events, lease, token)
            [(seqs, positions, version, created_at)] = await self._wires.fetch(
                self._sql("append"), *_columns(events), lease, token
            )
            return _Added(sorted(seqs), sorted(positions or ()), version, created_at)
        except StorageError as error:
            import asyncpg

            # A deadlock is with somebody who records some of the same, in another order, and has gone on.
            if isinstance(error.__cause__, asyncpg.UniqueViolationError | asyncpg.DeadlockDetectedError):
                return None
            raise

    async def _append_few(self, events: Sequence[Event], lease: timedelta | None, token: int | None) -> _Added:
        values = chain.from_iterable(map(_values, events))
        if token is None:
            rows = await self._wires.fetch(statement_for(len(events), "append_few", self._schema), *values)
            return _Added(sorted([row[0] for row in rows]), (), 0, None)
        rows = await self._wires.fetch(
            statement_for(len(events), "append_few_leased", self._schema), *values, lease, token
        )
        rows.sort(key=itemgetter(0))
        return _Added([row[0] for row in rows], [row[1] for row in rows], rows[0][2], rows[0][3])

    async def _append_each(self, batch: Batch) -> Sequence[Receipt]:
        """Record what may be known already, and what may be due later."""
        import asyncpg

        events = [each.event for each in batch.unique]
        due = [each.deliver_at for each in batch.unique], [each.delay for each in batch.unique]
        try:
            rows = await self._wires.fetch(self._sql("append_each"), *_columns(events), len(events), *due)
        except StorageError as error:
            if not isinstance(error.__cause__, asyncpg.DivisionByZeroError):
                raise
            rows = []
        if len(rows) < len(events):
            raise await self._conflict(events)
        found = {(row["source"], row["id"]): (row["seq"], not row["fresh"]) for row in rows}
        return batch.receipts([Receipt(each.source, each.id, *found[each.source, each.id]) for each in events])

    async def append_in(self, session: AsyncSession, publications: Sequence[Publication]) -> Sequence[Receipt]:
        """Record the events inside the caller's own transaction."""
        with mapped_errors():
            return await append_in(session, publications, self._schema)

    async def _conflict(self, events: Sequence[Event]) -> EventConflict:
        """Return the error that names the first event whose recorded content differs."""
        for event in events:
            id, source, *content = _values(event)
            rows = await self._wires.fetch(self._sql("content"), source, id, *content)
            if rows and not rows[0]["same"]:
                return EventConflict(
                    f"event {event.id!r} of source {event.source!r} is already recorded (seq {rows[0]['seq']}) "
                    "with other content; give a changed event a new id"
                )
        return EventConflict("an event with the same source and id, but other content, is being recorded; try again")

    async def claim(self, limit: int, lease: timedelta) -> Claim:
        """Lease at most `limit` events that are due, oldest first."""
        token = _token()
        now = time.monotonic()
        after = self._mark.start(now)
        try:
            rows = await self._wires.fetch(self._sql("claim", limit), token, after, lease)
            works = [Work(row[0], row[1], row[2], read_event(row[3:12], _moment)) for row in rows if row[0] is not None]
        except UNREADABLE:  # all of them are leased
            return await self._one_by_one(token, lease)
        [outlook] = [row for row in rows if row[0] is None]
        works.sort(key=attrgetter("position"))
        self._mark.saw(works[-1].position if works else None, now)
        again_in: timedelta | None = outlook["expires_in"]
        sweep_in = self._mark.sweep_in(now) if len(works) < limit else None
        if sweep_in is not None:
            again_in = min(again_in or timedelta.max, timedelta(seconds=sweep_in))
        return Claim(token, works, outlook["version"], outlook["scheduled_in"], again_in, outlook["waiting"])

    async def _one_by_one(self, token: int, lease: timedelta) -> Claim:
        """Read what was leased under `token` event by event, because one of them cannot be read."""
        outlook = await self.claim(0, lease)
        async with self._wires.take() as connection:
            leased = await connection.fetch(self._sql("leased_works"), token)
        works: list[Work] = []
        unreadable: list[UnreadableWork] = []
        for position, attempt, seq in leased:
            event = await self._read(seq)
            if isinstance(event, Event):
                works.append(Work(position, attempt, seq, event))
            else:
                unreadable.append(UnreadableWork(position, attempt, seq, *event))
        return replace(outlook, token=token, works=works, unreadable=unreadable, again_in=timedelta(0))

    async def _read(self, seq: int) -> Event | tuple[str | None, str]:
        """Return an event; its type, and the reason, if it cannot be read."""
        try:
            async with self._wires.take() as connection:
                return read_event(await connection.fetchrow(self._sql("event"), seq), _moment)
        except UNREADABLE as error:
            async with self._wires.take() as connection:
                return await connection.fetchval(self._sql("type"), seq), f"{type(error).__name__}: {error}"

    async def settle(self, settled: Settled) -> int:
        """Remove the rows of work still held under the token and record their deliveries, atomically."""
        try:
            return await self._settle(settled)
        except StorageError as error:
            import asyncpg

            if not isinstance(error.__cause__, asyncpg.UniqueViolationError):
                raise
            return await self._settle(_row_by_row(settled))  # somebody acknowledged one before it was recorded

    async def _settle(self, settled: Settled) -> int:
        name, arguments = _settling(settled)
        if not settled.records:
            [(seqs,)] = await self._wires.fetch(self._sql(name), *arguments)
            return len(seqs or ())
        async with self._wires.take() as connection, connection.transaction():
            held = set(await connection.fetchval(self._sql(name), *arguments) or ())
            records = [record for record in settled.records if record.seq in held]
            tokens = [None if record.deferred else record.token for record in records]
            columns = _record_columns(records, tokens)
            attempts = [each for each in settled.attempts if each.seq in held]
            turns = [each for each in settled.turns if each.seq in held]
            if await connection.execute(self._sql("record"), *columns) != f"INSERT 0 {len(records)}":
                rows = await connection.fetch(self._sql("recorded"), *columns[:2])
                ours = {(row[0], row[1]) for row in rows}  # without what somebody acknowledged before
                records = [each for each in records if (each.seq, each.subscription_id) in ours]
                attempts = [each for each in attempts if (each.seq, each.subscription_id) in ours]
                turns = [each for each in turns if (each.seq, each.subscription_id) in ours]
            await self._record_dead_letters(connection, records)
            await self._record_attempts(connection, attempts)
            if turns:
                await connection.execute(self._sql("record_turns"), *_turn_columns(turns))
        return len(held)

    async def promote(self, limit: int) -> int:
        """Move at most `limit` scheduled events that have fallen due into the queue."""
        async with self._wires.take() as connection:
            return int(await connection.fetchval(self._sql("promote", limit)))

    async def claim_deliveries(self, quotas: Mapping[int, int], lease: timedelta) -> DeliveryClaim:
        """Lease deliveries that are due, for each subscription at most its quota."""
        token = _token()
        try:
            async with self._wires.take() as connection:
                rows = await connection.fetch(
                    self._sql("claim_deliveries"),
                    token,
                    lease,
                    list(quotas),
                    [max(0, each) for each in quotas.values()],
                )
            claimed = _claimed(rows)
        except UNREADABLE:
            return await self._each_delivery(token, list(quotas))
        claimed.sort(key=lambda delivery: delivery.seq)
        return DeliveryClaim(token, claimed, rows[0]["next_due"])

    async def _each_delivery(self, token: int, ids: Sequence[int]) -> DeliveryClaim:
        """
        Read the deliveries leased under `token` one by one, because an event of theirs cannot be read.

        What the claim alone knew of the others is lost with it: they count as new.
        """
        async with self._wires.take() as connection:
            leased = await connection.fetch(self._sql("leased_deliveries"), token, ids)
        claimed: list[ClaimedDelivery] = []
        unreadable: list[UnreadableDelivery] = []
        for seq, id, attempt in leased:
            event = await self._read(seq)
            if isinstance(event, Event):
                claimed.append(ClaimedDelivery(seq, id, attempt, False, event))
            else:
                unreadable.append(UnreadableDelivery(seq, id, attempt, event[1]))
        return DeliveryClaim(token, claimed, timedelta(0), unreadable)

    async def claim_regulated(self, demand: Demand, lease: timedelta) -> DeliveryClaim:
        """Lease deliveries of one subscription that are due, and whose turn it is."""
        token, rate = _token(), demand.rate
        arguments = (
            *(token, lease, demand.subscription_id, max(0, demand.quota), demand.ordered, demand.after),
            *((None, None) if rate is None else (rate.interval, rate.tolerance)),
        )
        try:
            async with self._wires.take() as connection:
                rows = await connection.fetch(self._sql("claim_regulated", LINES), *arguments)
                if rate is not None and rows[0]["ahead"] is None:  # the rate has never been used
                    await connection.execute(self._sql("begin_pace"), demand.subscription_id)
                    rows = await connection.fetch(self._sql("claim_regulated", LINES), *arguments)
            claimed = _claimed(rows)
        except UNREADABLE:
            return await self._each_delivery(token, [demand.subscription_id])
        first = rows[0]
        seen = Seen(first["room"], first["after"], first["held_up"], first["ahead"], first["next_due"])
        return seen.claim(demand, token, claimed)

    async def line_up(self, subscription_id: int, order_by: str) -> int:
        """Give a turn to each unfinished delivery that has none, before all others; end the turns of finished ones."""
        return await line_up(self._engine, subscription_id, order_by)

    async def settle_deliveries(
        self,
        records: Sequence[DeliveryRecord],
        attempts: Sequence[AttemptRecord] = (),
        ordered: Set[int] = frozenset(),
    ) -> Sequence[tuple[int, int]]:
        """Write each record whose delivery is still leased under its token, and the attempts of those."""
        columns: tuple[Sequence[Any], ...] = _record_columns(records, [record.token for record in records])
        if ordered:
            columns = (*columns, list(ordered))
        settle = self._sql("settle_ordered" if ordered else "settle_deliveries")
        async with self._wires.take() as connection:
            if not attempts and all(record.dead_letter is None for record in records):
                return [(row[0], row[1]) for row in await connection.fetch(settle, *columns)]
            async with connection.transaction():
                rows = await connection.fetch(settle, *columns)
                held = {(row[0], row[1]) for row in rows}
                await self._record_dead_letters(connection, [r for r in records if (r.seq, r.subscription_id) in held])
                await self._record_attempts(connection, [a for a in attempts if (a.seq, a.subscription_id) in held])
            return list(held)

    async def renew(self, leases: Sequence[tuple[int, int, int]], lease: timedelta) -> Sequence[tuple[int, int]]:
        """Extend the leases of running deliveries, given as (seq, subscription id, token)."""
        seqs, ids, tokens = ([each[index] for each in leases] for index in range(3))
        async with self._wires.take() as connection:
            rows = await connection.fetch(self._sql("renew"), seqs, ids, tokens, lease)
        return [(row[0], row[1]) for row in rows]

    async def deaths(self, keys: Sequence[tuple[int, int]]) -> Mapping[tuple[int, int], Death]:
        """Return how these deliveries died; those that are dead."""
        async with self._wires.take() as connection:
            rows = await connection.fetch(self._sql("deaths"), [key[0] for key in keys], [key[1] for key in keys])
        return {(row[0], row[1]): Death(row[2], row[3], row[4]) for row in rows}

    async def _record_dead_letters(self, connection: asyncpg.Connection, records: Sequence[DeliveryRecord]) -> None:
        letters = [(record.seq, record.dead_letter) for record in records if record.dead_letter is not None]
        if letters:
            await connection.execute(
                self._sql("record_dead_letters"), [seq for seq, _ in letters], [id for _, id in letters]
            )

    async def _record_attempts(self, connection: asyncpg.Connection, attempts: Sequence[AttemptRecord]) -> None:
        if attempts:
            await connection.execute(
                self._sql("record_attempts"),
                [each.seq for each in attempts],
                [each.subscription_id for each in attempts],
                [each.number for each in attempts],
                [each.duration // timedelta(microseconds=1) for each in attempts],
                [each.status for each in attempts],
                [_text(each.error) for each in attempts],
                [_text(each.excerpt) for each in attempts],
            )

    def _sql(self, name: str, limit: int = 0) -> str:
        return statement(name, self._schema, limit)


class _Added(NamedTuple):
    """What recording new events brought, in their order; all but the seqs under a token only."""

    seqs: Sequence[int]
    positions: Sequence[int]
    version: int
    created_at: datetime | None

    def receipts(self, batch: Batch) -> list[Receipt]:
        """Return the receipts of the unique events of `batch`."""
        return [
            Receipt(each.event.source, each.event.id, seq, False)
            for each, seq in zip(batch.unique, self.seqs, strict=True)
        ]


def _token() -> int:
    """Return a new lease token: 63 random bits, compared only with the tokens of one row."""
    return secrets.randbits(63)


def _values(event: Event) -> tuple[Any, ...]:
    """Return the nine values of an event in the order in which statements take them."""
    return (
        event.id,
        event.source,
        event.type,
        event.subject,
        event.time,
        event.datacontenttype,
        event.dataschema,
        write_extensions(event.extensions),
        event.data,
    )


def _columns(events: Sequence[Event]) -> list[Any]:
    """Return the nine columns of events; None for one that is empty, which `unnest` pads with nulls."""
    return [None if column.count(None) == len(column) else column for column in zip(*map(_values, events), strict=True)]


def _record_columns(records: Sequence[DeliveryRecord], tokens: Sequence[int | None]) -> tuple[Sequence[Any], ...]:
    return (
        [record.seq for record in records],
        [record.subscription_id for record in records],
        [record.state.value for record in records],
        [record.attempts for record in records],
        [record.due_in for record in records],
        tokens,
        [_text(record.error) for record in records],
    )


def _row_by_row(settled: Settled) -> Settled:
    """Return the same with a record for each delivery."""
    delivered = [
        DeliveryRecord(work.seq, id, DeliveryState.DELIVERED, work.attempt, settled.token)
        for work, ids in zip(settled.works, settled.delivered, strict=True)
        for id in ids
    ]
    return replace(settled, delivered=[()] * len(settled.works), records=[*settled.records, *delivered])


def _turn_columns(turns: Sequence[Turn]) -> tuple[Sequence[Any], ...]:
    return (
        [turn.subscription_id for turn in turns],
        [turn.key for turn in turns],
        [turn.position for turn in turns],
        [turn.seq for turn in turns],
    )


def _settling(settled: Settled) -> tuple[str, tuple[Any, ...]]:
    """Return the statement that settles a claim, and its arguments."""
    firsts, lasts, froms, tos, ids = _runs(settled.works, settled.delivered)
    if len(firsts) == 1:
        return "settle_run", (settled.token, firsts[0], lasts[0], ids)
    return "settle", (settled.token, firsts, lasts, froms, tos, ids)


def _runs(works: Sequence[Work | UnreadableWork], delivered: Sequence[tuple[int, ...]]) -> tuple[list[int], ...]:
    """
    Return works that stand next to each other and went to the same subscriptions as one run.

    Returns:
        of each run: its first and last position, and where its subscription ids begin and end (from 1);
        and all these ids, one after the other, each distinct tuple of them once.
    """
    firsts: list[int] = []
    lasts: list[int] = []
    groups: list[tuple[int, ...]] = []
    start = 0
    for _, same in groupby(delivered, id):
        end = start + len(list(same))
        for first, last in _adjacent([work.position for work in works[start:end]]):
            firsts.append(first)
            lasts.append(last)
            groups.append(delivered[start])
        start = end
    distinct_groups = {id(group): group for group in groups}
    ends = dict(zip(distinct_groups, accumulate(map(len, distinct_groups.values())), strict=True))
    froms = [ends[id(group)] - len(group) + 1 for group in groups]
    return firsts, lasts, froms, [ends[id(group)] for group in groups], list(chain(*distinct_groups.values()))


def _adjacent(positions: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and the last of all that follow each other without a gap."""
    if max(positions) - min(positions) == len(positions) - 1:
        yield min(positions), max(positions)
        return
    for _, run in groupby(enumerate(sorted(positions)), lambda each: each[1] - each[0]):
        numbers = [position for _, position in run]
        yield numbers[0], numbers[-1]


def _claimed(rows: Sequence[asyncpg.Record]) -> list[ClaimedDelivery]:
    return [
        ClaimedDelivery(
            row[0], row[1], row[2], row[3], read_event(row[5:14], _moment), row["age"] or timedelta(0), _unanswered(row)
        )
        for row in rows
        if row[0] is not None
    ]


def _unanswered(row: asyncpg.Record) -> Unanswered | None:
    return None if row["unanswered"] is None else Unanswered(row["unanswered"], row["refusal"])


@lru_cache(maxsize=4096)
def _moment(sent: bytes) -> datetime:
    """
    Return the time in the eight bytes of `timestamptz_send()`: microseconds since 2000.

    asyncpg takes longer for a timestamp than for the rest of a row, and events of one commit share it.
    """
    return _MILLENNIUM + timedelta(microseconds=int.from_bytes(sent, "big", signed=True))


def _text(text: str | None) -> str | None:
    """Return what PostgreSQL can hold as text: it has no NUL and no lone surrogates."""
    return text if text is None else text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
