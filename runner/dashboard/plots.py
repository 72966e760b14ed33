"""Plots: a series as lines in SVG. Pure: from numbers to coordinates; a template writes them down."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil, floor, log10
from typing import TYPE_CHECKING

from . import wording

if TYPE_CHECKING:
    from ..storage.contract.throughput import Flow, Point, Series

__all__ = ["RANGES", "Line", "Plot", "Range", "plots"]

HEIGHT, WIDTH = 150, 560
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 8, 8, 22
_ZERO = re.compile(r"\.0+(?!\d)|(?<=\.\d)0+(?!\d)")  # at the end of a mark: `75.0 %`, `99.50 %`
_LEAST_SECONDS = 0.001  # at the foot of a scale of durations


@dataclass(frozen=True, slots=True)
class Range:
    """How far back a plot looks, and by which steps."""

    name: str
    length: timedelta
    step: timedelta
    clock: str


RANGES = {
    each.name: each
    for each in (
        Range("15m", timedelta(minutes=15), timedelta(minutes=1), "%H:%M"),
        Range("6h", timedelta(hours=6), timedelta(minutes=5), "%H:%M"),
        Range("7d", timedelta(days=7), timedelta(hours=1), "%a %d"),
    )
}


@dataclass(frozen=True, slots=True)
class Line:
    """
    One line of a plot.

    Attributes:
        tone: `one`, `two` or `three`.
        path: the commands of an SVG path; a step without a value is a gap.
        dots: the places of values without a neighbour.
        last: its latest value in words.
    """

    name: str
    tone: str
    path: str
    dots: Sequence[tuple[float, float]]
    last: str


@dataclass(frozen=True, slots=True)
class Plot:
    """
    A plot.

    Attributes:
        summary: what it shows, in a sentence for those who do not see it.
        across, up: the marks of the axes, each a coordinate and its words.
        empty: whether there is nothing to draw.
    """

    title: str
    unit: str
    lines: Sequence[Line]
    across: Sequence[tuple[float, str]]
    up: Sequence[tuple[float, str]]
    summary: str
    empty: bool
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM


@dataclass(frozen=True, slots=True)
class _Scale:
    """From values to coordinates."""

    least: float
    most: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        least, most = self.least, self.most
        if self.logarithmic:
            value, least, most = log10(max(value, least)), log10(least), log10(most)
        share = (value - least) / (most - least)
        return round(HEIGHT - _BOTTOM - min(max(share, 0.0), 1.0) * (HEIGHT - _TOP - _BOTTOM), 1)


def plots(series: Series, range_: Range, *, backlog: bool = True) -> list[Plot]:
    """Return the plots of a series: throughput, success, latency and, for the whole bus, the backlog."""
    frame = _Frame(series, range_)

    def per_second(count: Callable[[Flow], int]) -> list[float | None]:
        return [None if each is None else count(each.flow) / seconds for each, seconds in frame.steps]

    def quantile(share: float) -> list[float | None]:
        return [None if each is None else each.flow.latency.quantile(share) for each, _ in frame.steps]

    delivered = ("deliveries", "two", _filled(per_second(lambda flow: flow.delivered)))
    events = ("events in", "one", _filled(per_second(lambda flow: flow.dispatched)))
    failed = ("failed", "three", _filled(per_second(lambda flow: flow.failed + flow.dead)))
    ratio = [None if each is None else each.flow.success_ratio for each, _ in frame.steps]
    latency = [("p50", "two", quantile(0.5)), ("p95", "one", quantile(0.95)), ("p99", "three", quantile(0.99))]
    made = [
        frame.plot("Throughput", "per second", [events, delivered] if backlog else [delivered, failed], wording.rate),
        frame.plot("Success", "of the attempts", [("delivered", "two", ratio)], wording.percent, _shares),
        frame.plot("Latency", "from publish to delivered", latency, wording.duration, _durations),
    ]
    if backlog:
        waited = [None if each is None else each.backlog for each, _ in frame.steps]
        made.append(frame.plot("Backlog", "waiting at most", [("waiting", "one", waited)], wording.count, _wholes))
    return made


class _Frame:
    """The steps of a range, each with what was counted in it, and their place on the axis of time."""

    def __init__(self, series: Series, range_: Range) -> None:
        self._range = range_
        found = {each.at: each for each in series.points}
        step, now = range_.step, series.now
        last = now - (now - datetime(1970, 1, 1, tzinfo=now.tzinfo)) % step
        number = range_.length // step
        self._times = [last - step * back for back in range(number, -1, -1)]
        over = step.total_seconds()
        self.steps: list[tuple[Point | None, float]] = [
            (found.get(at), over if at < last else max((now - at).total_seconds(), 1.0)) for at in self._times
        ]
        begun = any(each is not None for each, _ in self.steps[:-1])
        if begun and (now - last).total_seconds() < min(over / 2, 60):
            self.steps.pop()  # too short yet to say anything beside the others
            self._times.pop()

    def plot(
        self,
        title: str,
        unit: str,
        lines: Sequence[tuple[str, str, Sequence[float | None]]],
        words: Callable[[float | None], str],
        scale_of: Callable[[Sequence[float]], tuple[_Scale, Sequence[float]]] | None = None,
    ) -> Plot:
        values = [value for _, _, each in lines for value in each if value is not None]
        scale, marks = (scale_of or _counts)(values)
        drawn = [Line(name, tone, *self._path(each, scale), words(_last(each))) for name, tone, each in lines]
        up = [(scale(mark), _ZERO.sub("", words(mark))) for mark in marks]
        said = [f"{line.name} {line.last}, at most {words(max(each))}" for line, each in _having(drawn, lines)]
        return Plot(title, unit, drawn, self._across(), up, f"{title}: {'; '.join(said) or 'nothing yet'}", not values)

    def _x(self, index: int) -> float:
        return round(_LEFT + index / max(len(self._times) - 1, 1) * (WIDTH - _LEFT - _RIGHT), 1)

    def _path(self, values: Sequence[float | None], scale: _Scale) -> tuple[str, list[tuple[float, float]]]:
        parts, dots, begun = [], [], 0  # how many values the line has that is being drawn
        for index, value in enumerate([*values, None]):
            if value is not None:
                place = self._x(index), scale(value)
                parts.append(f"{'L' if begun else 'M'}{place[0]:g} {place[1]:g}")
                begun += 1
            elif begun:
                if begun == 1:
                    dots.append(place)
                begun = 0
        return "".join(parts), dots

    def _across(self) -> list[tuple[float, str]]:
        count = len(self._times)
        every = max(1, ceil(count / 6))
        return [
            (self._x(index), self._times[index].strftime(self._range.clock)) for index in range(count - 1, 0, -every)
        ][::-1]


def _having(
    drawn: Sequence[Line], lines: Sequence[tuple[str, str, Sequence[float | None]]]
) -> list[tuple[Line, list[float]]]:
    pairs = [
        (line, [value for value in each if value is not None]) for line, (_, _, each) in zip(drawn, lines, strict=True)
    ]
    return [(line, each) for line, each in pairs if each]


def _last(values: Sequence[float | None]) -> float | None:
    return next((each for each in reversed(values) if each is not None), None)


def _filled(values: Sequence[float | None]) -> list[float | None]:
    """Return the values with 0 for each step from the first one on in which nothing was counted."""
    first = next((index for index, each in enumerate(values) if each is not None), len(values))
    return [each if each is not None or index < first else 0.0 for index, each in enumerate(values)]


def _wholes(values: Sequence[float]) -> tuple[_Scale, Sequence[float]]:
    """Return a scale of whole numbers, and its marks."""
    return _counts([3.0, *values])


def _counts(values: Sequence[float]) -> tuple[_Scale, Sequence[float]]:
    """Return a scale from 0 to a round number, and its marks."""
    most = max(values, default=0.0) or 1.0
    size = 10.0 ** floor(log10(most / 3))
    step = next(each * size for each in (1, 2, 5, 10) if each * size * 4 >= most)
    count = max(1, ceil(most / step - 1e-9))
    return _Scale(0.0, step * count), [step * number for number in range(count + 1)]


def _shares(values: Sequence[float]) -> tuple[_Scale, Sequence[float]]:
    """Return a scale of shares up to 1, from where the lowest one shows."""
    least = min(values, default=1.0)
    foot = next(each for each in (0.99, 0.9, 0.5, 0.0) if least >= each)
    return _Scale(foot, 1.0), [foot, (foot + 1.0) / 2, 1.0]


def _durations(values: Sequence[float]) -> tuple[_Scale, Sequence[float]]:
    """Return a logarithmic scale of durations, and a mark for each power of ten."""
    low = floor(log10(max(min(values, default=_LEAST_SECONDS), _LEAST_SECONDS / 10)))
    high = max(low + 1, ceil(log10(max(max(values, default=1.0), _LEAST_SECONDS)) - 1e-9))
    every = max(1, ceil((high - low) / 4))
    return _Scale(10.0**low, 10.0**high, True), [10.0**power for power in range(low, high + 1, every)]
