"""What every strategy, and every stack of them, has to do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from runner.strategies.base import NotifyStrategy
from tests.contract.strategies import Bench, Ear, Listen, open_bench
from tests.support.eventually import eventually

NETWORKED = ["nats", "postgres", "[polling, nats]", "[polling, postgres]", "[polling, nats, postgres]"]
PUSHING = ["sqlite", "[polling, sqlite]", *NETWORKED]
ALL = ["polling", "[polling]", *PUSHING]

# Most run on everything; what follows says which of them reach other processes, and over a network.
pushing = pytest.mark.parametrize("bench", PUSHING, indirect=True)
networked = pytest.mark.parametrize("bench", NETWORKED, indirect=True)

RECOVERY = 30.0  # seconds until everything is as before
DEAFNESS = 30.0  # seconds until a silent peer is noticed


@pytest.fixture(params=ALL)
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    async with open_bench(request.param, request) as made:
        yield made


@pytest.fixture
async def listen(bench: Bench) -> AsyncIterator[Listen]:
    """Start instances, and stop them at the end."""
    ears: list[Ear] = []

    async def start(strategy: NotifyStrategy | None = None, *, deployment: str = "one", wait: bool = True) -> Ear:
        ear = Ear(strategy or bench.make(deployment))
        ears.append(ear)
        await ear.strategy.start(ear.wake)
        if wait:
            await eventually(lambda: ear.hears, timeout=RECOVERY)
        return ear

    yield start
    for ear in ears:
        await ear.strategy.stop()


async def test_stops_without_start_and_twice(bench: Bench) -> None:
    strategy = bench.make()
    await strategy.stop()
    await strategy.start(lambda: None)
    await strategy.stop()
    await strategy.stop()


async def test_stop_leaves_no_task(bench: Bench) -> None:
    before = asyncio.all_tasks()
    strategy = bench.make()
    await strategy.start(lambda: None)
    await strategy.stop()
    left = {task.get_name() for task in asyncio.all_tasks() - before}
    assert not {name for name in left if "signaller" in name or "probe" in name or "listener" in name}


@pushing
async def test_signal_of_another_instance_wakes(bench: Bench, listen: Listen) -> None:
    ear, other = await listen(), await listen()
    before = ear.wakes
    await bench.signal(other.strategy)
    await eventually(lambda: ear.wakes > before)


async def test_wakes_once_for_each_way_when_it_begins_to_hear(bench: Bench, listen: Listen) -> None:
    ear = await listen()
    assert ear.wakes == bench.pushes
    other = await listen()
    await bench.signal(other.strategy)
    await eventually(lambda: ear.wakes >= 2 * bench.pushes)
    assert ear.wakes == 2 * bench.pushes


@pushing
async def test_deployments_do_not_wake_each_other(bench: Bench, listen: Listen) -> None:
    ear, sibling, stranger = await listen(), await listen(), await listen(deployment="two")
    before, own = ear.wakes, stranger.wakes
    other_stranger = await listen(deployment="two")
    await bench.signal(other_stranger.strategy, "two")
    await eventually(lambda: stranger.wakes >= own + bench.pushes)
    assert ear.wakes == before
    await bench.signal(sibling.strategy)
    await eventually(lambda: ear.wakes >= before + bench.pushes)
    assert stranger.wakes == own + bench.pushes


@networked
async def test_burst_is_coalesced_and_the_last_signal_arrives(bench: Bench, listen: Listen) -> None:
    ear, other = await listen(), await listen()
    before = ear.wakes
    for number in range(1000):
        await other.strategy.notify(f"e{number}")
        await asyncio.sleep(0)
    at_last = ear.wakes
    await eventually(lambda: ear.wakes > at_last)
    assert ear.wakes - before <= 100 * bench.pushes


@pushing
async def test_works_again_after_stop(bench: Bench, listen: Listen) -> None:
    strategy = bench.make()
    await strategy.start(lambda: None)
    await strategy.stop()
    ear, other = await listen(strategy), await listen()
    before = ear.wakes
    await bench.signal(other.strategy)
    await eventually(lambda: ear.wakes > before)


@pushing
async def test_silent_after_stop(bench: Bench, listen: Listen) -> None:
    silent, ear, other = await listen(), await listen(), await listen()
    await silent.strategy.stop()
    before, heard = silent.wakes, ear.wakes
    await bench.signal(other.strategy)
    await eventually(lambda: ear.wakes >= heard + bench.pushes)
    assert silent.wakes == before


@pytest.mark.parametrize("mode", ["refuse", "blackhole"])
@networked
async def test_start_notify_and_stop_do_not_wait_for_the_peer(bench: Bench, listen: Listen, mode: str) -> None:
    await bench.cut(mode)  # type: ignore[arg-type]  # one of the modes
    began = time.monotonic()
    ear = await listen(wait=False)
    for number in range(100):
        await ear.strategy.notify(f"e{number}")
    assert time.monotonic() - began < 5.0
    assert ear.deaf
    began = time.monotonic()
    await ear.strategy.stop()
    assert time.monotonic() - began < 10.0
    await bench.cut("pass")


@networked
async def test_heals_when_the_peer_comes(bench: Bench, listen: Listen) -> None:
    await bench.cut("refuse")
    ear, other = await listen(wait=False), await listen(wait=False)
    assert ear.wakes == 0
    await bench.cut("pass")
    await eventually(lambda: ear.hears and other.hears, timeout=RECOVERY)
    before = ear.wakes
    await bench.signal(other.strategy)
    await eventually(lambda: ear.wakes > before)


@networked
async def test_lost_peer_is_noticed_and_each_reconnect_wakes_once(bench: Bench, listen: Listen) -> None:
    ear = await listen()
    for losses in (1, 2):
        await bench.cut("reset")
        await eventually(lambda: ear.deaf)
        await bench.cut("pass")
        await eventually(lambda: ear.hears, timeout=RECOVERY)
        assert ear.wakes == bench.pushes * (1 + losses)


@networked
async def test_silent_peer_is_noticed(bench: Bench, listen: Listen) -> None:
    ear = await listen()
    await bench.cut("blackhole")
    await eventually(lambda: ear.deaf, timeout=DEAFNESS)
    began = time.monotonic()
    await ear.strategy.notify("e")
    assert time.monotonic() - began < 5.0
    await bench.cut("pass")
    await eventually(lambda: ear.hears, timeout=RECOVERY)


@networked
async def test_signals_of_an_outage_become_one(bench: Bench, listen: Listen) -> None:
    ear, other = await listen(), await listen()
    await bench.cut("refuse")
    await eventually(lambda: ear.deaf and other.deaf, timeout=DEAFNESS)
    before = ear.wakes
    for number in range(100):
        await other.strategy.notify(f"e{number}")
    await bench.cut("pass")
    await eventually(lambda: ear.hears and other.hears, timeout=RECOVERY)
    # One for each time it is connected again, and the one signal, unless it came before we listened. One whose way is
    # not certain is sent again.
    assert before + bench.pushes <= ear.wakes <= before + 5 * bench.pushes
    settled = ear.wakes
    await bench.signal(other.strategy)
    await eventually(lambda: ear.wakes > settled)
    assert ear.wakes <= before + 10 * bench.pushes
