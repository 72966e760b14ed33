"""The connections of one process to a PostgreSQL database, and the place of its tables."""

from __future__ import annotations

import contextlib
import getpass
import os
from functools import cached_property
from typing import TYPE_CHECKING

from ...errors import ConfigError, StorageError, StorageUnavailable
from ..errors import mapped_errors
from ..home import Home
from ..standing import Standing
from ..subscription_rows import SubscriptionRow, compilable, spec_in
from .connections import DriverConnections
from .connector import PostgresConnector
from .outage import Outage
from .statements import statement

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    import asyncpg
    from sqlalchemy.ext.asyncio import AsyncEngine

    from ...config.dsn import Dsn
    from ..contract.registry import Registered
    from ..contract.schedules import Due, Fired, Firing

__all__ = ["PostgresDatabase"]

_WORKING = 4  # connections: two claims and two settlements are under way at once

# A cached plan made while a table of work was empty would scan all of it when it is full. And it is to be cached at
# once: no value of a parameter changes it, and a new connection would plan each statement five times before.
_PLAN_BY_INDEX = "SET enable_seqscan = off; SET enable_sort = off; SET plan_cache_mode = force_generic_plan"


class PostgresDatabase:
    """
    The connections of one process to one PostgreSQL database.

    Attributes:
        home: the schema of the tables and the encoding of the database.
        connections: driver connections, for the statements that run all the time.
    """

    def __init__(
        self, dsn: Dsn, *, schema: str | None = None, held: int = 4, pool: int = 1, pgbouncer: bool = False
    ) -> None:
        """
        Connect to `dsn` on demand.

        Args:
            schema: PostgreSQL schema of the tables; None is found by the first connection (see `Home`).
            held: driver connections it may have at most.
            pool: connections of the engine beside them.
            pgbouncer: the DSN leads to a pooler in transaction mode: no session state, no prepared statements.

        Raises:
            ConfigError: neither the DSN nor the system names a user for the database.
        """
        _check_user(dsn)
        self.home = Home(schema)
        self._pool = pool
        self._pgbouncer = pgbouncer
        self._connector = PostgresConnector(dsn, pgbouncer=pgbouncer, home=self.home)
        self._outage = Outage()
        settings = "" if pgbouncer else _PLAN_BY_INDEX
        self.connections = DriverConnections(self.connect, held, settings, pgbouncer=pgbouncer)

    @cached_property
    def engine(self) -> AsyncEngine:
        """The engine, made on demand: to publish, none is needed."""
        from .engine import postgres_engine

        return postgres_engine(self.connect, self.home, pool=self._pool, pgbouncer=self._pgbouncer)

    def renew_login(self, dsn: Dsn) -> None:
        """Log in with the password of `dsn` from the next connection on."""
        self._connector.renew_login(dsn)

    async def connect(self) -> asyncpg.Connection:
        """Return a new connection of the driver. Raise `StorageUnavailable` when no host takes one."""
        with self._outage, mapped_errors():
            return await self._connector.connect()

    async def open(self) -> None:
        """Open the connections of a worker, so that its first claims wait for none."""
        with contextlib.suppress(StorageUnavailable), mapped_errors():
            async with self.engine.connect():  # reserves one for the engine, if the server has few left
                await self.connections.open(_WORKING)

    async def close(self) -> None:
        """Close the held connections."""
        await self.connections.close()

    def sql(self, name: str, limit: int = 0) -> str:
        """Return the statement in `sql/<name>.sql` for the tables of this database."""
        return statement(name, self.home.schema, limit)

    async def now(self) -> datetime:
        """Return the time on the clock of the server."""
        now: datetime
        if not self.home.encoding:
            await self.find()
        [(now,)] = await self.connections.fetch(self.sql("now"))
        return now

    async def standing(self) -> Standing | None:
        """Return where the tables stand; None where they are not there."""
        import asyncpg

        if not self.home.encoding:
            await self.find()
        try:
            [(revision, owner)] = await self.connections.fetch(self.sql("standing"))
        except StorageError as error:
            if isinstance(error.__cause__, asyncpg.UndefinedTableError | asyncpg.UndefinedColumnError):
                return None
            raise
        except ValueError:  # there is no row
            return None
        return Standing(revision, owner)

    async def subscriptions(self) -> tuple[int, Sequence[Registered]]:
        """Return the version of the set, and the active subscriptions; see `Registry.subscriptions()`."""
        if not self.home.encoding:
            await self.find()
        rows = await self.connections.fetch(self.sql("subscriptions"))
        found = [SubscriptionRow._make([*row[1:4], spec_in(row[4]), *row[5:]]) for row in rows if row[2] is not None]
        return rows[0][0], [compilable(row) for row in found]

    async def due_schedules(self, limit: int) -> Due:
        """Return at most `limit` schedules that are due; see `Schedules.due()`."""
        from .schedules import due_schedules

        if not self.home.encoding:
            await self.find()
        return await due_schedules(self.connections, self.sql("due_schedules", limit), limit)

    async def fire_schedules(self, firings: Sequence[Firing]) -> Fired:
        """Record occurrences with their events; see `Schedules.fire()`."""
        from .schedules import fire_schedules

        if not self.home.encoding:
            await self.find()
        return await fire_schedules(self.connections, self.sql("fire_schedules"), firings)

    async def find(self) -> None:
        """Open a connection to learn the schema and the encoding."""
        async with self.connections.take():
            pass


def _check_user(dsn: Dsn) -> None:
    """Raise `ConfigError` if neither the DSN nor the system names a user."""
    if dsn.user or os.environ.get("PGUSER"):
        return
    try:
        getpass.getuser()
    except (KeyError, OSError) as error:
        raise ConfigError(
            f"storage.dsn: names no user, and the user id {os.getuid()} has no name on this machine; "
            "write postgresql://USER@…, or set PGUSER"
        ) from error
