"""`runner top`: the deployment, live on a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import sys
import termios
import tty
from collections.abc import Coroutine, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import RunnerError, readable
from .options import DURATION, config_option, load
from .output import echo

if TYPE_CHECKING:
    from rich.text import Text

    from ..config import Config
    from ..storage import Storage
    from .screen import View, Wish

__all__ = ["top"]

_SHOWN = 8  # deliveries of each kind, where a subscription is opened
_REDRAW = 1.0  # seconds after which the screen is redrawn without a key or an answer
_ENTER = "\x1b[?1049h\x1b[?25l\x1b[2J"  # alternate screen, no cursor
_LEAVE = "\x1b[?25h\x1b[?1049l"
_BEGIN, _END = "\x1b[?2026h\x1b[H", "\x1b[J\x1b[?2026l"  # synchronized update, where the terminal supports it
_KEYS = {
    "A": "up",
    "B": "down",
    "C": "right",
    "D": "left",
    "H": "home",
    "F": "end",
    "5~": "pageup",
    "6~": "pagedown",
    "1~": "home",
    "4~": "end",
}
_KEY = re.compile(r"\x1b[\[O](?P<escaped>[0-9;]*[A-Za-z~])|(?P<plain>.)", re.DOTALL)


@click.command()
@config_option
@click.option(
    "--every",
    type=DURATION,
    default="5s",
    show_default=True,
    metavar="DURATION",
    help="Time between two looks at the database, each of eight short statements.",
)
@click.option("--once", is_flag=True, help="Print one screen and exit; needs no terminal.")
def top(path: Path, every: timedelta, once: bool) -> None:
    """Watch the deployment: verdict, throughput, latency, backlog, and a line for each subscription.

    \b
    up, down       choose a subscription (also j and k, page up and down)
    enter          open it: last errors, dead letters
    s, left, right sort by another column; r reverses
    p              pause it, or resume it, after a question
    space          look now
    q              end, or close what is open

    \b
    Examples:
      runner top
      runner top --every 1s
      runner top --once
    """
    if every < timedelta(milliseconds=200):
        raise click.BadParameter("at least 200ms; each look asks the database", param_hint="--every")
    if not once and not (sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"):
        raise click.UsageError(
            "top needs a terminal for its keys and its screen; `runner top --once` prints one screen, "
            "`runner status --json` is for programs"
        )
    config = load(path, level="error")
    if once:
        asyncio.run(_once(config))
    else:
        asyncio.run(_watch(config, every.total_seconds()))


async def _once(config: Config) -> None:
    from ..builder import open_storage
    from .screen import View, lines

    async with open_storage(config, writes=False) as storage:
        view = View(config.deployment_id, await _report(storage))
    width = shutil.get_terminal_size((80, 24)).columns
    for line in _encoded(lines(view, width, None), width, colored=sys.stdout.isatty()):
        echo(line.rstrip())


async def _report(storage: Storage) -> Any:
    from ..diagnosis.look import look
    from ..diagnosis.status import judge

    return judge(await look(storage))


async def _watch(config: Config, every: float) -> None:
    from ..builder import open_storage
    from .screen import View

    async with open_storage(config, writes=False) as storage:
        view = View(config.deployment_id, await _report(storage))
        with _Terminal() as terminal:
            await _Watch(config, storage, view, terminal, every).run()


class _Watch:
    """The loop: keys and answers of the database change the view, and each change is drawn."""

    def __init__(self, config: Config, storage: Storage, view: View, terminal: _Terminal, every: float) -> None:
        self._config = config
        self._storage = storage
        self._view = view
        self._terminal = terminal
        self._every = every
        self._changed = asyncio.Event()
        self._look_now = asyncio.Event()
        self._ended = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Show the deployment until q, SIGHUP, or the end of input."""
        from .screen import lines

        loop = asyncio.get_running_loop()
        loop.add_reader(sys.stdin.fileno(), self._read)
        loop.add_signal_handler(signal.SIGWINCH, self._changed.set)
        loop.add_signal_handler(signal.SIGHUP, self._end)
        loop.add_signal_handler(signal.SIGTSTP, self._suspend)
        self._start(self._look())
        try:
            while not self._ended:
                size = self._terminal.size()
                self._terminal.draw(lines(self._view, *size), size.columns)
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_REDRAW):
                        await self._changed.wait()
        finally:
            loop.remove_reader(sys.stdin.fileno())
            for number in (signal.SIGWINCH, signal.SIGHUP, signal.SIGTSTP):
                loop.remove_signal_handler(number)
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _end(self) -> None:
        self._ended = True
        self._changed.set()

    def _suspend(self) -> None:
        """Restore the terminal while the process is stopped by Ctrl-Z."""
        self._terminal.leave()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._terminal.enter()
        self._changed.set()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Its text may repeat a statement; the type says enough.
            self._view.message = str(error) if isinstance(error, RunnerError) else f"failed by {type(error).__name__}"
        self._changed.set()

    def _read(self) -> None:
        try:
            typed = os.read(sys.stdin.fileno(), 1024)
        except OSError:
            typed = b""
        if not typed:
            self._end()
        from .screen import press

        for key in _keys(typed.decode(errors="replace")):
            wish = press(self._view, key)
            if wish is not None:
                self._grant(wish)
        self._changed.set()

    def _grant(self, wish: Wish) -> None:
        match wish.kind:
            case "quit":
                self._end()
            case "look":
                self._look_now.set()
            case "open":
                self._start(self._open(wish.name))
            case "pause" | "resume":
                self._start(self._set_paused(wish.name, wish.kind == "pause"))

    async def _look(self) -> None:
        """Query the store at intervals; show an outage, and continue."""
        while True:
            self._look_now.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._every):
                    await self._look_now.wait()
            try:
                self._view.report = await _report(self._storage)
                self._view.trouble = ""
                if self._view.opened is not None:
                    await self._open(self._view.opened.name)
            except RunnerError as error:
                self._view.trouble = readable(str(error))
            self._changed.set()

    async def _open(self, name: str) -> None:
        from ..delivery import DeliveryState
        from ..storage.contract.records import DeliveryQuery

        records, opened = self._storage.records, self._view.opened
        dead = DeliveryQuery(subscription=name, state=DeliveryState.DEAD, limit=_SHOWN)
        waiting = DeliveryQuery(subscription=name, state=DeliveryState.PENDING, limit=5 * _SHOWN)
        found = [each async for each in records.deliveries(dead)]
        failing = [each async for each in records.deliveries(waiting) if each.last_error]
        if opened is not None and opened.name == name:
            opened.dead, opened.failing, opened.read = found, failing[:_SHOWN], True
        self._changed.set()

    async def _set_paused(self, name: str, paused: bool) -> None:
        from ..builder import open_operations
        from ..operations.audit import who

        self._view.message = f"{'pausing' if paused else 'resuming'} {name} …"
        self._changed.set()
        async with open_operations(self._config) as operations:
            changed = await operations.subscriptions.set_paused(name, paused, who())
        state = "paused" if paused else "resumed"
        self._view.message = f"{name} is {state}" if changed else f"{name} was {state} already"
        self._look_now.set()


