"""`runner publish`: one event, or a file of them."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import DURATION, MOMENT, config_option, content_of, dry_run_option, json_option, load
from .output import OutputClosed, drop_output, moment, print_json, print_line, progress, tell, tell_unheard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ..config import Config
    from ..event import Event
    from ..operations import Operations
    from ..operations.transfer import Transfer
    from ..storage.contract.records import SubscriptionView
    from ..subscription import Matcher

__all__ = ["publish", "publish_file"]

_SOURCE = "/runner/cli"
_BATCH = 500  # events in one transaction


@dataclass(frozen=True, slots=True)
class _When:
    """The due time of events, given by at most one of the first two fields, and when they expire."""

    delay: timedelta | None = None
    deliver_at: datetime | None = None
    expires_in: timedelta | None = None

    @property
    def given(self) -> bool:
        """Whether the events are due later than at once."""
        return self.delay is not None or self.deliver_at is not None

    @property
    def futile(self) -> bool:
        """Whether the events expire before they are due."""
        return self.given and self.expires_in is not None and datetime.now(UTC) + self.expires_in <= self.moment()

    def moment(self) -> datetime:
        """Return the time on this machine's clock."""
        return self.deliver_at or datetime.now(UTC) + (self.delay or timedelta(0))


@click.command()
@config_option
@click.argument("type_", metavar="[TYPE]", required=False)
@click.option(
    "--data", metavar="JSON|@FILE|-", help="The data: JSON, the content of a file, or (also as @-) standard input."
)
@click.option("--content-type", metavar="TYPE", help="Content type of the data; application/json unless given.")
@click.option("--source", metavar="URI", help=f"Who says so; {_SOURCE} unless given.")
@click.option("--subject", metavar="TEXT", help="Subject of the event.")
@click.option("--id", "id_", metavar="ID", help="Event id; publishing a source and id again changes nothing.")
@click.option("--deliver-at", type=MOMENT, metavar="TIME", help="Deliver at TIME, such as 2026-01-31T12:00:00Z.")
@click.option("--delay", type=DURATION, metavar="DURATION", help="Deliver after DURATION, such as 2s or 1h30m.")
@click.option(
    "--expires-in",
    type=DURATION,
    metavar="DURATION",
    help="Deliver it within DURATION, such as 10m, or not at all: then it is dead.",
)
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
    expires_in: timedelta | None,
    dry_run: bool,
    as_json: bool,
    **attributes: str | None,
) -> None:
    """Publish an event of TYPE, or those of a file; print the receipt once they are durable.

    A file is read to its end before anything is published, so that a bad line loses nothing; standard
    input is published as it comes, up to the first bad line. Publishing a file again is safe. An event whose
    source and id are taken by another is left out and reported; the rest is published. With --dry-run nothing is
    published: it says for each subscription whether it would get the event, and if not, which clause fails.

    \b
    Examples:
      runner publish hello.world --data '{"n": 1}'
      runner publish order.created --data @order.json --source /shop --subject order/17
      runner publish reminder.due --delay 2s
      runner publish price.changed --data @price.json --expires-in 10m
      runner publish reminder.due --deliver-at 2026-01-31T12:00:00Z --json
      runner publish order.created --source /shop --dry-run
      runner publish --file events.jsonl --dry-run
      tail -f events.jsonl | runner publish --file -
    """
    for name, value in (("TYPE", type_), ("--source", attributes["source"]), ("--id", attributes["id_"])):
        if value == "":
            raise click.UsageError(f"{name} must not be empty")
    when = _When(delay, deliver_at, expires_in)
    if delay is not None and deliver_at is not None:
        raise click.UsageError("give either --delay or --deliver-at, not both")
    if expires_in is not None and expires_in <= timedelta(0):
        raise click.UsageError("--expires-in must be more than zero")
    if (type_ is None) == (file is None):
        raise click.UsageError("give either the TYPE of one event, or --file")
    if file is None:
        assert type_ is not None
        event = _event(type_, **attributes)
        asyncio.run(_publish_one(load(path), event, when, dry_run, as_json))
        return
    if any(value is not None for value in attributes.values()):
        raise click.UsageError("--file brings its own attributes; --delay, --deliver-at and --expires-in go with it")
    _publish_file(path, file, when, dry_run, as_json)


def _event(
    type_: str, *, data: str | None, content_type: str | None, source: str | None, subject: str | None, id_: str | None
) -> Event:
    """Return the event described by the options, with its data byte for byte."""
    from ..event import Event, new_id

    content = None if data is None else content_of(data)
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


def _check_json(content: bytes) -> None:
    import orjson

    try:
        orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise click.BadParameter(
            f"not JSON: {error}; --content-type says what other data is", param_hint="--data"
        ) from error


async def _publish_one(config: Config, event: Event, when: _When, dry_run: bool, as_json: bool) -> None:
    from ..operations.shapes import receipt_json

    if dry_run:
        await _try_one(config, event, when, as_json)
        return
    from ..builder import open_publishing

    async with open_publishing(config, unheard=tell_unheard) as (bus, operations):
        receipt = await bus.publish(event, delay=when.delay, deliver_at=when.deliver_at, expires_in=when.expires_in)
        due = await _due(operations, receipt.seq) if when.given else None
        with _recorded():
            if as_json:
                print_json(receipt_json(receipt) | ({} if due is None else {"due_at": due}))
            else:
                duplicate = "  duplicate" if receipt.duplicate else ""
                at = "" if due is None else f"  due {moment(due)}"
                print_line(f"{receipt.id}  seq {receipt.seq}{duplicate}{at}")
        matcher = await _matcher(config, operations)
    _warn(when)
    if matcher is not None and not matcher.match(event):
        tell(f"warning: {event.type} matches no subscription, so nobody gets it; `runner subscriptions list` has them")


