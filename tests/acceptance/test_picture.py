"""The picture of the README: what `subscriptions list` shows on a terminal while a receiver is down."""

from __future__ import annotations

import asyncio
import io
import os
import pty
import re
import subprocess
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from tests.support.documents import ROOT, plain
from tests.support.eventually import eventually
from tests.support.process import COMMAND, environment

from .deployment import Deployment, started

PICTURE = ROOT / "docs" / "img" / "outage.svg"
WIDTH = 96  # characters

CONFIG = """\
deployment_id: shop
storage: {dsn: "sqlite:///shop.db"}
sinks:
  crm: {webhook: {url: "http://127.0.0.1:9/events"}}
  search: {python: "handlers:take"}
  audit: {python: "handlers:take"}
subscriptions:
  - {name: orders-to-crm, types: ["order.*"], sink: crm, breaker: {failures: 5, pause: 5m, max_pause: 5m}}
  - {name: search-index, types: ["order.*", "product.*"], sink: search}
  - {name: audit, types: ["*"], sink: audit}
"""


def test_it_shows_what_a_terminal_shows(tmp_path: Path) -> None:
    shop = Deployment(tmp_path, "sqlite:///shop.db")
    shop.path.write_text(CONFIG)
    (tmp_path / "handlers.py").write_text("def take(event):\n    pass\n")
    with started(shop):
        for number in range(1, 6):
            shop.cli("publish", "order.created", "--data", f'{{"order": {number}}}')
        screen = asyncio.run(eventually(lambda: _open(_on_a_terminal(shop, "subscriptions", "list")), every=0.2))
    made = _picture("$ runner subscriptions list", screen)
    if not PICTURE.exists() or _steady(PICTURE.read_text()) != _steady(made):
        PICTURE.write_text(made)
        raise AssertionError(f"{PICTURE.name} was not what is seen, and has been made anew: look at it, then commit it")


def _open(screen: str) -> str | None:
    """Return the screen once the receiver is given up and the others have everything; columns have one width."""
    settled = re.search(r"breaker open, \dm\d\ds left", screen) and "5 pending" in screen
    return screen if settled and not re.search("queued|leased|[1-4] pending", screen) else None


def _on_a_terminal(shop: Deployment, *args: str) -> str:
    """Run a command on a terminal of a known width, and return what it writes, styles included."""
    terminal, side = pty.openpty()
    try:
        env = environment({"COLUMNS": str(WIDTH), "TERM": "xterm-256color", "RUNNER_CONFIG": "runner.yaml"})
        env.pop("NO_COLOR")
        command = [*COMMAND, *args]
        process = subprocess.Popen(command, cwd=shop.directory, env=env, stdin=side, stdout=side, stderr=side)
        os.close(side)
        written = b""
        try:
            while chunk := os.read(terminal, 65536):
                written += chunk
        except OSError:
            pass  # the other side is closed
        assert process.wait(30) == 0, written
    finally:
        os.close(terminal)
    return written.decode().replace("\r\n", "\n")


def _picture(command: str, screen: str) -> str:
    """Return a terminal with a command and what it printed, as SVG; its fonts are those of the reader."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text(command, style="bold"))
    console.print(Text.from_ansi(screen.rstrip()))
    svg = console.export_svg(title="", theme=_THEME, unique_id="outage")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.S)
    return "".join(f"{line.rstrip()}\n" for line in svg.splitlines())


def _steady(svg: str) -> str:
    """Return a picture without what is otherwise each time: how long the breaker stays open."""
    return plain(re.sub(r"&#160;", " ", svg))


_THEME = TerminalTheme(
    (250, 250, 250),
    (40, 42, 46),
    [
        (40, 42, 46),
        (180, 40, 40),
        (40, 120, 60),
        (150, 100, 0),
        (40, 90, 170),
        (130, 60, 150),
        (0, 120, 130),
        (90, 90, 90),
    ],
)
