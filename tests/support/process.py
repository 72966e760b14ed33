"""The runner as its users run it: a process with signals, lines and an exit code."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from . import reaper
from .eventually import PATIENCE

COMMAND = (sys.executable, "-m", "runner")

_ROOT = Path(__file__).parents[2]

# The child's output reaches the test line by line, and the width does not depend on who runs the tests.
_ENVIRONMENT = {"PYTHONUNBUFFERED": "1", "NO_COLOR": "1", "COLUMNS": "200"}


def environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name != "RUNNER_CONFIG"}
    # The runner of this checkout, whatever the working directory is and whatever is installed.
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    return {**inherited, **_ENVIRONMENT, "PYTHONPATH": path, **(extra or {})}


def run_cli(
    *args: str | Path,
    env: Mapping[str, str] | None = None,
    input: str | None = None,
    cwd: Path | None = None,
    timeout: float = 2 * PATIENCE,
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end and return its exit code, stdout and stderr; `timeout` in seconds."""
    return _run([*COMMAND, *map(str, args)], env, input, cwd, timeout)


def run_python(
    code: str, env: Mapping[str, str] | None = None, cwd: Path | None = None, timeout: float = 2 * PATIENCE
) -> subprocess.CompletedProcess[str]:
    """Run a program that uses the library, as `run_cli` runs a command."""
    return _run([sys.executable, "-c", code], env, None, cwd, timeout)


def _run(
    command: list[str], env: Mapping[str, str] | None, input: str | None, cwd: Path | None, timeout: float
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=environment(env),
        input=input,
        stdin=subprocess.DEVNULL if input is None else None,
        cwd=cwd,
        timeout=timeout,
        capture_output=True,
        text=True,
        check=False,
    )


class RunnerProcess:
    """A long-running command, such as `RunnerProcess("start", "-c", path)`; starts when constructed.

    Use it in a `with` block, at the end of which it is killed if it is still there. `stdout` and `stderr` are
    the lines so far.
    """

    def __init__(
        self,
        *args: str | Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        module: str | None = None,
    ) -> None:
        """Args: module is run in place of the runner, for a program of the tests."""
        command = COMMAND if module is None else (sys.executable, "-m", module)
        self.args = [str(arg) for arg in args]
        self.stdout: list[str] = []
        self.stderr: list[str] = []
        self._changed = threading.Condition()
        self._process = subprocess.Popen(
            [*command, *self.args],
            env=environment(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        reaper.watch(self._process.pid)
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._readers = [
            threading.Thread(target=self._read, args=(self._process.stdout, self.stdout), daemon=True),
            threading.Thread(target=self._read, args=(self._process.stderr, self.stderr), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> RunnerProcess:
        """Return itself: the process runs already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Kill the process if it is still there."""
        self.kill()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal, None while it runs."""
        return self._process.poll()

    def wait_for_line(self, pattern: str, timeout: float = PATIENCE) -> str:
        """Return the first line, on either stream, that contains the regular expression; `timeout` in seconds."""
        expression = re.compile(pattern)
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                for line in [*self.stdout, *self.stderr]:
                    if expression.search(line):
                        return line
                left = deadline - time.monotonic()
                if left <= 0 or not any(reader.is_alive() for reader in self._readers):
                    raise AssertionError(f"no line matches {pattern!r} (waited {timeout} s)\n{self.report()}")
                self._changed.wait(min(left, 0.2))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, for example SIGTERM or SIGHUP."""
        self._process.send_signal(number)

    def wait(self, timeout: float = 2 * PATIENCE) -> int:
        """Wait for the end and return the exit code; all lines have been read by then."""
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"still running after {timeout} s\n{self.report()}") from error
        self._finish()
        return code

    def stop(self, timeout: float = 2 * PATIENCE) -> int:
        """Ask it to end, as a supervisor does, and return the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def kill(self) -> None:
        """End it at once, with everything it started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._finish()

    def report(self) -> str:
        """What it printed, for the message of a failed test."""
        title = f"runner {' '.join(self.args)} (exit code {self.returncode})"
        return "\n".join([title, "--- stdout", *self.stdout[-50:], "--- stderr", *self.stderr[-50:]])

    def _read(self, stream: IO[str], lines: list[str]) -> None:
        with stream:
            for line in stream:
                with self._changed:
                    lines.append(line.rstrip("\n"))
                    self._changed.notify_all()

    def _finish(self) -> None:
        for reader in self._readers:
            reader.join(timeout=5)
        reaper.forget(self._process.pid)
