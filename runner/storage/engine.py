"""The way to the database: one SQLAlchemy engine."""

from __future__ import annotations

import getpass
import json
import os
import sqlite3
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from ..config.dsn import Dsn
from ..errors import ConfigError
from .errors import is_unavailable, mapped_errors
from .home import Home
from .postgres.connector import COMMAND_TIMEOUT, ISOLATION, PostgresConnector
from .postgres.outage import Outage
from .sqlite.connection import TidyConnection, connect, pragmas, prepare

if TYPE_CHECKING:
    import asyncpg

__all__ = ["open_engine"]


def open_engine(dsn: Dsn, *, schema: str | None = None, pool: int = 5, pgbouncer: bool = False) -> AsyncEngine:
    """
    Return the engine for `dsn`; nothing connects yet.

    Args:
        schema: PostgreSQL schema of the tables; None is found by the first connection (see `Home`).
        pool: connections it may hold at most.
        pgbouncer: the DSN leads to a pooler in transaction mode: no session state, no prepared statements.
    """
    if dsn.scheme == "sqlite":
        return _sqlite_engine(dsn, pool)
    _check_user(dsn)
    home = Home(schema)
    connector, outage = PostgresConnector(dsn, pgbouncer=pgbouncer, home=home), Outage()

    async def connection() -> asyncpg.Connection:
        with outage, mapped_errors():
            return await connector.connect()

    def connect() -> Any:
        # What `async_creator` stands for; with that, SQLAlchemy's own statement cache could not be turned off.
        return engine.dialect.loaded_dbapi.connect(
            async_creator_fn=connection, prepared_statement_cache_size=0 if pgbouncer else 100
        )

    engine = create_async_engine(
        "postgresql+asyncpg://",
        creator=connect,
        pool_size=pool,
        max_overflow=0,
        pool_timeout=COMMAND_TIMEOUT,
        hide_parameters=True,
        isolation_level=ISOLATION,
        json_deserializer=_parse_json,
        execution_options={"schema_translate_map": home.translation, "home": home},
    )

    @event.listens_for(engine.sync_engine, "handle_error")
    def _disconnect(context: Any) -> None:
        if is_unavailable(context.original_exception):
            context.is_disconnect = True

    return engine


def _check_user(dsn: Dsn) -> None:
    """Raise `ConfigError` where neither the DSN nor the system says who we are to the database."""
    if dsn.user or os.environ.get("PGUSER"):
        return
    try:
        getpass.getuser()
    except (KeyError, OSError) as error:
        raise ConfigError(
            f"storage.dsn: names no user, and the user id {os.getuid()} has no name on this machine; "
            "write postgresql://USER@…, or set PGUSER"
        ) from error


def _sqlite_engine(dsn: Dsn, pool: int) -> AsyncEngine:
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{dsn.path}",
        connect_args={"factory": TidyConnection, "async_creator_fn": connect},
        pool_size=pool,
        max_overflow=0,
        hide_parameters=True,
        json_deserializer=_parse_json,
        execution_options={"home": Home(encoding="UTF8")},
    )

    @event.listens_for(engine.sync_engine, "connect")
    def _prepare(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # the driver starts no transaction by itself; `_begin` does
        cursor = connection.cursor()
        prepare(cursor, pragmas(sqlite3.sqlite_version_info))
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def _begin(connection: Any) -> None:
        # A transaction that reads first and writes later fails at once when another wrote in between,
        # whatever the busy timeout; so the write lock is taken at the start, unless told otherwise.
        connection.exec_driver_sql(f"BEGIN {connection.get_execution_options().get('sqlite_begin', 'IMMEDIATE')}")

    return engine


def _parse_json(text: str) -> Any:
    """Return what a column of JSON holds; None where it holds none, so that one such row does not spoil a query."""
    try:
        return json.loads(text)
    except ValueError:
        return None
