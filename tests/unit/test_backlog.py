from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from runner.backlog import Backlog
from runner.delivery import DeliveryState
from runner.outlet import Slots
from runner.storage.base import DeliveryRecord

from .deliveries import FunctionSink, accept, outlet


def make(slots: Slots) -> Backlog:
    nothing: Any = None
    return Backlog(nothing, nothing, nothing, nothing, slots, nothing, nothing)


class TestQuotas:
    async def test_together_no_more_than_can_start_and_another_one_first_each_time(self) -> None:
        slots = Slots(8)
        backlog, sink = make(slots), FunctionSink(accept)
        backlog.serve({id: outlet(sink, id=id, slots=slots) for id in range(10)})
        rounds = [backlog._quotas() for _ in range(10)]
        assert sorted(next(iter(quotas)) for quotas in rounds) == list(range(10))
        for quotas in rounds:
            assert min(quotas.values()) >= 1
            assert sum(quotas.values()) <= 8 + 10  # each may have one beyond the limit

    async def test_they_share_the_slots_of_the_process(self) -> None:
        slots = Slots(8)
        backlog, sink = make(slots), FunctionSink(accept)
        backlog.serve({id: outlet(sink, id=id, slots=slots, concurrency=3) for id in range(3)})
        assert sorted(backlog._quotas().values()) == [2, 3, 3]
        slots.used = 8
        assert list(backlog._quotas().values()) == [1, 1, 1]

    async def test_a_closed_outlet_has_none(self) -> None:
        slots = Slots(8)
        backlog, sink = make(slots), FunctionSink(accept)
        backlog.serve({id: outlet(sink, id=id, slots=slots, paused=id == 1) for id in range(2)})
        assert backlog._quotas() == {0: 8}


class TestWritten:
    async def test_what_is_deferred_is_expected_here_and_nobody_else_is_told(self) -> None:
        backlog = make(Slots(8))
        deferred = DeliveryRecord(1, 1, DeliveryState.LEASED, 1, 9, timedelta(minutes=1), deferred=True)
        assert not backlog.written([replace(deferred, deferred=False)])
        assert not backlog.waiting  # it runs here
        assert not backlog.written([deferred])
        assert backlog.waiting
