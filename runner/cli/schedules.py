"""`runner schedules`: look at schedules; make, pause, run and remove them."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .completion import names_of
from .options import DURATION, MOMENT, config_option, content_of, count_option, json_option, load
from .pausing import set_paused

if TYPE_CHECKING:
    from ..config import Config
    from ..policies.schedule import Schedule

__all__ = ["schedules", "times_of"]

_NAME = click.argument("name", shell_complete=names_of("schedules"))


@click.group()
def schedules() -> None:
    """Look at schedules, make, pause, run and remove them.

    \b
    Examples:
      runner schedules list
      runner schedules next nightly
      runner schedules run nightly
      runner schedules put pulse --every 15m --type pulse
    """


@schedules.command("list")
@config_option
@json_option
def list_schedules(path: Path, as_json: bool) -> None:
    """Print every schedule: when it publishes next, what it has missed.

    \b
    active    it publishes at its times
    paused    it was paused by hand
    ended     no time is left
    inactive  it is in no file any more

    \b
    Examples:
      runner schedules list
      runner schedules list --json
    """
    asyncio.run(_list(load(path), as_json))


@schedules.command("show")
@config_option
@_NAME
@json_option
def show_schedule(path: Path, name: str, as_json: bool) -> None:
    """Print the schedule NAME in full.

    \b
    Examples:
      runner schedules show nightly
      runner schedules show nightly --json
    """
    asyncio.run(_show(load(path), name, as_json))


@schedules.command("next")
@config_option
@_NAME
@count_option
@json_option
def next_ticks(path: Path, name: str, count: int, as_json: bool) -> None:
    """Print the next times of the schedule NAME, also of one that is paused.

    \b
    Examples:
      runner schedules next nightly
      runner schedules next nightly -n 20 --json
    """
    asyncio.run(_next(load(path), name, count, as_json))


@schedules.command("run")
@config_option
@_NAME
@json_option
def run(path: Path, name: str, as_json: bool) -> None:
    """Publish the event of NAME now, beside its times.

    \b
    Examples:
      runner schedules run nightly
    """
    asyncio.run(_run(load(path), name, as_json))


@schedules.command("pause")
@config_option
@_NAME
@json_option
def pause(path: Path, name: str, as_json: bool) -> None:
    """Publish nothing of NAME any more; what its times are meanwhile is not caught up.

    \b
    Examples:
      runner schedules pause nightly
    """
    set_paused(path, "schedules", name, True, as_json)


@schedules.command("resume")
@config_option
@_NAME
@json_option
def resume(path: Path, name: str, as_json: bool) -> None:
    """Publish NAME again, from its next time on.

    \b
    Examples:
      runner schedules resume nightly
    """
    set_paused(path, "schedules", name, False, as_json)


@schedules.command("put")
@config_option
@_NAME
@click.option("--cron", metavar="EXPRESSION", help="Cron expression of five or six fields, or @daily and the like.")
@click.option("--tz", "--timezone", "timezone", metavar="ZONE", help="IANA time zone of --cron; UTC unless given.")
@click.option("--every", type=DURATION, metavar="DURATION", help="In place of --cron: time from one event to the next.")
@click.option("--anchor", type=MOMENT, metavar="TIME", help="A time that --every is counted from.")
@click.option("--start-at", type=MOMENT, metavar="TIME", help="No event has an earlier time.")
@click.option("--end-at", type=MOMENT, metavar="TIME", help="No event has a later time.")
@click.option("--jitter", type=DURATION, metavar="DURATION", help="Delay each event by its own share of DURATION.")
@click.option("--catch-up", metavar="none|one|all", help="Which missed events to publish; one unless given.")
@click.option("--window", type=DURATION, metavar="DURATION", help="How late an event may be; 1d unless given.")
@click.option(
    "--overlap",
    metavar="allow|skip|queue",
    help="What to do while deliveries of the last event run; allow unless given.",
)
@click.option("--type", "type_", metavar="TYPE", required=True, help="Event type.")
@click.option("--source", metavar="SOURCE", help="Event source; /schedules/NAME unless given.")
@click.option("--subject", metavar="SUBJECT", help="Event subject.")
@click.option("--data", metavar="JSON|@FILE|-", help="Event data: JSON, the content of a file, or standard input.")
@json_option
def put(path: Path, name: str, as_json: bool, type_: str, **options: Any) -> None:
    """Make the schedule NAME, or replace it whole; one of the file is changed there.

    \b
    Examples:
      runner schedules put nightly --cron '0 2 * * *' --tz Europe/Paris --type report.due
      runner schedules put pulse --every 15m --type pulse --data '{"n": 1}'
    """
    config = load(path)
    asyncio.run(_put(config, _schedule(name, type_, options), as_json))


@schedules.command("remove")
@config_option
@_NAME
@json_option
def remove(path: Path, name: str, as_json: bool) -> None:
    """Forget the schedule NAME, which is in no file; its events stay until their retention is over.

    \b
    Examples:
      runner schedules remove pulse
    """
    asyncio.run(_remove(load(path), name, as_json))


async def _list(config: Config, as_json: bool) -> None:
    from ..builder import open_storage
    from ..operations.shapes import schedule_json
    from .output import print_json, print_table

    async with open_storage(config, writes=False) as storage:
        views = await storage.schedules.all()
    if as_json:
        for view in views:
            print_json(schedule_json(view))
        return
    rows = [
        (view.schedule.name, view.state, times_of(view.schedule), view.tick, view.last_tick, view.missed, view.origin)
        for view in views
    ]
    print_table(("name", "state", "times", "next", "last", "missed", "origin"), rows, spare=("origin", "last"))


async def _show(config: Config, name: str, as_json: bool) -> None:
    from ..builder import open_storage
    from ..operations.shapes import schedule_json
    from .output import print_fields, print_json

    async with open_storage(config, writes=False) as storage:
        view = await storage.schedules.one(name)
    fields = schedule_json(view)
    if as_json:
        print_json(fields)
        return
    event = fields.pop("event")
    event["data"] = view.schedule.event.data
    fields |= {key: value for key, value in vars(view.schedule).items() if isinstance(value, timedelta)}
    print_fields(fields | {f"event.{key}": value for key, value in event.items()})


async def _next(config: Config, name: str, count: int, as_json: bool) -> None:
    from ..builder import open_operations
    from .cron import print_ticks
    from .output import tell

    async with open_operations(config, writes=False) as operations:
        view = await operations.schedules.one(name)
        ticks = await operations.schedules.upcoming(name, count)
    print_ticks(iter(ticks), view.schedule.timezone, as_json)
    if not ticks:
        tell(f"no time of {name} is left")


async def _run(config: Config, name: str, as_json: bool) -> None:
    from ..builder import open_operations
    from ..operations.shapes import receipt_json
    from .output import print_json, print_line, tell_unheard

    async with open_operations(config, unheard=tell_unheard) as operations:
        receipt = await operations.schedules.run(name)
    if as_json:
        print_json(receipt_json(receipt))
    else:
        print_line(f"published {receipt.id} (seq {receipt.seq})")


async def _put(config: Config, schedule: Schedule, as_json: bool) -> None:
    from ..builder import open_operations
    from .output import print_json, print_line, tell_unheard

    async with open_operations(config, unheard=tell_unheard) as operations:
        changed = await operations.schedules.put(schedule)
    if as_json:
        print_json({"name": schedule.name, "changed": changed})
    else:
        print_line(f"{schedule.name} is {'put' if changed else 'as it was'}")


async def _remove(config: Config, name: str, as_json: bool) -> None:
    from ..builder import open_operations
    from .output import print_json, print_line, tell_unheard

    async with open_operations(config, unheard=tell_unheard) as operations:
        await operations.schedules.remove(name, file={each.name for each in config.schedules})
    if as_json:
        print_json({"name": name, "removed": True})
    else:
        print_line(f"{name} is removed")


def _schedule(name: str, type_: str, options: dict[str, Any]) -> Schedule:
    """Return the schedule that the options describe, checked as one of a file is."""
    import orjson
    from pydantic import ValidationError

    from ..config.messages import describe
    from ..config.schedules import ScheduleEntry

    event: dict[str, Any] = {"type": type_, "source": options.pop("source"), "subject": options.pop("subject")}
    data = options.pop("data")
    try:
        event["data"] = None if data is None else orjson.loads(content_of(data))
    except ValueError as error:
        raise click.BadParameter(f"not JSON: {error}", param_hint="--data") from error
    given = {key: value for key, value in options.items() if value is not None}
    try:
        return ScheduleEntry.model_validate({"name": name, "event": event, **given}).to_schedule()
    except ValidationError as error:
        faults = [f"{_option(item['loc'])}: {describe(item, ())}" for item in error.errors(include_url=False)]
        raise click.UsageError("; ".join(faults)) from error


def _option(place: tuple[int | str, ...]) -> str:
    """Return the option or argument that a fault belongs to."""
    names = [str(step).replace("_", "-") for step in place]
    return {(): "schedule", ("name",): "NAME"}.get(tuple(names), f"--{(names or [''])[-1]}")


def times_of(schedule: Schedule) -> str:
    """Return the times of a schedule in few words."""
    from .output import duration

    if schedule.every is not None:
        return f"every {duration(schedule.every)}"
    return f"{schedule.cron} {schedule.timezone}"
