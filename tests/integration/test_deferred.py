"""Deliveries whose sink defers its answer, from the handler to the acknowledgement or its absence."""

from __future__ import annotations

from datetime import timedelta
from time import monotonic

import pytest
from sqlalchemy import update

from runner import ACCEPTED, Deferred, Delivery, Event, Failed, Outcome, Rejected, StateConflict
from runner.policies.retry import RetryPolicy
from runner.storage.expressions import Now
from runner.storage.tables import attempts, deliveries
from tests.support.eventually import eventually

from .buses import Bus, BusTests, events

HOUR = timedelta(hours=1)
SOON = timedelta(milliseconds=50)
AGAIN = RetryPolicy(max_attempts=2, delay=timedelta(milliseconds=10), jitter=0)


class Answers:
    """A handler that gives the same answer to everything, and counts."""

    def __init__(self, answer: Outcome) -> None:
        self.answer = answer
        self.attempts: list[int] = []

    def __call__(self, event: Event, delivery: Delivery) -> Outcome:
        self.attempts.append(delivery.attempt)
        return self.answer


class TestDeferred(BusTests):
    async def test_it_holds_no_lane_and_no_lease_until_it_is_acknowledged(self, bus: Bus) -> None:
        runner, later = bus.runner(), Answers(Deferred(HOUR))
        published = events(3)
        runner.subscribe("later", later, concurrency=1)
        async with runner:
            await runner.publish_many(published)
            await eventually(lambda: bus.settled(leased=3))
            await eventually(lambda: runner.worker.busy == 0)
            assert [row["lease_token"] for row in await bus.deliveries()] == [None] * 3
            for event in published:
                assert await runner.ack(event.id, "later")
            assert await bus.settled(delivered=3)
            assert not await runner.ack(published[0].id, "later")
        assert later.attempts == [1, 1, 1]
        assert await bus.database.count(attempts) == [0]

    async def test_without_an_acknowledgement_its_attempts_fail_in_time(self, bus: Bus) -> None:
        runner, later = bus.runner(), Answers(Deferred(SOON))
        runner.subscribe("later", later, retry=AGAIN)
        async with runner:
            began = monotonic()
            await runner.publish(events(1)[0])
            await eventually(lambda: bus.settled(dead=1))
            assert 0.1 <= monotonic() - began < 25  # although nobody polls
        assert later.attempts == [1, 2]
        [row] = await bus.deliveries()
        assert (row["attempts"], row["last_error"]) == (2, "not acknowledged within 0.05 s (attempt 2 of 2)")
        made = [(row["number"], row["error"]) for row in await bus.database.rows(attempts)]
        assert made == [(1, "not acknowledged within 0.05 s"), (2, "not acknowledged within 0.05 s")]
        assert all(0.04e6 < row["duration_us"] < 4e6 for row in await bus.database.rows(attempts))

    async def test_who_deferred_it_may_be_gone_by_then(self, bus: Bus) -> None:
        first, second = bus.runner(), bus.runner()
        patient, heir = Answers(Deferred(HOUR)), Answers(ACCEPTED)
        first.subscribe("later", patient)
        second.subscribe("later", heir)
        async with first:
            await first.publish(events(1)[0])
            await eventually(lambda: bus.settled(leased=1))
            await eventually(lambda: first.worker.busy == 0)
        assert await bus.settled(leased=1)  # a stop gives it back to nobody
        await bus.database.execute(update(deliveries).values(due_at=Now()))
        async with second:
            await eventually(lambda: bus.settled(delivered=1))
        assert (patient.attempts, heir.attempts) == ([1], [2])

    async def test_a_failure_is_retried_at_once_with_its_reason(self, bus: Bus) -> None:
        runner, later = bus.runner(), Answers(Deferred(HOUR))
        event = events(1)[0]
        runner.subscribe("later", later, retry=AGAIN)
        async with runner:
            await runner.publish(event)
            await eventually(lambda: bus.settled(leased=1))
            later.answer = ACCEPTED
            assert await runner.ack(event.id, "later", failure="no such customer")
            await eventually(lambda: bus.settled(delivered=1))
            with pytest.raises(StateConflict, match="is delivered"):
                await runner.ack(event.id, "later", failure="no")
        assert later.attempts == [1, 2]
        made = [(row["number"], row["error"]) for row in await bus.database.rows(attempts)]
        assert made == [(1, "no such customer"), (2, None)]

    @pytest.mark.parametrize("answer", [Deferred(timedelta(0)), ACCEPTED, Failed("no"), Rejected("no")], ids=repr)
    @pytest.mark.parametrize("attempt", [1, 2])
    async def test_an_acknowledgement_before_the_answer_stands(self, bus: Bus, answer: Outcome, attempt: int) -> None:
        runner, seen = bus.runner(), []

        async def handle(event: Event, delivery: Delivery) -> Outcome:
            seen.append(delivery.attempt)
            if delivery.attempt < attempt:
                return Failed("not yet")
            assert await runner.ack(event.id, "eager")
            return answer

        runner.subscribe("eager", handle, retry=AGAIN)
        runner.subscribe("other", Answers(ACCEPTED))
        async with runner:
            await runner.publish(events(1)[0])
            await eventually(lambda: bus.settled(delivered=2))
        assert await bus.settled(delivered=2)
        assert seen == list(range(1, attempt + 1))
        assert len(await bus.database.rows(attempts)) == (0 if attempt == 1 else 2)

    @pytest.mark.parametrize("answer", [Deferred(30), Deferred(None)], ids=repr)  # type: ignore[arg-type]  # what handlers in untyped code do
    async def test_a_time_that_is_none_fails(self, bus: Bus, answer: Deferred) -> None:
        runner = bus.runner()
        runner.subscribe("later", Answers(answer), retry=RetryPolicy(max_attempts=1))
        async with runner:
            await runner.publish(events(1)[0])
            await eventually(lambda: bus.settled(dead=1))
        [row] = await bus.deliveries()
        assert "the sink returned Deferred, expected its fields of the documented types" in row["last_error"]
