"""`runner deliveries`: look at deliveries, and retry, cancel or acknowledge them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from .options import SINCE, config_option, dry_run_option, json_option, limit_option, load, rate_option

if TYPE_CHECKING:
    from ..config import Config
    from ..storage.views import AttemptView, DeliveryQuery, DeliveryView, Records

__all__ = ["deliveries"]

Verb = Literal["retry", "cancel"]

_DONE: dict[Verb, str] = {"retry": "retried", "cancel": "cancelled"}
_FITTING: dict[Verb, tuple[str, str]] = {"retry": ("dead", "cancelled"), "cancel": ("pending", "leased")}


def _filters(*states: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the options that say which deliveries; `states` are those that `--state` offers."""
    options = (
        click.option("--until", type=SINCE, metavar="TIME", help="Last changed before TIME."),
        click.option("--since", type=SINCE, metavar="TIME", help="Last changed at or after TIME, such as 1h (ago)."),
        click.option("--type", "type_", metavar="PATTERN", help="Only of events of these types; * is any characters."),
        click.option("--subscription", metavar="NAME", help="Only of this subscription."),
        click.option("--state", type=click.Choice(states), help="Only in this state."),
    )

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        return reduce(lambda added, option: option(added), options, command)

    return add


@click.group()
def deliveries() -> None:
    """Look at deliveries, retry dead ones, cancel waiting ones, acknowledge deferred ones.

    \b
    Examples:
      runner deliveries list --state dead
      runner deliveries show 12 crm
      runner deliveries retry --subscription crm --since 1h --dry-run
    """


