"""`runner start` with `api:` in its file, and every verb without it."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path

import pytest

from tests.support.http import ask
from tests.support.process import run_python

from .deployment import Deployment, started

OURS = ("fastapi", "httptools", "prometheus_client", "starlette", "uvicorn")


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    made = Deployment(tmp_path, "sqlite:///runner.db")
    made.write(more="api: {listen: '127.0.0.1:0'}\n")
    return made


def test_it_serves_beside_the_worker_and_ends_with_it(deployment: Deployment) -> None:
    with started(deployment) as runner:
        address = runner.wait_for_line(r"listening.*http://127\.0\.0\.1:\d+").rpartition("'http")[2].rstrip("']")
        assert runner.wait_for_line("^dashboard:").split()[1] == f"http{address}/"
        url = f"http{address}"
        assert ask(url, "/readyz").status == 200
        metrics = ask(url, "/metrics")
        assert metrics.headers["content-type"].startswith("text/plain; version=")
        assert b'runner_build_info{python="3.' in metrics.body
        runner.signal(signal.SIGHUP)
        runner.wait_for_line("configuration reloaded")
        assert runner.stop() == 0


def test_a_port_that_is_taken_ends_it_with_the_cure(deployment: Deployment) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        deployment.write(more=f"api: {{listen: '127.0.0.1:{port}'}}\n")
        _, complaint = deployment.cli("start", code=1)
    expected = f"Error: api.listen: 127.0.0.1:{port} is taken: another process listens there; stop that, or give"
    assert complaint.splitlines()[-1].startswith(expected)


def test_a_port_that_is_taken_is_told_before_anything_is_waited_for_or_loaded(deployment: Deployment) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        away = Deployment(deployment.directory, "postgresql://nobody@127.0.0.1:1/none")
        away.write(more=f"api: {{listen: '127.0.0.1:{taken.getsockname()[1]}'}}\n")
        done = run_python(_START + f"print([name for name in {OURS!r} if name in sys.modules])", cwd=away.directory)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["ListenError", "[]"]
    assert "waiting for the store" not in done.stderr


_START = """
import asyncio, sys
from runner import load
from runner.errors import ListenError
async def main():
    runner = load("runner.yaml")
    try:
        await runner.start()
    except ListenError:
        print("ListenError")
    await runner.stop()
asyncio.run(main())
"""


def test_a_reload_to_another_address_is_refused(deployment: Deployment) -> None:
    with started(deployment) as runner:
        deployment.write(more="api: {listen: '127.0.0.1:1'}\n")
        runner.signal(signal.SIGHUP)
        runner.wait_for_line(r"not reloaded.*runner\.yaml:\d+:\d+: api\.listen: changed from .*, which takes a restart")
        assert runner.stop() == 0


def test_nothing_of_it_is_imported_where_it_serves_nothing(deployment: Deployment) -> None:
    loaded = f"print([name for name in {OURS!r} if name in sys.modules])"
    publish = "from runner.cli.program import run; run(['publish', 'a.b'])"
    start = """
import asyncio
from runner import load
async def main():
    async with load("runner.yaml"):
        pass
asyncio.run(main())
"""
    for more, code, expected in (
        ("api: {}\n", publish, []),
        ("", start, []),
        ("api: {listen: '127.0.0.1:0'}\n", start, list(OURS)),
    ):
        deployment.write(more=more)
        done = run_python(f"import sys\n{code}\n{loaded}", cwd=deployment.directory)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout.splitlines()[-1].replace("'", '"'))
        assert set(found) <= set(expected), more
        assert bool(found) == bool(expected)
