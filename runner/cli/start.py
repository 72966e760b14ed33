"""`runner start`: build what the file describes and run it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigError, RunnerError, readable
from ..log.redaction import redacted
from .loop import TOGETHER, StopRequests, loop_factory, tune_gc
from .options import config_option, settings
from .output import tell

if TYPE_CHECKING:
    from ..config import Config
    from ..operations.reloading import ReloadState
    from ..runtime.runner import Runner

__all__ = ["start"]

_PATIENCE = 1.0  # seconds that the exit waits for the last lines to be read


@click.command()
@config_option
@click.option("--watch", is_flag=True, help="Reload whenever the file changes, or one that it names.")
def start(path: Path, watch: bool) -> None:
    """Build the bus the file describes and run it until SIGTERM or SIGINT.

    The first signal ends it once running deliveries are done, within worker.shutdown_grace; a second one
    at once. SIGHUP reads the file again, and so does every change of it with --watch: what can be
    changed is changed without a stop, a bad file changes nothing.

    \b
    Examples:
      runner start -c runner.yaml
      RUNNER_CONFIG=prod.yaml runner start
      runner start -c runner.yaml --watch
    """
    signals = _Signals()
    signals.install()
    config = _load(path)
    voice = _Voice(config)
    if voice.json:
        signals.last_words = '{"event": "interrupted again, stopping at once", "level": "warning"}'
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as loop:
            loop.run(_serve(path, config, signals, voice, watch))
    except RunnerError as error:
        if not voice.json or isinstance(error, ConfigError):
            raise  # faults of the file are printed, not logged
        voice.failed(error)
        raise click.exceptions.Exit(error.exit_code) from error


class _Voice:
    """The messages of `start` besides its log: lines for people, or log events where the log is JSON."""

    def __init__(self, config: Config) -> None:
        import structlog

        self.json = config.log.format == "json"
        self._log = structlog.get_logger(__name__)

    def built(self, runner: Runner, config: Config) -> None:
        """Print the summary of the runner, and warnings about its configuration."""
        from ..config import advice

        if self.json:
            self._log.info("built", deployment=config.deployment_id, plan=" ".join(runner.describe()))
            for warning in advice(config):
                self._log.warning("odd configuration", detail=warning)
            return
        for line in (*runner.describe(), *(f"warning: {warning}" for warning in advice(config))):
            tell(line, wait=False)

    def how_to_use(self, path: Path, dashboard: str) -> None:
        """Print where the dashboard is, if anywhere, and the command that publishes an event."""
        if self.json:
            self._log.info("publish one", command=_publish_command(path))
            return
        if dashboard:
            tell(f"dashboard:    {dashboard}", wait=False)
        tell(f"publish one:  {_publish_command(path)}", wait=False)

    def aborted(self) -> None:
        """Print that the process was stopped before it had started."""
        if self.json:
            self._log.warning("stopped before it had started")
        else:
            tell("stopped before it had started", wait=False)

    def failed(self, error: RunnerError) -> None:
        """Log what ends the process."""
        for line in str(error).splitlines():
            self._log.error("failed", error=readable(line))


class _Signals:
    """
    The signals that the process was sent, from its first moment on.

    The handlers are Python's own and not the event loop's, so that a second signal ends the process
    even when code of the user's blocks the loop.
    """

    def __init__(self) -> None:
        self.last_words = "interrupted again, stopping at once"
        self.stop = asyncio.Event()
        self._reload = False  # whether a reload was asked for before the process could act on it
        self._on_reloads: Callable[[], object] | None = None
        self._requests = StopRequests()
        self._loop: asyncio.AbstractEventLoop | None = None

    def install(self) -> None:
        """Install the handlers of SIGTERM, SIGINT and SIGHUP."""
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGINT, self._on_stop)
        signal.signal(signal.SIGHUP, self._on_reload)

    def attach(self) -> None:
        """Wake the running loop from now on."""
        self._loop = asyncio.get_running_loop()

    def on_reload(self, action: Callable[[], object]) -> None:
        """Call `action` for every SIGHUP from now on, and for one that has come already."""
        self._on_reloads = action
        if self._reload:
            action()

    def _pass_on(self) -> None:
        if self._on_reloads is not None:
            self._on_reloads()

    def _on_stop(self, *_: object) -> None:
        if self._requests.is_another():
            try:
                _say_at_last(self.last_words)
            finally:
                os._exit(130)
        if self._loop is None:
            self.stop.set()
        else:
            self._loop.call_soon_threadsafe(self._loop.call_later, TOGETHER, self.stop.set)

    def _on_reload(self, *_: object) -> None:
        self._reload = True
        self._soon(self._pass_on)

    def _soon(self, action: Callable[[], None]) -> None:
        if self._loop is None:
            action()
        else:
            self._loop.call_soon_threadsafe(action)  # wakes a loop that sleeps in its selector


def _say_at_last(words: str) -> None:
    from ..log.setup import flush

    tell(words, wait=False)
    flush()


def _load(path: Path) -> Config:
    from ..config import load_config

    config = load_config(path, settings=settings())
    config.log.apply(patience=_PATIENCE)
    return config


async def _serve(path: Path, config: Config, signals: _Signals, voice: _Voice, watch: bool) -> None:
    from ..builder import build
    from ..service.supervisor import Supervisor

    signals.attach()
    runner = build(config)
    supervisor = Supervisor(os.environ)
    voice.built(runner, config)

    def reload() -> None:
        supervisor.reloading()
        runner.reloading.ask("signal")

    signals.on_reload(reload)
    runner.reloading.when_done(lambda: supervisor.reloaded(_status(runner.reloading.state)))
    try:
        if await _first(runner.start(), signals.stop.wait()) == 1:
            voice.aborted()
            return
        tune_gc()
        voice.how_to_use(path, _dashboard(runner, config))
        await supervisor.start()
        async with _watching(runner, watch):
            await signals.stop.wait()
    finally:
        supervisor.stopping()
        try:
            await runner.stop()
        finally:
            await supervisor.stop()


def _dashboard(runner: Runner, config: Config) -> str:
    """Return the address of the dashboard; empty where there is none for a browser."""
    url = next((each for each in runner.addresses if each.startswith("http")), "")
    return f"{url}{config.api.root_path}/" if url and config.api is not None and config.api.dashboard else ""


def _status(state: ReloadState) -> str:
    """Return a line on the file in use, for `systemctl status`."""
    if not state.kept or state.last is None:
        return f"file {state.digest}, read at {state.loaded_at:%Y-%m-%d %H:%M:%S} UTC"
    return f"not reloaded, goes on with the file it had: {redacted(state.last.faults[0])}"


def _publish_command(path: Path) -> str:
    """Return the command that publishes an event from another shell, called in the same way as this one."""
    program = Path(sys.argv[0])
    command = "python -m runner" if program.name == "__main__.py" else sys.argv[0]
    return f"{command} publish -c {shlex.quote(str(path))} hello.world --data '{{\"n\": 1}}'"


@contextlib.asynccontextmanager
async def _watching(runner: Runner, watch: bool) -> AsyncIterator[None]:
    """Reload the runner whenever one of its files changes, if `--watch` was given."""
    if not watch:
        yield
        return
    from .watching import Watcher

    watcher = Watcher(lambda: runner.reloading.state.files, lambda: runner.reloading.ask("watch"))
    await watcher.start()
    try:
        yield
    finally:
        await watcher.stop()


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
