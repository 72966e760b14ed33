"""A receiver that fails is left alone, and gets everything once it is back."""

from __future__ import annotations

from datetime import timedelta
from time import monotonic

from structlog.testing import capture_logs

from runner import Delivery, Event
from runner.errors import StorageUnavailable
from runner.policies.breaker import BreakerPolicy
from runner.policies.retry import RetryPolicy
from runner.storage.tables import subscriptions
from tests.support.eventually import eventually
from tests.support.faulty import Faulty

from .buses import Bus, BusTests, Handler, events, ids

QUICK = RetryPolicy(delay=timedelta(milliseconds=10), max_delay=timedelta(milliseconds=10), max_attempts=1000)
HOUR = BreakerPolicy(failures=5, pause=timedelta(hours=1), max_pause=timedelta(hours=1))


class Receiver(Handler):
    """A handler that fails while it is down."""

    def __init__(self) -> None:
        super().__init__()
        self.down = True
        self.times: list[float] = []

    async def handle(self, event: Event, delivery: Delivery) -> None:
        self.times.append(monotonic())
        if self.down:
            raise ConnectionError("down")


async def trips(bus: Bus) -> int:
    """Return how often the breaker of `s` has opened in a row, as all instances know it."""
    [row] = [row for row in await bus.database.rows(subscriptions) if row["name"] == "s"]
    assert (row["breaker_until"] is None) == (row["breaker_trips"] == 0)
    return int(row["breaker_trips"])


async def closed(bus: Bus) -> bool:
    return await trips(bus) == 0


async def opened_once(bus: Bus) -> bool:
    return await trips(bus) == 1


class TestOutage(BusTests):
    async def test_two_workers_try_one_at_a_time_and_deliver_everything_once_it_is_back(self, bus: Bus) -> None:
        runners, receiver, published = [bus.runner(), bus.runner()], Receiver(), events(300)
        failures, concurrency = 5, 4
        pause = BreakerPolicy(
            failures=failures, pause=timedelta(milliseconds=200), max_pause=timedelta(milliseconds=400)
        )
        for runner in runners:
            runner.subscribe("s", receiver, concurrency=concurrency, retry=QUICK, breaker=pause)

        async def opened(times: int) -> bool:
            return await trips(bus) >= times

        async with runners[0], runners[1]:
            await bus.publish(published)
            await eventually(lambda: opened(4))
            tried = len(receiver.seen)
            times = await trips(bus)  # while it is down: a success would close the breaker
            receiver.down, before = False, len(receiver.seen)
            await eventually(lambda: bus.settled(delivered=300))
            await eventually(lambda: closed(bus))
        # Each process opens once by counting; then each tries one for each time the breaker opened.
        assert tried <= 2 * (failures + concurrency - 1) + 2 * times
        assert sorted({id for id, _ in receiver.seen}) == ids(published)
        assert len(receiver.seen) - before <= 300 + concurrency
        # Nothing but what was tried has cost an attempt.
        assert sum(row["attempts"] for row in await bus.deliveries()) == len(receiver.seen)

    async def test_it_is_tried_when_the_pause_is_over_although_nobody_polls(self, bus: Bus) -> None:
        runner, receiver = bus.runner(), Receiver()
        policy = BreakerPolicy(failures=1, pause=timedelta(seconds=2))
        runner.subscribe("s", receiver, retry=QUICK, breaker=policy, concurrency=1)
        with capture_logs() as lines:
            async with runner:
                await runner.publish_many(events(20))
                await eventually(lambda: len(receiver.seen) == 1)
                receiver.down = False
                await eventually(lambda: bus.settled(delivered=20))
        assert 2.0 <= receiver.times[1] - receiver.times[0] < 25.0
        assert [line["event"] for line in lines if line["event"].startswith("breaker")] == [
            "breaker open",
            "breaker half-open",
            "breaker closed",
        ]

    async def test_others_are_delivered_meanwhile_and_who_comes_later_does_not_try(self, bus: Bus) -> None:
        runner, later, receiver, other = bus.runner(), bus.runner(), Receiver(), Handler()
        for each in (runner, later):
            each.subscribe("s", receiver, types="order.*", retry=QUICK, breaker=HOUR, concurrency=1)
            each.subscribe("other", other, types="other")
        async with runner:
            await runner.publish_many(events(50))
            await eventually(lambda: bus.settled(pending=50))
            assert len(receiver.seen) == 5
            await eventually(lambda: opened_once(bus))
            async with later:
                await later.publish_many([*events(10, "other"), *events(60)[50:]])
                await eventually(lambda: bus.settled(pending=60, delivered=10))
        assert len(receiver.seen) == 5
        assert sum(row["attempts"] for row in await bus.deliveries() if row["state"] == "pending") == 5

    async def test_a_resumption_by_hand_closes_it(self, bus: Bus) -> None:
        runner, receiver = bus.runner(), Receiver()
        runner.subscribe("s", receiver, retry=QUICK, breaker=HOUR)
        async with runner:
            await runner.publish_many(events(50))
            await eventually(lambda: trips(bus))
            receiver.down = False
            await bus.pause("s", False)
            await eventually(lambda: bus.settled(delivered=50))
        assert await trips(bus) == 0

    async def test_what_was_claimed_and_had_not_started_goes_back_at_once(self, bus: Bus) -> None:
        runner, receiver = bus.runner(), Receiver()
        runner.subscribe("s", receiver, retry=QUICK, breaker=HOUR, concurrency=50)
        async with runner:
            await bus.pause("s", True)
            await runner.publish_many(events(50))
            await eventually(lambda: bus.settled(pending=50))
            await bus.pause("s", False)
            await eventually(lambda: trips(bus))
            await eventually(lambda: bus.settled(pending=50))
        assert len(receiver.seen) < 50
        assert sum(row["attempts"] for row in await bus.deliveries()) == len(receiver.seen)

    async def test_off_it_goes_on_trying(self, bus: Bus) -> None:
        runner, receiver = bus.runner(), Receiver()
        runner.subscribe("s", receiver, retry=QUICK, breaker=None)
        async with runner:
            await runner.publish(events(1)[0])
            await eventually(lambda: len(receiver.seen) > 25)
            receiver.down = False
            await eventually(lambda: bus.settled(delivered=1))
        assert await trips(bus) == 0

    async def test_a_store_that_cannot_be_told_stops_nobody(self, bus: Bus) -> None:
        runner, receiver, other = bus.runner(store=Deaf), Receiver(), Handler()
        runner.subscribe("s", receiver, types="order.*", retry=QUICK, breaker=HOUR, concurrency=1)
        runner.subscribe("other", other, types="other")
        with capture_logs() as lines:
            async with runner:
                await runner.publish_many(events(20))
                await eventually(lambda: bus.settled(pending=20))
                await runner.publish_many(events(10, "other"))
                await eventually(lambda: bus.settled(pending=20, delivered=10))
                await eventually(lambda: any(line["event"] == "loop failed" for line in lines))
        assert len(receiver.seen) == 5
        assert await trips(bus) == 0


class Deaf(Faulty):
    """A store to which no breaker can be told."""

    async def set_breaker(self, *_: object, **__: object) -> bool:
        raise StorageUnavailable("deaf")
