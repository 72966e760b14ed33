"""`runner subscriptions`: look at subscriptions; make, pause, resume and remove them."""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from .completion import names_of
from .options import config_option, dry_run_option, json_option, load
from .pausing import set_paused

if TYPE_CHECKING:
    from ..config import Config
    from ..event import Event
    from ..subscription import Subscription

__all__ = ["subscriptions"]

_LARGEST = 8 << 20  # bytes of an event as JSON, each of its bytes as `\u0000`, and room

_NAME = click.argument("name", shell_complete=names_of("subscriptions"))


@click.group()
def subscriptions() -> None:
    """Look at subscriptions; make, pause, resume and remove them.

    \b
    Examples:
      runner subscriptions list
      runner subscriptions pause crm
      runner subscriptions resume crm
      runner subscriptions put crm.yaml
      runner subscriptions remove greeter
    """


@subscriptions.command("list")
@config_option
@json_option
def list_subscriptions(path: Path, as_json: bool) -> None:
    """Print every subscription ever known, with its deliveries that are not delivered.

    \b
    Examples:
      runner subscriptions list
      runner subscriptions list --json
    """
    asyncio.run(_list(load(path), as_json))


@subscriptions.command("show")
@config_option
@_NAME
@json_option
def show_subscription(path: Path, name: str, as_json: bool) -> None:
    """Print the subscription NAME in full.

    \b
    Examples:
      runner subscriptions show crm
      runner subscriptions show crm --json
    """
    asyncio.run(_show(load(path), name, as_json))


@subscriptions.command("pause")
@config_option
@_NAME
@json_option
def pause(path: Path, name: str, as_json: bool) -> None:
    """Stop delivering to NAME; its events are kept for it.

    \b
    Examples:
      runner subscriptions pause crm
    """
    set_paused(path, "subscriptions", name, True, as_json)


@subscriptions.command("resume")
@config_option
@_NAME
@json_option
def resume(path: Path, name: str, as_json: bool) -> None:
    """Deliver to NAME again, what was kept first; also where its breaker is open.

    \b
    Examples:
      runner subscriptions resume crm
    """
    set_paused(path, "subscriptions", name, False, as_json)


@subscriptions.command("remove")
@config_option
@_NAME
@click.option("--force", is_flag=True, help="Also remove one that is served, or is in the file.")
@dry_run_option
@json_option
def remove(path: Path, name: str, force: bool, dry_run: bool, as_json: bool) -> None:
    """Forget the subscription NAME, which no process serves any more; cancel what waits for it.

    For one that a program left behind (`subscribe()`), or that is in no file any more. What was delivered or is dead
    stays on record until its retention is over. A file or a program that still has it brings it back, as a new one.

    \b
    Examples:
      runner subscriptions remove greeter --dry-run
      runner subscriptions remove greeter
    """
    asyncio.run(_remove(load(path), name, force, dry_run, as_json))


@subscriptions.command("put")
@config_option
@click.argument("file", type=click.File("rb", lazy=True))
@json_option
def put(path: Path, file: BinaryIO, as_json: bool) -> None:
    """Make the subscription in FILE, or replace it whole; one of the configuration is changed there. - is stdin.

    FILE is YAML or JSON with the keys of one of `subscriptions`, `${VAR}` and `${file:...}` filled in. It may bring a
    destination in place of `sink`, and end by itself. What is secret is sealed with `sealing.keys`.

    \b
    Examples:
      runner subscriptions put crm.yaml
      echo '{name: all, sink: log}' | runner subscriptions put -

    \b
    crm.yaml:
      name: crm
      types: ["order.*"]
      destination: {webhook: {url: "https://crm.example/events", secret: "${CRM_SECRET}"}}
      expires_at: 2037-01-01T00:00:00Z
    """
    config = load(path)
    name, definition = _definition(file)
    asyncio.run(_put(config, name, definition, as_json))


@subscriptions.command("explain")
@config_option
@_NAME
@click.option("--event", "file", type=click.File("rb"), required=True, help="One CloudEvent in JSON; - is stdin.")
@json_option
def explain(path: Path, name: str, file: BinaryIO, as_json: bool) -> None:
    """Say whether NAME matches an event, or which clause fails on which value.

    The event need not be published; `runner why` says the same of one that was.

    \b
    Examples:
      runner subscriptions explain crm --event -
      runner events show 12 --json | jq .event | runner subscriptions explain crm --event -
    """
    asyncio.run(_explain(load(path), name, file, as_json))


async def _list(config: Config, as_json: bool) -> None:
    from ..builder import open_storage
    from ..diagnosis.look import look
    from ..operations.holds import hold_of
    from ..operations.shapes import subscription_json
    from .output import print_json, print_table, tell
    from .rows import counts

    async with open_storage(config, writes=False) as storage:
        known = await storage.records.registered()
        seen = await look(storage)
    judged = {each.name: each for each in seen.subscriptions}
    rows = []
    for view in known:
        registered, name = view.registered, view.registered.subscription.name
        each = judged.get(name)  # None if it was made just now
        queued = each.undispatched if each else 0
        if as_json:
            more = {"queued": queued, "served": each.served if each else None}
            print_json(subscription_json(view) | more)
            continue
        unserved = "nobody serves it" if each and view.active and each.served is False else "active"
        rows.append(
            (
                name,
                hold_of(registered, view.active) or unserved,
                _wanted(registered.subscription),
                registered.subscription.sink,
                registered.origin,
                counts({**view.deliveries, "queued": queued}),
            )
        )
    if as_json:
        return
    print_table(("name", "state", "types", "sink", "origin", "deliveries"), rows, spare=("origin",))
    if not seen.live:
        tell("no live instance: nothing is delivered until one is started; `runner status` says more")


