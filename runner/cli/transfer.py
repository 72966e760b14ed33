"""`runner events export` and `import`: events from one store to a file, and from a file to another store."""

from __future__ import annotations

import asyncio
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import SINCE, config_option, json_option, load

if TYPE_CHECKING:
    from ..config import Config
    from ..storage.contract.records import EventQuery

__all__ = ["export_events", "import_events"]


@click.command("export")
@config_option
@click.option("--type", "type_", metavar="PATTERN", help="Only these types; * stands for any characters.")
@click.option("--source", metavar="PATTERN", help="Only these sources; * stands for any characters.")
@click.option("--since", type=SINCE, metavar="TIME", help="Recorded at or after TIME, such as 1h (ago).")
@click.option("--until", type=SINCE, metavar="TIME", help="Recorded before TIME.")
@click.option("--limit", metavar="N", type=click.IntRange(min=1), help="At most N events; all unless given.")
def export_events(
    path: Path, type_: str | None, source: str | None, since: datetime | None, until: datetime | None, limit: int | None
) -> None:
    """Print recorded events, the oldest first, one CloudEvent in JSON on each line.

    All of them unless options say otherwise. Data keeps every byte: what JSON would not give back as it is goes into
    data_base64. Events alone are exported, not what became of their deliveries.

    \b
    Examples:
      runner events export > events.jsonl
      runner events export --type 'order.*' --since 1d --until 1h | gzip > orders.jsonl.gz
      runner events export | runner events import -c other.yaml -
    """
    from ..storage.contract.records import EventQuery

    query = EventQuery(
        type=type_, source=source, since=since, until=until, limit=limit or sys.maxsize, newest_first=False
    )
    asyncio.run(_export(load(path), query))


@click.command("import")
@config_option
@click.argument("file", metavar="FILE|-", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@json_option
def import_events(path: Path, file: str, as_json: bool) -> None:
    """Publish the events of FILE (- for standard input), which `runner events export` wrote.

    An event whose source and id are recorded already is counted and left as it is, so that an import that was cut short
    goes on when it is started again. What is new is delivered as if it had just been published.

    \b
    Examples:
      runner events import events.jsonl
      zcat orders.jsonl.gz | runner events import -
    """
    from .publish import publish_file

    publish_file(path, file, as_json=as_json)


async def _export(config: Config, query: EventQuery) -> None:
    from ..builder import open_storage
    from ..cloudevents import encode_exactly
    from .output import echo_raw, print_json, progress

    # On a terminal control characters are escaped; a file gets every byte unchanged.
    write = print_json if sys.stdout.isatty() else echo_raw
    async with open_storage(config) as storage:
        with progress("exporting", None) as advance:
            async for view in storage.records.events(query):
                write(encode_exactly(view.event))
                advance(1)
