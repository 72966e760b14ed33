"""Parts of every transaction on SQLite: statements, clock, rows."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from importlib.resources import files
from time import monotonic
from typing import Any, NamedTuple, TypeVar

import orjson

from ..contract.claims import UNREADABLE, ClaimedDelivery, ExpiredDeferral, UnreadableDelivery
from ..event_rows import check_size, read_event

__all__ = [
    "EPOCH",
    "MICROSECOND",
    "LeasedDeliveries",
    "ago",
    "as_json",
    "check_text",
    "clock",
    "fault",
    "lease_deliveries",
    "microseconds",
    "sharing",
    "sql",
    "time_of",
    "transaction",
    "until",
]

R = TypeVar("R")


class LeasedDeliveries(NamedTuple):
    """The rows that were leased; `cut` if more was due, but weighed too much."""

    claimed: Sequence[ClaimedDelivery] = ()
    unreadable: Sequence[UnreadableDelivery] = ()
    cut: bool = False


_shared: set[int] = set()  # ids of the connections whose transaction is shared now

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


def transaction(db: sqlite3.Connection, function: Callable[..., R], *args: Any) -> R:
    """Run `function` as one transaction that has the write lock from its start, or as a part of a shared one."""
    if id(db) in _shared:
        return function(db, *args)
    db.execute("BEGIN IMMEDIATE")
    try:
        result = function(db, *args)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # SQLite itself rolls back on some errors, such as a full disk
            db.execute("ROLLBACK")
        raise
    return result


@contextlib.contextmanager
def sharing(db: sqlite3.Connection) -> Iterator[None]:
    """Have each `transaction()` in here be a part of the one that the caller has begun and will end."""
    _shared.add(id(db))
    try:
        yield
    finally:
        _shared.discard(id(db))


@cache
def sql(name: str) -> str:
    """Return the statement in `sql/<name>.sql`."""
    return (files(__package__) / "sql" / f"{name}.sql").read_text(encoding="utf-8")


def clock(db: sqlite3.Connection) -> int:
    """Return the file's clock: microseconds since 1970."""
    [(instant,)] = db.execute(sql("now")).fetchall()
    return int(instant)


def microseconds(duration: timedelta) -> int:
    """Return `duration` as it is stored."""
    return duration // MICROSECOND


def ago(instant: int, now: int) -> float:
    """Return on the monotonic clock what was at `instant` on the file's clock, which says `now`."""
    return monotonic() - (now - instant) / 1_000_000


def as_json(value: object) -> str:
    """Return a parameter that a statement takes apart with `json_each()`."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


def until(instant: int | None, moment: int) -> timedelta | None:
    """Return the time from `moment` to `instant`."""
    return None if instant is None else timedelta(microseconds=instant - moment)


@lru_cache(maxsize=4096)
def time_of(instant: int) -> datetime:
    """Return the time in a column: events of one commit share it."""
    return EPOCH + timedelta(microseconds=instant)


def check_text(error: Exception) -> None:
    """Re-raise errors of the database, except that a text is not UTF-8, which has the same class."""
    if isinstance(error, sqlite3.Error) and "decode" not in str(error):
        raise error


def fault(error: Exception) -> str:
    """Return why an event cannot be read."""
    return f"{type(error).__name__}: {error}"


def lease_deliveries(
    db: sqlite3.Connection, token: int, due: Sequence[tuple[Any, ...]], lease: timedelta, moment: int, weight: int
) -> LeasedDeliveries:
    """Lease the deliveries in `due`, which are rows of `due_deliveries.sql`, until they weigh more than `weight`."""
    claimed: list[ClaimedDelivery] = []
    unreadable: list[UnreadableDelivery] = []
    taken, cut = 0, False
    for seq, id, suspect, waited in due:
        try:
            rows = db.execute(sql("claimed_delivery"), (waited, moment, seq, id)).fetchall()
            for attempt, refusal, age, size, missing, recorded, type, source, event_id, subject, time, *rest in rows:
                cut = bool(claimed or unreadable) and taken + size > weight
                if not cut:
                    check_size(size)
                    event = read_event(type, source, event_id, subject, time_of(time), *rest)
                    late, answer = (age or 0) * MICROSECOND, _expired_deferral(waited, refusal)
                    left = size if missing else 0
                    since = monotonic() - (moment - recorded) / 1_000_000
                    claimed.append(
                        ClaimedDelivery(seq, id, attempt, bool(suspect), event, late, answer, left, recorded=since)
                    )
                    taken += size
        except (*UNREADABLE, sqlite3.OperationalError) as error:
            check_text(error)
            [(attempt,)] = db.execute(sql("attempts"), (seq, id)).fetchall()
            unreadable.append(UnreadableDelivery(seq, id, attempt + 1, fault(error)))
        if cut:
            break
    ends = moment + microseconds(lease)
    both: list[ClaimedDelivery | UnreadableDelivery] = [*claimed, *unreadable]
    db.executemany(sql("claim_delivery"), [(ends, token, moment, each.seq, each.subscription_id) for each in both])
    return LeasedDeliveries(claimed, unreadable, cut)


def _expired_deferral(waited: int | None, refusal: str | None) -> ExpiredDeferral | None:
    return None if waited is None else ExpiredDeferral(waited * MICROSECOND, refusal)
