"""`runner migrate`: bring the tables up to this version."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import config_option, json_option, load
from .output import echo, print_line

if TYPE_CHECKING:
    from ..config import Config

__all__ = ["migrate"]


@click.command()
@config_option
@click.option("--status", "only_status", is_flag=True, help="Print the version of the tables, and change nothing.")
@click.option("--sql", "only_sql", is_flag=True, help="Print the script for an empty database, and change nothing.")
@click.option("--roles", "only_roles", is_flag=True, help="Print the script for roles with least rights (PostgreSQL).")
@json_option
def migrate(path: Path, only_status: bool, only_sql: bool, only_roles: bool, as_json: bool) -> None:
    """Bring the tables up to this version of the runner, in one transaction, and record whose they are.

    \b
    Examples:
      runner migrate
      runner migrate --status --json
      runner migrate --sql > tables.sql
      runner migrate --roles | psql
    """
    if only_status + only_sql + only_roles > 1:
        raise click.UsageError("give one of --status, --sql and --roles")
    config = load(path)
    if only_sql:
        _print_sql(config)
    elif only_roles:
        _print_roles(config)
    elif only_status:
        asyncio.run(_status(config, as_json))
    else:
        asyncio.run(_migrate(config, as_json))


def _print_sql(config: Config) -> None:
    from ..storage.migrate import offline_sql

    echo(offline_sql(config.storage.dsn.scheme, config.storage.schema_name), nl=False)


def _print_roles(config: Config) -> None:
    from ..storage.roles import roles_sql

    if config.storage.dsn.scheme == "sqlite":
        raise click.ClickException("SQLite has no roles; the rights to its file are those of the file")
    click.echo(roles_sql(config.storage.schema_name), nl=False)


async def _status(config: Config, as_json: bool) -> None:
    from dataclasses import asdict

    from ..builder import open_storage
    from .output import print_fields, print_json

    async with open_storage(config, adopt=False, writes=False) as storage:
        status, owner = await storage.standing(config.deployment_id)
    if as_json:
        print_json({**asdict(status), "owner": owner})
        return
    print_fields(
        {
            "current": status.current or "not migrated",
            "head": status.head,
            "pending": ", ".join(status.pending) or "nothing",
            "owner": owner or "nobody yet",
        }
    )


async def _migrate(config: Config, as_json: bool) -> None:
    from ..builder import open_storage
    from .output import print_json

    async with open_storage(config, adopt=False) as storage:
        applied = await storage.take(config.deployment_id, create=True, upgrade=True)
    if as_json:
        print_json({"applied": list(applied)})
    else:
        print_line(f"applied {', '.join(applied)}" if applied else "the tables are up to date")
