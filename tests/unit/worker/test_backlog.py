from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from math import inf
from time import monotonic
from typing import Any, cast

import pytest

from runner.delivery import ACCEPTED, Delivery, DeliveryState, Outcome
from runner.errors import StorageUnavailable
from runner.policies.breaker import BreakerPolicy, Trip
from runner.policies.rate import Rate
from runner.storage.contract.claims import ClaimedDelivery, DeliveryClaim, RegulatedRequest
from runner.storage.contract.queue import WorkQueue
from runner.storage.contract.settlements import DeliveryRecord
from runner.worker.backlog import Backlog
from runner.worker.budget import Budget
from runner.worker.dead_letters import DeadLetters
from runner.worker.flight import Flight
from runner.worker.intake import Intake
from runner.worker.leases import Leases
from runner.worker.outlet import Slots
from runner.worker.settlement_writer import SettlementWriter
from tests.support.eventually import eventually

from .deliveries import FunctionSink, accept, outlet, tick, works


def make(slots: Slots) -> Backlog:
    nothing: Any = None
    return Backlog(nothing, nothing, nothing, nothing, nothing, slots, nothing, nothing)


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


class Queue:
    """A queue in which nothing is due before `next_due`, and what it was asked for."""

    def __init__(self, next_due: timedelta | None = None) -> None:
        self.next_due = next_due
        self.asked: list[dict[int, int]] = []
        self.weights: list[int] = []
        self.regulated: list[int] = []
        self.written: list[DeliveryRecord] = []
        self.fetching = False
        self.answer: asyncio.Future[Mapping[int, bytes | None]]
        self.failures = 0  # of the next claims of a regulated subscription

    async def claim_deliveries(self, quotas: Mapping[int, int], lease: timedelta, weight: int = 0) -> DeliveryClaim:
        self.asked.append(dict(quotas))
        self.weights.append(weight)
        return DeliveryClaim(1, (), self.next_due)

    async def claim_regulated(self, asked: RegulatedRequest, lease: timedelta, weight: int = 0) -> DeliveryClaim:
        self.regulated.append(asked.subscription_id)
        if len(self.regulated) <= self.failures:
            raise StorageUnavailable("away")
        return DeliveryClaim(1, ())

    async def line_up(self, subscription_id: int, order_by: str) -> int:
        return 0

    async def contents(self, seqs: Sequence[int]) -> Mapping[int, bytes | None]:
        self.fetching = True
        self.answer = asyncio.get_running_loop().create_future()
        return await self.answer

    async def settle_deliveries(
        self, records: Sequence[DeliveryRecord], attempts: object = (), ordered: object = ()
    ) -> Sequence[tuple[int, int]]:
        self.written += records
        return [(each.seq, each.subscription_id) for each in records]


def running(queue: Queue, slots: Slots, budget: Budget | None = None) -> Backlog:
    store = cast("WorkQueue", queue)
    letters = DeadLetters(store)
    writer = SettlementWriter(store, letters, lambda _: None)
    lease, budget, room_freed = timedelta(seconds=30), budget or Budget(), asyncio.Event()
    leases = Leases(store, writer, lease, room_freed, budget)
    intake = Intake(store, budget, lease, crash_limit=3)
    return Backlog(store, intake, writer, leases, letters, slots, lease, room_freed)


class TestTake:
    @pytest.mark.parametrize("attempt", [2, 3], ids=["with others", "alone"])
    async def test_what_outlived_its_lease_before_it_could_start_goes_back_untried(self, attempt: int) -> None:
        """Its event was asked for, or that of its death; or the others had to be given back first."""
        queue, slots, sink = Queue(), Slots(8), FunctionSink(accept)
        backlog = running(queue, slots)
        backlog.serve({1: outlet(sink, id=1, slots=slots)})
        claimed = [ClaimedDelivery(work.seq, 1, attempt, attempt == 3, work.event) for work in works(2)]
        await backlog._starter.start(DeliveryClaim(1, claimed), monotonic(), monotonic())
        await eventually(lambda: len(queue.written) == 2)
        assert sink.taken == []
        assert {(each.state, each.attempts) for each in queue.written} == {(DeliveryState.PENDING, attempt - 1)}
        await backlog._starter.start(DeliveryClaim(1, claimed[:1]), monotonic(), monotonic() + 30)
        await eventually(lambda: sink.taken == [0])

    @pytest.mark.parametrize("attempt", [2, 3], ids=["with others", "alone"])
    @pytest.mark.parametrize("stopped", [False, True], ids=["failed", "stopped"])
    async def test_what_could_not_be_fetched_goes_back_untried(self, attempt: int, stopped: bool) -> None:
        """Or an outage between the claim and the data would cost it an attempt, and make it a suspect."""
        queue, slots, sink = Queue(), Slots(8), FunctionSink(accept)
        backlog = running(queue, slots)
        backlog.serve({1: outlet(sink, slots=slots)})
        event = works(1)[0].event
        claim = DeliveryClaim(7, [ClaimedDelivery(5, 1, attempt, True, event, size=1000)])
        taking = asyncio.create_task(backlog._starter.start(claim, monotonic(), monotonic() + 30))
        await eventually(lambda: queue.fetching)
        if stopped:
            taking.cancel()
        else:
            queue.answer.set_exception(StorageUnavailable("away"))
        await asyncio.wait({taking})
        await backlog._starter._writer.written()
        assert [(each.state, each.attempts) for each in queue.written] == [(DeliveryState.PENDING, attempt - 1)]
        assert sink.taken == []
        assert bool(backlog._starter.suspects) == (attempt == 3)  # it still flies alone


