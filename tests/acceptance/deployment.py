"""One deployment in a directory: its file, its handlers, and the commands run beside it."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import structlog

from runner.cli.program import run
from tests.support.process import RunnerProcess, run_cli

CONFIG = """\
deployment_id: {deployment_id}
storage: {{dsn: "{dsn}", start_timeout: 1s}}
sinks:
  terminal: stdout
  broken: {{python: "handlers:fail"}}
  stuck: {{python: "handlers:wait"}}
subscriptions:
  - {{name: everything, types: ["*"], sink: terminal}}
  - {{name: broken, types: ["broken.*"], sink: broken, retry: {{max_attempts: 2, delay: 10ms}}}}
  - {{name: stuck, types: ["stuck.*"], sink: stuck}}
worker: {{shutdown_grace: 20s}}
log: {{format: console}}
"""

HANDLERS = """\
import asyncio

def fail(*_):
    raise RuntimeError("no such customer")

async def wait(*_):
    print("stuck now", flush=True)
    await asyncio.sleep(3600)
"""


@dataclass(frozen=True, slots=True)
class Deployment:
    """A configuration file with what it names, and the command line that reads it."""

    directory: Path
    dsn: str

    @property
    def path(self) -> Path:
        """The configuration."""
        return self.directory / "runner.yaml"

    def write(self, deployment_id: str = "shop", more: str = "") -> None:
        """Write the configuration, `more` at its end, and the handlers it names."""
        self.path.write_text(CONFIG.format(deployment_id=deployment_id, dsn=self.dsn) + more)
        (self.directory / "handlers.py").write_text(HANDLERS)

    def cli(self, *args: str | Path, code: int = 0, input: str = "") -> tuple[str, str]:
        """
        Run one command, expect its exit code, and return what it printed on either stream.

        It runs in this process, because a new one takes most of a second to import what it needs; `start`, which
        takes over the signals, does not.
        """
        if args[0] == "start":
            done = run_cli(*args, env={"RUNNER_CONFIG": "runner.yaml"}, cwd=self.directory)
            ended, output, complaint = done.returncode, done.stdout, done.stderr
        else:
            ended, output, complaint = self._run([str(arg) for arg in args], input)
        assert ended == code, f"{args}: {ended}\n{output}\n{complaint}"
        assert "Traceback" not in complaint
        return output, complaint

    def json(self, *args: str | Path, input: str = "") -> list[dict[str, Any]]:
        """Run one command with `--json` and return its objects."""
        return [json.loads(line) for line in self.cli(*args, "--json", input=input)[0].splitlines()]

    def process(self, *args: str) -> RunnerProcess:
        """Start a command that goes on."""
        return RunnerProcess(*args, env={"RUNNER_CONFIG": "runner.yaml"}, cwd=self.directory)

    def _run(self, args: list[str], input: str, env: Mapping[str, str] | None = None) -> tuple[int, str, str]:
        streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2)]
        with (
            tempfile.TemporaryFile("w+", encoding="utf-8") as stdin,
            mock.patch("sys.stdin", stdin),
            contextlib.redirect_stdout(streams[0]),
            contextlib.redirect_stderr(streams[1]),
            contextlib.chdir(self.directory),
            mock.patch.dict(os.environ, {"RUNNER_CONFIG": "runner.yaml", "RUNNER_DEBUG": "", **(env or {})}),
            _logging_restored(),
        ):
            stdin.write(input)
            stdin.seek(0)
            code = run(args)
        output, complaint = (stream.buffer.getvalue().decode() for stream in streams)
        return code, output, complaint


@contextlib.contextmanager
def _logging_restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.getLogger("nats").setLevel(logging.NOTSET)
        logging.captureWarnings(False)
        structlog.reset_defaults()


def started(deployment: Deployment) -> RunnerProcess:
    """Return a running `runner start`."""
    process = deployment.process("start")
    process.wait_for_line("publish one:")
    return process
