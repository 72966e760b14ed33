"""Temporary tables for a measurement, removed however it ends."""

from __future__ import annotations

import asyncio
import secrets
import shlex
import shutil
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from ...builder import open_storage
from ...config import Config
from ...errors import StorageError
from ...storage import Storage
from ...storage.errors import mapped_errors
from ...storage.scratch import drop_schema, drop_statement, missing_right

__all__ = ["removal", "throwaway"]

_GRACE = timedelta(seconds=2)  # deliveries here are instant, so this only matters for an unreachable store


@asynccontextmanager
async def throwaway(config: Config, *, keep: bool = False) -> AsyncIterator[Config]:
    """
    Create and remove a migrated deployment: a new PostgreSQL schema, or an SQLite file in a new directory.

    It has the store, the strategies and the limits of `config`, and nothing else of it: no sink, no
    subscription. No process hears its signals, because they go out under its own name.

    Args:
        keep: do not remove the place afterwards; `removal()` says how to remove it.

    Raises:
        ConfigError: the directory of SQLite's file does not exist, or cannot be written to.
        StorageError: the role may not create a schema, or what was created cannot be removed.
        StorageUnavailable: the store cannot be reached.
    """
    place = _placed(config, secrets.token_hex(4))
    file = place.storage.dsn.path
    if file is not None:
        async with open_storage(config, adopt=False):
            pass  # the fault of the file or its directory was reported
        with mapped_errors():
            file.parent.mkdir()
    try:
        async with open_storage(place, adopt=False) as storage:
            await _check_rights(storage)
            try:
                await storage.migrate()  # also creates the schema
                yield place
            finally:
                if not keep and storage.schema is not None:
                    await _to_its_end(_drop(storage, storage.schema))
    finally:
        if not keep and file is not None:
            _remove_directory(file.parent)


def removal(place: Config) -> str:
    """Return the command that removes a place that was kept."""
    path, schema = place.storage.dsn.path, place.storage.schema_name
    return f"rm -r {shlex.quote(str(path.parent))}" if path is not None else drop_statement(schema or "")


def _placed(config: Config, token: str) -> Config:
    """Return the configuration of the deployment named by `token`, with defaults for everything else."""
    name = f"runner_bench_{token}"
    storage = config.storage
    elsewhere: dict[str, object] = (
        {"schema_name": name}
        if storage.dsn.path is None
        else {"dsn": replace(storage.dsn, path=storage.dsn.path.with_name(name) / "runner.db")}
    )
    named = "{deployment_id}" in config.subject
    return Config.model_construct(
        deployment_id=f"bench-{token}",
        subject=config.subject if named else f"{config.subject}.{{deployment_id}}",
        storage=storage.model_copy(update={**elsewhere, "migrate": False}),
        strategies=config.strategies,
        worker=config.worker.model_copy(update={"shutdown_grace": _GRACE}),
    )


async def _check_rights(storage: Storage) -> None:
    """Raise `StorageError`, with the cure, if PostgreSQL would refuse to create the schema."""
    if storage.schema is None or (missing := await missing_right(storage.engine)) is None:
        return
    database, role = missing
    raise StorageError(
        f"a throw-away schema is needed, and the role {role} may not create one in the database {database}; "
        f"allow it with: GRANT CREATE ON DATABASE {database} TO {role}"
    )


async def _drop(storage: Storage, schema: str) -> None:
    try:
        await drop_schema(storage.engine, schema)
    except StorageError as error:
        raise type(error)(f"a schema is left behind: {error}; remove it with: {drop_statement(schema)}") from error


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Await `work`, and be cancelled only after it."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise


def _remove_directory(directory: Path) -> None:
    """Rename the directory before removing it, so that a cancelled call cannot reopen its files."""
    try:
        shutil.rmtree(directory.rename(directory.with_name(f"{directory.name}.removed")))
    except FileNotFoundError:
        return  # another process was quicker
    except OSError as error:
        remove = f"rm -r {shlex.quote(str(directory))}*"
        raise StorageError(f"a directory is left behind: {error.strerror}; remove it with: {remove}") from error
