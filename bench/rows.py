"""Rows of ours in bulk, as the bus would have left them, written by the server: a million publishes take longer."""

from __future__ import annotations

import asyncpg

__all__ = ["add_backlog", "add_history", "add_scheduled"]

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
