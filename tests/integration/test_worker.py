"""The worker on real stores: what is published reaches its sinks, whatever happens on the way."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from sqlalchemy import text, update
from structlog.testing import capture_logs

from runner import ACCEPTED, Delivery, Event, Failed, Outcome, Rejected
from runner.builder import open_storage
from runner.config import load_config
from runner.policies.retry import RetryPolicy
from runner.sinks.python import PythonSink
from runner.storage.contract.claims import ClaimedDelivery, DeliveryClaim, Work
from runner.storage.contract.records import DeliveryQuery
from runner.storage.expressions import Now
from runner.storage.postgres.connector import _SERVER_SETTINGS
from runner.storage.tables import attempts, deliveries, dispatch
from runner.subscription import Subscription
from runner.worker.dispatch import Dispatch
from runner.worker.flight import Flight
from tests.support.eventually import eventually
from tests.support.faulty import Faulty
from tests.support.postgres import PostgresServer
from tests.support.process import RunnerProcess

from .buses import Bus, BusTests, Gate, Handler, crash, events, ids, running


def failing(*outcomes: Outcome) -> Callable[[Event, Delivery], Outcome]:
    """Return a handler that answers the attempts of a delivery one after the other, the last for ever."""

    def handle(event: Event, delivery: Delivery) -> Outcome:
        return outcomes[min(delivery.attempt, len(outcomes)) - 1]

    return handle


def retry(**options: float | timedelta | tuple[timedelta, ...]) -> RetryPolicy:
    return RetryPolicy(**{"delay": timedelta(milliseconds=10), "jitter": 0, **options})  # type: ignore[arg-type]  # as named


@contextlib.contextmanager
def no_collector() -> Iterator[None]:
    """Leave what holds itself in a circle where it is."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def in_memory() -> int:
    """Return how many claimed events and deliveries there are in this process."""
    return sum(isinstance(each, Work | ClaimedDelivery | Flight | Dispatch) for each in gc.get_objects())


