"""Delete events past retention, on both databases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial

import structlog
from sqlalchemy import BigInteger, ColumnElement, Select, and_, case, delete, false, func, literal, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from typing_extensions import override

from ..delivery import DeliveryState
from ..errors import StorageError, StorageLocked
from .contract.archive import Archive, Pruned, Retention
from .expressions import Among, HasSeq, Instant, Keys, Later
from .halves import IN_A_ROW, in_halves
from .runs import block_of
from .tables import attempts, deliveries, dispatch, events, expiries, runs, scheduled, turns
from .transactions import Transactions

__all__ = ["SqlArchive"]

log = structlog.get_logger(__name__)

_RUNS = 1000  # runs without events that one statement removes
_AT_ONCE = 10_000  # rows that go in one transaction, about
_EVENT = 5  # rows that an event counts for, besides those of its deliveries

_DEAD = (DeliveryState.DEAD, DeliveryState.CANCELLED)


class SqlArchive(Archive):
    """
    `Archive` on SQLAlchemy Core.

    Events are walked by their key, so that no index of theirs has to be kept for it. A page with nothing to remove is
    only read.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._transactions = Transactions(engine)

    @override
    async def prune(self, retention: Retention, after: int, limit: int, *, dry_run: bool = False) -> Pruned:
        if retention.shortest is None:
            return Pruned(0, after, True)
        old = _older(events.c.created_at, retention.shortest).label("old")
        page = select(events.c.seq, old).where(events.c.seq > after).order_by(events.c.seq).limit(limit)
        async with self._transactions.read() as connection:
            rows = (await connection.execute(page)).all()
            seqs = [row.seq for row in rows if row.old]
            over = await _over(connection, seqs, retention)
            empty = await _empty_runs(connection, after, rows[-1].seq if len(rows) == limit else None)
        if empty and not dry_run:
            await self._remove_runs(empty)
        count = len(over) if dry_run else await self._prune(retention, _portions(over))
        return Pruned(count, max(seqs, default=after), not rows or not rows[-1].old)

    async def _prune(self, retention: Retention, portions: Iterable[Sequence[int]]) -> int:
        """Remove events that are over; return how many were removed."""
        gone, refused = 0, list[tuple[int, StorageError]]()
        for seqs in portions:
            removed, kept = await in_halves(seqs, partial(self._remove, retention))
            gone += len(removed)
            refused += kept
            if not gone and len(refused) > IN_A_ROW and isinstance(error := refused[-1][1], StorageLocked):
                raise error  # the following ones would probably fail alike
        if refused:  # events that a foreign key or a trigger keeps must not keep the others
            log.warning("cannot prune", events=len(refused), first=refused[0][0], detail=str(refused[0][1]))
        return gone

    async def _remove_runs(self, ids: Sequence[int]) -> None:
        async with self._transactions.write() as connection:
            await connection.execute(delete(runs).where(Among(runs.c.id, literal(ids, Keys())), _without_events()))

    async def _remove(self, retention: Retention, seqs: Sequence[int]) -> list[int]:
        async with self._transactions.write() as connection:
            return await _remove(connection, seqs, retention)


def _portions(over: Mapping[int, int]) -> Iterator[Sequence[int]]:
    """Yield events, given with the numbers of their deliveries' rows, in portions for one transaction each."""
    portion: list[int] = []
    rows = 0
    for seq, number in over.items():
        if portion and rows + number + _EVENT > _AT_ONCE:
            yield portion
            portion, rows = [], 0
        portion.append(seq)
        rows += number + _EVENT
    if portion:
        yield portion


async def _over(connection: AsyncConnection, seqs: Sequence[int], retention: Retention) -> dict[int, int]:
    """Return those of `seqs` that can be removed, each with the number of its deliveries."""
    if not seqs:
        return {}
    # First what is still to be dispatched: it leaves the queue together with the record of its deliveries, so
    # that what is in neither now has all of them on record for the next statement.
    first, last = min(seqs), max(seqs)
    queued = select(dispatch.c.event_seq).where(dispatch.c.event_seq.between(first, last))
    later = select(scheduled.c.event_seq).where(scheduled.c.event_seq.between(first, last))
    busy = set(await connection.scalars(queued.union_all(later)))
    recorded = await _recorded(connection, first, last, retention)
    waiting = [seq for seq in seqs if seq not in busy and recorded.get(seq, True)]
    rows = {row.event_seq: row for row in await connection.execute(_rows(seqs, retention))}
    over = {seq: rows[seq].number if seq in rows else 0 for seq in waiting if seq not in rows or rows[seq].ended}
    unwanted = [seq for seq in over if seq not in rows and seq not in recorded]
    if unwanted:
        old = _older(events.c.created_at, retention.delivered)
        aged = set(await connection.scalars(select(events.c.seq).where(_among(events.c.seq, unwanted), old)))
        over = {seq: number for seq, number in over.items() if seq in rows or seq in recorded or seq in aged}
    return over


