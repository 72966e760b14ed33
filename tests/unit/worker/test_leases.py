from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from time import monotonic
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from runner.delivery import ACCEPTED, Delivery, DeliveryState, Failed, Lease, Outcome
from runner.errors import StorageLocked, StorageRefused
from runner.storage.contract.queue import WorkQueue
from runner.storage.contract.settlements import AttemptRecord, DeliveryRecord
from runner.worker.budget import Budget
from runner.worker.flight import Flight
from runner.worker.leases import Leases
from runner.worker.outlet import Outlet
from runner.worker.settlement_writer import SettlementWriter
from tests.support.eventually import eventually

from .deliveries import FunctionSink, accept, number, outlet, tick, works

LEASE = timedelta(seconds=30)
TOKEN = 7


class Queue:
    """A queue in which everything is held but what is lost."""

    def __init__(self) -> None:
        self.lost: set[int] = set()
        self.refused: set[int] = set()
        self.locked: set[int] = set()
        self.renewed: list[list[int]] = []

    async def renew(self, leases: Sequence[Lease], duration: timedelta) -> Sequence[tuple[int, int]]:
        seqs = [each.seq for each in leases]
        if self.refused.intersection(seqs):
            raise StorageRefused("not this one")
        if self.locked.intersection(seqs):
            raise StorageLocked("another session")
        self.renewed.append(seqs)
        return [each.key for each in leases if each.seq not in self.lost]


