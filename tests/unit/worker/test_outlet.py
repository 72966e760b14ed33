from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.delivery import ACCEPTED, Accepted, Delivery, Failed, Outcome, Rejected
from runner.policies.breaker import BreakerPolicy, Trip
from runner.storage.contract.claims import Work
from runner.worker.flight import Flight
from runner.worker.outlet import Outlet, Slots
from tests.support.eventually import eventually

from .deliveries import FunctionSink, accept, number, outlet, tick, works


@dataclass
class Watched:
    """A flight with what became of it."""

    flight: Flight[Work]
    ends: int = 0

    @classmethod
    def of(cls, count: int) -> Watched:
        watched = cls(Flight(works(count)))
        watched.flight = Flight(works(count), ended=watched.ended)
        return watched

    def ended(self) -> None:
        self.ends += 1

    @property
    def outcomes(self) -> list[tuple[int, Outcome]]:
        return [(index, outcome) for index, outcome, _ in self.flight.troubles]


async def over(watched: Watched) -> None:
    async def ended() -> bool:
        return watched.flight.over

    await eventually(ended)
    await tick(3)


class Gate:
    """A sink's function that answers when it is told to."""

    def __init__(self) -> None:
        self.answers: dict[int, asyncio.Future[Outcome]] = {}

    async def __call__(self, delivery: Delivery) -> Outcome:
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.answers[number(delivery.event)] = answer
        return await answer

    @property
    def open(self) -> list[int]:
        return sorted(n for n, answer in self.answers.items() if not answer.done())

    def let(self, *numbers: int, outcome: Outcome = ACCEPTED) -> None:
        for n in numbers:
            self.answers[n].set_result(outcome)


class TestLanes:
    async def test_a_sink_that_answers_at_once_costs_one_task_for_all(self) -> None:
        tasks = set()

        async def deliver(_: Delivery) -> Outcome:
            tasks.add(asyncio.current_task())
            return ACCEPTED

        sink, watched = FunctionSink(deliver), Watched.of(300)
        outlet(sink).start(watched.flight)
        await over(watched)
        assert sink.taken == list(range(300))
        assert len(tasks) == 1
        assert watched.outcomes == []
        assert watched.ends == 1

    async def test_lanes_grow_to_the_concurrency_and_no_further(self) -> None:
        gate = Gate()
        sink, watched = FunctionSink(gate), Watched.of(40)
        one = outlet(sink, concurrency=7)
        one.start(watched.flight)
        await tick(10)
        assert gate.open == list(range(7))
        while gate.open:
            gate.let(gate.open[0])
            await tick(3)
        assert sink.taken == list(range(40))
        assert sink.most == 7
        assert one.running == 0

    async def test_a_concurrency_of_one_keeps_the_order_over_flights(self) -> None:
        gate = Gate()
        one = outlet(FunctionSink(gate), concurrency=1)
        first, second = Watched.of(2), Watched.of(5)
        second.flight.works = second.flight.works[2:]
        second.flight.stop = 3
        one.start(first.flight)
        one.start(second.flight)
        for expected in range(5):
            await tick(3)
            assert gate.open == [expected]
            gate.let(expected)
        await tick(3)
        assert (first.ends, second.ends) == (1, 1)

    async def test_the_slots_of_the_process_are_shared_and_nobody_is_starved(self) -> None:
        slots, gates = Slots(5), [Gate(), Gate(), Gate()]
        outlets = [outlet(FunctionSink(gate), id=id, slots=slots) for id, gate in enumerate(gates)]
        flights = [Watched.of(20) for _ in gates]
        for one, watched in zip(outlets, flights, strict=True):
            one.start(watched.flight)
        for _ in range(60):
            await tick(3)
            running = [len(gate.open) for gate in gates]
            assert sum(running) <= slots.limit + len(outlets)
            assert all(count or watched.flight.over for count, watched in zip(running, flights, strict=True))
            for gate in gates:
                gate.let(*gate.open[:1])
        await tick(3)
        assert slots.used == 0
        assert [watched.ends for watched in flights] == [1, 1, 1]

    async def test_a_process_without_slots_still_serves_each_subscription_once(self) -> None:
        slots, gates = Slots(1), [Gate(), Gate()]
        for id, gate in enumerate(gates):
            outlet(FunctionSink(gate), id=id, slots=slots).start(Watched.of(9).flight)
        await tick(10)
        assert [gate.open for gate in gates] == [[0], [0]]
        for gate in gates:
            gate.let(0)
        await tick(3)
        assert [gate.open for gate in gates] == [[1], [1]]

    async def test_room_is_announced_when_a_lane_ends(self) -> None:
        gate, heard = Gate(), list[int]()
        one = outlet(FunctionSink(gate), on_lane_end=lambda each: heard.append(each.running))
        one.start(Watched.of(1).flight)
        await tick(2)
        assert heard == []
        gate.let(0)
        await tick(2)
        assert heard == [0]


