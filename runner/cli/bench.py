"""`runner bench`: measure the database of a configuration with the real bus and the real worker."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .loop import loop_factory, tune_gc
from .options import config_option, json_option, load
from .output import tell

if TYPE_CHECKING:
    from ..config import Config
    from .benchmark.measure import Measure

__all__ = ["bench"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command()
@config_option
@click.option(
    "--events", type=click.IntRange(min=100), default=20_000, show_default=True, metavar="N", help="Size of a backlog."
)
@click.option(
    "--subscriptions",
    type=click.IntRange(min=1, max=1000),
    default=10,
    show_default=True,
    metavar="N",
    help="Deliver each event of the fan-out to N subscriptions.",
)
@click.option("--keep", is_flag=True, help="Keep the tables of the measurement.")
@json_option
def bench(path: Path, events: int, subscriptions: int, keep: bool, as_json: bool) -> None:
    """Measure the database and the strategies of a configuration, in tables that are thrown away.

    These are a new schema of the same PostgreSQL, or a new directory beside the file of SQLite; the deployment's
    own tables are not touched, and its workers not woken. The last column compares with one raw INSERT and its
    commit: as many times the rate, or as many times the time.

    \b
    Examples:
      runner bench -c runner.yaml
      runner bench --events 100000 --subscriptions 100
      runner bench --json
    """
    config = load(path)
    tune_gc()
    with asyncio.Runner(loop_factory=loop_factory()) as loop:
        loop.run(_until_interrupted(_bench(config, events, subscriptions, keep, as_json)))


async def _until_interrupted(work: Coroutine[Any, Any, None]) -> None:
    """Run `work` until the first termination signal, then let it clean up undisturbed by further signals."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    interrupted = False

    def interrupt() -> None:
        nonlocal interrupted
        if interrupted:
            tell("cleaning up, one moment")
        else:
            interrupted = task.cancel()

    for number in _SIGNALS:
        loop.add_signal_handler(number, interrupt)
    try:
        await task
    except asyncio.CancelledError:
        raise click.Abort from None
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


async def _bench(config: Config, events: int, subscriptions: int, keep: bool, as_json: bool) -> None:
    from .benchmark.measure import Benchmark
    from .benchmark.place import removal, throwaway
    from .output import print_json, print_table, progress

    measures: list[Measure] = []

    def report(measure: Measure) -> None:
        measures.append(measure)
        if as_json:
            print_json({"name": measure.name, "value": measure.value, "unit": measure.unit, "ratio": measure.ratio})

    async with throwaway(config, keep=keep) as place:
        if keep:
            kept = f"kept: deployment {place.deployment_id}; to remove it: {removal(place)}"
            tell(kept)
        await Benchmark(place, events=events, subscriptions=subscriptions, progress=progress, report=report).run()
    if not as_json:
        print_table(("measure", "value", "unit", "vs floor"), [_row(measure) for measure in measures])


def _row(measure: Measure) -> tuple[str, str, str, str]:
    value = f"{measure.value:,.0f}" if measure.value >= 1000 else f"{measure.value:.2f}"
    return measure.title, value, measure.unit, f"{measure.ratio:.1f}"