class Written(list[DeliveryRecord]):
    """A writer that writes at once, but for what waits for its event."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: set[int] = set()

    def awaits(self, lease: Lease) -> bool:
        return lease.seq in self.waiting

    def submit(self, record: DeliveryRecord, attempt: AttemptRecord | None, recorded: float | None = None) -> None:
        self.append(record)

    @property
    def states(self) -> dict[int, tuple[DeliveryState, int]]:
        assert len({record.seq for record in self}) == len(self), "settled twice"
        return {record.seq: (record.state, record.attempts) for record in self}


async def waiting(gate: asyncio.Event) -> Outcome:
    await gate.wait()
    return ACCEPTED


@pytest.fixture
def queue() -> Queue:
    return Queue()


@pytest.fixture
def written() -> Written:
    return Written()


@pytest.fixture
def leases(queue: Queue, written: Written) -> Leases:
    return Leases(cast("WorkQueue", queue), cast("SettlementWriter", written), LEASE, asyncio.Event(), Budget())


def held(leases: Leases, one: Outlet, count: int, until: float | None = None) -> Flight[Any]:
    """Return a flight whose deliveries are held and have been handed to their outlet."""
    flight: Flight[Any] = Flight(works(count, attempt=3), monotonic() + 30 if until is None else until)
    leases.hold(one, flight, range(count), TOKEN)
    one.start(flight)
    return flight


PENDING, DELIVERED = DeliveryState.PENDING, DeliveryState.DELIVERED


async def test_what_comes_too_late_to_start_is_given_back_untried(leases: Leases, written: Written) -> None:
    sink = FunctionSink(accept)
    held(leases, outlet(sink), 3, until=monotonic())
    await eventually(lambda: not leases)
    assert (sink.taken, written.states) == ([], dict.fromkeys(range(3), (PENDING, 2)))


async def test_what_waits_for_a_lane_starts_only_while_its_lease_is_renewed(
    leases: Leases, queue: Queue, written: Written
) -> None:
    gate: asyncio.Queue[Outcome] = asyncio.Queue()

    async def deliver(_: Delivery) -> Outcome:
        return await gate.get()

    sink = FunctionSink(deliver)
    flight = held(leases, outlet(sink, concurrency=1), 4)
    for step in range(2):
        await eventually(partial(lambda last: sink.taken == list(range(last + 1)), step))
        flight.until = monotonic()  # as if the time had passed
        await leases.renew()
        assert flight.until > monotonic() + 20
        gate.put_nowait(ACCEPTED)
    await eventually(lambda: sink.taken == [0, 1, 2])
    flight.until = monotonic()
    gate.put_nowait(ACCEPTED)
    await eventually(lambda: not leases)
    assert sink.taken == [0, 1, 2]
    assert written.states == {**dict.fromkeys(range(3), (DELIVERED, 3)), 3: (PENDING, 2)}


async def test_what_was_lost_before_it_started_never_starts(leases: Leases, queue: Queue, written: Written) -> None:
    gate = asyncio.Event()

    async def deliver(_: Delivery) -> Outcome:
        await gate.wait()
        return ACCEPTED

    sink = FunctionSink(deliver)
    held(leases, outlet(sink, concurrency=1), 3)
    await eventually(lambda: sink.taken)
    queue.lost = {1}
    for _ in range(2):  # nor when the others are renewed once more
        await leases.renew()
    gate.set()
    await eventually(lambda: not leases)
    assert sink.taken == [0]
    assert written.states == {0: (DELIVERED, 3), 2: (PENDING, 2)}  # and nothing is said of the lost one


async def test_what_is_not_going_to_start_is_given_back_while_others_run(
    leases: Leases, queue: Queue, written: Written
) -> None:
    async def deliver(delivery: Delivery) -> Outcome:
        if number(delivery.event) == 0:
            await asyncio.get_running_loop().create_future()
        return ACCEPTED

    flight = held(leases, outlet(FunctionSink(deliver), concurrency=1), 3)
    await tick(3)
    flight.halt()
    await leases.renew()
    assert written.states == {1: (PENDING, 2), 2: (PENDING, 2)}
    assert queue.renewed == [[0]]


async def test_what_has_no_outcome_when_its_flight_is_over_is_not_renewed_for_ever(
    leases: Leases, queue: Queue, written: Written
) -> None:
    """A stop ends a lane in the middle of a delivery."""

    async def deliver(_: Delivery) -> Outcome:
        await asyncio.get_running_loop().create_future()
        return ACCEPTED

    one = outlet(FunctionSink(deliver), concurrency=2)
    held(leases, one, 3)
    await tick(5)
    await one.stop()
    assert written.states == {0: (PENDING, 3), 1: (PENDING, 3), 2: (PENDING, 2)}
    assert not leases
    await leases.renew()
    assert queue.renewed == []


async def test_a_flight_that_was_over_before_it_was_held_holds_nothing(leases: Leases, written: Written) -> None:
    async def deliver(delivery: Delivery) -> Outcome:
        await tick(3)
        return ACCEPTED if number(delivery.event) else Failed("no")

    one = outlet(FunctionSink(deliver), concurrency=3)
    flight: Flight[Any] = Flight(works(3))
    one.start(flight)
    await tick(3)
    one.withdraw(flight)
    running = one.in_flight(flight)
    await eventually(lambda: flight.over)
    leases.hold(one, flight, running, TOKEN)
    assert not leases
    assert {seq: state for seq, (state, _) in written.states.items()} == {0: PENDING, 1: DELIVERED, 2: DELIVERED}


async def test_a_renewal_that_is_refused_is_no_other_ones_and_ends_nothing(leases: Leases, queue: Queue) -> None:
    gate = asyncio.Event()

    async def deliver(_: Delivery) -> Outcome:
        await gate.wait()
        return ACCEPTED

    sink = FunctionSink(deliver)
    held(leases, outlet(sink, concurrency=5), 5)
    await eventually(lambda: len(sink.taken) == 5)
    queue.refused, queue.lost = {2}, {4}
    with capture_logs() as lines:
        await leases.renew()
    assert sorted(seq for some in queue.renewed for seq in some) == [0, 1, 3, 4]
    assert [(line["event"], line["seq"]) for line in lines] == [("lease not renewed", 2), ("lease lost", 4)]
    assert len(leases) == 4
    gate.set()
    await eventually(lambda: not leases)


async def test_what_is_not_on_record_yet_is_neither_renewed_nor_lost(
    leases: Leases, queue: Queue, written: Written
) -> None:
    gate = asyncio.Event()
    held(leases, outlet(FunctionSink(lambda _: waiting(gate)), concurrency=3), 3)
    written.waiting, queue.lost = {1}, {1}
    await leases.renew()
    assert queue.renewed == [[0, 2]]
    assert len(leases) == 3
    gate.set()
    await eventually(lambda: not leases)
    assert written.states == dict.fromkeys(range(3), (DELIVERED, 3))


async def test_what_could_not_be_renewed_goes_last_the_next_time(leases: Leases, queue: Queue) -> None:
    """Or two that another session holds would have all behind them given up, each time."""
    gate = asyncio.Event()
    held(leases, outlet(FunctionSink(lambda _: waiting(gate)), concurrency=5), 5)
    queue.locked = {0, 1}
    await leases.renew()
    assert queue.renewed == []
    await leases.renew()
    assert [seq for seqs in queue.renewed for seq in seqs] == [2, 3, 4]
    assert len(leases) == 5
    gate.set()
    await eventually(lambda: not leases)