class TestOutcomes(BusTests):
    async def test_what_is_settled_leaves_no_event_in_memory_for_the_collector(self, bus: Bus) -> None:
        """Else a process would hold many times the bytes that its budget counts."""
        runner, plain, late = bus.runner(patience=timedelta(milliseconds=10)), Handler(), Gate()

        async def states() -> list[str]:
            return [row["state"] for row in await bus.deliveries()]

        async def apart() -> bool:
            return (await states()).count("leased") == 2

        async def over() -> bool:
            return set(await states()) == {"delivered"}

        runner.subscribe("plain", plain)
        runner.subscribe("fails", failing(Failed("not yet"), ACCEPTED), types=["bad"])
        runner.subscribe("late", late, types=["late"])
        async with runner:
            with no_collector():
                before = in_memory()
                await runner.publish_many([*events(20), *events(2, "late"), *events(1, "bad")])
                await eventually(lambda: len(plain.seen) == 23 and len(late.seen) == 2)
                await eventually(apart)  # from their dispatch, each under a lease of its own
                late.opened.set()
                await eventually(over)
                await eventually(lambda: in_memory() == before)

    async def test_what_is_published_is_delivered_to_every_subscription_that_matches(self, bus: Bus) -> None:
        runner, everything, orders, nothing = bus.runner(), Handler(), Handler(), Handler()
        runner.subscribe("everything", everything)
        runner.subscribe("orders", orders, types=["order.*"])
        runner.subscribe("nothing", nothing, types=["invoice.*"])
        published = [*events(20), *events(5, "user.created")]
        async with runner:
            await runner.publish_many(published)
            await eventually(lambda: bus.settled(delivered=45))
        assert everything.ids == ids(published)
        assert orders.ids == ids(published[:20])
        assert nothing.seen == []

    async def test_a_retry_is_on_time_although_nobody_polls(self, bus: Bus) -> None:
        runner, times = bus.runner(), []

        def handle(event: Event) -> Outcome:
            times.append(monotonic())
            return Failed("not yet") if len(times) < 3 else ACCEPTED

        runner.subscribe("s", handle, retry=retry(delay=timedelta(milliseconds=200)))
        async with runner:
            await runner.publish(events(1)[0])
            await eventually(lambda: bus.settled(delivered=1))
        first, second, third = times
        assert 0.2 <= second - first < 25.0
        assert 0.4 <= third - second < 25.0
        assert [(row["number"], row["error"]) for row in await bus.database.rows(attempts)] == [
            (1, "not yet"),
            (2, "not yet"),
            (3, None),
        ]

    async def test_a_scheduled_event_is_on_time_although_nobody_polls(self, bus: Bus) -> None:
        runner, times = bus.runner(), []
        runner.subscribe("s", lambda event: times.append(monotonic()))
        async with runner:
            began = monotonic()
            await runner.publish(events(1)[0], delay=timedelta(milliseconds=300))
            await eventually(lambda: bus.settled(delivered=1))
        assert 0.3 <= times[0] - began < 25.0

    async def test_it_is_dead_after_its_last_attempt(self, bus: Bus) -> None:
        runner = bus.runner()
        runner.subscribe(
            "s", failing(Failed("one", status=500), Failed("two"), Failed("three")), retry=retry(max_attempts=3)
        )
        async with runner:
            await runner.publish(events(1)[0])
            await eventually(lambda: bus.settled(dead=1))
        [row] = await bus.deliveries()
        assert row["attempts"] == 3
        assert row["last_error"] == "three (attempt 3 of 3)"
        assert [(each["number"], each["error"], each["status"]) for each in await bus.database.rows(attempts)] == [
            (1, "one", 500),
            (2, "two", None),
            (3, "three", None),
        ]

    async def test_it_is_dead_once_its_next_attempt_would_come_after_max_age(self, bus: Bus) -> None:
        runner, hour = bus.runner(), timedelta(hours=1)
        runner.subscribe("s", failing(Failed("no")), retry=retry(schedule=(hour, hour), max_age=timedelta(hours=25)))
        async with runner:
            await runner.publish(events(1)[0])
            await eventually(lambda: bus.settled(pending=1))
            await bus.database.execute(update(attempts).values(duration_us=int(24.5 * 3600) * 10**6))
            await bus.database.execute(update(deliveries).values(due_at=Now()))
            await bus.wake()
            await eventually(lambda: bus.settled(dead=1))
        [row] = await bus.deliveries()
        assert row["attempts"] == 2
        assert (
            row["last_error"] == "no (attempt 2; the next would come after max_age, 90000 s from the first attempt on)"
        )

    async def test_a_retry_that_could_not_be_made_in_time_is_not_made(self, bus: Bus) -> None:
        runner = bus.runner()
        seen: list[int] = []

        def handle(event: Event, delivery: Delivery) -> Outcome:
            seen.append(delivery.attempt)
            return Failed("no")

        runner.subscribe("s", handle, retry=retry(delay=timedelta(hours=1), max_age=timedelta(days=1)))
        async with runner:
            await runner.publish(events(1)[0])
            await eventually(lambda: bus.settled(pending=1))
            await bus.database.execute(update(attempts).values(duration_us=25 * 3600 * 10**6))
            await bus.database.execute(update(deliveries).values(due_at=Now()))
            await bus.wake()
            await eventually(lambda: bus.settled(dead=1))
        assert seen == [1]
        [row] = await bus.deliveries()
        assert (row["attempts"], len(await bus.database.rows(attempts))) == (1, 1)
        assert row["last_error"].startswith("not tried again after attempt 1: it was due too late for max_age, 86400 s")

    async def test_what_is_rejected_is_dead_at_once(self, bus: Bus) -> None:
        runner = bus.runner()
        runner.subscribe("s", failing(Rejected("no such customer", 410)))
        async with runner:
            await runner.publish(events(1)[0])
            await eventually(lambda: bus.settled(dead=1))
        [row] = await bus.deliveries()
        assert (row["attempts"], row["last_error"]) == (1, "no such customer")

    async def test_an_answer_that_takes_too_long_is_a_failure(self, bus: Bus) -> None:
        runner, gate = bus.runner(), Gate()
        runner.subscribe("s", gate, timeout=timedelta(milliseconds=100), retry=retry(max_attempts=1))
        async with runner:
            await runner.publish(events(1)[0])
            await eventually(lambda: bus.settled(dead=1))
        [row] = await bus.deliveries()
        assert row["last_error"] == "no answer within 0.1 s (attempt 1 of 1)"

    @pytest.mark.parametrize(
        "answer",
        [Failed("busy", retry_after=30), Failed(None), Failed("x", excerpt=b"x"), Rejected("x", status="404")],  # type: ignore[arg-type]  # what handlers in untyped code do
        ids=repr,
    )
    async def test_an_outcome_with_fields_of_other_types_fails_alone(self, bus: Bus, answer: Outcome) -> None:
        runner, published = bus.runner(), events(5)

        def handle(event: Event) -> Outcome:
            return answer if event.id == published[2].id else ACCEPTED

        runner.subscribe("s", handle, retry=retry(max_attempts=1))
        async with runner:
            await runner.publish_many(published)
            await eventually(lambda: bus.settled(delivered=4, dead=1))
        assert [row["error"] for row in await bus.database.rows(attempts)] == [
            f"the sink returned {type(answer).__name__}, expected its fields of the documented types"
        ]

    async def test_a_retry_written_while_we_ask_for_others_is_not_forgotten(self, bus: Bus) -> None:
        store: HoldsEmptyClaim | None = None

        def held(inner: Any) -> HoldsEmptyClaim:
            nonlocal store
            store = HoldsEmptyClaim(inner)
            return store

        runner = bus.runner(store=held, strategy=Silent())
        runner.subscribe("s", failing(Failed("not yet"), ACCEPTED))
        assert store is not None
        async with runner:
            await runner.publish(events(1)[0])
            await store.asked.wait()  # nothing waits any more
            await runner.publish(events(2)[1])
            await eventually(lambda: bus.settled(delivered=1, pending=1))
            await eventually(lambda: not runner.worker.dispatcher._dispatches)
            store.answer.set()
            await eventually(lambda: bus.settled(delivered=2))


