"""One shell for a whole session, as somebody uses it who pastes one command after the other."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from . import reaper
from .eventually import PATIENCE

__all__ = ["Ended", "Shell"]


class Ended:
    """What became of a command: its exit code, and what it printed on either stream."""

    def __init__(self, code: int, printed: str) -> None:
        self.code = code
        self.printed = printed


class Shell:
    """
    A bash process; use it in a `with` block, at the end of which it is killed with all that it started.

    What a command sets (variables, the directory, a virtual environment) holds for those after it. In the shell
    `$STARTED` is the process that was started last and goes on, and `$PRINTED` the file of what it prints.
    """

    def __init__(self, directory: Path, env: Mapping[str, str]) -> None:
        self._scratch = Path(tempfile.mkdtemp(prefix="runner-shell-"))
        self._count = 0
        self._code = 0
        self._outputs: list[Path] = []
        self._pids: list[int] = []
        self._process = subprocess.Popen(
            ["bash", "--norc", "-o", "pipefail"],
            cwd=directory,
            env=dict(env),
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        reaper.watch(self._process.pid)

    def __enter__(self) -> Shell:
        """Return itself: the shell runs already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Kill what is still there."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()
        reaper.forget(self._process.pid)
        shutil.rmtree(self._scratch, ignore_errors=True)

    @property
    def printed(self) -> str:
        """What all that go on have printed so far."""
        return "".join(each.read_text(errors="replace") for each in self._outputs if each.exists())

    def run(self, command: str, timeout: float = 4 * PATIENCE) -> Ended:
        """Run a command to its end; `timeout` in seconds. `$?` is the code of the one before."""
        script, output, code = self._script(f"(exit {self._code})\n{command}\n")
        self._type(f". {script} > {output} 2>&1 < /dev/null; echo $? > {code}~; mv {code}~ {code}")
        self._wait(code.exists, timeout, command, output)
        self._code = int(code.read_text())
        return Ended(self._code, output.read_text(errors="replace"))

    def start(self, command: str) -> None:
        """Start a command that goes on."""
        script, output, pid = self._script(f"exec {command}\n")
        told = f"STARTED=$!; echo $! > {pid}~; mv {pid}~ {pid}"
        self._type(f"PRINTED={output}; . {script} > {output} 2>&1 < /dev/null & {told}")
        self._wait(pid.exists, PATIENCE, command, output)
        self._pids.append(int(pid.read_text()))
        self._outputs.append(output)

    def stop(self) -> list[int]:
        """End what goes on, as a supervisor does, and return the exit codes."""
        pids, self._pids = self._pids, []
        return [self.run(f"kill -TERM {pid}; wait {pid}").code for pid in pids]

    def wait_for(self, condition: Callable[[], bool], what: str, timeout: float = 2 * PATIENCE) -> None:
        """Wait until it is true."""
        self._wait(condition, timeout, what)

    def _script(self, text: str) -> tuple[Path, Path, Path]:
        self._count += 1
        script = self._scratch / f"{self._count}.sh"
        script.write_text(text)
        return script, script.with_suffix(".out"), script.with_suffix(".end")

    def _type(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def _wait(self, condition: Callable[[], bool], timeout: float, what: str, *outputs: Path) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline or self._process.poll() is not None:
                printed = "".join(each.read_text(errors="replace") for each in outputs if each.exists())
                raise AssertionError(f"not within {timeout} s: {what}\n{printed[-5_000:]}")
            time.sleep(0.02)
