"""`runner cron`: what a cron expression means, without a file."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING

import click

from .options import MOMENT, count_option, json_option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..policies.cron import Cron

__all__ = ["cron", "print_ticks"]


@click.group()
def cron() -> None:
    """Try cron expressions; no file is needed.

    \b
    Examples:
      runner cron next '0 2 * * *' --tz Europe/Paris
    """


@cron.command("next")
@click.argument("expression")
@click.option("--tz", "--timezone", "zone", default="UTC", show_default=True, metavar="ZONE", help="IANA time zone.")
@click.option("--from", "since", type=MOMENT, metavar="TIME", help="Times after this one; now unless given.")
@count_option
@json_option
def next_times(expression: str, zone: str, since: datetime | None, count: int, as_json: bool) -> None:
    """Print the next times that EXPRESSION names.

    Five fields, or six with seconds first; @hourly, @daily, @weekly, @monthly and @yearly. Daylight saving is as in
    Debian's cron: a time in the hour that is skipped comes right after it, one in the hour that comes twice comes once.
    But where the minute or the hour is *, and with six fields, it follows the clock on the wall.

    \b
    Examples:
      runner cron next '0 2 * * *' --tz Europe/Paris
      runner cron next '*/15 9-17 * * MON-FRI' --tz America/New_York -n 20
      runner cron next @monthly --from 2026-01-31T00:00:00Z --json
    """
    from ..config.errors import suggestion
    from ..policies.cron import Cron, CronError, zone_of

    try:
        zone_of(zone)
    except ValueError as error:
        import zoneinfo

        hint = suggestion(zone, zoneinfo.available_timezones())
        raise click.BadParameter(
            f"expected an IANA time zone such as Europe/Paris, got {zone!r}{hint}", param_hint="--tz"
        ) from error
    try:
        named = Cron(expression, zone)
    except CronError as error:
        raise click.BadParameter(f"{expression!r}: {error}", param_hint="EXPRESSION") from error
    print_ticks(islice(_times(named, since or datetime.now(UTC)), count), zone, as_json)


def print_ticks(ticks: Iterator[datetime], zone: str, as_json: bool) -> None:
    """Print times in UTC and in local time."""
    from ..policies.cron import zone_of
    from ..policies.schedule import tick_text
    from .output import print_json, print_table

    local = zone_of(zone)
    if as_json:
        for tick in ticks:
            print_json({"tick": tick_text(tick), "local": tick.astimezone(local).isoformat()})
        return
    rows = ((tick_text(tick), tick.astimezone(local).strftime("%a %Y-%m-%d %H:%M:%S %z")) for tick in ticks)
    print_table(("time", zone), list(rows))


def _times(cron: Cron, after: datetime) -> Iterator[datetime]:
    tick = cron.after(after)
    while tick is not None:
        yield tick
        tick = cron.after(tick)
