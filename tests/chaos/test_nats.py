"""NATS that is away, silent, forbidden, flooded or about to leave.

Where a stack here looks once in half a minute only, nothing but a signal can explain a delivery within the bound.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import asyncpg
import nats
import psutil
import pytest
from nats.aio.msg import Msg

from tests.support.eventually import eventually
from tests.support.nats import NatsServer
from tests.support.nats_jwt import Operator
from tests.support.process import RunnerProcess
from tests.support.proxy import Proxy
from tests.support.server import HOST, free_port

from .deployment import Subscriber
from .publisher import CANARY
from .trial import Trial

BACK = 5.0  # seconds until signals arrive again after NATS is back
DEAF = 2.0  # seconds between two looks while nothing is heard
RARE = 30.0  # seconds between two looks otherwise; also the lease, because a worker looks once in a lease
TOLD = 0.25  # seconds from an answer to the delivery, when a signal told of the event
SUBJECT = "mesh.chaos.events.notify"
STATEMENTS = 150.0  # a second and worker, whatever it hears; a third of them are claims that brought nothing

_NOTE = Subscriber("note", "note")


def signals(*servers: str, deaf: float = RARE, options: str = "") -> dict[str, Any]:
    """Return the options of a deployment that depends on NATS for being quick."""
    urls = ", ".join(f"'{url}'" for url in servers)
    nats = f"{{nats: {{servers: [{urls}]{options}}}}}"
    return {"strategies": f"[{{polling: {{every: {RARE:g}s, deaf: {deaf:g}s}}}}, {nats}]", "lease": RARE}


async def started_without_nats(trial: Trial) -> None:
    """Work goes on at the pace of polling, and at that of signals once there are any."""
    server = trial.nats_server()
    server.stop()
    await trial.start(_NOTE, runners=2, **signals(server.url, deaf=DEAF))
    trial.publish(120, rate=20.0, wave=1)
    await trial.reach(120)
    trial.bite("tries to reach NATS", len(trial.deployment.logged("nats unreachable")))
    await trial.drain()
    trial.require(
        max(waits(trial)) < trial.bound(DEAF + 1.5), f"without NATS an event waited {max(waits(trial)):.1f} s"
    )
    await asyncio.to_thread(server.start)
    trial.fault()
    trial.note("NATS starts")
    await connected(trial, 10.0)
    await told(trial, first=120)
    await trial.verify(recovery=DEAF + 1.5)


async def killed_ten_times(trial: Trial) -> None:
    kills = 10
    server = trial.nats_server()
    await trial.start(_NOTE, **signals(server.url))
    await connected(trial, BACK)
    publisher = trial.publish(6000, rate=100.0, wave=2)
    for _ in range(kills):
        await trial.reach(trial.answered() + trial.random.randint(10, 60))
        before = connections(trial)
        server.kill()
        await trial.reach(trial.answered() + trial.random.randint(2, 60))
        await asyncio.to_thread(server.start)
        trial.fault()
        trial.note("NATS killed and back")
        await connected(trial, BACK, since=before)
    trial.bite("connections lost", len(trial.deployment.logged("nats connection ends")))
    publisher.signal(signal.SIGTERM)
    await trial.verify(recovery=BACK)


async def silent_with_unsent_bytes(trial: Trial) -> None:
    """The connected node falls silent while megabytes for it wait; the other node of the cluster is healthy."""
    silent, healthy = cluster(trial, 2, "no_advertise: true")
    healthy.stop()  # for now, so that all connect to the other one
    ballast = Subscriber("ballast", prefix="bulk", sink="{nats: 'bulk.{type}'}", options="timeout: 5s", watched=False)
    async with Proxy(silent.url) as proxy:
        await trial.start(_NOTE, ballast, **signals(proxy.url, healthy.url))
        await connected(trial, BACK)
        await asyncio.to_thread(healthy.start)
        await eventually(lambda: "Route connection created" in healthy.log(), timeout=BACK)
        trial.publish(600, rate=50.0, wave=2, padding=200_000, types=["load", "bulk"])
        await trial.reach(trial.random.randint(60, 120))
        before = connections(trial)
        await proxy.set_mode("blackhole")
        trial.fault()
        waiting = await eventually(lambda: unsent(proxy.port))
        trial.note(f"NATS silent, {waiting} bytes unsent")
        trial.bite("bytes unsent", waiting)
        await connected(trial, 10.0, since=before, server=healthy)
        await trial.drain()
    trial.require(max(waits(trial)) < trial.bound(10.0), f"an event waited {max(waits(trial)):.1f} s")
    await trial.verify(recovery=10.0)


async def nodes_killed(trial: Trial) -> None:
    """One node after the other; only the first is configured, with the password in its URL."""
    nodes = cluster(trial, 3, beside=f"authorization {{ user: me, password: {CANARY} }}")
    login = nodes[0].url.replace("nats://", f"nats://me:{CANARY}@")
    await trial.start(_NOTE, **signals(login, deaf=DEAF))
    await connected(trial, BACK)
    publisher = trial.publish(2000, rate=40.0, wave=2)
    left = list(nodes)
    while len(left) > 1:
        await trial.reach(trial.answered() + 20)
        used = await eventually(lambda: [node for node in left if address(node) in servers(trial).values()])
        victim = trial.random.choice(used)
        left.remove(victim)
        victim.kill()
        trial.note(f"node {victim.port} killed")
        trial.bite("nodes killed")

        def moved() -> bool:
            return {*servers(trial).values()} <= {address(node) for node in left}  # awaited at once

        await trial.require_soon(moved, "all are connected to a node that is left", BACK)
    before = connections(trial)
    left[0].kill()
    trial.note("the last node killed")
    first = trial.answered()
    await trial.reach(first + 100)
    for node in nodes:
        await asyncio.to_thread(node.start)
    trial.fault()
    trial.note("all nodes back")
    await connected(trial, BACK, since=before)
    publisher.signal(signal.SIGTERM)
    await trial.drain()
    trial.require(max(waits(trial)) < trial.bound(DEAF + 1.5), f"an event waited {max(waits(trial)):.1f} s")
    await told(trial, first=2000)
    await trial.verify(recovery=DEAF + 1.5)


async def password_changed(trial: Trial) -> None:
    """On the server first, then in the file that the configuration names, then SIGHUP."""
    server = trial.nats_server(_authorization(CANARY))
    password = trial.directory / "password"
    password.write_text(CANARY)
    login = ", user: me, password: '${file:password}'"
    await trial.start(_NOTE, runners=2, **signals(server.url, deaf=DEAF, options=login))
    await connected(trial, BACK)
    trial.publish(60, rate=40.0, wave=1)
    await trial.reach(60)
    before = connections(trial)
    server.reload(_authorization(f"{CANARY}-new"))
    trial.note("password changed on the server")
    await trial.require_soon(lambda: trial.deployment.logged("nats unreachable"), "the refusal is logged", BACK)
    trial.publish(60, first=60, rate=40.0, wave=1)
    await trial.drain()
    trial.require(max(waits(trial)) < trial.bound(DEAF + 1.5), f"an event waited {max(waits(trial)):.1f} s")
    trial.bite("connections refused", len(trial.deployment.logged("nats unreachable")))
    password.write_text(f"{CANARY}-new")
    for runner in trial.runners:
        runner.signal(signal.SIGHUP)
    trial.note("password changed in the file, SIGHUP")
    await connected(trial, 10.0, since=before)
    await told(trial, first=120)
    await trial.verify()


async def credentials_replaced(trial: Trial) -> None:
    """Read anew at every connection: cut off in the middle, then without a token, then those of another user."""
    operator = Operator()
    server = trial.nats_server(operator.config)
    path = trial.directory / "user.creds"
    good = operator.credentials()
    path.write_text(good)
    await trial.start(_NOTE, runners=2, **signals(server.url, deaf=DEAF, options=", credentials: user.creds"))
    await connected(trial, BACK)
    bad = [good[: trial.random.randrange(100, len(good) - 100)], "no token in here\n", ""]
    for number, text in enumerate(bad):
        path.write_text(text)
        server.kill()
        await asyncio.to_thread(server.start)
        trial.note(f"NATS restarted, credentials of {len(text)} bytes")
        trial.publish(40, first=40 * number, rate=20.0, wave=1)
        await trial.drain()
    trial.bite("tries with bad credentials", len(trial.deployment.logged("nats unreachable")))
    trial.require(max(waits(trial)) < trial.bound(DEAF + 1.5), f"an event waited {max(waits(trial)):.1f} s")
    before = connections(trial)
    path.write_text(operator.credentials())
    await connected(trial, 10.0, since=before)
    await told(trial, first=40 * len(bad))
    await trial.verify()


async def permission_taken_away(trial: Trial) -> None:
    """A worker that may not listen any more looks more often, and says why."""
    server = trial.nats_server(_authorization(CANARY))
    login = server.url.replace("nats://", f"nats://me:{CANARY}@")
    await trial.start(_NOTE, runners=2, **signals(login, deaf=DEAF))
    await connected(trial, BACK)
    publisher = trial.publish(2000, rate=20.0, wave=1)
    await trial.reach(trial.random.randint(10, 30))
    server.reload(_authorization(CANARY, subscribe="other"))
    trial.note("the permission to listen taken away")
    await trial.require_soon(lambda: logged_by_all(trial, "nats is deaf"), "deafness is logged", 10.0)
    trial.bite("deaf workers", len(trial.deployment.logged("nats is deaf")))
    deaf_from = trial.answered()
    await trial.reach(deaf_from + 60)
    server.reload(_authorization(CANARY))
    trial.fault()
    trial.note("the permission given back")
    await trial.require_soon(lambda: logged_by_all(trial, "nats hears again"), "hearing is logged", 10.0)
    publisher.signal(signal.SIGTERM)
    await trial.drain()
    longest = max(waits(trial, deaf_from, deaf_from + 60))
    trial.require(longest < trial.bound(DEAF + 1.5), f"an event waited {longest:.1f} s for a deaf worker")
    await trial.verify(recovery=DEAF + 1.5)


async def permission_to_send_taken_away(trial: Trial) -> None:
    """What the server refused is not delivered, whatever else goes over the connection; it is tried again."""
    server = trial.nats_server(_authorization(CANARY))
    login = server.url.replace("nats://", f"nats://me:{CANARY}@")
    sent = Subscriber(
        "sent", sink="{nats: 'orders.{type}'}", options="concurrency: 32, timeout: 5s, breaker: off", watched=False
    )
    await trial.start(_NOTE, sent, **signals(login, deaf=DEAF))
    await connected(trial, BACK)
    heard: set[str] = set()
    client = await nats.connect(login)

    async def hear(message: Msg) -> None:
        heard.add((message.headers or {})["ce-id"])

    await client.subscribe("orders.>", cb=hear)
    await client.flush()
    await client.flush()  # nats-py sends the ping of a flush past the commands that wait
    publisher = trial.publish(3000, rate=200.0)
    for _ in range(2):
        await trial.reach(trial.answered() + trial.random.randint(50, 200))
        server.reload(_authorization(CANARY, deny='"orders.>"'))
        trial.note("the permission to send taken away")
        await asyncio.sleep(0.5 + trial.random.random())  # the fault itself
        server.reload(_authorization(CANARY))
        trial.fault()
        trial.note("the permission given back")
    await trial.reach(trial.answered() + 100)
    publisher.signal(signal.SIGTERM)
    await trial.drain()
    await client.drain()
    tables = await trial.deployment.tables()
    rows = {id: row for (id, name), row in tables.deliveries.items() if name == "sent"}
    trial.bite("deliveries refused", sum(row.attempts > 1 for row in rows.values()))
    false = sorted(id for id, row in rows.items() if row.state == "delivered" and id not in heard)
    trial.require(not false, f"{len(false)} recorded as delivered that nobody got, {false[:1]} for instance")
    lost = sorted(id for id in tables.recorded if id not in heard)
    trial.require(not lost, f"{len(lost)} lost, {lost[:1]} for instance")
    await trial.verify(recovery=BACK)


async def flooded(trial: Trial, sabotage: str = "") -> None:
    """A hundred thousand junk signals a second, beside real ones."""
    server = trial.nats_server()
    await trial.start(_NOTE, **signals(server.url), sabotage=sabotage)
    await connected(trial, BACK)
    publisher = trial.publish(2000, rate=20.0, wave=1)
    await trial.reach(20)
    for rate in (2_000, 100_000):  # so few that each could cost a claim; so many that they can only be dropped
        statements = await _statements(trial)
        began = time.monotonic()
        junk = await asyncio.to_thread(_flood, server.port, rate)
        await asyncio.sleep(1.2)  # the counter is up to a second late
        cost = (await _statements(trial) - statements) / (time.monotonic() - began) / len(trial.runners)
        trial.note(f"{junk} junk signals, {cost:.0f} statements a second and worker")
        trial.bite("junk signals", junk)
        trial.require(cost < STATEMENTS, f"{cost:.0f} statements a second and worker under {rate} signals a second")
    trial.fault()
    publisher.signal(signal.SIGTERM)
    await trial.require_soon(lambda: all(map(_idle, trial.runners)), "the processors are idle again", BACK)
    if sabotage:
        trial.bite("connections given up", len(trial.deployment.logged("nats connection ends")))
        await eventually(lambda: connections(trial)[trial.runners[0].pid] >= 2)
    await told(trial, first=2000)
    await trial.verify(recovery=BACK)


async def about_to_leave(trial: Trial) -> None:
    """A server that announces its end (lame duck) is left before it cuts."""
    nodes = cluster(trial, 2, beside='lame_duck_duration: "300s", lame_duck_grace_period: "120s"')
    await trial.start(_NOTE, **signals(*[node.url for node in nodes]))
    await connected(trial, BACK)
    publisher = trial.publish(2000, rate=50.0, wave=1)
    await trial.reach(50)
    leaving = next(node for node in nodes if address(node) in servers(trial).values())
    other = next(node for node in nodes if node is not leaving)
    leaving.signal(signal.SIGUSR2)
    trial.note(f"{leaving.port} is about to leave")
    await trial.require_soon(
        lambda: {*servers(trial).values()} == {address(other)}, "all are connected to the other server", BACK
    )
    reasons = [entry["reason"] for entry in trial.deployment.logged("nats connection ends")]
    trial.bite("connections left early", reasons.count("the server is about to shut down"))
    await trial.reach(trial.answered() + 100)
    publisher.signal(signal.SIGTERM)
    await trial.drain()
    trial.require(max(waits(trial)) < trial.bound(1.0), f"an event waited {max(waits(trial)):.2f} s")
    await trial.verify()


# --- what is seen from outside ---------------------------------------------------------------------


def waits(trial: Trial, first: int = 0, end: int = 10**6) -> list[float]:
    """Return the seconds from the answer to the first delivery of each event that was delivered, by number."""
    begun: dict[str, float] = {}
    for seen in trial.deployment.deliveries.read():
        begun.setdefault(seen.id, seen.at)
    answered = {line.id: line.at for line in trial.deployment.published.read() if line.step == "ok"}
    chosen = (id for id in answered if id in begun and first <= int(id.removeprefix("event-")) < end)
    return [max(0.0, begun[id] - answered[id]) for id in chosen]


async def told(trial: Trial, first: int, count: int = 60) -> None:
    """Require that signals arrive: events published one by one are delivered at once."""
    trial.publish(count, first=first, rate=20.0, wave=1)
    await trial.reach(trial.answered() + count)
    await trial.drain()
    usual = median(waits(trial, first))
    trial.note(f"an event waits {usual * 1000:.0f} ms")
    trial.require(usual < trial.bound(TOLD), f"events wait {usual:.2f} s, so no signal arrives")


def connections(trial: Trial) -> dict[int, int]:
    """Return how many connections each runner has made so far."""
    return {each.pid: sum("nats connected" in line for line in each.stderr) for each in trial.deployment.runners}


def servers(trial: Trial) -> dict[int, str]:
    """Return which server each runner has connected to last."""
    entries = {runner: [line for line in runner.stderr if "nats connected" in line] for runner in trial.runners}
    return {runner.pid: lines[-1].split('"server":')[1].split('"')[1] for runner, lines in entries.items() if lines}


async def connected(
    trial: Trial, timeout: float, *, since: dict[int, int] | None = None, server: NatsServer | None = None
) -> None:
    """Require that every runner makes a connection soon: more than it had, and to `server` if one is given."""
    before = since or {}

    def all_are() -> bool:
        made = all(count > before.get(pid, 0) for pid, count in connections(trial).items())
        return made and (server is None or {*servers(trial).values()} == {address(server)})

    await trial.require_soon(all_are, "every worker is connected", timeout)


def logged_by_all(trial: Trial, event: str) -> bool:
    """Return whether every runner has logged the event."""
    return all(any(event in line for line in runner.stderr) for runner in trial.runners)


def address(server: NatsServer) -> str:
    """Return what the log calls a server."""
    return f"{HOST}:{server.port}"


def cluster(trial: Trial, size: int, options: str = "", beside: str = "") -> Sequence[NatsServer]:
    """Start servers that know each other; `options` go into the section of the cluster, the others beside it."""
    routes = [free_port() for _ in range(size)]

    def config(own: int) -> str:
        others = ", ".join(f'"nats://{HOST}:{port}"' for port in routes if port != own)
        return f"cluster {{ name: c, listen: {HOST}:{own}, routes: [{others}]\n{options} }}\n{beside}"

    return [trial.nats_server(config(port)) for port in routes]


async def unsent(port: int) -> int:
    """Return how many bytes for a port of this machine wait in the kernel, on the sender's side, and go on doing so."""
    before = _unsent(port)
    await asyncio.sleep(0.1)  # what the receiver's side of the kernel still takes is not meant
    return min(before, _unsent(port))


