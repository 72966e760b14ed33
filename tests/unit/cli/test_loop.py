from __future__ import annotations

import asyncio
import gc
import os
import weakref
from collections.abc import Iterator

import pytest

from runner.cli.loop import TOGETHER, StopRequests, tune_gc
from runner.cli.start import _Signals


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


def test_the_collector_looks_less_often_and_not_at_what_is_there() -> None:
    here = {"a": object()}
    tune_gc()
    assert gc.get_threshold()[0] >= 10_000
    assert all(each is not here for each in gc.get_objects())
    assert gc.isenabled()  # cycles of handlers must still go


def test_a_cycle_still_goes() -> None:
    class Node:
        me: Node

    tune_gc()
    node = Node()
    node.me, gone = node, weakref.ref(node)
    del node
    kept = [[number] for number in range(60_000)]  # more than the threshold
    assert gone() is None
    assert len(kept) == 60_000


def test_signals_that_come_together_are_one_request() -> None:
    now = 100.0
    requests = StopRequests(lambda: now)
    assert not requests.is_another()
    now += TOGETHER * 0.9
    assert not requests.is_another()  # `timeout` signals its child, then the group
    now += TOGETHER * 0.2
    assert requests.is_another()


async def test_a_stop_begins_once_its_copies_have_come(monkeypatch: pytest.MonkeyPatch) -> None:
    now, exits = 100.0, list[int]()
    monkeypatch.setattr(os, "_exit", exits.append)
    signals = _Signals()
    signals._requests = StopRequests(lambda: now)
    signals.attach()
    signals._on_stop()
    await asyncio.sleep(0)
    assert not signals.stop.is_set()  # else whoever reads "stopping" and signals again would not be heard
    signals._on_stop()
    async with asyncio.timeout(10):
        await signals.stop.wait()
    assert exits == []
    now += 1
    signals._on_stop()
    assert exits == [130]
