"""`runner prune`: delete the events that are past retention, now."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import config_option, dry_run_option, json_option, load

if TYPE_CHECKING:
    from ..config import Config

__all__ = ["prune"]


@click.command()
@config_option
@dry_run_option
@json_option
def prune(path: Path, dry_run: bool, as_json: bool) -> None:
    """Remove the events that are older than the file's `retention`, with their deliveries and attempts.

    Running processes do this by themselves, every ten minutes. What is pending, leased, queued or scheduled stays.

    \b
    Examples:
      runner prune --dry-run
      runner prune -c prod.yaml
      runner prune --json
    """
    asyncio.run(_prune(load(path), dry_run, as_json))


async def _prune(config: Config, dry_run: bool, as_json: bool) -> None:
    from ..builder import open_operations, retention_of
    from .output import accounted, print_json, print_line

    async with open_operations(config) as operations:
        with accounted("counting" if dry_run else "pruning", None) as report:
            count = await operations.prune(retention_of(config), dry_run=dry_run, report=report)
    if as_json:
        print_json({"events": count, "dry_run": dry_run})
    else:
        print_line(f"{'would prune' if dry_run else 'pruned'} {count} event{'' if count == 1 else 's'}")
