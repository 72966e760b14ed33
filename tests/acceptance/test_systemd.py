"""What systemd is told, and the unit that it is given."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.documents import ROOT, commands, read

FILE = 'deployment_id: d\nstorage: {dsn: "sqlite:///bus.db"}'
UNIT = Path(__file__).parents[2] / "deploy" / "runner.service"


def test_systemd_is_told_of_readiness_life_reloads_and_stop(tmp_path: Path) -> None:
    (tmp_path / "runner.yaml").write_text(FILE)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(tmp_path / "notify"))
        told.settimeout(60)
        env = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "3000000"}
        process = subprocess.Popen(
            [sys.executable, "-m", "runner", "start"], cwd=tmp_path, env=env, stderr=subprocess.DEVNULL
        )
        try:
            assert told.recv(100) == b"READY=1"
            assert told.recv(100) == b"WATCHDOG=1"
            for text, status in (
                (FILE, "STATUS=file "),
                ("nonsense", "STATUS=not reloaded, goes on with the file it had"),
            ):
                (tmp_path / "runner.yaml").write_text(text)
                process.send_signal(signal.SIGHUP)
                assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=\d{6,}", _news(told))
                assert _news(told).startswith(f"READY=1\n{status}")
            process.send_signal(signal.SIGTERM)
            assert _news(told) == "STOPPING=1"
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()


def _news(told: socket.socket) -> str:
    """Return the next state that is not of life alone."""
    while (state := told.recv(1000)) == b"WATCHDOG=1":
        pass
    return state.decode()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
def test_the_unit_is_right(tmp_path: Path) -> None:
    unit = tmp_path / "runner.service"
    unit.write_text(UNIT.read_text().replace("/opt/runner/bin/runner", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60)
    ours = [line for line in done.stderr.splitlines() if "runner.service" in line]
    assert (done.returncode, ours) == (0, []), done.stderr


def test_the_document_installs_what_the_unit_expects() -> None:
    [block] = [each for each in read(ROOT / "docs" / "deployment.md") if "test_systemd" in each.notes.get("run by", "")]
    lines = [each.line.split() for each in commands(block)]
    unit = dict(line.split("=", 1) for line in UNIT.read_text().splitlines() if "=" in line and line[0] != "#")
    program, *_, file = unit["ExecStart"].split()
    assert lines[0] == ["useradd", "--system", "--home-dir", unit["WorkingDirectory"], unit["User"]]
    assert lines[1][-1] == str(Path(program).parents[1])
    assert lines[2][0] == str(Path(program).with_name("pip"))
    assert lines[3][-1] == file
    assert lines[4][-2:] == ["deploy/runner.service", "/etc/systemd/system/runner.service"]
    assert all(words[-1] == UNIT.stem for words in lines[5:])
