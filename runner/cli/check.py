"""`runner check`: print what the configuration would build; with `--online`, also whether its servers answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigError, RunnerError
from .options import config_option, json_option, load
from .output import print_json, print_line, tell

if TYPE_CHECKING:
    from ..config import Config

__all__ = ["check"]

_PATIENCE = 5.0  # seconds until NATS counts as away


@click.command()
@config_option
@click.option(
    "--online", is_flag=True, help="Also connect to the database and to NATS, and try the right to publish there."
)
@json_option
def check(path: Path, online: bool, as_json: bool) -> None:
    """Print what the configuration would build, or every fault of it.

    With --json an object, also of a file that is wrong: `valid`, then `faults`, or what would be built.

    \b
    Examples:
      runner check -c runner.yaml
      runner check -c prod.yaml --online
      runner check --json
    """
    from ..builder import build
    from ..config import advice

    try:
        config = load(path, imports=True)
        build(config)  # finds the faults that only show when the parts are built; nothing connects
    except ConfigError as error:
        if as_json:
            print_json({"valid": False, "faults": list(error.faults)})
        raise
    warnings = advice(config)
    for warning in warnings:
        tell(f"warning: {warning}")
    if not as_json:
        for line in _plan(config):
            print_line(line)
    found = _Online()
    try:
        if online:
            asyncio.run(_connect(config, found, (lambda _line: None) if as_json else print_line))
    finally:
        if as_json:
            print_json(_plan_json(config) | {"warnings": warnings} | ({"online": asdict(found)} if online else {}))


@dataclass
class _Online:
    """The state of the servers."""

    tables: dict[str, Any] | None = None  # None: not usable
    nats: list[dict[str, Any]] = field(default_factory=list)


def _plan_json(config: Config) -> dict[str, Any]:
    from ..operations.shapes import plan_json

    return {
        "valid": True,
        "deployment": config.deployment_id,
        "storage": {"dsn": str(config.storage.dsn), "schema": config.storage.schema_name},
        "strategies": [plugin.kind for plugin in config.strategies],
        "sinks": {name: plugin.kind for name, plugin in config.sinks.items()},
        "subscriptions": [{"name": each.name, **each.to_json()} for each in config.to_subscriptions()],
        "schedules": [plan_json(each) for each in config.to_schedules()],
    }


def _plan(config: Config) -> Iterator[str]:
    from ..config.duration import format_duration
    from .schedules import times_of

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
    for schedule in config.to_schedules():
        yield f"schedule       {schedule.name}: {times_of(schedule)} -> {schedule.event.type}"


async def _connect(config: Config, found: _Online, show: Callable[[str], object]) -> None:
    """Check every server and print its state; raise afterwards the error that keeps a runner from starting."""
    from ..builder import nats_subjects
    from ..doctor.brokers import look_at_broker

    failure: RunnerError | None = None
    try:
        found.tables = await _tables(config)
        show(f"tables         {_tables_line(**found.tables)}")
    except RunnerError as error:
        show("tables         not usable, see below")
        failure = error
    complaints: list[str] = []
    for options, subjects in nats_subjects(config).items():
        facts = await look_at_broker(config, options, subjects, name="runner check", patience=_PATIENCE)
        server = asdict(facts)
        found.nats.append(server)
        if server["server"] is None:
            show(f"nats           {server['error']}")
            complaints.append("not every NATS server could be reached")
            continue
        show(f"nats           connected to {server['server']}")
        for refusal in filter(None, server["subjects"].values()):
            show(f"nats           {refusal}")
            complaints.append("NATS would refuse what is to be sent there; see above")
        for name, told in server["streams"].items():
            for complaint in told:
                show(f"nats           sink {name}: {complaint}")
                complaints.append("no stream would store what is to be sent there as the file says; see above")
    if failure is not None:
        raise failure
    if complaints:
        raise click.ClickException(complaints[0])


async def _tables(config: Config) -> dict[str, Any]:
    from ..builder import open_storage

    async with open_storage(config, adopt=False, writes=False) as storage:
        status, owner = await storage.standing(config.deployment_id)
        concerns = await storage.concerns()
    for concern in concerns:
        tell(f"warning: {concern}")
    return {**asdict(status), "owner": owner, "concerns": list(concerns)}


def _tables_line(*, current: str | None, pending: Sequence[str], owner: str | None, **_: object) -> str:
    tables = "not migrated" if current is None else f"at {current}"
    state = f"pending: {', '.join(pending)}" if pending else "up to date"
    return f"{tables}, {state}, owner: {owner or 'nobody yet'}"
