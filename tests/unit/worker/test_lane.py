"""Handlers that end, or try to end, the task they run in: each delivery is what its handler made of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import CancelledError as ThreadCancelledError
from time import monotonic
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from runner.delivery import ACCEPTED, Delivery, Failed, Outcome
from runner.sinks.python import PythonSink
from runner.storage.contract.claims import Work
from runner.worker.feedback import Feedback
from runner.worker.flight import SUCCEEDED, Flight
from runner.worker.outlet import Outlet, Slots
from tests.support.eventually import eventually

from .deliveries import FunctionSink, accept, number, outlet, tick, works

Behaviour = Callable[[], Awaitable[None]]


def own_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def cancels_itself() -> None:
    own_task().cancel()
    await asyncio.sleep(0)


async def cancels_itself_and_returns() -> None:
    own_task().cancel()


async def cancels_itself_twice() -> None:
    own_task().cancel()
    own_task().cancel()
    await forever()


async def cancels_itself_and_swallows() -> None:
    own_task().cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(0)


async def cancels_itself_and_raises() -> None:
    own_task().cancel()
    try:
        await asyncio.sleep(0)
    finally:
        raise ValueError("cleaning up failed")


async def takes_back_too_much() -> None:
    for _ in range(3):
        own_task().uncancel()


async def is_cancelled_by_a_child() -> None:
    parent = own_task()

    async def child() -> None:
        parent.cancel()

    await asyncio.gather(asyncio.create_task(child()), forever())


async def leaves_a_child_that_cancels_later() -> None:
    task, loop = own_task(), asyncio.get_running_loop()
    loop.call_soon(lambda: loop.call_soon(task.cancel))


async def leaves_a_child_that_cancels_between() -> None:
    asyncio.get_running_loop().call_soon(own_task().cancel)
    await asyncio.sleep(0)


async def fails_in_a_group() -> None:
    async def child() -> None:
        raise ValueError("a child failed")

    async with asyncio.TaskGroup() as group:
        group.create_task(child())
        await forever()


async def cancels_in_a_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(forever())
        own_task().cancel()


async def runs_out_of_time() -> None:
    async with asyncio.timeout(0):
        await forever()


async def runs_out_of_time_while_cancelled() -> None:
    async with asyncio.timeout(0):
        own_task().cancel()
        await forever()


async def awaits_what_was_cancelled() -> None:
    other = asyncio.create_task(forever())
    other.cancel()
    await other


async def fails() -> None:
    await asyncio.sleep(0)
    raise ValueError("no")


async def succeeds() -> None:
    return None


async def succeeds_later() -> None:
    await tick(3)


def raises(error: BaseException) -> Behaviour:
    async def raise_() -> None:
        raise error

    raise_.__name__ = f"raises_{type(error).__name__}"
    return raise_


FAILING: Sequence[Behaviour] = [
    cancels_itself,
    cancels_itself_twice,
    cancels_itself_and_raises,
    is_cancelled_by_a_child,
    fails_in_a_group,
    cancels_in_a_group,
    runs_out_of_time,
    runs_out_of_time_while_cancelled,
    awaits_what_was_cancelled,
    raises(asyncio.CancelledError()),
    raises(GeneratorExit()),
    raises(SystemExit(3)),
    raises(BaseException("odd")),
    raises(ValueError("no")),
    raises(StopAsyncIteration()),
]
SUCCEEDING: Sequence[Behaviour] = [
    cancels_itself_and_returns,
    cancels_itself_and_swallows,
    takes_back_too_much,
    leaves_a_child_that_cancels_later,
    succeeds,
    succeeds_later,
]
names = pytest.mark.parametrize("behaviour", [*FAILING, *SUCCEEDING], ids=lambda each: each.__name__)


class Handlers:
    """A sink whose n-th event meets the n-th behaviour, and which knows of each whether it returned."""

    def __init__(self, behaviours: Sequence[Behaviour]) -> None:
        self._behaviours = behaviours
        self.started: list[int] = []
        self.returned: set[int] = set()

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def deliver(self, delivery: Delivery) -> Outcome:
        await self._meet(number(delivery.event))
        return ACCEPTED

    async def _meet(self, n: int) -> None:
        self.started.append(n)
        await self._behaviours[n]()
        self.returned.add(n)


class BatchHandlers(Handlers):
    async def deliver_batch(self, deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        numbers = [number(each.event) for each in deliveries]
        self.started += numbers
        await self._behaviours[numbers[0]]()
        self.returned.update(numbers)
        return [ACCEPTED] * len(numbers)


class Told:
    """A flight, and what was said of its deliveries."""

    def __init__(self, count: int) -> None:
        self.reported: list[tuple[int, Outcome]] = []
        self.ends = 0
        self.flight: Flight[Work] = Flight(works(count), ended=self._end)

    def _end(self) -> None:
        self.ends += 1

    def report(self, index: int, outcome: Outcome, _: float) -> None:
        self.reported.append((index, outcome))

    @property
    def delivered(self) -> set[int]:
        silent = {index for index, mark in enumerate(self.flight.marks) if mark == SUCCEEDED}
        aloud = {index for index, outcome in self._aloud if outcome is ACCEPTED}
        assert silent.isdisjoint(aloud)
        return silent | aloud

    @property
    def failed(self) -> dict[int, Outcome]:
        return {index: outcome for index, outcome in self._aloud if outcome is not ACCEPTED}

    @property
    def _aloud(self) -> list[tuple[int, Outcome]]:
        aloud = [(index, outcome) for index, outcome, _ in self.flight.troubles] + self.reported
        assert len(aloud) == len(dict(aloud)), "told twice"
        return aloud


async def settled(one: Outlet, told: Told) -> None:
    await eventually(lambda: told.flight.over and not one.running)


class TestWhatEndsItsOwnTask:
    @pytest.mark.parametrize("watched", [False, True], ids=["dispatched", "held"])
    @pytest.mark.parametrize("batch", [None, 2], ids=["singly", "batched"])
    @names
    async def test_it_is_what_it_was_and_the_others_are_delivered(
        self, behaviour: Behaviour, batch: int | None, watched: bool
    ) -> None:
        plan = [succeeds_later, succeeds, behaviour, behaviour, succeeds, succeeds_later, succeeds]
        handlers = BatchHandlers(plan) if batch else Handlers(plan)
        one, told = outlet(handlers, concurrency=1, batch=batch), Told(len(plan))  # type: ignore[arg-type]  # a sink of another class
        if watched:
            told.flight.report_to(told.report)
        one.start(told.flight)
        await settled(one, told)
        assert sorted(handlers.started) == list(range(len(plan)))
        assert told.delivered == handlers.returned
        assert set(told.failed) == set(range(len(plan))) - handlers.returned
        assert told.flight.clean() == (behaviour in SUCCEEDING and not watched and not told.failed)
        if behaviour is not leaves_a_child_that_cancels_later:  # which may hit the one after it
            assert {4, 5, 6} <= told.delivered
            assert told.delivered >= {2, 3} if behaviour in SUCCEEDING else told.delivered.isdisjoint({2, 3})
        assert told.ends == 1

    @settings(max_examples=200, deadline=None)
    @given(
        behaviours=st.lists(st.sampled_from([*FAILING, *SUCCEEDING, forever]), min_size=1, max_size=10),
        concurrency=st.integers(1, 4),
        batch=st.sampled_from([None, 1, 3]),
        cut_after=st.none() | st.integers(0, 12),
    )
    def test_any_sequence_of_them_is_settled_as_what_it_was(
        self, behaviours: list[Behaviour], concurrency: int, batch: int | None, cut_after: int | None
    ) -> None:
        async def scenario() -> None:
            handlers = BatchHandlers(behaviours) if batch else Handlers(behaviours)
            slots, told = Slots(3), Told(len(behaviours))
            one = outlet(handlers, concurrency=concurrency, batch=batch, slots=slots)  # type: ignore[arg-type]  # a sink of another class
            one.start(told.flight)
            if cut_after is not None:
                await tick(cut_after)
                one.withdraw(told.flight)
                await tick(2)
                told.flight.report_to(told.report)
            while not told.flight.over or one.running:
                await tick(20)
                one.overdue(monotonic() + 60)
            started = set(range(told.flight.next))
            assert set(handlers.started) == started
            assert cut_after is not None or len(started) == len(behaviours)
            assert told.delivered == handlers.returned
            assert set(told.failed) == started - handlers.returned
            assert slots.used == 0

        asyncio.run(scenario())

    @pytest.mark.parametrize("batch", [None, 2], ids=["singly", "batched"])
    async def test_a_timeout_at_the_moment_of_its_own_cancel_is_a_failure(self, batch: int | None) -> None:
        async def hangs() -> None:
            try:
                await forever()
            finally:
                own_task().cancel()
                await asyncio.sleep(0)

        plan: list[Behaviour] = [hangs, succeeds, succeeds]
        handlers = BatchHandlers(plan) if batch else Handlers(plan)
        one, told = outlet(handlers, concurrency=1, batch=batch), Told(3)  # type: ignore[arg-type]  # a sink of another class
        one.start(told.flight)
        await eventually(lambda: handlers.started)
        one.overdue(monotonic() + 60)
        await settled(one, told)
        assert told.failed == dict.fromkeys(range(batch or 1), Failed("no answer within 25 s"))

    async def test_what_one_leaves_behind_is_not_met_by_the_next(self) -> None:
        """Counts of cancellations, which groups and timeouts of a later handler would stumble over."""
        seen: list[tuple[int, asyncio.Task[Any]]] = []

        async def looks() -> None:
            seen.append((own_task().cancelling(), own_task()))

        plan = [cancels_itself_and_swallows, looks, cancels_itself, looks, cancels_itself_and_returns, looks]
        one, told = outlet(Handlers(plan), concurrency=1), Told(6)  # type: ignore[arg-type]  # a sink of another class
        one.start(told.flight)
        await settled(one, told)
        assert [count for count, _ in seen] == [0, 0, 0]
        assert len({task for _, task in seen}) == 3

    async def test_a_lane_that_is_cancelled_before_it_began_leaves_its_work_to_another(self) -> None:
        one, told = outlet(FunctionSink(accept), concurrency=1), Told(3)
        one.start(told.flight)
        [lane] = one._lanes
        lane.task.cancel()
        await settled(one, told)
        assert told.delivered == {0, 1, 2}

    async def test_the_end_of_the_loop_is_no_answer(self) -> None:
        one, told = outlet(Handlers([forever, succeeds]), concurrency=1), Told(2)  # type: ignore[arg-type]  # a sink of another class
        one.start(told.flight)
        await tick(2)
        [task] = [lane.task for lane in one._lanes]
        task.get_coro().close()  # what the interpreter does to a task nobody has
        assert (told.delivered, told.failed, one.running) == (set(), {}, 0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def test_the_end_of_asyncio_run_is_no_answer_and_no_failure(self) -> None:
        async def scenario() -> None:
            one.start(told.flight)
            await tick(5)

        told = Told(3)
        one = outlet(Handlers([succeeds, forever, forever]), concurrency=2)  # type: ignore[arg-type]  # a sink of another class
        asyncio.run(scenario())
        assert (told.delivered, told.failed, told.flight.unanswered(), one.running) == ({0}, {}, [1, 2], 0)

    async def test_a_stop_leaves_what_was_running_without_an_outcome(self) -> None:
        one, told = outlet(Handlers([succeeds, forever, forever]), concurrency=3), Told(3)  # type: ignore[arg-type]  # a sink of another class
        one.start(told.flight)
        await tick(5)
        await one.stop()
        assert (told.delivered, told.failed, told.flight.unanswered(), told.ends) == ({0}, {}, [1, 2], 1)
        assert not told.flight.clean()

    async def test_a_fault_of_our_own_fails_what_it_met_and_the_rest_goes_on(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        outcome, faults = Feedback.outcome, [RuntimeError("a fault of our own")]

        def faulty(self: Feedback, *args: Any) -> None:
            if faults:
                raise faults.pop()
            outcome(self, *args)

        monkeypatch.setattr(Feedback, "outcome", faulty)
        one, told = outlet(Handlers([succeeds, fails, succeeds]), concurrency=1), Told(3)  # type: ignore[arg-type]  # a sink of another class
        with capture_logs() as lines:
            one.start(told.flight)
            await settled(one, told)
        assert (told.delivered, told.failed) == ({0, 2}, {1: Failed("ValueError: no")})
        assert [line["event"] for line in lines] == ["delivering failed"]

    def test_an_interrupt_by_the_keyboard_is_a_failure_and_goes_on(self) -> None:
        async def scenario() -> None:
            one.start(told.flight)
            await forever()

        told = Told(2)
        loop = asyncio.new_event_loop()
        one = outlet(Handlers([raises(KeyboardInterrupt()), succeeds]), concurrency=1)  # type: ignore[arg-type]  # a sink of another class
        main = loop.create_task(scenario())
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(main)
        assert told.failed == {0: Failed("KeyboardInterrupt")}
        loop.run_until_complete(settled(one, told))
        assert told.delivered == {1}
        main.cancel()
        loop.run_until_complete(asyncio.wait({main}))
        loop.close()


class TestThroughAPythonSink:
    """The same where a Python function is called, on the loop and in threads."""

    @pytest.mark.parametrize("takes_batches", [False, True])
    @names
    async def test_an_async_function(self, behaviour: Behaviour, takes_batches: bool) -> None:
        returned = []

        async def handler(_: Any) -> None:
            await behaviour()
            returned.append(1)

        told = await self.deliver(handler, takes_batches)
        assert len(told.delivered) == len(returned) * (2 if takes_batches else 1)
        assert len(told.delivered) + len(told.failed) == 4

    @pytest.mark.parametrize("takes_batches", [False, True])
    @pytest.mark.parametrize(
        "error",
        [
            SystemExit(3),
            StopIteration(),
            GeneratorExit(),
            KeyboardInterrupt(),
            asyncio.CancelledError(),
            ThreadCancelledError(),
            BaseException("odd"),
            ValueError("no"),
        ],
        ids=lambda error: f"{type(error).__module__}.{type(error).__name__}",
    )
    async def test_a_function_in_a_thread(self, error: BaseException, takes_batches: bool) -> None:
        def handler(_: Any) -> None:
            raise error

        told = await self.deliver(handler, takes_batches)
        assert sorted(told.failed) == [0, 1, 2, 3]

    @staticmethod
    async def deliver(handler: Callable[..., Any], takes_batches: bool) -> Told:
        sink, told = PythonSink(handler, threads=1), Told(4)
        one = outlet(sink, concurrency=1, batch=2 if takes_batches else None)  # type: ignore[arg-type]  # a sink of another class
        one.start(told.flight)
        await settled(one, told)
        await sink.stop()
        return told


class TestLease:
    """Nothing starts once the lease is over under which it is held."""

    @pytest.mark.parametrize("batch", [None, 2], ids=["singly", "batched"])
    async def test_what_waits_for_a_lane_when_its_lease_ends_does_not_start(self, batch: int | None) -> None:
        told = Told(6)

        async def outlasts_the_lease() -> None:
            told.flight.until = monotonic()

        handlers = (BatchHandlers if batch else Handlers)([succeeds, succeeds, outlasts_the_lease, *[succeeds] * 3])
        one = outlet(handlers, concurrency=1, batch=batch)  # type: ignore[arg-type]  # a sink of another class
        one.start(told.flight)
        await settled(one, told)
        assert handlers.started == list(range(4 if batch else 3))
        assert (told.delivered, told.failed, told.ends) == (set(handlers.started), {}, 1)

    async def test_what_comes_behind_it_starts(self) -> None:
        late, held = Told(3), Told(2)
        late.flight.until = monotonic()
        one = outlet(FunctionSink(accept), concurrency=1)
        one.start(late.flight)
        one.start(held.flight)
        await settled(one, held)
        assert (late.delivered, held.delivered, late.ends) == (set(), {0, 1}, 1)
