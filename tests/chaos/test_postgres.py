"""A PostgreSQL that is restarted, cut off, full or turned against its sessions."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import pairwise
from time import monotonic

import asyncpg
import pytest

from runner.storage.postgres.connector import COMMAND_TIMEOUT
from tests.support.eventually import eventually
from tests.support.postgres import PostgresServer
from tests.support.proxy import Proxy

from .deployment import LEASE, Subscriber
from .trial import Trial

MakePostgres = Callable[..., PostgresServer]
MakeTrial = Callable[..., Trial]

RECOVERED = 5.0  # seconds after the server is back
LISTENING = "[{polling: 60s}, postgres]"  # a poll is no help
HEARD = 2.0  # seconds until a signal has led to a delivery, on a busy machine


async def restarted(trial: Trial, server: PostgresServer, restarts: int = 5) -> None:
    """A fast stop takes nothing back; a crash takes back the claims, which are not synced."""
    await trial.start(Subscriber("work"), Subscriber("hook", hook=0.02))
    trial.publish(2400, rate=200.0)
    forgotten = 0
    for moment in trial.moments(restarts, of=2000):
        await trial.reach(moment)
        mode = trial.random.choice(["fast", "immediate"])
        trial.bite("deliveries running at a restart", await eventually(lambda: _running(trial)))
        began = monotonic()
        await asyncio.to_thread(server.stop, mode)
        await asyncio.to_thread(server.start)
        trial.fault()
        away = monotonic() - began
        forgotten += mode == "immediate" or away > LEASE / 2
        trial.note(f"restarted, {mode}, away for {away:.1f} s")
    await trial.verify(duplicates=trial.held(3 * forgotten), recovery=RECOVERED)


def _running(trial: Trial) -> int:
    return sum(trial.deployment.running(runner) for runner in trial.runners)


async def sessions_ended(trial: Trial, seconds: float = 10.0) -> None:
    """Ten times a second one is ended, whatever it is at; those that listen at least once each."""
    await trial.start(Subscriber("work"), strategies=LISTENING)
    publisher = trial.publish(2400, rate=200.0)
    await trial.reach(trial.random.randint(100, 200))
    admin = await asyncpg.connect(trial.dsn, server_settings={"application_name": "chaos"})
    ends = monotonic() + seconds
    while monotonic() < ends:
        listening = await _sessions(admin, listening=True)
        others = await _sessions(admin, listening=False)
        victims = listening if trial.random.random() < 0.3 else others
        if victims and await admin.fetchval("SELECT pg_terminate_backend($1)", trial.random.choice(victims)):
            trial.bite("sessions ended")
            trial.bite("listening sessions ended", int(victims is listening))
        await asyncio.sleep(0.1)
    trial.fault()
    trial.note(f"sessions ended for {seconds:g} s")

    async def all_listen() -> bool:
        return len(await _sessions(admin, listening=True)) >= len(trial.runners)

    await trial.require_soon(all_listen, "every runner listens again", RECOVERED)
    await trial.drain(20)
    trial.require(publisher.returncode == 0, "the publisher did not end well")
    await admin.close()
    # Nothing else tells anybody of these: a signal has to.
    count = 5
    trial.publish(count, first=2400, rate=5.0, wave=1)
    await trial.reach(2400 + count)
    await trial.require_soon(trial.deployment.idle, "signals are heard again", HEARD)
    await trial.verify(duplicates=trial.held(3), recovery=RECOVERED)


async def _sessions(admin: asyncpg.Connection, *, listening: bool) -> list[int]:
    """Return the backends of the product in this database, either those that listen or the others."""
    rows = await admin.fetch(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'runner'"
        " AND (query LIKE 'LISTEN %' OR query LIKE 'NOTIFY %' OR query LIKE '%pg_listening_channels%') = $1"
        " ORDER BY pid",
        listening,
    )
    return [row[0] for row in rows]


async def cut_off(trial: Trial, seconds: float = 20.0) -> None:
    """Nothing arrives and nothing is closed; what was on its way arrives at the end."""
    async with Proxy(trial.dsn) as proxy:
        strategies = "[{polling: 1s}, postgres]"
        await trial.start(
            Subscriber("work"), runner_dsn=proxy.url, publisher_dsn=proxy.url, strategies=strategies, runners=3
        )
        trial.publish(1500, rate=200.0)
        await trial.reach(trial.random.randint(200, 600))
        trial.bite("connections cut off", proxy.connections)
        await proxy.set_mode("blackhole")
        trial.note("nothing arrives")
        ends = monotonic() + seconds
        await asyncio.sleep(seconds / 2)
        leaver, began = trial.runners[0], monotonic()
        code = await asyncio.to_thread(leaver.stop)
        trial.note(f"SIGTERM of {leaver.pid}, exit {code} after {monotonic() - began:.1f} s")
        trial.require(code == 0, f"the exit code of a stop is {code}")
        trial.require(
            monotonic() - began < trial.bound(COMMAND_TIMEOUT + 8.0), f"a stop took {monotonic() - began:.1f} s"
        )
        await asyncio.sleep(max(0.0, ends - monotonic()))
        await proxy.set_mode("pass")
        trial.fault()
        trial.note("everything arrives")
        await trial.drain()
        longest = _longest_call(trial)
        trial.note(f"the longest publish took {longest:.1f} s")
        trial.bite("publishes without an answer", _unknown(trial))
        trial.require(longest <= trial.bound(COMMAND_TIMEOUT + 3.0), f"a publish took {longest:.1f} s")
        # A claim that arrives at last, and whose process has given it up, is over with its lease.
        await trial.verify(duplicates=trial.held(3), recovery=LEASE + RECOVERED)


def _unknown(trial: Trial) -> int:
    return sum(line.step == "unknown" for line in trial.deployment.published.read())


def _longest_call(trial: Trial) -> float:
    """Return the longest time between two steps of one event; in seconds."""
    steps: dict[str, list[float]] = defaultdict(list)
    for line in trial.deployment.published.read():
        steps[line.id].append(line.at)
    return max(max((b - a for a, b in pairwise(each)), default=0.0) for each in steps.values())


async def answers_dropped(trial: Trial) -> None:
    """The server commits, and whoever asked it to does not hear so."""
    count = 1800
    async with Proxy(trial.dsn) as runners, Proxy(trial.dsn) as publishers:
        await trial.start(
            Subscriber("work"), Subscriber("toil", "toil", prefix="slow."),
            runner_dsn=runners.url, publisher_dsn=publishers.url,
        )  # fmt: skip
        trial.publish(count, rate=100.0, types=["slow.load", *["load"] * 9])
        admin = await asyncpg.connect(trial.dsn)
        late = 0
        acts = trial.random.sample(["publish", "claim", "settle"] * 2, 6)
        for moment, act in zip(trial.moments(6, of=count * 2 // 3), acts, strict=True):
            await trial.reach(moment)
            began = monotonic()
            proxy = publishers if act == "publish" else runners
            hits = await _drop_answers(trial, admin, proxy, act)
            trial.bite(f"{act} without an answer", hits)
            late += monotonic() - began > LEASE / 2
            trial.note(f"the answer to a {act} was dropped")
        await admin.close()
        await trial.drain()
        repeated = sum(line.duplicate for line in trial.deployment.published.read())
        trial.bite("publishes that were recorded without an answer", repeated)
        await trial.verify(
            duplicates=trial.held(3 * late), recovery=LEASE + RECOVERED
        )  # a lost claim is over with its lease


async def _drop_answers(trial: Trial, admin: asyncpg.Connection, proxy: Proxy, act: str) -> int:
    """Drop answers until one to `act` is among them, and return whether it was (1): they may be at something else."""
    for _ in range(5):
        await _at_work(trial, act)
        if act == "settle":
            await eventually(partial(_about_to_settle, admin), timeout=LEASE + RECOVERED)
        await proxy.set_mode("mute")
        committed = await _evidence(trial, admin, act)
        try:
            await eventually(committed, timeout=1.0)
        except AssertionError:
            continue
        else:
            return 1
        finally:
            await proxy.set_mode("reset")
            await proxy.set_mode("pass")
            trial.fault()
    return 0


async def _about_to_settle(admin: asyncpg.Connection) -> bool:
    """Whether a few deliveries are leased one by one: mostly they run, and one ends within the second each takes."""
    leased = "SELECT count(*) FROM deliveries WHERE state = 'leased' AND due_at > clock_timestamp()"
    return int(await admin.fetchval(leased)) >= 3


async def _at_work(trial: Trial, act: str) -> None:
    """Return once anything has got through: who has not recovered from the last attempt has nothing to show."""

    def through() -> int:
        return trial.answered() if act == "publish" else len(trial.deployment.deliveries.read())

    before = through()
    with contextlib.suppress(AssertionError):  # all is done
        await eventually(lambda: through() > before, timeout=LEASE + RECOVERED)


async def _evidence(trial: Trial, admin: asyncpg.Connection, act: str) -> Callable[[], Awaitable[bool]]:
    """Return what tells that the act has been committed since now."""
    if act == "claim":

        async def claimed() -> bool:
            rows = await admin.fetch(
                "SELECT e.id FROM dispatch d JOIN events e ON e.seq = d.event_seq WHERE d.lease_until > now()"
            )
            begun = {each.id for each in trial.deployment.deliveries.read()}
            return any(row[0] not in begun for row in rows)

        return claimed
    # A publish that is repeated writes its row again.
    of = "count(*) FROM deliveries WHERE state = 'delivered'"
    if act == "publish":
        of = "sum(xmin::text::bigint) FROM events"
    before = await admin.fetchval(f"SELECT {of}")

    async def committed() -> bool:
        return bool(await admin.fetchval(f"SELECT {of}") != before)

    return committed


async def slots_exhausted(trial: Trial, server: PostgresServer, seconds: float = 8.0) -> None:
    """Somebody else takes every connection there is, those of the runners included."""
    await trial.start(Subscriber("work"))
    trial.publish(1500, rate=200.0)
    await trial.reach(trial.random.randint(100, 500))
    admin = await asyncpg.connect(trial.dsn, server_settings={"application_name": "chaos"})
    taken = [admin]
    ends = monotonic() + seconds
    while monotonic() < ends:
        for pid in [*await _sessions(admin, listening=False), *await _sessions(admin, listening=True)]:
            await admin.execute("SELECT pg_terminate_backend($1)", pid)
        with contextlib.suppress(asyncpg.TooManyConnectionsError):
            while True:
                taken.append(await asyncpg.connect(trial.dsn, server_settings={"application_name": "chaos"}))
        await asyncio.sleep(0.05)
    trial.bite("connections taken by somebody else", len(taken))
    refused = server.log().count("too many clients already")
    trial.bite("connections refused", refused)
    await asyncio.gather(*[each.close() for each in taken])
    trial.fault()
    trial.note(f"all {len(taken)} connections taken for {seconds:g} s")
    await trial.drain()
    longest = _longest_call(trial)
    trial.bite("publishes without an answer", _unknown(trial))
    trial.require(longest < trial.bound(3.0), f"a publish without a free connection took {longest:.1f} s")
    await trial.verify(duplicates=trial.held(3), recovery=RECOVERED)


@pytest.mark.chaos_short
@pytest.mark.chaos_postgres
@pytest.mark.chaos("FI-19", "PostgreSQL restarted under load five times, some of them crashes")
async def test_fi_19(make_trial: MakeTrial, make_postgres: MakePostgres) -> None:
    server = make_postgres()
    await restarted(make_trial(server), server)


@pytest.mark.chaos_postgres
@pytest.mark.chaos("FI-20", "pg_terminate_backend of any session, ten times a second")
async def test_fi_20(trial: Trial) -> None:
    await sessions_ended(trial)


@pytest.mark.chaos_postgres
@pytest.mark.chaos("FI-21", "PostgreSQL silent for 20 s")
async def test_fi_21(trial: Trial) -> None:
    await cut_off(trial)


@pytest.mark.chaos_postgres
@pytest.mark.chaos("FI-25", "answers to publish, claim and settle dropped after the commit")
async def test_fi_25(trial: Trial) -> None:
    await answers_dropped(trial)


@pytest.mark.chaos_postgres
@pytest.mark.chaos("FI-27", "every connection slot taken by somebody else")
async def test_fi_27(make_trial: MakeTrial, make_postgres: MakePostgres) -> None:
    server = make_postgres(settings={"max_connections": "40"})
    await slots_exhausted(make_trial(server), server)