class HoldsEmptyClaim(Faulty):
    """A store that keeps to itself, until it is told, that no delivery waits any more."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.asked = asyncio.Event()
        self.answer = asyncio.Event()

    async def claim_deliveries(self, quotas: Mapping[int, int], lease: timedelta, weight: int = 0) -> DeliveryClaim:
        claim: DeliveryClaim = await self.store.queue.claim_deliveries(quotas, lease)
        if not claim.deliveries and claim.next_due is None:
            self.asked.set()
            await self.answer.wait()
        return claim


class Silent:
    """A strategy that never wakes anybody."""

    async def start(self, wake: object) -> None: ...

    async def stop(self) -> None: ...

    async def notify(self, event_id: str) -> None: ...


class TestBacklog(BusTests):
    async def test_one_look_is_enough_for_any_number_of_batches(self, bus: Bus) -> None:
        """Nobody signals, and the next poll is 30 s away."""
        published = events(250)
        await bus.publish(published)
        runner, handler = bus.runner(batch=10, strategy=Silent()), Handler()
        runner.subscribe("s", handler)
        async with runner:
            await eventually(lambda: bus.settled(delivered=250))
        assert handler.ids == ids(published)


class TestSlowSubscription(BusTests):
    async def test_it_delays_no_other_and_is_written_down_after_the_grace(self, bus: Bus) -> None:
        """Invariant 7: what runs is leased, what could not start is pending, and the event's work is gone."""
        runner, slow, quick = bus.runner(), Gate(), Handler()
        runner.subscribe("slow", slow, concurrency=1)
        runner.subscribe("quick", quick)
        async with runner:
            await runner.publish_many(events(3))
            await eventually(lambda: bus.settled(leased=1, pending=2, delivered=3))
            for n in range(3, 6):
                began = monotonic()
                await runner.publish(events(n + 1)[n])
                await eventually(lambda: len(quick.seen) == n + 1)  # noqa: B023  # awaited before n changes
                assert monotonic() - began < 25.0
            assert len(slow.seen) == 1
            slow.opened.set()
            await eventually(lambda: bus.settled(delivered=12))
        assert slow.ids == quick.ids == ids(events(6))

    async def test_a_burst_its_subscription_cannot_take_starves_no_other_type(self, bus: Bus) -> None:
        """Ten claims' worth of it stand before the other's event, and one delivery at a time is made of it."""
        runner, slow, quick = bus.runner(), Gate(), Handler()
        runner.subscribe("slow", slow, types="order.created", concurrency=1)
        runner.subscribe("quick", quick, types="user.created")
        async with runner:
            await runner.publish_many(events(5000))
            await runner.publish(events(1, "user.created")[0])
            await eventually(lambda: quick.ids == ["user.created-0"])
            await eventually(lambda: bus.settled(leased=1, pending=4999, delivered=1))
            assert len(slow.seen) == 1
            slow.opened.set()

    async def test_a_lease_is_renewed_for_as_long_as_it_runs(self, bus: Bus) -> None:
        runner, other, slow = bus.runner(lease="3s"), bus.runner(lease="3s"), Gate()
        runner.subscribe("slow", slow)
        other.subscribe("slow", slow)
        async with runner:
            await runner.publish(events(1)[0])
            await eventually(lambda: bus.settled(leased=1))
            [row] = await bus.deliveries()
            async with other:

                async def renewed() -> bool:
                    [now] = await bus.deliveries()
                    return bool(now["due_at"] - row["due_at"] > timedelta(seconds=3.2))

                await eventually(renewed)
                slow.opened.set()
                await eventually(lambda: bus.settled(delivered=1))
        assert slow.seen == [("order.created-0", 1)]

    async def test_what_is_cancelled_while_it_runs_is_stopped_and_may_be_tried_anew(self, bus: Bus) -> None:
        runner, slow = bus.runner(lease="1s"), Gate()
        runner.subscribe("slow", slow)
        async with runner, open_storage(load_config(bus.write())) as storage:
            await runner.publish(events(1)[0])
            await eventually(lambda: bus.settled(leased=1))
            assert await storage.corrections.cancel(DeliveryQuery(subscription="slow")) == 1
            await eventually(lambda: runner.worker.busy == 0)
            assert await bus.settled(cancelled=1)
            slow.opened.set()
            assert await storage.corrections.retry(DeliveryQuery(subscription="slow")) == 1
            runner.worker.wake()
            await eventually(lambda: bus.settled(delivered=1))
        assert slow.done == 1


