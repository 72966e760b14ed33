"""`runner publish`: one event, or a file of them."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import DURATION, MOMENT, config_option, dry_run_option, json_option, load

if TYPE_CHECKING:
    from ..config import Config
    from ..event import Event

__all__ = ["publish"]

_SOURCE = "/runner/cli"
_BATCH = 500  # events in one transaction


@dataclass(frozen=True, slots=True)
class _When:
    """When the events are due; at most one of the two is given."""

    delay: timedelta | None
    deliver_at: datetime | None


@click.command()
@config_option
@click.argument("type_", metavar="[TYPE]", required=False)
@click.option("--data", metavar="JSON|@FILE|-", help="The data: JSON, the content of a file, or standard input.")
@click.option("--content-type", metavar="TYPE", help="What the data is; application/json unless given.")
@click.option("--source", metavar="URI", help=f"Who says so; {_SOURCE} unless given.")
@click.option("--subject", metavar="TEXT", help="What it is about.")
@click.option("--id", "id_", metavar="ID", help="Its id; the same source and id again changes nothing.")
@click.option("--deliver-at", type=MOMENT, metavar="TIME", help="Deliver at TIME, such as 2026-01-31T12:00:00Z.")
@click.option("--delay", type=DURATION, metavar="DURATION", help="Deliver after DURATION, such as 2s or 1h30m.")
@click.option(
    "--file",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    help="Publish a CloudEvent in JSON from each line; - for standard input.",
)
@dry_run_option
@json_option
def publish(
    path: Path,
    type_: str | None,
    file: str | None,
    deliver_at: datetime | None,
    delay: timedelta | None,
    dry_run: bool,
    as_json: bool,
    **attributes: str | None,
) -> None:
    """Publish an event of TYPE, or those of a file; print the receipt once they are durable.

    A file is read to its end before anything is published, so that a bad line loses nothing; standard
    input is published as it comes, up to the first bad line. Publishing a file again is safe.

    \b
    Examples:
      runner publish hello.world --data '{"n": 1}'
      runner publish order.created --data @order.json --source /shop --subject order/17
      runner publish reminder.due --delay 2s
      runner publish reminder.due --deliver-at 2026-01-31T12:00:00Z --json
      runner publish --file events.jsonl --dry-run
      runner events list --json | jq -c .event | runner publish -c other.yaml --file -
    """
    when = _When(delay, deliver_at)
    if delay is not None and deliver_at is not None:
        raise click.UsageError("give either --delay or --deliver-at, not both")
    if (type_ is None) == (file is None):
        raise click.UsageError("give either the TYPE of one event, or --file")
    if file is None:
        assert type_ is not None
        event = _event(type_, **attributes)
        asyncio.run(_publish_one(load(path), event, when, dry_run, as_json))
        return
    if any(value is not None for value in attributes.values()):
        raise click.UsageError("--file brings its own attributes; only --delay and --deliver-at go with it")
    _publish_file(path, file, when, dry_run, as_json)


def _event(
    type_: str, *, data: str | None, content_type: str | None, source: str | None, subject: str | None, id_: str | None
) -> Event:
    """Return the event the options describe; its data keeps every byte it was given as."""
    from ..event import Event, new_id

    content = None if data is None else _content(data)
    if content is not None and content_type is None:
        _check_json(content)
        content_type = "application/json"
    return Event.new(
        type_,
        content,
        source=source or _SOURCE,
        subject=subject,
        id=id_ or new_id(),
        datacontenttype=content_type,
    )


def _content(data: str) -> bytes:
    if data == "-":
        return sys.stdin.buffer.read()
    if not data.startswith("@"):
        return data.encode(errors="surrogateescape")
    try:
        return Path(data[1:]).read_bytes()
    except OSError as error:
        raise click.BadParameter(f"cannot read {data[1:]}: {error.strerror}", param_hint="--data") from error


def _check_json(content: bytes) -> None:
    import orjson

    try:
        orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise click.BadParameter(
            f"not JSON: {error}; --content-type says what other data is", param_hint="--data"
        ) from error


async def _publish_one(config: Config, event: Event, when: _When, dry_run: bool, as_json: bool) -> None:
    from .output import print_json
    from .records import receipt_json

    if dry_run:
        _print_event(event)
        return
    from ..builder import open_bus

    async with open_bus(config) as bus:
        receipt = await bus.publish(event, delay=when.delay, deliver_at=when.deliver_at)
    if as_json:
        print_json(receipt_json(receipt))
    else:
        click.echo(f"{receipt.id}  seq {receipt.seq}{'  duplicate' if receipt.duplicate else ''}")


def _print_event(event: Event) -> None:
    from ..cloudevents import encode_json

    click.echo(encode_json(event))


def _publish_file(path: Path, name: str, when: _When, dry_run: bool, as_json: bool) -> None:
    from .event_file import check, is_stream

    config = load(path)
    expected = check(name) if dry_run or not is_stream(name) else None
    if dry_run:
        click.echo(f"{expected} valid, nothing published")
    else:
        asyncio.run(_publish_lines(config, name, when, expected, as_json))


async def _publish_lines(config: Config, name: str, when: _When, expected: int | None, as_json: bool) -> None:
    from ..builder import open_bus
    from ..storage.base import Publication
    from .event_file import read_batches
    from .output import print_json, progress
    from .records import receipt_json

    published = duplicates = 0
    try:
        async with open_bus(config) as bus:
            with progress("publishing", expected) as advance:
                async for batch in read_batches(name, _BATCH):
                    receipts = await bus.publish_many(
                        [Publication(event, when.delay, when.deliver_at) for event in batch]
                    )
                    published += len(receipts)
                    duplicates += sum(receipt.duplicate for receipt in receipts)
                    advance(len(receipts))
                    for receipt in receipts if as_json else ():
                        print_json(receipt_json(receipt))
    finally:
        # Also after a failure: it says where to go on from.
        click.echo(f"{published} published, {duplicates} of them duplicates", err=as_json)
