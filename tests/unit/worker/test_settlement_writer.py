from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence, Set
from datetime import timedelta
from typing import cast

import pytest
import structlog

from runner.delivery import DeliveryState, Lease
from runner.errors import StorageError, StorageLocked, StorageRefused, StorageUnavailable
from runner.event import Event
from runner.storage.contract.claims import Work
from runner.storage.contract.queue import WorkQueue
from runner.storage.contract.settlements import AttemptRecord, DeliveryRecord, Run, Settled
from runner.worker.dead_letters import DeadLetters
from runner.worker.settlement_writer import SettlementWriter
from tests.support.eventually import eventually


def record(seq: int) -> DeliveryRecord:
    return DeliveryRecord(seq, 1, DeliveryState.DELIVERED, 1, 99)


class Queue:
    """A queue that settles when it may, and notes what it was given together."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.writes: list[list[int]] = []
        self.attempts: list[list[int]] = []
        self.calls = 0
        self.errors: list[Exception] = []  # raised by the next calls, one each
        self.lost: set[int] = set()
        self.locked = False  # whether another session holds the events

    async def settle_deliveries(
        self, records: Sequence[DeliveryRecord], attempts: Sequence[AttemptRecord], ordered: Set[int]
    ) -> Sequence[tuple[int, int]]:
        self.calls += 1
        await self.open.wait()
        if self.errors:
            raise self.errors.pop(0)
        self.writes.append([each.seq for each in records])
        self.attempts.append([each.seq for each in attempts])
        return [(each.seq, each.subscription_id) for each in records if each.seq not in self.lost]

    async def settle(self, settled: Settled) -> int:
        if self.locked:
            raise StorageLocked("locked")
        if self.errors:
            raise self.errors.pop(0)
        return len([work for work in settled.works if work.seq not in self.lost])


def settling(queue: Queue, written: Callable[[Sequence[DeliveryRecord]], object]) -> SettlementWriter:
    store = cast("WorkQueue", queue)
    return SettlementWriter(store, DeadLetters(store), written)


@pytest.fixture
def queue() -> Queue:
    return Queue()


@pytest.fixture
def written() -> list[int]:
    return []


@pytest.fixture
async def writer(queue: Queue, written: list[int]) -> AsyncIterator[SettlementWriter]:
    one = settling(queue, lambda records: written.extend(each.seq for each in records))
    one.start()
    yield one
    queue.errors.clear()
    queue.open.set()
    await one.stop()


async def test_what_comes_during_a_write_goes_together_in_the_next(
    writer: SettlementWriter, queue: Queue, written: list[int]
) -> None:
    queue.open.clear()
    writer.submit(record(0), None)
    await eventually(lambda: queue.calls == 1)
    for seq in range(1, 200):
        writer.submit(record(seq), AttemptRecord(seq, 1, 1, timedelta(0)) if seq % 2 else None)
    assert written == []
    queue.open.set()
    await eventually(lambda: len(written) == 200)
    assert queue.writes == [[0], list(range(1, 200))]
    assert queue.attempts == [[], list(range(1, 200, 2))]


async def test_it_is_patient_while_the_store_is_away(
    writer: SettlementWriter, queue: Queue, written: list[int]
) -> None:
    queue.errors = [StorageUnavailable("away")] * 2
    writer.submit(record(1), None)
    await eventually(lambda: queue.calls == 1)
    writer.submit(record(2), None)
    await eventually(lambda: written == [1, 2])
    assert queue.writes == [[1], [2]]


async def test_one_write_that_the_store_refuses_does_not_hold_up_the_next(
    writer: SettlementWriter, queue: Queue, written: list[int]
) -> None:
    queue.errors = [StorageError("refused")]
    queue.open.clear()
    with structlog.testing.capture_logs() as logs:
        writer.submit(record(1), None)
        await eventually(lambda: queue.calls == 1)
        writer.submit(record(2), None)
        queue.open.set()
        await eventually(lambda: written == [2])
    assert [(entry["log_level"], entry["count"]) for entry in logs] == [("error", 1)]


async def test_a_claim_whose_lease_was_lost_is_told_in_the_log(writer: SettlementWriter, queue: Queue) -> None:
    event = Event.new("order.created", source="/test")
    works = [Work(seq, 1, seq, event) for seq in range(4)]
    with structlog.testing.capture_logs() as logs:
        await writer.settle(Settled(99, works, [Run((1,), 4)]))
        queue.lost = {0, 2, 3}
        await writer.settle(Settled(99, works, [Run((1,), 4)]))
    assert [(entry["event"], entry["count"]) for entry in logs] == [("late settlements dropped", 3)]


@pytest.mark.parametrize(
    "errors",
    [[StorageLocked("locked")], [StorageRefused("odd")], [StorageLocked("locked"), StorageRefused("odd")]],
    ids=["locked", "refused", "locked and then refused"],
)
async def test_what_waits_of_an_event_that_was_settled_apart_is_told_like_any_other(
    writer: SettlementWriter, queue: Queue, written: list[int], errors: list[Exception]
) -> None:
    """Or nobody would look for it before the next event comes."""
    queue.errors = [*errors]
    waits = DeliveryRecord(1, 2, DeliveryState.PENDING, 0, 99)
    settled = Settled(99, [Work(1, 1, 1, Event.new("order.created", source="/test"))], [Run((), 1)], [waits])
    told = [*await writer.settle(settled)]
    if isinstance(errors[0], StorageLocked):  # then it is told later
        assert told == []
        await eventually(lambda: written == [1])
    else:
        assert told == [waits]


async def test_what_becomes_of_the_deliveries_of_a_held_event_is_written_after_it(
    writer: SettlementWriter, queue: Queue, written: list[int]
) -> None:
    queue.locked = True
    event = Event.new("order.created", source="/test")
    runs = DeliveryRecord(1, 1, DeliveryState.LEASED, 1, 99, timedelta(seconds=30))
    assert await writer.settle(Settled(99, [Work(1, 1, 1, event)], [Run((), 1)], [runs])) == ()
    lease = Lease(1, 1, 1, 99)
    assert writer.awaits(lease)
    assert not writer.awaits(Lease(1, 1, 1, 100))
    writer.submit(record(1), None)
    writer.submit(record(2), None)
    await eventually(lambda: written == [2])
    assert writer.delayed == 1
    queue.locked = False
    await eventually(lambda: queue.writes == [[2], [1]])
    assert not writer.awaits(lease)
    await eventually(lambda: written == [2, 1, 1])  # at last the delivery, after the end of its dispatch


async def test_what_is_held_when_it_stops_is_left_to_its_lease(writer: SettlementWriter, queue: Queue) -> None:
    queue.locked = True
    event = Event.new("order.created", source="/test")
    await writer.settle(Settled(99, [Work(1, 1, 1, event)], [Run((1,), 1)]))
    writer.submit(record(1), None)
    await writer.stop(timeout=0.01)
    assert writer.delayed == 0
    assert queue.writes == []


async def test_late_settlements_are_dropped_with_a_word_in_the_log(
    writer: SettlementWriter, queue: Queue, written: list[int]
) -> None:
    queue.lost = {1, 3}
    queue.open.clear()
    with structlog.testing.capture_logs() as logs:
        for seq in range(4):
            writer.submit(record(seq), None)
        queue.open.set()
        await eventually(lambda: len(written) == 4)
    assert [(entry["event"], entry["count"]) for entry in logs] == [("late settlements dropped", 2)]


async def test_stop_waits_for_what_is_left(writer: SettlementWriter, queue: Queue) -> None:
    writer.submit(record(1), None)
    await writer.stop()
    assert queue.writes == [[1]]


async def test_stop_does_not_wait_for_ever_and_ends_the_patience(writer: SettlementWriter, queue: Queue) -> None:
    queue.errors = [StorageUnavailable("away")] * 1000
    with structlog.testing.capture_logs() as logs:
        writer.submit(record(1), None)
        await writer.stop(timeout=0.1)
        calls = queue.calls
        await eventually(lambda: any(entry["log_level"] == "error" for entry in logs))
    assert queue.calls <= calls + 1


async def test_it_can_be_started_again(writer: SettlementWriter, queue: Queue, written: list[int]) -> None:
    await writer.stop()
    writer.start()
    queue.errors = [StorageUnavailable("away")]
    writer.submit(record(1), None)
    await eventually(lambda: written == [1])


async def test_patiently_returns_the_answer_and_lets_other_errors_through(writer: SettlementWriter) -> None:
    answers: list[Exception | int] = [StorageUnavailable("away"), 7]

    async def write() -> int:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert await writer.patiently(write) == 7
    answers = [StorageError("refused")]
    with pytest.raises(StorageError, match="refused"):
        await writer.patiently(write)


async def test_it_may_be_stopped_before_anything() -> None:
    one = settling(Queue(), lambda _: None)
    await one.stop()
    await one.stop()
