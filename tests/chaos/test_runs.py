"""Runs, which record many deliveries in a row: written late, beside rows of an older version, and under a replay."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import asyncpg
import psutil
import pytest

from tests.support.eventually import eventually
from tests.support.process import RunnerProcess

from .deployment import LEASE, POLL, Subscriber, thaw
from .look import look
from .trial import Trial

TAKEN_OVER = LEASE + 1.0  # seconds until others have delivered what a dead worker held

# Four make a run of every event.
_FOUR = tuple(Subscriber(f"note-{n}", "note") for n in range(4))
_KILLS = 2

# Deliveries on record by what records them: rows of `deliveries` that are delivered, and runs.
_RECORDS = "SELECT (SELECT count(*) FROM deliveries WHERE state = 'delivered'), (SELECT count(*) FROM runs)"

_IN_RUNS = """
SELECT count(*) FROM delivery_states d JOIN subscriptions s ON s.id = d.subscription_id
WHERE s.name = 'work' AND NOT EXISTS (
    SELECT 1 FROM deliveries r WHERE r.event_seq = d.event_seq AND r.subscription_id = d.subscription_id)
"""


async def stopped_before_its_record(trial: Trial) -> None:
    """A worker stands still between acceptance and record, until others have delivered and recorded the same."""
    await trial.start(*_FOUR, sabotage="stop-before-settle")
    trial.publish(60, rate=100.0, wave=20)
    victim = await eventually(lambda: next(filter(_stands_still, trial.runners), None))
    trial.fault()
    trial.note(f"{victim.pid} stands still before its record")
    trial.bite("stopped before a record")
    await trial.drain(TAKEN_OVER + 5.0)
    thaw(victim)
    await trial.require_soon(
        lambda: trial.deployment.logged("late settlements dropped"), "a late record is dropped", POLL + 4.0
    )
    trial.publish(30, first=60)
    await trial.verify(duplicates=trial.held(), recovery=TAKEN_OVER + POLL)


def _stands_still(runner: RunnerProcess) -> bool:
    return bool(psutil.Process(runner.pid).status() == psutil.STATUS_STOPPED)


async def two_versions(trial: Trial, count: int = 300) -> None:
    """Half of the processes record in rows, as the version before did; none is hurt at first, then one of each kind."""
    subscribers = (*_FOUR, Subscriber("odd", "note", prefix="odd."), Subscriber("work"))
    types = ["load", "odd.load", "load"]
    deployment = await trial.start(*subscribers, runners=2, sabotage="record-rows")
    deployment.sabotage = trial.outcome.mutant
    await deployment.start(2)
    before, after = deployment.runners[:2], deployment.runners[2:]
    trial.publish(count, rate=200.0, wave=30, types=types)
    await trial.verify()
    [(rows, runs)] = await _ask(trial, _RECORDS)
    trial.bite("deliveries on record in rows", rows)
    trial.bite("runs", runs)
    trial.publish(2 * count, first=count, rate=100.0, wave=10, types=types)
    await trial.reach(count + count // 4)
    for kind in (before, after):
        await trial.kill(await trial.busy(among=kind))
        trial.fault()
    await deployment.start()
    await trial.verify(duplicates=trial.held(_KILLS), recovery=TAKEN_OVER)


async def replayed(trial: Trial, count: int = 400) -> None:
    """What runs record is delivered again, by order of a person, and a worker is killed that does it."""
    await trial.start(*_FOUR, Subscriber("work", options="concurrency: 4, timeout: 120s"))
    trial.publish(count, rate=100.0, wave=4)
    await trial.drain()
    [(recorded,)] = await _ask(trial, _IN_RUNS)
    trial.bite("deliveries that runs record", recorded)
    admin = await asyncpg.connect(trial.dsn)
    await admin.execute("DROP TRIGGER chaos_note ON public.deliveries; DROP TRIGGER chaos_again ON public.deliveries")
    await admin.close()
    replay = trial.deployment.command("events", "replay", "-c", "bus.yaml", "--subscription", "work")
    await trial.kill(await trial.busy())
    trial.fault()
    await trial.deployment.start()
    trial.require(await asyncio.to_thread(replay.wait, 30.0) == 0, f"the replay failed: {replay.report()}")
    await trial.drain()
    seen = [each for each in trial.deployment.deliveries.read() if each.subscription == "work"]
    times = Counter(each.id for each in seen if each.step == "accepted")
    trial.require(len(times) == count and min(times.values()) > 1, "something was not delivered again")
    trial.bite("replays that were begun twice", sum(each.attempt > 1 for each in seen))
    await trial.verify(duplicates=count + trial.held())


async def _ask(trial: Trial, query: str) -> Sequence[Sequence[int]]:
    async with look(trial.dsn) as ask:
        return [tuple(row) for row in await ask(query)]


@pytest.mark.chaos_postgres
@pytest.mark.chaos("FI-66", "SIGSTOP of a worker between acceptance and a record of many deliveries")
async def test_fi_66(trial: Trial) -> None:
    await stopped_before_its_record(trial)


@pytest.mark.chaos("FI-67", "half of the processes of the version without runs; kill -9 of one of each")
async def test_fi_67(trial: Trial) -> None:
    await two_versions(trial)


@pytest.mark.chaos("FI-67", "half of the processes of the version without runs, on SQLite; kill -9 of one of each")
async def test_fi_67_sqlite(make_trial: Callable[..., Trial], tmp_path: Path) -> None:
    await two_versions(make_trial(tmp_path / "runner.db"), count=200)


@pytest.mark.chaos_postgres
@pytest.mark.chaos("FI-68", "replay of what runs record, and kill -9 of a worker that delivers it again")
async def test_fi_68(trial: Trial) -> None:
    await replayed(trial)
