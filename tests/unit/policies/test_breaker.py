from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.policies.breaker import Breaker, BreakerPolicy, Trip

PAUSE, LONGEST = 10.0, 60.0
POLICY = BreakerPolicy(failures=3, pause=timedelta(seconds=PAUSE), max_pause=timedelta(seconds=LONGEST))


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker(POLICY)
    assert [breaker.failed(now) for _ in range(3)] == [False, False, True]
    return breaker


def test_it_opens_after_so_many_failures_in_a_row() -> None:
    breaker = Breaker(POLICY)
    for _ in range(5):
        assert not breaker.failed(0)
        assert not breaker.failed(0)
        assert not breaker.answered(0)
    assert opened().left(4) == 6
    assert not opened().closed


def test_what_was_running_when_it_opened_changes_nothing() -> None:
    breaker = opened()
    assert not breaker.failed(9)
    assert not breaker.answered(9)
    assert (breaker.left(9), breaker.trips) == (1, 1)


def test_half_open_a_failure_opens_it_for_twice_as_long_and_an_answer_closes_it() -> None:
    breaker, now = opened(), 0.0
    for pause in (10, 20, 40, 60, 60):
        assert breaker.left(now) == pause
        now += pause
        assert (breaker.left(now), breaker.closed) == (0, False)
        assert breaker.failed(now)
    assert breaker.answered(now + LONGEST)
    assert (breaker.closed, breaker.trips, breaker.failures) == (True, 0, 0)
    assert not breaker.failed(now + LONGEST)  # and it counts from the beginning


def test_off_it_never_opens() -> None:
    breaker = Breaker(None)
    assert not any(breaker.failed(0) for _ in range(100))
    breaker.learn(Trip(1, timedelta(hours=1)), 0)
    assert breaker.closed


def test_the_pause_never_overflows() -> None:
    assert POLICY.pause_after(10_000) == timedelta(seconds=LONGEST)


def test_what_all_instances_know_is_taken_over() -> None:
    breaker = Breaker(POLICY)
    breaker.failed(100)
    breaker.learn(None, 100)
    assert breaker.failures == 1  # nothing new
    breaker.learn(Trip(4, timedelta(seconds=7)), 100)
    assert (breaker.left(100), breaker.trips, breaker.known) == (7, 4, 4)
    assert breaker.trip(102) == Trip(4, timedelta(seconds=5))
    assert breaker.failed(107)
    assert (breaker.left(107), breaker.trips, breaker.known) == (60, 5, 4)
    breaker.learn(None, 110)
    assert (breaker.closed, breaker.trip(110), breaker.trips, breaker.known) == (True, None, 0, 0)


@given(
    steps=st.lists(st.tuples(st.floats(0, 100), st.booleans()), max_size=200),
    failures=st.integers(1, 5),
    pause=st.floats(0.001, 50),
)
def test_whatever_happens_it_is_left_alone_for_as_long_as_it_fails(
    steps: list[tuple[float, bool]], failures: int, pause: float
) -> None:
    """Held against a model that looks at the whole history: what was tried, when, and how it ended."""
    policy = BreakerPolicy(failures=failures, pause=timedelta(seconds=pause), max_pause=timedelta(seconds=200))
    breaker, now, row, trips, until = Breaker(policy), 0.0, 0, 0, 0.0
    for wait, failed in steps:
        now += wait
        assert breaker.left(now) == pytest.approx(max(0.0, until - now), abs=1e-5)
        if breaker.left(now) > 0:
            assert not (breaker.failed if failed else breaker.answered)(now)
            continue
        row = row + 1 if failed else 0
        opens = failed and (trips > 0 or row >= failures)
        closes = not failed and trips > 0
        assert (breaker.failed(now) if failed else breaker.answered(now)) == (opens or closes)
        if opens:
            trips += 1
            until = now + min(pause * 2 ** (trips - 1), 200)
        elif closes:
            trips, until = 0, 0.0
        assert breaker.closed == (trips == 0)
        assert breaker.trips == trips
