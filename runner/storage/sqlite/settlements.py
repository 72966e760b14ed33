"""Settlements on SQLite: functions that the connection's thread runs, each one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence, Set
from datetime import timedelta
from typing import Any

from ...delivery import DeliveryState, Lease
from ..contract.settlements import AttemptRecord, Death, DeliveryRecord, Settled
from ..encoding import storable
from ..runs import in_runs, stretches
from .rows import EPOCH, MICROSECOND, as_json, clock, microseconds, sql

__all__ = ["deaths", "renew", "settle", "settle_deliveries"]

_UNFINISHED = (DeliveryState.PENDING, DeliveryState.LEASED)
_MANY = 4  # rows: to fetch what was removed of more, row by row, costs more than to count it before


def settle(db: sqlite3.Connection, settled: Settled) -> int:
    """Remove the rows of work that are still held, and record their deliveries."""
    now = clock(db)
    held: dict[int, int] = {}  # attempts of the dispatch, by seq
    seqs = {work.position: work.seq for work in settled.works}
    for first, last in stretches(list(seqs)):
        held.update(_removed(db, [seqs[position] for position in range(first, last + 1)], first, last, settled.token))
    _record_delivered(db, settled, held, now)
    records = [record for record in settled.records if record.seq in held]
    written = [record for record in records if db.execute(sql("record"), _record(record, now)).rowcount]
    theirs = {(record.seq, record.subscription_id) for record in written}
    turns = [each for each in settled.turns if (each.seq, each.subscription_id) in theirs]
    db.executemany(sql("record_turn"), [(each.subscription_id, each.key, each.position, each.seq) for each in turns])
    _record_dead_letters(db, written, now)
    _record_attempts(db, [each for each in settled.attempts if (each.seq, each.subscription_id) in theirs], now)
    return len(held)


def settle_deliveries(
    db: sqlite3.Connection, records: Sequence[DeliveryRecord], attempts: Sequence[AttemptRecord], ordered: Set[int]
) -> Sequence[tuple[int, int]]:
    """Write each record whose delivery is still held, and the attempts of those."""
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


def renew(db: sqlite3.Connection, leases: Sequence[Lease], duration: timedelta) -> Sequence[tuple[int, int]]:
    """Extend the leases that are still held."""
    until = clock(db) + microseconds(duration)
    return [each.key for each in leases if db.execute(sql("renew"), (until, *each.key, each.token)).rowcount]


def deaths(db: sqlite3.Connection, keys: Sequence[tuple[int, int]]) -> Mapping[tuple[int, int], Death]:
    """Return how these deliveries died; those that are dead."""
    return {
        key: Death(reason, attempts, EPOCH + at * MICROSECOND)
        for key in keys
        for reason, attempts, at in db.execute(sql("death"), key).fetchall()
    }


def _removed(
    db: sqlite3.Connection, seqs: Sequence[int], first: int, last: int, token: int
) -> Iterable[tuple[int, int]]:
    """Remove the rows of work in these positions that are still held; return the seq and the attempts of each."""
    stretch = (first, last, token)
    if len(seqs) >= _MANY and db.execute(sql("held"), stretch).fetchall() == [(len(seqs), 1)]:
        db.execute(sql("remove_held"), stretch)
        return [(seq, 1) for seq in seqs]
    removed: list[tuple[int, int]] = db.execute(sql("remove_stretch"), stretch).fetchall()
    return removed


def _record_delivered(db: sqlite3.Connection, settled: Settled, held: Mapping[int, int], now: int) -> None:
    """Record what succeeded at once of what was held: in runs, but for few and for what an earlier attempt began."""
    again = {seq for seq, attempts in held.items() if attempts != 1}
    runs, rows = in_runs(settled, held.keys() - again if again else held)
    values = [(run.seqs[0][0], run.seqs[-1][1], as_json(run.seqs), as_json(run.subscription_ids), now) for run in runs]
    db.executemany(sql("record_run"), values)
    rows = [*rows, *((work.seq, id) for work, ids in settled.each() if work.seq in again for id in ids)]
    db.executemany(sql("delivered"), [(seq, id, held[seq], now) for seq, id in rows])


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


def _record(record: DeliveryRecord, now: int) -> tuple[Any, ...]:
    token = record.token if record.state is DeliveryState.LEASED and not record.deferred else None
    values = (record.state.value, record.attempts, _waits_until(record, now), token, storable(record.error), now)
    return (record.seq, record.subscription_id, *values)


def _waits_until(record: DeliveryRecord, now: int) -> int | None:
    return now + microseconds(record.due_in) if record.state in _UNFINISHED else None
