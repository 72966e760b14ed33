"""Claims of subscriptions that have an order or a rate, on SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from ..contract.claims import DeliveryClaim, RegulatedRequest
from ..regulation import LINES, RegulatedScan
from .rows import EPOCH, MICROSECOND, LeasedDeliveries, clock, lease_deliveries, microseconds, sql, transaction, until

__all__ = ["claim_regulated"]

_Due = Sequence[tuple[Any, ...]]


def claim_regulated(
    db: sqlite3.Connection, token: int, request: RegulatedRequest, lease: timedelta, weight: int
) -> DeliveryClaim:
    """Lease deliveries of one subscription that are due, and whose turn it is; only read if there is none."""
    due, scan = _look(db, request, clock(db))
    leased = LeasedDeliveries()
    if due:
        leased, scan = transaction(db, _claim, token, request, lease, weight)
    return scan.claim(request, token, leased.claimed, leased.unreadable)


def _claim(
    db: sqlite3.Connection, token: int, request: RegulatedRequest, lease: timedelta, weight: int
) -> tuple[LeasedDeliveries, RegulatedScan]:
    moment = clock(db)
    due, scan = _look(db, request, moment)
    leased = lease_deliveries(db, token, due, lease, moment, weight)
    number = len(leased.claimed) + len(leased.unreadable)
    if leased.cut:
        scan = replace(scan, room=number, cut=True, left_off=None)
    if request.rate is not None and scan.ahead is not None:
        ahead = request.rate.charged(scan.ahead, number)
        db.execute(sql("keep_pace"), (request.subscription_id, moment + microseconds(ahead)))
        scan = replace(scan, ahead=ahead)
    return leased, scan


def _look(db: sqlite3.Connection, request: RegulatedRequest, moment: int) -> tuple[_Due, RegulatedScan]:
    """Return what a claim could take now: seq, subscription id and whether its lease had ended; and what it saw."""
    id, room, ahead = request.subscription_id, max(0, request.quota), None
    if request.rate is not None:
        paces = db.execute(sql("pace"), (id,)).fetchall()
        ahead = request.rate.believed(timedelta(microseconds=paces[0][0] - moment if paces else 0))
        room = min(room, request.rate.permits(ahead))
    due: _Due = db.execute(sql("due_deliveries"), (id, moment, 1 if request.ordered else room)).fetchall()
    if request.ordered and due:
        due, left_off, held_up, next_at = _first_in_line(db, id, request.after, room, moment)
    else:
        left_off, held_up = None, False
        [(next_at,)] = db.execute(sql("next_delivery"), (id, moment)).fetchall()
    return due, RegulatedScan(room, left_off, held_up, ahead, until(next_at, moment), now=EPOCH + moment * MICROSECOND)


def _first_in_line(
    db: sqlite3.Connection, id: int, key: str, room: int, moment: int
) -> tuple[_Due, str | None, bool, int | None]:
    """
    Visit the lines behind `key`; return the first of each, if it may go, and the rest of what `RegulatedScan` wants.

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
