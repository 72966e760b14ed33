"""The SQLAlchemy engine of an SQLite file, for everything that is not hot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from ..expressions import parse_json
from .connection import Opened, TidyConnection, prepare

if TYPE_CHECKING:
    from pathlib import Path

    from ..home import Home

__all__ = ["sqlite_engine"]


def sqlite_engine(path: Path, home: Home, *, pool: int, opened: Opened) -> AsyncEngine:
    """Return an engine that holds up to `pool` connections to the file, each also in `opened`."""
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{path}",
        connect_args={"factory": TidyConnection, "async_creator_fn": opened.connect},
        pool_size=pool,
        max_overflow=0,
        hide_parameters=True,
        json_deserializer=parse_json,
        execution_options={"home": home},
    )

    @event.listens_for(engine.sync_engine, "connect")
    def _prepare(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # the driver starts no transaction by itself; `_begin` does
        cursor = connection.cursor()
        prepare(cursor)
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def _begin(connection: Any) -> None:
        # A transaction that reads first and writes later fails at once when another wrote in between,
        # whatever the busy timeout; so the write lock is taken at the start, unless told otherwise.
        connection.exec_driver_sql(f"BEGIN {connection.get_execution_options().get('sqlite_begin', 'IMMEDIATE')}")

    return engine
