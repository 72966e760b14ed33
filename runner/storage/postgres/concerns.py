"""Settings of a PostgreSQL database that limit the bus."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from ..encoding import holds_everything
from ..errors import mapped_errors
from ..home import SEARCH_PATH, home_of

__all__ = ["concerns"]

_FOUND = text("SELECT pg_catalog.current_setting('search_path'), pg_catalog.quote_ident(CAST(current_user AS text))")


async def concerns(engine: AsyncEngine) -> list[str]:
    """Return the settings found, each with its cure."""
    with mapped_errors():
        async with engine.connect() as connection:
            path, role = (await connection.execute(_FOUND)).one()
    said = []
    if path != SEARCH_PATH:
        said.append(
            f"the pooler takes no search path, so that {role} has {path!r}, and functions of others who may create "
            f"there could be run: ALTER ROLE {role} SET search_path = {SEARCH_PATH}, with storage.schema set"
        )
    encoding = home_of(engine).encoding
    if not holds_everything(encoding):
        said.append(
            f"the encoding of the database is {encoding}: events with other characters are refused, errors have them "
            "escaped; a database that is made with ENCODING 'UTF8' holds every event"
        )
    return said
