from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from math import inf
from time import monotonic
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from runner.delivery import ACCEPTED, Delivery, DeliveryState, Outcome
from runner.errors import StorageUnavailable
from runner.policies.filter import FilterError
from runner.policies.limits import WorkerLimits
from runner.storage.contract.claims import Claim, ExpiredClaim, Work
from runner.storage.contract.queue import WorkQueue
from runner.storage.contract.registry import Registered, Registry
from runner.storage.contract.settlements import Settled
from runner.subscription import Subscription
from runner.worker.budget import MEMORY
from runner.worker.worker import Worker
from tests.support.eventually import eventually

from .deliveries import FunctionSink, accept, tick, works

BATCH = 5


class Store:
    """A queue and registry without deliveries, with what they answer in the test's hands."""

    def __init__(self) -> None:
        self.version = 1
        self.works: list[Work] = []  # that wait to be claimed
        self.settled: list[Settled] = []
        self.open = asyncio.Event()  # whether dispatches can be settled
        self.readable = True  # whether the subscriptions compile
        self.claims = 0
        self.answers = asyncio.Event()  # whether a claim is answered
        self.answers.set()
        self.registered: list[Registered] = []
        self.failing: set[int] = set()  # numbers of claims
        self.held: int | None = None  # with so few works left or less, claims wait for `answers` to be set
        self.reads = 0  # of the subscriptions
        self.reading = asyncio.Event()  # whether they are answered
        self.reading.set()

    async def claim(self, limit: int, lease: timedelta, weight: int = 0) -> Claim:
        self.claims += 1
        number = self.claims
        if self.held is not None and len(self.works) <= self.held:
            self.held = None
            self.answers.clear()
        await self.answers.wait()
        if number in self.failing:
            raise StorageUnavailable("the connection was lost")
        taken, self.works = self.works[:limit], self.works[limit:]
        return Claim(1, taken, self.version, weight=len(taken))

    async def claim_expired(self, limit: int, lease: timedelta) -> ExpiredClaim:
        return ExpiredClaim(1, (), 0, None)

    async def settle(self, settled: Settled) -> int:
        await self.open.wait()
        self.settled.append(settled)
        return len(settled.works)

    async def subscriptions(self) -> tuple[int, Sequence[Registered]]:
        await self.reading.wait()
        if not self.readable:
            raise FilterError("sql: unknown dialect")
        self.reads += 1
        return self.version, self.registered


@pytest.fixture
def store() -> Store:
    return Store()


async def told() -> None: ...


def make(store: object, **limits: Any) -> Worker:
    return Worker(cast("WorkQueue", store), cast("Registry", store), {}, WorkerLimits(**limits), notify=told)