class TestPause(BusTests):
    async def test_what_is_published_meanwhile_waits_for_the_resumption(self, bus: Bus) -> None:
        runner, paused, other = bus.runner(), Handler(), Handler()
        runner.subscribe("paused", paused)
        runner.subscribe("other", other)
        async with runner:
            await bus.pause("paused", True)
            await runner.publish_many(events(4))
            await eventually(lambda: bus.settled(pending=4, delivered=4))
            await bus.pause("paused", False)
            await eventually(lambda: bus.settled(delivered=8))
        assert paused.ids == other.ids == ids(events(4))
        assert {attempt for _, attempt in paused.seen} == {1}

    async def test_a_resumption_is_noticed_while_another_waits_for_a_distant_retry(self, bus: Bus) -> None:
        runner, paused = bus.runner(), Handler()
        runner.subscribe("paused", paused, types=["p"])
        runner.subscribe("failing", failing(Failed("later", timedelta(hours=1))), types=["f"])
        async with runner:
            await runner.publish(events(1, "f")[0])
            await bus.pause("paused", True)
            await runner.publish_many(events(3, "p"))
            await eventually(lambda: bus.settled(pending=4))
            await bus.pause("paused", False)
            await eventually(lambda: bus.settled(pending=1, delivered=3))


class TestSubscriptions(BusTests):
    async def test_one_that_is_added_while_we_run_gets_what_is_published_from_then_on(self, bus: Bus) -> None:
        runner, one = bus.runner(), Handler()
        runner.subscribe("one", one)
        async with runner:
            await runner.publish(events(1)[0])
            await eventually(lambda: bus.settled(delivered=1))
            store = bus.database.open()
            await store.registry.put_subscriptions([Subscription(name="two", sink="function:one")], "test")
            await runner.publish(events(2)[1])
            await eventually(lambda: bus.settled(delivered=3))
            await store.registry.put_subscriptions([], "test")
            await runner.publish(events(3)[2])
            await eventually(lambda: bus.settled(delivered=4))

    async def test_what_this_instance_has_no_sink_for_waits_for_one_that_has_it(self, bus: Bus) -> None:
        here, there, common, special = bus.runner(), bus.runner(), Handler(), Handler()
        here.subscribe("common", common)
        there.subscribe("common", common)
        there.subscribe("special", special, types=["special"])
        async with there:  # makes the subscription known
            pass
        async with here:
            await here.publish_many([*events(3), *events(2, "special")])
            await eventually(lambda: bus.settled(delivered=5, pending=2))
            assert special.seen == []
            async with there:
                await eventually(lambda: bus.settled(delivered=7))
                await asyncio.gather(*[here.publish(event) for event in events(20, "special")[2:]])
                await eventually(lambda: bus.settled(delivered=7 + 18 * 2))
        assert special.ids == ids(events(20, "special"))
        assert len(common.seen) == 23

    async def test_one_that_does_not_compile_stops_the_claims_and_nothing_is_lost(self, bus: Bus) -> None:
        runner, one, published = bus.runner(lease="1s", batch=1), Handler(), events(5)
        runner.subscribe("one", one)

        async def claimed() -> int:
            return sum(row["attempts"] for row in await bus.database.rows(dispatch))

        async with runner:
            store = bus.database.open()
            bad = Subscription(name="bad", sink="function:one", filter={"sql": "x"})
            with capture_logs() as lines:
                await store.registry.put_subscriptions([bad], "test")
                await bus.publish(published)
                await eventually(lambda: sum(line["event"] == "loop failed" for line in lines) >= 4)
            assert await claimed() <= 1  # the one that was claimed before the subscriptions were read
            assert one.seen == []
            await store.registry.put_subscriptions([], "test")
            await eventually(lambda: bus.settled(delivered=5))
        assert one.ids == ids(published)

    async def test_a_sink_given_while_we_run_serves_from_the_next_reload_on(self, bus: Bus) -> None:
        runner, one, late = bus.runner(), Handler(), Handler()
        runner.subscribe("one", one, types=["one"])
        async with runner:
            store = bus.database.open()
            await store.registry.put_subscriptions(
                [Subscription(name="late", sink="function:late", types=("late",))], "test"
            )
            await runner.publish(events(1, "late")[0])
            await eventually(lambda: bus.settled(pending=1))
            runner.worker.serve("function:late", PythonSink(late))
            await runner.worker.roster.load()
            runner.worker.wake()
            await eventually(lambda: bus.settled(delivered=1))
        assert late.ids == ["late-0"]


