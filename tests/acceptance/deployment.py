"""One deployment in a directory: its file, its handlers, and the commands run beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

    def cli(self, *args: str | Path, code: int = 0, input: str | None = None) -> tuple[str, str]:
        """Run one command, expect its exit code, and return what it printed on either stream."""
        done = run_cli(*args, env={"RUNNER_CONFIG": "runner.yaml"}, cwd=self.directory, input=input)
        assert done.returncode == code, f"{args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stdout, done.stderr

    def json(self, *args: str | Path, input: str | None = None) -> list[dict[str, Any]]:
        """Run one command with `--json` and return its objects."""
        return [json.loads(line) for line in self.cli(*args, "--json", input=input)[0].splitlines()]

    def process(self, *args: str) -> RunnerProcess:
        """Start a command that goes on."""
        return RunnerProcess(*args, env={"RUNNER_CONFIG": "runner.yaml"}, cwd=self.directory)


def started(deployment: Deployment) -> RunnerProcess:
    """Return a running `runner start`."""
    process = deployment.process("start")
    process.wait_for_line("publish one:")
    return process
