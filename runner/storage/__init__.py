"""The store: opened from a DSN, the same in shape on PostgreSQL and SQLite."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import SchemaMismatch

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from ..config.dsn import Dsn
    from .contract.archive import Archive
    from .contract.depths import DepthReader
    from .contract.overview import Overview
    from .contract.records import Records
    from .contract.schedules import Schedules
    from .postgres.store import PostgresStore
    from .sqlite.store import SqliteStore

__all__ = ["Storage", "open_storage"]


@dataclass(frozen=True, slots=True)
class Storage:
    """
    One store, by what is asked of it.

    Attributes:
        store: takes events, gives out work, knows the subscriptions.
        records: what people look at.
        archive: forgets what is over.
        overview: what sums a deployment up.
        schedules: what is published at regular times.
        depths: how much waits.
    """

    engine: AsyncEngine
    store: PostgresStore | SqliteStore
    records: Records
    archive: Archive
    overview: Overview
    schedules: Schedules
    depths: DepthReader

    @property
    def schema(self) -> str | None:
        """PostgreSQL schema of the tables; None until the first connection has found it, and on SQLite."""
        from .home import home_of

        return home_of(self.engine).schema

    async def migrate(self) -> Sequence[str]:
        """Bring the tables up to date; return the revisions that were applied."""
        from .migrate import migrate

        return await migrate(self.engine)

    async def take(self, deployment_id: str, *, migrate: bool) -> Sequence[str]:
        """
        Make sure that the tables are there and belong to `deployment_id`; return the revisions that were applied.

        Nobody else's tables are touched: the owner is asked first.

        Raises:
            ForeignDeployment: they belong to another.
            SchemaMismatch: they are not of this version, and `migrate` is false.
        """
        from .migrate import status

        state = await status(self.engine)
        if state.current is not None:
            await self.store.adopt(deployment_id)
        if not state.pending:
            return ()
        if not migrate:
            raise SchemaMismatch(
                f"the tables are at revision {state.current or 'none'}, this version needs {state.head}; "
                "run `runner migrate`, or set storage.migrate: true"
            )
        applied = await self.migrate()
        await self.store.adopt(deployment_id)
        return applied

    async def at_head(self) -> bool:
        """
        Return whether the tables are those of this version, or of a later one beside which it goes on.

        Raises:
            StorageError: the store cannot be reached, or the tables are nobody's.
        """
        from .migrate import status

        try:
            return not (await status(self.engine)).pending
        except SchemaMismatch:
            return True

    async def concerns(self) -> Sequence[str]:
        """Return what of the database lets the bus do less than it could, with the cure of each."""
        if self.engine.dialect.name == "sqlite":
            return ()
        from .postgres.concerns import concerns

        return await concerns(self.engine)

    async def close(self) -> None:
        """Close every connection, at most in five seconds: one to a dead peer would take its time."""
        await self.store.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                await self.engine.dispose()


def open_storage(dsn: Dsn, *, schema: str | None = None, pool: int = 5, pgbouncer: bool = False) -> Storage:
    """Return the store at `dsn`; nothing connects yet. The arguments are those of `open_engine()`."""
    from .archive import SqlArchive
    from .depths import SqlDepths
    from .engine import open_engine
    from .overview import SqlOverview
    from .records import SqlRecords
    from .schedules import SqlSchedules

    engine = open_engine(dsn, schema=schema, pool=max(pool, 2), pgbouncer=pgbouncer)
    store: PostgresStore | SqliteStore
    if dsn.scheme == "sqlite":
        from .sqlite.store import SqliteStore

        store = SqliteStore(engine)
    else:
        from .postgres.store import PostgresStore

        store = PostgresStore(engine, connections=max(1, pool - 1), pgbouncer=pgbouncer)
    return Storage(
        engine,
        store,
        SqlRecords(engine),
        SqlArchive(engine),
        SqlOverview(engine),
        SqlSchedules(engine),
        SqlDepths(engine),
    )