class TestHandOver:
    @pytest.fixture
    async def worker(self, store: Store) -> AsyncIterator[Worker]:
        """A worker that has found nothing to do."""
        worker = make(store, batch=BATCH, grace=timedelta(0))
        assert worker.dispatcher.lease_for(1, 0) is None  # it does not know yet whether anything older waits
        await worker.start()
        await eventually(lambda: worker.dispatcher.lease_for(1, 0))
        yield worker
        store.open.set()
        await worker.stop(timedelta(0))

    async def test_two_batches_at_most_and_under_a_short_lease(self, worker: Worker) -> None:
        lease = worker.dispatcher.lease_for(2 * BATCH, 0)
        assert lease is not None
        assert lease <= timedelta(seconds=5)
        assert worker.dispatcher.lease_for(2 * BATCH + 1, 0) is None

    async def test_nothing_while_it_declines(self, worker: Worker) -> None:
        worker.stop_accepting()
        assert worker.dispatcher.lease_for(1, 0) is None

    async def test_nothing_beyond_what_it_has_in_hand(self, worker: Worker, store: Store) -> None:
        worker.dispatcher.take(Claim(2, works(3), 1), inf)
        assert worker.dispatcher.lease_for(2 * BATCH - 3, 0)
        assert worker.dispatcher.lease_for(2 * BATCH - 2, 0) is None
        store.open.set()
        await eventually(lambda: worker.dispatcher.lease_for(2 * BATCH, 0))
        assert [len(each.works) for each in store.settled] == [3]

    async def test_nothing_while_older_events_wait(self, worker: Worker, store: Store) -> None:
        store.works = works(3 * BATCH)
        worker.wake()
        await eventually(lambda: len(store.works) == BATCH)  # it has two batches in hand, and there are more
        assert worker.dispatcher.lease_for(1, 0) is None
        store.open.set()
        await eventually(lambda: worker.dispatcher.lease_for(1, 0))
        assert store.works == []

    async def test_nothing_and_no_claim_while_the_subscriptions_cannot_be_read(
        self, worker: Worker, store: Store
    ) -> None:
        store.readable, store.version, claims = False, 2, store.claims
        with capture_logs() as lines:
            worker.wake()
            await eventually(lambda: len(lines) >= 3)
            assert {line["error"] for line in lines} == {"FilterError"}
            assert store.claims == claims + 1
            assert worker.dispatcher.lease_for(1, 0) is None
            store.readable = True
            await eventually(lambda: worker.dispatcher.lease_for(1, 0))

    async def test_what_was_claimed_in_vain_weighs_nothing(self, worker: Worker, store: Store) -> None:
        """Its lease ends, and others may be able to read the subscriptions."""
        store.readable, store.version, store.works = False, 2, works(3)
        with capture_logs() as lines:
            worker.wake()
            await eventually(lambda: lines)
        store.readable = True
        await eventually(lambda: worker.dispatcher.lease_for(1, MEMORY))

    async def test_what_was_taken_under_newer_subscriptions_is_dispatched_once_they_are_read(
        self, worker: Worker, store: Store
    ) -> None:
        store.open.set()
        store.version = 2
        worker.dispatcher.take(Claim(2, works(2), 2), inf)
        await eventually(lambda: [len(each.works) for each in store.settled] == [2])

    @pytest.mark.parametrize("claimed", [False, True], ids=["handed over", "claimed"])
    async def test_what_outlived_its_lease_while_the_subscriptions_were_read_does_not_start(
        self, store: Store, claimed: bool
    ) -> None:
        """Others have it by then."""
        sink, store.registered = FunctionSink(accept), [Registered(1, Subscription(name="s", sink="sink"), False, "f")]
        worker = make(store, lease=timedelta(seconds=0.3))
        worker.serve("sink", sink)
        await worker.start()
        await eventually(lambda: worker.dispatcher.lease_for(1, 0))
        store.reading.clear()
        store.version, until = 2, monotonic() + 0.3
        if claimed:
            store.works = works(3)
            worker.wake()
        else:
            worker.dispatcher.take(Claim(2, works(3), 2), until)
        with capture_logs() as lines:
            await eventually(lambda: not store.works and monotonic() > until + 0.1)
            assert sink.taken == []
            store.reading.set()
            await eventually(lambda: {"event": "late claim dropped", "events": 3, "log_level": "warning"} in lines)
        assert sink.taken == []
        await worker.stop(timedelta(0))

    async def test_a_claim_that_hangs_is_told_from_a_worker_that_is_idle(self, worker: Worker, store: Store) -> None:
        assert worker.stalled == timedelta(0)
        store.answers.clear()
        worker.wake()
        await eventually(lambda: worker.stalled > timedelta(milliseconds=20))
        store.answers.set()
        await eventually(lambda: worker.stalled == timedelta(0))