@deliveries.command("list")
@config_option
@_filters("pending", "leased", "delivered", "dead", "cancelled")
@click.option("--event", metavar="EVENT", help="Only of this event, given by its seq or its id.")
@limit_option
@json_option
def list_deliveries(
    path: Path,
    state: str | None,
    subscription: str | None,
    type_: str | None,
    since: datetime | None,
    until: datetime | None,
    event: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """Print deliveries, those of the newest event first.

    \b
    Examples:
      runner deliveries list --state dead
      runner deliveries list --subscription crm --since 1h --json
      runner deliveries list --event 12
    """
    query = replace(_query(state, subscription, type_, since, until), limit=limit)
    asyncio.run(_list(load(path), query, event, as_json))


@deliveries.command("show")
@config_option
@click.argument("event")
@click.argument("subscription")
@json_option
def show_delivery(path: Path, event: str, subscription: str, as_json: bool) -> None:
    """Print the delivery of EVENT (its seq or its id) to SUBSCRIPTION, with its attempts.

    \b
    Examples:
      runner deliveries show 12 crm
      runner deliveries show 019b0d6c-5f5e-7c33-8f0e-0d6a5b7c9e11 crm --json
    """
    asyncio.run(_show(load(path), event, subscription, as_json))


@deliveries.command("retry")
@config_option
@click.argument("target", nargs=-1, metavar="[EVENT SUBSCRIPTION]")
@_filters(*_FITTING["retry"])
@rate_option
@dry_run_option
@json_option
def retry(
    path: Path, target: tuple[str, ...], every: timedelta | None, dry_run: bool, as_json: bool, **filters: Any
) -> None:
    """Make dead or cancelled deliveries due now, or at a rate, with fresh attempts; the oldest first.

    Either the one of EVENT (its seq or its id) to SUBSCRIPTION, or all that the options describe.

    \b
    Examples:
      runner deliveries retry 12 crm
      runner deliveries retry --state dead --subscription crm --dry-run
      runner deliveries retry --state dead --since 1h
      runner deliveries retry --state dead --type 'order.*' --rate 10/s
    """
    _check_target(target, filters)
    asyncio.run(_change("retry", load(path), target, _query(**filters), dry_run, as_json, every))


@deliveries.command("cancel")
@config_option
@click.argument("target", nargs=-1, metavar="[EVENT SUBSCRIPTION]")
@_filters(*_FITTING["cancel"])
@dry_run_option
@json_option
def cancel(path: Path, target: tuple[str, ...], dry_run: bool, as_json: bool, **filters: Any) -> None:
    """Cancel deliveries that wait or run; the answer of a running one will not count.

    Either the one of EVENT (its seq or its id) to SUBSCRIPTION, or all that the options describe.

    \b
    Examples:
      runner deliveries cancel 12 crm
      runner deliveries cancel --subscription crm --dry-run
    """
    _check_target(target, filters)
    asyncio.run(_change("cancel", load(path), target, _query(**filters), dry_run, as_json))


@deliveries.command("ack")
@config_option
@click.argument("event")
@click.argument("subscription")
@click.option("--fail", "failure", metavar="REASON", help="It has failed; the retry policy decides what follows.")
@json_option
def ack(path: Path, event: str, subscription: str, failure: str | None, as_json: bool) -> None:
    """Acknowledge the delivery of EVENT (its seq or its id) to SUBSCRIPTION, which its sink deferred.

    \b
    Examples:
      runner deliveries ack 12 crm
      runner deliveries ack 12 crm --fail "no such customer"
    """
    asyncio.run(_ack(load(path), event, subscription, failure, as_json))


def _check_target(target: tuple[str, ...], filters: dict[str, object]) -> None:
    filtered = any(value is not None for value in filters.values())
    if target and filtered:
        raise click.UsageError("give either EVENT SUBSCRIPTION or options, not both")
    if not target and not filtered:
        raise click.UsageError(
            "give EVENT SUBSCRIPTION, or at least one of --state, --subscription, --type, --since and --until"
        )
    if len(target) not in (0, 2):
        raise click.UsageError("expected EVENT SUBSCRIPTION, for example: 12 crm")


def _query(
    state: str | None,
    subscription: str | None,
    type_: str | None,
    since: datetime | None,
    until: datetime | None,
) -> DeliveryQuery:
    from ..delivery import DeliveryState
    from ..storage.views import DeliveryQuery

    wanted = None if state is None else DeliveryState(state)
    return DeliveryQuery(state=wanted, subscription=subscription, type=type_, since=since, until=until, limit=None)


async def _list(config: Config, query: DeliveryQuery, event: str | None, as_json: bool) -> None:
    from ..builder import open_storage
    from .output import print_json, print_table
    from .records import DELIVERY_COLUMNS, DELIVERY_SPARE, delivery_json, delivery_row

    async with open_storage(config, writes=False) as storage:
        await _check_subscription(storage.records, query.subscription)
        if event is not None:
            query = replace(query, seq=await _seq(storage.records, event))
        if as_json:
            async for view in storage.records.deliveries(query):
                print_json(delivery_json(view))
        else:
            rows = [delivery_row(view) async for view in storage.records.deliveries(query)]
            print_table(DELIVERY_COLUMNS, rows, spare=DELIVERY_SPARE)


async def _show(config: Config, event: str, subscription: str, as_json: bool) -> None:
    from ..builder import open_storage
    from .output import print_json
    from .records import attempt_json, delivery_json

    async with open_storage(config, writes=False) as storage:
        view, history = await storage.records.delivery(await _seq(storage.records, event), subscription)
    if as_json:
        print_json({**delivery_json(view), "history": [attempt_json(each) for each in history]})
    else:
        _print_delivery(view, history)


def _print_delivery(view: DeliveryView, history: Sequence[AttemptView]) -> None:
    from .output import print_fields, print_line, print_table

    print_fields(
        {
            "seq": view.seq,
            "subscription": view.subscription,
            "state": view.state.value,
            "attempts": view.attempts,
            "due": view.due_at,
            "updated": view.updated_at,
            "error": view.last_error,
            "event id": view.event_id,
            "event source": view.event_source,
            "event type": view.event_type,
        }
    )
    if history:
        print_line("")
        rows = [(each.number, each.at, each.duration, each.status, each.error, each.excerpt) for each in history]
        print_table(("attempt", "at", "took", "status", "error", "answer"), rows, spare=("status",))


async def _change(
    verb: Verb,
    config: Config,
    target: tuple[str, ...],
    query: DeliveryQuery,
    dry_run: bool,
    as_json: bool,
    every: timedelta | None = None,
) -> None:
    from ..builder import open_storage
    from .output import print_json, print_line, progress
    from .wakeup import wake_workers

    async with open_storage(config) as storage:
        if target:
            query = replace(query, seq=await _seq(storage.records, target[0]), subscription=target[1])
        await _check_subscription(storage.records, query.subscription)
        change = partial(storage.records.retry, every=every) if verb == "retry" else storage.records.cancel
        total = None if target or dry_run or not sys.stderr.isatty() else await change(query, dry_run=True)
        with progress(f"{verb} deliveries", total) as advance:
            number = await change(query, dry_run=dry_run, advance=advance)
        if target and number == 0:
            await _explain(verb, storage.records, query)
    if number and not dry_run:
        await wake_workers(config)
    if as_json:
        print_json({_DONE[verb]: number, "dry_run": dry_run})
        return
    would = "would be " if dry_run else ""
    print_line(f"{number} {'delivery' if number == 1 else 'deliveries'} {would}{_DONE[verb]}")


async def _ack(config: Config, event: str, subscription: str, failure: str | None, as_json: bool) -> None:
    from ..builder import open_storage
    from .output import print_json, print_line
    from .wakeup import wake_workers

    async with open_storage(config) as storage:
        await _check_subscription(storage.records, subscription)
        changed = await storage.records.ack(event, subscription, failure=failure)
    if changed:  # a failure is claimed at once, and behind a success the next of its line
        await wake_workers(config)
    answer = "delivered" if failure is None else "failed"
    if as_json:
        print_json({"event": event, "subscription": subscription, "answer": answer, "changed": changed})
    else:
        said = {"delivered": "is acknowledged", "failed": "has failed"}[answer] if changed else "was delivered already"
        print_line(f"the delivery of event {event} to {subscription} {said}")


async def _check_subscription(records: Records, name: str | None) -> None:
    """Raise `NotFound`, with the names there are, where a mistyped one would look like "nothing to do"."""
    from ..errors import NotFound

    if name is None:
        return
    known = sorted(registered.subscription.name for registered, _, _ in await records.registered())
    if name not in known:
        raise NotFound(f"no subscription {name!r}; there are: {', '.join(known) or 'none'}")


async def _explain(verb: Verb, records: Records, query: DeliveryQuery) -> None:
    """Raise: the one delivery that was asked for does not exist, or is in no state for this."""
    assert query.seq is not None
    assert query.subscription is not None
    view, _ = await records.delivery(query.seq, query.subscription)
    raise click.ClickException(
        f"the delivery of event {view.seq} to {view.subscription} is {view.state.value}; "
        f"only {' or '.join(_FITTING[verb])} ones can be {_DONE[verb]}"
    )


async def _seq(records: Records, reference: str) -> int:
    return (await records.event(reference)).seq