class TestFree:
    async def test_it_counts_what_runs_and_what_waits(self) -> None:
        gate = Gate()
        one = outlet(FunctionSink(gate), concurrency=4)
        assert one.free() == 4
        one.start(Watched.of(3).flight)
        assert one.free() <= 1
        await tick(5)
        assert one.free() == 1
        gate.let(0, 1, 2)
        await tick(5)
        assert one.free() == 4

    async def test_there_is_one_even_without_slots_but_only_while_nothing_runs(self) -> None:
        gate, slots = Gate(), Slots(1)
        slots.used = 1
        one = outlet(FunctionSink(gate), slots=slots)
        assert one.free() == 1
        one.start(Watched.of(1).flight)
        assert one.free() == 0
        await tick(2)
        assert one.free() == 0

    def test_a_closed_outlet_has_none(self) -> None:
        assert outlet(FunctionSink(accept), paused=True).free() == 0
        assert outlet(None).free() == 0
        assert not outlet(None).open


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this")


class Odd(BaseException):
    pass


class TestWhatHandlersDo:
    @pytest.mark.parametrize(
        ("raised", "reason"),
        [
            (ValueError("no customer 7"), "ValueError: no customer 7"),
            (ValueError(), "ValueError"),
            (SystemExit(3), "SystemExit: 3"),
            (Odd("strange"), "Odd: strange"),
            (asyncio.CancelledError(), "CancelledError"),
            (TimeoutError(), "TimeoutError"),
            (Unprintable(), "Unprintable"),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
    )
    async def test_whatever_is_raised_is_a_failure_and_the_lane_goes_on(
        self, raised: BaseException, reason: str
    ) -> None:
        async def deliver(delivery: Delivery) -> Outcome:
            if number(delivery.event) == 1:
                raise raised
            return ACCEPTED

        sink, watched = FunctionSink(deliver), Watched.of(4)
        outlet(sink, concurrency=1).start(watched.flight)
        await over(watched)
        assert sink.taken == [0, 1, 2, 3]
        assert watched.outcomes == [(1, Failed(reason))]
        assert watched.ends == 1

    @pytest.mark.parametrize("answer", [None, True, "ok", 204])
    async def test_an_answer_that_is_no_outcome_is_a_failure(self, answer: object) -> None:
        async def deliver(_: Delivery) -> Any:
            return answer

        watched = Watched.of(2)
        outlet(FunctionSink(deliver)).start(watched.flight)
        await over(watched)
        [(_, outcome), _] = watched.outcomes
        assert isinstance(outcome, Failed)
        assert type(answer).__name__ in outcome.reason

    @pytest.mark.parametrize(
        "answer",
        [
            Failed("busy", retry_after=30),  # type: ignore[arg-type]  # what handlers in untyped code do
            Failed(None),  # type: ignore[arg-type]  # as above
            Failed("busy", excerpt=b"busy"),  # type: ignore[arg-type]  # as above
            Rejected("x", status="404"),  # type: ignore[arg-type]  # as above
            Rejected(ValueError("x")),  # type: ignore[arg-type]  # as above
            Rejected("x", excerpt=b"gone"),  # type: ignore[arg-type]  # as above
        ],
        ids=repr,
    )
    async def test_an_outcome_with_fields_of_other_types_fails_that_delivery_alone(self, answer: Outcome) -> None:
        answers: list[Outcome] = [Rejected("gone"), answer, Failed("later")]

        async def deliver(delivery: Delivery) -> Outcome:
            return answers[number(delivery.event)]

        watched = Watched.of(3)
        outlet(FunctionSink(deliver)).start(watched.flight)
        await over(watched)
        reason = f"the sink returned {type(answer).__name__}, expected its fields of the documented types"
        assert watched.outcomes == [(0, Rejected("gone")), (1, Failed(reason)), (2, Failed("later"))]

    async def test_an_outcome_is_taken_as_it_is(self) -> None:
        answers: list[Outcome] = [Rejected("gone", 410), Accepted(), Failed("later", timedelta(seconds=9), 503)]

        async def deliver(delivery: Delivery) -> Outcome:
            return answers[number(delivery.event)]

        watched = Watched.of(3)
        outlet(FunctionSink(deliver)).start(watched.flight)
        await over(watched)
        assert watched.outcomes == list(enumerate(answers))

    async def test_the_sink_sees_subscription_and_attempt(self) -> None:
        seen = []

        async def deliver(delivery: Delivery) -> Outcome:
            seen.append((delivery.subscription, delivery.attempt))
            return ACCEPTED

        flight = Flight(works(1, attempt=4))
        outlet(FunctionSink(deliver), name="crm").start(flight)
        await tick(2)
        assert seen == [("crm", 4)]


class TestTimeouts:
    async def test_a_late_delivery_fails_and_the_lane_goes_on(self) -> None:
        gate = Gate()
        one, watched = outlet(FunctionSink(gate), concurrency=1, timeout=timedelta(seconds=5)), Watched.of(3)
        one.start(watched.flight)
        await tick(2)
        one.overdue(monotonic() + 4)
        await tick(2)
        assert watched.outcomes == []
        one.overdue(monotonic() + 6)
        one.overdue(monotonic() + 6)  # a second look before the first one took effect
        await tick(3)
        assert watched.outcomes == [(0, Failed("no answer within 5 s"))]
        gate.let(1)
        await tick(3)
        gate.let(2)
        await over(watched)
        assert len(watched.outcomes) == 1

    @pytest.mark.parametrize("swallow", ["returns", "raises"])
    async def test_a_handler_that_swallows_its_timeout_does_not_escape_the_next(self, swallow: str) -> None:
        async def deliver(_: Delivery) -> Outcome:
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                if swallow == "raises":
                    raise ValueError("interrupted") from None
            return ACCEPTED

        one, watched = outlet(FunctionSink(deliver), concurrency=1), Watched.of(3)
        one.start(watched.flight)
        for _ in range(3):
            await tick(3)
            one.overdue(monotonic() + 60)
        await over(watched)
        late = Failed("no answer within 25 s")
        assert watched.outcomes == ([] if swallow == "returns" else [(0, late), (1, late), (2, late)])

    async def test_a_timeout_of_the_handlers_own_still_works_after_one(self) -> None:
        async def deliver(_: Delivery) -> Outcome:
            try:
                async with asyncio.timeout(0.01):
                    await asyncio.get_running_loop().create_future()
            except TimeoutError:
                return ACCEPTED
            return Failed("not reached")

        gate = Gate()

        async def first_hangs(delivery: Delivery) -> Outcome:
            return await (gate if number(delivery.event) == 0 else deliver)(delivery)

        one, watched = outlet(FunctionSink(first_hangs), concurrency=1), Watched.of(2)
        one.start(watched.flight)
        await tick(2)
        one.overdue(monotonic() + 60)
        await over(watched)
        assert watched.outcomes == [(0, Failed("no answer within 25 s"))]


class TestCut:
    async def test_what_comes_between_cut_and_report_is_held_back(self) -> None:
        gate, reported = Gate(), []
        one, watched = outlet(FunctionSink(gate), concurrency=3), Watched.of(5)
        one.start(watched.flight)
        await tick(5)
        gate.let(0)
        gate.let(1, outcome=Failed("no"))
        await tick(1)
        one.withdraw(watched.flight)
        running = one.in_flight(watched.flight)
        assert sorted(running) == [2, 3, 4]
        gate.let(2)
        await tick(3)
        assert watched.outcomes == [(1, Failed("no"))]
        watched.flight.report_to(lambda index, outcome, _: reported.append((index, outcome)))
        assert reported == [(2, ACCEPTED)]
        gate.let(3, outcome=Failed("late"))
        gate.let(4)
        await tick(3)
        assert reported == [(2, ACCEPTED), (3, Failed("late")), (4, ACCEPTED)]
        assert watched.ends == 1

    async def test_what_had_not_started_never_starts(self) -> None:
        gate = Gate()
        sink = FunctionSink(gate)
        one, first, second = outlet(sink, concurrency=2), Watched.of(6), Watched.of(1)
        one.start(first.flight)
        await tick(5)
        one.withdraw(first.flight)
        one.start(second.flight)
        gate.let(*gate.open)
        await tick(5)
        assert sink.taken == [0, 1, 0]
        assert first.flight.next == 2
        assert first.ends == 1

    @settings(max_examples=150, deadline=None)
    @given(
        plans=st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=12),
        concurrency=st.integers(1, 5),
        slots=st.integers(1, 6),
        cut_after=st.integers(0, 20),
        report_after=st.integers(0, 10),
    )
    def test_nothing_is_lost_and_nothing_told_twice_whenever_it_is_cut(
        self, plans: list[tuple[int, bool]], concurrency: int, slots: int, cut_after: int, report_after: int
    ) -> None:
        finished: dict[int, Outcome] = {}

        async def deliver(delivery: Delivery) -> Outcome:
            ticks, succeeds = plans[number(delivery.event)]
            await tick(ticks)
            outcome = ACCEPTED if succeeds else Failed("no")
            finished[number(delivery.event)] = outcome
            return outcome

        async def scenario() -> None:
            sink, watched, reported = FunctionSink(deliver), Watched.of(len(plans)), dict[int, Outcome]()
            one = outlet(sink, concurrency=concurrency, slots=Slots(slots))
            flight = watched.flight

            def report(index: int, outcome: Outcome, _: float) -> None:
                assert index not in reported
                reported[index] = outcome

            one.start(flight)
            await tick(cut_after)
            one.withdraw(flight)
            before, started = dict(finished), flight.next
            running = one.in_flight(flight)
            assert sorted([*running, *before]) == list(range(started)) == sorted(sink.taken)
            assert dict(watched.outcomes) == {n: outcome for n, outcome in before.items() if outcome is not ACCEPTED}
            await tick(report_after)
            assert reported == {}
            flight.report_to(report)
            while not flight.over:
                await tick()
            assert reported == {n: finished[n] for n in running}
            assert len(watched.outcomes) == sum(outcome is not ACCEPTED for outcome in before.values())
            assert sink.taken == list(range(started))
            assert sink.most <= min(concurrency, slots)
            await tick(2)
            assert watched.ends <= 1
            assert one.running == 0

        asyncio.run(scenario())