class _Terminal:
    """The terminal as a screen; a `with` block restores it however the block ends."""

    def __init__(self) -> None:
        self._input, self._output = sys.stdin.fileno(), sys.stdout.fileno()
        self._before = termios.tcgetattr(self._input)

    def __enter__(self) -> _Terminal:
        """Take the screen, and each key at once, without an echo."""
        self.enter()
        return self

    def __exit__(self, *_: object) -> None:
        """Give everything back."""
        self.leave()

    def enter(self) -> None:
        """Take the screen and the keys."""
        tty.setcbreak(self._input, termios.TCSADRAIN)
        self._write(_ENTER)

    def leave(self) -> None:
        """Give the screen and the keys back."""
        with contextlib.suppress(OSError):  # the terminal has been closed
            self._write(_LEAVE)
        with contextlib.suppress(termios.error):
            termios.tcsetattr(self._input, termios.TCSADRAIN, self._before)

    def size(self) -> os.terminal_size:
        """Return columns and lines."""
        try:
            size = os.get_terminal_size(self._output)
        except OSError:
            return os.terminal_size((80, 24))
        return size if all(size) else os.terminal_size((80, 24))

    def draw(self, lines: Sequence[Text], width: int) -> None:
        """Draw the whole screen in one write, so that unchanged parts do not flicker."""
        shown = "\x1b[K\r\n".join(_encoded(lines, width, colored=True))
        self._write(f"{_BEGIN}{shown}\x1b[K{_END}")

    def _write(self, text: str) -> None:
        data = text.encode(errors="replace")
        while data:
            data = data[os.write(self._output, data) :]


def _encoded(lines: Sequence[Text], width: int, *, colored: bool) -> Iterator[str]:
    """Yield the lines with their styles as escape sequences, none where colors are not wanted."""
    from rich.console import Console

    plain = not colored or bool(os.environ.get("NO_COLOR"))
    console = Console(
        force_terminal=colored, color_system="standard" if not plain else None, width=width, legacy_windows=False
    )
    for line in lines:
        with console.capture() as captured:
            console.print(line, end="", soft_wrap=True)
        text = captured.get()
        if plain and colored and line.style and "reverse" in str(line.style):
            text = f"\x1b[7m{text}\x1b[0m"
        yield text


def _keys(typed: str) -> Iterator[str]:
    """Yield the names of the keys in what was typed."""
    for found in _KEY.finditer(typed):
        if found["escaped"] is not None:
            yield _KEYS.get(found["escaped"], "")
        else:
            yield {"\r": "enter", "\n": "enter", "\x1b": "escape"}.get(found["plain"], found["plain"])
