"""A receiver that repeats the request, and every output there is."""

from __future__ import annotations

import base64
import json
import sqlite3
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.support.process import RunnerProcess, run_cli

BEARER = "cAn4ry9X7kQ2mZ81wP"
PASSWORD = 'c4N/ry+"9\\X:7&kQ2'
KEY = "T0Can4ryB0key8817"

CONFIG = f"""\
deployment_id: shop
storage: {{dsn: "sqlite:///shop.db"}}
sinks:
  crm:
    webhook:
      url: "$URL/in/{KEY}?sig={KEY}x%2By"
      headers: {{Authorization: "Bearer ${{TOKEN}}", X-Key: "${{file:password}}", X-Basic: "Basic ${{BASIC}}"}}
subscriptions:
  - {{name: crm, types: ["*"], sink: crm, retry: {{max_attempts: 1}}}}
worker: {{lease: 2s}}
log: {{level: debug, format: json}}
"""


class Echo(BaseHTTPRequestHandler):
    """Answers with what it was sent, in many spellings."""

    def do_POST(self) -> None:
        said = [f"{name}: {value}" for name, value in self.headers.items()]
        secrets = [self.headers["X-Key"], self.headers["Authorization"].removeprefix("Bearer ")]
        form = json.dumps({"headers": [quote(each, safe="") for each in secrets], "path": self.path})
        encoded = base64.b64encode(f"me:{self.headers['X-Key']}".encode()).decode()
        body = "\n".join([self.path, *said, form, json.dumps(said), encoded]).encode()
        self.send_response(500, "no")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def echo() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.timeout(600)  # seven processes
def test_what_a_receiver_repeats_is_neither_kept_nor_shown(tmp_path: Path, echo: str) -> None:
    (tmp_path / "runner.yaml").write_text(CONFIG.replace("$URL", echo))
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    env = {
        "TOKEN": BEARER,
        "BASIC": base64.b64encode(f"me:{PASSWORD}".encode()).decode(),
        "RUNNER_DEBUG": "1",
        "RUNNER_CONFIG": "runner.yaml",
    }
    outputs = []
    with RunnerProcess("start", cwd=tmp_path, env=env) as runner:
        runner.wait_for_line("publish one")
        run_cli("publish", "order.created", "--id", "1", cwd=tmp_path, env=env)
        runner.wait_for_line("delivery dead")
        runner.stop()
        outputs += [*runner.stdout, *runner.stderr]
    verbs = ("check", "config show", "config show --json", "deliveries list --json", "deliveries show 1 crm")
    for verb in verbs:
        done = run_cli(*verb.split(), cwd=tmp_path, env=env)
        assert done.returncode == 0, done.stderr
        outputs += [done.stdout, done.stderr]
    with sqlite3.connect(tmp_path / "shop.db") as database:
        kept = database.execute("SELECT status, error, excerpt FROM attempts").fetchall()
    assert [row[0] for row in kept] == [500]
    assert "***" in kept[0][2]
    said = "\n".join([*outputs, *map(str, kept)])
    spelled = (BEARER, KEY, PASSWORD, json.dumps(PASSWORD)[1:-1], quote(PASSWORD, safe=""), env["BASIC"].rstrip("="))
    assert not [each for each in spelled if each in said]


def test_a_traceback_shows_no_secret(tmp_path: Path) -> None:
    (tmp_path / "runner.yaml").write_text(
        f"deployment_id: shop\nstorage: {{dsn: 'postgresql://me:{BEARER}@127.0.0.1:1/shop', start_timeout: 1s}}\n"
    )
    for verb in ("start", "publish a.b", "check --online"):
        done = run_cli(*verb.split(), cwd=tmp_path, env={"RUNNER_DEBUG": "1", "RUNNER_CONFIG": "runner.yaml"})
        assert done.returncode == 69
        assert "Traceback" in done.stderr
        assert BEARER not in done.stdout + done.stderr