class TestCancel:
    async def test_what_waits_behind_a_lost_delivery_is_still_started(self) -> None:
        gate = Gate()
        sink = FunctionSink(gate)
        one, first, second = outlet(sink, concurrency=1), Watched.of(1), Watched.of(2)
        one.start(first.flight)
        one.start(second.flight)
        await tick(3)
        one.withdraw(first.flight)
        one.cancel(first.flight, 0)
        await tick(3)
        assert sink.taken == [0, 0]
        assert one.in_flight(second.flight) == [0]

    async def test_only_the_one_that_is_meant_ends(self) -> None:
        gate = Gate()
        one, watched = outlet(FunctionSink(gate), concurrency=3), Watched.of(3)
        one.start(watched.flight)
        await tick(5)
        one.cancel(watched.flight, 1)
        await tick(3)
        assert sorted(one.in_flight(watched.flight)) == [0, 2]


class BatchSink(FunctionSink):
    """A sink that takes batches, and remembers them."""

    def __init__(self, function: Callable[[list[int]], Awaitable[Any]]) -> None:
        super().__init__(accept)
        self._take = function
        self.batches: list[list[int]] = []

    async def deliver_batch(self, deliveries: Sequence[Delivery]) -> Any:
        numbers = [number(delivery.event) for delivery in deliveries]
        self.batches.append(numbers)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            return await self._take(numbers)
        finally:
            self.running -= 1


