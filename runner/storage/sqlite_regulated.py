"""Claims of subscriptions that have an order or a rate, on SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from .base import ClaimedDelivery, DeliveryClaim, Demand, UnreadableDelivery
from .regulation import LINES, Seen
from .sqlite_rows import clock, lease_deliveries, microseconds, sql, transaction, until

__all__ = ["claim_regulated"]

_Due = Sequence[tuple[Any, ...]]


def claim_regulated(db: sqlite3.Connection, token: int, demand: Demand, lease: timedelta) -> DeliveryClaim:
    """Lease deliveries of one subscription that are due, and whose turn it is; only read if there is none."""
    due, seen = _look(db, demand, clock(db))
    claimed: Sequence[ClaimedDelivery] = ()
    unreadable: Sequence[UnreadableDelivery] = ()
    if due:
        claimed, unreadable, seen = transaction(db, _claim, token, demand, lease)
    return seen.claim(demand, token, claimed, unreadable)


def _claim(
    db: sqlite3.Connection, token: int, demand: Demand, lease: timedelta
) -> tuple[Sequence[ClaimedDelivery], Sequence[UnreadableDelivery], Seen]:
    moment = clock(db)
    due, seen = _look(db, demand, moment)
    if demand.rate is not None and seen.ahead is not None:
        ahead = demand.rate.charged(seen.ahead, len(due))
        db.execute(sql("keep_pace"), (demand.subscription_id, moment + microseconds(ahead)))
        seen = replace(seen, ahead=ahead)
    return *lease_deliveries(db, token, due, lease, moment), seen


def _look(db: sqlite3.Connection, demand: Demand, moment: int) -> tuple[_Due, Seen]:
    """Return what a claim could take now: seq, subscription id and whether its lease had ended; and what it saw."""
    id, room, ahead = demand.subscription_id, max(0, demand.quota), None
    if demand.rate is not None:
        paces = db.execute(sql("pace"), (id,)).fetchall()
        ahead = timedelta(microseconds=paces[0][0] - moment if paces else 0)
        room = min(room, demand.rate.permits(ahead))
    left_off, held_up = None, False
    due: _Due
    if demand.ordered:
        due, left_off, held_up = _first_in_line(db, id, demand.after, room, moment)
    else:
        due = db.execute(sql("due_deliveries"), (id, moment, room)).fetchall()
    [(next_at,)] = db.execute(sql("next_delivery"), (id, moment)).fetchall()
    return due, Seen(room, left_off, held_up, ahead, until(next_at, moment))


def _first_in_line(db: sqlite3.Connection, id: int, key: str, room: int, moment: int) -> tuple[_Due, str | None, bool]:
    """Visit the lines behind `key`; return the first of each, if it may go, and the rest of what `Seen` wants."""
    [(begin,)] = db.execute(sql("first_position")).fetchall()
    due: list[tuple[Any, ...]] = []
    held_up = False
    for _ in range(LINES):
        if len(due) == room:
            break
        line = db.execute(sql("next_line"), (id, key)).fetchall()
        if not line:
            return due, None, held_up
        [(key, position, seq)] = line
        if begin is not None and position >= begin:
            held_up = True
        else:
            due += db.execute(sql("due_delivery"), (seq, id, moment)).fetchall()
    return due, key, held_up