class TestStop(BusTests):
    async def test_under_load_it_leaves_no_lease_and_nothing_is_delivered_twice(self, bus: Bus) -> None:
        seen, takes = list[str](), 0.05

        async def handle(event: Event) -> None:
            await asyncio.sleep(takes)
            seen.append(event.id)

        first, second = bus.runner(batch=50), bus.runner()
        for runner in (first, second):
            runner.subscribe("s", handle, concurrency=4)
        async with first:
            await first.publish_many(events(300))
            await eventually(lambda: len(seen) >= 30)
        handled, takes = len(seen), 0.005
        assert handled < 300
        assert not [row for row in await bus.deliveries() if row["state"] == "leased"]
        assert not [row for row in await bus.database.rows(dispatch) if row["lease_token"] is not None]
        async with second:
            await eventually(lambda: bus.settled(delivered=300))
        assert sorted(seen) == ids(events(300))

    async def test_what_outlives_the_grace_is_given_back_and_another_takes_it_at_once(self, bus: Bus) -> None:
        first, second, stuck, taken = bus.runner(grace="50ms"), bus.runner(), Gate(), Handler()
        first.subscribe("s", stuck, types=["order.*"])
        await first.start()
        await first.publish_many(events(3))
        await eventually(lambda: bus.settled(leased=3))
        second.subscribe("s", taken, types=["order.*"])
        async with second:
            await first.stop()
            await eventually(lambda: bus.settled(delivered=3))
        assert sorted(taken.seen) == [(id, 2) for id in ids(events(3))]
        assert stuck.done == 0

    async def test_it_waits_for_what_runs_within_the_grace(self, bus: Bus) -> None:
        runner, gate = bus.runner(), Gate()
        runner.subscribe("s", gate)
        await runner.start()
        await runner.publish_many(events(3))
        await eventually(lambda: bus.settled(leased=3))
        stopping = asyncio.create_task(runner.stop())
        await eventually(lambda: runner.worker.busy == 3 and not stopping.done())
        gate.opened.set()
        await stopping
        assert await bus.settled(delivered=3)

    async def test_what_answers_when_it_is_cancelled_is_settled_by_its_answer(self, bus: Bus) -> None:
        gate, started = asyncio.Event(), asyncio.Event()

        async def stubborn(event: Event) -> None:
            started.set()
            with contextlib.suppress(asyncio.CancelledError):
                await gate.wait()

        runner = bus.runner(grace="0s")
        runner.subscribe("s", stubborn)
        async with runner:
            await runner.publish(events(1)[0])
            await started.wait()
            await eventually(lambda: bus.settled(leased=1))
        assert await bus.settled(delivered=1)

    async def test_it_works_again_after_another_start(self, bus: Bus) -> None:
        runner, handler = bus.runner(), Handler()
        runner.subscribe("s", handler)
        for n in range(2):
            async with runner:
                await runner.publish(events(n + 1)[n])
                await eventually(lambda: bus.settled(delivered=n + 1))  # noqa: B023  # awaited before n changes