class BatchGate(Gate):
    """The same for batches, each known by its first number."""

    async def take(self, numbers: list[int]) -> list[Outcome]:
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.answers[numbers[0]] = answer
        return [await answer] * len(numbers)


async def accept_all(numbers: list[int]) -> list[Outcome]:
    return [ACCEPTED] * len(numbers)


class TestBatches:
    async def test_a_lane_takes_what_is_there_and_no_more_than_a_batch(self) -> None:
        sink, watched = BatchSink(accept_all), Watched.of(25)
        outlet(sink, batch=10, concurrency=1).start(watched.flight)
        await over(watched)
        assert sink.batches == [list(range(10)), list(range(10, 20)), list(range(20, 25))]
        assert (sink.taken, watched.outcomes, watched.ends) == ([], [], 1)

    async def test_the_concurrency_counts_batches(self) -> None:
        gate = BatchGate()
        sink, slots, watched = BatchSink(gate.take), Slots(3), Watched.of(100)
        one = outlet(sink, batch=10, concurrency=8, slots=slots)
        one.start(watched.flight)
        await tick(10)
        assert gate.open == [0, 10, 20]
        assert (one.running, slots.used) == (3, 3)
        assert sorted(one.in_flight(watched.flight)) == list(range(30))
        while gate.open:
            gate.let(gate.open[0])
            await tick(3)
        assert watched.ends == 1
        assert sink.most == 3

    async def test_each_event_has_its_own_outcome(self) -> None:
        async def answer(numbers: list[int]) -> list[Outcome]:
            return [Failed("odd") if n % 2 else ACCEPTED for n in numbers]

        watched = Watched.of(4)
        outlet(BatchSink(answer), batch=10).start(watched.flight)
        await over(watched)
        assert watched.outcomes == [(1, Failed("odd")), (3, Failed("odd"))]

    @pytest.mark.parametrize(
        ("answer", "reason"),
        [
            (None, "the sink returned NoneType for a batch of 3"),
            ([ACCEPTED] * 2, "the sink returned 2 outcomes for a batch of 3"),
            ([], "the sink returned 0 outcomes for a batch of 3"),
            ("abc", "the sink returned str for a batch of 3"),
            ([True] * 3, "the sink returned bool, expected an outcome"),
            (ValueError("no"), "ValueError: no"),
            (SystemExit(3), "SystemExit: 3"),
        ],
        ids=repr,
    )
    async def test_anything_else_than_an_outcome_for_each_fails_the_batch_and_the_lane_goes_on(
        self, answer: object, reason: str
    ) -> None:
        async def respond(numbers: list[int]) -> object:
            if numbers[0] > 0:
                return [ACCEPTED] * len(numbers)
            if isinstance(answer, BaseException):
                raise answer
            return answer

        sink, watched = BatchSink(respond), Watched.of(6)
        outlet(sink, batch=3, concurrency=1).start(watched.flight)
        await over(watched)
        assert watched.outcomes == [(n, Failed(reason)) for n in range(3)]
        assert sink.batches == [[0, 1, 2], [3, 4, 5]]

    async def test_what_was_tried_before_goes_alone(self) -> None:
        sink, watched = BatchSink(accept_all), Watched.of(8)
        for n in (0, 3, 4, 7):
            watched.flight.works[n].attempt = 2
        outlet(sink, batch=10, concurrency=1).start(watched.flight)
        await over(watched)
        assert sink.batches == [[0], [1, 2], [3], [4], [5, 6], [7]]

    async def test_a_late_batch_fails_as_a_whole(self) -> None:
        gate = BatchGate()
        one = outlet(BatchSink(gate.take), batch=2, concurrency=1, timeout=timedelta(seconds=5))
        watched = Watched.of(4)
        one.start(watched.flight)
        await tick(2)
        one.overdue(monotonic() + 6)
        await tick(3)
        gate.let(2)
        await over(watched)
        assert watched.outcomes == [(0, Failed("no answer within 5 s")), (1, Failed("no answer within 5 s"))]

    async def test_a_batch_goes_on_while_any_of_it_is_ours(self) -> None:
        gate = BatchGate()
        one, watched = outlet(BatchSink(gate.take), batch=3, concurrency=1), Watched.of(9)
        one.start(watched.flight)
        await tick(2)
        one.cancel(watched.flight, 0)
        one.cancel(watched.flight, 2)
        await tick(2)
        gate.let(0)
        await tick(3)
        assert watched.outcomes == []
        assert one.in_flight(watched.flight) == [3, 4, 5]
        one.cancel(watched.flight, 4)  # what was lost of the batch before it counts no more
        one.cancel(watched.flight, 5)
        await tick(2)
        assert one.in_flight(watched.flight) == [3, 4, 5]
        one.cancel(watched.flight, 3)
        await tick(3)
        assert watched.outcomes == [(n, Failed("its lease was lost")) for n in (3, 4, 5)]
        assert one.in_flight(watched.flight) == [6, 7, 8]

    async def test_a_cut_in_the_middle_leaves_whole_batches(self) -> None:
        gate, reported = BatchGate(), []
        one, watched = outlet(BatchSink(gate.take), batch=3, concurrency=2), Watched.of(10)
        one.start(watched.flight)
        await tick(5)
        one.withdraw(watched.flight)
        assert sorted(one.in_flight(watched.flight)) == list(range(watched.flight.next)) == list(range(6))
        watched.flight.report_to(lambda index, outcome, _: reported.append((index, outcome)))
        gate.let(0)
        gate.let(3, outcome=Failed("no"))
        await over(watched)
        assert reported == [(n, ACCEPTED) for n in range(3)] + [(n, Failed("no")) for n in range(3, 6)]

    async def test_room_is_for_batches(self) -> None:
        gate = BatchGate()
        one = outlet(BatchSink(gate.take), batch=10, concurrency=4)
        assert (one.free(), one.lanes_for(40), one.lanes_for(31), one.lanes_for(0)) == (40, 4, 4, 0)
        assert one.free(2) == 20
        one.start(Watched.of(15).flight)
        await tick(5)
        assert one.free() == 20
        assert outlet(BatchSink(gate.take), batch=1000, concurrency=100).free() == 1000

    async def test_a_sink_without_batches_gets_them_one_by_one(self) -> None:
        sink, watched = FunctionSink(accept), Watched.of(5)
        one = outlet(sink, batch=10, concurrency=4)
        assert one.free() == 4
        one.start(watched.flight)
        await over(watched)
        assert sink.taken == list(range(5))


