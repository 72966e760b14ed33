"""The counters by the minute, on both databases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    Delete,
    Row,
    ScalarSelect,
    Select,
    and_,
    cast,
    delete,
    func,
    literal,
    null,
    or_,
    select,
    true,
    union_all,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from typing_extensions import override

from ..service.histogram import Histogram
from .contract.throughput import Counted, Flow, Point, Series, Throughput, ThroughputReader
from .expressions import Later, Now
from .rollup import SUMMED, TIERS, begin, roll_up
from .tables import throughput
from .transactions import Transactions

__all__ = ["SqlThroughput", "write"]

_MICROSECOND = timedelta(microseconds=1)
_MINUTE = timedelta(minutes=1)
_IN_A_STATEMENT = 1000  # rows; a parameter of each column of each
_KEY = [column.name for column in throughput.primary_key]
_COUNTS = [throughput.c[name] for name in SUMMED]


class SqlThroughput(ThroughputReader):
    """`ThroughputReader` on SQLAlchemy Core."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._transactions = Transactions(engine)

    @override
    async def read(self, minutes: int) -> Throughput:
        async with self._transactions.read() as connection:
            rows = (await connection.execute(_sums(minutes, connection.dialect.name))).all()
        if not rows:
            return Throughput()
        latencies: dict[int, dict[int, int]] = {}
        for row in rows:
            if row.bucket is not None:
                latencies.setdefault(row.id, {})[row.bucket] = int(row.published)
        sums = [row for row in rows if row.bucket is None]
        first, now = min(row.first for row in sums), rows[0].now
        return Throughput(
            seconds=(now - first) / timedelta(seconds=1),
            flows={
                row.id: Flow(
                    published=int(row.published),
                    dispatched=int(row.dispatched),
                    delivered=int(row.delivered),
                    failed=int(row.failed),
                    dead=int(row.dead),
                    latency=Histogram(latencies.get(row.id)),
                )
                for row in sums
            },
        )

    @override
    async def series(self, subscription_id: int, length: timedelta, step: timedelta) -> Series:
        async with self._transactions.read() as connection:
            rows = (await connection.execute(_minutes(subscription_id, length + step))).all()
        now = rows[0].now
        first = begin(now, step) - length
        steps: dict[datetime, list[Row[Any]]] = {}
        for row in rows:
            if row.minute is not None and row.minute >= first:
                steps.setdefault(begin(row.minute, step), []).append(row)
        return Series(now=now, step=step, points=[_point(at, its) for at, its in sorted(steps.items())])

    @override
    async def roll_up(self, limit: int) -> int:
        taken = 0
        for tier in TIERS:
            while taken < limit:
                async with self._transactions.write() as connection:
                    page = await roll_up(connection, tier)
                if not page:
                    break
                taken += page
        return taken

    @override
    async def prune(self, keep: timedelta, limit: int) -> int:
        async with self._transactions.write() as connection:
            return (await connection.execute(_older(keep, limit))).rowcount


async def write(connection: AsyncConnection, counted: Sequence[Counted]) -> None:
    """
    Write counts, up to a thousand rows by one statement.

    Each replaces what its holder wrote before in the same minute, unless that is more: a repetition changes nothing,
    and neither does one that comes late.
    """
    make = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    for first in range(0, len(counted), _IN_A_STATEMENT):
        put = make(throughput).values([_row(each) for each in counted[first : first + _IN_A_STATEMENT]])
        new = {
            column.name: put.excluded[column.name] for column in (*_COUNTS, throughput.c.latency, throughput.c.backlog)
        }
        grown = and_(*(column <= put.excluded[column.name] for column in _COUNTS))
        await connection.execute(put.on_conflict_do_update(index_elements=_KEY, set_=new, where=grown))


def _row(counted: Counted) -> Mapping[str, Any]:
    return asdict(counted) | {"latency": {str(bucket): times for bucket, times in counted.latency.items()}}


def _minutes(subscription_id: int, length: timedelta) -> Select[*tuple[Any, ...]]:
    """Return the rows of a subscription since then, each with the time; one without a minute where there are none."""
    mine = throughput.c.subscription_id == subscription_id
    recent = and_(throughput.c.minute > _ago(length), throughput.c.minute <= _ago(timedelta(0)))
    rows = select(throughput).where(mine, recent).subquery()
    clock = select(Now().label("now")).subquery()
    return select(clock.c.now, rows).select_from(clock.outerjoin(rows, true()))


def _point(at: datetime, rows: Sequence[Row[Any]]) -> Point:
    latency: Counter[int] = Counter()
    for row in rows:
        latency.update({int(bucket): times for bucket, times in row.latency.items()})
    flow = Flow(**{column.name: sum(getattr(row, column.name) for row in rows) for column in _COUNTS})
    waited = [row.backlog for row in rows if row.backlog is not None]
    return Point(at, replace(flow, latency=Histogram(latency)), max(waited, default=None))


def _older(keep: timedelta, limit: int) -> Delete:
    """Return the deletion of the whole minutes in which the first `limit` rows are that are older."""
    old = throughput.c.minute < _ago(keep)
    oldest = select(throughput.c.minute).where(old).order_by(throughput.c.minute).limit(limit).subquery()
    upto = select(func.max(oldest.c.minute)).scalar_subquery()
    return delete(throughput).where(throughput.c.minute <= upto)


def _ago(age: timedelta) -> ScalarSelect[datetime]:
    """Return a moment as PostgreSQL looks it up in an index: a clock that is read for each row it would compare."""
    return select(Later(literal(-(age // _MICROSECOND), BigInteger))).scalar_subquery()


def _sums(minutes: int, dialect: str) -> Select[*tuple[Any, ...]]:
    """Return a row with the counts of each subscription, and one for each bucket with its number as `published`."""
    id, none = throughput.c.subscription_id, literal(0, BigInteger)
    anything = or_(*(column > 0 for column in _COUNTS))  # a backlog alone is no count
    since = throughput.c.minute > _ago((minutes + 1) * _MINUTE)
    recent = and_(since, throughput.c.minute <= _ago(timedelta(0)), anything)
    sums = select(
        id.label("id"),
        cast(null(), BigInteger).label("bucket"),
        func.min(throughput.c.minute).label("first"),
        *(func.sum(column).label(column.name) for column in _COUNTS),
    )
    each = func.json_each_text if dialect == "postgresql" else func.json_each
    entry = each(throughput.c.latency).table_valued("key", "value", joins_implicitly=True)
    bucket, times = cast(entry.c.key, BigInteger), cast(entry.c.value, BigInteger)
    buckets = select(id, bucket, func.min(throughput.c.minute), func.sum(times), none, none, none, none)
    both = union_all(
        sums.where(recent).group_by(id), buckets.select_from(throughput, entry).where(recent).group_by(id, bucket)
    ).subquery()
    return select(both, Now().label("now"))
