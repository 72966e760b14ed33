"""The works of a claim as runs: what stands next to each other and went to the same subscriptions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, groupby

from .base import UnreadableWork, Work

__all__ = ["runs"]


def runs(works: Sequence[Work | UnreadableWork], delivered: Sequence[tuple[int, ...]]) -> tuple[list[int], ...]:
    """
    Return works that stand next to each other and went to the same subscriptions as one run.

    Returns:
        of each run: its first and last position, and where its subscription ids begin and end (from 1);
        and all these ids, one after the other, each distinct tuple of them once.
    """
    firsts: list[int] = []
    lasts: list[int] = []
    groups: list[tuple[int, ...]] = []
    start = 0
    for _, same in groupby(delivered, id):
        end = start + len(list(same))
        for first, last in _adjacent([work.position for work in works[start:end]]):
            firsts.append(first)
            lasts.append(last)
            groups.append(delivered[start])
        start = end
    distinct_groups = {id(group): group for group in groups}
    ends = dict(zip(distinct_groups, accumulate(map(len, distinct_groups.values())), strict=True))
    froms = [ends[id(group)] - len(group) + 1 for group in groups]
    return firsts, lasts, froms, [ends[id(group)] for group in groups], list(chain(*distinct_groups.values()))


def _adjacent(positions: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and the last of all that follow each other without a gap."""
    if max(positions) - min(positions) == len(positions) - 1:
        yield min(positions), max(positions)
        return
    for _, run in groupby(enumerate(sorted(positions)), lambda each: each[1] - each[0]):
        numbers = [position for _, position in run]
        yield numbers[0], numbers[-1]
