"""`runner dev`: a bus for trying things out, in one command."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .loop import TOGETHER, StopRequests, loop_factory
from .options import DURATION
from .output import print_line, tell

if TYPE_CHECKING:
    from ..config import Config
    from ..runtime.runner import Runner
    from .servers import Servers

__all__ = ["dev"]

_PORT = 8080
_PORT_VARIABLE = "RUNNER_DEV_PORT"
_LOOK_EVERY = 0.2  # seconds between two reads of events that other processes publish
_TYPES = ("order.created", "order.paid", "order.shipped")

_FILE = """\
# Written by `runner dev`; change what you like, it is not written again. `runner config schema` describes every key.

deployment_id: dev
{storage}
# Where deliveries go. `terminal` prints them where `runner dev` runs.
sinks:
  terminal: stdout
  # crm: {{webhook: {{url: "https://crm.example/events"}}}}

# Who wants which events, in which sink.
subscriptions:
  - {{name: everything, types: ["*"], sink: terminal}}
  # - {{name: orders-to-crm, types: ["order.*"], sink: crm}}

# The HTTP interface and the dashboard, for this machine only.
api: {{listen: "127.0.0.1:${{RUNNER_DEV_PORT:-8080}}"}}

log: {{level: warning}}
"""

_SQLITE = """
# Where the events are: one file beside this one.
storage: {dsn: sqlite:///runner.db}
"""

_SERVERS = """
# Where the events are, and what wakes the workers: the servers that `runner dev --servers` starts.
storage:
  dsn: postgresql://runner@127.0.0.1:{postgres}/postgres
  password: ${{file:servers/password}}
  schema: dev # a schema belongs to one deployment: another one in the same database takes another schema, or none
strategies:
  - polling: 30s
  - postgres
  - nats: {{servers: ["nats://127.0.0.1:{nats}"]}}
"""


@click.command()
@click.option(
    "-c",
    "--config",
    "path",
    type=click.Path(path_type=Path, readable=False),
    metavar="FILE",
    help="Run this file, in place of one of its own; nothing is published then.",
)
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".runner"),
    show_default=True,
    metavar="DIR",
    help="Directory of the file and the data.",
)
@click.option("--scratch", is_flag=True, help="Use a temporary directory, which is removed at the end.")
@click.option(
    "--servers", is_flag=True, help="Start a PostgreSQL and a NATS from what is installed, in place of SQLite."
)
@click.option(
    "--every",
    type=DURATION,
    default="2s",
    show_default=True,
    metavar="DURATION",
    help="Time between two sample events.",
)
@click.option("--no-samples", is_flag=True, help="Publish no sample events.")
def dev(path: Path | None, directory: Path, scratch: bool, servers: bool, every: timedelta, no_samples: bool) -> None:
    """Run a bus to try things with: dashboard, a sample publisher, and the deliveries on this terminal.

    In an empty directory it writes a configuration to .runner/ and keeps its data there, on SQLite; with --servers on
    a PostgreSQL and a NATS of its own. Ctrl-C ends it; the next start goes on with the same events. It listens on
    the loopback only.

    \b
    Examples:
      runner dev
      runner dev --servers
      runner dev --scratch --every 100ms
      runner dev -c runner.yaml
    """
    if path is not None and (servers or scratch):
        raise click.UsageError("-c FILE brings its own storage; leave out --servers and --scratch")
    port = _free_port()
    os.environ.setdefault(_PORT_VARIABLE, str(port))
    samples = path is None and not no_samples
    with contextlib.ExitStack() as stack:
        if path is None:
            path = stack.enter_context(_place(directory, scratch, servers))
        config = _loaded(path, port)
        with asyncio.Runner(loop_factory=loop_factory()) as loop:
            loop.run(_serve(path, config, every if samples else None))


def _free_port() -> int:
    from .servers import free_port

    return free_port(_PORT)


@contextlib.contextmanager
def _place(directory: Path, scratch: bool, servers: bool) -> Iterator[Path]:
    """Write the file where there is none, run the servers that it needs, and yield its path."""
    with contextlib.ExitStack() as stack:
        if scratch:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="runner-dev-")))
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            ignored = directory / ".gitignore"
            if not ignored.exists():
                ignored.write_text("*\n")
            file = None if servers else _written(directory / "runner.yaml", _SQLITE)
        except OSError as error:
            raise click.ClickException(
                f"cannot write to {directory}: {error.strerror}; give --directory DIR"
            ) from error
        if file is not None:
            yield file
            return
        from .servers import Servers

        started = Servers(directory.absolute() / "servers")
        if scratch and started.beside is not None:
            stack.callback(shutil.rmtree, started.beside, ignore_errors=True)
        tell("starting PostgreSQL and NATS …")
        stack.enter_context(started)
        tell(f"{started.versions}; data and logs in {directory / 'servers'}{_beside(started)}")
        ports = started.ports
        yield _written(directory / "servers.yaml", _SERVERS.format(postgres=ports.postgres, nats=ports.nats))


def _beside(servers: Servers) -> str:
    return f" and {servers.beside}, because PostgreSQL does not run as root" if servers.beside is not None else ""


def _written(path: Path, storage: str) -> Path:
    """Write the file where there is none; return its path."""
    if not path.exists():
        with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(_FILE.format(storage=storage))
        tell(f"wrote {path}")
    return path


def _loaded(path: Path, port: int) -> Config:
    """Return the configuration, with an HTTP interface where the file has none."""
    from ..config import load_config
    from ..config.api import Api

    config = load_config(path)
    if config.api is None:
        config = config.model_copy(update={"api": Api(listen=f"127.0.0.1:{port}")})
    config.log.apply(patience=1.0)
    return config


async def _serve(path: Path, config: Config, every: timedelta | None) -> None:
    from ..builder import build

    stop, requests = asyncio.Event(), StopRequests()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, _interrupt, stop, requests)
    runner = build(config)
    starting = asyncio.ensure_future(runner.start())
    waiting = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            tell("stopped before it had started")
            return
        await starting
        for line in _introduction(path, runner, every):
            tell(line)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_tail(config))] if not _prints(config) else []
            if every is not None:
                tasks.append(group.create_task(_publish(runner, every)))
            await waiting
            for task in tasks:
                task.cancel()
        tell("\nfinishing running deliveries; Ctrl-C again ends at once")
    finally:
        for future in (starting, waiting):
            future.cancel()
        await asyncio.gather(starting, waiting, return_exceptions=True)
        await runner.stop()
    tell(f"stopped; start it again: {_command(shlex.join(sys.argv[1:]) or 'dev')}")


def _interrupt(stop: asyncio.Event, requests: StopRequests) -> None:
    if requests.is_another():
        os._exit(130)
    asyncio.get_running_loop().call_later(TOGETHER, stop.set)


def _introduction(path: Path, runner: Runner, every: timedelta | None) -> Iterator[str]:
    from ..config.duration import format_duration

    file = shlex.quote(str(path))
    [url, *_] = [*runner.addresses, ""]
    yield f"the bus runs: {runner.describe()[0]}"
    yield f"  dashboard   {url}/"
    yield f"  file        {path}: change it, then Ctrl-C and start again"
    yield f"  publish     {_command('publish')} -c {file} order.created --data '{{\"order\": 1}}'"
    yield f"  by HTTP     curl {url}/events -H 'ce-specversion: 1.0' -H 'ce-id: 1' -H 'ce-source: /me' \\"
    yield """                -H 'ce-type: order.created' -H 'content-type: application/json' -d '{"order": 2}'"""
    yield f"  look        {_command('top')} -c {file}"
    yield f"  trouble?    {_command('doctor')} -c {file}"
    yield "  stop        Ctrl-C"
    if every is not None:
        yield f"a sample event is published every {format_duration(every)}; deliveries are shown below"
    yield ""


def _command(verb: str) -> str:
    """Return the verb as it is typed in another shell, called in the same way as this one."""
    program = Path(sys.argv[0])
    found = shutil.which(program.name)
    if program.name == "__main__.py":
        return f"python -m runner {verb}"
    short = found is not None and os.path.samefile(found, program) if program.exists() else False
    return f"{program.name if short else program} {verb}"


def _prints(config: Config) -> bool:
    """Return whether a sink of the file prints deliveries on this terminal."""
    used = {each.sink for each in config.subscriptions}
    return any(plugin.kind == "stdout" and name in used for name, plugin in config.sinks.items())


async def _tail(config: Config) -> None:
    """Print every event as it is recorded."""
    from ..builder import open_storage
    from ..operations.following import Follower
    from .output import moment

    async with open_storage(config, writes=False) as storage:
        follower = await Follower.beginning(storage.records)
        while True:
            async for view in follower.look():
                event = view.event
                subject = f"  {event.subject}" if event.subject else ""
                print_line(f"{moment(view.created_at)}  {view.seq}  {event.type}  {event.source}{subject}")
            await asyncio.sleep(_LOOK_EVERY)


async def _publish(runner: Runner, every: timedelta) -> None:
    """Publish one sample event after the other."""
    from ..event import Event

    for number in count(1):
        data = f'{{"order": {number}, "total": {(number * 37) % 200 + 1}}}'.encode()
        kind = _TYPES[number % len(_TYPES)]
        await runner.publish(
            Event(type=kind, source="/shop", subject=f"orders/{number}", data=data, datacontenttype="application/json")
        )
        await asyncio.sleep(every.total_seconds())
