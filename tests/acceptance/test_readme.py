"""The README is true: what it says to paste runs as pasted, in its order, from what its first lines install."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from runner.config import advice, load_config
from tests.support.process import RunnerProcess, run_python

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
CONSOLES = [text for kind, text in BLOCKS if kind == "console"]
INSTALL, *CONSOLES = CONSOLES
FIRST_FILE, PRODUCTION = (text for kind, text in BLOCKS if kind == "yaml")
[PROGRAM] = [text for kind, text in BLOCKS if kind == "python"]
[PRINTED] = [text for kind, text in BLOCKS if kind == "text"]

VARYING = re.compile(
    r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|sqlite:///\S+"
    r"|(?:\S+/|python -m )runner(?= publish)|\d{4}-\d\d-\d\dT\S+Z"
)


def same(text: str) -> list[str]:
    """Return the lines without what is another one each time: ids, paths, times."""
    return [" ".join(VARYING.sub("…", line).split()) for line in text.splitlines() if line.strip()]


def commands(block: str) -> list[tuple[str, str]]:
    """Return each command of a block with what the README says it prints."""
    found = re.findall(r"^\$ (.*)\n((?:[^$].*\n)*)", block, re.MULTILINE)
    assert len(found) == block.count("$ ")
    return found


def shell(script: str, cwd: Path, **env: str) -> str:
    """Run it as somebody would who pastes it, expect that it succeeds, and return what it printed."""
    done = subprocess.run(
        ["bash", "-euc", script],
        cwd=cwd,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_the_install_lines_install_it(tmp_path: Path) -> None:
    """Its dependencies are taken from where the tests run, since not every machine reaches a package index."""
    clone = tmp_path / "clone"
    clone.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    for name in ("runner", "migrations", "configs"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    here = sysconfig.get_path("purelib")
    offline = {"PYTHONPATH": here, "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_INDEX": "1"}
    (clone / "runner.yaml").write_text(FIRST_FILE)
    outside = "import runner; print(runner.__file__)"
    script = f"{INSTALL}\ncd /\npython -c '{outside}'\ncd -\nrunner migrate\nrunner publish a.b".replace("$ ", "")
    place = shell(script, clone, **offline).splitlines()[0]
    assert Path(place).is_relative_to(clone / ".venv")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the first file, in which the bus runs as the first block starts it."""
    directory = tmp_path_factory.mktemp("shop")
    (directory / "runner.yaml").write_text(FIRST_FILE)
    return directory


def test_every_block_runs_in_its_order(shop: Path) -> None:
    path = f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"
    [(start, said)], *blocks = map(commands, CONSOLES)
    assert start == "runner start"
    assert len(blocks) >= 3
    with RunnerProcess("start", cwd=shop) as runner:
        runner.wait_for_line("publish one:")
        shown = same("\n".join([*runner.stdout, *runner.stderr]))
        assert [line for line in shown if line.startswith(("bus", "publish"))] == same(said)
        for command, expected in (each for block in blocks for each in block):
            if command.startswith("runner deliveries list") and expected:
                runner.wait_for_line("order.created")
                shell("until runner deliveries list | grep -q delivered; do sleep 0.1; done", shop, PATH=path)
            printed = shell(command, shop, PATH=path)
            if expected:
                assert same(printed) == same(expected), command
        assert same(PRINTED)[0] in same("\n".join(runner.stdout))
        assert runner.stop() == 0


def test_the_program_greets(shop: Path) -> None:
    done = run_python(PROGRAM, cwd=shop)
    assert done.returncode == 0, done.stderr
    assert "hello Ada" in done.stdout  # the sink of the file prints from a thread, perhaps on the same line


def test_the_file_for_production_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "prod.yaml"
    path.write_text(PRODUCTION)
    config = load_config(path)
    assert advice(config) == []
    assert [plugin.kind for plugin in config.strategies] == ["polling", "nats"]
