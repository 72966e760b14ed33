"""
The store on SQLite: embedded, one file, no server.

A transaction is one plain function that runs on the connection's thread, in one hop: it cannot be cut
in the middle by a cancelled coroutine, which would leave the file locked for everybody. SQLite has one
writer at a time, so a claim needs no `SKIP LOCKED`: whoever has begun is alone. What finds nothing to do
has only read, so that idle polls neither wait for a lock nor look like a change to those who watch the file.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime, timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar, cast

import orjson
import structlog
from msgspec.structs import replace
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from ...delivery import DeliveryState
from ...errors import EventConflict, StorageRefused
from ...event import Event, lasting, weigh
from ..contract.claims import (
    CLAIM,
    UNREADABLE,
    Claim,
    DeliveryClaim,
    ExpiredClaim,
    RegulatedRequest,
    UnreadableWork,
    Work,
)
from ..contract.events import Publication, Receipt
from ..contract.settlements import AttemptRecord, Death, DeliveryRecord, Settled
from ..encoding import storable
from ..errors import is_unavailable, mapped_errors
from ..event_rows import check_size, read_event, read_extensions, write_extensions
from ..identity import shortened
from ..lines import line_up
from ..registry import SqlRegistry
from ..runs import run_columns
from ..session_publish import append_in
from ..tokens import new_token
from .connection import TidyConnection
from .expiry import claim_expired
from .regulated import claim_regulated
from .rows import (
    EPOCH,
    MICROSECOND,
    LeasedDeliveries,
    check_text,
    clock,
    fault,
    lease_deliveries,
    microseconds,
    sql,
    time_of,
    transaction,
    until,
)

if TYPE_CHECKING:
    import aiosqlite

__all__ = ["SqliteStore"]

log = structlog.get_logger(__name__)

R = TypeVar("R")
_Row = tuple[Any, ...]

_UNFINISHED = (DeliveryState.PENDING, DeliveryState.LEASED)


@dataclass(frozen=True, slots=True)
class _Held:
    connection: AsyncConnection
    driver: aiosqlite.Connection


class SqliteStore(SqlRegistry):
    """
    `EventStore`, `WorkQueue` and `Registry` on SQLite.

    Holds one of the engine's connections from its first call until `close()`; the engine, which
    needs at least two, stays its owner's.
    """

    appends_at_once = 1  # there is one writer; the more go together the better

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine)
        self._held: _Held | None = None
        self._opening = asyncio.Lock()

    async def open(self) -> None:
        """Open nothing: the first call does, and there is no second connection."""

    async def close(self) -> None:
        """Give the connection back. Idempotent; a later call opens another one."""
        held, self._held = self._held, None
        if held is not None:
            await held.connection.close()

    async def append(self, publications: Sequence[Publication]) -> Sequence[Receipt]:
        """Record the events, all or none, each with its row of work."""
        return await self._run(transaction, _append, publications)

    async def append_leased(
        self, publications: Sequence[Publication], lease: timedelta
    ) -> tuple[Sequence[Receipt], Claim]:
        """Record the events, all or none, and lease the new ones to the caller."""
        return await self._run(transaction, _append_leased, publications, new_token(), lease)

    async def now(self) -> datetime:
        """Return the time on the clock of the store."""
        return EPOCH + await self._run(clock) * MICROSECOND

    async def append_in(self, session: AsyncSession, publications: Sequence[Publication]) -> Sequence[Receipt]:
        """Do the same inside the caller's own transaction."""
        with mapped_errors():
            return await append_in(session, publications, None)

    async def claim(self, limit: int, lease: timedelta, weight: int = CLAIM) -> Claim:
        """Lease at most `limit` events that are due, oldest first, as far as they weigh no more than `weight`."""
        return await self._run(_claim, new_token(), max(limit, 0), lease, weight)

    async def contents(self, seqs: Sequence[int]) -> Mapping[int, bytes | None]:
        """Return the data of events whose claim left it out."""
        return await self._run(_contents, seqs)

    async def settle(self, settled: Settled) -> int:
        """Remove the rows of work still held under the token and record their deliveries, atomically."""
        return await self._run(transaction, _settle, settled)

    async def promote(self, limit: int) -> int:
        """Move at most `limit` scheduled events that have fallen due into the queue."""
        return await self._run(_promote, max(limit, 0))

    async def claim_deliveries(self, quotas: Mapping[int, int], lease: timedelta, weight: int = CLAIM) -> DeliveryClaim:
        """Lease deliveries that are due, for each subscription at most its quota."""
        return await self._run(_claim_deliveries, new_token(), quotas, lease, weight)

    async def claim_regulated(self, request: RegulatedRequest, lease: timedelta, weight: int = CLAIM) -> DeliveryClaim:
        """Lease deliveries of one subscription that are due, and whose turn it is."""
        return await self._run(claim_regulated, new_token(), request, lease, weight)

    async def claim_expired(self, limit: int, lease: timedelta) -> ExpiredClaim:
        """Lease deliveries that wait for anything though their event has expired, of at most `limit` events."""
        return await self._run(claim_expired, new_token(), limit, lease)

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
        return await self._run(transaction, _settle_deliveries, records, attempts, ordered)

    async def renew(self, leases: Sequence[tuple[int, int, int]], lease: timedelta) -> Sequence[tuple[int, int]]:
        """Extend the leases that are still held."""
        return await self._run(transaction, _renew, leases, lease)

    async def deaths(self, keys: Sequence[tuple[int, int]]) -> Mapping[tuple[int, int], Death]:
        """Return how these deliveries died; those that are dead."""
        return await self._run(_deaths, keys)

    async def _run(self, function: Callable[..., R], *args: Any) -> R:
        """Run `function` on the connection's thread, to its end even if the caller is cancelled."""
        with mapped_errors():
            held = await self._open()
            try:
                # aiosqlite has no public way to run a function on its thread; it is pinned, and a test guards this.
                hop = held.driver._execute(_tidily, held.driver._conn, function, *args)  # type: ignore[no-untyped-call]  # untyped there
                result: R = await asyncio.shield(hop)
                return result
            except (OverflowError, UnicodeEncodeError) as error:  # the driver cannot bind it
                raise StorageRefused(f"the store refused: {type(error).__name__}") from error
            except sqlite3.OperationalError as error:
                # Whatever is wrong with it (a rollback that failed, a file that was replaced), the next
                # call is better off with a new connection; what waits in its thread's queue still runs.
                if is_unavailable(error):
                    log.warning("connection dropped", reason=str(error))
                    await asyncio.shield(self._discard(held))
                raise

    async def _open(self) -> _Held:
        async with self._opening:
            if self._held is None:
                connection = await self._engine.connect()
                raw = await connection.get_raw_connection()
                self._held = _Held(connection, cast("aiosqlite.Connection", raw.driver_connection))
            return self._held

    async def _discard(self, held: _Held) -> None:
        if held is self._held:
            self._held = None
            await held.connection.invalidate()
            await held.connection.close()


