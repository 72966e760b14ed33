"""One connection of the benchmark's own, that looks on."""

from __future__ import annotations

import sqlite3

import asyncpg

__all__ = ["Onlooker"]


class Onlooker:
    """Asks a database how things stand, over a connection that is opened when it is first needed."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._postgres: asyncpg.Connection | None = None

    async def ask(self, sql: str) -> int:
        """Return the single value of `sql`."""
        if self._dsn.startswith("sqlite:///"):
            with sqlite3.connect(self._dsn.removeprefix("sqlite:///")) as file:
                return int(file.execute(sql).fetchone()[0])
        if self._postgres is None:
            self._postgres = await asyncpg.connect(self._dsn)
        return int(await self._postgres.fetchval(sql))

    async def written(self) -> int | None:
        """Return how many bytes of WAL the server has written; None where no server writes any."""
        if self._dsn.startswith("sqlite:///"):
            return None
        return await self.ask("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint")

    async def size(self) -> int:
        """Return the bytes that the database takes on disk."""
        if self._dsn.startswith("sqlite:///"):
            return await self.ask("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")
        return await self.ask("SELECT pg_database_size(current_database())")
