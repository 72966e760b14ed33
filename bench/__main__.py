"""`python -m bench`: measure everything, print the ratios, publish the table and the plots."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from . import growth, measures
from .report import publish, summary
from .results import Results, machine
from .stage import Stage, Trial

ROOT = Path(__file__).parents[1]
LATEST = ROOT / "bench" / "results" / "latest.json"


@click.command()
@click.option("--quick", is_flag=True, help="Two minutes: one round, small sizes; nothing is published.")
@click.option("--rounds", type=click.IntRange(1), help="Rounds of every trial: 5, and 3 for the curves.")
@click.option("--only", default="", metavar="GROUP,…", help=f"Some of: {', '.join(measures.groups(True))}.")
@click.option("--growth", "curves", is_flag=True, help="Measure the growth curves instead.")
@click.option("--publish", "publishing", is_flag=True, help="Write docs/benchmarks.md, .json and the plots.")
def main(quick: bool, rounds: int | None, only: str, curves: bool, publishing: bool) -> None:
    """Measure this bus against its peers and against the floor."""
    groups = growth.groups(quick) if curves else measures.groups(quick)
    chosen = _chosen(groups, only)
    rounds = rounds or (1 if quick else 3 if curves else 5)
    path = LATEST.with_name("growth.json") if curves else LATEST
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers end with the `with` block
    with Stage() as stage:
        results = Results(machine(stage.versions()), quick)
        _measure(stage, list(_order(chosen, rounds)), results, path)
    Console().print(summary(results, curves=curves))
    if publishing:
        publish(results, ROOT / "docs", curves=curves)


def _chosen(groups: Mapping[str, Sequence[Trial]], only: str) -> Sequence[Sequence[Trial]]:
    names = only.split(",") if only else list(groups)
    unknown = sorted(set(names) - set(groups))
    if unknown:
        raise click.UsageError(f"unknown group {unknown[0]!r}, expected some of: {', '.join(groups)}")
    return [groups[name] for name in names]


def _order(groups: Sequence[Sequence[Trial]], rounds: int) -> Iterator[Trial]:
    """Yield the trials of each group in turns."""
    for group in groups:
        for number in range(rounds):
            yield from (trial for trial in group if number == 0 or not trial.once)


def _measure(stage: Stage, trials: Sequence[Trial], results: Results, path: Path) -> None:
    """Run them; what is there by then survives an interruption."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(trials))
        for trial in trials:
            progress.update(task, description=trial.key)
            result = stage.run(trial)
            results.add(trial.key, result)
            results.save(path)
            if not console.is_terminal:
                shown = {name: round(value, 1) for name, value in result.items() if isinstance(value, float)}
                print(trial.key, shown, file=sys.stderr)
            progress.advance(task)


if __name__ == "__main__":
    main()
