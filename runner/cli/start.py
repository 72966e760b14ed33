"""`runner start`: build what the file describes and run it."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import RunnerError
from .options import config_option

if TYPE_CHECKING:
    from ..config import Config
    from ..runtime import Runner

__all__ = ["start"]


@click.command()
@config_option
def start(path: Path) -> None:
    """Build the bus the file describes and run it until SIGTERM or SIGINT.

    The first signal ends it once running deliveries are done, within worker.shutdown_grace; a second one
    at once. SIGHUP reads the file again; a bad file changes nothing.

    \b
    Examples:
      runner start -c runner.yaml
      RUNNER_CONFIG=prod.yaml runner start
    """
    signals = _Signals()
    signals.install()
    config = _load(path)
    with asyncio.Runner(loop_factory=_loop_factory()) as loop:
        loop.run(_serve(path, config, signals))


class _Signals:
    """
    What the outside asks for, from the first moment of the process on.

    The handlers are Python's own and not the event loop's, so that a second signal ends the process
    even when code of the user's blocks the loop.
    """

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.reload = asyncio.Event()
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def install(self) -> None:
        """Take over SIGTERM, SIGINT and SIGHUP."""
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGINT, self._on_stop)
        signal.signal(signal.SIGHUP, self._on_reload)

    def attach(self) -> None:
        """Wake the running loop from now on."""
        self._loop = asyncio.get_running_loop()

    def _on_stop(self, *_: object) -> None:
        if self._stopping:
            os.write(sys.stderr.fileno(), b"interrupted again, stopping at once\n")
            os._exit(130)
        self._stopping = True
        self._soon(self.stop.set)

    def _on_reload(self, *_: object) -> None:
        self._soon(self.reload.set)

    def _soon(self, action: Callable[[], None]) -> None:
        if self._loop is None:
            action()
        else:
            self._loop.call_soon_threadsafe(action)  # the loop may be asleep in its selector


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # not built for this platform
        return None
    return uvloop.new_event_loop


def _load(path: Path) -> Config:
    from ..config import load_config
    from ..log import configure

    config = load_config(path)
    configure(config.log.level, config.log.format)
    return config


async def _serve(path: Path, config: Config, signals: _Signals) -> None:
    from ..builder import build

    signals.attach()
    runner = build(config)
    for line in (*runner.describe(), *(f"warning: {warning}" for warning in config.inactive())):
        click.echo(line, err=True)
    try:
        if await _first(runner.start(), signals.stop.wait()) == 1:
            return
        click.echo(f"publish one:  {_publish_command(path)}", err=True)
        while await _first(signals.stop.wait(), signals.reload.wait()) == 1:
            signals.reload.clear()
            replacement = _reread(path)
            if replacement is not None:
                runner, config = await _replace(runner, config, *replacement)
    finally:
        await runner.stop()


def _publish_command(path: Path) -> str:
    """Return what to type in another shell, with the command as it was typed in this one."""
    program = Path(sys.argv[0])
    command = "python -m runner" if program.name == "__main__.py" else sys.argv[0]
    return f"{command} publish -c {shlex.quote(str(path))} hello.world --data '{{\"n\": 1}}'"


def _reread(path: Path) -> tuple[Runner, Config] | None:
    """Return what the file describes now; None, with its faults in the log, when that cannot be built."""
    import structlog

    from ..builder import build

    log = structlog.get_logger(__name__)
    try:
        config = _load(path)
        return build(config), config
    except RunnerError as error:
        for fault in str(error).splitlines():
            log.error("configuration not reloaded", fault=fault)
        return None


async def _replace(old: Runner, old_config: Config, new: Runner, new_config: Config) -> tuple[Runner, Config]:
    """Stop the old runner, start the new one; when that fails, start the old configuration again."""
    import structlog

    from ..builder import build

    log = structlog.get_logger(__name__)
    await old.stop()
    try:
        await new.start()
    except RunnerError as error:
        log.error("new configuration does not start, going back", error=str(error))
        await new.stop()
        new, new_config = build(old_config), old_config
        await new.start()
    log.info("configuration reloaded", plan=new.describe()[0])
    return new, new_config


async def _first(*waits: Coroutine[Any, Any, Any]) -> int:
    """Run all until the first one ends, cancel the others, and return its index; raise what it raised."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    ended = min(tasks.index(task) for task in done)
    tasks[ended].result()
    return ended
