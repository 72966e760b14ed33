from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from runner.cli.loop import tune_gc


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
