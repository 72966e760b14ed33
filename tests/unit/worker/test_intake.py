from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import cast

import pytest
from structlog.testing import capture_logs

from runner.errors import StorageUnavailable
from runner.event import Event
from runner.storage.contract.claims import CLAIM, Claim, ClaimedDelivery, Work
from runner.storage.contract.queue import WorkQueue
from runner.worker.budget import MEMORY, SPENT, Budget, spend
from runner.worker.intake import Intake

MIB = 1024 * 1024
LEASE = timedelta(seconds=30)


class Queue:
    """A queue of events of 1 MiB whose data is always left out, and what it was asked."""

    def __init__(self, attempts: Sequence[int] = (1,) * 8) -> None:
        self.attempts = attempts
        self.asked: list[int] = []
        self.fetched: list[list[int]] = []
        self.failing = False
        self.broken: set[int] = set()  # numbers of fetches
        self.missing: set[int] = set()  # seqs of events that are gone

    async def claim(self, limit: int, lease: timedelta, weight: int = 0) -> Claim:
        self.asked.append(weight)
        if self.failing:
            raise StorageUnavailable("no answer in time")
        event = Event(type="t", source="/s", id="1")
        works = [Work(seq, attempt, seq, event, MIB) for seq, attempt in enumerate(self.attempts)]
        return Claim(1, works, 1, weight=len(works) * MIB)

    async def contents(self, seqs: Sequence[int]) -> Mapping[int, bytes | None]:
        self.fetched.append(list(seqs))
        if len(self.fetched) in self.broken:
            raise StorageUnavailable("the connection was lost")
        return {seq: b"data" for seq in seqs if seq not in self.missing}


@pytest.fixture
def queue() -> Queue:
    return Queue()


@pytest.fixture
def budget() -> Budget:
    return Budget()


def intake(queue: Queue, budget: Budget, lease: timedelta = LEASE) -> Intake:
    return Intake(cast("WorkQueue", queue), budget, lease, crash_limit=3)


class TestClaim:
    async def test_a_failure_halves_the_next_one_down_to_a_little_and_successes_double_it(
        self, queue: Queue, budget: Budget
    ) -> None:
        one, queue.attempts = intake(queue, budget), ()
        queue.failing = True
        for _ in range(12):
            with pytest.raises(StorageUnavailable):
                await one.claim(500)
        assert queue.asked[:3] == [CLAIM, CLAIM // 2, CLAIM // 4]
        assert queue.asked[-1] == 64 * 1024  # in which one event of any weight goes
        queue.failing = False
        for _ in range(9):
            await one.claim(500)
        assert queue.asked[-1] == CLAIM
        assert budget.claimed == 0

    async def test_it_counts_from_the_question_until_it_is_settled(self, queue: Queue, budget: Budget) -> None:
        claim = await intake(queue, budget).claim(500)
        assert budget.claimed == claim.weight == 8 * MIB
        budget.claimed = MEMORY - 3 * MIB
        await intake(queue, budget).claim(500)
        assert queue.asked[-1] == 3 * MIB
        budget.claimed = 2 * MEMORY
        assert budget.full
        await intake(queue, budget).claim(500)
        assert queue.asked[-1] == 64 * 1024  # one event of any weight, or small ones together

    async def test_data_is_fetched_in_pieces(self, queue: Queue, budget: Budget) -> None:
        claim = await intake(queue, budget).claim(500)
        assert queue.fetched == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert {work.event.data for work in claim.works} == {b"data"}
        assert not any(work.size for work in claim.works)

    async def test_what_has_crashed_too_often_comes_without(self, budget: Budget) -> None:
        """It may be what kills: nothing but what it is called is needed to try its deliveries one by one."""
        queue = Queue((4, 1, 9))
        claim = await intake(queue, budget).claim(500)
        assert queue.fetched == [[1]]
        assert [work.seq for work in claim.works] == [0, 1, 2]

    async def test_what_did_not_come_is_left_to_the_end_of_its_lease(self, queue: Queue, budget: Budget) -> None:
        queue.broken, queue.missing = {2}, {1}
        with capture_logs() as lines:
            claim = await intake(queue, budget).claim(500)
        assert [work.seq for work in claim.works] == [0, 2, 3]
        assert [(line["event"], line["count"]) for line in lines] == [("events not fetched", 4)]
        assert claim.more

    async def test_a_fetch_takes_half_a_lease_at_most(self, queue: Queue, budget: Budget) -> None:
        with capture_logs() as lines:
            claim = await intake(queue, budget, timedelta(0)).claim(500)
        assert (claim.works, queue.fetched) == ([], [])
        assert [line["count"] for line in lines] == [8]


class TestFetch:
    async def test_only_what_is_missing(self, queue: Queue, budget: Budget) -> None:
        there = ClaimedDelivery(1, 1, 1, False, Event(type="t", source="/s", data=b"here"))
        missing = ClaimedDelivery(2, 1, 1, False, Event(type="t", source="/s"), size=20 * MIB)
        assert await intake(queue, budget).fetch([there, missing]) == [there, missing]
        assert (there.event.data, missing.event.data) == (b"here", b"data")
        assert queue.fetched == [[2]]


def test_an_event_that_is_spent_keeps_nothing_alive() -> None:
    works = [Work(seq, 1, seq, Event(type="t", source="/s", data=b"x")) for seq in range(3)]
    spend(works, {1})
    assert [work.event is SPENT for work in works] == [True, False, True]
