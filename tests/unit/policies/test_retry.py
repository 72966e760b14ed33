from __future__ import annotations

from collections import Counter
from datetime import timedelta
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.delivery import ACCEPTED, AwaitAck, Dead, Deferred, Delivered, Failed, Rejected, RetryIn
from runner.policies.retry import MAX_DEFERRAL, MAX_RETRY_AFTER, RetryPolicy

SECOND = timedelta(seconds=1)


def none() -> float:
    return 0.0


def test_accepted_is_delivered_at_any_attempt() -> None:
    assert RetryPolicy(max_attempts=1).settle(ACCEPTED, 5) == Delivered()


def test_rejected_is_dead_at_once() -> None:
    assert RetryPolicy().settle(Rejected("no such order"), 1) == Dead("no such order")


def test_deferred_is_waited_for_within_bounds() -> None:
    policy = RetryPolicy(max_attempts=1)
    assert policy.settle(Deferred(SECOND), 1) == AwaitAck(SECOND)
    assert policy.settle(Deferred(-SECOND), 1) == AwaitAck(timedelta(0))
    assert policy.settle(Deferred(timedelta.max), 1) == AwaitAck(MAX_DEFERRAL)


def test_failed_is_tried_again_until_the_last_attempt() -> None:
    policy = RetryPolicy(max_attempts=3)
    assert policy.settle(Failed("down"), 1, none) == RetryIn(SECOND, "down")
    assert policy.settle(Failed("down"), 2, none) == RetryIn(2 * SECOND, "down")
    assert policy.settle(Failed("down"), 3, none) == Dead("down (attempt 3 of 3)")
    assert policy.settle(Failed("down"), 4, none) == Dead("down (attempt 4 of 3)")


@pytest.mark.parametrize(
    ("asked", "wait"),
    [
        (timedelta(0), timedelta(0)),
        (timedelta(seconds=-5), timedelta(0)),
        (timedelta(minutes=5), timedelta(minutes=5)),
        (timedelta(days=400), MAX_RETRY_AFTER),
    ],
)
def test_the_wait_a_sink_asks_for_counts_within_bounds(asked: timedelta, wait: timedelta) -> None:
    policy = RetryPolicy(max_delay=SECOND)
    assert policy.settle(Failed("busy", asked), 1) == RetryIn(wait, "busy")
    assert policy.settle(Failed("busy", asked), policy.max_attempts) == Dead("busy (attempt 20 of 20)")


def test_exhausted_is_one_more_than_allowed() -> None:
    policy = RetryPolicy(max_attempts=3)
    assert [policy.exhausted(attempt) for attempt in (1, 3, 4)] == [False, False, True]


def test_the_delay_doubles_up_to_its_limit() -> None:
    policy = RetryPolicy(delay=SECOND, max_delay=10 * SECOND)
    assert [policy.backoff(attempt, none) / SECOND for attempt in (1, 2, 3, 4, 5, 6, 1000)] == [1, 2, 4, 8, 10, 10, 10]


def test_a_schedule_says_every_wait_and_how_many_there_are() -> None:
    policy = RetryPolicy(schedule=(SECOND, 10 * SECOND, 60 * SECOND), delay=timedelta(hours=3))
    assert [policy.settle(Failed("down"), attempt, none) for attempt in (1, 2, 3, 4)] == [
        RetryIn(SECOND, "down"),
        RetryIn(10 * SECOND, "down"),
        RetryIn(60 * SECOND, "down"),
        Dead("down (attempt 4 of 4)"),
    ]
    assert [policy.exhausted(attempt) for attempt in (4, 5)] == [False, True]
    assert policy.backoff(2, lambda: 0.5) == 9 * SECOND
    assert policy.settle(Failed("busy", 5 * SECOND), 3, none) == RetryIn(5 * SECOND, "busy")


def test_fewer_attempts_than_the_schedule_has_waits_end_it_sooner() -> None:
    policy = RetryPolicy(schedule=(SECOND, SECOND, SECOND), max_attempts=2)
    assert policy.settle(Failed("down"), 1, none) == RetryIn(SECOND, "down")
    assert policy.settle(Failed("down"), 2, none) == Dead("down (attempt 2 of 2)")


def test_no_attempt_starts_later_than_max_age_after_the_first() -> None:
    policy = RetryPolicy(max_age=10 * SECOND, max_attempts=3)
    assert policy.settle(Failed("down"), 2, none, age=8 * SECOND) == RetryIn(2 * SECOND, "down")
    late = policy.settle(Failed("down"), 2, none, age=8.5 * SECOND)
    assert late == Dead("down (attempt 2; the next would come after max_age, 10 s from the first attempt on)")
    asked = policy.settle(Failed("busy", timedelta(hours=1)), 1, none)
    assert asked == Dead("busy (attempt 1; the next would come after max_age, 10 s from the first attempt on)")
    # Whichever limit ends first is the one that is named.
    assert policy.settle(Failed("down"), 3, none, age=9 * SECOND) == Dead("down (attempt 3 of 3)")
    assert [policy.outlived(age) for age in (10 * SECOND, 11 * SECOND)] == [False, True]
    assert not RetryPolicy().outlived(timedelta(days=9999))


def test_no_delay_stays_none() -> None:
    assert RetryPolicy(delay=timedelta(0)).backoff(1000) == timedelta(0)


@given(
    st.builds(
        RetryPolicy,
        max_attempts=st.integers(1, 100),
        delay=st.timedeltas(timedelta(0), timedelta(days=30)),
        max_delay=st.timedeltas(timedelta(0), timedelta(days=30)),
        jitter=st.floats(0, 1),
    ),
    st.integers(1, 10_000),
    st.floats(0, 1, exclude_max=True),
)
def test_jitter_only_ever_shortens_and_by_its_share(policy: RetryPolicy, attempt: int, drawn: float) -> None:
    full = policy.backoff(attempt, none)
    actual = policy.backoff(attempt, lambda: drawn)
    assert full * (1 - policy.jitter) - timedelta(microseconds=1) <= actual <= full <= max(policy.max_delay, full * 0)
    assert isinstance(policy.settle(Failed("x"), attempt, lambda: drawn), RetryIn | Dead)


def test_two_deliveries_that_failed_together_do_not_come_back_together() -> None:
    policy = RetryPolicy(delay=timedelta(minutes=1), jitter=0.2)
    waits = {policy.backoff(1) for _ in range(50)}
    assert len(waits) > 40
    assert min(waits) >= timedelta(seconds=48)


def test_those_that_failed_together_come_back_evenly_spread() -> None:
    """No spike for a receiver that is back: chi-square over 20 bins, 19 degrees of freedom, p = 0.001 (FI-40)."""
    policy, draw = RetryPolicy(delay=timedelta(minutes=1), jitter=0.2), Random(7).random
    first, last, bins = 48.0, 60.0, 20
    waits = [policy.backoff(1, draw).total_seconds() for _ in range(10_000)]
    found = Counter(min(int((wait - first) / (last - first) * bins), bins - 1) for wait in waits)
    expected = len(waits) / bins
    assert sum((found[each] - expected) ** 2 / expected for each in range(bins)) < 43.8
