"""Events that weigh more than a process may."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from .deployment import Subscriber
from .trial import Trial

MIB = 1 << 20
MOST = 300 * MIB  # what a runner takes, as docs/operations.md says


async def heavy_backlog(trial: Trial, count: int = 600, patience: float = 60.0) -> None:
    """Publish while nobody works, then start a runner with the batch and the concurrency of the default file."""
    await trial.start(Subscriber("note", "note"), Subscriber("hook", hook=0.0), runners=1, batch=500, lease=10.0)
    [first] = trial.runners
    first.signal(signal.SIGTERM)
    await asyncio.to_thread(first.wait)
    trial.publish(count, rate=1e6, padding=MIB - 1000)
    await trial.reach(count, timeout=patience)
    trial.note("a runner with 512 MiB of memory")
    trial.deployment.sabotage = ",".join(filter(None, ("little-memory", trial.deployment.sabotage)))
    trial.fault()
    [runner] = await trial.deployment.start(1)
    await trial.drain(patience)
    peak = peak_of(runner.pid)
    trial.bite("megabytes of backlog", count // 2)
    trial.note(f"peak of {peak // MIB} MiB")
    trial.require(peak < MOST, f"the runner took {peak // MIB} MiB")
    # What was on its way when its lease ended would come twice; here it is nothing.
    await trial.verify(timeout=1.0)


def peak_of(pid: int) -> int:
    """Return the most memory a process has had, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.chaos("FI-61", "a backlog of 600 events of up to 1 MiB, and a limit of 512 MiB of memory")
async def test_fi_61(trial: Trial) -> None:
    await heavy_backlog(trial)


@pytest.mark.chaos("FI-61", "a backlog of 300 events of up to 1 MiB, and a limit of 512 MiB of memory")
async def test_fi_61_sqlite(make_trial: Callable[..., Trial], tmp_path: Path) -> None:
    await heavy_backlog(make_trial(tmp_path / "runner.db"), count=300)
