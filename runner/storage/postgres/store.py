"""The store on PostgreSQL 14 and later."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence, Set
from datetime import datetime, timedelta
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import replace
from sqlalchemy.ext.asyncio import AsyncEngine

from ...errors import EventConflict, StorageError, StorageUnavailable
from ...event import Event, weigh
from ..batch import Batch, distinct
from ..contract.claims import (
    CLAIM,
    UNREADABLE,
    Claim,
    ClaimedDelivery,
    DeliveryClaim,
    ExpiredClaim,
    ExpiredDelivery,
    RegulatedRequest,
    UnreadableDelivery,
    UnreadableWork,
    Work,
)
from ..contract.events import Publication, Receipt, due_at_once
from ..contract.settlements import AttemptRecord, Death, DeliveryRecord, Settled
from ..encoding import check_storable, holds_everything
from ..errors import mapped_errors
from ..home import home_of
from ..identity import shortened
from ..lines import line_up
from ..registry import SqlRegistry
from ..regulation import LINES, RegulatedScan
from ..session_publish import append_in
from ..tokens import new_token
from .connections import DriverConnections
from .low_water_mark import LowWaterMark
from .rows import (
    attempt_columns,
    claimed_deliveries,
    claimed_event,
    claimed_works,
    event_columns,
    event_values,
    joined_columns,
    record_columns,
    row_by_row,
    settling,
    turn_columns,
)
from .statements import statement, statement_for

if TYPE_CHECKING:
    import asyncpg
    from sqlalchemy.ext.asyncio import AsyncSession

__all__ = ["PostgresStore"]

_FEW = 16  # events whose values go one by one; of more, each column goes as one
_WORKING = 4  # connections: two claims and two settlements are under way at once

# A cached plan made while a table of work was empty would scan all of it when it is full. And it is to be cached at
# once: no value of a parameter changes it, and a new connection would plan each statement five times before.
_PLAN_BY_INDEX = "SET enable_seqscan = off; SET enable_sort = off; SET plan_cache_mode = force_generic_plan"


class PostgresStore(SqlRegistry):
    """
    Events, work and subscriptions in PostgreSQL (see `contract/` for what each method promises).

    The statements that run all the time live in `sql/` and go straight to held driver
    connections; each is one round trip and one transaction.
    """

    appends_at_once = 2  # one of them is written while the callers of the other are answered, and call again

    def __init__(self, engine: AsyncEngine, *, connections: int = 4, pgbouncer: bool = False) -> None:
        super().__init__(engine)
        self._home = home_of(engine)
        self._connections = DriverConnections(
            engine, connections, "" if pgbouncer else _PLAN_BY_INDEX, pgbouncer=pgbouncer
        )
        self._low_water_mark = LowWaterMark()

    async def open(self) -> None:
        """Open what a worker with a backlog uses at once, so that its first claims wait for no connection."""
        with contextlib.suppress(StorageUnavailable), mapped_errors():
            async with self._engine.connect():  # should the server have few left, one of them stays with the engine
                await self._connections.open(_WORKING)

    async def close(self) -> None:
        """Let go of the held connections; the engine is the caller's."""
        await self._connections.close()

    async def append(self, publications: Sequence[Publication]) -> Sequence[Receipt]:
        """Record the events, all or none."""
        if not publications:
            return []
        await self._find_home(publications)
        batch = distinct(publications)
        if due_at_once(batch.unique):
            added = await self._append_new([each.event for each in batch.unique])
            if added is not None:
                return batch.receipts(added.receipts)
        return await self._append_each(batch)

    async def append_leased(
        self, publications: Sequence[Publication], lease: timedelta
    ) -> tuple[Sequence[Receipt], Claim | None]:
        """Record the events, all or none, and lease them to the caller if all are new."""
        await self._find_home(publications)
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

            # A deadlock is with somebody who records some of the same, in another order, and has gone on.
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
            raise await self._conflict(events)
        found = {(row["source"], row["id"]): (row["seq"], not row["fresh"]) for row in rows}
        keys = [(each.source, each.id) for each in map(shortened, events)]
        return batch.receipts(
            [Receipt(each.source, each.id, *found[key]) for each, key in zip(events, keys, strict=True)]
        )

    async def now(self) -> datetime:
        """Return the time on the clock of the store."""
        now: datetime
        await self._find_home()
        [(now,)] = await self._connections.fetch(self._sql("now"))
        return now

    async def append_in(self, session: AsyncSession, publications: Sequence[Publication]) -> Sequence[Receipt]:
        """Record the events inside the caller's own transaction."""
        await self._find_home(publications)
        with mapped_errors():
            return await append_in(session, publications, self._home.schema)

    async def _conflict(self, events: Sequence[Event]) -> EventConflict:
        """Return the error that names the first event whose recorded content differs."""
        for event in events:
            id, source, *content = event_values(event)
            rows = await self._connections.fetch(self._sql("content"), source, id, *content)
            if rows and not rows[0]["same"]:
                return EventConflict(
                    f"event {event.id!r} of source {event.source!r} is already recorded (seq {rows[0]['seq']}) "
                    "with other content; give a changed event a new id"
                )
        return EventConflict("an event with the same source and id, but other content, is being recorded; try again")

    async def claim(self, limit: int, lease: timedelta, weight: int = CLAIM) -> Claim:
        """Lease at most `limit` events that are due, oldest first, as far as they weigh no more than `weight`."""
        await self._find_home()
        token = new_token()
        now = time.monotonic()
        after = self._low_water_mark.start(now)
        try:
            rows = await self._connections.fetch(self._sql("claim", limit), token, after, lease, weight)
            works = claimed_works(rows)
        except UNREADABLE:  # all of them are leased
            return await self._one_by_one(token, lease)
        [outlook] = [row for row in rows if row[0] is None]
        works.sort(key=attrgetter("position"))
        cut = outlook["more"] and len(works) < limit
        self._low_water_mark.saw(works[-1].position if works else None, now, cut=cut)
        again_in: timedelta | None = outlook["expires_in"]
        sweep_in = None if outlook["more"] else self._low_water_mark.sweep_in(now)
        if sweep_in is not None:
            again_in = min(again_in or timedelta.max, timedelta(seconds=sweep_in))
        return Claim(
            token,
            works,
            outlook["version"],
            outlook["scheduled_in"],
            again_in,
            outlook["waiting"],
            weight=outlook["weight"] or 0,
            more=outlook["more"],
            now=outlook["now"],
            recorded=_recorded(outlook["seq"], outlook["size"]),
        )

    async def contents(self, seqs: Sequence[int]) -> Mapping[int, bytes | None]:
        """Return the data of events whose claim left it out."""
        async with self._connections.take() as connection:
            return {row[0]: row[1] for row in await connection.fetch(self._sql("contents"), seqs)}

    async def _one_by_one(self, token: int, lease: timedelta) -> Claim:
        """Read what was leased under `token` event by event, because one of them cannot be read."""
        outlook = await self.claim(0, lease)
        async with self._connections.take() as connection:
            leased = await connection.fetch(self._sql("leased_works"), token)
        works: list[Work] = []
        unreadable: list[UnreadableWork] = []
        for position, attempt, seq in leased:
            event = await self._read(seq)
            if isinstance(event, Event):
                works.append(Work(position, attempt, seq, event))
            else:
                unreadable.append(UnreadableWork(position, attempt, seq, *event))
        weight = weigh([work.event for work in works])
        return replace(
            outlook, token=token, works=works, unreadable=unreadable, again_in=timedelta(0), weight=weight, more=True
        )

    async def _read(self, seq: int) -> Event | tuple[str | None, str]:
        """Return an event; its type, and the reason, if it cannot be read."""
        try:
            async with self._connections.take() as connection:
                return claimed_event(await connection.fetchrow(self._sql("event"), seq))
        except UNREADABLE as error:
            async with self._connections.take() as connection:
                return await connection.fetchval(self._sql("type"), seq), f"{type(error).__name__}: {error}"

    async def settle(self, settled: Settled) -> int:
        """Remove the rows of work still held under the token and record their deliveries, atomically."""
        try:
            return await self._settle(settled)
        except StorageError as error:
            import asyncpg

            if not isinstance(error.__cause__, asyncpg.UniqueViolationError):
                raise
            return await self._settle(row_by_row(settled))  # somebody acknowledged one before it was recorded

    async def _settle(self, settled: Settled) -> int:
        await self._find_home()
        name, arguments = settling(settled)
        if not settled.records:
            [(seqs,)] = await self._connections.fetch(self._sql(name), *arguments)
            return len(seqs or ())
        async with self._connections.take() as connection, connection.transaction(isolation="read_committed"):
            held = set(await connection.fetchval(self._sql(name), *arguments) or ())
            records = [record for record in settled.records if record.seq in held]
            tokens = [None if record.deferred else record.token for record in records]
            columns = record_columns(records, tokens, self._home.encoding)
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
                await connection.execute(self._sql("record_turns"), *turn_columns(turns))
        return len(held)

    async def promote(self, limit: int) -> int:
        """Move at most `limit` scheduled events that have fallen due into the queue."""
        async with self._connections.take() as connection:
            return int(await connection.fetchval(self._sql("promote", limit)))

    async def claim_deliveries(self, quotas: Mapping[int, int], lease: timedelta, weight: int = CLAIM) -> DeliveryClaim:
        """Lease deliveries that are due, for each subscription at most its quota."""
        token = new_token()
        try:
            async with self._connections.take() as connection:
                rows = await connection.fetch(
                    self._sql("claim_deliveries"),
                    token,
                    lease,
                    list(quotas),
                    [max(0, each) for each in quotas.values()],
                    weight,
                )
        except UNREADABLE:  # the driver could not even read a text
            return await self._each_delivery(token, list(quotas))
        claimed, unreadable = claimed_deliveries(rows)
        claimed.sort(key=lambda delivery: delivery.seq)
        first = rows[0]
        next_due = timedelta(0) if first["cut"] else first["next_due"]
        return DeliveryClaim(token, claimed, next_due, unreadable, now=first["now"])

    async def _each_delivery(self, token: int, ids: Sequence[int]) -> DeliveryClaim:
        """
        Read the deliveries leased under `token` one by one, because the driver cannot read a text among them.

        It can be no UTF-8 in a database without an encoding (SQL_ASCII), where other programs write. What the claim
        alone knew of the others is lost with it: they count as new.
        """
        async with self._connections.take() as connection:
            leased = await connection.fetch(self._sql("leased_deliveries"), token, ids)
        claimed: list[ClaimedDelivery] = []
        unreadable: list[UnreadableDelivery] = []
        for seq, id, attempt in leased:
            event = await self._read(seq)
            if isinstance(event, Event):
                claimed.append(ClaimedDelivery(seq, id, attempt, False, event))
            else:
                unreadable.append(UnreadableDelivery(seq, id, attempt, event[1]))
        return DeliveryClaim(token, claimed, timedelta(0), unreadable, now=await self.now())

    async def claim_regulated(self, request: RegulatedRequest, lease: timedelta, weight: int = CLAIM) -> DeliveryClaim:
        """Lease deliveries of one subscription that are due, and whose turn it is."""
        token, rate = new_token(), request.rate
        arguments = (
            *(token, lease, request.subscription_id, max(0, request.quota), request.ordered, request.after),
            *((None, None) if rate is None else (rate.interval, rate.tolerance)),
            weight,
        )
        try:
            async with self._connections.take() as connection:
                rows = await connection.fetch(self._sql("claim_regulated", LINES), *arguments)
                if rate is not None and rows[0]["ahead"] is None:  # the rate has never been used
                    await connection.execute(self._sql("begin_pace"), request.subscription_id)
                    rows = await connection.fetch(self._sql("claim_regulated", LINES), *arguments)
        except UNREADABLE:
            return await self._each_delivery(token, [request.subscription_id])
        claimed, unreadable = claimed_deliveries(rows)
        first = rows[0]
        scan = RegulatedScan(
            first["room"],
            first["after"],
            first["held_up"],
            first["ahead"],
            first["next_due"],
            cut=first["cut"],
            now=first["now"],
        )
        return scan.claim(request, token, claimed, unreadable)

    async def claim_expired(self, limit: int, lease: timedelta) -> ExpiredClaim:
        """Lease deliveries that wait for anything though their event has expired, of at most `limit` events."""
        await self._find_home()
        token = new_token()
        rows = await self._connections.fetch(self._sql("claim_expired", limit), token, lease)
        found = [ExpiredDelivery(*row[:4]) for row in rows if row[0] is not None]
        return ExpiredClaim(token, found, rows[0]["due_now"], rows[0]["again_in"])

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
        async with self._connections.take() as connection:
            tokens = [record.token for record in records]
            columns: tuple[Sequence[Any], ...] = record_columns(records, tokens, self._home.encoding)
            if ordered:
                columns = (*columns, list(ordered))
            settle = self._sql("settle_ordered" if ordered else "settle_deliveries")
            if not attempts and all(record.dead_letter is None for record in records):
                return [(row[0], row[1]) for row in await connection.fetch(settle, *columns)]
            async with connection.transaction(isolation="read_committed"):
                rows = await connection.fetch(settle, *columns)
                held = {(row[0], row[1]) for row in rows}
                await self._record_dead_letters(connection, [r for r in records if (r.seq, r.subscription_id) in held])
                await self._record_attempts(connection, [a for a in attempts if (a.seq, a.subscription_id) in held])
            return list(held)

    async def renew(self, leases: Sequence[tuple[int, int, int]], lease: timedelta) -> Sequence[tuple[int, int]]:
        """Extend the leases of running deliveries, given as (seq, subscription id, token)."""
        seqs, ids, tokens = ([each[index] for each in leases] for index in range(3))
        async with self._connections.take() as connection:
            rows = await connection.fetch(self._sql("renew"), seqs, ids, tokens, lease)
        return [(row[0], row[1]) for row in rows]

    async def deaths(self, keys: Sequence[tuple[int, int]]) -> Mapping[tuple[int, int], Death]:
        """Return how these deliveries died; those that are dead."""
        async with self._connections.take() as connection:
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
            await connection.execute(self._sql("record_attempts"), *attempt_columns(attempts, self._home.encoding))

    async def _find_home(self, publications: Sequence[Publication] = ()) -> None:
        """Have a connection find out what nobody knows yet, and refuse events that the database cannot hold."""
        if not self._home.encoding:
            async with self._connections.take():
                pass
        if not holds_everything(self._home.encoding):
            for publication in publications:
                check_storable(publication.event, self._home.encoding)

    def _sql(self, name: str, limit: int = 0) -> str:
        return statement(name, self._home.schema, limit)


class _Added(NamedTuple):
    """The result of recording new events, in their order; all but the receipts under a token only."""

    receipts: Sequence[Receipt]
    positions: Sequence[int] = ()
    version: int = 0
    created_at: datetime | None = None


def _receipts(events: Sequence[Event], seqs: Sequence[int]) -> list[Receipt]:
    return [Receipt(event.source, event.id, seq, False) for event, seq in zip(events, seqs, strict=True)]


def _recorded(oldest: int | None, newest: int | None) -> tuple[float, float] | None:
    """Return when events were recorded on the monotonic clock, given for how many microseconds they have been."""
    now = time.monotonic()
    return None if oldest is None or newest is None else (now - oldest / 1_000_000, now - newest / 1_000_000)
