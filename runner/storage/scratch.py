"""Statements of a benchmark on its own tables: rights, floor, removal."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from .errors import mapped_errors
from .tables import dispatch
from .transactions import Transactions

__all__ = ["bare_insert", "drop_schema", "drop_statement", "missing_right", "work_is_queued"]


async def missing_right(engine: AsyncEngine) -> tuple[str, str] | None:
    """Return the database and the role, quoted, where PostgreSQL would refuse that role a new schema."""
    may = "SELECT has_database_privilege(current_database(), 'CREATE')"
    who = "SELECT quote_ident(current_database()), quote_ident(current_user)"
    async with Transactions(engine).read() as connection:
        if await connection.scalar(text(may)):
            return None
        database, role = (await connection.execute(text(who))).one()
    return database, role


async def drop_schema(engine: AsyncEngine, schema: str) -> None:
    """Remove a schema with all that is in it."""
    async with Transactions(engine).write() as connection:
        await connection.execute(text(drop_statement(schema)))


def drop_statement(schema: str) -> str:
    """Return the statement that removes a schema with all that is in it."""
    return f"DROP SCHEMA IF EXISTS {schema} CASCADE"


@asynccontextmanager
async def bare_insert(
    engine: AsyncEngine, schema: str | None, data: str
) -> AsyncIterator[Callable[[], Awaitable[object]]]:
    """Make a table, and lend a function that inserts one row of `data` and commits, through the driver alone."""
    table = "floor" if schema is None else f"{schema}.floor"
    async with Transactions(engine).write() as connection:
        await connection.execute(text(f"CREATE TABLE {table} (data text)"))
    with mapped_errors():
        async with engine.connect() as connection:
            driver = (await connection.get_raw_connection()).driver_connection
            assert driver is not None
            yield partial(driver.execute, f"INSERT INTO {table} (data) VALUES ('{data}')")


async def work_is_queued(engine: AsyncEngine) -> bool:
    """Return whether an event is not settled yet."""
    async with Transactions(engine).read() as connection:
        return await connection.scalar(select(dispatch.c.position).limit(1)) is not None
