"""`runner events`: look at what was published, replay it, reschedule it, cancel it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .completion import names_of
from .options import (
    DURATION,
    MOMENT,
    SINCE,
    config_option,
    dry_run_option,
    json_option,
    limit_option,
    load,
    rate_option,
)
from .trace import trace_event
from .transfer import export_events, import_events

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from ..config import Config
    from ..event import Event
    from ..storage.contract.corrections import ReplayQuery
    from ..storage.contract.records import EventQuery, EventView, Records

__all__ = ["events"]

_STATES = ("scheduled", "queued", "settled", "cancelled")
_PATIENCE = timedelta(seconds=5)  # until a search prints its progress
_PAUSE = 0.5  # seconds between two looks of `tail`


@click.group()
def events() -> None:
    """Look at what was published, replay it, reschedule or cancel what is still to come.

    \b
    Examples:
      runner events list --type 'order.*' --since 1h
      runner events show 12
      runner events tail
      runner events trace 12
      runner events export > events.jsonl
      runner events replay --subscription crm --since 1d --dry-run
      runner events reschedule 12 --delay 2h
      runner events cancel 12
    """


@events.command("list")
@config_option
@click.option("--state", type=click.Choice(_STATES), help="Only in this state.")
@click.option("--type", "type_", metavar="PATTERN", help="Only these types; * stands for any characters.")
@click.option("--source", metavar="PATTERN", help="Only these sources; * stands for any characters.")
@click.option("--subject", metavar="PATTERN", help="Only about these subjects; * stands for any characters.")
@click.option("--id", "id_", metavar="ID", help="Only with this id, of any source.")
@click.option("--since", type=SINCE, metavar="TIME", help="Recorded at or after TIME, such as 1h (ago).")
@click.option("--until", type=SINCE, metavar="TIME", help="Recorded before TIME.")
@limit_option
@json_option
def list_events(path: Path, as_json: bool, type_: str | None, id_: str | None, **conditions: Any) -> None:
    """Print events, the newest first.

    \b
    Examples:
      runner events list
      runner events list --type 'order.*' --since 1h
      runner events list --state queued
      runner events list --subject order/17
      runner events list --since 2026-01-31T00:00:00Z --limit 1000 --json
    """
    from ..storage.contract.records import EventQuery

    query = EventQuery(type=type_, id=id_, data=as_json, **conditions)
    asyncio.run(_list(load(path), query, as_json))


@events.command("show")
@config_option
@click.argument("event")
@json_option
def show_event(path: Path, event: str, as_json: bool) -> None:
    """Print one EVENT, given by its seq or its id, with its data.

    \b
    Examples:
      runner events show 12
      runner events show 019b0d6c-5f5e-7c33-8f0e-0d6a5b7c9e11 --json
    """
    asyncio.run(_show(load(path), event, as_json))


@events.command("tail")
@config_option
@click.option("--type", "type_", metavar="PATTERN", help="Only these types; * stands for any characters.")
@click.option("--since", type=SINCE, metavar="TIME", help="Begin at TIME, such as 10m (ago); otherwise now.")
@click.option("--url", metavar="URL", is_eager=True, help="Follow a bus over HTTP, with the token of $RUNNER_TOKEN.")
@json_option
def tail_events(path: Path, type_: str | None, since: datetime | None, url: str | None, as_json: bool) -> None:
    """Print events as they are published, until interrupted.

    With --url no file is needed: the events come from the stream of a runner with an api section. It goes on
    where it was when a connection is lost.

    \b
    Examples:
      runner events tail
      runner events tail --type 'order.*' --since 10m --json
      RUNNER_TOKEN=$(cat token) runner events tail --url https://bus.example.com
    """
    if url is not None:
        _tail_remote(url, type_, since, as_json)
    else:
        asyncio.run(_tail(load(path), type_, since, as_json))


@events.command("replay")
@config_option
@click.option(
    "--subscription",
    metavar="NAME",
    shell_complete=names_of("subscriptions"),
    required=True,
    help="The subscription that gets them.",
)
@click.option("--type", "type_", metavar="PATTERN", help="Only these types; * stands for any characters.")
@click.option("--source", metavar="PATTERN", help="Only these sources; * stands for any characters.")
@click.option("--since", type=SINCE, metavar="TIME", help="Recorded at or after TIME, such as 1h (ago).")
@click.option("--until", type=SINCE, metavar="TIME", help="Recorded before TIME.")
@click.option("--missing", is_flag=True, help="Only events without a delivery to the subscription.")
@rate_option
@dry_run_option
@json_option
def replay_events(
    path: Path,
    subscription: str,
    type_: str | None,
    source: str | None,
    since: datetime | None,
    until: datetime | None,
    missing: bool,
    every: timedelta | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Deliver recorded events to a subscription again, or for the first time.

    All that match the subscription and the options, the oldest first, with fresh attempts: also what was delivered
    or is dead. Left alone is what waits, is running or was cancelled. A subscription that is newer than the
    events gets them, too.

    \b
    Examples:
      runner events replay --subscription crm --since 1d --dry-run
      runner events replay --subscription search --missing --rate 100/s
      runner events replay --subscription crm --type 'order.*' --since 2026-01-31T00:00:00Z --until 1h
    """
    from ..storage.contract.corrections import ReplayQuery

    query = ReplayQuery(subscription=subscription, type=type_, source=source, since=since, until=until, missing=missing)
    asyncio.run(_replay(load(path), query, every, dry_run, as_json))


