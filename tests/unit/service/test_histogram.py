"""Histograms: a bounded error, and counts that add up."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.service.histogram import Histogram

DURATIONS = st.floats(0.001, 4000.0)


@given(st.lists(DURATIONS, min_size=1), st.sampled_from([0.01, 0.5, 0.95, 0.99, 1.0]))
def test_a_quantile_is_off_by_nine_percent_at_most(durations: list[float], share: float) -> None:
    histogram = Histogram()
    for each in durations:
        histogram.add(each)
    exact = sorted(durations)[max(0, -int(-share * len(durations) // 1) - 1)]
    found = histogram.quantile(share)
    assert found is not None
    assert 1 / 1.0906 <= found / max(exact, 0.000917) <= 1.0906 or (exact <= 0.001 and found == 0.0005)


@given(st.lists(DURATIONS), st.lists(DURATIONS))
def test_two_that_are_merged_are_one_with_both(one: list[float], other: list[float]) -> None:
    parts = [Histogram(), Histogram()]
    whole = Histogram()
    for histogram, durations in zip(parts, (one, other), strict=True):
        for each in durations:
            histogram.add(each)
            whole.add(each)
    merged = Histogram.merged(parts)
    assert merged.counts == whole.counts
    assert merged.total == pytest.approx(whole.total)
    assert merged.since(parts[0]).counts == parts[1].counts


@given(st.floats(0.0, 100.0), st.floats(0.0, 100.0), st.integers(1, 10_000))
def test_what_lies_evenly_is_counted_to_the_last(one: float, other: float, times: int) -> None:
    least, most = sorted((one, other))
    histogram = Histogram()
    histogram.add_between(least, most, times)
    assert histogram.count == times
    assert histogram.total == pytest.approx((least + most) / 2 * times)
    low, high = histogram.quantile(0.0001), histogram.quantile(1.0)
    assert low is not None
    assert high is not None
    assert high <= max(most, 0.001) * 1.1
    assert low >= min(least, 0.0005) / 1.1


def test_what_lies_evenly_is_spread_evenly() -> None:
    histogram = Histogram()
    histogram.add_between(0.0, 1.0, 1000)
    middle = histogram.quantile(0.5)
    assert middle == pytest.approx(0.5, rel=0.1)


def test_quick_ones_and_slow_ones() -> None:
    histogram = Histogram()
    histogram.add_quick(90, 0.009)
    histogram.add_quick(0, 0.0)
    histogram.add(5000.0, 10)
    assert histogram.count == 100
    assert histogram.quantile(0.9) == 0.0005
    assert histogram.total == pytest.approx(50_000.009)
    octaves = list(histogram.octaves())
    assert octaves[0] == (0.001, 90)
    assert octaves[-2][1] == 90
    assert octaves[-1] == (inf, 100)
    assert Histogram().quantile(0.5) is None