def _tidily(db: TidyConnection, function: Callable[..., R], *args: Any) -> R:
    result = function(db, *args)
    db.copy_back()
    return result


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
    started = _ago(now, now)
    weight = weigh([work.event for work in works])
    return receipts, Claim(token, works, version, weight=weight, recorded=(started, started))


def _ago(instant: int, now: int) -> float:
    """Return on the monotonic clock what was at `instant` on the file's clock, which says `now`."""
    return monotonic() - (now - instant) / 1_000_000


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


def _claim(db: sqlite3.Connection, token: int, limit: int, lease: timedelta, weight: int) -> Claim:
    now = clock(db)
    if not db.execute(sql("any_due"), (now,)).fetchall():
        return _outlook(db, Claim(token, (), 0), limit, now)
    return transaction(db, _lease_works, token, limit, lease, weight)


def _lease_works(db: sqlite3.Connection, token: int, limit: int, lease: timedelta, weight: int) -> Claim:
    now = clock(db)
    leased = db.execute(sql("claim"), (now + microseconds(lease), token, now, limit)).fetchall()
    positions = sorted(position for (position,) in leased)
    read = _Read(token, weight)
    if positions:
        try:
            read.works(db, positions[0], positions[-1])
        except (*UNREADABLE, sqlite3.OperationalError) as error:
            check_text(error)
            read = _Read(token, weight)
            read.one_by_one(db, positions)
        if read.cut:
            db.execute(sql("unclaim"), (read.last, token))
    recorded = None
    if read.readable:
        ends = db.execute(sql("recorded"), (read.readable[0].seq, read.readable[-1].seq)).fetchall()
        recorded = _ago(ends[0][0], now), _ago(ends[0][1], now)
    claim = Claim(token, read.readable, 0, unreadable=read.unreadable, weight=read.weight, recorded=recorded)
    return _outlook(db, replace(claim, more=read.cut or len(positions) >= limit), limit, now)


