"""Transactions outside the hot paths, on both databases."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from .errors import mapped_errors

__all__ = ["Transactions"]


class Transactions:
    """
    Transactions on an engine; errors of the drivers come out as a `StorageError`.

    Attributes:
        dialect: `postgresql` or `sqlite`.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self.dialect = engine.dialect.name
        self._writing = engine
        # On SQLite it takes no lock that a writer would have to wait for.
        self._reading = engine.execution_options(sqlite_begin="DEFERRED")

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Begin a transaction that only reads."""
        with mapped_errors():
            async with self._reading.connect() as connection:
                yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """Begin a transaction that commits at the end, and undoes all of it when it fails."""
        with mapped_errors():
            async with self._writing.begin() as connection:
                yield connection
