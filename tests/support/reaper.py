"""Makes sure that no server outlives the test run, not even one that was killed.

A watcher process holds the reading end of a pipe and the list of what was started. The pipe closes whichever way
the test run ends, and the watcher then ends what is left. (`PR_SET_PDEATHSIG` would not do: it follows the *thread*
that started the child, and is forgotten when the child changes its user.)
"""

from __future__ import annotations

import subprocess
import sys
import threading

_WATCHER = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
alive = set()
for line in sys.stdin:
    verb, pid = line.split()
    (alive.add if verb == "watch" else alive.discard)(int(pid))
for number in (signal.SIGQUIT, signal.SIGKILL):  # PostgreSQL frees its shared memory on QUIT
    for pid in alive:
        try:
            os.killpg(pid, number)
        except OSError:
            pass
    time.sleep(1 if alive else 0)
"""

_lock = threading.Lock()
_watcher: subprocess.Popen[str] | None = None


def watch(pid: int) -> None:
    """End the process group `pid` when this process is gone."""
    _tell(f"watch {pid}\n")


def forget(pid: int) -> None:
    """Take back `watch`: the process has ended, and its number may be given to another."""
    _tell(f"forget {pid}\n")


def _tell(line: str) -> None:
    global _watcher
    with _lock:
        if _watcher is None:
            # A session of its own, so that Ctrl-C and a killed process group do not reach it.
            _watcher = subprocess.Popen(
                [sys.executable, "-S", "-c", _WATCHER],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )
        assert _watcher.stdin is not None
        _watcher.stdin.write(line)
        _watcher.stdin.flush()
