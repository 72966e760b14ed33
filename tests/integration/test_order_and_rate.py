"""Order and rate of a subscription, kept by several instances together."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from runner import ACCEPTED, Deferred, Delivery, Event, Failed, Outcome, Rejected
from runner.builder import open_storage
from runner.config import load_config
from runner.policies.rate import Rate
from runner.policies.retry import RetryPolicy
from runner.storage.contract.records import DeliveryQuery
from runner.storage.tables import turns
from tests.support.eventually import PATIENCE, eventually
from tests.support.faulty import Faulty
from tests.support.load import slowness
from tests.support.process import RunnerProcess

from .buses import Bus, BusTests, Gate, events

RETRY = RetryPolicy(max_attempts=50, delay=timedelta(milliseconds=5), jitter=0)


def line(count: int, *keys: str) -> list[Event]:
    """Return `count` events for each key, whose ids say their place in the order of the key."""
    return [Event(type="t", source="/tests", id=f"{key}-{n:04}", subject=key) for n in range(count) for key in keys]


class Book:
    """Handlers that note every start and every end, and check that there is order while it happens."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.ended: defaultdict[str, list[str]] = defaultdict(list)
        self.running: dict[str, str] = {}  # what runs, by key
        self.faults: list[str] = []
        self.failures = 0

    async def __call__(self, event: Event, delivery: Delivery) -> Outcome:
        key = str(event.subject)
        if key in self.running:
            self.faults.append(f"{event.id} began while {self.running[key]} ran")
        if self.ended[key] and self.ended[key][-1] >= event.id:
            self.faults.append(f"{event.id} came after {self.ended[key][-1]}")
        self.running[key] = event.id
        try:
            await asyncio.sleep(self.random.choice((0, 0, 0.001, 0.005)))
        finally:
            del self.running[key]
        match self.random.random():
            case chance if chance < 0.15:
                self.failures += 1
                return Failed("again")
            case chance if chance < 0.2:
                self.ended[key].append(event.id)
                return Rejected("never")
        self.ended[key].append(event.id)
        return ACCEPTED


async def over(bus: Bus, count: int) -> bool:
    """Whether there are `count` deliveries, and all of them have ended."""
    rows = await bus.deliveries()
    return len(rows) == count and {row["state"] for row in rows} <= {"delivered", "dead"}