class TestCrash(BusTests):
    async def test_what_a_dead_instance_had_comes_back_after_its_lease_with_the_next_attempt(self, bus: Bus) -> None:
        """Invariants 3 and 8: only the end of the lease gives it to another, and the crash has counted."""
        first, second = bus.runner(lease="3s", grace="0s"), bus.runner()
        stuck, taken = Gate(), Handler()
        first.subscribe("s", stuck)
        second.subscribe("s", taken)
        before = asyncio.all_tasks()
        await first.start()
        await first.publish_many(events(3))
        await eventually(lambda: bus.settled(leased=3))
        await crash(before)
        leased = [row["due_at"] for row in await bus.deliveries()]
        async with second:
            await eventually(lambda: bus.settled(delivered=3))
        assert sorted(taken.seen) == [(id, 2) for id in ids(events(3))]
        for row, due_at in zip(await bus.deliveries(), leased, strict=True):
            assert row["updated_at"] >= due_at

    async def test_of_an_event_that_was_not_settled_everything_is_dispatched_again(self, bus: Bus) -> None:
        """Invariant 2: what was delivered, but not recorded, is delivered again; nothing is lost."""
        handler, runner = Handler(), bus.runner()
        runner.subscribe("s", handler)
        await bus.publish(events(4))
        claim = await bus.database.open().queue.claim(10, timedelta(seconds=1))
        assert len(claim.works) == 4  # and the process that has them dies
        async with runner:
            await eventually(lambda: bus.settled(delivered=4))
        assert sorted(handler.seen) == [(id, 2) for id in ids(events(4))]


