"""Histogram: how long things took, in buckets of a fixed scheme, so that those of many processes add up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import ceil, inf, log2
from typing import Self

__all__ = ["FIRST", "Histogram"]

FIRST = 0.001
"""Seconds up to which everything is in the first bucket."""

_PER_OCTAVE = 4  # buckets from one duration to twice as long
_OCTAVES = 22
_LAST = _PER_OCTAVE * _OCTAVES  # its upper bound is 70 minutes; what took longer is one further


class Histogram:
    """
    Counts of durations.

    The upper bounds are 1 ms times 2^(n/4), up to 70 minutes, so that a quantile is off by 9 % of its value at most
    (half a bucket, 2^(1/8)), and by half a millisecond below 1 ms. Equal bounds everywhere: to merge two is to add
    their counts.

    Attributes:
        counts: how many are in each bucket that has any, by its number from 0 on.
        total: seconds, of all together.
    """

    __slots__ = ("counts", "total")

    def __init__(self, counts: Mapping[int, int] | None = None, total: float = 0.0) -> None:
        self.counts: dict[int, int] = dict(counts or {})
        self.total = total

    @property
    def count(self) -> int:
        """How many durations were added."""
        return sum(self.counts.values())

    def add(self, seconds: float, times: int = 1) -> None:
        """Count a duration, `times` over."""
        index = _index(seconds)
        self.counts[index] = self.counts.get(index, 0) + times
        self.total += seconds * times

    def add_quick(self, times: int, total: float) -> None:
        """Count `times` durations of at most `FIRST`, which took `total` together."""
        if times:
            self.counts[0] = self.counts.get(0, 0) + times
            self.total += total

    def add_between(self, least: float, most: float, times: int) -> None:
        """Count `times` durations that lie evenly from `least` to `most`."""
        first, last = _index(least), _index(most)
        if first >= last or times < 2:
            self.add((least + most) / 2, times)
            return
        done, width = 0, most - least
        for index in range(first, last + 1):
            upto = times if index == last else round(times * min(1.0, (_bound(index) - least) / width))
            if upto > done:
                self.counts[index] = self.counts.get(index, 0) + upto - done
                done = upto
        self.total += (least + most) / 2 * times

    def merge(self, other: Self) -> None:
        """Add all that another one has counted."""
        for index, times in other.counts.items():
            self.counts[index] = self.counts.get(index, 0) + times
        self.total += other.total

    def since(self, before: Self) -> Histogram:
        """Return what was added since `before`, a copy made earlier."""
        counts = {
            index: more for index, times in self.counts.items() if (more := times - before.counts.get(index, 0)) > 0
        }
        return Histogram(counts, self.total - before.total)

    def copy(self) -> Histogram:
        """Return one with the same counts."""
        return Histogram(self.counts, self.total)

    def quantile(self, share: float) -> float | None:
        """Return the seconds that `share` of the durations did not exceed; None where there are none."""
        rank, count = share * self.count, 0
        for index in sorted(self.counts):
            count += self.counts[index]
            if count >= rank:
                return _middle(index)
        return None

    def octaves(self) -> Iterator[tuple[float, int]]:
        """Yield the upper bound in seconds of every fourth bucket, and how many durations do not exceed it."""
        count, at = 0, -1
        for index in (*range(0, _LAST + 1, _PER_OCTAVE), _LAST + 1):
            count += sum(self.counts.get(each, 0) for each in range(at + 1, index + 1))
            at = index
            yield (_bound(index) if index <= _LAST else inf), count

    @classmethod
    def merged(cls, several: Iterable[Self]) -> Self:
        """Return one with all that several have counted."""
        whole = cls()
        for each in several:
            whole.merge(each)
        return whole


def _index(seconds: float) -> int:
    return 0 if seconds <= FIRST else min(ceil(log2(seconds / FIRST) * _PER_OCTAVE), _LAST + 1)


def _bound(index: int) -> float:
    """Return the upper bound of a bucket in seconds."""
    return FIRST * float(2.0 ** (index / _PER_OCTAVE))


def _middle(index: int) -> float:
    """Return what stands for every duration in a bucket: its middle, on a scale of ratios."""
    return FIRST / 2 if index == 0 else FIRST * float(2.0 ** ((index - 0.5) / _PER_OCTAVE))
