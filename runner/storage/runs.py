"""The works of a claim as runs: what stands next to each other and went to the same subscriptions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, groupby
from operator import attrgetter

from .base import Settled

__all__ = ["run_columns"]

_ids = attrgetter("subscription_ids")


def run_columns(settled: Settled) -> tuple[list[int], ...]:
    """
    Return the columns of the runs of a settlement, each with positions that follow each other without a gap.

    Returns:
        of each run: its first and last position, and where its subscription ids begin and end (from 1);
        and all these ids, one after the other, each distinct tuple of them once.
    """
    firsts: list[int] = []
    lasts: list[int] = []
    groups: list[tuple[int, ...]] = []
    start = 0
    for ids, same in groupby(settled.runs, _ids):
        end = start + sum(run.length for run in same)
        for first, last in _adjacent([work.position for work in settled.works[start:end]]):
            firsts.append(first)
            lasts.append(last)
            groups.append(ids)
        start = end
    distinct = dict.fromkeys(groups)
    ends = dict(zip(distinct, accumulate(map(len, distinct)), strict=True))
    froms = [ends[group] - len(group) + 1 for group in groups]
    return firsts, lasts, froms, [ends[group] for group in groups], list(chain(*distinct))


def _adjacent(positions: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and the last of all that follow each other without a gap."""
    if max(positions) - min(positions) == len(positions) - 1:
        yield min(positions), max(positions)
        return
    for _, run in groupby(enumerate(sorted(positions)), lambda each: each[1] - each[0]):
        numbers = [position for _, position in run]
        yield numbers[0], numbers[-1]