POISON = """\
import os

def handle(event):
    if event.type == "poison":
        os._exit(1)
    with open("delivered", "a") as journal:
        journal.write(event.id + "\\n")
"""

MORE = """\
sinks: {all: {python: "handlers:handle"}}
subscriptions: [{name: all, sink: all, retry: {max_attempts: 2}}]
"""


class TestPoison(BusTests):
    async def test_an_event_that_kills_its_process_dies_alone(self, bus: Bus, tmp_path: Path) -> None:
        """Invariant 3: it is tried alone in the end, and is dead with a reason; its neighbours are delivered."""
        await bus.publish([*events(10), *events(1, "poison"), *events(20)[10:]])
        path = bus.write(MORE, lease="10s")
        (tmp_path / "handlers.py").write_text(POISON)
        deaths = 0

        async def over() -> bool:
            rows = await bus.deliveries()
            return len(rows) == 21 and {row["state"] for row in rows} == {"delivered", "dead"}

        while not await over():
            assert deaths < 8
            with RunnerProcess("start", "-c", path, cwd=tmp_path) as process:

                async def dead_or_done(process: RunnerProcess = process) -> bool:
                    return process.returncode is not None or await over()

                await eventually(dead_or_done)
                deaths += process.returncode == 1
            # Nobody is left who could renew a lease: it need not be waited for.
            await bus.database.execute(update(dispatch).where(dispatch.c.lease_until > Now()).values(lease_until=Now()))
            await bus.database.execute(update(deliveries).where(deliveries.c.state == "leased").values(due_at=Now()))
        assert deaths >= 2
        [dead] = [row for row in await bus.deliveries() if row["state"] == "dead"]
        assert "ended without an answer" in dead["last_error"]
        assert dead["attempts"] == 2
        assert set((tmp_path / "delivered").read_text().split()) == set(ids(events(20)))


class TestStoreAway:
    async def test_deliveries_settle_once_it_is_back_and_none_comes_twice(
        self, tmp_path: Path, make_postgres: Callable[..., PostgresServer]
    ) -> None:
        server = make_postgres()
        async with running(tmp_path, server.create_database()) as bus:
            runner, slow, quick = bus.runner(), Gate(), Handler()
            runner.subscribe("slow", slow, concurrency=10)
            runner.subscribe("quick", quick)
            async with runner:
                await runner.publish_many(events(30))
                await eventually(lambda: bus.settled(leased=10, pending=20, delivered=30))
                server.stop("immediate")
                slow.opened.set()
                await eventually(lambda: slow.done == 10)
                server.start()
                await eventually(lambda: bus.reached(delivered=60))
        assert slow.ids == quick.ids == ids(events(30))
        assert {attempt for _, attempt in slow.seen} == {1}


