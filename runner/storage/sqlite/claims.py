"""Claims on SQLite: functions that the connection's thread runs."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from msgspec.structs import replace

from ..contract.claims import UNREADABLE, Claim, DeliveryClaim, UnreadableWork, Work
from ..event_rows import check_size, read_event
from .rows import (
    EPOCH,
    MICROSECOND,
    LeasedDeliveries,
    ago,
    as_json,
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

__all__ = ["claim", "claim_deliveries", "contents", "promote"]

_Row = tuple[Any, ...]


def claim(db: sqlite3.Connection, token: int, limit: int, lease: timedelta, weight: int) -> Claim:
    """Lease events that are due; only read if there are none."""
    now = clock(db)
    if not db.execute(sql("any_due"), (now,)).fetchall():
        return _outlook(db, Claim(token, (), 0), limit, now)
    return transaction(db, _lease_works, token, limit, lease, weight)


def _lease_works(db: sqlite3.Connection, token: int, limit: int, lease: timedelta, weight: int) -> Claim:
    now = clock(db)
    # What stands between two positions is leased without being fetched: each row that is waits for the interpreter.
    [(first, last, count)] = db.execute(sql("due_works"), (now, limit)).fetchall()
    read = _Read(token, weight)
    if count:
        db.execute(sql("claim"), (now + microseconds(lease), token, first, last, now))
        try:
            read.works(db, first, last)
        except (*UNREADABLE, sqlite3.OperationalError) as error:
            check_text(error)
            read = _Read(token, weight)
            read.one_by_one(db, [at for (at,) in db.execute(sql("leased_positions"), (first, last, token)).fetchall()])
        if read.cut:
            db.execute(sql("unclaim"), (read.last, token))
    recorded = None
    if read.readable:
        ends = db.execute(sql("recorded"), (read.readable[0].seq, read.readable[-1].seq)).fetchall()
        recorded = ago(ends[0][0], now), ago(ends[0][1], now)
    claim = Claim(token, read.readable, 0, unreadable=read.unreadable, weight=read.weight, recorded=recorded)
    return _outlook(db, replace(claim, more=read.cut or count >= limit), limit, now)


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
        works, most, total, last_taken = self.readable, self._most, self.weight, self.last
        rows = db.execute(sql("works"), (first, last, self._token))
        for position, attempt, seq, weight, missing, type, source, id, subject, time, *rest in rows:
            if last_taken and total + weight > most:
                self.cut = True
                break
            check_size(weight)
            event = read_event(type, source, id, subject, time_of(time), *rest)
            works.append(Work(position, attempt, seq, event, weight if missing else 0))
            total += weight
            last_taken = position
        self.weight, self.last = total, last_taken

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


def contents(db: sqlite3.Connection, seqs: Sequence[int]) -> Mapping[int, bytes | None]:
    """Return the data of events."""
    return dict(db.execute(sql("contents"), (as_json(seqs),)).fetchall())


def _type(db: sqlite3.Connection, seq: int) -> object:
    """Return the type of an event that cannot be read; None if that cannot be read either."""
    try:
        [(type,)] = db.execute(sql("type"), (seq,)).fetchall()
    except sqlite3.OperationalError as error:
        check_text(error)
        return None
    return type


def _outlook(db: sqlite3.Connection, claim: Claim, limit: int, now: int) -> Claim:
    """Return the claim with the outlook for the worker."""
    [(version, scheduled_at, waiting)] = db.execute(sql("outlook")).fetchall()
    again_in = timedelta(0) if claim.unreadable else None
    if not claim.more and not claim.unreadable:  # whatever is left in the queue is leased, so this reads no backlog
        [(expiry,)] = db.execute(sql("next_expiry"), (now,)).fetchall()
        again_in = until(expiry, now)
    changes = {"version": version, "scheduled_in": until(scheduled_at, now), "again_in": again_in}
    return replace(claim, **changes, waiting=bool(waiting), now=EPOCH + now * MICROSECOND)


def promote(db: sqlite3.Connection, limit: int) -> int:
    """Move scheduled events that have fallen due into the queue; only read if there are none."""
    due = db.execute(sql("any_scheduled"), (clock(db),)).fetchall()
    return transaction(db, _move_due, limit) if due else 0


def _move_due(db: sqlite3.Connection, limit: int) -> int:
    due = sorted(db.execute(sql("unschedule"), (clock(db), limit)).fetchall())
    db.executemany(sql("queue"), [(seq,) for _, seq in due])
    return len(due)


def claim_deliveries(
    db: sqlite3.Connection, token: int, quotas: Mapping[int, int], lease: timedelta, weight: int
) -> DeliveryClaim:
    """Lease deliveries that are due; only read if there are none."""
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