def _unsent(port: int) -> int:
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(int(row[4].split(":")[0], 16) for row in rows if int(row[2].split(":")[1], 16) == port)


def _authorization(password: str, subscribe: str = ">", deny: str = "") -> str:
    permissions = f'permissions: {{ publish: {{ allow: ">", deny: [{deny}] }}, subscribe: "{subscribe}" }}'
    return f"authorization {{ users: [ {{ user: me, password: {password}, {permissions} }} ] }}"


def _flood(port: int, rate: int, seconds: float = 2.0) -> int:
    """Publish junk on the subject of the deployment, `rate` times a second, and return how often."""
    piece = f"PUB {SUBJECT} 4\r\njunk\r\n".encode() * (rate // 1000)
    with socket.create_connection((HOST, port)) as connection:
        connection.sendall(b'CONNECT {"verbose": false}\r\n')
        began, sent = time.monotonic(), 0
        while (left := began + seconds - time.monotonic()) > 0:
            connection.sendall(piece)
            sent += rate // 1000
            time.sleep(min(left, max(0.0, began + sent / rate - time.monotonic())))
    return sent


async def _statements(trial: Trial) -> int:
    """Return how many statements, each a transaction, the database has seen."""
    database = await asyncpg.connect(trial.dsn)
    count: int = await database.fetchval("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()")
    await database.close()
    return count


def _idle(runner: RunnerProcess) -> bool:
    return bool(psutil.Process(runner.pid).cpu_percent(0.3) < 20)


@pytest.mark.chaos("FI-11", "NATS away at the start")
async def test_fi_11(trial: Trial) -> None:
    await started_without_nats(trial)


@pytest.mark.chaos("FI-12", "kill -9 of NATS, ten times under load")
async def test_fi_12(trial: Trial) -> None:
    await killed_ten_times(trial)


@pytest.mark.chaos("FI-13", "NATS silent with bytes unsent, another node healthy")
async def test_fi_13(trial: Trial) -> None:
    await silent_with_unsent_bytes(trial)


@pytest.mark.chaos("FI-14", "kill -9 of the nodes of a NATS cluster, one after the other")
async def test_fi_14(trial: Trial) -> None:
    await nodes_killed(trial)


@pytest.mark.chaos("FI-15", "password of NATS changed, SIGHUP")
async def test_fi_15(trial: Trial) -> None:
    await password_changed(trial)


@pytest.mark.chaos("FI-15", "credentials file truncated, without a token, empty, then another user's")
async def test_fi_15_credentials(trial: Trial) -> None:
    await credentials_replaced(trial)


@pytest.mark.chaos("FI-16", "permission to listen taken away, and given back")
async def test_fi_16(trial: Trial) -> None:
    await permission_taken_away(trial)


@pytest.mark.chaos("FI-64", "permission to send to a sink's subjects taken away, and given back")
async def test_fi_64(trial: Trial) -> None:
    await permission_to_send_taken_away(trial)


@pytest.mark.chaos("FI-17", "2,000 and 100,000 junk signals a second")
async def test_fi_17(trial: Trial) -> None:
    await flooded(trial)


@pytest.mark.chaos("FI-17", "junk signals, and a callback of the client that raises")
async def test_fi_17_callback(trial: Trial) -> None:
    await flooded(trial, sabotage="raise-in-callbacks")


@pytest.mark.chaos("FI-18", "a NATS server about to leave (lame duck), another one healthy")
async def test_fi_18(trial: Trial) -> None:
    await about_to_leave(trial)