class _Read:
    """The events of a claim, read until they weigh too much."""

    def __init__(self, token: int, most: int) -> None:
        self.readable: list[Work] = []
        self.unreadable: list[UnreadableWork] = []
        self.weight = 0
        self.last = 0  # position of the last one that is taken
        self.cut = False
        self._token = token
        self._most = most

    def works(self, db: sqlite3.Connection, first: int, last: int) -> None:
        """Read those in these positions. Raise one of `UNREADABLE` at the first that is no event."""
        for position, attempt, seq, weight, missing, type, source, id, subject, time, *rest in db.execute(
            sql("works"), (first, last, self._token)
        ):
            if self.last and self.weight + weight > self._most:
                self.cut = True
                return
            check_size(weight)
            event = read_event(type, source, id, subject, time_of(time), *rest)
            self.readable.append(Work(position, attempt, seq, event, weight if missing else 0))
            self.weight += weight
            self.last = position

    def one_by_one(self, db: sqlite3.Connection, positions: Sequence[int]) -> None:
        """Read event by event, because one of them cannot be read."""
        for position in positions:
            try:
                self.works(db, position, position)
            except (*UNREADABLE, sqlite3.OperationalError) as error:
                check_text(error)
                [(attempt, seq)] = db.execute(sql("work"), (position,)).fetchall()
                self.unreadable.append(UnreadableWork(position, attempt, seq, _type(db, seq), fault(error)))
                self.last = position
            if self.cut:
                return


def _contents(db: sqlite3.Connection, seqs: Sequence[int]) -> Mapping[int, bytes | None]:
    return dict(db.execute(sql("contents"), (_json(seqs),)).fetchall())


def _type(db: sqlite3.Connection, seq: int) -> object:
    """Return the type of an event that cannot be read; None if that cannot be read either."""
    try:
        [(type,)] = db.execute(sql("type"), (seq,)).fetchall()
    except sqlite3.OperationalError as error:
        check_text(error)
        return None
    return type


def _outlook(db: sqlite3.Connection, claim: Claim, limit: int, now: int) -> Claim:
    """Return the claim with what else a worker wants to know."""
    [(version, scheduled_at, waiting)] = db.execute(sql("outlook")).fetchall()
    again_in = timedelta(0) if claim.unreadable else None
    if not claim.more and not claim.unreadable:  # whatever is left in the queue is leased, so this reads no backlog
        [(expiry,)] = db.execute(sql("next_expiry"), (now,)).fetchall()
        again_in = until(expiry, now)
    changes = {"version": version, "scheduled_in": until(scheduled_at, now), "again_in": again_in}
    return replace(claim, **changes, waiting=bool(waiting), now=EPOCH + now * MICROSECOND)


def _settle(db: sqlite3.Connection, settled: Settled) -> int:
    now = clock(db)
    if not settled.records:
        firsts, lasts, _, _, delivered_to = run_columns(settled)
        if len(firsts) == 1:  # the end of a claim as it mostly is
            held_run = (firsts[0], lasts[0], settled.token)
            db.execute(sql("deliver_run"), (now, _json(delivered_to), *held_run))
            return db.execute(sql("remove_run"), held_run).rowcount
    positions = _json([work.position for work in settled.works])
    held: dict[int, int] = dict(db.execute(sql("remove"), (positions, settled.token)).fetchall())
    groups: dict[tuple[tuple[int, ...], int], list[int]] = {}
    for work, ids in settled.each():
        attempts = held.get(work.seq)
        if ids and attempts is not None:
            groups.setdefault((ids, attempts), []).append(work.seq)
    for (ids, attempts), seqs in groups.items():
        db.execute(sql("delivered"), (attempts, now, _json(seqs), _json(ids)))
    records = [record for record in settled.records if record.seq in held]
    written = [record for record in records if db.execute(sql("record"), _record(record, now)).rowcount]
    theirs = {(record.seq, record.subscription_id) for record in written}
    turns = [each for each in settled.turns if (each.seq, each.subscription_id) in theirs]
    db.executemany(sql("record_turn"), [(each.subscription_id, each.key, each.position, each.seq) for each in turns])
    _record_dead_letters(db, written, now)
    _record_attempts(db, [each for each in settled.attempts if (each.seq, each.subscription_id) in theirs], now)
    return len(held)