class Moody(FunctionSink):
    """A sink that raises when it is asked how it delivers."""

    @property
    def deliver_event(self) -> object:
        raise RuntimeError("not today")


async def test_a_sink_that_raises_before_it_is_given_anything_fails_each_delivery() -> None:
    flight: Flight[Any] = Flight(works(3))
    outlet(Moody(accept), concurrency=1).start(flight)
    await eventually(lambda: flight.over)
    assert [(index, type(outcome)) for index, outcome, _ in flight.troubles] == [(n, Failed) for n in range(3)]


class TestStop:
    async def test_everything_ends_and_nothing_more_starts(self) -> None:
        slots, gate = Slots(8), Gate()
        sink = FunctionSink(gate)
        one, watched = outlet(sink, concurrency=3, slots=slots), Watched.of(9)
        one.start(watched.flight)
        await tick(5)
        await one.stop()
        assert (one.running, slots.used, sink.running) == (0, 0, 0)
        assert sink.taken == [0, 1, 2]

    async def test_lanes_that_have_not_begun_leave_no_trace(self) -> None:
        slots, sink = Slots(8), FunctionSink(accept)
        one = outlet(sink, slots=slots)
        one.start(Watched.of(3).flight)
        await one.stop()
        assert (one.running, slots.used, sink.taken) == (0, 0, [])

    async def test_a_handler_that_will_not_be_cancelled_is_not_given_another(self) -> None:
        stubborn = Gate()

        async def deliver(delivery: Delivery) -> Outcome:
            try:
                return await stubborn(delivery)
            except asyncio.CancelledError:
                return ACCEPTED

        sink, reported = FunctionSink(deliver), []
        one, watched = outlet(sink, concurrency=1), Watched.of(3)
        watched.flight.report_to(lambda index, outcome, _: reported.append((index, outcome)))
        one.start(watched.flight)
        await tick(2)
        await one.stop()
        assert sink.taken == [0]
        assert reported == [(0, ACCEPTED)]

    async def test_it_returns_although_a_handler_does_not(self) -> None:
        release = asyncio.Event()

        async def deliver(_: Delivery) -> Outcome:
            while not release.is_set():
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    continue
            return ACCEPTED

        one = outlet(FunctionSink(deliver))
        one.start(Watched.of(1).flight)
        await tick(2)
        async with asyncio.timeout(20):
            await one.stop()
        assert one.running == 1
        release.set()
        await tick(3)
        assert one.running == 0

    async def test_it_may_be_called_before_anything_and_twice(self) -> None:
        one = outlet(FunctionSink(accept))
        await one.stop()
        await one.stop()


