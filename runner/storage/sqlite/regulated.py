"""Claims of subscriptions that have an order or a rate, on SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from ..contract.claims import DeliveryClaim, Demand
from ..regulation import LINES, Seen
from .rows import LeasedDeliveries, clock, lease_deliveries, microseconds, sql, transaction, until

__all__ = ["claim_regulated"]

_Due = Sequence[tuple[Any, ...]]


def claim_regulated(db: sqlite3.Connection, token: int, demand: Demand, lease: timedelta, weight: int) -> DeliveryClaim:
    """Lease deliveries of one subscription that are due, and whose turn it is; only read if there is none."""
    due, seen = _look(db, demand, clock(db))
    leased = LeasedDeliveries()
    if due:
        leased, seen = transaction(db, _claim, token, demand, lease, weight)
    return seen.claim(demand, token, leased.claimed, leased.unreadable)


def _claim(
    db: sqlite3.Connection, token: int, demand: Demand, lease: timedelta, weight: int
) -> tuple[LeasedDeliveries, Seen]:
    moment = clock(db)
    due, seen = _look(db, demand, moment)
    leased = lease_deliveries(db, token, due, lease, moment, weight)
    number = len(leased.claimed) + len(leased.unreadable)
    if leased.cut:
        seen = replace(seen, room=number, cut=True, left_off=None)
    if demand.rate is not None and seen.ahead is not None:
        ahead = demand.rate.charged(seen.ahead, number)
        db.execute(sql("keep_pace"), (demand.subscription_id, moment + microseconds(ahead)))
        seen = replace(seen, ahead=ahead)
    return leased, seen


def _look(db: sqlite3.Connection, demand: Demand, moment: int) -> tuple[_Due, Seen]:
    """Return what a claim could take now: seq, subscription id and whether its lease had ended; and what it saw."""
    id, room, ahead = demand.subscription_id, max(0, demand.quota), None
    if demand.rate is not None:
        paces = db.execute(sql("pace"), (id,)).fetchall()
        ahead = demand.rate.believed(timedelta(microseconds=paces[0][0] - moment if paces else 0))
        room = min(room, demand.rate.permits(ahead))
    due: _Due = db.execute(sql("due_deliveries"), (id, moment, 1 if demand.ordered else room)).fetchall()
    if demand.ordered and due:
        due, left_off, held_up, next_at = _first_in_line(db, id, demand.after, room, moment)
    else:
        left_off, held_up = None, False
        [(next_at,)] = db.execute(sql("next_delivery"), (id, moment)).fetchall()
    return due, Seen(room, left_off, held_up, ahead, until(next_at, moment))


def _first_in_line(
    db: sqlite3.Connection, id: int, key: str, room: int, moment: int
) -> tuple[_Due, str | None, bool, int | None]:
    """
    Visit the lines behind `key`; return the first of each, if it may go, and the rest of what `Seen` wants.

    Of the lines only what stands first counts: another one may fall due as often as it likes.
    """
    [(begin,)] = db.execute(sql("first_position")).fetchall()
    due: list[tuple[Any, ...]] = []
    held_up, next_at = False, None
    for _ in range(LINES):
        if len(due) == room:
            break
        line = db.execute(sql("next_line"), (id, key)).fetchall()
        if not line:
            return due, None, held_up, next_at
        [(key, position, seq)] = line
        if begin is not None and position >= begin:
            held_up = True
        else:
            for *row, due_at in db.execute(sql("first_delivery"), (seq, id)).fetchall():
                if due_at <= moment:
                    due.append(tuple(row))
                elif next_at is None or due_at < next_at:
                    next_at = due_at
    return due, key, held_up, next_at
