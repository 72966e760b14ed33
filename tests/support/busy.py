"""`make test-busy`: a command again and again while other processes want the processors."""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

# A loop asks who its parent is, over and over: so it also ends after a parent that was killed.
_LOOP = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): pass"


@contextlib.contextmanager
def busy(loops: int) -> Iterator[list[int]]:
    """Keep `loops` processes busy, each of which takes all of a processor it can get; give their process ids."""
    command = [sys.executable, "-S", "-c", _LOOP, str(os.getpid())]
    # In sessions of their own: Ctrl-C in the terminal is for the command.
    processes = [subprocess.Popen(command, start_new_session=True) for _ in range(loops)]
    try:
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def main(arguments: Sequence[str]) -> int:
    """Run the command, stop after the first run that fails, and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.busy", description=__doc__)
    parser.add_argument("--loops", type=int, default=4, help="busy processes beside it (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="how often in a row (default: %(default)s)")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what is run")
    options = parser.parse_args(arguments)
    with busy(options.loops):
        for run in range(1, options.runs + 1):
            began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
            code = subprocess.run(options.command, check=False).returncode
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            ended = "passed" if code == 0 else f"failed (exit code {code})"
            beside = f"beside {options.loops} busy processes on {os.cpu_count()} processors"
            took = f"{time.monotonic() - began:.0f} s, {used:.0f} s of processor time"
            print(f"run {run} of {options.runs} {beside} {ended}: {took}", flush=True)
            if code != 0:
                return code if code > 0 else 128 - code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
