"""Receivers that misbehave, receivers that are down, handlers that take their process with them, and what is shown."""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import signal
import socket
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise

import asyncpg
import psutil
import pytest

from tests.support.eventually import PATIENCE
from tests.support.nats import NatsServer
from tests.support.process import RunnerProcess, run_cli
from tests.support.proxy import Proxy
from tests.support.server import HOST, free_port

from .deployment import LEASE, Subscriber
from .hostile import ACCEPTING, ACCEPTING_WITHOUT_END, CROSSED, FLOODS, REFUSING, REFUSING_WITHOUT_END, STALE, UNASKED
from .journals import Sighting, now
from .publisher import CANARY
from .trial import Trial

TIMEOUT = 2.0  # seconds a webhook waits for an answer
SMALL_GROWTH = 8  # MiB that it may grow by under receivers that misbehave in other ways
GROWTH = 24  # MiB that a worker may grow by under answers without end; one that keeps them grows by thousands
TAKEN = 16  # MiB of an answer without end that may leave the receiver: what the sockets hold, and little more
FAILURES, PAUSE = 10, 2.0  # in a row until the breaker opens; seconds it stays open
RATE = 300  # deliveries a second: what a receiver that is back is given at most
LATE = 1.0  # seconds: what a sibling may wait at most at p99, if that was less than a third of it before


async def hostile_receivers(trial: Trial) -> None:
    """Nine ways to misbehave, at once, beside a function and a webhook that behave."""
    port = free_port()
    ways = [*ACCEPTING, *REFUSING]
    patience = min(trial.bound(TIMEOUT), 20.0)  # a receiver on a busy machine takes its time
    hostile = []
    for way in ways:
        # A reset costs an attempt for each connection that is kept open.
        attempts = 12 if way in ACCEPTING else 2
        retry = f"{{max_attempts: {attempts}, delay: 200ms, max_delay: 400ms}}"
        options = f"timeout: 30s, breaker: off, concurrency: 4, retry: {retry}"
        sink = _webhook(port, way, timeout=patience)
        hostile.append(Subscriber(way, prefix="evil", sink=sink, options=options))
    await trial.start(Subscriber("note", "note"), Subscriber("hook", hook=0.0), *hostile)
    trial.deployment.accompany("tests.chaos.hostile", str(port), "deliveries.jsonl")
    trial.publish(240, rate=60.0)
    await trial.drain()
    usual = late(trial, "note", "hook")
    before = {runner.pid: psutil.Process(runner.pid).memory_info().rss for runner in trial.runners}
    trial.publish(400, first=240, rate=60.0, types=["evil", *["load"] * 39])
    await trial.drain(25)
    grown = max(psutil.Process(runner.pid).memory_info().rss - before[runner.pid] for runner in trial.runners)
    trial.require(grown < SMALL_GROWTH * 2**20, f"a worker has grown by {grown / 2**20:.0f} MiB")
    siblings = late(trial, "note", "hook", first=240)
    trial.require(
        siblings < trial.bound(max(3 * usual, LATE)), f"siblings waited {siblings:.2f} s at p99, {usual:.2f} s before"
    )
    longest = await _query(trial, "SELECT max(duration_us) / 1e6 FROM attempts")
    trial.note(
        f"longest attempt {longest:.2f} s, growth {grown / 2**20:.1f} MiB, p99 {usual:.3f} s, then {siblings:.3f} s"
    )
    trial.require(longest < trial.bound(patience + 1), f"an attempt took {longest:.1f} s")
    ends = await _states(trial)
    for way in ways:
        trial.bite(f"deliveries to {way}", sum(ends[way].values()))
        expected = "delivered" if way in ACCEPTING else "dead"
        trial.require({*ends[way]} == {expected}, f"{way}: {dict(ends[way])}, expected all {expected}")
    await trial.verify()


