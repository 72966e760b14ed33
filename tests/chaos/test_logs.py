"""A log that goes nowhere: its reader is gone, its disk is full, nobody reads it; and a password that changes."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import resource
import signal
import struct
import termios
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.eventually import eventually
from tests.support.nats import NatsServer
from tests.support.postgres import PostgresServer
from tests.support.process import RunnerProcess

from .deployment import Subscriber
from .look import look
from .publisher import CANARY
from .trial import Trial

MakePostgres = Callable[..., PostgresServer]
MakeNats = Callable[..., NatsServer]
MakeTrial = Callable[..., Trial]

RECOVERED = 6.0  # seconds after the servers are back
LOUD = "breaker: off, retry: {max_attempts: 4}"  # every attempt that fails has a line in the log
PIPE = 4096  # bytes, the least that a pipe holds
FULL = 1 << 20  # bytes of a log that is there already


class Log:
    """The pipe that a runner logs into, from its other end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        os.mkfifo(path)
        self.open()

    def open(self) -> None:
        """Be there, and read nothing yet."""
        self._descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK)
        fcntl.fcntl(self._descriptor, fcntl.F_SETPIPE_SZ, PIPE)

    def close(self) -> None:
        """Leave."""
        os.close(self._descriptor)

    def unread(self) -> int:
        """Return how many bytes wait."""
        (count,) = struct.unpack("i", fcntl.ioctl(self._descriptor, termios.FIONREAD, b"\0" * 4))
        return int(count)

    def read(self) -> str:
        """Return what waits."""
        try:
            return os.read(self._descriptor, 1 << 16).decode()
        except BlockingIOError:
            return ""


async def launch(trial: Trial, *subscribers: Subscriber, runners: int, **options: Any) -> None:
    """Start runners that log into `log`, and return once they all work."""
    deployment = trial.deploy(*subscribers, sabotage="log-elsewhere", **options)
    for _ in range(runners):
        deployment.launch()
    deployment.sabotage = deployment.sabotage.replace("log-elsewhere", "")  # not for the publishers

    async def all_there() -> bool:
        async with look(trial.dsn) as query:
            try:
                [(count,)] = await query("SELECT count(*) FROM instances")
            except Exception as error:
                raise AssertionError("no tables yet") from error
        return int(count) == runners

    await eventually(all_there, timeout=30)
    await deployment.audit()


async def stop(trial: Trial) -> None:
    """End the runners, and require that they drain."""
    for runner in trial.runners:
        runner.signal(signal.SIGTERM)
    runners = trial.runners
    with contextlib.suppress(AssertionError):
        await eventually(lambda: all(runner.returncode is not None for runner in runners))
    for runner in runners:
        trial.require(runner.returncode == 0, f"runner {runner.pid} was to drain and end: {runner.returncode}")


def loud(count: int) -> list[Subscriber]:
    """Return subscribers that fail, and are not judged."""
    refuse = '{python: "tests.chaos.handlers:refuse"}'
    return [Subscriber(f"loud{number}", sink=refuse, options=LOUD, watched=False) for number in range(count)]


async def reader_gone(trial: Trial, server: PostgresServer, nats: NatsServer) -> None:
    """Both servers are restarted, so that every loop has something to log; nobody is told of it."""
    log = Log(trial.directory / "log")
    await launch(trial, Subscriber("work"), runners=2)
    trial.publish(600, rate=100.0)
    await trial.reach(trial.random.randint(100, 200))
    log.close()
    trial.note("reader of the log gone")
    await asyncio.to_thread(server.stop)
    await asyncio.to_thread(server.start)
    nats.stop()
    await asyncio.sleep(1.0)  # as long as it takes to notice
    nats.start()
    trial.fault()
    trial.note("PostgreSQL and NATS restarted")
    await trial.drain()
    log.open()
    read = ""

    async def all_tell() -> bool:
        nonlocal read
        read += log.read()
        return read.count('"log lines dropped"') >= 2 and read.endswith("\n")

    for runner in trial.runners:
        runner.signal(signal.SIGHUP)  # something to log
    await trial.require_soon(all_tell, "the log says how many lines are missing", 15)
    told = [json.loads(line) for line in read.splitlines() if '"log lines dropped"' in line]
    trial.bite("lines for nobody", sum(line["count"] for line in told))
    reading = asyncio.create_task(_read_on(log))
    await trial.verify(duplicates=trial.held(2), recovery=RECOVERED)
    await stop(trial)
    reading.cancel()
    trial.conclude()


async def _read_on(log: Log) -> None:
    while True:
        log.read()
        await asyncio.sleep(0.05)


