from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta

import pytest

from runner.strategies.polling import Polling
from tests.support.eventually import eventually

FOREVER = timedelta(hours=1)
SHORT = timedelta(milliseconds=20)

Start = Callable[[Polling], Awaitable[list[float]]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    started: list[Polling] = []

    async def begin(polling: Polling) -> list[float]:
        wakes: list[float] = []
        started.append(polling)
        await polling.start(lambda: wakes.append(time.monotonic()))
        return wakes

    yield begin
    for polling in started:
        await polling.stop()


async def test_wakes_again_and_again(start: Start) -> None:
    wakes = await start(Polling(SHORT))
    await eventually(lambda: len(wakes) >= 5)
    gaps = [later - earlier for earlier, later in itertools.pairwise(wakes)]
    assert min(gaps) >= 0.85 * SHORT.total_seconds()


async def test_tightens_promptly_while_deaf_and_relaxes_again(start: Start) -> None:
    deaf = False
    polling = Polling(FOREVER, SHORT, lambda: deaf)
    wakes = await start(polling)
    assert polling.detail == "every 3600 s"
    deaf = True
    await eventually(lambda: len(wakes) >= 3)
    assert polling.detail == "every 0.02 s"
    deaf = False
    assert polling.interval == 3600


async def test_being_deaf_never_makes_it_slower() -> None:
    assert Polling(SHORT, FOREVER, lambda: True).interval == SHORT.total_seconds()


async def test_silent_after_stop(start: Start) -> None:
    polling = Polling(SHORT)
    wakes = await start(polling)
    await eventually(lambda: wakes)
    await polling.stop()
    before = len(wakes)
    other = await start(Polling(SHORT))
    await eventually(lambda: len(other) >= 3)
    assert len(wakes) == before


async def test_error_of_the_worker_does_not_end_it(start: Start) -> None:
    calls: list[int] = []

    def wake() -> None:
        calls.append(1)
        raise RuntimeError("the worker")

    polling = Polling(SHORT)
    await polling.start(wake)
    await eventually(lambda: len(calls) >= 3)
    await polling.stop()
