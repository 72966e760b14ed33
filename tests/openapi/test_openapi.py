"""Every operation of `/openapi.json`, asked by schemathesis with all its checks (`make openapi`)."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runner import Runner, load
from runner.api import tokens
from tests.support.documents import ROOT

pytestmark = [pytest.mark.openapi, pytest.mark.timeout(3600)]

TOKEN = "evb_" + "t" * 43
# An id may have slashes: `GET /events/a/cancel` is the event `a/cancel`, which these take for another method.
MISTAKEN = "unsupported_method,allow_header_conformance"
CONFIG = """\
deployment_id: shop
storage: {{dsn: "{dsn}"}}
sinks: {{log: {{python: "builtins:repr"}}}}
subscriptions:
  - {{name: everything, types: ["*"], sink: log}}
schedules:
  - {{name: daily, cron: "@daily", event: {{type: day}}}}
sealing: {{keys: [key-of-at-least-thirty-two-characters]}}
api:
  listen: "127.0.0.1:0"
  tokens: [{{name: ops, secret: {token}, scopes: [publish, read, subscribe, admin]}}]
"""


@pytest.fixture
def schemathesis() -> str:
    """The command; without it the tests are skipped, and say so."""
    own = ROOT / ".venv-openapi" / "bin"
    found = shutil.which("schemathesis", path=f"{own}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip("no schemathesis; `make openapi` installs it")
    return found


@pytest.fixture(params=["sqlite", "postgres"])
def dsn(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("tables_file" if request.param == "sqlite" else "tables_dsn"))


@pytest.fixture
async def runner(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Runner]:
    # All that asks without a token would be a 429 soon.
    monkeypatch.setattr(tokens.FailureLimit, "failed", lambda self, address: None)
    path = tmp_path / "runner.yaml"
    path.write_text(CONFIG.format(dsn=dsn, token=TOKEN))
    async with load(path) as started:
        yield started


@pytest.mark.parametrize("who", ["known", "unknown"])
async def test_every_operation(schemathesis: str, runner: Runner, who: str, tmp_path: Path) -> None:
    headers = ["--header", f"Authorization: Bearer {TOKEN}"] if who == "known" else []
    command = [schemathesis, "--config-file", str(Path(__file__).parent / "schemathesis.toml"), "run"]
    asked = [f"{runner.addresses[0]}/openapi.json", "--checks", "all", "--no-color", *headers]
    asked += [
        "--exclude-checks",
        MISTAKEN,
        "--max-examples",
        os.environ.get("EXAMPLES", "15"),
        "--phases",
        "examples,coverage,fuzzing",
    ]
    done = await asyncio.to_thread(
        subprocess.run, [*command, *asked], cwd=tmp_path, capture_output=True, text=True, timeout=3500, check=False
    )
    assert done.returncode == 0, done.stdout[-20_000:]