async def answers_without_end(trial: Trial, events: int = 10) -> None:
    """Everything of an answer that has no end of its own, beside a function and a webhook that behave."""
    port = free_port()
    options = "timeout: 30s, breaker: off, concurrency: 10, retry: {max_attempts: 2, delay: 200ms, max_delay: 400ms}"
    ways = [*REFUSING_WITHOUT_END, *ACCEPTING_WITHOUT_END]
    patience = min(trial.bound(5.0), 20.0)  # a receiver on a busy machine takes its time
    sinks = {way: _webhook(port, way, timeout=patience) for way in ways}
    hostile = [Subscriber(way, prefix="evil", sink=sink, options=options) for way, sink in sinks.items()]
    await trial.start(Subscriber("note", "note"), Subscriber("hook", hook=0.0), *hostile)
    trial.deployment.accompany("tests.chaos.hostile", str(port), "deliveries.jsonl")
    trial.publish(240, rate=60.0)
    await trial.drain()
    usual = late(trial, "note", "hook")
    before = {runner.pid: psutil.Process(runner.pid).memory_info().rss for runner in trial.runners}
    trial.publish(40 * events, first=240, rate=60.0, types=["evil", *["load"] * 39])
    await trial.drain(25)
    grown = max(psutil.Process(runner.pid).memory_info().rss - before[runner.pid] for runner in trial.runners)
    trial.require(grown < GROWTH * 2**20, f"a worker has grown by {grown / 2**20:.0f} MiB")
    siblings = late(trial, "note", "hook", first=240)
    trial.require(
        siblings < trial.bound(max(3 * usual, LATE)), f"siblings waited {siblings:.2f} s at p99, {usual:.2f} s before"
    )
    trial.note(f"growth {grown / 2**20:.1f} MiB, p99 {usual:.3f} s, then {siblings:.3f} s")
    floods = [int(line) for line in (trial.directory / FLOODS).read_text().split()]
    trial.bite("answers that were cut off", len(floods))
    trial.require(max(floods) < TAKEN * 2**20, f"{max(floods) / 2**20:.0f} MiB of an answer were taken")
    ends = await _states(trial)
    for way in ways:
        trial.bite(f"deliveries to {way}", sum(ends[way].values()))
        expected = "delivered" if way in ACCEPTING_WITHOUT_END else "dead"
        trial.require({*ends[way]} == {expected}, f"{way}: {dict(ends[way])}, expected all {expected}")
    await trial.verify()


async def stale_answers(trial: Trial) -> None:
    """Receivers that answer idle connections, and read no other request there."""
    port = free_port()
    await trial.start(*[Subscriber(way, sink=_webhook(port, way), options="breaker: off") for way in STALE])
    trial.deployment.accompany("tests.chaos.hostile", str(port), "deliveries.jsonl")
    trial.publish(200, rate=20.0)
    await trial.drain(25)
    trial.bite("answers that nobody asked for", _size(trial, UNASKED))
    await trial.verify(duplicates=_size(trial, CROSSED))  # a 408 that crosses a request is taken for its answer


def _size(trial: Trial, name: str) -> int:
    """Return the bytes of a file that a receiver has written; 0 without one."""
    path = trial.directory / name
    return path.stat().st_size if path.exists() else 0


async def told_to_wait(trial: Trial) -> None:
    """What a receiver asks for is done within bounds, and no redirect is followed."""
    port, elsewhere = free_port(), _Listener()
    waits = {  # Retry-After: the least and the most seconds between two attempts
        "none": ("", 2.3, 4.5),
        "zero": ("0", 0.0, 1.5),
        "five": ("5", 4.9, 7.0),
        "negative": ("-1", 0.0, 1.5),
        "garbage": ("soon", 2.3, 4.5),
        "past": ("@-60", 0.0, 1.5),
        "future": ("@5", 3.5, 7.0),
    }
    subscribers = [_asking(port, name, f"status=503&after={asked}") for name, (asked, _, _) in waits.items()]
    for status in (301, 302, 307, 308):
        query = f"status={status}&location=http://{HOST}:{elsewhere.port}/"
        subscribers.append(_asking(port, f"moved-{status}", query))
    subscribers.append(_asking(port, "gone", "status=410"))
    for name, asked in (("aeon", "1000000000000"), ("century", "@3153600000")):
        subscribers.append(_asking(port, name, f"status=429&after={asked}&journal=no", watched=False))
    await trial.start(*subscribers, runners=2)
    trial.deployment.accompany("tests.chaos.hostile", str(port), "deliveries.jsonl")
    trial.publish(5, wave=5)
    await trial.drain(10)
    for name in ("aeon", "century"):
        rest = await _query(
            trial,
            "SELECT extract(epoch FROM min(due_at) - now()) FROM deliveries d JOIN subscriptions s"
            f" ON s.id = d.subscription_id WHERE s.name = '{name}' AND state = 'pending'",
        )
        trial.require(86_300 < rest <= 86_400, f"{name}: due in {rest:.0f} s, expected a day")
        cancelled = run_cli("deliveries", "cancel", "-c", "bus.yaml", "--subscription", name, cwd=trial.directory)
        trial.require(cancelled.returncode == 0, f"cancel: {cancelled.stderr}")
    for name, (_, least, most) in waits.items():
        gaps = list(_gaps(trial, name))
        trial.bite(f"waits of {name}", len(gaps))
        within = gaps and least <= min(gaps) and max(gaps) <= trial.bound(most)
        trial.require(within, f"{name}: waited {gaps}, expected {least:g} to {most:g} s")
    ends = await _states(trial)
    trial.require(ends["gone"] == {"dead": 5}, f"gone: {dict(ends['gone'])}")
    trial.require(elsewhere.visits() == 0, "a redirect was followed")
    await trial.verify(paced=False)


