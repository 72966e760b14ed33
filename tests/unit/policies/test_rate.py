from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.policies.rate import Rate

NOTHING = timedelta(0)
MICROSECOND = timedelta(microseconds=1)

rates = st.builds(Rate, st.integers(1, 999_999_999), st.sampled_from("smh"))


@pytest.mark.parametrize(
    ("text", "interval", "burst"),
    [
        ("1/s", timedelta(seconds=1), 1),
        ("20/s", timedelta(milliseconds=50), 2),
        ("1000/s", timedelta(milliseconds=1), 100),
        ("100/m", timedelta(milliseconds=600), 1),
        ("7/h", timedelta(microseconds=514_285_715), 1),
        ("999999999/s", MICROSECOND, 100_000),
    ],
)
def test_a_permit_each_interval_and_a_tenth_of_a_second_at_once(text: str, interval: timedelta, burst: int) -> None:
    rate = Rate.parse(text)
    assert (str(rate), rate.interval, rate.burst) == (text, interval, burst)


@given(rates, st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 1000)), max_size=50))
def test_no_window_holds_more_than_the_rate_and_a_burst(rate: Rate, asked: list[tuple[int, int]]) -> None:
    """Times are microseconds between two askings."""
    now, free_at = NOTHING, NOTHING
    taken: list[tuple[timedelta, int]] = []
    for pause, wanted in asked:
        now += pause * MICROSECOND
        number = min(wanted, rate.permits(free_at - now))
        free_at = now + rate.charged(free_at - now, number)
        taken.append((now, number))
    for first, (start, _) in enumerate(taken):
        total = 0
        for end, number in taken[first:]:
            total += number
            assert total <= (end - start) / rate.interval + rate.burst + 1e-6


@given(rates)
def test_who_asks_when_told_to_loses_nothing_of_the_rate(rate: Rate) -> None:
    now, free_at, started = NOTHING, NOTHING, 0
    for _ in range(20):
        number = rate.permits(free_at - now)
        assert number >= 1
        started += number
        free_at = now + rate.charged(free_at - now, number)
        assert rate.permits(free_at - now) == 0
        wait = rate.wait(free_at - now)
        assert NOTHING < wait <= max(rate.interval, timedelta(milliseconds=50) + rate.interval)
        assert rate.permits(free_at - now - wait + MICROSECOND) < rate.permits(free_at - now - wait)
        now += wait
    assert started >= now / rate.interval - rate.burst


def test_a_pause_is_worth_a_burst_and_no_more() -> None:
    rate = Rate.parse("100/s")
    assert rate.permits(timedelta(days=-1)) == rate.burst == 10
    assert rate.charged(timedelta(days=-1), 3) == 3 * rate.interval
