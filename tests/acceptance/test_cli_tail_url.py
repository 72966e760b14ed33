"""`events tail --url`: the stream of a bus over HTTP, as a process."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.support.process import RunnerProcess, run_cli
from tests.support.server import free_port

from .deployment import Deployment

TOKEN = "evb_" + "t" * 43


class Bus:
    """A bus that serves, and tails of it that know no file."""

    def __init__(self, directory: Path) -> None:
        self.deployment = Deployment(directory, "sqlite:///runner.db")
        self.url = f"http://127.0.0.1:{free_port()}"
        token = f"{{name: tail, secret: {TOKEN}, scopes: [read]}}"
        api = f'api: {{listen: "{self.url.removeprefix("http://")}", root_path: /bus, tokens: [{token}]}}\n'
        self.deployment.write(more=api)
        self._elsewhere = directory / "elsewhere"
        self._elsewhere.mkdir()

    def serving(self) -> RunnerProcess:
        return self.deployment.process("start")

    def tail(self, *options: str) -> RunnerProcess:
        args = ("events", "tail", "--url", f"{self.url}/bus", *options)
        return RunnerProcess(*args, env={"RUNNER_TOKEN": TOKEN}, cwd=self._elsewhere)

    def refused(self, *options: str, code: int, token: str = "", url: str | None = None) -> str:
        args = ("events", "tail", "--url", url or self.url, *options)
        done = run_cli(*args, env={"RUNNER_TOKEN": token}, cwd=self._elsewhere)
        assert done.returncode == code, done.stderr
        return done.stderr


@pytest.fixture
def bus(tmp_path: Path) -> Bus:
    return Bus(tmp_path)


def test_it_goes_on_where_it_was_when_the_server_comes_back(bus: Bus) -> None:
    with bus.serving() as server:
        server.wait_for_line("started")
        bus.deployment.cli("publish", "order.a", "--id", "before")
        with bus.tail("--type", "order.*", "--since", "1h") as tail, bus.tail("--json", "--since", "1h") as exact:
            tail.wait_for_line("before")
            bus.deployment.cli("publish", "invoice", "--id", "unwanted", "--data", '{"n": 12345678901234567890123}')
            bus.deployment.cli("publish", "order.b", "--id", "first")
            assert tail.wait_for_line("first").split()[2] == "order.b"
            assert '"data":{"n": 12345678901234567890123}' in exact.wait_for_line("unwanted")
            assert json.loads(exact.wait_for_line("first"))["event"]["type"] == "order.b"
            server.kill()
            tail.wait_for_line(" is away ")
            bus.deployment.cli("publish", "order.c", "--id", "meanwhile")
            with bus.serving():
                tail.wait_for_line("meanwhile")
                tail.signal(signal.SIGTERM)
                assert tail.wait() == 130
            lines = "\n".join(tail.stdout)
            assert [lines.count(id) for id in ("before", "first", "meanwhile", "unwanted")] == [1, 1, 1, 0]


@pytest.mark.timeout(600)  # nine processes
def test_what_cannot_work_is_said(bus: Bus) -> None:
    with bus.serving() as server:
        server.wait_for_line("started")
        for token in ("", "wrong"):
            said = bus.refused(code=1, token=token)
            assert "the server refuses with 401" in said
            assert "set $RUNNER_TOKEN to a token with the scope read" in said
        assert "with 404" in bus.refused(code=1, token=TOKEN, url=f"{bus.url}/elsewhere")
    for url in ("localhost:1", "ftp://h", "http://h:99999", "http://u:canary@h", "http://h?token=canary"):
        said = bus.refused(code=2, url=url)
        assert "canary" not in said
        assert "--url" in said


@pytest.mark.parametrize("token", ["evb_canary\nx", "evb_canary\rx", "evb_canary x", "evb_canary-é"])
def test_a_token_that_cannot_be_sent_is_refused_and_not_repeated(bus: Bus, token: str) -> None:
    said = bus.refused(code=2, token=token)
    assert "$RUNNER_TOKEN: a token has" in said
    assert "canary" not in said
