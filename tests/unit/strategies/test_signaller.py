from __future__ import annotations

import asyncio
import time

import pytest

from runner.errors import StrategyError
from runner.strategies import signaller
from runner.strategies.signaller import Signaller
from tests.support.eventually import eventually


class Wire:
    """Takes signals, when it is told to."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.open = asyncio.Event()
        self.failing = False

    async def send(self, event_id: str) -> None:
        await self.open.wait()
        if self.failing:
            raise StrategyError("down")
        self.taken.append(event_id)


async def test_signals_in_flight_become_one() -> None:
    wire = Wire()
    signals = Signaller("test", wire.send)
    signals.start()
    for number in range(100):
        signals.request(str(number))
        await asyncio.sleep(0)
    wire.open.set()
    await eventually(lambda: "99" in wire.taken)
    await signals.stop()
    assert len(wire.taken) <= 2
    assert signals.sent == len(wire.taken)


async def test_the_last_one_always_leaves_after_the_last_request() -> None:
    wire = Wire()
    wire.open.set()
    signals = Signaller("test", wire.send)
    signals.start()
    for number in range(300):
        signals.request(str(number))
        await asyncio.sleep(0.0001 if number % 10 == 0 else 0)
    await signals.stop()
    assert wire.taken[-1] == "299"
    assert len(wire.taken) < 100


async def test_failure_is_counted_and_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signaller, "RETRY_AFTER", 0.01)
    wire = Wire()
    wire.open.set()
    wire.failing = True
    signals = Signaller("test", wire.send)
    signals.start()
    signals.request("a")
    await eventually(lambda: signals.failed >= 3)
    wire.failing = False
    await eventually(lambda: wire.taken == ["a"])
    await signals.stop()
    assert wire.taken == ["a"]


async def test_stop_lets_the_last_one_out() -> None:
    wire = Wire()
    wire.open.set()
    signals = Signaller("test", wire.send)
    signals.start()
    signals.request("a")
    await signals.stop()
    assert wire.taken == ["a"]


async def test_stop_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signaller, "FLUSH_TIMEOUT", 0.05)
    signals = Signaller("test", Wire().send)
    signals.start()
    signals.request("a")
    began = time.monotonic()
    await signals.stop()
    await signals.stop()
    assert time.monotonic() - began < 10.0


async def test_stop_without_start_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signaller, "FLUSH_TIMEOUT", 60.0)
    signals = Signaller("test", Wire().send)
    signals.request("a")
    began = time.monotonic()
    await signals.stop()
    assert time.monotonic() - began < 30.0


async def test_stop_gives_a_signal_up_at_once_whose_peer_is_known_to_be_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signaller, "FLUSH_TIMEOUT", 60.0)
    away = asyncio.Event()
    signals = Signaller("test", Wire().send, away=away)
    signals.start()
    signals.request("a")
    asyncio.get_running_loop().call_later(0.05, away.set)
    began = time.monotonic()
    await signals.stop()
    assert time.monotonic() - began < 30.0
    assert signals.unsent


async def test_what_went_out_is_not_unsent() -> None:
    wire = Wire()
    wire.open.set()
    signals = Signaller("test", wire.send)
    signals.start()
    signals.request("a")
    await signals.stop()
    assert (wire.taken, signals.unsent) == (["a"], False)