async def _show(config: Config, name: str, as_json: bool) -> None:
    from ..builder import open_storage
    from ..operations.shapes import subscription_json
    from .output import duration, print_fields, print_json

    async with open_storage(config, writes=False) as storage:
        view = await storage.records.subscription(name)
    fields = subscription_json(view)
    if as_json:
        print_json(fields)
        return
    subscription = view.registered.subscription
    if fields["breaker_left"] is not None:
        fields["breaker_left"] = timedelta(seconds=ceil(fields["breaker_left"]))
    policies = _flat("retry", subscription.retry, fields) | _flat("breaker", subscription.breaker, fields)
    policies["retry.schedule"] = ", ".join(duration(wait) for wait in subscription.retry.schedule) or None
    waiting = {f"deliveries.{state}": number for state, number in fields.pop("deliveries").items()}
    destination = _shown(fields.pop("destination"))
    print_fields(
        fields | {"types": _wanted(subscription), "timeout": subscription.timeout, **policies, **destination, **waiting}
    )


async def _explain(config: Config, name: str, file: BinaryIO, as_json: bool) -> None:
    from ..builder import open_storage
    from ..diagnosis.matching import mismatch
    from ..diagnosis.shapes import clause_json
    from .output import moment, print_json, print_line

    event = _read(file)
    async with open_storage(config, writes=False) as storage:
        hold = await storage.overview.hold(0, name)  # seq 0: of no event
    failing = mismatch(hold.registered.subscription, event)
    if as_json:
        told = {"version": hold.version, "written_at": hold.updated_at, "active": hold.active}
        print_json({"name": name, "matched": failing is None, "failing": clause_json(failing), **told})
        return
    print_line(f"{name} matches" if failing is None else f"{name} does not match: {failing}")
    state = "" if hold.active else "; it is in no file any more, and gets nothing"
    print_line(f"it was written at {moment(hold.updated_at)}, version {hold.version}{state}")


def _definition(file: BinaryIO) -> tuple[str, dict[str, Any]]:
    """Return the name and the other keys of the subscription in a file."""
    from ..config.document import read_document
    from ..config.source import MAX_BYTES
    from ..errors import ConfigError

    shown = str(file.name)
    definition = read_document(file.read(MAX_BYTES + 1), shown, os.environ)
    name = definition.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"{shown}: name: expected the name of the subscription")
    return name, definition


async def _put(config: Config, name: str, definition: dict[str, Any], as_json: bool) -> None:
    from ..builder import open_operations
    from .output import print_json, print_line, tell_unheard

    if name in {each.name for each in config.subscriptions}:
        from ..errors import StateConflict

        raise StateConflict(f"{name} is in the file; change it there, and reload or start a runner")
    async with open_operations(config, unheard=tell_unheard) as operations:
        put = await operations.subscriptions.put(name, definition, sinks=config.sinks)
    if as_json:
        print_json({"name": name, "created": put.created, "changed": put.changed})
    else:
        print_line(f"{name} is {'made' if put.created else 'changed' if put.changed else 'as it was'}")


def _read(file: BinaryIO) -> Event:
    """Return the event in a file. Raise `EventError` if there is none."""
    from ..cloudevents import decode_json
    from ..errors import EventError

    content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise EventError(f"--event: more than {_LARGEST} bytes; expected one CloudEvent in JSON")
    try:
        return decode_json(content)
    except EventError as error:
        raise EventError(f"--event: {error}") from error


def _shown(destination: dict[str, Any] | None) -> dict[str, Any]:
    """Return the options of a destination under prefixed names."""
    import json

    if destination is None:
        return {}
    [(kind, options)] = destination.items()
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in options.items()}
    return {f"destination.{kind}.{key}": value for key, value in texts.items()}


def _flat(name: str, policy: object, fields: dict[str, Any]) -> dict[str, Any]:
    """Remove a policy from `fields`, and return its own fields under prefixed names."""
    keys = fields.pop(name)
    return {name: "off"} if keys is None else {f"{name}.{key}": getattr(policy, key) for key in keys}


async def _remove(config: Config, name: str, force: bool, dry_run: bool, as_json: bool) -> None:
    from ..builder import open_operations
    from .output import print_json, print_line, tell_unheard

    file = {each.name for each in config.to_subscriptions()}
    async with open_operations(config, unheard=tell_unheard) as operations:
        number = await operations.subscriptions.remove(name, file=file, force=force, dry_run=dry_run)
    if as_json:
        print_json({"name": name, "cancelled": number, "dry_run": dry_run})
        return
    would = "would be" if dry_run else "is"
    print_line(f"{name} {would} removed, {number} {'delivery' if number == 1 else 'deliveries'} cancelled")


def _wanted(subscription: Subscription) -> str:
    if subscription.dead_letter_of is not None:
        return f"what is dead of {subscription.dead_letter_of}"
    return ", ".join(subscription.types) or "*"
