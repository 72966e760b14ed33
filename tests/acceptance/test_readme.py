"""The README is true: its configuration loads, its program runs, its commands exist and print what it says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from runner.config import advice, load_config
from tests.support.process import run_cli, run_python

README = (Path(__file__).parents[2] / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^\$ (?:\.venv/bin/)?runner (.*?)(?:\s+#.*)?$", README, re.MULTILINE)


START_AND_STOP = """
import asyncio, runner

async def main():
    async with runner.load("prod.yaml"):
        pass

asyncio.run(main())
"""


def block(language: str) -> str:
    """Return the first block in a language."""
    return next(str(text) for kind, text in BLOCKS if kind == language)


def test_the_configuration_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "bus.yaml"
    path.write_text(block("yaml"))
    config = load_config(path)
    assert advice(config) == []
    assert [plugin.kind for plugin in config.strategies] == ["polling", "nats"]


def test_the_program_greets(tmp_path: Path) -> None:
    (tmp_path / "bus.yaml").write_text("deployment_id: readme\nstorage: {dsn: sqlite:///bus.db}\n")
    done = run_python(block("python"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["hello Ada"]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A directory in which the commands of the README find what they name."""
    text = "deployment_id: shop\nstorage: {dsn: sqlite:///shop.db}\nsinks: {crm: stdout}\n"
    text += "subscriptions:\n  - {name: orders-to-crm, types: ['order.*'], sink: crm}\n"
    (tmp_path / "configs").mkdir()
    for path in ("prod.yaml", "configs/dev.yaml"):
        (tmp_path / path).write_text(text)
    (tmp_path / "order.json").write_text('{"n": 1}')
    return tmp_path


def test_there_are_commands_to_test() -> None:
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize("command", [each for each in COMMANDS if not each.startswith(("start", "events tail"))])
def test_a_command_works(command: str, shop: Path) -> None:
    # What the command is about is there: tables, and the subscription it may name.
    started = run_python(START_AND_STOP, cwd=shop)
    assert started.returncode == 0, started.stderr
    done = run_cli(*shlex.split(command), cwd=shop)
    assert done.returncode == 0, done.stderr
