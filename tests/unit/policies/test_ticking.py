"""What becomes of ticks that are due: catch-up, windows, overlap."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.policies.schedule import CATCH_UP, OVERLAP, EventTemplate, Schedule
from runner.policies.ticking import EXAMINED, Decision, Standing, decide

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
MINUTE, HOUR, DAY = 60 * SECOND, 3600 * SECOND, 86400 * SECOND
LITTLE = timedelta(milliseconds=5)


def schedule(length: timedelta = MINUTE, **fields: Any) -> Schedule:
    return Schedule(name="pulse", event=EventTemplate(type="t"), every=length, **fields)


def ticks(*numbers: int, length: timedelta = MINUTE) -> list[datetime]:
    return [NOON + number * length for number in numbers]


def of(decision: Decision) -> tuple[list[datetime], datetime | None, int, int]:
    return list(decision.fire), decision.tick, len(decision.missed), decision.skipped


class TestInTime:
    @pytest.mark.parametrize("catch_up", CATCH_UP)
    @pytest.mark.parametrize("overlap", OVERLAP)
    def test_a_tick_that_is_due_is_published_and_the_next_one_comes_from_the_schedule(
        self, catch_up: Any, overlap: Any
    ) -> None:
        each = schedule(catch_up=catch_up, overlap=overlap)
        decision = decide(each, Standing(NOON), NOON + LITTLE)
        assert of(decision) == (ticks(0), NOON + MINUTE, 0, 0)
        assert decision.look_at == NOON + MINUTE

    def test_one_that_is_not_due_stays(self) -> None:
        decision = decide(schedule(), Standing(NOON), NOON - LITTLE)
        assert of(decision) == ([], NOON, 0, 0)
        assert decision.look_at == NOON

    def test_jitter_puts_it_off(self) -> None:
        each = schedule(HOUR, jitter=30 * MINUTE)
        due = each.due_at(NOON)
        assert due > NOON
        assert of(decide(each, Standing(NOON), due - LITTLE))[0] == []
        decision = decide(each, Standing(NOON), due)
        assert list(decision.fire) == [NOON]
        assert decision.look_at == each.due_at(NOON + HOUR)

    def test_after_the_last_one_there_is_none(self) -> None:
        decision = decide(schedule(end_at=NOON), Standing(NOON), NOON)
        assert of(decision) == (ticks(0), None, 0, 0)
        assert decision.look_at is None


class TestCatchUp:
    """Thirty ticks were due while nobody was there, the last of them 20 seconds ago."""

    NOW = NOON + 29 * MINUTE + 20 * SECOND

    def decided(self, **fields: Any) -> tuple[list[datetime], datetime | None, int, int]:
        return of(decide(schedule(**fields), Standing(NOON), self.NOW))

    def test_all(self) -> None:
        assert self.decided(catch_up="all") == (ticks(*range(30)), NOON + 30 * MINUTE, 0, 0)

    def test_one_is_the_last_one(self) -> None:
        assert self.decided(catch_up="one") == (ticks(29), NOON + 30 * MINUTE, 29, 0)

    def test_none_has_a_grace_of_half_the_time_to_the_next_one(self) -> None:
        assert self.decided(catch_up="none") == (ticks(29), NOON + 30 * MINUTE, 29, 0)
        late = of(decide(schedule(catch_up="none"), Standing(NOON), self.NOW + 15 * SECOND))
        assert late == ([], NOON + 30 * MINUTE, 30, 0)

    @pytest.mark.parametrize(
        ("length", "in_time", "too_late"),
        [(SECOND, 900, None), (10 * SECOND, 5_000, 5_100), (DAY, 60_000, 60_100)],
    )
    def test_the_grace_has_bounds(self, length: timedelta, in_time: int, too_late: int | None) -> None:
        each = schedule(length, catch_up="none", anchor=NOON)
        assert decide(each, Standing(NOON), NOON + in_time * timedelta(milliseconds=1)).fire
        if too_late is not None:
            assert not decide(each, Standing(NOON), NOON + too_late * timedelta(milliseconds=1)).fire

    def test_within_the_window(self) -> None:
        window = 10 * MINUTE + 20 * SECOND
        assert self.decided(catch_up="all", window=window) == (ticks(*range(19, 30)), NOON + 30 * MINUTE, 19, 0)
        assert self.decided(catch_up="one", window=SECOND) == ([], NOON + 30 * MINUTE, 30, 0)

    @pytest.mark.parametrize("catch_up", CATCH_UP)
    def test_of_a_year_of_seconds_none_is_lost_from_the_count(self, catch_up: Any) -> None:
        each = schedule(SECOND, catch_up=catch_up, window=100 * SECOND)
        now, standing, count, fired = NOON + HOUR + 5 * LITTLE, Standing(NOON), 0, 0
        while True:
            decision = decide(each, standing, now)
            assert decision.examined <= EXAMINED
            count += len(decision.missed)
            fired += len(decision.fire)
            assert decision.tick is not None
            assert decision.look_at is not None
            standing = Standing(decision.tick)
            if decision.look_at > now:
                break
        assert count + fired == 3601
        assert fired == {"none": 1, "one": 1, "all": 100}[catch_up]
        assert standing.tick == NOON + 3601 * SECOND


class TestOverlap:
    def test_allow_does_not_care(self) -> None:
        assert of(decide(schedule(), Standing(NOON, busy=True), NOON)) == (ticks(0), NOON + MINUTE, 0, 0)

    def test_skip(self) -> None:
        each = schedule(overlap="skip")
        assert of(decide(each, Standing(NOON, busy=True), NOON)) == ([], NOON + MINUTE, 0, 1)
        assert of(decide(each, Standing(NOON, busy=False), NOON)) == (ticks(0), NOON + MINUTE, 0, 0)

    def test_of_several_that_are_late_one_goes_at_a_time(self) -> None:
        for overlap in ("skip", "queue"):
            each = schedule(overlap=overlap, catch_up="all")
            decision = decide(each, Standing(NOON), NOON + 2 * MINUTE)
            assert of(decision) == (ticks(0), NOON + MINUTE, 0, 0)
            assert decision.look_at == NOON + MINUTE  # which is now

    def test_queue_puts_off_and_looks_again_ever_more_rarely(self) -> None:
        each, waits = schedule(overlap="queue"), []
        standing, now = Standing(NOON, busy=True), NOON
        for _ in range(30):
            decision = decide(each, standing, now)
            assert of(decision) == ([], NOON, 0, 0)
            assert decision.look_at is not None
            waits.append(decision.look_at - now)
            standing, now = Standing(NOON, busy=True, queued_until=decision.queued_until), decision.look_at
        assert waits == sorted(waits)
        assert waits[0] == timedelta(milliseconds=250)
        assert waits[-1] == 5 * SECOND

    @pytest.mark.parametrize("catch_up", CATCH_UP)
    def test_what_came_while_it_waited_is_published_in_turn(self, catch_up: Any) -> None:
        """One delivery takes ten minutes; no tick is lost, whatever is to become of missed ones."""
        each = schedule(overlap="queue", catch_up=catch_up, window=SECOND)
        fired = simulated(each, Standing(NOON), NOON, NOON + HOUR, takes=10 * MINUTE)
        assert fired == ticks(*range(6)) or fired == ticks(*range(7))

    def test_what_came_while_nobody_was_there_is_missed(self) -> None:
        each = schedule(overlap="queue", catch_up="one")
        waiting = Standing(NOON, busy=False, queued_until=NOON + 90 * SECOND)
        now = NOON + 30 * MINUTE + LITTLE
        decision = decide(each, waiting, now)
        assert of(decision) == (ticks(0), NOON + MINUTE, 0, 0)  # it was waiting already
        standing = Standing(NOON + MINUTE, queued_until=decision.queued_until)
        decision = decide(each, standing, now)
        assert of(decision) == (ticks(1), NOON + 2 * MINUTE, 0, 0)
        standing = Standing(NOON + 2 * MINUTE, queued_until=decision.queued_until)
        assert of(decide(each, standing, now)) == (ticks(30), NOON + 31 * MINUTE, 28, 0)


def simulated(each: Schedule, standing: Standing, now: datetime, end: datetime, *, takes: timedelta) -> list[datetime]:
    """Return what is published when somebody looks as often as told, and each delivery takes so long."""
    fired: list[datetime] = []
    over = now
    while now < end:
        decision = decide(each, Standing(standing.tick, now < over, standing.queued_until), now)
        assert not decision.missed
        if decision.fire:
            assert now >= over, "they overlap"
            assert len(decision.fire) == 1
            over = now + takes
        fired += decision.fire
        assert decision.tick is not None
        assert decision.look_at is not None
        standing = Standing(decision.tick, queued_until=decision.queued_until)
        now = max(now + LITTLE, decision.look_at)
    return fired


@given(
    st.sampled_from(CATCH_UP),
    st.sampled_from(OVERLAP),
    st.sampled_from([SECOND, 7 * SECOND, MINUTE]),
    st.sampled_from([timedelta(0), 3 * SECOND]),
    st.lists(st.tuples(st.floats(0, 300), st.booleans()), min_size=1, max_size=20),
    st.sampled_from([1, 3, EXAMINED]),
)
def test_every_tick_has_one_end(
    catch_up: Any,
    overlap: Any,
    length: timedelta,
    jitter: timedelta,
    looks: Sequence[tuple[float, bool]],
    most: int,
) -> None:
    """Whenever somebody looks, however long nobody does: each tick is published, missed, skipped or still to come."""
    each = schedule(length, catch_up=catch_up, overlap=overlap, jitter=min(jitter, length), window=20 * SECOND)
    standing, now = Standing(NOON), NOON
    ends: Counter[datetime] = Counter()
    skipped = 0
    for wait, busy in looks:
        now += wait * SECOND
        before = standing
        decision = decide(each, Standing(standing.tick, busy, standing.queued_until), now, most)
        assert all(each.due_at(tick) <= now for tick in decision.fire), "published early"
        assert list(decision.fire) == sorted(decision.fire)
        assert not (busy and overlap != "allow" and decision.fire), "published although the last one has not ended"
        ends.update(decision.fire)
        ends.update(decision.missed)
        skipped += decision.skipped
        assert decision.tick is not None
        assert decision.tick >= before.tick
        standing = Standing(decision.tick, queued_until=decision.queued_until)
    passed = list(
        takewhile(
            lambda tick: tick < standing.tick, (NOON, *takewhile(lambda tick: tick < standing.tick, each.ticks(NOON)))
        )
    )
    assert set(ends.values()) <= {1}, "one has two ends"
    assert ends.total() + skipped == len(passed)
    assert set(ends) <= set(passed)
