"""`runner status`: one screen and one verdict."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import config_option, json_option, load

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..config import Config
    from ..diagnosis.status import Report, Snapshot, Subscribed

__all__ = ["status"]

_COLUMNS = (
    *("subscription", "state", "waiting", "oldest", "dead", "in", "out", "drained in"),
    *("success", "p50", "p95", "p99", "last success", "failing for", "last error"),
)
_SPARE = ("last error", "in", "p50", "p99", "drained in", "out", "last success", "success", "oldest", "p95")


@click.command()
@config_option
@json_option
def status(path: Path, as_json: bool) -> int:
    """Show the state of the deployment on one screen; exit with 0 if it is healthy.

    \b
    0  healthy
    1  degraded: something is late, fails, or is served by no process
    2  down: nothing is delivered, or the store cannot be asked

    Every finding comes with its cause and its cure. WAITING counts what is not dispatched yet, too; `~` is an
    estimate, and beyond 10,000 nothing is counted. SUCCESS is the share of the attempts that delivered, P50 to P99 are
    the latency from publish to delivered, both of the last five minutes.

    \b
    Examples:
      runner status
      runner status --json
    """
    return asyncio.run(_status(load(path), as_json))


async def _status(config: Config, as_json: bool) -> int:
    from .output import print_json

    report = await _report(config)
    if as_json:
        from ..diagnosis.shapes import report_json

        print_json(report_json(report))
    else:
        _print(config, report)
    return int(report.verdict)


async def _report(config: Config) -> Report:
    from ..builder import open_storage
    from ..diagnosis.look import look
    from ..diagnosis.status import judge, unreachable
    from ..errors import SchemaMismatch, StorageUnavailable

    try:
        async with open_storage(config, writes=False) as storage:
            return judge(await look(storage))
    except StorageUnavailable as error:
        cure = "start the database, or mend storage.dsn; processes that run go on by themselves once it is back"
        return unreachable(str(error), cure)
    except SchemaMismatch as error:
        return unreachable(str(error), "runner migrate -c FILE", kind="tables")


def _print(config: Config, report: Report) -> None:
    from .output import echo, print_fields, print_line

    print_line(f"{report.verdict.name.lower()}: deployment {config.deployment_id}")
    for each in report.findings:
        how = each.verdict.name.lower() if each.verdict else "note"
        echo("")
        print_line(f"{how}: {each.subject + ': ' if each.subject else ''}{each.cause}")
        print_line(f"  cure: {each.cure}")
    if report.snapshot is None:
        return
    echo("")
    print_fields(_fields(config, report.snapshot))
    echo("")
    _print_subscriptions(report.snapshot)


def _fields(config: Config, seen: Snapshot) -> dict[str, object]:
    from ..diagnosis.figures import age, number

    queue = seen.queue
    told = [each for instance in seen.live for each in instance.strategies or ()]
    hears = {
        each.name: f"{sum(other.hears is True for other in told if other.name == each.name)} of "
        f"{sum(other.name == each.name for other in told)}"
        for each in told
        if each.hears is not None
    }
    running = sum(each.running or 0 for each in seen.live)
    oldest = "" if queue.oldest_at is None else f", the oldest for {age(queue.oldest_at, seen.now)}"
    later = f"; {number(queue.scheduled)} scheduled" if queue.scheduled else ""
    return {
        "store": str(config.storage.dsn),
        "tables": "up to date",  # otherwise there would be no snapshot
        "instances": f"{len(seen.live)} alive, {running} deliveries run",
        "hears": ", ".join(f"{name} {count}" for name, count in hears.items()) or None,
        "queue": f"{number(queue.queued)} not dispatched{oldest}{later}",
        "in": f"{seen.rate_in:.1f}/s",
    }


def _print_subscriptions(seen: Snapshot) -> None:
    from .output import print_table

    rows = [_row(each, seen) for each in seen.subscriptions]
    print_table(_COLUMNS, rows, spare=_SPARE)


def _row(each: Subscribed, seen: Snapshot) -> Sequence[object]:
    """Return the cells of one subscription, as `_COLUMNS` names them."""
    from ..diagnosis.figures import age, latency, number, percent

    now, recent, drain = seen.now, each.recent, seen.drain(each)
    when = f"{age(recent.last_failure, now)} ago: " if recent.last_failure else ""
    return (
        each.name,
        each.state,
        number(each.backlog, exact=each.exact),
        age(each.oldest_at, now) if each.oldest_at else "",
        number(each.load.dead),
        "" if each.rate_in is None else f"{each.rate_in:.1f}/s",
        f"{each.rate(now):.1f}/s",
        age(now, now + drain) if drain else "",
        percent(each.flow.success_ratio),
        *(latency(each.flow.latency.quantile(share)) for share in (0.5, 0.95, 0.99)),
        age(recent.last_success, now) if recent.last_success else "",
        age(each.failing_since, now) if each.failing_since else "",
        when + recent.last_error if recent.last_error else "",
    )