class TestHeld:
    """PostgreSQL only: SQLite has one writer at a time."""

    async def test_an_event_that_another_session_holds_delays_no_other_and_nothing_comes_twice(
        self, tables_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(_SERVER_SETTINGS, "lock_timeout", "200ms")
        async with running(tmp_path, tables_dsn) as bus, bus.database.client.connect() as session:
            held = events(1)[0].id
            ended = asyncio.Event()

            class Holding(Handler):
                async def handle(self, event: Event, delivery: Delivery) -> None:
                    if event.id == held:
                        await session.execute(
                            text("SELECT 1 FROM public.dispatch ORDER BY position LIMIT 1 FOR UPDATE")
                        )

            class Slow(Gate):
                async def handle(self, event: Event, delivery: Delivery) -> None:
                    await (ended if event.id == held else self.opened).wait()

            async def leased(count: int) -> list[Any]:
                rows = await bus.deliveries()
                found = [row["due_at"] for row in rows if row["state"] == "leased"]
                assert (len(found), len(rows)) == (count, 2 * count)
                return found

            runner, quick, slow = bus.runner(lease="9s", batch=10), Holding(), Slow()
            runner.subscribe("quick", quick)
            runner.subscribe("slow", slow)
            await bus.publish(events(10))
            async with runner:
                await eventually(lambda: leased(9))
                first = max(await leased(9))
                ended.set()  # its event is not on record yet

                async def renewed() -> bool:
                    return bool(min(await leased(9)) > first)

                await eventually(renewed)
                await bus.publish(events(30, "order.paid"))  # of which two batches take all the room there is
                await eventually(lambda: len(quick.seen) == len(slow.seen) == 40)
                await session.rollback()
                slow.opened.set()
                await eventually(lambda: bus.settled(delivered=80))
            for handler in (quick, slow):
                assert handler.ids == ids([*events(10), *events(30, "order.paid")])
                assert {attempt for _, attempt in handler.seen} == {1}


class TestBatches(BusTests):
    async def test_one_event_that_breaks_its_batch_is_dead_alone(self, bus: Bus) -> None:
        runner, batches = bus.runner(), list[list[str]]()

        def handle(events: list[Event]) -> None:
            batch = [event.id for event in events]
            batches.append(batch)
            if "order.created-7" in batch:
                raise ValueError("cannot be indexed")

        runner.subscribe("index", handle, batch=10, concurrency=2, retry=retry(max_attempts=3))
        async with runner:
            await runner.publish_many(events(40))
            await eventually(lambda: bus.settled(delivered=39, dead=1))
        assert max(len(batch) for batch in batches) == 10
        assert batches.count(["order.created-7"]) == 2  # and once with others
        alone = [batch for batch in batches if len(batch) == 1]
        assert len(alone) >= 11
        [dead] = [row for row in await bus.deliveries() if row["state"] == "dead"]
        assert (dead["attempts"], dead["last_error"]) == (3, "ValueError: cannot be indexed (attempt 3 of 3)")

    async def test_a_batch_that_outlives_its_dispatch_is_settled_event_by_event(self, bus: Bus) -> None:
        runner, opened, sizes = bus.runner(), asyncio.Event(), list[int]()

        async def handle(events: list[Event]) -> list[Outcome | None]:
            sizes.append(len(events))
            await opened.wait()
            return [Rejected("odd") if event.id.endswith("1") else None for event in events]

        runner.subscribe("index", handle, batch=10, concurrency=1)
        async with runner:
            await runner.publish_many(events(12))
            await eventually(lambda: bus.settled(leased=10, pending=2))
            opened.set()
            await eventually(lambda: bus.settled(delivered=10, dead=2))
        assert sizes == [10, 2]

    async def test_what_waits_is_claimed_in_batches(self, bus: Bus) -> None:
        runner, sizes = bus.runner(), list[int]()
        runner.subscribe("index", lambda events: sizes.append(len(events)), batch=50, concurrency=1)
        async with runner:
            await eventually(lambda: runner.worker.roster.outlets)
            await bus.pause("index", True)
            await eventually(lambda: not next(iter(runner.worker.roster.outlets.values())).open)
            await runner.publish_many(events(100))
            await eventually(lambda: bus.settled(pending=100))
            await bus.pause("index", False)
            await eventually(lambda: bus.settled(delivered=100))
        assert sizes == [50, 50]