@events.command("cancel")
@config_option
@click.argument("event")
@json_option
def cancel_event(path: Path, event: str, as_json: bool) -> None:
    """Cancel the open deliveries of one EVENT, given by its seq or its id.

    A scheduled or queued event is not delivered; deliveries that wait or run are cancelled. What a sink has
    been given already has arrived.

    \b
    Examples:
      runner events cancel 12
      runner events cancel 019b0d6c-5f5e-7c33-8f0e-0d6a5b7c9e11 --json
    """
    asyncio.run(_cancel(load(path), event, as_json))


@events.command("reschedule")
@config_option
@click.argument("event")
@click.option("--delay", type=DURATION, metavar="DURATION", help="Due after DURATION from now, such as 2s or 1h30m.")
@click.option("--deliver-at", type=MOMENT, metavar="TIME", help="Due at TIME, such as 2026-01-31T12:00:00Z.")
@click.option(
    "--subscription", metavar="NAME", shell_complete=names_of("subscriptions"), help="Only the delivery to this one."
)
@json_option
def reschedule_event(
    path: Path,
    event: str,
    delay: timedelta | None,
    deliver_at: datetime | None,
    subscription: str | None,
    as_json: bool,
) -> None:
    """Have an EVENT, given by its seq or its id, be due at another time.

    A scheduled event, or one that waits to be dispatched, moves as a whole. Of one that is dispatched those
    deliveries move that wait: for their next attempt, a rate, an order, or because of a pause. What runs at this
    moment is left alone.

    \b
    Examples:
      runner events reschedule 12 --delay 2h
      runner events reschedule 12 --delay 0s
      runner events reschedule order-17 --deliver-at 2026-01-31T12:00:00Z --subscription crm --json
    """
    if (delay is None) == (deliver_at is None):
        raise click.UsageError("give either --delay or --deliver-at")
    when = {"delay": delay, "deliver_at": deliver_at}
    asyncio.run(_reschedule(load(path), event, when, subscription, as_json))


events.add_command(trace_event)
events.add_command(export_events)
events.add_command(import_events)


async def _list(config: Config, query: EventQuery, as_json: bool) -> None:
    from ..builder import open_storage
    from ..operations.shapes import event_json
    from .output import print_json, print_table
    from .rows import EVENT_COLUMNS, EVENT_SPARE, event_row

    rows: list[Any] = []
    try:
        async with open_storage(config, writes=False) as storage:
            async for view in _found(storage.records, query):
                print_json(event_json(view)) if as_json else rows.append(event_row(view))
    except asyncio.CancelledError:  # after Ctrl-C the events found so far are printed
        if rows:
            print_table(EVENT_COLUMNS, rows, spare=EVENT_SPARE)
        raise
    if not as_json:
        print_table(EVENT_COLUMNS, rows, spare=EVENT_SPARE)


async def _found(records: Records, query: EventQuery) -> AsyncIterator[EventView]:
    """Yield the events that a query finds; print the progress of a long search."""
    from .output import tell

    left, below = query.limit, query.before_seq
    while left > 0:
        size = min(left, 500)  # of which the data is held at once
        found, reached = await records.search(replace(query, limit=size, before_seq=below), _PATIENCE)
        for view in found:
            yield view
        left -= len(found)
        if len(found) == size:
            below = found[-1].seq
        elif reached is None:
            return
        else:
            below = reached
            tell(f"looked at the events from seq {reached} on, and goes on; --since makes a search shorter")


