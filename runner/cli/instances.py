"""`runner instances`: list the processes of the deployment."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import config_option, json_option, load

if TYPE_CHECKING:
    from ..config import Config
    from ..storage.contract.records import InstanceView

__all__ = ["instances"]


@click.command()
@config_option
@json_option
def instances(path: Path, as_json: bool) -> None:
    """Print the processes of the deployment that reported, the latest first; crashed ones stay, as silent.

    \b
    working  it reports, and looks for work
    stuck    it reports, but has not looked for work for half a minute
    silent   it has not reported for half a minute

    LAG is the longest its event loop was held up between the last two reports; anything near a second is code that
    blocks it, and is named in the log of that process.

    HEARS says of each strategy that is told of events whether it is: `nats no` is a broker out of reach.

    FILE is the digest of the configuration file that it has in use; `kept` marks one that the last reload left in use,
    because the file as it was then could not be used. `--json` has the faults.

    \b
    Examples:
      runner instances
      runner instances --json
    """
    asyncio.run(_list(load(path), as_json))


async def _list(config: Config, as_json: bool) -> None:
    from ..builder import open_storage
    from ..operations.shapes import instance_json
    from .output import print_json, print_table

    async with open_storage(config, writes=False) as storage:
        views = await storage.records.instances()
    if as_json:
        for view in views:
            print_json(instance_json(view))
        return
    rows = [
        (
            view.instance.id,
            view.instance.host,
            view.instance.pid,
            view.instance.version,
            view.state,
            view.running,
            view.lag,
            _heard(view),
            _file(view),
            view.started_at,
            view.heartbeat_at,
        )
        for view in views
    ]
    columns = ("id", "host", "pid", "version", "state", "running", "lag", "hears", "file", "started", "heartbeat")
    print_table(columns, rows, spare=("version", "started", "lag", "file", "hears"))


def _file(view: InstanceView) -> str:
    """Return the digest of an instance's file, marked `kept` if the last reload failed."""
    used = view.configuration
    return "" if used is None else f"{used.digest} kept" if used.kept else used.digest


def _heard(view: InstanceView) -> str:
    """Return which push strategies of an instance hear, such as `nats no, postgres yes`."""
    told = [each for each in view.strategies or () if each.hears is not None]
    return ", ".join(f"{each.name} {'yes' if each.hears else 'no'}" for each in told)
