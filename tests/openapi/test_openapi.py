"""Every operation of `/openapi.json`, asked by schemathesis with all its checks (`make openapi`)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.documents import ROOT
from tests.support.process import RunnerProcess

pytestmark = [pytest.mark.openapi, pytest.mark.timeout(1200)]

TOKEN = "evb_" + "t" * 43
CONFIG = """\
deployment_id: shop
storage: {{dsn: "{dsn}"}}
sinks: {{log: stdout}}
subscriptions:
  - {{name: everything, types: ["*"], sink: log}}
schedules:
  - {{name: daily, cron: "@daily", event: {{type: day}}}}
sealing: {{keys: [key-of-at-least-thirty-two-characters]}}
destinations: {{ports: null}}
api:
  listen: "127.0.0.1:0"
  tokens: [{{name: ops, secret: {token}, scopes: [publish, read, subscribe, admin]}}]
log: {{format: json}}
"""


@pytest.fixture(scope="module")
def schemathesis() -> str:
    """The command; without it the tests are skipped, and say so."""
    own = ROOT / ".venv-openapi" / "bin"
    found = shutil.which("schemathesis", path=f"{own}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip("no schemathesis; `make openapi` installs it")
    return found


@pytest.fixture(params=["sqlite", "postgres"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    dsn = request.getfixturevalue("tables_file" if request.param == "sqlite" else "tables_dsn")
    path = tmp_path / "runner.yaml"
    path.write_text(CONFIG.format(dsn=dsn, token=TOKEN))
    with RunnerProcess("start", "-c", path, cwd=tmp_path) as process:
        [found] = re.findall(r"http://127\.0\.0\.1:\d+", process.wait_for_line("listening"))
        yield found
        assert process.returncode is None
        assert not [line for line in process.stderr if "Traceback" in line or '"level":"error"' in line]


@pytest.mark.parametrize("who", ["known", "unknown"])
def test_every_operation(schemathesis: str, address: str, who: str, tmp_path: Path) -> None:
    headers = ["--header", f"Authorization: Bearer {TOKEN}"] if who == "known" else []
    command = [schemathesis, "--config-file", str(Path(__file__).parent / "schemathesis.toml")]
    asked = ["run", f"{address}/openapi.json", "--checks", "all", "--no-color", *headers]
    done = subprocess.run([*command, *asked], cwd=tmp_path, capture_output=True, text=True, timeout=1100)
    assert done.returncode == 0, done.stdout[-20_000:]
