"""Workers that are killed, paused and stopped."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections import Counter
from time import monotonic

import asyncpg
import psutil
import pytest

from tests.support.eventually import eventually
from tests.support.process import RunnerProcess
from tests.support.proxy import Mode, Proxy

from .deployment import LEASE, POLL, Subscriber, thaw
from .handlers import PATIENCE
from .trial import Trial

TAKEN_OVER = LEASE + 1.0  # seconds until others have delivered what a dead worker held
GRACE = 5.0  # seconds, unless a case says otherwise
LEAVING = 3.0  # seconds that a stop may take beyond its grace
IDLE_IN_TRANSACTION = 10.0  # seconds after which PostgreSQL ends a transaction of ours that stands still


async def control(trial: Trial, count: int = 5000, patience: float = 30.0) -> None:
    await trial.start(
        Subscriber("note", "note"),
        Subscriber("hook", hook=0.0),
        Subscriber("patient", "endure", prefix="slow."),
        Subscriber("clumsy", "stumble", prefix="slow."),
    )
    trial.publish(count, rate=600.0, types=["slow.load", *["load"] * 249])
    await trial.drain(patience)
    workers = {runner.pid for runner in trial.deployment.runners}
    seen = trial.deployment.deliveries.read()
    shares = Counter(each.pid for each in seen if each.pid in workers and each.step == "accepted")
    trial.require(len(shares) == 3 and min(shares.values()) > 0.05 * shares.total(), f"starved: {shares}")
    patient = [each for each in seen if each.subscription == "patient" and each.step == "accepted"]
    trial.bite("deliveries longer than a lease", len(patient))
    trial.bite("attempts that failed", sum(each.step == "failed" for each in seen))
    await trial.verify(timeout=1.0)


async def killed_again_and_again(trial: Trial) -> None:
    kills = 5
    await trial.start(Subscriber("work"), Subscriber("hook", hook=0.02))
    for round in range(kills):
        await _under_load(trial, round)
        await trial.kill(await trial.busy())  # one that has just been started may find no work
        trial.fault()
        await trial.deployment.start()
    await _under_load(trial, kills)
    await trial.verify(duplicates=trial.held(kills), recovery=TAKEN_OVER)


async def _under_load(trial: Trial, round: int, count: int = 400) -> None:
    """Publish anew for each fault: on a busy machine a process takes longer to start than events last."""
    trial.publish(count, first=round * count, rate=200.0)
    await trial.reach(round * count + trial.random.randint(50, count // 2))


async def all_killed_at_once(trial: Trial) -> None:
    """Nothing is published after the kill: no signal tells those that start of what the dead ones held."""
    lease = round(trial.bound(3 * LEASE))  # it must outlast the start of the new ones, or their first look finds all
    await trial.start(Subscriber("work"), Subscriber("toil", "toil", prefix="slow."), lease=lease)
    count = trial.random.randint(300, 600)
    trial.publish(count, types=["slow.load", *["load"] * 19])
    await trial.reach(count)
    await trial.kill(*trial.runners)
    await trial.deployment.start(3)
    trial.fault()
    trial.bite("leases that run on after the start of others", await _leases(trial))
    await trial.verify(duplicates=trial.held(3), recovery=lease + 2.0)


async def _leases(trial: Trial) -> int:
    """Return how many events and deliveries are leased, and go on being so for a second at least."""
    connection = await asyncpg.connect(trial.dsn)
    try:
        count: int = await connection.fetchval(
            "SELECT (SELECT count(*) FROM dispatch WHERE lease_until > clock_timestamp() + interval '1 s') + "
            "(SELECT count(*) FROM deliveries WHERE state = 'leased' AND due_at > clock_timestamp() + interval '1 s')"
        )
        return count
    finally:
        await connection.close()


async def killed_before_the_settlement(trial: Trial) -> None:
    await trial.start(Subscriber("note", "note"), runners=2, sabotage="die-before-settle")
    trial.publish(1)
    await eventually(lambda: len(trial.runners) == 1)
    trial.note("a worker killed itself between acceptance and settlement")
    trial.bite("killed between acceptance and settlement")

    def attempts() -> list[int]:
        return [each.attempt for each in trial.deployment.deliveries.read() if each.step == "accepted"]

    await trial.require_soon(lambda: len(attempts()) == 2, "another worker has delivered it again", TAKEN_OVER)
    trial.require(attempts() == [1, 2], f"accepted at the attempts {attempts()}, expected 1 and 2")
    trial.publish(50, first=1)
    await trial.verify(duplicates=1)


async def publisher_without_an_answer(trial: Trial) -> None:
    """Answers are dropped, nothing arrives, the publisher dies; what is not answered is published again."""
    count = 1200
    async with Proxy(trial.dsn) as proxy:
        await trial.start(Subscriber("note", "note"), publisher_dsn=proxy.url)
        publisher = trial.publish(count)
        faults = trial.random.sample(["mute", "blackhole", "kill"] * 3, 9)
        for moment, fault in zip(trial.moments(9, of=count), faults, strict=True):
            await trial.reach(moment)
            if fault == "kill":
                publisher.kill()
                publisher = trial.publish(count)
            else:
                await _cut_off(trial, proxy, "mute" if fault == "mute" else "blackhole")
            trial.note({"mute": "answers dropped", "blackhole": "nothing arrives", "kill": "publisher killed"}[fault])
        await trial.drain()
    lines = trial.deployment.published.read()
    trial.bite("publishes without an answer", sum(line.step == "unknown" for line in lines))
    trial.bite("publishes that were recorded without an answer", sum(line.duplicate for line in lines))
    await trial.verify()


async def _cut_off(trial: Trial, proxy: Proxy, mode: Mode) -> None:
    """Let the publisher's requests, or the answers to them, vanish; then reset its connections."""
    dropped = proxy.dropped
    await proxy.set_mode(mode)
    with contextlib.suppress(AssertionError):  # then the bites tell that nothing was lost
        await eventually(lambda: proxy.dropped > dropped if mode == "mute" else _unanswered(trial) > 0, timeout=3)
    await proxy.set_mode("reset")
    await proxy.set_mode("pass")


