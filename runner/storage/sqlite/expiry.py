"""Claims of expired events on SQLite; `claim_expired.sql` of PostgreSQL gives the reasons."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import timedelta

from ..contract.claims import ExpiredClaim, ExpiredDelivery
from .rows import clock, microseconds, sql, time_of, transaction, until

__all__ = ["claim_expired"]

_AGAIN = microseconds(timedelta(minutes=1))  # until an event is looked at once more


def claim_expired(db: sqlite3.Connection, token: int, limit: int, lease: timedelta) -> ExpiredClaim:
    """Lease the waiting deliveries of at most `limit` expired events; only read if there is none."""
    now = clock(db)
    [(any_expired, next_at)] = db.execute(sql("any_expired"), (now, now)).fetchall()
    if not any_expired:
        return ExpiredClaim(token, (), 0, until(next_at, now))
    seen, found, due_now = transaction(db, _claim, token, limit, lease)
    return ExpiredClaim(token, found, due_now, timedelta(0) if seen == limit else until(next_at, now))


def _claim(
    db: sqlite3.Connection, token: int, limit: int, lease: timedelta
) -> tuple[int, Sequence[ExpiredDelivery], int]:
    now = clock(db)
    over = db.execute(sql("expired"), (now, limit)).fetchall()
    found: list[ExpiredDelivery] = []
    due_now = 0
    for seq, expires_at in over:
        waiting = db.execute(sql("expired_deliveries"), (seq, now)).fetchall()
        found += [ExpiredDelivery(seq, id, attempt, time_of(expires_at)) for _, id, attempt in waiting]
        due_now += db.execute(sql("due_now"), (now, seq, now)).rowcount
        if not db.execute(sql("forget_expiry"), (seq, now - _AGAIN)).rowcount:
            db.execute(sql("look_again"), (now + _AGAIN, seq))
    ends = now + microseconds(lease)
    leases = [(ends, token, now, each.seq, each.subscription_id) for each in found]
    db.executemany(sql("claim_delivery"), leases)
    return len(over), found, due_now