def test_pausing_closes_and_resuming_opens() -> None:
    one = outlet(FunctionSink(accept), paused=True)
    assert (one.open, one.free()) == (False, 0)
    one.paused = False
    assert (one.open, one.free()) == (True, one.subscription.concurrency)


def closed_into(seen: list[bool]) -> Callable[[Outlet], None]:
    """Return what notes whether a breaker is closed, each time it changes."""
    return lambda one: seen.append(one.breaker.closed)


class TestBreaker:
    """With a breaker that opens after three failures in a row."""

    POLICY = BreakerPolicy(failures=3, pause=timedelta(minutes=1))

    @pytest.mark.parametrize("concurrency", [1, 4])
    async def test_when_it_opens_nothing_more_is_started(self, concurrency: int) -> None:
        sink = FunctionSink(fail)
        seen, first, second = list[bool](), Watched.of(50), Watched.of(50)
        one = outlet(sink, breaker=self.POLICY, concurrency=concurrency, on_breaker_change=closed_into(seen))
        one.start(first.flight)
        one.start(second.flight)
        await over(first)
        await over(second)
        assert seen == [False]
        assert 3 <= len(sink.taken) <= 3 + concurrency - 1  # and what was running
        assert (first.ends, second.ends) == (1, 1)
        assert not first.flight.clean()
        assert not second.flight.clean()  # although nothing of it has failed
        assert (one.open, one.serving, one.free()) == (False, False, 0)

    @pytest.mark.parametrize("every", [1, 2, 3, 4])
    async def test_any_answer_between_failures_keeps_it_closed(self, every: int) -> None:
        """Successes are not reported one by one; they count all the same."""

        async def sometimes(delivery: Delivery) -> Outcome:
            if number(delivery.event) % every:
                return Failed("no")
            return ACCEPTED if number(delivery.event) % 2 else Rejected("never")

        sink = FunctionSink(sometimes)
        one, watched = outlet(sink, breaker=self.POLICY, concurrency=1), Watched.of(40)
        one.start(watched.flight)
        await over(watched)
        assert one.breaker.closed == (every < 4)
        assert len(sink.taken) == (40 if every < 4 else 4)

    async def test_failures_add_up_over_claims_unless_something_succeeds_in_between(self) -> None:
        answers: list[Outcome] = []

        async def answer(delivery: Delivery) -> Outcome:
            return answers[number(delivery.event)]

        one = outlet(FunctionSink(answer), breaker=self.POLICY, concurrency=1)
        for row, closed in (("FF", True), ("A", True), ("FFAAFF", True), ("AA", True), ("FF", True), ("F", False)):
            answers[:] = [Failed("no") if each == "F" else ACCEPTED for each in row]
            watched = Watched.of(len(row))
            one.start(watched.flight)
            await over(watched)
            assert one.breaker.closed == closed, row

    async def test_half_open_one_at_a_time_and_its_success_opens_the_way(self) -> None:
        gate = Gate()
        seen, watched = list[bool](), Watched.of(1)
        one = outlet(FunctionSink(gate), breaker=self.POLICY, concurrency=10, on_breaker_change=closed_into(seen))
        one.breaker.learn(Trip(1, timedelta(0)), monotonic())
        assert (one.open, one.serving, one.free(), one.accepts(5)) == (False, True, 1, 1)
        watched.flight.report_to(lambda *_: None)
        one.start(watched.flight)
        assert (one.free(), one.accepts(5)) == (0, 0)
        await eventually(lambda: gate.open)
        gate.let(0)
        await over(watched)
        assert seen == [True]
        assert (one.open, one.free(), one.accepts(5)) == (True, 10, 5)

    async def test_a_lost_lease_says_nothing_of_the_receiver(self) -> None:
        gate = Gate()
        one, watched = outlet(FunctionSink(gate), breaker=self.POLICY, concurrency=5), Watched.of(5)
        one.start(watched.flight)
        await eventually(lambda: one.running == 5)
        for index in range(5):
            one.cancel(watched.flight, index)
        await over(watched)
        assert len(watched.outcomes) == 5
        assert one.breaker.closed

    async def test_a_batch_that_fails_counts_once(self) -> None:
        class Batches(FunctionSink):
            batches = 0

            async def deliver_batch(self, deliveries: Sequence[Delivery]) -> list[Outcome]:
                self.batches += 1
                return [Failed("no")] * len(deliveries)

        sink = Batches(accept)
        one, watched = outlet(sink, breaker=self.POLICY, concurrency=1, batch=10), Watched.of(100)
        one.start(watched.flight)
        await over(watched)
        assert (sink.batches, one.breaker.closed) == (3, False)

    async def test_some_success_in_each_batch_keeps_it_closed(self) -> None:
        class Batches(FunctionSink):
            async def deliver_batch(self, deliveries: Sequence[Delivery]) -> list[Outcome]:
                return [ACCEPTED, *[Failed("no")] * (len(deliveries) - 1)]

        one, watched = outlet(Batches(accept), breaker=self.POLICY, concurrency=2, batch=10), Watched.of(100)
        one.start(watched.flight)
        await over(watched)
        assert one.breaker.closed


async def fail(_: Delivery) -> Outcome:
    await asyncio.sleep(0)
    return Failed("no")
