"""A look into the store past the product, the same for both: one snapshot, and no lock for longer than that takes."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import asyncpg

__all__ = ["audit", "look", "sqlite_path"]

Query = Callable[[str], Awaitable[Sequence[Any]]]

# Every change of a delivery that had been final, and a row and a run for the same one, whichever came first; nobody
# retries by hand here, but in cases that take triggers away.
_AUDIT_POSTGRES = """
CREATE TABLE IF NOT EXISTS chaos_rewritten (event_seq bigint, subscription_id int);
CREATE OR REPLACE FUNCTION chaos_note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO public.chaos_rewritten VALUES (OLD.event_seq, OLD.subscription_id); RETURN NULL; END $$;
CREATE OR REPLACE TRIGGER chaos_note AFTER UPDATE ON deliveries FOR EACH ROW
    WHEN (OLD.state IN ('delivered', 'dead', 'cancelled')) EXECUTE FUNCTION chaos_note();
CREATE OR REPLACE FUNCTION chaos_again() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.chaos_rewritten SELECT NEW.event_seq, NEW.subscription_id FROM public.runs r
    WHERE r.first BETWEEN (NEW.event_seq & -256) AND NEW.event_seq AND r.seqs @> NEW.event_seq
        AND NEW.subscription_id = ANY (r.subscriptions);
    RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER chaos_again AFTER INSERT ON deliveries FOR EACH ROW EXECUTE FUNCTION chaos_again();
CREATE OR REPLACE FUNCTION chaos_run() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.chaos_rewritten SELECT d.event_seq, d.subscription_id FROM public.deliveries d
    WHERE d.event_seq BETWEEN NEW.first AND NEW.last AND NEW.seqs @> d.event_seq
        AND d.subscription_id = ANY (NEW.subscriptions);
    RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER chaos_run AFTER INSERT ON runs FOR EACH ROW EXECUTE FUNCTION chaos_run();
"""
_AUDIT_SQLITE = """
CREATE TABLE IF NOT EXISTS chaos_rewritten (event_seq bigint, subscription_id int);
CREATE TRIGGER IF NOT EXISTS chaos_note AFTER UPDATE ON deliveries
    WHEN OLD.state IN ('delivered', 'dead', 'cancelled')
    BEGIN INSERT INTO chaos_rewritten VALUES (OLD.event_seq, OLD.subscription_id); END;
CREATE TRIGGER IF NOT EXISTS chaos_again AFTER INSERT ON deliveries BEGIN
    INSERT INTO chaos_rewritten SELECT NEW.event_seq, NEW.subscription_id FROM runs r JOIN json_each(r.seqs) p
    WHERE r.first BETWEEN (NEW.event_seq & -256) AND NEW.event_seq
        AND NEW.event_seq BETWEEN json_extract(p.value, '$[0]') AND json_extract(p.value, '$[1]')
        AND EXISTS (SELECT 1 FROM json_each(r.subscriptions) s WHERE s.value = NEW.subscription_id);
END;
CREATE TRIGGER IF NOT EXISTS chaos_run AFTER INSERT ON runs BEGIN
    INSERT INTO chaos_rewritten SELECT d.event_seq, d.subscription_id FROM json_each(NEW.seqs) p
    JOIN deliveries d ON d.event_seq BETWEEN json_extract(p.value, '$[0]') AND json_extract(p.value, '$[1]')
    WHERE EXISTS (SELECT 1 FROM json_each(NEW.subscriptions) s WHERE s.value = d.subscription_id);
END;
"""


def sqlite_path(dsn: str) -> str | None:
    """Return the file of a SQLite store, None for PostgreSQL."""
    return dsn.removeprefix("sqlite:///") if dsn.startswith("sqlite:///") else None


@contextlib.asynccontextmanager
async def look(dsn: str) -> AsyncIterator[Query]:
    """Run queries on one snapshot: or a row may be seen twice or not at all on its way from one table to another."""
    path = sqlite_path(dsn)
    if path is not None:
        connection = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)

        async def rows(query: str) -> Sequence[Any]:
            return await asyncio.to_thread(lambda: connection.execute(query).fetchall())

        try:
            connection.execute("BEGIN")
            yield rows
        except sqlite3.OperationalError as error:  # locked, or not readable now
            raise OSError(str(error)) from error
        finally:
            connection.close()
        return
    session = await asyncpg.connect(dsn, timeout=5)
    try:
        async with session.transaction(isolation="repeatable_read"):
            yield session.fetch
    finally:
        await session.close()


async def audit(dsn: str) -> None:
    """Have the store note every final delivery that is changed, in `chaos_rewritten`; the tables must be there."""
    path = sqlite_path(dsn)
    if path is not None:
        with contextlib.closing(sqlite3.connect(path, timeout=5)) as connection:
            connection.executescript(_AUDIT_SQLITE)
        return
    session = await asyncpg.connect(dsn, timeout=5)
    await session.execute(_AUDIT_POSTGRES)
    await session.close()
