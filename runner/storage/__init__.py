"""The store: opened from a DSN, the same in shape on PostgreSQL and SQLite."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from ..errors import SchemaMismatch
from .standing import HEAD, check_owner

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from ..config.dsn import Dsn
    from .contract.archive import Archive
    from .contract.audit import Audit
    from .contract.corrections import Corrections
    from .contract.depths import DepthReader
    from .contract.events import EventStore
    from .contract.overview import Overview
    from .contract.queue import WorkQueue
    from .contract.records import Records
    from .contract.registry import Registered, Registry
    from .contract.schedules import Due, Fired, Firing, Schedules
    from .contract.throughput import ThroughputReader
    from .home import Home
    from .standing import MigrationStatus, Standing

__all__ = ["Database", "Storage", "open_storage"]


class Database(Protocol):
    """The connections of one process to one database: held driver connections for hot statements, and an engine."""

    home: Home

    @property
    def engine(self) -> AsyncEngine:
        """The engine, made on demand."""

    async def standing(self) -> Standing | None:
        """Return where the tables stand, by the driver alone; None where they are not there."""

    async def subscriptions(self) -> tuple[int, Sequence[Registered]]:
        """Return the version of the set, and the active subscriptions."""

    def renew_login(self, dsn: Dsn) -> None:
        """Log in with the password of `dsn` from the next connection on."""

    async def due_schedules(self, limit: int) -> Due:
        """Return at most `limit` schedules that are due; see `Schedules.due()`."""

    async def fire_schedules(self, firings: Sequence[Firing]) -> Fired:
        """Record occurrences with their events; see `Schedules.fire()`."""

    async def open(self) -> None:
        """Open the connections that a worker uses at once; do not fail if the database is away."""

    async def close(self) -> None:
        """Close the held connections. Idempotent; a later use opens new ones."""


class Storage:
    """
    One store, as a field for each of its seams.

    The seams of publishers and workers exist from the start. Every other one is created, and SQLAlchemy imported, on
    first use.

    Attributes:
        events: records events.
        queue: leases work, and records its settlement.
        renew_login: logs in with the password of another DSN from the next connection on; it differs in nothing else.
    """

    def __init__(self, database: Database, events: EventStore, queue: WorkQueue) -> None:
        self.events = events
        self.queue = queue
        self.renew_login = database.renew_login
        self._database = database

    @cached_property
    def registry(self) -> Registry:
        """The owner of the tables, the subscriptions and the instances."""
        from .registry import SqlRegistry

        return SqlRegistry(self.engine, self.subscriptions)

    @cached_property
    def records(self) -> Records:
        """The reads of people: events, deliveries, subscriptions, instances."""
        from .records import SqlRecords

        return SqlRecords(self.engine)

    @cached_property
    def corrections(self) -> Corrections:
        """The corrections by people: retry, cancel, replay, acknowledge."""
        from .corrections import SqlCorrections

        return SqlCorrections(self.engine)

    @cached_property
    def overview(self) -> Overview:
        """The summary of a deployment, for `runner status` and `runner why`."""
        from .overview import SqlOverview

        return SqlOverview(self.engine)

    @cached_property
    def archive(self) -> Archive:
        """The deletion of events past retention."""
        from .archive import SqlArchive

        return SqlArchive(self.engine)

    @cached_property
    def audit(self) -> Audit:
        """The audit log."""
        from .audit import SqlAudit

        return SqlAudit(self.engine)

    @cached_property
    def schedules(self) -> Schedules:
        """The schedules."""
        from .schedules import SqlSchedules

        return SqlSchedules(self.engine, self._database)

    @cached_property
    def depths(self) -> DepthReader:
        """The depths of the queues, for metrics."""
        from .depths import SqlDepths

        return SqlDepths(self.engine)

    @cached_property
    def throughput(self) -> ThroughputReader:
        """The counters by the minute."""
        from .throughput import SqlThroughput

        return SqlThroughput(self.engine)

    @property
    def engine(self) -> AsyncEngine:
        """The engine of the store, for tools that work beside it."""
        return self._database.engine

    @property
    def schema(self) -> str | None:
        """PostgreSQL schema of the tables; None until the first connection has found it, and on SQLite."""
        return self._database.home.schema

    async def open(self) -> None:
        """Open the connections of a worker, so that its first claims wait for none."""
        await self._database.open()

    async def standing(self, deployment_id: str) -> tuple[MigrationStatus, str | None]:
        """
        Return the status of the tables, and their owner, None if they have none. Only read.

        Raises:
            ForeignDeployment: another deployment owns them.
            SchemaMismatch: they are at a revision that this version does not know.
        """
        from .migrate import status

        found = await status(self.engine)
        owner = None if found.current is None else await self.registry.owner(deployment_id)
        return found, owner

    async def subscriptions(self) -> tuple[int, Sequence[Registered]]:
        """Return the version of the set, and the active subscriptions; see `Registry.subscriptions()`."""
        return await self._database.subscriptions()

    async def take(
        self, deployment_id: str, *, create: bool, upgrade: bool, cure: str = "", writes: bool = True
    ) -> Sequence[str]:
        """
        Ensure that the tables exist and belong to `deployment_id`; return the applied revisions.

        The owner is checked first, so that no other deployment's tables are changed.

        Args:
            create: make the tables where there are none.
            upgrade: bring older ones up to date.
            cure: the end of the error message where the tables are not up to date and may not be changed.
            writes: whether the caller will write; a reader does not become the owner of tables without one.

        Raises:
            ForeignDeployment: they belong to another.
            SchemaMismatch: they are not of this version, and stay so.
        """
        if writes and (stands := await self._database.standing()) is not None and stands.revision == HEAD:
            check_owner(stands.owner, deployment_id)
            if stands.owner is None:
                await self.registry.adopt(deployment_id)
            return ()
        found, owner = await self.standing(deployment_id)
        applied: Sequence[str] = ()
        if found.pending:
            if not (create if found.current is None else upgrade):
                stand = "not there" if found.current is None else f"at revision {found.current}, expected {found.head}"
                raise SchemaMismatch(f"the tables are {stand}; {cure}")
            applied = await self.migrate()
        if writes and owner is None:
            await self.registry.adopt(deployment_id)
        return applied

    async def migrate(self) -> Sequence[str]:
        """Bring the tables up to date, without regard to their owner; return the applied revisions."""
        from .migrate import migrate

        return await migrate(self.engine)

    async def at_head(self) -> bool:
        """
        Return whether the tables are of this version, or of a later one that it can work with.

        Raises:
            StorageError: the store cannot be reached, or the tables belong to no deployment.
        """
        from .migrate import status

        try:
            return not (await status(self.engine)).pending
        except SchemaMismatch:
            return True

    async def concerns(self) -> Sequence[str]:
        """Return the settings of the database that limit the bus, with the cure of each."""
        if self.engine.dialect.name == "sqlite":
            return ()
        from .postgres.concerns import concerns

        return await concerns(self.engine)

    async def close(self) -> None:
        """Close every connection, within five seconds even if a peer is dead."""
        if "engine" in vars(self._database):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(5):
                    await self.engine.dispose()
        await self._database.close()


def open_storage(dsn: Dsn, *, schema: str | None = None, pool: int = 5, pgbouncer: bool = False) -> Storage:
    """
    Return the store at `dsn`; nothing connects yet.

    Args:
        schema: PostgreSQL schema of the tables; None is found by the first connection.
        pool: connections it may hold at most, but two in any case.
        pgbouncer: the DSN leads to a pooler in transaction mode: no session state, no prepared statements.

    Raises:
        ConfigError: neither the DSN nor the system names a user for the database.
    """
    if dsn.path is not None:
        from .sqlite.database import SqliteDatabase
        from .sqlite.events import SqliteEvents
        from .sqlite.queue import SqliteQueue

        file = SqliteDatabase(dsn.path, pool=max(1, pool - 1))
        return Storage(file, SqliteEvents(file), SqliteQueue(file))
    from .postgres.database import PostgresDatabase
    from .postgres.events import PostgresEvents
    from .postgres.queue import PostgresQueue

    unhurried = max(1, pool // 4)
    held = max(1, pool - unhurried)
    server = PostgresDatabase(dsn, schema=schema, held=held, pool=unhurried, pgbouncer=pgbouncer)
    return Storage(server, PostgresEvents(server), PostgresQueue(server))
