"""`runner migrate`: bring the tables up to this version."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import config_option, json_option, load

if TYPE_CHECKING:
    from ..config import Config

__all__ = ["migrate"]


@click.command()
@config_option
@click.option("--status", "only_status", is_flag=True, help="Say where the tables stand, and change nothing.")
@click.option("--sql", "only_sql", is_flag=True, help="Print the script for an empty database, and change nothing.")
@json_option
def migrate(path: Path, only_status: bool, only_sql: bool, as_json: bool) -> None:
    """Bring the tables up to this version of the runner, in one transaction.

    \b
    Examples:
      runner migrate
      runner migrate --status --json
      runner migrate --sql > tables.sql
    """
    if only_status and only_sql:
        raise click.UsageError("give either --status or --sql, not both")
    config = load(path)
    if only_sql:
        _print_sql(config)
    elif only_status:
        asyncio.run(_status(config, as_json))
    else:
        asyncio.run(_migrate(config, as_json))


def _print_sql(config: Config) -> None:
    from ..storage.migrate import offline_sql

    click.echo(offline_sql(config.storage.dsn.scheme, config.storage.schema_name), nl=False)


async def _status(config: Config, as_json: bool) -> None:
    from dataclasses import asdict

    from ..storage.migrate import status
    from .output import print_fields, print_json
    from .store import opened

    async with opened(config) as storage:
        standing = await status(storage.engine, storage.schema)
    if as_json:
        print_json(asdict(standing))
        return
    print_fields(
        {
            "current": standing.current or "not migrated",
            "head": standing.head,
            "pending": ", ".join(standing.pending) or "nothing",
        }
    )


async def _migrate(config: Config, as_json: bool) -> None:
    from .output import print_json
    from .store import opened, refuse_foreign

    async with opened(config) as storage:
        await refuse_foreign(storage, config)
        applied = await storage.migrate()
    if as_json:
        print_json({"applied": list(applied)})
    else:
        click.echo(f"applied {', '.join(applied)}" if applied else "the tables are up to date")
