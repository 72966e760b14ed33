"""The rollup of the counters: rows of minutes become rows of five minutes, and those rows of hours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Row, and_, delete, insert, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from .expressions import Now
from .tables import throughput

__all__ = ["SUMMED", "TIERS", "Tier", "begin", "roll_up"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MINUTE = timedelta(minutes=1)
_AT_ONCE = 300  # rows in one transaction, about: they are added up in the event loop
SUMMED = ("published", "dispatched", "delivered", "failed", "dead")
"""The columns that are added up."""


class Tier(NamedTuple):
    """
    How old rows are when they are merged, and how long each of the merged ones is.

    A merged row begins at a multiple of its width since 1970, and its holder is minus the width in minutes, which no
    instance has: so what is merged is told from what is not, and nothing is counted twice.
    """

    age: timedelta
    width: timedelta

    @property
    def holder(self) -> int:
        """The holder of its rows."""
        return -(self.width // _MINUTE)


TIERS = (
    Tier(timedelta(hours=7), timedelta(hours=1)),
    Tier(timedelta(hours=1), timedelta(minutes=5)),
)
"""The oldest first. Rows are as fine as the plots of 15 minutes, 6 hours and 7 days need them."""


async def roll_up(connection: AsyncConnection, tier: Tier) -> int:
    """
    Merge the oldest rows of a tier, one page in the current transaction; return how many rows it took.

    Another instance that does the same at the same time waits, and finds them gone.
    """
    now: datetime = await connection.scalar(select(Now()))  # type: ignore[assignment]  # it always has one
    column, id = throughput.c.minute, throughput.c.subscription_id
    finer = and_(column < begin(now - tier.age, tier.width), throughput.c.holder > tier.holder)
    oldest = await connection.scalar(select(column).where(finer).order_by(column).limit(1))
    if oldest is None:
        return 0
    at = begin(oldest, tier.width)
    within = and_(column >= at, column < at + tier.width)
    some = select(id).where(within, finer).distinct().order_by(id).limit(_AT_ONCE // (tier.width // _MINUTE))
    ids = (await connection.scalars(some)).all()
    theirs = select(throughput).where(within, id.in_(ids), throughput.c.holder >= tier.holder)
    rows = (await connection.execute(theirs.order_by(*throughput.primary_key).with_for_update())).all()
    if not rows:
        return 0
    keys = tuple_(*throughput.primary_key)
    await connection.execute(delete(throughput).where(keys.in_([(row.minute, row[1], row.holder) for row in rows])))
    of: dict[int, list[Row[Any]]] = {}
    for row in rows:
        of.setdefault(row.subscription_id, []).append(row)
    merged = [{"minute": at, "holder": tier.holder, **_merged(each)} for each in of.values()]
    await connection.execute(insert(throughput), merged)
    return len(rows)


def begin(moment: datetime, width: timedelta) -> datetime:
    """Return when the step of that width begins that a moment is in."""
    return moment - (moment - _EPOCH) % width


def _merged(rows: Sequence[Row[Any]]) -> Mapping[str, Any]:
    latency: Counter[str] = Counter()
    for row in rows:
        latency.update(row.latency)
    return {
        "subscription_id": rows[0].subscription_id,
        **{name: sum(getattr(row, name) for row in rows) for name in SUMMED},
        "latency": dict(latency),
        "backlog": max((row.backlog for row in rows if row.backlog is not None), default=None),
    }
