"""The plots of docs/benchmarks.md, as SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .growth import CURVES, Curve
from .results import Results

__all__ = ["comparison", "growth"]

matplotlib.use("svg")
matplotlib.rcParams |= {
    "svg.hashsalt": "runner",  # the same results make the same file
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}

_COLOURS = {"runner": "#1f6feb", "floor": "#8b949e", "floor-rows": "#b6bcc4"}
_OTHERS = "#d0a15f"

_BARS = {
    "drain": ("drain", "rate", "deliveries/s, one subscription"),
    "fan-out": ("fan-out-10", "whole", "deliveries/s, published and fanned out to 10"),
    "latency-one-process": ("within", "p50", "µs from publish to sink, p50, one process"),
    "latency-two-processes": ("across", "p50", "µs from publish to sink, p50, two processes"),
}
_PUBLISHES = {"1": "one at a time", "16": "16 at once", "200": "200 at once", "batch": "batches of 500"}


def comparison(results: Results, directory: Path) -> list[Path]:
    """Draw what `make bench` measured; return the files."""
    files = []
    for name, (measure, metric, title) in _BARS.items():
        bars = _bars(results, measure, metric)
        if bars:
            files.append(_draw(directory / f"{name}.svg", title, partial(_barh, bars)))
    if "publish-1/runner" in results.rounds:
        files.append(_draw(directory / "publish.svg", "events published/s", partial(_publishes, results)))
    if "horizon/runner" in results.rounds:
        title = "ms per claim of 500, while a transaction holds the horizon (grey)"
        files.append(_draw(directory / "horizon.svg", title, partial(_horizon, results)))
    return files


def growth(results: Results, directory: Path) -> list[Path]:
    """Draw the growth curves; return the files."""
    return [
        _draw(directory / f"growth-{name}.svg", f"{curve.unit}, over {curve.growing}", partial(_lines, results, curve))
        for name, curve in CURVES.items()
        if results.curve(curve.trials)
    ]


def _lines(results: Results, curve: Curve, axes: Axes) -> None:
    xs = results.curve(curve.trials)
    places = [max(x, 1) for x in xs]  # the axis is logarithmic, and one of the curves begins at nothing
    for metric, label in curve.metrics.items():
        ys = [results.median(f"{curve.trials}@{x}/runner:{metric}") or 0.0 for x in xs]
        axes.plot(places, ys, marker="o", label=label)
    axes.set_xscale("log")
    axes.set_xticks(places, [f"{x:,}" for x in xs])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)


def _bars(results: Results, measure: str, metric: str) -> list[tuple[str, float]]:
    bars = []
    for key in results.rounds:
        found, _, contender = key.rpartition("/")
        if found == measure:
            bars.append((contender, results.median(f"{key}:{metric}") or 0.0))
    return bars


def _barh(bars: Sequence[tuple[str, float]], axes: Axes) -> None:
    names = [name for name, _ in bars]
    drawn = axes.barh(names, [value for _, value in bars], color=[_COLOURS.get(name, _OTHERS) for name in names])
    axes.bar_label(drawn, fmt="{:,.0f}", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.12)  # room for the figures


def _publishes(results: Results, axes: Axes) -> None:
    contenders = [name for name, _ in _bars(results, "publish-1", "rate")]
    for number, name in enumerate(contenders):
        ys = [results.median(f"publish-{label}/{name}:rate") or 0.0 for label in _PUBLISHES]
        xs = [place + (number - len(contenders) / 2) * 0.16 for place in range(len(_PUBLISHES))]
        axes.bar(xs, ys, width=0.15, label=name, align="edge", color=_COLOURS.get(name))
    axes.set_xticks(range(len(_PUBLISHES)), list(_PUBLISHES.values()))
    axes.set_yscale("log")
    axes.legend(frameon=False, ncols=len(contenders), loc="upper left", bbox_to_anchor=(0, 1.12))


def _horizon(results: Results, axes: Axes) -> None:
    result = results.rounds["horizon/runner"][-1]
    axes.plot([at for at, _ in result["curve"]], [taken for _, taken in result["curve"]], color=_COLOURS["runner"])
    axes.axvspan(*result["hold"], color="#8b949e", alpha=0.2, linewidth=0)
    axes.set_xlabel("seconds")
    axes.set_ylim(bottom=0)


def _draw(path: Path, title: str, draw: Callable[[Axes], None]) -> Path:
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    draw(axes)
    axes.set_title(title, loc="left", fontsize=10, pad=16)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    return path
