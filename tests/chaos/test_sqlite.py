"""SQLite: a disk that is full, a writer that dies, a file that somebody else locks, a stop in a slow statement."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from time import monotonic

import psutil
import pytest

from runner.service.vitals import INTERVAL
from tests.support.eventually import eventually

from .deployment import LEASE, Subscriber
from .look import sqlite_path
from .sabotage import SLOW
from .trial import Trial

RESUMED = 5.0  # seconds until everything goes on, once there is room or the lock is gone
LOCKED = 8.0  # seconds, longer than a call waits for a lock (5 s) and than a lease (3 s)

HOUR = 3600

Disk = Callable[[Trial], contextlib.AbstractAsyncContextManager[None]]


@pytest.fixture
def sqlite(make_trial: Callable[..., Trial], tmp_path: Path) -> Trial:
    """A trial in a file; its directory is its own, so that another file system may be mounted there."""
    (tmp_path / "disk").mkdir()
    return make_trial(tmp_path / "disk" / "runner.db")


async def disk_full(trial: Trial, full: Disk, count: int = 600) -> None:
    await trial.start(Subscriber("work"), runners=2)
    publisher = trial.publish(count, rate=100.0, padding=4000)
    await trial.reach(trial.random.randint(count // 4, count // 2))
    async with full(trial):
        trial.note("the disk is full")
        steps = _steps(trial)
        with contextlib.suppress(AssertionError):
            await eventually(lambda: _steps(trial)["unknown"] >= 30)
        trial.bite("publishes refused for want of room", (_steps(trial) - steps)["unknown"])
        trial.require(publisher.returncode is None, "the publisher ended while the disk was full")
    trial.fault()
    before = trial.answered()
    trial.note("there is room again")
    await trial.require_soon(lambda: trial.answered() > before, "publishes are taken again", RESUMED)
    await trial.drain()
    trial.require(_steps(trial)["fail"] == 0, "a publish was refused for good because the disk was full")
    _check_file(trial)
    await trial.verify(duplicates=trial.held(2), recovery=RESUMED)


@contextlib.asynccontextmanager
async def small_disk(trial: Trial) -> AsyncIterator[None]:
    """Fill the file system up with one large file."""
    ballast = trial.directory / "disk" / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (2**16, 2**12, 1):  # to the last byte
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * size)
    yield
    ballast.unlink()


@contextlib.asynccontextmanager
async def no_larger_files(trial: Trial) -> AsyncIterator[None]:
    """Let no process make the file any larger."""
    size = os.stat(sqlite_path(trial.dsn) or "").st_size
    processes = [psutil.Process(each.pid) for each in trial.processes]
    for process in processes:
        process.rlimit(psutil.RLIMIT_FSIZE, (size, psutil.RLIM_INFINITY))
    yield
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.rlimit(psutil.RLIMIT_FSIZE, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))


async def writer_killed_in_its_commits(trial: Trial, kills: int = 50, count: int = 2000) -> None:
    await trial.start(Subscriber("work"), runners=1)
    publisher = trial.publish(count, rate=1000.0, kills=kills)
    await trial.finished(publisher)
    unanswered = [int(line.split()[1]) for line in publisher.stdout if line.startswith("killed")]
    trial.note(f"a writer was killed {len(unanswered)} times")
    trial.bite("writers killed in a commit", sum(count > 0 for count in unanswered))
    recorded = sum(line.duplicate for line in trial.deployment.published.read())
    trial.bite("publishes without an answer that were recorded", recorded)
    trial.bite("publishes without an answer that were not", sum(unanswered) - recorded)
    _check_file(trial)
    await trial.verify()


async def locked_by_somebody_else(trial: Trial) -> None:
    """Three runners and a publisher share the file, and a fifth process holds it for longer than anybody waits."""
    await trial.start(Subscriber("work"), runners=3)
    trial.publish(900, rate=100.0)
    await trial.reach(trial.random.randint(150, 300))
    with _somebody_else(trial) as other:
        await asyncio.to_thread(other.execute, "BEGIN EXCLUSIVE")
        trial.note("locked")
        before = _steps(trial)
        await asyncio.sleep(LOCKED)  # the fault itself
        trial.bite("publishes told that the store is away", (_steps(trial) - before)["unknown"])
        trial.require((_steps(trial) - before)["ok"] == 0, "a publish was acknowledged while nothing could be written")
        other.execute("ROLLBACK")
    trial.fault()
    trial.note("released")
    await trial.drain()
    _check_file(trial)
    await trial.verify(duplicates=trial.held(3), recovery=RESUMED)


async def stopped_in_a_slow_statement(trial: Trial) -> None:
    await trial.start(Subscriber("work"), runners=2, sabotage="slow-settle")
    trial.publish(200, rate=50.0)
    struck = trial.directory / "struck"
    await eventually(struck.exists)
    began = monotonic()
    pid = int(await eventually(struck.read_text))
    victim = next(runner for runner in trial.runners if runner.pid == pid)
    trial.bite("stopped in a slow statement")
    victim.signal(signal.SIGTERM)
    trial.note(f"SIGTERM of {pid} in a transaction of {SLOW:g} s")
    with _somebody_else(trial) as other:
        await asyncio.to_thread(other.execute, "BEGIN IMMEDIATE")
        took = monotonic() - began
        other.execute("ROLLBACK")
    trial.require(SLOW / 2 < took < trial.bound(SLOW + 1.0), f"the next write waited {took:.1f} s")
    code = await asyncio.to_thread(victim.wait)
    trial.require(code == 0, f"the exit code is {code}, expected 0")
    await trial.drain()
    _check_file(trial)
    await trial.verify()


async def clock_set_back(trial: Trial) -> None:
    """The clock goes back an hour while one of two dies that holds work; retries and a rate go on under load."""
    await trial.start(
        Subscriber("work"),
        Subscriber("toil", "toil", prefix="slow."),
        Subscriber("shaky", "stumble", prefix="shaky."),
        Subscriber("paced", "note", prefix="paced.", options="rate: 40/s, timeout: 120s"),
        runners=2,
        sabotage="store-clock",
    )
    trial.publish(400, rate=40.0, types=["slow.load", "shaky.load", *["paced.load"] * 4, *["load"] * 6])
    await trial.reach(trial.random.randint(120, 160))
    victim = await trial.busy()
    trial.bite("deliveries running at the kill", await trial.catch(victim))
    _set_clock(trial, -HOUR)
    victim.kill()
    trial.fault()
    trial.note("kill -9, and the clock of the store is an hour back")
    before = len(trial.deployment.deliveries.read())
    await trial.deployment.start()
    await trial.drain(12)
    seen = trial.deployment.deliveries.read()[before:]
    trial.bite("deliveries at a rate after it", sum(each.subscription == "paced" for each in seen))
    trial.bite("retries after it", sum(each.attempt > 1 for each in seen))
    trial.bite("processes that say so", len(trial.deployment.logged("clock of the store set back")))
    _check_file(trial)
    await trial.verify(duplicates=trial.held(), recovery=INTERVAL + LEASE + 1.0, timeout=1.0)


def _set_clock(trial: Trial, seconds: int) -> None:
    """Let it differ from the right one by so much, for all processes at once."""
    written = trial.directory / "clock.new"
    written.write_text(str(seconds))
    written.rename(trial.directory / "clock")


def _steps(trial: Trial) -> Counter[str]:
    return Counter(line.step for line in trial.deployment.published.read())


def _somebody_else(trial: Trial) -> contextlib.closing[sqlite3.Connection]:
    path = sqlite_path(trial.dsn)
    assert path is not None
    return contextlib.closing(sqlite3.connect(path, timeout=15, isolation_level=None, check_same_thread=False))


def _check_file(trial: Trial) -> None:
    with _somebody_else(trial) as connection:
        found = connection.execute("PRAGMA integrity_check").fetchall()
    trial.require(found == [("ok",)], f"the file is damaged: {found}")


@pytest.mark.chaos("FI-32", "disk full (a file system of 4 MB), then space freed")
async def test_fi_32(sqlite: Trial) -> None:
    disk = sqlite.directory / "disk"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a small file system can only be mounted by root")
    try:
        await disk_full(sqlite, small_disk)
    finally:
        sqlite.close()
        subprocess.run(["umount", disk], check=True)


@pytest.mark.skipif(not hasattr(psutil.Process, "rlimit"), reason="limits of another process are Linux's")
@pytest.mark.chaos("FI-32", "file that may grow no further (RLIMIT_FSIZE), then may")
async def test_fi_32_limit(sqlite: Trial) -> None:
    await disk_full(sqlite, no_larger_files)


@pytest.mark.chaos("FI-33", "kill -9 of a writer in its commits, fifty times")
async def test_fi_33(sqlite: Trial) -> None:
    await writer_killed_in_its_commits(sqlite)


@pytest.mark.chaos("FI-34", "several processes on one file, which another one locks for 8 s")
async def test_fi_34(sqlite: Trial) -> None:
    await locked_by_somebody_else(sqlite)


@pytest.mark.chaos("FI-60", "clock set back one hour while a process dies that holds work")
async def test_fi_60(sqlite: Trial) -> None:
    await clock_set_back(sqlite)


@pytest.mark.chaos("FI-35", "SIGTERM in the middle of a slow statement")
async def test_fi_35(sqlite: Trial) -> None:
    await stopped_in_a_slow_statement(sqlite)