def _promote(db: sqlite3.Connection, limit: int) -> int:
    due = db.execute(sql("any_scheduled"), (clock(db),)).fetchall()
    return transaction(db, _move_due, limit) if due else 0


def _move_due(db: sqlite3.Connection, limit: int) -> int:
    due = sorted(db.execute(sql("unschedule"), (clock(db), limit)).fetchall())
    db.executemany(sql("queue"), [(seq,) for _, seq in due])
    return len(due)


def _claim_deliveries(
    db: sqlite3.Connection, token: int, quotas: Mapping[int, int], lease: timedelta, weight: int
) -> DeliveryClaim:
    now = clock(db)
    leased = LeasedDeliveries()
    if _due_deliveries(db, quotas, now):
        leased = transaction(db, _lease_deliveries, token, quotas, lease, weight)
    at = EPOCH + now * MICROSECOND
    if leased.cut:
        return DeliveryClaim(token, leased.claimed, timedelta(0), leased.unreadable, now=at)
    nexts = [at for id in quotas for (at,) in db.execute(sql("next_delivery"), (id, now)).fetchall() if at is not None]
    next_due = until(min(nexts, default=None), now)
    return DeliveryClaim(token, leased.claimed, next_due, leased.unreadable, now=at)


def _due_deliveries(db: sqlite3.Connection, quotas: Mapping[int, int], now: int) -> list[_Row]:
    found: list[_Row] = []
    for id, quota in quotas.items():
        if quota > 0:
            found += db.execute(sql("due_deliveries"), (id, now, quota)).fetchall()
    return found


def _lease_deliveries(
    db: sqlite3.Connection, token: int, quotas: Mapping[int, int], lease: timedelta, weight: int
) -> LeasedDeliveries:
    now = clock(db)
    return lease_deliveries(db, token, _due_deliveries(db, quotas, now), lease, now, weight)


def _settle_deliveries(
    db: sqlite3.Connection, records: Sequence[DeliveryRecord], attempts: Sequence[AttemptRecord], ordered: Set[int]
) -> Sequence[tuple[int, int]]:
    now = clock(db)
    written = []
    for record in records:
        key = (record.seq, record.subscription_id)
        values = (record.state.value, record.attempts, _waits_until(record, now), storable(record.error), now)
        if db.execute(sql("settle_delivery"), (*values, *key, record.token)).rowcount:
            written.append(key)
            if record.subscription_id in ordered and record.state not in _UNFINISHED:
                db.execute(sql("end_turn"), key)
    theirs = set(written)
    _record_dead_letters(db, [each for each in records if (each.seq, each.subscription_id) in theirs], now)
    _record_attempts(db, [each for each in attempts if (each.seq, each.subscription_id) in theirs], now)
    return written


def _renew(
    db: sqlite3.Connection, leases: Sequence[tuple[int, int, int]], lease: timedelta
) -> Sequence[tuple[int, int]]:
    until = clock(db) + microseconds(lease)
    return [(seq, id) for seq, id, token in leases if db.execute(sql("renew"), (until, seq, id, token)).rowcount]


def _deaths(db: sqlite3.Connection, keys: Sequence[tuple[int, int]]) -> Mapping[tuple[int, int], Death]:
    return {
        key: Death(reason, attempts, EPOCH + at * MICROSECOND)
        for key in keys
        for reason, attempts, at in db.execute(sql("death"), key).fetchall()
    }


def _record_dead_letters(db: sqlite3.Connection, records: Iterable[DeliveryRecord], now: int) -> None:
    rows = [(each.seq, each.dead_letter, now, now) for each in records if each.dead_letter is not None]
    db.executemany(sql("record_dead_letter"), rows)


def _record_attempts(db: sqlite3.Connection, attempts: Iterable[AttemptRecord], now: int) -> None:
    rows = [
        (
            a.seq,
            a.subscription_id,
            a.number,
            now,
            microseconds(a.duration),
            a.status,
            storable(a.error),
            storable(a.excerpt),
        )
        for a in attempts
    ]
    db.executemany(sql("record_attempt"), rows)


def _json(value: object) -> str:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


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


def _record(record: DeliveryRecord, now: int) -> _Row:
    token = record.token if record.state is DeliveryState.LEASED and not record.deferred else None
    values = (record.state.value, record.attempts, _waits_until(record, now), token, storable(record.error), now)
    return (record.seq, record.subscription_id, *values)


def _waits_until(record: DeliveryRecord, now: int) -> int | None:
    return now + microseconds(record.due_in) if record.state in _UNFINISHED else None