class TestOrder(BusTests):
    async def test_several_instances_keep_the_order_of_each_key_whatever_fails(self, bus: Bus) -> None:
        book, keys, count = Book(4711), "abcdefg", 40
        runners = [bus.runner(batch=10) for _ in range(3)]
        for runner in runners:
            runner.subscribe("ordered", book, order_by="subject", retry=RETRY)
        published = line(count, *keys)
        first, second, third = runners
        async with first, second, third:
            for n in range(0, len(published), 10):
                await runners[n // 10 % 3].publish_many(published[n : n + 10])
            await eventually(lambda: over(bus, len(published)), timeout=3 * PATIENCE)
        assert book.faults == []
        assert {key: len(ended) for key, ended in book.ended.items()} == dict.fromkeys(keys, count)
        assert book.failures > 20
        assert await bus.database.count(turns) == [0]

    async def test_a_key_that_waits_holds_no_other_up(self, bus: Bus) -> None:
        runner, seen = bus.runner(), list[str]()

        def handle(event: Event) -> Outcome:
            seen.append(event.id)
            return Failed("later", timedelta(hours=1)) if event.subject == "a" else ACCEPTED

        runner.subscribe("s", handle, order_by="subject")
        async with runner:
            await runner.publish_many(line(20, "a", "b"))
            await eventually(lambda: bus.settled(pending=20, delivered=20))
        assert seen.count("a-0000") == 1
        assert [id for id in seen if id.startswith("b")] == [event.id for event in line(20, "b")]
        assert len(seen) == 21

    async def test_what_is_cancelled_lets_the_next_one_go(self, bus: Bus) -> None:
        runner, gate = bus.runner(lease="3s"), Gate()
        runner.subscribe("s", gate, order_by="subject")
        async with runner, open_storage(load_config(bus.write())) as storage:
            await runner.publish_many(line(2, "a"))
            await eventually(lambda: bus.settled(leased=1, pending=1))
            [first, _] = [row["event_seq"] for row in await bus.deliveries()]
            assert await storage.corrections.cancel(DeliveryQuery(seq=first)) == 1
            gate.opened.set()
            await bus.wake()
            await eventually(lambda: bus.settled(cancelled=1, delivered=1))
        assert gate.ids == ["a-0000", "a-0001"]

    async def test_what_is_acknowledged_lets_the_next_one_go(self, bus: Bus) -> None:
        runner, seen = bus.runner(lease="5m"), list[str]()

        def handle(event: Event) -> Outcome:
            seen.append(event.id)
            return Deferred(timedelta(hours=1))

        runner.subscribe("s", handle, order_by="subject")
        async with runner:
            await runner.publish_many(line(2, "a"))
            await eventually(lambda: bus.settled(leased=1, pending=1))
            await runner.ack("a-0000", "s")
            await eventually(lambda: bus.settled(delivered=1, leased=1))
        assert seen == ["a-0000", "a-0001"]

    async def test_an_order_that_is_asked_for_later_includes_what_waits(self, bus: Bus) -> None:
        first, second, seen = bus.runner(), bus.runner(), list[str]()
        first.subscribe("s", lambda event: Failed("no", timedelta(milliseconds=300)))
        second.subscribe("s", lambda event: seen.append(event.id), order_by="subject")
        async with first:
            await first.publish_many(line(5, "a"))
            await eventually(lambda: bus.settled(pending=5))
        async with second:
            await second.publish_many([Event(type="t", source="/tests", id=f"a-{n:04}", subject="a") for n in (5, 6)])
            await eventually(lambda: bus.settled(delivered=7))
        assert seen == [f"a-{n:04}" for n in range(7)]

    async def test_an_order_that_is_given_up_holds_nothing_back(self, bus: Bus) -> None:
        first, second = bus.runner(), bus.runner()
        first.subscribe("s", lambda event: Failed("no", timedelta(hours=1)), order_by="subject")
        second.subscribe("s", lambda event: None)
        async with first:
            await first.publish_many(line(5, "a"))
            await eventually(lambda: bus.settled(pending=5))
        async with second:
            await eventually(lambda: bus.settled(pending=1, delivered=4))


class Counted(Faulty):
    """A store that counts the claims it is asked for."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.claims: Counter[str] = Counter()

    def claim(self, *args: Any) -> Any:
        return self._counted("claim", args)

    def claim_deliveries(self, *args: Any) -> Any:
        return self._counted("claim_deliveries", args)

    def claim_regulated(self, *args: Any) -> Any:
        return self._counted("claim_regulated", args)

    def _counted(self, name: str, args: tuple[Any, ...]) -> Any:
        self.claims[name] += 1
        return getattr(self.store.queue, name)(*args)


class TestAtRest(BusTests):
    """What waits costs next to nothing, however much it is."""

    async def test_more_keys_that_wait_than_one_claim_visits(self, bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in ("postgres.queue", "sqlite.regulated"):
            monkeypatch.setattr(f"runner.storage.{module}.LINES", 10)
        counted: list[Counted] = []

        def count(store: Any) -> Counted:
            counted.append(Counted(store))
            return counted[-1]

        runner, keys = bus.runner(store=count), [f"key-{n}" for n in range(45)]
        runner.subscribe("s", lambda event: Failed("no", timedelta(hours=1)), order_by="subject", breaker=None)
        async with runner:
            await runner.publish_many(line(2, *keys))
            await eventually(lambda: waiting(bus, len(keys)))
            # A round of the lines behind the last answer, and then nothing more.
            await eventually(
                lambda: (
                    runner.worker._backlog._looks
                    and all(look.over and look.left(monotonic()) > 5 for look in runner.worker._backlog._looks.values())
                )
            )
            before = counted[0].claims.total()
            await asyncio.sleep(0.5)  # in which there were hundreds of claims
            assert counted[0].claims.total() - before <= 15  # a round that had begun, and a look by the clock

    @pytest.mark.parametrize("options", [{}, {"order_by": "subject"}, {"rate": "100/s"}])
    async def test_signals_that_bring_nothing_are_slowed_down_while_something_waits(
        self, bus: Bus, options: dict[str, Any]
    ) -> None:
        counted: list[Counted] = []

        def count(store: Any) -> Counted:
            counted.append(Counted(store))
            return counted[-1]

        runner, seen = bus.runner(store=count), list[str]()

        def handle(event: Event) -> Outcome:
            seen.append(event.id)
            return Failed("no", timedelta(hours=1)) if event.id == "a-0000" else ACCEPTED

        runner.subscribe("s", handle, breaker=None, **options)
        async with runner:
            await runner.publish_many(line(1, "a"))
            await eventually(lambda: bus.settled(pending=1))
            claims, began, flooding = counted[0].claims, monotonic(), True
            before = claims.total()

            async def flood() -> None:
                while flooding:
                    runner.worker.wake()
                    await asyncio.sleep(0)

            flooded = asyncio.create_task(flood())
            await asyncio.sleep(1.0)
            number, took = claims.total() - before, monotonic() - began
            await bus.publish(line(1, "b"))  # from elsewhere, while the flood goes on
            await eventually(lambda: seen == ["a-0000", "b-0000"])
            flooding = False
            await flooded
        assert number <= 2 * (2 * 8 + took * (1 / 0.02 + 1 / 0.05))  # else as many as the store can take


async def waiting(bus: Bus, keys: int) -> bool:
    """Whether the first of each key has failed, and the others stand behind it."""
    rows = await bus.deliveries()
    return sum(row["attempts"] for row in rows) == keys and {row["state"] for row in rows} == {"pending"}


class TestRate(BusTests):
    async def test_a_retry_costs_a_permit_as_well(self, bus: Bus) -> None:
        runner, times = bus.runner(), list[float]()

        def handle(event: Event) -> Outcome:
            times.append(monotonic())
            return Failed("again") if len(times) < 4 else ACCEPTED

        runner.subscribe("s", handle, rate="10/s", retry=RETRY)
        async with runner:
            await runner.publish(events(1)[0])
            await eventually(lambda: bus.settled(delivered=1))
        assert times[-1] - times[0] >= 0.3 - 0.05

    async def test_it_is_no_reason_to_delay_another_subscription(self, bus: Bus) -> None:
        runner, quick = bus.runner(), Gate()
        quick.opened.set()
        runner.subscribe("slow", lambda event: None, rate="1/h")
        runner.subscribe("quick", quick)
        async with runner:
            await runner.publish_many(events(50))
            await eventually(lambda: bus.settled(delivered=51, pending=49))
        assert quick.done == 50


ORDERED = """\
import asyncio, os, random

def note(line):
    with open("journal", "a") as journal:
        journal.write(line + "\\n")

async def handle(event):
    note(f"began {event.id} {os.getpid()}")
    await asyncio.sleep(random.choice((0, 0.002, 0.01)))
    if random.random() < 0.1:
        note(f"failed {event.id}")
        raise ValueError("again")
    note(f"accepted {event.id}")
"""

PACED = """\
import time

def handle(event):
    with open("journal", "a") as journal:
        journal.write(f"{time.time()}\\n")
"""

MORE = """\
sinks: {{all: {{python: "handlers:handle"}}}}
subscriptions: [{{name: all, sink: all, {option}}}]
"""


class TestProcesses(BusTests):
    @pytest.fixture(params=["postgres"])
    def dsn(self, request: pytest.FixtureRequest) -> str:
        return str(request.getfixturevalue("postgres_dsn"))

    async def test_one_that_is_killed_leaves_the_order_as_it_is(self, bus: Bus, tmp_path: Path) -> None:
        keys, count = "abcdefghij", 40
        path = bus.write(MORE.format(option="order_by: subject"), lease="3s")
        (tmp_path / "handlers.py").write_text(ORDERED)
        journal, published = tmp_path / "journal", line(count, *keys)
        journal.touch()
        with contextlib.ExitStack() as stack:
            processes = [stack.enter_context(RunnerProcess("start", "-c", path, cwd=tmp_path)) for _ in range(3)]
            for process in processes:
                process.wait_for_line("started")
            await bus.publish(published)
            await eventually(lambda: journal.read_text().count("accepted") > 20)
            last = [entry for entry in journal.read_text().splitlines() if entry.startswith("began")][-1]
            [killed] = [process for process in processes if last.endswith(f" {process.pid}")]
            killed.kill()
            await eventually(lambda: over(bus, len(published)), timeout=3 * PATIENCE)
        assert {row["state"] for row in await bus.deliveries()} == {"delivered"}
        check_order(journal.read_text().splitlines(), published)
        assert await bus.database.count(turns) == [0]

    @pytest.mark.alone
    async def test_two_of_them_reach_the_rate_and_keep_to_it(self, bus: Bus, tmp_path: Path) -> None:
        count, rate = 300, Rate.parse("100/s")
        path = bus.write(MORE.format(option="rate: 100/s"))
        (tmp_path / "handlers.py").write_text(PACED)
        with contextlib.ExitStack() as stack:
            processes = [stack.enter_context(RunnerProcess("start", "-c", path, cwd=tmp_path)) for _ in range(2)]
            for process in processes:
                process.wait_for_line("started")
            await bus.publish(events(count))
            await eventually(lambda: bus.settled(delivered=count))
            slow = slowness(process.pid for process in processes)
        times = sorted(float(moment) for moment in (tmp_path / "journal").read_text().split())
        took = times[-1] - times[0]
        assert count / took >= 80 / slow
        late = 0.1 * slow  # at most this much between the claim and the handler's first line
        for first, start in enumerate(times):
            within = sum(moment <= start + 0.5 for moment in times[first:])
            assert within <= (0.5 + late) * 100 + rate.burst


def check_order(journal: Sequence[str], published: Sequence[Event]) -> None:
    """Check that no event of a key began before the one before it had been accepted, and that all were."""
    accepted: defaultdict[str, list[str]] = defaultdict(list)
    running: dict[str, str] = {}  # by key; what a killed process ran is begun again
    wanted: defaultdict[str, list[str]] = defaultdict(list)
    for event in published:
        wanted[str(event.subject)].append(event.id)
    for entry in journal:
        what, id, *_ = entry.split()
        key = id.partition("-")[0]
        if what == "began":
            assert running.get(key, id) == id, entry
            done = len(accepted[key])
            # The last one comes again if its end could not be written down any more.
            assert id in wanted[key][max(done - 1, 0) : done + 1], entry
            running[key] = id
        else:
            running.pop(key)
        if what == "accepted" and id not in accepted[key]:
            accepted[key].append(id)
    assert accepted == wanted
