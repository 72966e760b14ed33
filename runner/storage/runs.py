"""Runs: plain deliveries, delivered at the first attempt, recorded many in a row; see `delivery_states`."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from .contract.settlements import Settled

__all__ = ["BLOCK", "Recorded", "RunRow", "block_of", "few", "in_runs", "stretches"]

BLOCK = 256
"""A run holds seqs of one block of so many, aligned: a look-up opens only those of the block, however late events come.
It stands in the view `delivery_states`, too."""

_FEW = 4  # deliveries: fewer take less room as rows

Stretches = Sequence[tuple[int, int]]


class RunRow(NamedTuple):
    """Seqs of one block as stretches, each a first and a last one, in order; and the subscriptions they went to."""

    seqs: Stretches
    subscription_ids: Sequence[int]


class Recorded(NamedTuple):
    """The plain deliveries of a settlement: `runs`, and what is too little for one, as (seq, subscription id)."""

    runs: Sequence[RunRow]
    rows: Sequence[tuple[int, int]]


def block_of(seq: int) -> int:
    """Return the first seq of the block of `seq`."""
    return seq & -BLOCK


def few(settled: Settled) -> bool:
    """Return whether a settlement is of one event, or some, with too few deliveries for any run."""
    return sum(run.length * len(run.subscription_ids) for run in settled.runs) < _FEW


def in_runs(settled: Settled, held: Container[int] | None = None) -> Recorded:
    """
    Return the deliveries of a settlement as runs, one for each block and each set of subscriptions.

    Args:
        held: only of these events; None is all.
    """
    groups: dict[Sequence[int], list[int]] = {}
    start = 0
    for each in settled.runs:
        end = start + each.length
        if each.subscription_ids:
            seqs = [work.seq for work in settled.works[start:end] if held is None or work.seq in held]
            groups.setdefault(each.subscription_ids, []).extend(seqs)
        start = end
    runs: list[RunRow] = []
    rows: list[tuple[int, int]] = []
    for ids, seqs in groups.items():
        for block in _blocks(seqs):
            if sum(last - first + 1 for first, last in block) * len(ids) < _FEW:
                rows += [(seq, id) for first, last in block for seq in range(first, last + 1) for id in ids]
            else:
                runs.append(RunRow(block, ids))
    return Recorded(runs, rows)


def stretches(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Return the first and the last of all numbers that follow each other without a gap, in order."""
    if not numbers:
        return []
    first, last = min(numbers), max(numbers)
    if last - first == len(numbers) - 1:
        return [(first, last)]
    found = []
    for _, run in groupby(enumerate(sorted(numbers)), lambda each: each[1] - each[0]):
        members = [number for _, number in run]
        found.append((members[0], members[-1]))
    return found


def _blocks(seqs: Sequence[int]) -> Iterator[list[tuple[int, int]]]:
    """Yield the stretches of each block."""
    for _, block in groupby(_cut(stretches(seqs)), lambda stretch: block_of(stretch[0])):
        yield list(block)


def _cut(whole: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield the stretches, cut where a block ends."""
    for first, last in whole:
        start = first
        while (end := block_of(start) + BLOCK - 1) < last:
            yield start, end
            start = end + 1
        yield start, last
