"""Examine a database without a change to it: a PostgreSQL server over a connection, or a file of SQLite."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from ..config.dsn import Dsn
    from .contract.examination import FileFacts, PostgresExamination

__all__ = ["examine_file", "examine_server"]


@contextlib.asynccontextmanager
async def examine_server(
    dsn: Dsn, *, schema: str | None = None, pgbouncer: bool = False
) -> AsyncIterator[PostgresExamination]:
    """
    Connect to a PostgreSQL server as the bus does, to examine it.

    Args: as for `open_storage()`.

    Raises:
        StorageUnavailable: no host takes a connection.
        StorageError: the server refuses the login, the database or the session's settings.
    """
    from .postgres.database import PostgresDatabase
    from .postgres.examination import ConnectionExamination

    database = PostgresDatabase(dsn, schema=schema, pgbouncer=pgbouncer)
    connection = await database.connect()
    try:
        yield ConnectionExamination(connection, database.home)
    finally:
        connection.terminate()


def examine_file(path: Path, patience: float) -> FileFacts:
    """
    Read a file of SQLite; block until it is read.

    Args:
        patience: seconds for the check of its structure, which reads all of it.

    Raises:
        StorageError: it cannot be opened or read, or is no database.
    """
    from .sqlite.examination import examine

    return examine(path, patience)
