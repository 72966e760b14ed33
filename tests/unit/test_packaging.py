"""What is shipped: the pins, the wheel, the two commands of the set-up and the compose file."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]

with (ROOT / "pyproject.toml").open("rb") as _file:
    PROJECT = tomllib.load(_file)["project"]


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def _requirements() -> list[Requirement]:
    texts = [*PROJECT["dependencies"], *(text for extra in PROJECT["optional-dependencies"].values() for text in extra)]
    return [requirement for requirement in map(Requirement, texts) if requirement.name != PROJECT["name"]]


def _tracked() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


@pytest.mark.parametrize("requirement", _requirements(), ids=str)
def test_every_range_admits_its_pin(requirement: Requirement) -> None:
    version = _pins()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(version), f"constraints.txt has {version}"


def test_everything_that_gets_installed_is_pinned() -> None:
    pins = _pins()
    waiting = _requirements()
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        key = (name, frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        assert name in pins, f"{requirement} has no line in constraints.txt"
        for needed in map(Requirement, requires(name) or []):
            environments = [{"extra": extra} for extra in (requirement.extras or {""})]
            if needed.marker is None or any(needed.marker.evaluate(environment) for environment in environments):
                waiting.append(needed)
    assert set(pins) == {name for name, _ in seen}, "constraints.txt pins what nothing needs"


def test_constraints_are_names_and_versions_only() -> None:
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"#.*|[\w.-]+==[\w.]+", line), line


def test_no_tracked_file_names_an_index_or_a_directory_of_some_machine() -> None:
    # Written so that this file does not match itself.
    foreign = re.compile(
        r"pythonhosted[.]org|/simple[/]|(?:extra-)?index-url\s*=|find-links|(?<![\w.])/(?:work|root|home|tmp)/"
    )
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in _tracked()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if foreign.search(line) and path != Path(__file__)
    ]
    assert found == []


def test_the_wheel_carries_the_migrations_and_the_statements(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "runner").rglob("*") if path.is_file()}
    expected |= {f"runner/{path.relative_to(ROOT)}" for path in (ROOT / "migrations").rglob("*") if path.is_file()}
    expected = {name for name in expected if "__pycache__" not in name}
    assert "runner/migrations/env.py" in expected
    assert "runner/py.typed" in expected
    assert expected <= names
    assert not {name for name in names if name.startswith(("tests/", "migrations/"))}


def test_an_old_python_is_refused_with_the_cure(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    old = tmp_path / "old-python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2" && exit 0\nexit 1\n')
    old.chmod(0o755)
    done = subprocess.run(
        ["make", "install", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode != 0
    assert "Python 3.11 or newer is needed" in done.stderr
    assert "Python 3.9.2" in done.stderr
    assert "make install PYTHON=python3.12" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_the_compose_file_fits_the_production_configuration() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    text = (ROOT / "configs" / "prod.yaml").read_text()
    required = set(re.findall(r"\$\{([A-Z_]+)(?::\?[^}]*)?\}", re.sub(r"(?m)#.*$", "", text)))
    for name in ("runner-1", "runner-2"):
        runner = compose["services"][name]
        assert required <= set(runner["environment"]), "configs/prod.yaml asks for more"
        grace = (yaml.safe_load(text).get("worker") or {}).get("shutdown_grace", "25s")
        assert int(runner["stop_grace_period"].removesuffix("s")) > int(grace.removesuffix("s"))
    assert compose["services"]["postgres"]["volumes"] == ["postgres:/var/lib/postgresql"]
