"""`runner deliveries`: look at deliveries, and retry, cancel or acknowledge them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .completion import names_of
from .options import SINCE, config_option, dry_run_option, json_option, limit_option, load, rate_option

if TYPE_CHECKING:
    from ..config import Config
    from ..operations import DeliveryRef
    from ..storage.contract.records import AttemptView, DeliveryQuery, DeliveryView

__all__ = ["deliveries"]

_RETRYABLE, _CANCELLABLE = ("dead", "cancelled"), ("pending", "leased")


def _filters(*states: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the options that say which deliveries; `states` are those that `--state` offers."""
    options = (
        click.option("--until", type=SINCE, metavar="TIME", help="Last changed before TIME."),
        click.option("--since", type=SINCE, metavar="TIME", help="Last changed at or after TIME, such as 1h (ago)."),
        click.option("--type", "type_", metavar="PATTERN", help="Only of events of these types; * is any characters."),
        click.option(
            "--subscription",
            metavar="NAME",
            shell_complete=names_of("subscriptions"),
            help="Only of this subscription.",
        ),
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
@click.option(
    "--sort",
    type=click.Choice(("event", "due")),
    default="event",
    help="Newest event first; or by due time, only those that wait or run.",
)
@limit_option
@json_option
def list_deliveries(path: Path, event: str | None, sort: str, limit: int, as_json: bool, **filters: Any) -> None:
    """Print deliveries, those of the newest event first.

    \b
    Examples:
      runner deliveries list --state dead
      runner deliveries list --subscription crm --since 1h --json
      runner deliveries list --sort due
      runner deliveries list --event 12
    """
    query = replace(_query(**filters), limit=limit, soonest_first=sort == "due")
    asyncio.run(_list(load(path), query, event, as_json))


@deliveries.command("show")
@config_option
@click.argument("event")
@click.argument("subscription", shell_complete=names_of("subscriptions"))
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
@_filters(*_RETRYABLE)
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
    which = _which(target, filters)
    asyncio.run(_retry(load(path), which, every, dry_run, as_json))


@deliveries.command("cancel")
@config_option
@click.argument("target", nargs=-1, metavar="[EVENT SUBSCRIPTION]")
@_filters(*_CANCELLABLE)
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
    which = _which(target, filters)
    asyncio.run(_cancel(load(path), which, dry_run, as_json))


@deliveries.command("ack")
@config_option
@click.argument("event")
@click.argument("subscription", shell_complete=names_of("subscriptions"))
@click.option("--fail", "failure", metavar="REASON", help="Report a failure; the retry policy decides what follows.")
@json_option
def ack(path: Path, event: str, subscription: str, failure: str | None, as_json: bool) -> None:
    """Acknowledge the delivery of EVENT (its seq or its id) to SUBSCRIPTION, which its sink deferred.

    \b
    Examples:
      runner deliveries ack 12 crm
      runner deliveries ack 12 crm --fail "no such customer"
    """
    asyncio.run(_ack(load(path), event, subscription, failure, as_json))


def _which(target: tuple[str, ...], filters: dict[str, Any]) -> DeliveryQuery | DeliveryRef:
    from ..operations import DeliveryRef

    filtered = any(value is not None for value in filters.values())
    if target and filtered:
        raise click.UsageError("give either EVENT SUBSCRIPTION or options, not both")
    if not target and not filtered:
        raise click.UsageError(
            "give EVENT SUBSCRIPTION, or at least one of --state, --subscription, --type, --since and --until"
        )
    if len(target) not in (0, 2):
        raise click.UsageError("expected EVENT SUBSCRIPTION, for example: 12 crm")
    return DeliveryRef(*target) if target else _query(**filters)


def _query(
    state: str | None,
    subscription: str | None,
    type_: str | None,
    since: datetime | None,
    until: datetime | None,
) -> DeliveryQuery:
    from ..delivery import DeliveryState
    from ..storage.contract.records import DeliveryQuery

    wanted = None if state is None else DeliveryState(state)
    return DeliveryQuery(state=wanted, subscription=subscription, type=type_, since=since, until=until, limit=None)


async def _list(config: Config, query: DeliveryQuery, event: str | None, as_json: bool) -> None:
    from ..builder import open_operations
    from ..operations.shapes import delivery_json
    from .output import print_json, print_table
    from .rows import DELIVERY_COLUMNS, DELIVERY_SPARE, delivery_row

    async with open_operations(config, writes=False) as operations:
        found = operations.records.deliveries(await operations.query(query, event=event))
        holds = await operations.holds()
        if as_json:
            async for view in found:
                print_json(delivery_json(view, _held_by(view, holds)))
        else:
            rows = [delivery_row(view, _held_by(view, holds)) async for view in found]
            print_table(DELIVERY_COLUMNS, rows, spare=DELIVERY_SPARE)


def _held_by(view: DeliveryView, holds: Mapping[str, str]) -> str | None:
    """Return why a delivery waits, apart from its due time."""
    return holds.get(view.subscription) if view.state == "pending" else None


async def _show(config: Config, event: str, subscription: str, as_json: bool) -> None:
    from ..builder import open_operations
    from ..operations import DeliveryRef
    from ..operations.shapes import attempt_json, delivery_json
    from .output import print_json

    async with open_operations(config, writes=False) as operations:
        view, history = await operations.delivery(DeliveryRef(event, subscription))
        held_by = _held_by(view, await operations.holds())
    if as_json:
        print_json({**delivery_json(view, held_by), "history": [attempt_json(each) for each in history]})
    else:
        _print_delivery(view, held_by, history)


def _print_delivery(view: DeliveryView, held_by: str | None, history: Sequence[AttemptView]) -> None:
    from .output import print_fields, print_line, print_table

    print_fields(
        {
            "seq": view.seq,
            "subscription": view.subscription,
            "state": view.state.value,
            "attempts": view.attempts,
            "due": view.due_at,
            "held by": held_by,
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


async def _retry(
    config: Config,
    which: DeliveryQuery | DeliveryRef,
    every: timedelta | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    from ..builder import open_operations
    from .output import tell_unheard

    async with open_operations(config, unheard=tell_unheard) as operations:
        change = partial(operations.retry, which, every=every)
        number = await _with_progress("retrying", change, which, dry_run)
    _print_number("retried", number, dry_run, as_json)


async def _cancel(config: Config, which: DeliveryQuery | DeliveryRef, dry_run: bool, as_json: bool) -> None:
    from ..builder import open_operations
    from .output import tell_unheard

    async with open_operations(config, unheard=tell_unheard) as operations:
        number = await _with_progress("cancelling", partial(operations.cancel, which), which, dry_run)
    _print_number("cancelled", number, dry_run, as_json)


async def _with_progress(
    verb: str, change: Callable[..., Awaitable[int]], which: DeliveryQuery | DeliveryRef, dry_run: bool
) -> int:
    from ..operations import DeliveryRef
    from .output import accounted

    one = isinstance(which, DeliveryRef) or dry_run or not sys.stderr.isatty()
    with accounted(f"{verb} deliveries", None if one else await change(dry_run=True)) as advance:
        return await change(dry_run=dry_run, advance=advance)


def _print_number(done: str, number: int, dry_run: bool, as_json: bool) -> None:
    from .output import print_json, print_line

    if as_json:
        print_json({done: number, "dry_run": dry_run})
        return
    would = "would be " if dry_run else ""
    print_line(f"{number} {'delivery' if number == 1 else 'deliveries'} {would}{done}")


async def _ack(config: Config, event: str, subscription: str, failure: str | None, as_json: bool) -> None:
    from ..builder import open_operations
    from .output import print_json, print_line, tell_unheard

    async with open_operations(config, unheard=tell_unheard) as operations:
        changed = await operations.ack(event, subscription, failure=failure)
    answer = "delivered" if failure is None else "failed"
    if as_json:
        print_json({"event": event, "subscription": subscription, "answer": answer, "changed": changed})
    else:
        said = {"delivered": "is acknowledged", "failed": "has failed"}[answer] if changed else "was delivered already"
        print_line(f"the delivery of event {event} to {subscription} {said}")
