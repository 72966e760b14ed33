"""The watchdog: a blocked loop is named while it is blocked, an idle one is left alone."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from runner.service import watchdog
from runner.service.watchdog import Watchdog
from tests.support.eventually import eventually


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "_LOOK", 0.02)
    monkeypatch.setattr(watchdog, "_TICK", 0.01)


def hold_up(told: list[Any], until: int) -> None:
    """Block the loop until the log has so many lines, and a tenth of a second more."""
    deadline = time.monotonic() + 20
    while len(told) < until and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)  # some more looks, which say nothing new


async def test_a_blockage_is_told_with_its_place_and_then_its_end() -> None:
    dog = Watchdog(timedelta(milliseconds=100))
    with capture_logs() as told:
        await dog.start()
        await asyncio.create_task(_blocking(told), name="deliver orders")
        await eventually(lambda: len(told) == 2)
        await dog.stop()
    began, ended = told
    assert (began["event"], began["log_level"], began["task"]) == ("event loop blocked", "error", "deliver orders")
    assert "test_watchdog.py" in began["stack"]
    assert "in hold_up < " in began["stack"]
    assert began["stack"].index("in hold_up") < began["stack"].index("in _blocking")
    assert (ended["event"], ended["log_level"]) == ("event loop goes on", "warning")
    assert 0.1 <= began["blocked_for"] <= ended["blocked_for"]


async def _blocking(told: list[Any]) -> None:
    hold_up(told, until=1)


async def test_the_longest_lag_is_told_once() -> None:
    dog = Watchdog()
    await dog.start()
    hold_up([], until=0)
    await eventually(lambda: dog._lag >= 0.08)
    assert dog.lag() >= timedelta(seconds=0.08)
    assert dog._lag == 0.0
    await dog.stop()


async def test_it_ends() -> None:
    await eventually(lambda: all(thread.name != "watchdog" for thread in threading.enumerate()))  # those before it
    dog = Watchdog()
    await dog.start()
    await dog.start()
    assert sum(thread.name == "watchdog" for thread in threading.enumerate()) == 1
    await dog.stop()
    await dog.stop()
    await eventually(lambda: all(thread.name != "watchdog" for thread in threading.enumerate()))


async def test_it_can_start_again() -> None:
    dog = Watchdog(timedelta(milliseconds=100))
    with capture_logs() as told:
        for lines in (2, 4):
            await dog.start()
            hold_up(told, until=lines - 1)
            await asyncio.sleep(0)
            await eventually(lambda: len(told) % 2 == 0)
            await dog.stop()
