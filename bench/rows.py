"""Rows of ours in bulk, as the bus would have left them, written by the server: a million publishes take longer."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import asyncpg

__all__ = ["PER_EVENT", "add_backlog", "add_history", "add_recorded", "add_scheduled"]

PER_EVENT = 10
"""Deliveries of each event that `add_recorded()` records: one half of them in runs, the other as rows."""

STEP = 100_000  # rows in one transaction

_HISTORY = """
WITH e AS (
    INSERT INTO events (id, source, type, data, created_at)
    SELECT 'h' || n, '/history', 'bench.event', repeat('x', 100)::bytea, clock_timestamp() - interval '1 hour'
    FROM generate_series($1::int, $2::int) n RETURNING seq)
INSERT INTO runs (first, last, seqs, subscriptions, settled_at)
SELECT min(seq), max(seq), range_agg(int8range(seq, seq, '[]')), '{1}', clock_timestamp() - interval '1 hour'
FROM e GROUP BY seq >> 8
"""
_BACKLOG = """
WITH e AS (
    INSERT INTO events (id, source, type, data, created_at)
    SELECT 'b' || n, '/backlog', 'bench.event', repeat('x', 100)::bytea, clock_timestamp()
    FROM generate_series($1::int, $2::int) n RETURNING seq)
INSERT INTO dispatch (event_seq) SELECT seq FROM e ORDER BY seq
"""

_SCHEDULED = """
WITH e AS (
    INSERT INTO events (id, source, type, data, created_at)
    SELECT 's' || n, '/scheduled', 'bench.event', repeat('x', 100)::bytea, clock_timestamp()
    FROM generate_series($1::int, $2::int) n RETURNING seq)
INSERT INTO scheduled (event_seq, due_at)
SELECT seq, clock_timestamp() + interval '1 year' + seq * interval '1 second' FROM e
"""

# Of ten subscriptions the first five have what is delivered at once in runs, the others have rows: of a thousand
# deliveries of the last one 990 succeeded at once, five at the second attempt, two wait for it, two are dead and one is
# cancelled. One event of a thousand is of a rare type; twenty are a trace.
_RECORDED = """
WITH n AS MATERIALIZED (
    SELECT n, $4::timestamptz + (n - $3::int) * ($5::interval / $3::int) AS at
    FROM generate_series($1::int, $2::int) n),
e AS (
    INSERT INTO events (id, source, type, subject, extensions, data, created_at)
    SELECT 'r' || n, '/recorded/' || n % 20,
        CASE WHEN n % 100000 = 7 THEN 'bench.rare' ELSE 'bench.event.' || n % 8 END, 'order/' || n % 100000,
        CASE WHEN n <= 20 THEN json_build_object('correlationid', 'trace', 'causationid', 'r' || n / 2) END,
        repeat('x', 100)::bytea, at
    FROM n RETURNING seq, created_at),
r AS (
    INSERT INTO runs (first, last, seqs, subscriptions, settled_at)
    SELECT min(seq), max(seq), range_agg(int8range(seq, seq, '[]')), '{1,2,3,4,5}', max(created_at)
    FROM e GROUP BY seq >> 8),
d AS (
    INSERT INTO deliveries (event_seq, subscription_id, state, attempts, due_at, last_error, updated_at)
    SELECT seq, s, v.state, v.attempts,
        CASE WHEN v.state = 'pending' THEN $4::timestamptz + interval '1 day' END,
        CASE WHEN v.attempts > 1 THEN 'ConnectionError: connection refused' END, created_at
    FROM e CROSS JOIN generate_series(6, 10) s CROSS JOIN LATERAL (
        SELECT CASE WHEN s < 10 THEN 'delivered' WHEN seq % 1000 IN (1, 2) THEN 'pending'
                    WHEN seq % 1000 IN (3, 4) THEN 'dead' WHEN seq % 1000 = 5 THEN 'cancelled' ELSE 'delivered' END,
               CASE WHEN s = 10 AND seq % 1000 BETWEEN 1 AND 10 THEN 2 ELSE 1 END
    ) v (state, attempts)
    RETURNING event_seq, subscription_id, attempts, state, updated_at)
INSERT INTO attempts (event_seq, subscription_id, number, at, duration_us, error)
SELECT event_seq, subscription_id, number, updated_at, 1500,
    CASE WHEN number = 1 OR state <> 'delivered' THEN 'ConnectionError: connection refused' END
FROM d CROSS JOIN LATERAL generate_series(1, attempts) number WHERE attempts > 1
"""

# As the pruner leaves them: an hour by the minute, then rows of five minutes, then those of an hour; three instances.
_COUNTED = """
INSERT INTO throughput
    (minute, subscription_id, holder, published, delivered, failed, dead, latency, dispatched, backlog)
SELECT minute, subscription, holder, 60, 60, 1, 0,
    '{"0": 10, "1": 5, "2": 5, "3": 5, "4": 5, "5": 5, "8": 5, "12": 5, "16": 5, "20": 5, "24": 5}', 60,
    CASE WHEN subscription = 0 THEN 100 END
FROM (
    SELECT date_trunc('minute', clock_timestamp()) - n * interval '1 minute', h
    FROM generate_series(0, 59) n, generate_series(1, 3) h
    UNION ALL
    SELECT date_bin('5 minutes', clock_timestamp() - interval '1 hour', 'epoch') - n * interval '5 minutes', -5
    FROM generate_series(0, 71) n
    UNION ALL SELECT date_trunc('hour', clock_timestamp() - interval '7 hours') - n * interval '1 hour', -60
    FROM generate_series(0, 160) n
) AS t (minute, holder) CROSS JOIN generate_series(0, $1::int) subscription
ON CONFLICT DO NOTHING
"""


async def add_recorded(dsn: str, deliveries: int, *, days: int = 7) -> None:
    """
    Record `deliveries` deliveries of the last days, `PER_EVENT` of each event, with the counters of that time.

    They are of the first ten subscriptions of the deployment, by their ids.
    """
    connection = await asyncpg.connect(dsn)
    events, now, span = max(deliveries // PER_EVENT, 1), datetime.now(UTC), timedelta(days=days)
    for start in range(1, events + 1, STEP):
        await connection.execute(_RECORDED, start, min(start + STEP - 1, events), events, now, span)
    await connection.execute(_COUNTED, PER_EVENT)
    await connection.execute("VACUUM ANALYZE")
    await connection.close()


async def add_history(dsn: str, events: int) -> None:
    """Record `events` events that were delivered an hour ago."""
    await _add(dsn, _HISTORY, events)


async def add_backlog(dsn: str, events: int) -> None:
    """Record `events` events that wait to be dispatched."""
    await _add(dsn, _BACKLOG, events)


async def add_scheduled(dsn: str, events: int) -> None:
    """Record `events` events that are due in a year."""
    await _add(dsn, _SCHEDULED, events)


async def _add(dsn: str, sql: str, events: int) -> None:
    connection = await asyncpg.connect(dsn)
    for start in range(1, events + 1, STEP):
        await connection.execute(sql, start, min(start + STEP - 1, events))
    await connection.execute("VACUUM ANALYZE")  # as autovacuum does meanwhile, where rows come one by one
    await connection.close()
