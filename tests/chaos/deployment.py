"""A deployment of real processes: its file, its runners, its publishers, its receivers, its journals, its tables."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from tests.support.eventually import eventually
from tests.support.process import RunnerProcess
from tests.support.server import free_port

from .checker import Pair, Row, Tables
from .journals import Journal, Publishing, Sighting
from .look import audit, look, sqlite_path
from .publisher import CANARY, Plan

__all__ = ["BATCH", "CONCURRENCY", "LEASE", "POLL", "Deployment", "Subscriber", "freeze", "least_wait", "thaw"]

LEASE = 3.0  # seconds
POLL = 1.0  # seconds
BATCH = 16
CONCURRENCY = 16
_SUBSCRIBER_LIMIT = 8

_FILE = """\
deployment_id: chaos
storage: {{dsn: "{dsn}", start_timeout: 20s{storage}}}
strategies: {strategies}
"""
_REST = """\
sinks:
{sinks}
subscriptions:
{subscriptions}
schedules: {schedules}
worker: {{batch: {batch}, concurrency: {concurrency}, lease: {lease:g}s, shutdown_grace: {grace:g}s}}
retry: {{delay: 200ms, max_delay: 1s, jitter: 0.2, max_attempts: 20}}
log: {{level: {level}, format: json}}
"""


class Subscriber:
    """
    Who takes events: a function of `handlers.py`, or a receiver in a process of its own.

    Attributes:
        prefix: of the types it takes.
        hook: seconds that the receiver takes for a delivery; None is a function.
        sink: in the words of the file, in place of either.
        options: of the subscription, in the words of the file.
        watched: whether it writes a journal, and so is part of what the checker judges.
    """

    def __init__(
        self,
        name: str,
        handler: str = "work",
        *,
        prefix: str = "",
        hook: float | None = None,
        sink: str = "",
        options: str = f"concurrency: {_SUBSCRIBER_LIMIT}, timeout: 120s",
        watched: bool = True,
    ) -> None:
        self.name = name
        self.handler = handler
        self.prefix = prefix
        self.hook = hook
        self.sink = sink
        self.options = options
        self.watched = watched


class Deployment:
    """
    Real processes over one database, in one directory.

    `runners` are in the order of their start, whatever became of them. What `sabotage` names is done to every
    runner and publisher that starts from then on.
    """

    def __init__(
        self,
        directory: Path,
        dsn: str,
        *,
        nats: str | None,
        subscribers: Sequence[Subscriber],
        strategies: str | None = None,
        grace: float = 5.0,
        lease: float = LEASE,
        level: str = "info",
        sabotage: str = "",
        runner_dsn: str | None = None,
        publisher_dsn: str | None = None,
        storage: str = "",
        batch: int = BATCH,
        schedules: str = "[]",
    ) -> None:
        """
        Write the configuration.

        Args:
            dsn: where the checker looks, past any proxy.
            runner_dsn, publisher_dsn: where the processes go instead.
            storage: more options of it, in the words of the file.
            strategies: in place of polling and NATS.
            grace: seconds that a stop waits for deliveries.
            lease: seconds; a worker looks once in a lease, whatever it hears.
            level: of the log.
            schedules: in the words of the file.
        """
        self.directory = directory
        self.dsn = dsn
        self.sabotage = sabotage
        self._batch = batch
        self._schedules = schedules
        self.subscriptions = {each.name: each.prefix for each in subscribers if each.watched}
        self.runners: list[RunnerProcess] = []
        self.published = Journal(directory / "published.jsonl", Publishing)
        self.deliveries = Journal(directory / "deliveries.jsonl", Sighting)
        self._subscribers = subscribers
        self._ports = {each.name: free_port() for each in subscribers if each.hook is not None}
        push = "" if nats is None else f", {{nats: {{servers: ['{nats}']}}}}"
        if sqlite_path(dsn):
            push = ", {sqlite: 25ms}"
        self._strategies = strategies or f"[{{polling: {POLL:g}s}}{push}]"
        self._storage = f", {storage}" if storage else ""
        self._grace = grace
        self._lease = lease
        self._level = level
        self._processes = ExitStack()
        self._outputs: list[RunnerProcess] = []
        self._configure("bus.yaml", runner_dsn or dsn, self._rest())
        self._configure("publisher.yaml", publisher_dsn or dsn)

    def close(self) -> None:
        """Kill what still runs."""
        self._processes.close()

    async def start(self, count: int = 1) -> list[RunnerProcess]:
        """Start receivers, if they do not run yet, and `count` more runners; return these once they work."""
        if not self.runners:
            for each in self._subscribers:
                if each.hook is not None:
                    self._receiver(each)
        started = [self.launch() for _ in range(count)]
        for runner in started:
            await asyncio.to_thread(runner.wait_for_line, "publish one", 60.0)
        return started

    def launch(self) -> RunnerProcess:
        """Start one more runner, and do not wait for it."""
        module = "tests.chaos.sabotage" if self.sabotage else None
        runner = self._run("start", "-c", "bus.yaml", module=module)
        self.runners.append(runner)
        return runner

    def publish(self, plan: Mapping[str, Any]) -> RunnerProcess:
        """Start a publisher; `plan` holds fields of `Plan`."""
        whole = Plan(config="publisher.yaml", journal="published.jsonl", **plan)
        return self._run(whole.dump(), module="tests.chaos.publisher")

    def accompany(self, module: str, *args: str) -> None:
        """Start a server of the tests that says `Running on` when it is there."""
        process = self._run(*args, module=module)
        process.wait_for_line("Running on")

    def command(self, *args: str) -> RunnerProcess:
        """Start a command of the runner, and do not wait for it."""
        return self._run(*args, module=None)

    def running(self, process: RunnerProcess) -> int:
        """Return how many deliveries the handlers of a process have begun and not ended."""
        steps = Counter(each.step for each in self.deliveries.read() if each.pid == process.pid)
        return steps["begun"] - steps["accepted"] - steps["failed"]

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Return the log entries of all runners with this event."""
        lines = [line for runner in self.runners for line in runner.stderr if line.startswith("{") and event in line]
        return [entry for entry in map(json.loads, lines) if entry["event"] == event]

    async def tables(self) -> Tables:
        """Return what the store holds."""
        async with look(self.dsn) as query:
            recorded = await query("SELECT id, count(*) FROM events GROUP BY id")
            deliveries = await query(
                "SELECT e.id, s.name, d.state, d.attempts, d.last_error FROM delivery_states d"
                " JOIN events e ON e.seq = d.event_seq JOIN subscriptions s ON s.id = d.subscription_id"
            )
            [(work, leases)] = await query(
                "SELECT (SELECT count(*) FROM dispatch) + (SELECT count(*) FROM scheduled),"
                " (SELECT count(*) FROM deliveries WHERE state = 'leased')"
                " + (SELECT count(*) FROM dispatch WHERE lease_token IS NOT NULL)"
            )
            rewritten = await query(
                "SELECT e.id, s.name FROM chaos_rewritten c"
                " JOIN events e ON e.seq = c.event_seq JOIN subscriptions s ON s.id = c.subscription_id"
            )
        rows: dict[Pair, Row] = {(row[0], row[1]): Row(row[2], row[3], row[4]) for row in deliveries}
        pairs: list[Pair] = [(row[0], row[1]) for row in rewritten]
        times = Counter((row[0], row[1]) for row in deliveries)
        pairs += [pair for pair, number in times.items() if number > 1]  # on record twice
        return Tables(Counter({row[0]: row[1] for row in recorded}), rows, work, leases, pairs)

    async def audit(self) -> None:
        """Have the database note every final delivery that is changed; the tables must be there."""
        await audit(self.dsn)

    async def idle(self) -> bool:
        """Whether nothing is left to do in the tables."""
        async with look(self.dsn) as query:
            [(busy,)] = await query(
                "SELECT EXISTS (SELECT 1 FROM dispatch) OR EXISTS (SELECT 1 FROM scheduled)"
                " OR EXISTS (SELECT 1 FROM deliveries WHERE state IN ('pending', 'leased'))"
            )
        return not busy

    def complaints(self) -> list[str]:
        """Return what is wrong with the processes themselves: bounds that were passed, secrets that were shown."""
        found = []
        for process in self._outputs:
            if any(CANARY in line for line in (*process.stdout, *process.stderr)):
                found.append(f"process {process.pid} shows a secret: {' '.join(process.args)}")
        for runner in self.runners:
            if runner.returncode is None:
                about = psutil.Process(runner.pid)
                if about.memory_info().rss > 300 * 2**20 or about.num_fds() > 200:
                    found.append(f"runner {runner.pid}: {about.memory_info().rss} bytes, {about.num_fds()} files")
            if any("Traceback" in line for line in runner.stderr):
                found.append(f"runner {runner.pid} printed a traceback")
        return found

    def _configure(self, name: str, dsn: str, rest: str = "") -> None:
        text = _FILE.format(dsn=_with_canary(dsn), strategies=self._strategies, storage=self._storage) + rest
        (self.directory / name).write_text(text)

    def _rest(self) -> str:
        sinks, subscriptions = [], []
        for each in self._subscribers:
            kind = f'{{python: "tests.chaos.handlers:{each.handler}"}}'
            if each.sink:
                kind = each.sink
            elif each.hook is not None:
                kind = f'{{webhook: "http://127.0.0.1:{self._ports[each.name]}/{each.name}"}}'
            sinks.append(f"  {each.name}: {kind}")
            subscriptions.append(
                f"  - {{name: {each.name}, types: ['{each.prefix}*'], sink: {each.name}, {each.options}}}"
            )
        return _REST.format(
            sinks="\n".join(sinks),
            subscriptions="\n".join(subscriptions),
            schedules=self._schedules,
            batch=self._batch,
            concurrency=CONCURRENCY,
            lease=self._lease,
            grace=self._grace,
            level=self._level,
        )

    def _receiver(self, subscriber: Subscriber) -> None:
        port, seconds = self._ports[subscriber.name], str(subscriber.hook)
        self.accompany("tests.chaos.receiver", str(port), "deliveries.jsonl", seconds)

    def _run(self, *args: str, module: str | None) -> RunnerProcess:
        process = RunnerProcess(*args, env={"CHAOS_SABOTAGE": self.sabotage}, cwd=self.directory, module=module)
        self._outputs.append(process)
        self._processes.enter_context(process)
        return process


def least_wait(attempt: int) -> float:
    """Return the shortest wait, in seconds, that the configuration allows after `attempt` failed."""
    return min(0.2 * 2.0 ** (attempt - 1), 1.0) * 0.8


async def freeze(process: RunnerProcess) -> None:
    """Stop a process, and return once it stands still."""
    process.signal(signal.SIGSTOP)
    await eventually(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)


def thaw(process: RunnerProcess) -> None:
    """Let a stopped process go on."""
    os.kill(process.pid, signal.SIGCONT)


def _with_canary(dsn: str) -> str:
    """Return the DSN with a password in it, which the server does not ask for."""
    return dsn.replace("postgres@", f"postgres:{CANARY}@", 1)
