"""Every code block of the README and of docs/ runs as it stands there, in order, one session for a document."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.documents import ROOT, Block, commands, read
from tests.support.shell import Shell

from .pasting import Reader
from .receiver import Receiver

DOCUMENTS = ("README.md", *sorted(str(each.relative_to(ROOT)) for each in (ROOT / "docs").glob("*.md")))
BLOCKS = [(name, block) for name in DOCUMENTS for block in read(ROOT / name)]
PASTED = tuple(dict.fromkeys(name for name, _ in BLOCKS))

MOST_NOT_RUN = 3
"""Blocks of all documents that may say `not run`."""

HERE = Path(sysconfig.get_path("scripts"))

# What the README installs in a clone is then taken from where the tests run: not every machine reaches a package index.
OFFLINE = {
    "PYTHONPATH": sysconfig.get_path("purelib"),
    "PIP_NO_DEPS": "1",
    "PIP_NO_BUILD_ISOLATION": "0",
    "PIP_NO_INDEX": "1",
}


def test_what_is_not_run_says_why_and_is_little() -> None:
    reasons = [block.notes["not run"] for _, block in BLOCKS if "not run" in block.notes]
    assert all(reasons)
    assert len(reasons) <= MOST_NOT_RUN, reasons


@pytest.mark.parametrize(("document", "block"), [each for each in BLOCKS if "run by" in each[1].notes])
def test_what_another_test_runs_stands_there(document: str, block: Block) -> None:
    """That test reads the document, or runs the verb, or expects what is logged."""
    test = (ROOT / block.notes["run by"]).read_text()
    if block.language == "text":
        wanted = [line.partition("  ")[0] for line in block.text.splitlines()]
    else:
        wanted = [f'"{word}"' for each in commands(block) for word in each.line.split()[1:3]]
    assert Path(document).name in test or all(each in test for each in wanted)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("document", PASTED)
def test_it_runs_as_pasted(document: str, servers: Mapping[str, str], tmp_path: Path) -> None:
    env = {**_environment(HERE), **servers}
    if document == "README.md":
        _clone(tmp_path)
        env |= OFFLINE
    with Shell(tmp_path, env) as shell:
        Reader(shell, tmp_path).paste(read(ROOT / document))
        if document == "README.md":
            assert shell.run("command -v runner").printed == f"{tmp_path}/.venv/bin/runner\n"


@pytest.mark.wheel
@pytest.mark.timeout(900)
@pytest.mark.parametrize("document", PASTED)
def test_it_runs_from_an_installed_wheel(
    document: str, installed: Path, servers: Mapping[str, str], tmp_path: Path
) -> None:
    with Shell(tmp_path, {**_environment(installed), **servers}) as shell:
        Reader(shell, tmp_path, skip=["in a clone"]).paste(read(ROOT / document))
        place = shell.run("python -c 'import runner; print(runner.__file__)'").printed
        assert Path(place).is_relative_to(installed.parent)


@pytest.mark.wheel
@pytest.mark.timeout(900)
def test_dev_runs_from_an_installed_wheel(installed: Path, tmp_path: Path) -> None:
    with Shell(tmp_path, _environment(installed)) as shell:
        shell.start("runner dev --every 100ms")
        shell.wait_for(lambda: "/shop" in shell.printed, "a sample event on the terminal")
        assert shell.run("runner publish -c .runner/runner.yaml order.created").code == 0
        assert shell.stop() == [0]


@pytest.mark.wheel
@pytest.mark.timeout(600)
def test_the_install_lines_install_all_that_is_needed(tmp_path: Path) -> None:
    """As they stand in the README, in a clone, with pip as it is set up here."""
    _clone(tmp_path)
    with Shell(tmp_path, _environment(None)) as shell:
        Reader(shell, tmp_path).paste(block for block in read(ROOT / "README.md") if "in a clone" in block.notes)
        assert shell.run("runner init first.yaml && runner check -c first.yaml").code == 0


@pytest.fixture
def servers(document: str, request: pytest.FixtureRequest) -> Iterator[Mapping[str, str]]:
    """The servers that a document speaks of, by the names it uses."""
    text = (ROOT / document).read_text()
    found = {}
    if "DATABASE_URL" in text:
        found["DATABASE_URL"] = found["ADMIN_URL"] = request.getfixturevalue("postgres_dsn")
    if "NATS_URL" in text:
        found["NATS_URL"] = request.getfixturevalue("nats_server").url
    with Receiver() as receiver:
        yield {**found, "DEPLOYMENT_ID": "shop", "CRM_URL": receiver.url, "CRM_ANSWER": str(receiver.answer)}


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a virtual environment that has nothing but the wheel and what it asks for."""
    directory = tmp_path_factory.mktemp("wheel")
    (directory / "clone").mkdir()
    _clone(directory / "clone")
    _pip(HERE, "wheel", "--no-deps", "--wheel-dir", directory, directory / "clone")
    [wheel] = directory.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", directory / "venv"], check=True, timeout=120)
    _pip(directory / "venv/bin", "install", wheel)
    return directory / "venv/bin"


def _pip(programs: Path, *args: str | Path) -> None:
    """Run pip as it is set up here; skip the test where it finds no packages at all."""
    command = [programs / "python", "-m", "pip", "--disable-pip-version-check", *args, "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if "No matching distribution found" in done.stderr:
        pytest.skip(f"pip reaches no package index: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr


def _environment(programs: Path | None) -> dict[str, str]:
    """Return the environment of somebody who has the programs of that directory, and nothing of these tests."""
    ours = {"PYTHONPATH", "RUNNER_CONFIG", "RUNNER_DEBUG", "VIRTUAL_ENV"}
    env = {name: value for name, value in os.environ.items() if name not in ours}
    path = [each for each in env["PATH"].split(os.pathsep) if Path(each) != HERE]
    env["PATH"] = os.pathsep.join([str(programs), *path] if programs else path)
    return env | {"NO_COLOR": "1"}


def _clone(directory: Path) -> None:
    """Copy what a clone has that an installation needs."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, directory)
    for name in ("runner", "migrations", "configs"):
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
