"""From results to what people read: ratios first, then the figures, then the plots."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table

from .measures import TARGETS, Target
from .results import Results

__all__ = ["figures", "publish", "ratios", "summary"]

_COMMANDS = "`make bench` and `make bench-growth`; a two-minute look: `make bench QUICK=1`."
_UNITS = {
    "drain": ("rate", "deliveries/s"),
    "fan-out": ("rate", "deliveries/s"),
    "publish": ("rate", "events/s"),
    "within": ("p50", "µs at p50"),
    "across": ("p50", "µs at p50"),
    "claim": ("claim", "ms per claim of 500"),
    "sqlite-publish": ("rate", "events/s"),
    "sqlite-drain": ("rate", "deliveries/s"),
    "sqlite-fan-out": ("rate", "deliveries/s"),
}
_FIGURES = ("measure", "contender", "median (smallest to largest)", "unit", "B of WAL", "B on disk")


def summary(results: Results, *, curves: bool) -> RenderableType:
    """Return what a run prints at its end."""
    tables = [_table("figures (medians)", ("", "", "", *_FIGURES[3:]), figures(results))]
    if not curves:
        tables.insert(0, _table("targets", ("", "what", "target", "measured", ""), ratios(results)))
    return Group(*tables)


def ratios(results: Results) -> Sequence[tuple[str, ...]]:
    """Return number, text, target, measured and verdict of every target that was measured."""
    rows = []
    for target in TARGETS:
        value = results.measured(target)
        if value is not None:
            rows.append((str(target.number), target.text, _bound(target), _figure(value), _verdict(target, value)))
    return rows


def figures(results: Results) -> Sequence[tuple[str, ...]]:
    """Return the columns `_FIGURES` of everything with a unit; the last two for each delivery, where measured."""
    rows = []
    for key, rounds in results.rounds.items():
        measure, _, contender = key.rpartition("/")
        unit = next((_UNITS[name] for name in sorted(_UNITS, reverse=True) if measure.startswith(name)), None)
        if "@" in measure:
            unit = ("rate", "deliveries/s")
        if unit is None:
            continue
        values = sorted(float(result[unit[0]]) for result in rounds)
        median = results.median(f"{key}:{unit[0]}") or 0.0
        spread = f" ({_figure(values[0])} to {_figure(values[-1])})" if len(values) > 1 else ""
        sizes = (results.median(f"{key}:{name}") for name in ("wal", "disk"))
        each = ("" if value is None else _figure(value) for value in sizes)
        rows.append((measure, contender, _figure(median) + spread, unit[1], *each))
    return rows


def publish(results: Results, docs: Path, *, curves: bool) -> None:
    """Write the JSON, the plots, and what stands between the markers of docs/benchmarks.md."""
    from . import plots

    name = "growth" if curves else "benchmarks"
    results.save(docs / f"{name}.json")
    images = (plots.growth if curves else plots.comparison)(results, docs / "img")
    parts = [f"![{path.stem}](img/{path.name})" for path in images]
    if not curves:
        parts = [
            _markdown(("", "what", "target", "measured", ""), ratios(results)),
            *parts,
            _markdown(_FIGURES, figures(results)),
        ]
    parts.append(_machine(results))
    _replace(docs / "benchmarks.md", "curves" if curves else "comparison", "\n\n".join(parts))


def _machine(results: Results) -> str:
    about = " · ".join(f"{name} {value}" for name, value in results.about.items())
    rounds = max((len(each) for each in results.rounds.values()), default=0)
    return f"{about} · rounds {rounds}. Commands: {_COMMANDS}"


def _replace(path: Path, marker: str, text: str) -> None:
    page = path.read_text()
    begin, end = f"<!-- {marker}: begin -->", f"<!-- {marker}: end -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(page):
        raise SystemExit(f"{path.name}: expected the markers {begin} and {end}")
    path.write_text(pattern.sub(lambda _: f"{begin}\n\n{text}\n\n{end}", page))


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(*header, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    return table


def _bound(target: Target) -> str:
    return f"{'≥' if target.at_least else '≤'} {_figure(target.bound)}"


def _verdict(target: Target, value: float) -> str:
    return "yes" if (value >= target.bound) == target.at_least or value == target.bound else "no"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