async def _show(config: Config, reference: str, as_json: bool) -> None:
    from ..builder import open_storage
    from ..operations.shapes import event_json
    from .output import print_json

    async with open_storage(config, writes=False) as storage:
        view = await storage.records.event(reference)
    if as_json:
        print_json(event_json(view))
    else:
        _print_event(view)


def _print_event(view: EventView) -> None:
    from .output import moment, print_fields
    from .rows import counts

    event = view.event
    print_fields(
        {
            "seq": view.seq,
            "state": view.state,
            "deliveries": counts(view.deliveries) or None,
            "created": moment(view.created_at),
            "due": moment(view.due_at) or None,
            "id": event.id,
            "source": event.source,
            "type": event.type,
            "subject": event.subject,
            "time": moment(event.time) or None,
            "datacontenttype": event.datacontenttype,
            "dataschema": event.dataschema,
            **{name: event.extensions[name] for name in sorted(event.extensions)},
            "data": None if event.data is None else _readable(event),
        }
    )


def _readable(event: Event) -> str:
    data = event.data or b""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return f"{len(data)} bytes; --json prints them as data_base64"


async def _replay(config: Config, query: ReplayQuery, every: timedelta | None, dry_run: bool, as_json: bool) -> None:
    from ..builder import open_operations
    from .output import accounted, print_json, print_line, tell_unheard

    async with open_operations(config, unheard=tell_unheard) as operations:
        with accounted("replaying", None) as advance:
            number = await operations.replay(query, every=every, dry_run=dry_run, advance=advance)
    if as_json:
        print_json({"replayed": number, "dry_run": dry_run})
        return
    would = "would be " if dry_run else ""
    print_line(f"{number} {'event' if number == 1 else 'events'} {would}replayed to {query.subscription}")


async def _cancel(config: Config, reference: str, as_json: bool) -> None:
    from ..builder import open_operations
    from .output import print_json, print_line, tell_unheard

    async with open_operations(config, unheard=tell_unheard) as operations:
        view, number = await operations.cancel_event(reference)
    if as_json:
        print_json({"seq": view.seq, "cancelled": number})
    else:
        print_line(f"event {view.seq} cancelled, {number} {'delivery' if number == 1 else 'deliveries'}")


async def _reschedule(
    config: Config, reference: str, when: Mapping[str, Any], subscription: str | None, as_json: bool
) -> None:
    from ..builder import open_operations
    from ..operations.shapes import rescheduled_json
    from .output import moment, print_json, print_line, tell, tell_unheard

    async with open_operations(config, unheard=tell_unheard) as operations:
        view, moved = await operations.reschedule(reference, **when, subscription=subscription)
    if as_json:
        print_json(rescheduled_json(view.seq, moved))
        return
    what = "" if moved.whole else f": {moved.deliveries} {'delivery' if moved.deliveries == 1 else 'deliveries'}"
    print_line(f"event {view.seq}{what} due {moment(moved.due_at)}")
    if moved.running:
        tell(f"{moved.running} of its deliveries run at this moment, and were left alone")


async def _tail(config: Config, pattern: str | None, since: datetime | None, as_json: bool) -> None:
    from ..builder import open_storage
    from ..operations.following import Follower
    from ..subscription import matches_pattern
    from .output import tell

    async with open_storage(config, writes=False) as storage:
        follower = await Follower.beginning(storage.records, since)
        while True:
            async for view in follower.look():
                if pattern is None or matches_pattern(pattern, view.event.type):
                    _print_line(view, as_json)
            if given_up := follower.given_up():
                tell(f"gave up on {given_up} gaps in seq: events in them may be missed")
            await asyncio.sleep(_PAUSE)


def _tail_remote(url: str, pattern: str | None, since: datetime | None, as_json: bool) -> None:
    from .output import print_json
    from .remote import RemoteTail

    for view, text in RemoteTail(url, pattern, since).views():
        if as_json:
            print_json(text)
        else:
            _print_line(view, as_json=False)


def _print_line(view: EventView, as_json: bool) -> None:
    from ..operations.shapes import event_json
    from .output import moment, print_json, print_line

    if as_json:
        print_json(event_json(view))
        return
    event = view.event
    data = "" if event.data is None else _readable(event)
    line = f"{moment(view.created_at)}  {view.seq}  {event.type}  {event.source}  {event.id}  {data}"
    print_line(line.rstrip())