async def _recorded(connection: AsyncConnection, first: int, last: int, retention: Retention) -> dict[int, bool]:
    """Return the seqs that runs record, at least from `first` to `last`, each with whether it is past its retention."""
    old = _older(runs.c.settled_at, retention.delivered).label("old")
    theirs = (runs.c.first.between(block_of(first), last), runs.c.last >= first)
    found = await connection.execute(select(runs.c.seqs, old).where(*theirs))
    return {seq: bool(row.old) for row in found for start, end in row.seqs for seq in range(start, end + 1)}


def _rows(seqs: Sequence[int], retention: Retention) -> Select[int, int, bool]:
    """Return the query for how many rows of deliveries events have, and whether all are past their retention."""
    number = func.count()
    ended = (number == func.count(case((_final(retention), 1)))).label("ended")
    first, last = min(seqs), max(seqs)
    dense = last - first < 2 * len(seqs)  # else most of what lies between may be kept, and costs a look each
    within = deliveries.c.event_seq.between(first, last) if dense else _among(deliveries.c.event_seq, seqs)
    return select(deliveries.c.event_seq, number.label("number"), ended).where(within).group_by(deliveries.c.event_seq)


def _final(retention: Retention) -> ColumnElement[bool]:
    """Return whether a delivery has ended and is older than its retention."""
    delivered = deliveries.c.state == DeliveryState.DELIVERED
    dead = deliveries.c.state.in_(_DEAD)
    return or_(
        and_(delivered, _older(deliveries.c.updated_at, retention.delivered)),
        and_(dead, _older(deliveries.c.updated_at, retention.dead)),
    )


def _older(moment: ColumnElement[Instant], age: timedelta | None) -> ColumnElement[bool]:
    if age is None:
        return false()
    return moment < Later(literal(-age // timedelta(microseconds=1), BigInteger))


def _among(column: ColumnElement[int], seqs: Sequence[int]) -> ColumnElement[bool]:
    return Among(column, literal(seqs, Keys()))


async def _remove(connection: AsyncConnection, seqs: Sequence[int], retention: Retention) -> list[int]:
    """
    Remove those of `seqs` past retention, once no other session can change that; return them.

    A retry by hand locks deliveries; what adds some to an event on record locks the event. Rows that others hold are
    skipped, so that nothing waits here.
    """
    rows = select(deliveries.c.event_seq).where(_among(deliveries.c.event_seq, seqs))
    held = Counter(await connection.scalars(rows.with_for_update(skip_locked=True)))
    ours = select(events.c.seq).where(_among(events.c.seq, seqs)).with_for_update(skip_locked=True)
    over = await _over(connection, list(await connection.scalars(ours)), retention)
    gone = [seq for seq, number in over.items() if held[seq] == number]
    if not gone:
        return gone
    if rowed := [seq for seq in gone if over[seq]]:  # what only runs record has neither attempts nor a turn
        for table in (attempts, turns, deliveries):
            await connection.execute(delete(table).where(_among(table.c.event_seq, rowed)))
    for column in (expiries.c.event_seq, events.c.seq):
        await connection.execute(delete(column.table).where(_among(column, gone)))
    near = (runs.c.first.between(block_of(min(gone)), max(gone)), runs.c.last >= min(gone))
    await connection.execute(delete(runs).where(*near, _without_events()))
    return gone


async def _empty_runs(connection: AsyncConnection, after: int, last: int | None) -> Sequence[int]:
    """
    Return the ids of runs that begin after the seq `after`, up to `last`, and have no event any more.

    Another process removed the last ones: two that prune at once see each other's events, and the version before knows
    of no runs.
    """
    up_to = [] if last is None else [runs.c.first <= last]
    found = select(runs.c.id).where(runs.c.first > after, *up_to, _without_events())
    return (await connection.scalars(found.order_by(runs.c.first).limit(_RUNS))).all()


def _without_events() -> ColumnElement[bool]:
    """Return whether a run has no event left. It is not yet seen without its events: they were committed before it."""
    within = events.c.seq.between(runs.c.first, runs.c.last)
    return ~select(events.c.seq).where(within, HasSeq(runs.c.seqs, events.c.seq)).correlate(runs).exists()
