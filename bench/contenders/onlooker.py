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
