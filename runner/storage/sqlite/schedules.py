"""Schedules on SQLite: the functions of every tick, each one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import orjson

from ...policies.ticking import Standing
from ..contract.schedules import Due, DueSchedule, Fired, Firing, Occurrence
from .rows import EPOCH, clock, microseconds, sql, time_of, transaction, until

__all__ = ["due_schedules", "fire_schedules"]


def due_schedules(db: sqlite3.Connection, limit: int) -> Due:
    """Return at most `limit` schedules that are due."""
    now = clock(db)
    rows = db.execute(sql("due_schedules"), (now, limit)).fetchall()
    [(following,)] = db.execute(sql("next_schedule"), (now,)).fetchall()
    due = [
        DueSchedule(id, revision, name, orjson.loads(spec), _standing(tick, busy, queued_until))
        for id, revision, name, spec, tick, busy, queued_until in rows
    ]
    return Due(due, time_of(now), until(following, now), len(due) == limit)


def fire_schedules(db: sqlite3.Connection, firings: Sequence[Firing]) -> Fired:
    """Record the occurrences of the schedules that are as they were seen."""
    return transaction(db, _fire, firings)


def _fire(db: sqlite3.Connection, firings: Sequence[Firing]) -> Fired:
    now, ids, events = clock(db), [], 0
    for each in firings:
        seen = each.seen
        last = each.occurrences[-1].tick if each.occurrences else None
        moved = (each.tick, each.look_at, last, each.queued_until)
        values = (*map(_stored, moved), each.missed, each.skipped)
        if db.execute(
            sql("move_schedule"), (*values, seen.id, seen.revision, _stored(seen.standing.tick), now)
        ).rowcount:
            ids.append(seen.id)
            events += sum([_record(db, seen.id, occurrence, now) for occurrence in each.occurrences])
            db.execute(sql("forget_occurrences"), (seen.id, _stored(each.forget)))
    return Fired(frozenset(ids), events)


def _record(db: sqlite3.Connection, id: int, occurrence: Occurrence, now: int) -> bool:
    """Record one occurrence with its event; return whether that is new."""
    tick, event = _stored(occurrence.tick), occurrence.event
    if not db.execute(sql("record_occurrence"), (id, tick, now)).rowcount:
        return False
    content = (event.type, event.subject, tick, event.datacontenttype, None, event.data, None)
    inserted = db.execute(sql("insert_event"), (event.source, event.id, *content, now))
    if not inserted.rowcount:
        return False
    seq = inserted.lastrowid
    position = db.execute(sql("queue"), (seq,)).lastrowid
    db.execute(sql("note_occurrence"), (seq, id, tick))
    db.execute(sql("note_last_occurrence"), (seq, position, id))
    return True


def _standing(tick: int, busy: Any, queued_until: int | None) -> Standing:
    return Standing(time_of(tick), bool(busy), None if queued_until is None else time_of(queued_until))


def _stored(instant: datetime | None) -> int | None:
    return None if instant is None else microseconds(instant - EPOCH)