async def processes_ended(trial: Trial) -> None:
    """One event whose handler exits, one whose handler crashes; an orchestrator starts processes again."""
    ways = {"end": "poison.end", "crash": "poison.crash"}
    poisons = [_poison(name, type) for name, type in ways.items()]
    await trial.start(Subscriber("note", "note"), *poisons)
    async with _orchestrated(trial, patience=LEASE + 1.5) as restarts:
        trial.publish(400, rate=40.0, types=[*ways.values(), *["load"] * 398])
        await trial.drain(30)
    trial.bite("processes ended by a handler", restarts.total())
    # Twice in a dispatch, twice alone; what one kills may be the other's attempt, too.
    trial.require(restarts.total() <= 4 * len(ways), f"{restarts.total()} processes were ended")
    await _dead_of_poison(trial, ways)
    await trial.verify(duplicates=trial.held(restarts.total()))


async def loop_held_for_ever(trial: Trial) -> None:
    """A handler that spins: its process must be killed by whoever watches it, and the work goes on elsewhere."""
    await trial.start(Subscriber("note", "note"), _poison("spin", "poison.spin"))
    async with _orchestrated(trial, patience=LEASE + 1.5) as restarts:
        trial.publish(400, rate=40.0, types=["poison.spin", *["load"] * 399])
        await trial.drain(30)
    trial.bite("processes stuck in a handler", restarts.total())
    trial.require(restarts.total() <= 4, f"{restarts.total()} processes were stuck")
    await _dead_of_poison(trial, {"spin": "poison.spin"})
    await trial.verify(duplicates=trial.held(restarts.total()))


async def handlers_misbehave(trial: Trial) -> None:
    """Nothing of this ends a process."""
    ways = {name: f"poison.{name}" for name in ("leave", "revolt", "sleep", "devour", "block")}
    await trial.start(Subscriber("note", "note"), *[_poison(name, type) for name, type in ways.items()])
    for runner in trial.runners:  # as a container would; what it has, and half of what one handler wants
        about = psutil.Process(runner.pid)
        about.rlimit(psutil.RLIMIT_AS, (about.memory_info().vms + 2**30, psutil.RLIM_INFINITY))
    pids = {runner.pid for runner in trial.runners}
    # The one that blocks comes alone: what its process held besides is claimed again, and counted again.
    *others, blocking = ways.values()
    trial.publish(400, rate=40.0, types=[*others, *["load"] * 196, blocking, *["load"] * 199])
    await trial.drain(25)
    trial.require({runner.pid for runner in trial.runners} == pids, "a handler ended its process")
    await _dead_of_poison(trial, ways)
    await trial.verify(duplicates=trial.held(2))


