"""The SQLAlchemy engine of a PostgreSQL database, for everything that is not hot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from ..errors import is_unavailable
from ..expressions import parse_json
from .connector import COMMAND_TIMEOUT, ISOLATION

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import asyncpg

    from ..home import Home

__all__ = ["postgres_engine"]


def postgres_engine(
    connect: Callable[[], Awaitable[asyncpg.Connection]], home: Home, *, pool: int, pgbouncer: bool
) -> AsyncEngine:
    """Return an engine that holds up to `pool` connections, made by `connect`; the tables are where `home` says."""

    def adapted() -> Any:
        # What `async_creator` stands for; with that, SQLAlchemy's own statement cache could not be turned off.
        return engine.dialect.loaded_dbapi.connect(
            async_creator_fn=connect, prepared_statement_cache_size=0 if pgbouncer else 100
        )

    engine = create_async_engine(
        "postgresql+asyncpg://",
        creator=adapted,
        pool_size=pool,
        max_overflow=0,
        pool_timeout=COMMAND_TIMEOUT,
        hide_parameters=True,
        isolation_level=ISOLATION,
        json_deserializer=parse_json,
        execution_options={"schema_translate_map": home.translation, "home": home},
    )

    @event.listens_for(engine.sync_engine, "handle_error")
    def _disconnect(context: Any) -> None:
        if is_unavailable(context.original_exception):
            context.is_disconnect = True

    return engine
