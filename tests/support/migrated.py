"""Tables made once, for the many tests that need nothing but a copy of them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from runner.config.dsn import Dsn
from runner.storage.migrate import migrate
from tests.support.engines import open_engine

__all__ = ["migrate_now"]


def migrate_now(dsn: str, schema: str | None = None) -> None:
    """Make our tables in the database at `dsn`, and leave no connection to it."""
    asyncio.run(_migrate(dsn, schema))


async def _migrate(dsn: str, schema: str | None) -> None:
    engine = open_engine(Dsn.parse(dsn, base=Path()), schema=schema, pool=1)
    try:
        await migrate(engine)
    finally:
        await engine.dispose()