async def disk_full(trial: Trial) -> None:
    """The file of the log may not grow; once it may, the log goes on, and every line of it is whole."""
    path = trial.directory / "log"
    path.write_bytes(b"\n" * FULL)
    await launch(trial, Subscriber("work"), *loud(10), runners=1)
    [runner] = trial.runners
    limit = path.stat().st_size + 1000
    _limit(runner, limit)
    trial.note("no more room for the log")
    trial.publish(200, rate=50.0)
    await eventually(lambda: path.stat().st_size == limit)
    await trial.drain(30)
    trial.bite("logs without room", int(path.stat().st_size == limit))
    trial.require(psutil.pid_exists(runner.pid), "the runner goes on")
    _limit(runner, resource.RLIM_INFINITY)
    trial.note("room for the log again")
    await trial.require_soon(lambda: path.stat().st_size > limit, "the log goes on", 10)
    await stop(trial)
    events = _events(path)
    trial.require("stopped" in events, f"the last word is in the log: {events[-3:]}")
    await trial.verify()


def _limit(runner: RunnerProcess, size: int) -> None:
    psutil.Process(runner.pid).rlimit(psutil.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def _events(path: Path) -> list[str]:
    return [json.loads(line)["event"] for line in path.read_text().splitlines() if line.startswith("{")]


async def unread(trial: Trial) -> None:
    """Forty subscriptions fail at everything and fill the pipe; the one that is well must not notice."""
    log = Log(trial.directory / "log")
    await launch(trial, Subscriber("work"), *loud(40), runners=1)
    trial.publish(60, rate=20.0)
    await trial.drain(20)
    trial.bite("pipes too full for another line", int(log.unread() > PIPE / 2))
    await stop(trial)
    await trial.verify()


async def password_rotated(trial: Trial, server: PostgresServer, rotations: int = 2) -> None:
    """Each time the sessions end, all loops are refused, and SIGHUP brings the file with the new password."""
    server.psql(f"CREATE ROLE rotated SUPERUSER LOGIN PASSWORD '{CANARY}0'")
    rules = server.data / "pg_hba.conf"
    rules.write_text("host all rotated 127.0.0.1/32 scram-sha-256\n" + rules.read_text())
    server.psql("SELECT pg_reload_conf()")
    dsn = trial.dsn.replace("postgres@", f"rotated:{CANARY}0@", 1)
    await trial.start(Subscriber("work"), runners=2, runner_dsn=dsn, publisher_dsn=trial.dsn)
    file = trial.directory / "bus.yaml"
    trial.publish(800, rate=80.0)
    for number, moment in enumerate(trial.moments(rotations, of=700), 1):
        await trial.reach(moment)
        server.psql(f"ALTER ROLE rotated PASSWORD '{CANARY}{number}'")
        ended = server.psql("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'rotated'")
        trial.bite("sessions ended after a rotation", int(ended))
        trial.note(f"password changed, {ended} sessions ended")
        await trial.require_soon(partial(_said, trial, "database lost", 2 * number), "all are refused", 15)
        file.write_text(file.read_text().replace(f"{CANARY}{number - 1}@", f"{CANARY}{number}@"))
        for runner in trial.runners:
            runner.signal(signal.SIGHUP)
        await trial.require_soon(partial(_said, trial, "configuration reloaded", 2 * number), "all have reloaded", 20)
        trial.fault()
    await trial.verify(duplicates=trial.held(2 * rotations), recovery=RECOVERED)


def _said(trial: Trial, event: str, times: int) -> bool:
    return len(trial.deployment.logged(event)) >= times


@pytest.mark.chaos("FI-54", "reader of the log gone, then PostgreSQL and NATS restarted")
async def test_fi_54(make_trial: MakeTrial, make_postgres: MakePostgres, make_nats_server: MakeNats) -> None:
    server, nats = make_postgres(fsync=True), make_nats_server()
    await reader_gone(make_trial(server, nats=nats.url), server, nats)


@pytest.mark.chaos("FI-55", "disk of the log full, then room again")
async def test_fi_55(trial: Trial) -> None:
    await disk_full(trial)


@pytest.mark.chaos("FI-56", "log that nobody reads, 40 failing subscriptions")
async def test_fi_56(trial: Trial) -> None:
    await unread(trial)


@pytest.mark.chaos("FI-57", "password of the role rotated, sessions ended, SIGHUP with the new file")
async def test_fi_57(make_trial: MakeTrial, make_postgres: MakePostgres) -> None:
    server = make_postgres(fsync=True)
    await password_rotated(make_trial(server), server)