def _unanswered(trial: Trial) -> int:
    steps = Counter(line.step for line in trial.deployment.published.read())
    return steps["invoke"] - steps["ok"] - steps["fail"]


async def paused(trial: Trial) -> None:
    await trial.start(Subscriber("toil", "toil"), Subscriber("note", "note"))
    trial.publish(120, rate=11.0, wave=3)
    await trial.reach(trial.random.randint(15, 30))
    victim = trial.random.choice(trial.runners)
    running = await trial.catch(victim)
    trial.fault()
    trial.note(f"SIGSTOP of {victim.pid}, {running} deliveries running")
    trial.bite("deliveries running at the pause", running)
    await asyncio.sleep(3 * LEASE)  # the fault itself
    before = _begun_by(trial, victim)
    trial.publish(120, first=120, rate=1000.0, wave=40)  # more than the others can hold
    await trial.reach(200)
    thaw(victim)
    trial.note("SIGCONT")
    await trial.require_soon(lambda: _begun_by(trial, victim) > before, "the paused worker works again", POLL + 1.0)
    await trial.drain()
    stale = sum(entry["count"] for entry in trial.deployment.logged("late settlements dropped"))
    trial.bite("stale settlements dropped", stale + len(trial.deployment.logged("lease lost")))
    await trial.verify(duplicates=trial.held(), recovery=TAKEN_OVER + 1.0)


def _begun_by(trial: Trial, runner: RunnerProcess) -> int:
    return sum(each.pid == runner.pid and each.step == "begun" for each in trial.deployment.deliveries.read())


