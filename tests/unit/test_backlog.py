from __future__ import annotations

from typing import Any

from runner.backlog import Backlog
from runner.outlet import Slots

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
