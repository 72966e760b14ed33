"""`runner check`: say what the configuration would build; with `--online`, whether it would find its servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import RunnerError, readable
from .options import config_option, load
from .output import print_line, tell

if TYPE_CHECKING:
    from ..broker_options import BrokerOptions
    from ..config import Config

__all__ = ["check"]

_LOOKS, _PAUSE = 200, 0.025  # seconds between two looks whether NATS is connected


@click.command()
@config_option
@click.option(
    "--online", is_flag=True, help="Also connect to the database and to NATS, and try the right to publish there."
)
def check(path: Path, online: bool) -> None:
    """Print what the configuration would build, or every fault of it.

    \b
    Examples:
      runner check -c runner.yaml
      runner check -c prod.yaml --online
    """
    from ..builder import build
    from ..config import advice

    config = load(path, imports=True)
    build(config)  # what only the parts themselves can find wrong; nothing connects
    for warning in advice(config):
        tell(f"warning: {warning}")
    for line in _plan(config):
        print_line(line)
    if online:
        asyncio.run(_connect(config))


def _plan(config: Config) -> Iterator[str]:
    from ..config.duration import format_duration

    yield f"deployment     {config.deployment_id}"
    schema = f", schema {config.storage.schema_name}" if config.storage.schema_name else ""
    yield f"storage        {config.storage.dsn}{schema}"
    yield f"strategies     {', '.join(plugin.kind for plugin in config.strategies)}"
    for name, plugin in config.sinks.items():
        yield f"sink           {name}: {plugin.kind}"
    for each in config.to_subscriptions():
        types = ", ".join(each.types) or "*"
        policy = (
            f"in order of {each.order_by}" if each.order_by is not None else None,
            f"at most {each.rate}" if each.rate is not None else None,
            f"batches of {each.batch}" if each.batch is not None else None,
            f"{each.retry.attempts} attempts",
            f"timeout {format_duration(each.timeout)}",
            f"then {each.dead_letter}" if each.dead_letter is not None else None,
        )
        yield f"subscription   {each.name}: {types} -> {each.sink} ({', '.join(filter(None, policy))})"


async def _connect(config: Config) -> None:
    """Print how every server was found; raise afterwards what keeps a runner from starting."""
    from ..builder import nats_subjects

    failure: RunnerError | None = None
    try:
        print_line(f"tables         {await _tables(config)}")
    except RunnerError as error:
        print_line("tables         not usable, see below")
        failure = error
    complaints = [complaint for found in nats_subjects(config).items() async for complaint in _nats(*found)]
    if failure is not None:
        raise failure
    if complaints:
        raise click.ClickException(complaints[0])


async def _tables(config: Config) -> str:
    from ..builder import open_storage
    from .migrate import standing

    async with open_storage(config, adopt=False, writes=False) as storage:
        status, owner = await standing(config, storage)
        for concern in await storage.concerns():
            click.echo(f"warning: {concern}", err=True)
    tables = "not migrated" if status.current is None else f"at {status.current}"
    pending = f"pending: {', '.join(status.pending)}" if status.pending else "up to date"
    return f"{tables}, {pending}, owner: {owner or 'nobody yet'}"


async def _nats(options: BrokerOptions, subjects: Sequence[str]) -> AsyncIterator[str]:
    """Print how a connection was found, and whether it may publish to the subjects; yield what is wrong in general."""
    from ..broker import Broker
    from ..errors import StrategyError

    broker = Broker(options, name="runner check")
    await broker.start()
    try:
        for _ in range(_LOOKS):
            if broker.connected:
                break
            await asyncio.sleep(_PAUSE)
        else:
            print_line(f"nats           {readable(broker.last_error)}")
            yield "not every NATS server could be reached"
            return
        print_line(f"nats           connected to {broker.server}")
        for subject in subjects:
            try:
                await broker.try_publish(subject)
            except StrategyError as error:
                print_line(f"nats           {readable(str(error))}")
                yield "NATS would refuse what is to be sent there; see above"
    finally:
        await broker.stop()