class TestWake:
    async def test_it_is_remembered_while_nothing_waits(self) -> None:
        """What another process has written, and signalled, is claimed as soon as it is known that something waits."""
        queue, slots = Queue(), Slots(8)
        backlog, sink = running(queue, slots), FunctionSink(accept)
        backlog.expect()
        backlog.serve({1: outlet(sink, id=1, slots=slots), 2: outlet(sink, id=2, slots=slots, order_by="subject")})
        backlog.start()
        try:
            await eventually(lambda: queue.regulated == [2] and not backlog.waiting)
            backlog.wake()
            await tick(3)
            assert queue.regulated == [2]
            backlog.written([DeliveryRecord(1, 1, DeliveryState.PENDING, 1, 9)])
            await eventually(lambda: queue.regulated == [2, 2])
        finally:
            await backlog.stop()

    async def test_while_something_waits_it_is_acted_on(self) -> None:
        queue, slots = Queue(next_due=timedelta(hours=1)), Slots(8)
        backlog = running(queue, slots)
        backlog.expect()
        backlog.serve({1: outlet(FunctionSink(accept), id=1, slots=slots)})
        backlog.start()
        try:
            await eventually(lambda: len(queue.asked) == 1)
            await tick(3)
            backlog.wake()
            await eventually(lambda: len(queue.asked) == 2)
        finally:
            await backlog.stop()

    async def test_many_that_bring_nothing_are_slowed_down(self) -> None:
        queue, slots = Queue(next_due=timedelta(hours=1)), Slots(8)
        backlog, sink = running(queue, slots), FunctionSink(accept)
        backlog.expect()
        backlog.serve({1: outlet(sink, id=1, slots=slots), 2: outlet(sink, id=2, slots=slots, rate=Rate(1, "s"))})
        backlog.start()
        try:
            await eventually(lambda: queue.asked)
            began = monotonic()
            while monotonic() - began < 0.5:
                backlog.wake()
                await asyncio.sleep(0)
            most = 8 + (monotonic() - began) / 0.05 + 2
            assert 8 < len(queue.asked) <= most
            assert 8 < len(queue.regulated) <= most
            before = len(queue.asked)
            backlog.wake()
            await eventually(lambda: len(queue.asked) > before)  # the last one is not forgotten
        finally:
            await backlog.stop()

    async def test_what_is_written_here_does_not_wait_for_them(self) -> None:
        queue, slots = Queue(next_due=timedelta(hours=1)), Slots(8)
        backlog = running(queue, slots)
        backlog.expect()
        backlog.serve({1: outlet(FunctionSink(accept), id=1, slots=slots)})
        backlog.start()
        try:
            await eventually(lambda: queue.asked)
            backlog._lull = inf
            backlog.wake()
            before = len(queue.asked)
            backlog.written([DeliveryRecord(1, 1, DeliveryState.PENDING, 1, 9)])
            await eventually(lambda: len(queue.asked) > before)
        finally:
            await backlog.stop()

    async def test_a_failed_claim_is_made_again(self) -> None:
        queue, slots = Queue(), Slots(8)
        backlog = running(queue, slots)
        queue.failures = 2
        backlog.expect()
        backlog.serve({2: outlet(FunctionSink(accept), id=2, slots=slots, order_by="subject")})
        backlog.start()
        try:
            await eventually(lambda: queue.regulated == [2, 2, 2])
        finally:
            await backlog.stop()


class TestServe:
    async def test_a_subscription_that_goes_while_others_are_asked_for_is_asked_for_no_more(self) -> None:
        queue, slots = Queue(), Slots(8)
        backlog, sink = running(queue, slots), FunctionSink(accept)
        both = {id: outlet(sink, id=id, slots=slots, order_by="subject") for id in (1, 2)}
        backlog.serve(both)
        asks = backlog._asks({1: 1, 2: 1})
        next(asks)
        backlog.serve({1: both[1]})
        assert list(asks) == []


class TestCrowded:
    async def test_what_waits_for_one_receiver_keeps_nothing_from_another(self) -> None:
        """However much it weighs; and no more of it is claimed."""
        queue, budget = Queue(), Budget()
        slots, gate = Slots(8, budget), asyncio.Event()

        async def hang(_: Delivery) -> Outcome:
            await gate.wait()
            return ACCEPTED

        backlog = running(queue, slots, budget)
        slow = outlet(FunctionSink(hang), id=1, slots=slots)
        flight = Flight(works(1))
        backlog._leases.hold(slow, flight, range(1), 7)
        slow.start(flight)
        budget.leased = budget.most
        backlog.expect()
        backlog.serve({1: slow, 2: outlet(FunctionSink(accept), id=2, slots=slots)})
        backlog.start()
        try:
            await eventually(lambda: queue.asked)
            assert queue.asked[0] == {1: 0, 2: 1}
            assert queue.weights[0] == 64 * 1024
        finally:
            gate.set()
            await backlog.stop()


class TestBreaker:
    async def test_an_open_one_is_left_alone_until_its_pause_is_over_and_then_asked_for_one(self) -> None:
        queue, slots = Queue(), Slots(8)
        backlog = running(queue, slots)
        one = outlet(FunctionSink(accept), id=7, slots=slots, breaker=BreakerPolicy())
        pause = timedelta(milliseconds=200)
        one.breaker.learn(Trip(1, pause), monotonic())
        began = monotonic()
        backlog.expect()
        backlog.serve({7: one})
        backlog.start()
        try:
            await eventually(lambda: queue.asked)
            assert pause.total_seconds() <= monotonic() - began < 20.0
            assert queue.asked == [{7: 1}]
        finally:
            await backlog.stop()
