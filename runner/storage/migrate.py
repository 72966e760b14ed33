"""The version of the tables, and their migration."""

from __future__ import annotations

import asyncio
import io
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, column, inspect, select, table
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ..errors import SchemaMismatch, StorageError
from .errors import mapped_errors
from .home import home_of
from .standing import HEAD, MigrationStatus
from .tables import metadata

if TYPE_CHECKING:
    from alembic.config import Config

__all__ = ["HEAD", "MigrationStatus", "migrate", "offline_sql", "scripts", "status"]

# Alembic logs every plug-in and step; the result of `migrate()` is enough.
logging.getLogger("alembic").setLevel(logging.WARNING)

# Alembic keeps the running migration in module globals, so there is one at a time.
_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()


async def status(engine: AsyncEngine) -> MigrationStatus:
    """
    Return the status of the tables.

    Raises:
        SchemaMismatch: they are at a revision this version does not know.
        StorageError: tables of the same names are there that are not the runner's.
        StorageUnavailable: the store cannot be reached.
    """
    if engine.dialect.name == "sqlite" and not os.path.exists(str(engine.url.database)):  # noqa: ASYNC240
        return MigrationStatus(None, HEAD, _pending(None, None))  # connecting would create an empty file
    with mapped_errors():
        async with engine.execution_options(sqlite_begin="DEFERRED").connect() as connection:
            schema = home_of(engine).schema
            current = await connection.run_sync(_current, schema)
            if current is None:
                await connection.run_sync(_refuse_foreign_tables, schema)
    if current == HEAD:
        return MigrationStatus(current, HEAD, ())
    return MigrationStatus(current, HEAD, _pending(current, schema))


async def migrate(engine: AsyncEngine) -> list[str]:
    """
    Bring the tables to `HEAD` in one transaction; return the revisions this call applied, in order.

    Any number of processes may call it at once: one migrates, the others wait and find nothing to do. An interrupted
    migration leaves no trace, and the next call begins again.

    Raises:
        SchemaMismatch: the tables are at a revision this version does not know.
        StorageError: tables of the same names are there that are not the runner's, or a right is missing.
        StorageUnavailable: the store cannot be reached.
    """
    if not (await status(engine)).pending:
        return []
    turn = _turns.setdefault(asyncio.get_running_loop(), asyncio.Lock())
    with mapped_errors():
        async with turn, engine.begin() as connection, _unbounded(connection):
            return await connection.run_sync(_upgrade, home_of(engine).schema)


@asynccontextmanager
async def _unbounded(connection: AsyncConnection) -> AsyncIterator[None]:
    """
    Let the driver wait for as long as a statement takes.

    Keep-alive still detects a dead server, and `migrations/env.py` lifts the server's own timeouts.
    """
    raw = (await connection.get_raw_connection()).driver_connection
    if connection.dialect.name != "postgresql" or raw is None:
        yield
        return
    config = raw._config  # asyncpg has no public way to change the timeout of a connection
    raw._config = config._replace(command_timeout=None)
    try:
        yield
    finally:
        raw._config = config


def offline_sql(dialect: Literal["postgresql", "sqlite"], schema: str | None) -> str:
    """
    Return the script that makes the tables in an empty database, one transaction.

    Args:
        schema: PostgreSQL schema of the tables; None is the first one of the search path of the script's session.
    """
    from alembic import command

    script = io.StringIO()
    config = _config(schema, dialect=dialect)
    config.output_buffer = script
    command.upgrade(config, "head", sql=True)
    return script.getvalue()


def scripts() -> Path:
    """Return the directory of the migrations: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).parents[1]
    for place in (package / "migrations", package.parent / "migrations"):
        if (place / "env.py").is_file():
            return place
    raise StorageError(
        f"the migrations are not part of this installation (looked beside {package}); install the runner again"
    )


def _current(connection: Connection, schema: str | None) -> str | None:
    if not inspect(connection).has_table("alembic_version", schema=schema):
        return None
    revision: str | None = connection.scalar(
        select(column("version_num")).select_from(table("alembic_version", schema=schema))
    )
    return revision


def _pending(current: str | None, schema: str | None) -> tuple[str, ...]:
    from alembic.script import ScriptDirectory

    revisions = [script.revision for script in ScriptDirectory.from_config(_config(schema)).walk_revisions()][::-1]
    if current is None:
        return tuple(revisions)
    if current not in revisions:
        raise SchemaMismatch(
            f"the tables are at revision {current!r}, and this version of the runner knows none beyond {HEAD!r}: "
            "upgrade the runner; if another application's tables are there, set storage.schema to a schema of its own"
        )
    return tuple(revisions[revisions.index(current) + 1 :])


def _upgrade(connection: Connection, schema: str | None) -> list[str]:
    from alembic import command

    if _current(connection, schema) is None:
        _refuse_foreign_tables(connection, schema)  # some may have been made since `status()` looked
    applied: list[str] = []
    command.upgrade(_config(schema, connection=connection, applied=applied), "head")
    return applied


def _refuse_foreign_tables(connection: Connection, schema: str | None) -> None:
    # In this order: another migration at the same time makes the tables and their version visible together.
    taken = sorted(metadata.tables.keys() & inspect(connection).get_table_names(schema=schema))
    if taken and _current(connection, schema) is None:
        raise StorageError(
            f"tables named {', '.join(taken)} are there already, and are not the runner's: "
            "give it tables of its own: set storage.schema (PostgreSQL) or another database in storage.dsn"
        )


def _config(schema: str | None, **attributes: Any) -> Config:
    """Return the configuration of Alembic, with the attributes that `migrations/env.py` reads."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(scripts()).replace("%", "%%"))
    config.attributes.update(schema=schema, **attributes)
    return config
