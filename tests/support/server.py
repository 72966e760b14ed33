"""What every server of the tests has: one port for its whole life, a log, and an end."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from signal import SIGCONT, SIGKILL, Signals

from . import reaper

HOST = "127.0.0.1"

# Four processes of pytest-xdist share the ports out among them: what one of them has found, and binds only
# seconds later, is not found by another one.
_ALL = range(15_000, 31_000)
_WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
_OURS = _ALL[int(_WORKER.removeprefix("gw")) % 4 :: 4] if _WORKER else _ALL
_NEXT = itertools.cycle(random.sample(_OURS, len(_OURS)))  # each again only after all others


def free_port() -> int:
    """Find a free TCP port below the range that outgoing connections take theirs from.

    A server can then be restarted on it: nothing else takes it in between.
    """
    for port in itertools.islice(_NEXT, 50):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no free port on {HOST} after 50 tries between {_ALL.start} and {_ALL.stop}")


class Server:
    """A server process in a directory of its own under the system's temporary directory."""

    def __init__(self, name: str, port: int | None = None) -> None:
        self.name = name
        self.port = port if port is not None else free_port()
        self.directory = Path(tempfile.mkdtemp(prefix=f"runner-{name}-"))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id; an error when the server does not run."""
        if self._process is None:
            raise RuntimeError(f"{self.name} is not running: call start() first")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is there (it may be stopped by SIGSTOP)."""
        return self._process is not None and self._process.poll() is None

    def signal(self, number: Signals) -> None:
        """Send a signal to the server's main process, for example SIGSTOP and SIGCONT."""
        assert self._process is not None, f"{self.name} is not running"
        self._process.send_signal(number)

    def log(self) -> str:
        """What the server wrote so far."""
        path = self.directory / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def discard(self) -> None:
        """End the server and remove its directory."""
        self._end(SIGKILL)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _launch(
        self, command: Sequence[str | Path], ready: Callable[[], bool], timeout: float = 120.0, user: str | None = None
    ) -> None:
        if self.running:
            raise RuntimeError(f"{self.name} is already running")
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                user=user,
                extra_groups=[] if user else None,
            )
        reaper.watch(self._process.pid)
        self._wait_until_ready(ready, timeout)

    def _wait_until_ready(self, ready: Callable[[], bool], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not ready():
            if not self.running or time.monotonic() > deadline:
                tail = self.log()[-2_000:]
                self._end(SIGKILL)
                raise RuntimeError(f"{self.name} did not get ready on port {self.port}; its log ends with:\n{tail}")
            time.sleep(0.02)

    def _end(self, number: Signals, timeout: float = 60.0) -> None:
        """Send the signal and wait; a server that ignores it is killed. Nothing to do when none runs."""
        if self._process is None:
            return
        process, self._process = self._process, None
        if process.poll() is None:
            process.send_signal(number)
            process.send_signal(SIGCONT)
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        reaper.forget(process.pid)
