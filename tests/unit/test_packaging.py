"""What is shipped: the pins, the wheel, the two commands of the set-up and the compose file."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import threading
import tomllib
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from runner.config import Secret, load_config
from runner.strategies.nats import NatsOptions
from tests.support.documents import commands, read

ROOT = Path(__file__).parents[2]

with (ROOT / "pyproject.toml").open("rb") as _file:
    _PYPROJECT = tomllib.load(_file)
PROJECT, BUILD = _PYPROJECT["project"], _PYPROJECT["build-system"]


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
        r"pythonhosted[.]org|/simple[/]|(?:extra-)?index-url\s*=|(?<!emit-)find-links|(?<![\w.])/(?:work|root|home|tmp)/"
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
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
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


def _locked(name: str) -> dict[str, tuple[str, int]]:
    """Return version and number of hashes of every package in a list for `--require-hashes`."""
    text = (ROOT / "requirements" / name).read_text().replace("\\\n", " ")
    found: dict[str, tuple[str, int]] = {}
    for line in filter(None, text.splitlines()):
        match = re.fullmatch(r"([\w.-]+)==(\S+)(?: ; [^#]*?)?((?: +--hash=sha256:[0-9a-f]{64})+)", line)
        assert match, line
        found[canonicalize_name(match[1])] = (match[2], match[3].count("--hash"))
    return found


def _needed(roots: list[str]) -> set[str]:
    waiting = [Requirement(root) for root in roots]
    seen: set[str] = set()
    while waiting:
        requirement = waiting.pop()
        seen.add(canonicalize_name(requirement.name))
        for needed in map(Requirement, requires(requirement.name) or []):
            environments = [{"extra": extra} for extra in (requirement.extras or {""})]
            wanted = needed.marker is None or any(needed.marker.evaluate(each) for each in environments)
            if wanted and canonicalize_name(needed.name) not in seen:
                waiting.append(needed)
    return seen


@pytest.mark.parametrize(
    ("name", "roots"),
    [("runtime.txt", PROJECT["dependencies"]), ("build.txt", BUILD["requires"])],
    ids=["runtime", "build"],
)
def test_the_image_installs_what_is_needed_by_its_hash(name: str, roots: list[str]) -> None:
    pins, locked = _pins(), _locked(name)
    assert _needed(roots) <= set(locked), "make lock"
    assert {each: version for each, (version, _) in locked.items()} == {each: pins[each] for each in locked}, (
        "make lock"
    )
    assert all(hashes for _, hashes in locked.values())
    if name == "runtime.txt":
        # Files for x86-64 and ARM, and for more than one version of Python.
        assert all(locked[each][1] > 10 for each in ("asyncpg", "pydantic-core", "orjson", "uvloop", "msgspec"))


def test_the_wheel_is_built_by_one_version() -> None:
    [hatchling] = [Requirement(each) for each in BUILD["requires"]]
    assert str(hatchling.specifier) == f"=={_pins()['hatchling']}"
    assert f"\n{hatchling}\n" in (ROOT / "requirements" / "build.in").read_text()


def test_the_sdist_is_complete(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = {path.relative_to(ROOT).as_posix() for path in _tracked()}
    assert {name for name in tracked - names if not name.startswith(".ci/")} == set()
    assert not {name for name in names if name.startswith((".git/", ".venv"))}


@pytest.mark.wheel
@pytest.mark.timeout(600)
def test_the_bill_of_materials_has_what_the_image_installs(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    command = ["make", "sbom", f"PYTHON={sys.executable}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False)
    if "No matching distribution found" in done.stderr:
        pytest.skip("pip reaches no package index")
    assert done.returncode == 0, done.stderr
    bill = json.loads((tmp_path / "dist" / "sbom.cdx.json").read_text())
    assert (bill["bomFormat"], bill["metadata"]["component"]["name"]) == ("CycloneDX", PROJECT["name"])
    found = {
        canonicalize_name(each["name"]): (
            each["version"],
            sum(len(reference.get("hashes", ())) for reference in each["externalReferences"]),
        )
        for each in bill["components"]
    }
    assert found == _locked("runtime.txt")


class TestImage:
    LINES = re.sub(r"(?m)^#.*\n", "", (ROOT / "Dockerfile").read_text()).replace("\\\n", " ").splitlines()

    def test_it_is_made_of_what_is_pinned(self) -> None:
        text = "\n".join(self.LINES)
        assert re.search(r"^ARG PYTHON=python:3\.\d+\.\d+-slim-\w+@sha256:[0-9a-f]{64}$", text, re.MULTILINE)
        assert {line.split()[1] for line in self.LINES if line.startswith("FROM ")} == {"${PYTHON}"}
        for line in self.LINES:
            if "pip install" in line:
                assert "--require-hashes" in line or "--no-index" in line, line
            if "pip wheel" in line:
                assert "--no-deps" in line
                assert "--no-build-isolation" in line

    def test_it_runs_as_a_number_and_gets_signals_itself(self) -> None:
        assert "USER 10001:10001" in self.LINES
        assert 'ENTRYPOINT ["runner"]' in self.LINES
        assert self.LINES.index("USER 10001:10001") > max(
            i for i, line in enumerate(self.LINES) if line.startswith("RUN")
        )

    def test_what_it_starts_serves_what_its_health_check_asks(self) -> None:
        [line] = [line for line in self.LINES if line.startswith("CMD ")]
        [verb, *options] = json.loads(line.removeprefix("CMD "))
        assert verb == "start"
        file, setting = options[options.index("-c") + 1], options[options.index("--set") + 1]
        env = {"DEPLOYMENT_ID": "shop", "DATABASE_URL": "postgresql://db/bus", "NATS_URL": "tls://nats:4222"}
        config = load_config(ROOT / file, env, settings=[setting])
        assert config.api is not None
        assert config.api.place.near, "beyond the loopback it would need tokens"
        assert f"'127.0.0.1', {config.api.place.port}" in self._health_check()[-1]

    def _health_check(self) -> list[str]:
        [line] = [line for line in self.LINES if line.startswith("HEALTHCHECK ")]
        command: list[str] = json.loads(line[line.index("CMD [") + 4 :])
        return command

    @pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (None, 1)])
    def test_its_health_check_fails_unless_all_is_well(self, status: int | None, code: int) -> None:
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response((status or 500) if self.path == "/healthz" else 404)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        if status is None:
            server.server_close()
        else:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        program, *options = self._health_check()
        assert (program, options[:2]) == ("python", ["-I", "-c"])
        options[-1] = options[-1].replace("8080", str(server.server_port))
        env = {**os.environ, "http_proxy": "http://127.0.0.1:9"}
        done = subprocess.run([sys.executable, *options], env=env, capture_output=True, timeout=60, check=False)
        if status is not None:
            server.shutdown()
            server.server_close()
        assert done.returncode == code, done.stderr

    def test_a_volume_of_sqlite_belongs_to_its_user(self) -> None:
        assert any(
            "install --directory --owner 10001 --group 10001 --mode 0700 /var/lib/runner" in x for x in self.LINES
        )
        assert "/var/lib/runner" in (ROOT / "docs" / "deployment.md").read_text()

    def test_the_commands_of_the_documents_fit(self) -> None:
        """Those that need Docker, which is not where tests run."""
        blocks = [each for each in read(ROOT / "docs" / "deployment.md") if "test_packaging" in str(each.notes)]
        build, run, *compose = [shlex.split(each.line) for block in blocks for each in commands(block)]
        assert build == ["docker", "build", "-t", "eventbus-runner", "."]
        assert {"--read-only", "--tmpfs", "--cap-drop"} <= set(run)
        assert int(run[run.index("--stop-timeout") + 1]) > 25 + 5  # worker.shutdown_grace
        assert run[run.index("eventbus-runner") + 1 :] == ["start", "-c", "/etc/runner/prod.yaml"]
        services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
        assert [each[:3] for each in compose] == [["docker", "compose", "up"], ["docker", "compose", "exec"]]
        assert compose[1][3] in services
        assert compose[1][4:] == ["runner", "status", "-c", "configs/prod.yaml"]

    def test_nothing_goes_in_that_is_not_named(self) -> None:
        lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
        assert lines[0] == "*"
        named = {line[1:] for line in lines if line.startswith("!")}
        copied = [line.split()[1:-1] for line in self.LINES if line.startswith("COPY ") and "--from" not in line]
        assert {source.removeprefix("./").split("/")[0] for sources in copied for source in sources} == named
        assert all((ROOT / each).exists() for each in named)


class TestCompose:
    TEXT = (ROOT / "docker-compose.yml").read_text()
    SECRET = "Kx3/8fTq+Zb2==@:#?%"

    def services(self) -> dict[str, Any]:
        """Return the services as compose would see them: every `${…}` replaced, `$$` kept for nobody."""
        values = {"POSTGRES_PASSWORD": self.SECRET, "NATS_PASSWORD": self.SECRET, "DEPLOYMENT_ID": "shop"}

        def fill(node: Any) -> Any:
            match node:
                case str():
                    return re.sub(r"\$\{(\w+)(?::[-?][^}]*)?\}", lambda found: values[found[1]], node)
                case dict():
                    return {key: fill(each) for key, each in node.items()}
                case list():
                    return [fill(each) for each in node]
            return node

        services: dict[str, Any] = fill(yaml.safe_load(self.TEXT))["services"]
        return services

    def test_no_password_is_known_to_everybody(self) -> None:
        found = re.findall(r"\$\{(\w*PASSWORD)(:.)?", self.TEXT)
        assert {name for name, _ in found} == {"POSTGRES_PASSWORD", "NATS_PASSWORD"}
        assert {operator for _, operator in found} == {":?"}
        assert not re.search(r"://[^/\s]*:[^/\s]*@", self.TEXT), "a password in a URL would have to be encoded"

    def test_any_password_reaches_the_servers_and_the_runner(self) -> None:
        services = self.services()
        config = load_config(ROOT / "configs" / "prod.yaml", services["runner-1"]["environment"])
        assert config.storage.dsn.password == Secret(self.SECRET)
        assert config.storage.dsn.hosts == (("postgres", 5432),)
        [nats] = [plugin.options for plugin in config.strategies if isinstance(plugin.options, NatsOptions)]
        assert (nats.user, nats.password) == ("runner", Secret(self.SECRET))
        assert services["postgres"]["environment"]["POSTGRES_PASSWORD"] == self.SECRET
        assert services["nats"]["command"][-4:] == ["--user", "runner", "--pass", self.SECRET]

    def test_the_runners_may_do_little(self) -> None:
        for name in ("runner-1", "runner-2"):
            runner = self.services()[name]
            assert runner["read_only"] is True
            assert (runner["tmpfs"], runner["cap_drop"]) == (["/tmp"], ["ALL"])
            assert runner["security_opt"] == ["no-new-privileges:true"]

    def test_images_are_named_exactly(self) -> None:
        images = {name: each["image"] for name, each in self.services().items() if "build" not in each}
        assert re.fullmatch(r"postgres:\d+\.\d+", images["postgres"])
        assert re.fullmatch(r"nats:\d+\.\d+\.\d+-alpine", images["nats"])


def test_the_compose_file_fits_the_production_configuration() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    text = (ROOT / "configs" / "prod.yaml").read_text()
    required = set(re.findall(r"\$\{([A-Z_]+)(?::\?[^}]*|:-)?\}", re.sub(r"(?m)#.*$", "", text)))
    for name in ("runner-1", "runner-2"):
        runner = compose["services"][name]
        assert required <= set(runner["environment"]), "configs/prod.yaml asks for more"
        grace = (yaml.safe_load(text).get("worker") or {}).get("shutdown_grace", "25s")
        assert int(runner["stop_grace_period"].removesuffix("s")) > int(grace.removesuffix("s"))
    assert compose["services"]["postgres"]["volumes"] == ["postgres:/var/lib/postgresql"]
