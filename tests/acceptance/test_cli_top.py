"""`runner top` (docs/status.md) on a real terminal: keys, sizes, and one left as it was, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import sqlite3
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import reaper
from tests.support.eventually import PATIENCE
from tests.support.process import COMMAND, environment, run_cli

FILE = """\
deployment_id: shop
storage: {dsn: "sqlite:///runner.db"}
sinks: {log: stdout}
subscriptions:
  - {name: crm, types: ["order.*"], sink: log}
  - {name: search, types: ["product.*"], sink: log}
"""

_FRAME = re.compile(r"\x1b\[\?2026h\x1b\[H(.*?)\x1b\[J\x1b\[\?2026l", re.DOTALL)
_STYLE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Screen:
    """A terminal with `runner top` on it."""

    def __init__(self, directory: Path, *args: str, columns: int = 80, rows: int = 24) -> None:
        self._here, self._there = pty.openpty()
        self.resize(columns, rows)
        self.before = termios.tcgetattr(self._there)
        self.written = ""
        env = environment({"TERM": "xterm-256color"})
        env.pop("COLUMNS")
        self.process = subprocess.Popen(
            [*COMMAND, "top", *args],
            cwd=directory,
            env=env,
            stdin=self._there,
            stdout=self._there,
            stderr=self._there,
            start_new_session=True,
        )
        reaper.watch(self.process.pid)

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._there, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: str) -> None:
        os.write(self._here, keys.encode())

    @property
    def lines(self) -> list[str]:
        """The lines of the last screen that was drawn."""
        frames = _FRAME.findall(self.written)
        return [_STYLE.sub("", line).rstrip() for line in frames[-1].split("\r\n")] if frames else []

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not any(text in line for line in self.lines):
            assert time.monotonic() < deadline, (
                f"{text!r} is not shown\n" + "\n".join(self.lines) + self.written[-2000:]
            )
            self._read()

    def end(self) -> int:
        """Wait for the end, check that the terminal is as it was, and return the exit code."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < deadline, "still running"
            self._read()
        self._read()
        assert termios.tcgetattr(self._there) == self.before
        entered, left = self.written.rfind("\x1b[?1049h"), self.written.rfind("\x1b[?1049l")
        assert entered < left
        assert self.written.rfind("\x1b[?25l") < self.written.rfind("\x1b[?25h")
        assert "Traceback" not in self.written
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        reaper.forget(self.process.pid)
        os.close(self._here)
        os.close(self._there)

    def _read(self) -> None:
        if select.select([self._here], [], [], 0.05)[0]:
            self.written += os.read(self._here, 65536).decode(errors="replace")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deployment whose subscriptions are on record, and of which nothing runs."""
    from tests.support.process import RunnerProcess

    directory = tmp_path_factory.mktemp("shop")
    (directory / "runner.yaml").write_text(FILE)
    with RunnerProcess("start", cwd=directory) as process:
        process.wait_for_line("publish one")
        assert process.stop() == 0
    return directory


@pytest.fixture
def screen(shop: Path) -> Iterator[Screen]:
    made = Screen(shop, "--every", "300ms")
    try:
        made.wait_for("crm")
        yield made
    finally:
        made.close()


def test_keys_pause_and_resume_a_subscription(screen: Screen, shop: Path) -> None:
    def paused() -> set[str]:
        listed = run_cli("subscriptions", "list", "--json", cwd=shop).stdout.splitlines()
        return {each["name"] for each in map(json.loads, listed) if each["paused"]}

    assert screen.lines[0].startswith("down  deployment shop")
    assert len(screen.lines) == 24
    screen.type("\x1b[B")  # down, to `search`
    screen.type("p")
    screen.wait_for("pause search? y/n")
    screen.type("n")
    screen.wait_for("search stays as it is")
    assert paused() == set()
    screen.type("p")
    screen.wait_for("pause search? y/n")
    screen.type("y")
    screen.wait_for("search is paused")
    assert paused() == {"search"}
    screen.wait_for("search           paused")
    screen.type("\r")
    screen.wait_for("product.* -> log")
    screen.type("p")
    screen.wait_for("resume search? y/n")
    screen.type("y")
    screen.wait_for("search is resumed")
    assert paused() == set()
    screen.type("q")
    screen.wait_for("sort by trouble")
    screen.type("s")
    screen.wait_for("sort by name")
    screen.type("q")
    assert screen.end() == 0


def test_it_follows_the_size_of_the_terminal(screen: Screen) -> None:
    screen.resize(120, 40)
    screen.wait_for("FAILING")
    assert len(screen.lines) == 40
    screen.resize(60, 12)
    screen.wait_for("↑↓ choose")
    deadline = time.monotonic() + PATIENCE
    while len(screen.lines) != 12:
        assert time.monotonic() < deadline
        screen._read()
    screen.type("q")
    assert screen.end() == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGHUP, 0)])
def test_a_signal_leaves_the_terminal_as_it_was(screen: Screen, number: signal.Signals, code: int) -> None:
    screen.process.send_signal(number)
    assert screen.end() == code


def test_an_outage_is_shown_and_looks_go_on(screen: Screen, shop: Path) -> None:
    def execute(sql: str) -> None:
        with contextlib.closing(sqlite3.connect(shop / "runner.db", timeout=PATIENCE)) as db, db:
            db.execute(sql)

    execute("ALTER TABLE dispatch RENAME TO away")
    try:
        screen.type(" ")
        screen.wait_for("no answer, what follows is old")
        screen.wait_for("search")
    finally:
        execute("ALTER TABLE away RENAME TO dispatch")
    deadline = time.monotonic() + PATIENCE
    while any("no answer" in line for line in screen.lines):
        assert time.monotonic() < deadline
        screen._read()
    screen.type("q")
    assert screen.end() == 0


def test_once_prints_one_screen_anywhere(shop: Path) -> None:
    done = run_cli("top", "--once", cwd=shop, env={"COLUMNS": "100"})
    assert done.returncode == 0
    assert done.stdout.startswith("down  deployment shop")
    assert "\x1b" not in done.stdout
    assert {"crm", "search"} <= {line.split()[0] for line in done.stdout.splitlines() if line}
    assert "q quit" not in done.stdout


def test_without_a_terminal_it_says_what_there_is_instead(shop: Path) -> None:
    done = run_cli("top", cwd=shop)
    assert done.returncode == 2
    assert "runner top --once" in done.stderr
    assert "runner status --json" in done.stderr
