"""Stretches: the ranges in which a search reads a table, so that each statement is short."""

from __future__ import annotations

__all__ = ["Stretches"]

_FIRST = 20_000  # seqs
_MOST = 1_000_000
_QUICK = 0.1  # seconds: a stretch that took less is followed by a longer one


class Stretches:
    """
    A range of seqs, cut into stretches from the newest on, or from the oldest.

    Each is up to four times as long as the one before, while they are read quickly: where seqs lie far apart few of
    them have a row.
    """

    def __init__(self, first: int, last: int, *, newest_first: bool = True, length: int | None = None) -> None:
        """
        Cut from `first` to `last`, both included.

        Args:
            length: of the first stretch, where each seq has many rows.
        """
        self._first = first
        self._last = last
        self._newest_first = newest_first
        self._least = self._length = length or _FIRST

    @property
    def left(self) -> bool:
        """Whether there is anything left to look through."""
        return self._first <= self._last

    @property
    def is_last(self) -> bool:
        """Whether the next stretch is the last one."""
        return self._last - self._first < self._length

    def next(self) -> tuple[int, int]:
        """Return the first and the last seq of the next stretch."""
        if self._newest_first:
            return max(self._first, self._last - self._length + 1), self._last
        return self._first, min(self._last, self._first + self._length - 1)

    def looked_through(self, end: int, seconds: float) -> None:
        """Go on behind `end`, to where the stretch was looked through in so many seconds."""
        if self._newest_first:
            self._last = end - 1
        else:
            self._first = end + 1
        if seconds < _QUICK:
            self._length = min(self._length * (4 if seconds < _QUICK / 4 else 2), _MOST)
        elif seconds > 2 * _QUICK:
            self._length = max(self._length // 2, self._least)
