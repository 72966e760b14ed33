from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from runner.bus import commits
from runner.bus.bus import EventBus
from runner.errors import EventConflict, EventError, RunnerError, StorageLocked, StorageUnavailable
from runner.event import Event
from runner.storage.contract.claims import Claim, Work
from runner.storage.contract.events import EventStore, Publication, Receipt
from tests.support.eventually import eventually

from ..worker.deliveries import tick


class Store:
    """An event store in memory, with the fate of each commit in the test's hands."""

    def __init__(self) -> None:
        self.appends_at_once = 1
        self.commits: list[list[str]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.away = False
        self.locked = False
        self.began = 0
        self._known: dict[tuple[str, str], Event] = {}

    async def append(self, publications: Sequence[Publication]) -> Sequence[Receipt]:
        self.began += 1
        await self.open.wait()
        if self.away:
            raise StorageUnavailable("away")
        if self.locked:
            raise StorageLocked("another session")
        for event in (each.event for each in publications):
            if event.type == "odd":
                raise TypeError("a driver's own error")
            if self._known.get((event.source, event.id), event) != event:
                raise EventConflict(f"{event.id}: other content")
        self.commits.append([each.event.id for each in publications])
        return [self._record(each.event) for each in publications]

    async def append_leased(
        self, publications: Sequence[Publication], lease: timedelta
    ) -> tuple[Sequence[Receipt], Claim | None]:
        receipts = await self.append(publications)
        if any(each.duplicate for each in receipts):
            return receipts, None
        works = [
            Work(each.seq, 1, each.seq, publication.event)
            for each, publication in zip(receipts, publications, strict=True)
        ]
        return receipts, Claim(7, works, 1)

    def _record(self, event: Event) -> Receipt:
        duplicate = (event.source, event.id) in self._known
        self._known[event.source, event.id] = event
        return Receipt(event.source, event.id, list(self._known).index((event.source, event.id)) + 1, duplicate)


class Strategy:
    """A strategy that notes how much was recorded at each signal."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.signals: list[tuple[str, int]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def start(self, wake: object) -> None: ...

    async def stop(self) -> None: ...

    async def notify(self, event_id: str) -> None:
        self.signals.append((event_id, len(self.store.commits)))
        await self.gate.wait()


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def strategy(store: Store) -> Strategy:
    return Strategy(store)


@pytest.fixture
def bus(store: Store, strategy: Strategy) -> EventBus:
    return EventBus(cast("EventStore", store), strategy)


def two_at_once(store: Store, strategy: Strategy) -> EventBus:
    """Return a bus over a store in which two commits side by side are faster than one after the other."""
    store.appends_at_once = 2
    return EventBus(cast("EventStore", store), strategy)


def event(id: str, type: str = "t", data: bytes | None = None) -> Event:
    return Event(type=type, source="/s", id=id, data=data)


class TestGroupCommit:
    async def test_concurrent_publishers_share_commits_and_each_gets_its_own_receipt(
        self, bus: EventBus, store: Store
    ) -> None:
        ids = [str(n) for n in range(200)]
        receipts = await asyncio.gather(*[bus.publish(event(id)) for id in ids])
        assert [receipt.id for receipt in receipts] == ids
        assert len({receipt.seq for receipt in receipts}) == 200
        assert len(store.commits) <= 3

    async def test_who_waits_gets_an_answer_whatever_ends_the_commit(self, bus: EventBus, store: Store) -> None:
        store.open.clear()
        waiting = [asyncio.create_task(bus.publish(event(id))) for id in ("a", "b")]
        await eventually(lambda: store.began)
        [flush] = bus._commits._flushing
        flush.task.cancel()
        late = asyncio.create_task(bus.publish(event("c")))
        with pytest.raises(StorageUnavailable, match="cut off"):
            await waiting[0]
        store.open.set()
        await asyncio.wait([waiting[1], late])
        assert (await bus.publish(event("d"))).id == "d"

    async def test_what_comes_during_a_commit_goes_in_the_next(self, bus: EventBus, store: Store) -> None:
        store.open.clear()
        first = asyncio.create_task(bus.publish(event("first")))
        await eventually(lambda: store.began == 1)
        others = [asyncio.create_task(bus.publish(event(str(n)))) for n in range(50)]
        await tick(2)
        store.open.set()
        await asyncio.gather(first, *others)
        assert store.commits == [["first"], [str(n) for n in range(50)]]

    async def test_who_was_answered_together_is_shared_out_between_two_commits(
        self, bus: EventBus, store: Store
    ) -> None:
        async def caller(name: str) -> None:
            for number in range(2):
                await bus.publish(event(f"{name}{number}"))

        store.open.clear()
        callers = [asyncio.create_task(caller(name)) for name in "abcdefgh"]
        await eventually(lambda: store.began == 1)
        bus._commits._at_once = 2
        store.open.set()
        await asyncio.gather(*callers)
        assert [len(commit) for commit in store.commits] == [8, 4, 4]

    async def test_callers_out_of_step_find_each_other(self, bus: EventBus, store: Store) -> None:
        """One whose commit is over has often more to publish: it goes with those who waited meanwhile."""

        async def caller(name: str) -> None:
            for number in range(10):
                await bus.publish(event(f"{name}{number}"))

        store.open.clear()
        one = asyncio.create_task(caller("a"))
        await eventually(lambda: store.began == 1)
        other = asyncio.create_task(caller("b"))
        await tick(2)
        store.open.set()
        await asyncio.gather(one, other)
        assert store.commits == [["a0"], *[[f"b{n}", f"a{n + 1}"] for n in range(9)], ["b9"]]

    async def test_many_callers_that_come_back_one_by_one_share_a_commit(
        self, bus: EventBus, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(commits, "PAUSE", 0.05)  # seconds, in which a busy machine lets some of them come

        async def caller(number: int) -> None:
            await bus.publish(event(f"{number}"))
            for _ in range(number):
                await asyncio.sleep(0)
            await bus.publish(event(f"{number} again"))

        await asyncio.gather(*[caller(number) for number in range(commits.MANY)])
        assert [len(each) for each in store.commits] == [commits.MANY] * 2

    async def test_only_many_callers_of_the_one_commit_at_a_time_are_waited_for(
        self, bus: EventBus, store: Store, strategy: Strategy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(commits, "PAUSE", 3600.0)

        async def caller(bus: EventBus, name: str, turns: int) -> None:
            for number in range(3):
                await bus.publish(event(f"{name} {number}"))
                for _ in range(turns):
                    await asyncio.sleep(0)

        async with asyncio.timeout(30):
            await asyncio.gather(*[caller(bus, f"few {number}", number) for number in range(commits.MANY - 1)])
            await bus.stop()
            two = two_at_once(store, strategy)
            await asyncio.gather(*[caller(two, f"two {number}", number) for number in range(40)])
            await two.stop()

    async def test_callers_that_do_not_come_back_hold_up_nobody(self, bus: EventBus, store: Store) -> None:
        await asyncio.gather(*[bus.publish(event(f"{number}")) for number in range(40)])
        await bus.publish(event("more"))
        await bus.stop()
        assert [len(each) for each in store.commits] == [40, 1]

    async def test_a_caller_gets_the_receipts_of_its_own_batch_in_order(self, bus: EventBus) -> None:
        batches = [[event(f"{caller}-{n}") for n in range(caller + 1)] for caller in range(5)]
        answers = await asyncio.gather(*[bus.publish_many(batch) for batch in batches])
        assert [[receipt.id for receipt in answer] for answer in answers] == [
            [each.id for each in batch] for batch in batches
        ]

    async def test_a_commit_holds_no_more_than_its_limits_unless_one_caller_does(
        self, bus: EventBus, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(commits, "MAX_BATCH", 4)
        monkeypatch.setattr(commits, "MAX_BATCH_BYTES", 100)
        await asyncio.gather(*[bus.publish(event(str(n))) for n in range(6)])
        assert [len(commit) for commit in store.commits] == [4, 2]
        store.commits.clear()
        await asyncio.gather(*[bus.publish(event(f"b{n}", data=b"x" * 40)) for n in range(5)])
        assert [len(commit) for commit in store.commits] == [2, 2, 1]
        store.commits.clear()
        await asyncio.gather(
            bus.publish_many([event(f"c{n}", data=b"x" * 90) for n in range(7)]), bus.publish(event("d"))
        )
        assert [len(commit) for commit in store.commits] == [7, 1]

    async def test_where_two_commits_at_once_help_they_share_what_has_gathered(
        self, store: Store, strategy: Strategy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(commits, "SHARE", 5)
        bus = two_at_once(store, strategy)
        store.open.clear()
        first = [asyncio.create_task(bus.publish(event(str(n)))) for n in range(11)]
        await eventually(lambda: store.began == 2)
        then = [asyncio.create_task(bus.publish(event(f"then-{n}"))) for n in range(7)]
        await tick(3)
        assert store.began == 2  # no third one beside them
        store.open.set()
        receipts = await asyncio.gather(*first, *then)
        assert sorted(len(commit) for commit in store.commits) == [5, 6, 7]
        assert [receipt.id for receipt in receipts] == [str(n) for n in range(11)] + [f"then-{n}" for n in range(7)]

    async def test_a_few_wait_for_the_commit_in_flight(self, store: Store, strategy: Strategy) -> None:
        bus = two_at_once(store, strategy)
        store.open.clear()
        first = asyncio.create_task(bus.publish(event("first")))
        await eventually(lambda: store.began == 1)
        others = [asyncio.create_task(bus.publish(event(str(n)))) for n in range(commits.SHARE - 1)]
        await tick(3)
        assert store.began == 1
        last = asyncio.create_task(bus.publish(event("last")))
        await eventually(lambda: store.began == 2)
        store.open.set()
        await asyncio.gather(first, *others, last)
        assert sorted(len(commit) for commit in store.commits) == [1, commits.SHARE]

    async def test_one_caller_is_one_commit_however_many_would_help(self, store: Store, strategy: Strategy) -> None:
        bus = two_at_once(store, strategy)
        await bus.publish_many([event(str(n)) for n in range(5)])
        await bus.publish(event("5"))
        assert [len(commit) for commit in store.commits] == [5, 1]

    async def test_a_stop_waits_for_all_commits_and_settled_for_those_in_flight(
        self, store: Store, strategy: Strategy
    ) -> None:
        bus = two_at_once(store, strategy)
        store.open.clear()
        batches = [[event(f"{caller}-{n}") for n in range(commits.SHARE)] for caller in range(2)]
        publishing = [asyncio.create_task(bus.publish_many(batch)) for batch in batches]
        await eventually(lambda: store.began == 2)
        settled, stopped = asyncio.create_task(bus.commits_done()), asyncio.create_task(bus.stop())
        await tick(3)
        assert not settled.done()
        assert not stopped.done()
        store.open.set()
        await asyncio.gather(settled, stopped, *publishing)
        assert len(store.commits) == 2

    async def test_nothing_to_publish_is_no_commit(self, bus: EventBus, store: Store, strategy: Strategy) -> None:
        assert list(await bus.publish_many([])) == []
        assert (store.began, strategy.signals) == (0, [])


class TestFailures:
    @pytest.mark.parametrize(("bad", "error"), [("conflict", EventConflict), ("odd", TypeError)])
    async def test_one_callers_fault_does_not_reach_the_others(
        self, bus: EventBus, store: Store, bad: str, error: type[Exception]
    ) -> None:
        await bus.publish(event("known"))
        faulty = event("known", type="other") if bad == "conflict" else event("x", type="odd")
        answers = await asyncio.gather(
            bus.publish(event("a")), bus.publish(faulty), bus.publish(event("b")), return_exceptions=True
        )
        assert [type(answer) for answer in answers] == [Receipt, error, Receipt]
        assert sorted(id for commit in store.commits for id in commit) == ["a", "b", "known"]

    async def test_a_store_that_is_away_is_told_to_all_who_wait_and_asked_no_more(
        self, bus: EventBus, store: Store, strategy: Strategy
    ) -> None:
        store.away = True
        answers = await asyncio.gather(*[bus.publish(event(str(n))) for n in range(50)], return_exceptions=True)
        assert {type(answer) for answer in answers} == {StorageUnavailable}
        assert store.began <= 2
        assert strategy.signals == []
        store.away = False
        assert (await bus.publish(event("0"))).id == "0"

    async def test_who_has_waited_long_enough_waits_for_nobody_elses_turn(
        self, bus: EventBus, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each turn takes as long as a lock is waited for: with a lock on the table, all of them together."""
        monkeypatch.setattr("runner.bus.locked.PATIENCE", 0.0)
        store.locked, count = True, 20
        results = await asyncio.gather(*[bus.publish(event(str(n))) for n in range(count)], return_exceptions=True)
        assert {type(result) for result in results} == {StorageLocked}
        assert len({str(result) for result in results}) == count  # each names its own event
        assert store.began <= 1 + count + 2  # together, each alone, and one or two once more

    async def test_a_cancelled_callers_event_is_recorded_and_the_others_hear_of_theirs(
        self, bus: EventBus, store: Store
    ) -> None:
        store.open.clear()
        first = asyncio.create_task(bus.publish(event("first")))
        gone, stays = (asyncio.create_task(bus.publish(event(id))) for id in ("gone", "stays"))
        await eventually(lambda: store.began == 1)
        await tick(2)
        gone.cancel()
        first.cancel()
        store.open.set()
        assert (await stays).id == "stays"
        assert sorted(id for commit in store.commits for id in commit) == ["first", "gone", "stays"]
        assert gone.cancelled()

    @pytest.mark.parametrize(
        "timing",
        [
            {"delay": timedelta(seconds=1), "deliver_at": datetime.now(UTC)},
            {"deliver_at": datetime(2030, 1, 1)},
            {"delay": timedelta(seconds=-1)},
        ],
        ids=["both", "naive", "negative"],
    )
    async def test_a_time_that_says_nothing_is_refused(
        self, bus: EventBus, store: Store, timing: dict[str, timedelta | datetime]
    ) -> None:
        with pytest.raises(EventError, match=r"delay|deliver_at"):
            await bus.publish(event("a"), **timing)  # type: ignore[arg-type]  # one mapping for both parameters
        assert store.began == 0

    @pytest.mark.parametrize(
        ("timing", "expected"),
        [
            ({"delay": timedelta(days=367)}, "delay: expected 0 to 366 days"),
            ({"delay": timedelta.max}, "delay: expected 0 to 366 days"),
            ({"delay": timedelta.min}, "delay: expected 0 to 366 days"),
            ({"delay": 0.5}, "delay: expected a timedelta, got 0.5"),
            ({"delay": "200ms"}, "delay: expected a timedelta, got '200ms'"),
            ({"deliver_at": datetime.now(UTC) + timedelta(days=367)}, "deliver_at: at most 366 days from now"),
            ({"deliver_at": datetime.max.replace(tzinfo=UTC)}, "deliver_at: at most 366 days from now"),
            ({"deliver_at": datetime.max}, "deliver_at: expected a datetime with an offset"),
            ({"deliver_at": "2030-01-01"}, "deliver_at: expected a datetime with an offset, got '2030-01-01'"),
            ({"deliver_at": 1893456000}, "deliver_at: expected a datetime with an offset, got 1893456000"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    async def test_a_time_that_cannot_be_kept_is_refused_with_what_is_expected(
        self, bus: EventBus, store: Store, timing: dict[str, Any], expected: str
    ) -> None:
        with pytest.raises(EventError) as caught:
            await bus.publish(event("a"), **timing)
        assert str(caught.value).startswith(expected)
        with pytest.raises(EventError):
            await bus.publish_many([event("b"), Publication(event("a"), **timing)])
        assert store.began == 0

    @pytest.mark.parametrize(
        "timing", [{"delay": timedelta(days=366)}, {"deliver_at": datetime.min.replace(tzinfo=UTC)}]
    )
    async def test_the_farthest_times_that_are_allowed_are(self, bus: EventBus, timing: dict[str, Any]) -> None:
        assert (await bus.publish(event("a"), **timing)).id == "a"

    async def test_what_is_no_event_is_refused_with_what_is_expected(self, bus: EventBus, store: Store) -> None:
        mapping = cast("Event", {"type": "t", "source": "/s", "id": "a"})
        for refused in (bus.publish(mapping), bus.publish_many([event("b"), mapping])):
            with pytest.raises(EventError, match=r"expected an Event, got dict; Event\.new\(\)"):
                await refused
        assert store.began == 0

    async def test_an_invalid_event_is_refused_and_takes_its_batch_with_it(self, bus: EventBus, store: Store) -> None:
        with pytest.raises(EventError, match=r"^event 2 of 2: type") as caught:
            await bus.publish_many([event("a"), event("b", type="")])
        assert caught.value.index == 1
        assert store.began == 0

    async def test_the_error_of_a_single_event_is_not_its_own_cause(self, bus: EventBus) -> None:
        """Its traceback would say everything twice, and a circle would wait for the collector."""
        for refused in (bus.publish(event("a", type="")), bus.publish_many([event("a", type="")])):
            with pytest.raises(EventError, match=r"^type") as caught:
                await refused
            assert caught.value.__cause__ is not caught.value


class TestSignals:
    async def test_they_come_after_the_commit_and_name_the_newest_event(
        self, bus: EventBus, store: Store, strategy: Strategy
    ) -> None:
        store.open.clear()
        publishing = asyncio.create_task(bus.publish_many([event("a"), event("b")]))
        await eventually(lambda: store.began == 1)
        assert strategy.signals == []
        store.open.set()
        await publishing
        await bus.stop()
        assert strategy.signals == [("b", 1)]

    async def test_this_process_is_woken_without_a_detour(self, store: Store, strategy: Strategy) -> None:
        woken: list[int] = []
        bus = EventBus(cast("EventStore", store), strategy, wake=lambda: woken.append(len(store.commits)))
        await bus.publish(event("a"))
        await bus.stop()
        assert woken == [1]

    async def test_a_burst_of_publishes_is_a_handful_of_signals_and_the_last_one_is_among_them(
        self, bus: EventBus, strategy: Strategy
    ) -> None:
        for n in range(300):
            await bus.publish(event(str(n)))
        await bus.stop()
        assert len(strategy.signals) < 150
        assert strategy.signals[-1][0] == "299"

    async def test_publishes_that_go_on_and_on_are_signalled_at_growing_intervals_up_to_the_longest(
        self, bus: EventBus, strategy: Strategy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        waits: list[float] = []

        async def sleep(seconds: float, plain: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
            if asyncio.current_task() is bus._signals._sending:
                waits.append(seconds)
                if len(waits) < 6:
                    bus.notify("again")
            await plain(seconds)

        monkeypatch.setattr("runner.bus.signals.asyncio.sleep", sleep)
        bus.notify("first")
        await eventually(lambda: bus._signals._sending is None)
        assert waits == [0.001, 0.002, 0.004, 0.005, 0.005, 0.005]
        assert len(strategy.signals) == 6

    async def test_a_strategy_that_takes_its_time_holds_up_no_publisher(
        self, bus: EventBus, strategy: Strategy
    ) -> None:
        strategy.gate.clear()
        async with asyncio.timeout(20):
            for n in range(3):
                await bus.publish(event(str(n)))
        stopping = asyncio.create_task(bus.stop())
        await tick(5)
        assert not stopping.done()
        strategy.gate.set()
        await stopping

    async def test_stop_waits_for_what_was_handed_over(self, bus: EventBus, store: Store, strategy: Strategy) -> None:
        store.open.clear()
        publishing = asyncio.create_task(bus.publish(event("a")))
        await eventually(lambda: store.began == 1)
        stopping = asyncio.create_task(bus.stop())
        await tick(5)
        assert not stopping.done()
        store.open.set()
        await stopping
        assert strategy.signals == [("a", 1)]
        assert (await publishing).id == "a"

    async def test_after_a_stop_events_are_refused_until_the_next_start(self, bus: EventBus, store: Store) -> None:
        await bus.stop()
        with pytest.raises(RunnerError, match="stopped"):
            await bus.publish(event("a"))
        assert store.began == 0
        bus.start()
        assert (await bus.publish(event("a"))).id == "a"

    async def test_it_may_be_stopped_before_anything(self, bus: EventBus) -> None:
        await bus.stop()
        await bus.stop()


class LocalWorker:
    """A worker beside the publisher, with room or without."""

    def __init__(self) -> None:
        self.room = True
        self.lease = timedelta(seconds=30)
        self.taken: list[Claim] = []

    def lease_for(self, count: int, weight: int) -> timedelta | None:
        return self.lease if self.room else None

    def take(self, claim: Claim, until: float) -> None:
        self.taken.append(claim)


class TestHandOver:
    @pytest.fixture
    def local_worker(self) -> LocalWorker:
        return LocalWorker()

    @pytest.fixture
    def bus(self, store: Store, strategy: Strategy, local_worker: LocalWorker) -> EventBus:
        return EventBus(cast("EventStore", store), strategy, local_worker=local_worker)

    async def test_what_the_worker_beside_us_takes_needs_no_signal(
        self, bus: EventBus, local_worker: LocalWorker, strategy: Strategy
    ) -> None:
        receipt = await bus.publish(event("a"))
        await bus.stop()
        assert [work.seq for claim in local_worker.taken for work in claim.works] == [receipt.seq]
        assert strategy.signals == []

    async def test_without_room_it_is_recorded_and_signalled(
        self, bus: EventBus, local_worker: LocalWorker, strategy: Strategy
    ) -> None:
        local_worker.room = False
        await bus.publish(event("a"))
        await bus.stop()
        assert local_worker.taken == []
        assert len(strategy.signals) == 1

    async def test_what_the_store_keeps_is_signalled(
        self, bus: EventBus, local_worker: LocalWorker, strategy: Strategy
    ) -> None:
        await bus.publish(event("a"))
        local_worker.taken.clear()
        await bus.publish_many([event("a"), event("b")])
        await bus.stop()
        assert local_worker.taken == []
        assert len(strategy.signals) == 1

    async def test_what_was_recorded_when_its_lease_was_over_is_signalled(
        self, bus: EventBus, local_worker: LocalWorker, strategy: Strategy
    ) -> None:
        """Somebody else may have it by then: the commit waited for another transaction, say, or for a standby."""
        local_worker.lease = timedelta(0)
        receipt = await bus.publish(event("a"))
        await bus.stop()
        assert local_worker.taken == []
        assert [sent for sent, _ in strategy.signals] == [receipt.id]

    async def test_what_is_due_later_is_not_handed_over(
        self, bus: EventBus, local_worker: LocalWorker, strategy: Strategy
    ) -> None:
        await bus.publish(event("a"), delay=timedelta(seconds=1))
        await bus.stop()
        assert local_worker.taken == []
        assert len(strategy.signals) == 1

    async def test_a_commit_that_fails_hands_nothing_over(
        self, bus: EventBus, local_worker: LocalWorker, store: Store
    ) -> None:
        store.away = True
        with pytest.raises(StorageUnavailable):
            await bus.publish(event("a"))
        assert local_worker.taken == []