async def stopped_in_a_transaction(trial: Trial) -> None:
    await trial.start(Subscriber("toil", "toil"), sabotage="stop-in-settle")
    trial.publish(60, rate=20.0, wave=2)
    victim = await eventually(lambda: next(filter(_stands_still, trial.runners), None))
    trial.fault()
    trial.note(f"{victim.pid} stands still inside a transaction")
    trial.bite("stopped inside a transaction")
    await trial.drain(IDLE_IN_TRANSACTION + LEASE + 5.0)
    thaw(victim)
    trial.publish(30, first=60, rate=20.0)
    await trial.verify(duplicates=trial.held(), recovery=IDLE_IN_TRANSACTION + POLL + 2.0)


def _stands_still(runner: RunnerProcess) -> bool:
    return bool(psutil.Process(runner.pid).status() == psutil.STATUS_STOPPED)


async def stopped_under_load(trial: Trial) -> None:
    await trial.start(Subscriber("toil", "toil"), Subscriber("note", "note"), grace=GRACE)
    trial.publish(200, rate=20.0, wave=2)
    await trial.reach(trial.random.randint(30, 80))
    victim = await trial.busy()
    await _stop(trial, victim, GRACE)
    trial.require(trial.deployment.running(victim) == 0, "a delivery was cut off by a stop within its grace")
    await trial.drain()
    for runner in trial.runners:
        runner.signal(signal.SIGTERM)
        trial.require(await asyncio.to_thread(runner.wait) == 0, "the exit code of a stop is not 0")
    await trial.verify()


async def _stop(trial: Trial, victim: RunnerProcess, limit: float) -> None:
    """Stop a runner that delivers, the polite way, and hold its exit against `limit` seconds."""
    await eventually(lambda: trial.deployment.running(victim) > 0)
    running = trial.deployment.running(victim)
    began = monotonic()
    victim.signal(signal.SIGTERM)
    code = await asyncio.to_thread(victim.wait)
    took = monotonic() - began
    trial.note(f"SIGTERM of {victim.pid}, {running} deliveries running, exit {code} after {took:.2f} s")
    trial.bite("deliveries running at a stop", running)
    trial.require(code == 0, f"the exit code of a stop is {code}")
    trial.require(took <= trial.bound(limit), f"a stop took {took:.2f} s, expected at most {limit:g}")


async def stopped_beyond_the_grace(trial: Trial) -> None:
    await trial.start(Subscriber("patient", "endure"), grace=1.0)
    trial.publish(9, rate=100.0, wave=3)
    await trial.reach(9)
    victim = await trial.busy()
    await _stop(trial, victim, 1.0 + LEAVING)
    cut = {each.id for each in trial.deployment.deliveries.read() if each.pid == victim.pid}
    trial.bite("deliveries given back", len(cut))

    def elsewhere() -> bool:
        seen = trial.deployment.deliveries.read()
        return cut == {each.id for each in seen if each.id in cut and each.pid != victim.pid}

    await trial.require_soon(elsewhere, "what was given back is delivered elsewhere", 2.0)
    await trial.verify(duplicates=len(cut))


async def stopped_twice(trial: Trial) -> None:
    await trial.start(Subscriber("patient", "endure"), grace=25.0)
    trial.publish(9, rate=100.0, wave=3)
    await trial.reach(9)
    victim = await trial.busy()
    trial.bite("deliveries running at a stop", trial.deployment.running(victim))
    victim.signal(signal.SIGTERM)
    await asyncio.to_thread(victim.wait_for_line, "stopping")
    began = monotonic()
    victim.signal(signal.SIGTERM)
    code = await asyncio.to_thread(victim.wait)
    trial.fault()
    trial.note(f"two SIGTERMs, exit {code} after {monotonic() - began:.2f} s")
    trial.require(code == 130, f"the exit code is {code}, expected 130")
    trial.require(monotonic() - began < trial.bound(1.0), "the second signal did not end the process at once")
    await trial.verify(duplicates=trial.held(), recovery=TAKEN_OVER + PATIENCE)


