"""The schema and the encoding of a PostgreSQL database, found by its first connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import StorageError

if TYPE_CHECKING:
    import asyncpg
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["SEARCH_PATH", "TABLES", "Home", "home_of"]

TABLES = (
    "attempts",
    "audit",
    "bus",
    "deliveries",
    "dispatch",
    "events",
    "expiries",
    "instances",
    "occurrences",
    "paces",
    "runs",
    "scheduled",
    "schedules",
    "subscriptions",
    "throughput",
    "turns",
)
"""The names of the tables in `tables.py`, for statements that do without it."""

SEARCH_PATH = "pg_catalog, pg_temp"
"""The search path of every connection.

Tables are named with their schema, so that no object of another role, such as a function `unnest(int[])` in `public`,
shadows one of PostgreSQL's."""

# Names with their schema throughout: the search path is still the one that the role or the DSN gave.
_PATH = "SELECT pg_catalog.current_schemas(false)"
_PINNED_PATH = f"{_PATH}, pg_catalog.set_config('search_path', '{SEARCH_PATH}', false)"

_WITH_TABLES = """
SELECT path.name FROM unnest($1::name[]) WITH ORDINALITY AS path (name, place)
WHERE 2 = (SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
           WHERE n.nspname = path.name AND c.relname IN ('alembic_version', 'dispatch'))
ORDER BY path.place LIMIT 1
"""


class Home:
    """
    The schema of the tables and the encoding of the database.

    Without a configured schema it is the first one of the connection's own search path that has the tables, or else
    the first one there is; found once.

    Attributes:
        encoding: as PostgreSQL calls it, such as UTF8; empty until there was a connection.
        translation: the schema as SQLAlchemy takes it (`schema_translate_map`).
    """

    def __init__(self, schema: str | None = None, encoding: str = "") -> None:
        self.encoding = encoding
        self.translation: dict[str | None, str | None] = {None: schema}

    @property
    def schema(self) -> str | None:
        """The schema; None until it is known, and on SQLite."""
        return self.translation[None]

    async def find(self, connection: asyncpg.Connection, *, pin: bool) -> None:
        """
        Learn the schema from a connection that was made while it was not known.

        Args:
            pin: give it `SEARCH_PATH` in place of its own. A pooler shares a session, so that it must not change there.
        """
        path = await connection.fetchval(_PINNED_PATH if pin else _PATH)
        if self.schema is not None:
            return
        names = [name for name in path if not name.startswith("pg_")]
        if path and not names:  # nothing but PostgreSQL's own, as migrations/roles.sql gives it to its roles
            names = ["public"]
        if not names:
            raise StorageError("the search path of the role names no schema that exists: set storage.schema")
        self.translation[None] = await connection.fetchval(_WITH_TABLES, names) or names[0]


def home_of(engine: AsyncEngine) -> Home:
    """Return the home that the engine was made with."""
    home: Home = engine.sync_engine.get_execution_options()["home"]
    return home