async def receiver_down(trial: Trial) -> None:
    """Refuses everything for ten seconds, under a backlog; then it is found again, and not overrun."""
    port, events = free_port(), 1500
    options = (
        f"concurrency: 4, rate: {RATE}/s,"
        " retry: {max_attempts: 50, delay: 300ms, max_delay: 1s, jitter: 1},"
        f" breaker: {{failures: {FAILURES}, pause: {PAUSE:g}s, max_pause: {PAUSE:g}s}}"
    )
    sick = Subscriber("sick", sink=_webhook(port, "sick?status=500&while=down"), options=options)
    down = trial.directory / "down"
    down.touch()
    await trial.start(Subscriber("note", "note"), sick)
    trial.deployment.accompany("tests.chaos.hostile", str(port), "deliveries.jsonl")
    trial.publish(events, rate=300.0)
    await trial.reach(events)
    await trial.require_soon(lambda: trial.deployment.logged("breaker open"), "the breaker opens", 5.0)
    settled = now() + 1.0
    await asyncio.sleep(8.0)  # the fault itself
    seen = [each.at for each in trial.deployment.deliveries.read() if each.subscription == "sick"]
    probes = sum(at > settled for at in seen) / 2 / (now() - settled)
    trial.bite("refused before the breaker", sum(at <= settled for at in seen) // 2)
    trial.note(f"{probes:.2f} tries a second with the breaker open")
    trial.require(probes <= 1.5 * len(trial.runners) / PAUSE, f"{probes:.1f} tries a second with the breaker open")
    down.unlink()
    trial.fault()
    trial.note("the receiver is back")
    await trial.drain(25)
    usual = late(trial, "note")
    trial.require(usual < trial.bound(LATE), f"siblings waited {usual:.2f} s at p99")
    most = _most_in_a_second(trial, "sick")
    trial.note(f"at most {most} in a second after it")
    trial.bite("accepted at the rate", most)
    # A rate has a burst of a tenth, and what waits for a processor comes closer together.
    trial.require(most <= 1.2 * RATE, f"{most} in a second, the rate is {RATE}")
    await trial.verify(recovery=10.0, paced=False)  # its retries have a jitter of 1: one may be due at once


def _most_in_a_second(trial: Trial, name: str) -> int:
    """Return how many deliveries a subscription has accepted at most in any second; a rate has a burst of a tenth."""
    seen = trial.deployment.deliveries.read()
    times = sorted(each.at for each in seen if each.subscription == name and each.step == "accepted")
    return max((bisect.bisect_left(times, at + 1.0) - index for index, at in enumerate(times)), default=0)


async def secrets_kept(trial: Trial) -> None:
    """Every kind of secret, every kind of failure, every output: at the level debug."""
    server = trial.nats_server(f"authorization {{ user: me, password: {CANARY}-nats }}")
    login = server.url.replace("nats://", f"nats://me:{CANARY}-nats@")
    port = free_port()
    url = f"http://{HOST}:{port}/hook?status=500&times=2&key={CANARY}-query"
    hook = f"{{webhook: {{url: '{url}', timeout: {TIMEOUT:g}s, headers: {{Authorization: 'Bearer {CANARY}-header'}}}}}}"
    async with Proxy(trial.dsn) as proxy:
        await trial.start(
            Subscriber("hook", sink=hook, options="concurrency: 8, breaker: off"),
            Subscriber("trip", "stumble", options="concurrency: 8, breaker: off"),
            strategies=f"[{{polling: 1s}}, postgres, {{nats: {{servers: ['{login}']}}}}]",
            level="debug",
            runner_dsn=proxy.url,
        )
        publisher = trial.publish(600, rate=60.0)
        await trial.reach(trial.random.randint(60, 120))  # the receiver is not there yet
        trial.deployment.accompany("tests.chaos.hostile", str(port), "deliveries.jsonl")
        for fault in trial.random.sample(["reset", "terminate", "password", "kill"], 4):
            if fault == "reset":
                await proxy.set_mode("refuse")
                await asyncio.sleep(1.0)  # the fault itself
                await proxy.set_mode("pass")
            elif fault == "terminate":
                await _terminate(trial)
            elif fault == "password":
                server.reload("authorization { user: me, password: other }")
                await trial.require_soon(lambda: trial.deployment.logged("nats unreachable"), "NATS refuses", 10.0)
                server.reload(server.config.replace("other", f"{CANARY}-nats"))
            else:
                server.kill()
                await asyncio.to_thread(server.start)
            trial.note(fault)
            trial.bite(f"faults: {fault}")
            await trial.reach(trial.answered() + 40)
        publisher.signal(signal.SIGTERM)
        await trial.drain()
        await _look_for_canaries(trial, server)
    await trial.verify(duplicates=trial.held(4))


async def _terminate(trial: Trial) -> None:
    """End every session of the runners."""
    connection = await asyncpg.connect(trial.dsn)
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await connection.close()


async def _look_for_canaries(trial: Trial, server: NatsServer) -> None:
    """Hold everything that can be seen against the secrets; verify() looks at what the processes have logged."""
    outputs = {"ps": "\n".join(" ".join(psutil.Process(each.pid).cmdline()) for each in trial.runners)}
    # A fault beside a secret, and a file that cannot be read at all.
    text = (trial.directory / "bus.yaml").read_text()
    trial.bite("secrets in the file", text.count(CANARY))
    (trial.directory / "typo.yaml").write_text(text.replace("nats: {servers", "nats: {servres"))
    (trial.directory / "broken.yaml").write_text(text.replace("storage: {", "storage: {{["))
    commands = ["config show", "check --online", "subscriptions list --json", "instances --json"]
    commands += ["deliveries list --json", "deliveries list", "deliveries show event-000000 hook"]
    server.kill()
    runs = [(command, "bus.yaml") for command in commands] + [("check", "typo.yaml"), ("check", "broken.yaml")]
    shown = await asyncio.gather(*[asyncio.to_thread(_shown, trial, *run) for run in runs])
    outputs |= dict(zip(map(" ".join, runs), shown, strict=True))
    for name, output in outputs.items():
        trial.bite("outputs looked at", bool(output))
        trial.require(CANARY not in output, f"{name} shows a secret")
    debug = sum('"level": "debug"' in line for runner in trial.deployment.runners for line in runner.stderr)
    trial.bite("lines at the level debug", debug)


def _shown(trial: Trial, command: str, file: str) -> str:
    """Return all that a command prints."""
    result = run_cli(*command.split(), "-c", file, cwd=trial.directory, timeout=10 * PATIENCE)  # many at once
    return result.stdout + result.stderr


# --- what is seen from outside ---------------------------------------------------------------------


def late(trial: Trial, *names: str, first: int = 0) -> float:
    """Return the seconds, at p99, from the answer to the acceptance by these subscriptions."""
    answered = {line.id: line.at for line in trial.deployment.published.read() if line.step == "ok"}
    waits = sorted(
        max(0.0, seen.at - answered[seen.id])
        for seen in trial.deployment.deliveries.read()
        if seen.step == "accepted"
        and seen.subscription in names
        and seen.id in answered
        and int(seen.id.removeprefix("event-")) >= first
    )
    return waits[int(len(waits) * 0.99)]


def _webhook(port: int, path: str, *, timeout: float = TIMEOUT) -> str:
    return f"{{webhook: {{url: 'http://{HOST}:{port}/{path}', timeout: {timeout:g}s}}}}"


def _asking(port: int, name: str, query: str, *, watched: bool = True) -> Subscriber:
    """Return a subscriber that refuses the first attempt as `query` says."""
    options = "retry: {max_attempts: 3, delay: 3s, max_delay: 3s, jitter: 0.2}"
    return Subscriber(name, sink=_webhook(port, f"{name}?times=1&{query}"), options=options, watched=watched)


def _poison(name: str, type: str) -> Subscriber:
    """Return a subscriber whose handler does harm to each event of the type."""
    return Subscriber(name, name, prefix=type, options="retry: {max_attempts: 2, delay: 200ms}, timeout: 2s")


async def _dead_of_poison(trial: Trial, ways: dict[str, str]) -> None:
    ends = await _states(trial)
    for name in ways:
        seen = [each.attempt for each in trial.deployment.deliveries.read() if each.subscription == name]
        trial.note(f"attempts of {name}: {seen}")
        trial.bite(f"deliveries to {name}", sum(ends[name].values()))
        trial.require(ends[name] == {"dead": 1}, f"{name}: {dict(ends[name])}, expected one dead")


@contextlib.asynccontextmanager
async def _orchestrated(trial: Trial, patience: float) -> AsyncIterator[Counter[int]]:
    """Start a runner for each that ended, and kill those stuck for `patience` seconds; count them by their pid."""
    replaced: Counter[int] = Counter()

    async def watch() -> None:
        while True:
            for runner in trial.deployment.runners:
                if runner.pid in replaced:
                    continue
                if _stuck(trial, runner, patience):
                    runner.kill()
                    trial.note(f"{runner.pid} was stuck, and killed")
                if runner.returncode is not None:
                    replaced[runner.pid] += 1
                    trial.note(f"{runner.pid} has ended ({runner.returncode})")
                    trial.deployment.launch()
            await asyncio.sleep(0.1)

    task = asyncio.create_task(watch())
    try:
        yield replaced
    finally:
        task.cancel()
        await asyncio.wait({task})


def _stuck(trial: Trial, runner: RunnerProcess, patience: float) -> bool:
    """Return whether the last thing a runner wrote down is the beginning of a delivery, long ago."""
    last: Sighting | None = None
    for seen in trial.deployment.deliveries.read():
        last = seen if seen.pid == runner.pid else last
    return last is not None and last.step == "begun" and last.at < now() - patience


def _gaps(trial: Trial, name: str) -> Iterator[float]:
    """Return the seconds between a refusal and the next attempt of the same event."""
    steps: dict[str, list[Sighting]] = defaultdict(list)
    for seen in trial.deployment.deliveries.read():
        if seen.subscription == name:
            steps[seen.id].append(seen)
    for each in steps.values():
        for one, other in pairwise(each):
            if one.step == "failed":
                yield other.at - one.at


class _Listener:
    """Somebody nobody is to talk to."""

    def __init__(self) -> None:
        self._socket = socket.create_server((HOST, 0))
        self._socket.setblocking(False)
        self.port: int = self._socket.getsockname()[1]

    def visits(self) -> int:
        """Return how many connected, and close."""
        count = 0
        with self._socket, contextlib.suppress(BlockingIOError):
            while True:
                self._socket.accept()[0].close()
                count += 1
        return count


async def _query(trial: Trial, sql: str) -> float:
    connection = await asyncpg.connect(trial.dsn)
    try:
        return float(await connection.fetchval(sql))
    finally:
        await connection.close()


async def _states(trial: Trial) -> dict[str, Counter[str]]:
    """Return how many deliveries of each subscription are in each state."""
    states: dict[str, Counter[str]] = defaultdict(Counter)
    for (_, name), row in (await trial.deployment.tables()).deliveries.items():
        states[name][row.state] += 1
    return states


@pytest.mark.chaos("FI-39", "receivers that hang, drip, never end, explode, cut, reset, talk nonsense")
async def test_fi_39(trial: Trial) -> None:
    await hostile_receivers(trial)


@pytest.mark.chaos("FI-40", "a receiver that refuses everything for ten seconds, under a backlog")
async def test_fi_40(trial: Trial) -> None:
    await receiver_down(trial)


@pytest.mark.chaos("FI-41", "Retry-After in every form, redirects, 410")
async def test_fi_41(trial: Trial) -> None:
    await told_to_wait(trial)


@pytest.mark.chaos("FI-42", "handlers that exit and crash")
async def test_fi_42(trial: Trial) -> None:
    await processes_ended(trial)


@pytest.mark.chaos("FI-42", "a handler that spins")
async def test_fi_42_spinning(trial: Trial) -> None:
    await loop_held_for_ever(trial)


@pytest.mark.chaos(
    "FI-42", "handlers that call sys.exit, raise BaseException, keep a thread, want 2 GB, block the loop"
)
async def test_fi_42_in_process(trial: Trial) -> None:
    await handlers_misbehave(trial)


@pytest.mark.chaos("FI-53", "secrets of every kind, failures of every kind, the level debug")
async def test_fi_53(trial: Trial) -> None:
    await secrets_kept(trial)


@pytest.mark.chaos("FI-62", "interim answers, headers, chunk extensions and trailers without end")
async def test_fi_62(trial: Trial) -> None:
    await answers_without_end(trial)


@pytest.mark.chaos("FI-63", "receivers that answer idle connections")
async def test_fi_63(trial: Trial) -> None:
    await stale_answers(trial)