class TestGrace:
    """Each delivery takes half of the grace, and one runs at a time."""

    @pytest.fixture
    async def worker(self, store: Store) -> AsyncIterator[Worker]:
        async def deliver(_: Delivery) -> Outcome:
            await asyncio.sleep(0.05)
            return ACCEPTED

        store.open.set()
        steady = Subscription(name="steady", sink="sink", types=("t",), concurrency=1)
        store.registered.append(Registered(1, steady, False, "file"))
        worker = make(store, batch=BATCH, grace=timedelta(milliseconds=100), stretch=100)
        worker.serve("sink", FunctionSink(deliver))
        yield worker
        await worker.stop(timedelta(0))

    async def test_what_keeps_up_is_settled_while_it_goes_on_and_none_becomes_a_row(
        self, worker: Worker, store: Store
    ) -> None:
        store.works = works(BATCH)
        await worker.start()
        await eventually(lambda: sum(len(each.works) for each in store.settled) == BATCH)
        assert len(store.settled) > 1
        assert [each.records for each in store.settled if each.records] == []
        assert [work.seq for each in store.settled for work in each.works] == list(range(BATCH))
        await eventually(lambda: worker.dispatcher.lease_for(2 * BATCH, 0))  # it has no event in hand

    async def test_it_ends_in_time_for_what_has_an_order(self, worker: Worker, store: Store) -> None:
        ordered = Subscription(name="ordered", sink="elsewhere", types=("other",), order_by="subject")
        store.registered.append(Registered(2, ordered, False, "file"))
        store.works = works(BATCH)
        with capture_logs():  # the store of this test has no single deliveries
            await worker.start()
            await eventually(lambda: store.settled)
            assert len(store.settled[0].works) == BATCH
            assert DeliveryState.PENDING in {record.state for record in store.settled[0].records}
            await worker.stop(timedelta(0))

    async def test_events_that_cannot_be_settled_are_let_go_of(
        self, worker: Worker, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Their lease ends, and they are dispatched again."""

        async def settle(_: Settled) -> int:
            raise ValueError("no such column")

        monkeypatch.setattr(store, "settle", settle)
        store.works = works(BATCH)
        with capture_logs() as lines:
            await worker.start()
            await eventually(lambda: [line for line in lines if line["event"] == "dispatch failed"])
            await eventually(lambda: worker.dispatcher.lease_for(2 * BATCH, 0))
            assert not worker.roster.outlets[1].flights
            await worker.stop(timedelta(0))


class TestClaimsAhead:
    """While there is more than one claim takes."""

    async def test_the_next_one_is_sent_before_the_deliveries_of_this_one_begin(self, store: Store) -> None:
        seen: list[int] = []  # claims sent by the time a delivery began

        async def deliver(_: Delivery) -> Outcome:
            seen.append(store.claims)
            return ACCEPTED

        worker = await self._idle(store, FunctionSink(deliver))
        before = store.claims
        store.works = works(BATCH + 1)
        worker.wake()
        await eventually(lambda: len(seen) == BATCH + 1)
        assert set(seen[:BATCH]) == {before + 2}
        await worker.stop(timedelta(0))

    @pytest.mark.parametrize("version", [1, 2])
    async def test_what_is_on_its_way_at_a_stop_is_seen_to_its_end(self, store: Store, version: int) -> None:
        """Under the subscriptions it was claimed under, which others may have changed meanwhile."""
        worker = await self._idle(store, FunctionSink(accept), ahead=3)
        store.works, before = works(3 * BATCH), store.claims
        store.held = 2 * BATCH
        worker.wake()
        await eventually(lambda: store.settled and store.claims >= before + 3)
        reads, store.version = store.reads, version
        stopping = asyncio.create_task(worker.stop(timedelta(seconds=5)))
        await eventually(lambda: worker.dispatcher._stopping)
        store.answers.set()
        await stopping
        assert sum(len(each.works) for each in store.settled) == 3 * BATCH
        assert store.works == []
        assert (store.reads > reads) == (version == 2)

    async def test_no_more_is_claimed_than_there_is_room_for_though_answers_come_in_any_order(
        self, store: Store
    ) -> None:
        worker = await self._idle(store, FunctionSink(accept))
        store.works = works(40 * BATCH)
        most = 0

        async def claim(limit: int, lease: timedelta, weight: int = 0, plain: Any = store.claim) -> Claim:
            nonlocal most
            most = max(most, worker.dispatcher._held + worker.dispatcher._claims.unanswered * BATCH)
            await tick(store.claims % 3)
            return cast("Claim", await plain(limit, lease))

        store.claim = claim  # type: ignore[method-assign]
        worker.wake()
        await eventually(lambda: sum(len(each.works) for each in store.settled) == 40 * BATCH)
        assert most == 2 * BATCH
        await worker.stop(timedelta(0))

    async def test_an_answer_that_came_after_the_end_of_its_lease_is_dropped(self, store: Store) -> None:
        sink = FunctionSink(accept)
        worker = await self._idle(store, sink, lease=timedelta(milliseconds=50))
        store.answers.clear()
        store.works, before, began = works(3), store.claims, monotonic()
        worker.wake()
        with capture_logs() as lines:
            await eventually(lambda: store.claims > before and monotonic() - began > 0.2)
            store.answers.set()
            await eventually(lambda: {"event": "late claim dropped", "events": 3, "log_level": "warning"} in lines)
        assert sink.taken == []
        await worker.stop(timedelta(0))

    async def test_a_look_that_began_before_another_failed_is_not_the_last(self, store: Store) -> None:
        """It may have passed over rows which the failed one had locked, and which are free again."""
        worker = await self._idle(store, FunctionSink(accept))
        first, plain = store.claims + 1, store.claim

        async def claim(limit: int, lease: timedelta, weight: int = 0) -> Claim:
            number = store.claims + 1
            answer = await plain(limit, lease)
            if number == first + 2:
                store.works = works(BATCH)
            return answer

        store.claim = claim  # type: ignore[method-assign]
        store.works, store.held, store.failing = works(BATCH), 0, {first + 1}
        worker.wake()
        await eventually(lambda: store.claims == first + 2)
        with capture_logs():
            store.answers.set()
            await eventually(lambda: sum(len(each.works) for each in store.settled) == 2 * BATCH)
        await worker.stop(timedelta(0))

    async def test_one_that_fails_is_made_again(self, store: Store) -> None:
        worker = await self._idle(store, FunctionSink(accept))
        store.works, store.failing = works(2 * BATCH), {store.claims + 2}
        with capture_logs() as lines:
            worker.wake()
            await eventually(lambda: sum(len(each.works) for each in store.settled) == 2 * BATCH)
        assert [line["error"] for line in lines if line["event"] == "loop failed"] == ["StorageUnavailable"]
        await worker.stop(timedelta(0))

    async def _idle(self, store: Store, sink: FunctionSink, **more: Any) -> Worker:
        """Return a worker that has found nothing to do."""
        store.open.set()
        store.registered = [Registered(1, Subscription(name="s", sink="sink"), False, "file")]
        limits = WorkerLimits(batch=BATCH, **more)
        worker = Worker(cast("WorkQueue", store), cast("Registry", store), {"sink": sink}, limits, notify=told)
        await worker.start()
        await eventually(lambda: worker.dispatcher.lease_for(1, 0))
        return worker
