"""An engine by itself, for tests that look at a database beside a store."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncEngine

from runner.config.dsn import Dsn
from runner.storage.postgres.database import PostgresDatabase
from runner.storage.sqlite.database import SqliteDatabase

__all__ = ["open_engine"]


def open_engine(dsn: Dsn, *, schema: str | None = None, pool: int = 5, pgbouncer: bool = False) -> AsyncEngine:
    """Return the engine that a store at `dsn` would use; nothing connects yet."""
    if dsn.path is not None:
        return SqliteDatabase(dsn.path, pool=pool).engine
    return PostgresDatabase(dsn, schema=schema, pool=pool, pgbouncer=pgbouncer).engine
