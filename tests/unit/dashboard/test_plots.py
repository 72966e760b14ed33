"""Plots: every value lands inside the frame, and the words say what the lines show."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.dashboard.plots import RANGES, Plot, plots
from runner.service.histogram import Histogram
from runner.storage.contract.throughput import Flow, Point, Series

NOW = datetime(2026, 1, 1, 12, 0, 30, tzinfo=UTC)


def series(values: list[int | None], name: str = "15m", seconds: float = 0.02) -> Series:
    """Return a series whose last points, one for each value, were dispatched, delivered and failed so often."""
    step = RANGES[name].step
    last = NOW - (NOW - datetime(1970, 1, 1, tzinfo=UTC)) % step
    points = []
    for back, value in enumerate(reversed(values)):
        if value is not None:
            latency = Histogram()
            latency.add(seconds, value)
            flow = Flow(dispatched=value, delivered=value, failed=value // 2, latency=latency)
            points.append(Point(last - back * step, flow, value))
    return Series(now=NOW, step=step, points=points[::-1])


def coordinates(plot: Plot) -> list[tuple[float, float]]:
    found = [re.findall(r"[ML]([\d.]+) ([\d.]+)", line.path) for line in plot.lines]
    return [(float(x), float(y)) for each in found for x, y in each]


@given(
    st.lists(st.none() | st.integers(0, 10**9), max_size=16),
    st.sampled_from(list(RANGES)),
    st.floats(0.00001, 100_000),
    st.booleans(),
)
def test_everything_lands_inside(values: list[int | None], name: str, seconds: float, backlog: bool) -> None:
    for plot in plots(series(values, name, seconds), RANGES[name], backlog=backlog):
        for x, y in coordinates(plot):
            assert plot.left <= x <= plot.right
            assert plot.top <= y <= plot.bottom
        for y, words in plot.up:
            assert plot.top <= y <= plot.bottom
            assert words
        assert len({words for _, words in plot.up}) == len(plot.up)
        assert all(plot.left <= x <= plot.right for x, _ in plot.across)


def test_rates_are_per_second_and_the_last_one_is_told() -> None:
    throughput, success, latency, backlog = plots(series([60, 600]), RANGES["15m"])
    # The minute has lasted half of itself.
    assert throughput.summary == "Throughput: events in 20.0, at most 20.0; deliveries 20.0, at most 20.0"
    assert success.summary == "Success: delivered 66.7 %, at most 66.7 %"
    assert [line.last for line in latency.lines] == ["19 ms"] * 3 or [line.last for line in latency.lines] == [
        "21 ms"
    ] * 3
    assert backlog.summary == "Backlog: waiting 600, at most 600"
    assert [words for _, words in backlog.up] == ["0", "200", "400", "600"]


def test_a_step_without_attempts_is_a_gap_and_one_without_counts_nothing() -> None:
    throughput, success, *_ = plots(series([10, None, 10, 0, 10]), RANGES["15m"])
    assert throughput.lines[1].path.count("M") == 1
    assert success.lines[0].path.count("M") == len(success.lines[0].dots) == 3


@pytest.mark.parametrize("name", RANGES)
def test_nothing_is_said_to_be_nothing(name: str) -> None:
    assert all(plot.empty and plot.summary.endswith("nothing yet") for plot in plots(series([], name), RANGES[name]))


def test_the_first_minute_shows_though_it_has_just_begun() -> None:
    """Later ones do so when half of them is over, lest each begins with a jump."""
    now, minute = NOW.replace(second=5), RANGES["15m"].step
    first = Point(now.replace(second=0), Flow(dispatched=50, delivered=50), 3)
    throughput = plots(Series(now=now, step=minute, points=[first]), RANGES["15m"])[0]
    assert (throughput.empty, throughput.lines[0].last) == (False, "10.0")
    before = Point(first.at - minute, Flow(dispatched=120, delivered=120), 3)
    throughput = plots(Series(now=now, step=minute, points=[before, first]), RANGES["15m"])[0]
    assert throughput.lines[0].last == "2.0"


@pytest.mark.parametrize(
    ("most", "marks"), [(60, ["0", "0.5", "1"]), (6, ["0", "0.05", "0.1"]), (600, ["0", "5", "10"])]
)
def test_marks_have_no_idle_digits(most: int, marks: list[str]) -> None:
    shown = [words for _, words in plots(series([most, 0]), RANGES["15m"])[0].up]
    assert shown[:: len(shown) // 2] == marks
