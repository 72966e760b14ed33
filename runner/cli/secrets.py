"""`runner secrets`: the sealed secrets in the tables."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import config_option, dry_run_option, json_option, load

if TYPE_CHECKING:
    from ..config import Config
    from ..operations.subscriptions import Resealed

__all__ = ["secrets"]


@click.group()
def secrets() -> None:
    """Look after the secrets that the tables keep: those of destinations that subscriptions brought with them.

    \b
    Examples:
      runner secrets reseal --dry-run
      runner secrets reseal
    """


@secrets.command("reseal")
@config_option
@dry_run_option
@json_option
def reseal(path: Path, dry_run: bool, as_json: bool) -> None:
    """Seal with the first of `sealing.keys` what is sealed with another one.

    To change the key: put the new one first in `sealing.keys` and reload every process (SIGHUP); reseal; then take
    the old one out. It can be interrupted, and goes on when it is called again.

    \b
    Exit code: 0 if all is sealed with the first key, 1 if something does not open.

    \b
    Examples:
      runner secrets reseal --dry-run
      runner secrets reseal --json
    """
    result = asyncio.run(_reseal(load(path), dry_run, as_json))
    if result.failed:
        raise SystemExit(1)


async def _reseal(config: Config, dry_run: bool, as_json: bool) -> Resealed:
    from ..builder import open_operations
    from .output import print_json, print_line, progress, tell, tell_unheard

    async with open_operations(config, unheard=tell_unheard) as operations:
        with progress("resealing", None) as advance:
            result = await operations.subscriptions.reseal(dry_run=dry_run, advance=advance)
    for name, why in result.failed.items():
        tell(f"{name}: {why}")
    if as_json:
        print_json({**result._asdict(), "dry_run": dry_run})
    else:
        would = "would be" if dry_run else "were" if result.resealed != 1 else "was"
        print_line(
            f"{result.resealed} {would} sealed with the first key, {result.current} already, "
            f"{len(result.failed)} could not be opened"
        )
    return result