async def stopped_before_it_started(trial: Trial, mode: Mode) -> None:
    """Neither the database nor NATS answers."""
    async with Proxy(trial.dsn) as database, Proxy(trial.nats or "") as nats:
        await database.set_mode(mode)
        await nats.set_mode(mode)
        strategies = f"[{{polling: 1s}}, {{nats: '{nats.url}'}}]"
        deployment = trial.deploy(Subscriber("note", "note"), runner_dsn=database.url, strategies=strategies)
        runner = deployment.launch()
        await asyncio.to_thread(runner.wait_for_line, "built", 60.0)
        await eventually(lambda: mode == "refuse" or database.connections > 0)
        began = monotonic()
        runner.signal(signal.SIGTERM)
        code = await asyncio.to_thread(runner.wait)
        trial.bite("stopped before it had started", "stopped before it had started" in "".join(runner.stderr))
    trial.require(code == 0, f"the exit code is {code}, expected 0")
    trial.require(monotonic() - began <= trial.bound(LEAVING), f"the stop took {monotonic() - began:.2f} s")
    trial.conclude()


async def restarted_one_by_one(trial: Trial) -> None:
    await trial.start(Subscriber("work"), Subscriber("hook", hook=0.02))
    for round, victim in enumerate(trial.runners):
        await _under_load(trial, round)
        await _stop(trial, victim, GRACE)
        await trial.deployment.start()
    await _under_load(trial, 3)
    await trial.verify()


@pytest.mark.chaos_short
@pytest.mark.chaos("FI-00", "nothing: a function, a webhook, a handler longer than a lease")
async def test_fi_00(trial: Trial) -> None:
    await control(trial)


@pytest.mark.chaos_short
@pytest.mark.chaos_postgres
@pytest.mark.chaos("FI-01", "kill -9 of a worker that delivers, five times")
async def test_fi_01(trial: Trial) -> None:
    await killed_again_and_again(trial)


@pytest.mark.chaos("FI-02", "kill -9 of all workers at once, and no signal after it")
async def test_fi_02(trial: Trial) -> None:
    await all_killed_at_once(trial)


@pytest.mark.chaos_short
@pytest.mark.chaos("FI-03", "kill -9 between the acceptance of a delivery and its settlement")
async def test_fi_03(trial: Trial) -> None:
    await killed_before_the_settlement(trial)


@pytest.mark.chaos_short
@pytest.mark.chaos_postgres
@pytest.mark.chaos("FI-04", "publisher killed, its requests and answers lost; it publishes again")
async def test_fi_04(trial: Trial) -> None:
    await publisher_without_an_answer(trial)


@pytest.mark.chaos_postgres
@pytest.mark.chaos("FI-05", "SIGSTOP of a worker for three leases")
async def test_fi_05(trial: Trial) -> None:
    await paused(trial)


@pytest.mark.chaos_postgres
@pytest.mark.chaos("FI-06", "SIGSTOP of a worker inside a transaction")
async def test_fi_06(trial: Trial) -> None:
    await stopped_in_a_transaction(trial)


@pytest.mark.chaos("FI-07", "SIGTERM under load, handlers of a second")
async def test_fi_07(trial: Trial) -> None:
    await stopped_under_load(trial)


@pytest.mark.chaos_short
@pytest.mark.chaos("FI-08", "SIGTERM, handlers longer than the grace")
async def test_fi_08(trial: Trial) -> None:
    await stopped_beyond_the_grace(trial)


@pytest.mark.chaos("FI-09", "SIGTERM twice")
async def test_fi_09(trial: Trial) -> None:
    await stopped_twice(trial)


@pytest.mark.parametrize(
    "mode",
    [
        pytest.param("refuse", marks=pytest.mark.chaos("FI-09", "SIGTERM before PostgreSQL and NATS are up")),
        pytest.param("blackhole", marks=pytest.mark.chaos("FI-09", "SIGTERM while PostgreSQL and NATS are silent")),
    ],
)
async def test_fi_09_before_the_start(trial: Trial, mode: Mode) -> None:
    await stopped_before_it_started(trial, mode)


@pytest.mark.chaos("FI-10", "rolling restart of three workers under load")
async def test_fi_10(trial: Trial) -> None:
    await restarted_one_by_one(trial)
