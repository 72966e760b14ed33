"""What the templates say is right: the commands they propose are such."""

from __future__ import annotations

import html
import re
import shlex
from importlib.resources import files
from pathlib import Path

import pytest

from tests.unit.cli.test_program import parse

COMMANDS = [
    html.unescape(found)
    for template in sorted(files("runner.dashboard").joinpath("templates").iterdir(), key=str)
    for found in re.findall(r"<(?:pre|code)>runner ((?:[^<{]|{(?![{%]))*)</", template.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_parses(command: str, tmp_path: Path) -> None:
    (tmp_path / "runner.yaml").write_text("")
    words = [str(tmp_path / "runner.yaml") if word == "FILE" else word for word in shlex.split(command)]
    parse(words if "-c" in words else [*words, "-c", str(tmp_path / "runner.yaml")])


def test_there_are_some() -> None:
    assert len(COMMANDS) >= 3
