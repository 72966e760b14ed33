"""The runs of a settlement: adjacent works that were delivered to the same subscriptions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, groupby

from .contract.settlements import Settled

__all__ = ["run_columns"]


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
    for run in settled.runs:
        end = start + run.length
        for first, last in _adjacent([work.position for work in settled.works[start:end]]):
            firsts.append(first)
            lasts.append(last)
            groups.append(run.subscription_ids)
        start = end
    distinct = dict.fromkeys(groups)
    ends = dict(zip(distinct, accumulate(map(len, distinct)), strict=True))
    tos = [ends[group] for group in groups]
    froms = [end - len(group) + 1 for end, group in zip(tos, groups, strict=True)]
    return firsts, lasts, froms, tos, list(chain(*distinct))


def _adjacent(positions: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and the last of all that follow each other without a gap."""
    if max(positions) - min(positions) == len(positions) - 1:
        yield min(positions), max(positions)
        return
    for _, run in groupby(enumerate(sorted(positions)), lambda each: each[1] - each[0]):
        numbers = [position for _, position in run]
        yield numbers[0], numbers[-1]