def _warn(when: _When) -> None:
    if when.futile:
        tell("warning: it expires before it is due, so nobody gets it")


async def _matcher(config: Config, operations: Operations) -> Matcher[str] | None:
    """Return the matcher of the active subscriptions; None if they cannot be read, which does not fail the publish."""
    from ..errors import RunnerError

    try:
        return await operations.matcher(config.to_subscriptions())
    except RunnerError:
        return None


@contextmanager
def _recorded() -> Iterator[None]:
    """Print the receipt; a closed output does not undo the publish, and is no failure."""
    try:
        yield
    except OutputClosed:
        drop_output()
    except OSError as error:
        drop_output()
        tell(f"warning: published, but standard output takes no more: {error.strerror}")


async def _due(operations: Operations, seq: int) -> datetime | None:
    """Return when the event is due, as it was recorded: the store's clock decides, and a duplicate keeps its time."""
    from ..errors import RunnerError

    try:
        return (await operations.records.event(str(seq))).due_at
    except RunnerError:  # the store is unreachable now, but the event is recorded
        return None


async def _try_one(config: Config, event: Event, when: _When, as_json: bool) -> None:
    """Check an event as publishing does, and print which subscriptions would get it."""
    from orjson import Fragment

    from ..builder import type_schemas
    from ..bus.checks import check, expiring
    from ..cloudevents import encode_json
    from ..diagnosis.prospects import prospects, prospects_json
    from ..storage.contract.events import Publication

    publication = Publication(event, when.delay, when.deliver_at, when.expires_in)
    check(publication)
    event = expiring(publication, datetime.now(UTC)).event
    if (schemas := type_schemas(config)) is not None:
        schemas.check([publication])
    found = prospects(event, await _registered(config), config.to_subscriptions())
    due = when.moment() if when.given else None
    _warn(when)
    if as_json:
        print_json(prospects_json(event, found, due) | {"event": Fragment(encode_json(event))})
        return
    print_json(encode_json(event))
    if due is not None:
        tell(f"due {moment(due)}")
    for each in found:
        print_line(f"{each.subscription}: {each}")


async def _registered(config: Config) -> Sequence[SubscriptionView]:
    """Return the subscriptions in the store; none if it cannot be reached, because a dry run needs no store."""
    from ..builder import open_storage
    from ..errors import SchemaMismatch, StorageUnavailable

    try:
        async with open_storage(config, writes=False) as storage:
            return await storage.records.registered()
    except SchemaMismatch:
        return []
    except StorageUnavailable as error:
        tell(f"only the subscriptions of the file are known: {error}")
        return []


def _publish_file(path: Path, name: str, when: _When, dry_run: bool, as_json: bool) -> None:
    from ..operations.event_file import check, is_stream

    config = load(path)
    expected = check(name, _accepted(config)) if dry_run or not is_stream(name) else None
    if dry_run:
        print_line(f"{expected} valid, nothing published")
    else:
        asyncio.run(_publish_lines(config, name, when, expected, as_json))


def _accepted(config: Config, *, exported: bool = False) -> Callable[[Event], object]:
    """Return a function that raises for an event that the bus would refuse."""
    from ..builder import type_schemas
    from ..service.uri import check_references
    from ..storage.contract.events import Publication

    schemas = type_schemas(config)

    def accept(event: Event) -> None:
        if not exported:
            check_references(event.source, event.dataschema)
        if schemas is not None:
            schemas.check([Publication(event)])

    return accept


def publish_file(path: Path, name: str, *, as_json: bool) -> None:
    """Publish exported events; those already recorded are left alone, even if the bus had set their time."""
    from ..operations.event_file import check, is_stream

    config = load(path)
    expected = None if is_stream(name) else check(name, _accepted(config, exported=True))
    asyncio.run(_publish_lines(config, name, _When(), expected, as_json, exported=True))


async def _publish_lines(
    config: Config, name: str, when: _When, expected: int | None, as_json: bool, *, exported: bool = False
) -> None:
    from ..builder import open_publishing
    from ..errors import EventConflict
    from ..operations.event_file import read_batches
    from ..operations.shapes import receipt_json
    from ..operations.transfer import Transfer

    async with open_publishing(config, unheard=tell_unheard) as (bus, operations):
        matcher = await _matcher(config, operations)
        transfer = Transfer(
            bus,
            delay=when.delay,
            deliver_at=when.deliver_at,
            expires_in=when.expires_in,
            exported=exported,
            matcher=matcher,
        )
        ended = False
        try:
            with progress("publishing", expected) as advance:
                async for batch in read_batches(name, _BATCH, _accepted(config, exported=exported)):
                    receipts = await transfer.publish(batch)
                    advance(len(batch))
                    with _recorded():
                        for receipt in receipts if as_json else ():
                            print_json(receipt_json(receipt))
            ended = True
        finally:
            _print_count(transfer, as_json)
            if not ended and expected is not None:
                tell("publish the file again to go on; events that are recorded already stay unchanged")
    if transfer.conflicts:
        raise EventConflict("what is in conflict was not published; give a changed event a new id")


def _print_count(transfer: Transfer, as_json: bool) -> None:
    refused = f", {len(transfer.conflicts)} in conflict" if transfer.conflicts else ""
    count = f"{transfer.new} new, {transfer.duplicates} already there{refused}"
    with _recorded():
        tell(count) if as_json else print_line(count)
    if transfer.unknown:
        tell(f"{transfer.unknown} more were on their way, and may have been recorded")
    if transfer.unwanted:
        tell(f"warning: {transfer.unwanted} of them match no subscription, so nobody gets them")
    for conflict in transfer.conflicts:
        tell(conflict)
