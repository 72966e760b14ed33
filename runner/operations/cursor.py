"""The position of a reader in a sequence whose numbers do not become visible in order."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

__all__ = ["Cursor"]

_MOST = 500  # gaps that are kept
_PREPARED = "-1/"  # how the id of a prepared transaction begins, which has another one before


@dataclass(frozen=True, slots=True)
class _Gap:
    """Numbers not seen yet; `waits` are the writers that may still fill them, None until they are known."""

    first: int
    last: int
    since: float
    waits: frozenset[str] | None = None


class Cursor:
    """
    The numbers seen of a growing sequence in which a number may appear after a later one.

    Numbers are assigned before the commit that makes them visible, so a gap may fill; after a rollback it never does.
    Each gap is read again while any writer remains that was active after the gap was seen: call `look()` with the
    writers of this moment, read what is in `gaps` and behind `newest`, then `forget_gaps()`.
    """

    def __init__(self, newest: int, *, patience: float = 2.0) -> None:
        """Args: patience is for how many seconds a gap is kept at least, for a replica that knows of no writers."""
        self.newest = newest
        self._patience = patience
        self._gaps: list[_Gap] = []

    @property
    def safe(self) -> int:
        """The number up to which all have been seen, and no other can appear."""
        return self._gaps[0].first - 1 if self._gaps else self.newest

    @property
    def gaps(self) -> list[tuple[int, int]]:
        """The first and the last number of each gap."""
        return [(gap.first, gap.last) for gap in self._gaps]

    def fresh(self, number: int, now: float) -> bool:
        """Return whether `number` is seen for the first time; `now` in seconds of a monotonic clock."""
        if number > self.newest:
            if number > self.newest + 1:
                self._gaps.append(_Gap(self.newest + 1, number - 1, now))
            self.newest = number
            return True
        for index, gap in enumerate(self._gaps):
            if gap.first <= number <= gap.last:
                halves = ((gap.first, number - 1), (number + 1, gap.last))
                self._gaps[index : index + 1] = [
                    _Gap(first, last, gap.since, gap.waits) for first, last in halves if first <= last
                ]
                return True
        return False

    def expect(self, gaps: Iterable[tuple[int, int]], now: float) -> None:
        """Watch further gaps, each a first and a last number, that another reader found."""
        found = [_Gap(first, last, now) for gap in gaps for first, last in self._without_known(gap)]
        self._gaps = sorted([*self._gaps, *found], key=lambda gap: gap.first)

    def look(self, writers: Collection[str]) -> None:
        """Record the current writers."""
        self._gaps = [_Gap(gap.first, gap.last, gap.since, _left(gap.waits, writers)) for gap in self._gaps]

    def forget_gaps(self, now: float) -> int:
        """Forget the gaps read after their last writer had ended; return how many others were dropped as too many."""
        self._gaps = [gap for gap in self._gaps if gap.waits != frozenset() or now - gap.since < self._patience]
        given_up = max(0, len(self._gaps) - _MOST)
        del self._gaps[:given_up]
        return given_up

    def _without_known(self, gap: tuple[int, int]) -> Iterator[tuple[int, int]]:
        """Yield the parts of a gap that are in no other."""
        first, last = gap
        for known in self._gaps:
            if known.last < first or known.first > last:
                continue
            if first < known.first:
                yield first, known.first - 1
            first = known.last + 1
        if first <= last:
            yield first, last


def _left(waits: frozenset[str] | None, writers: Iterable[str]) -> frozenset[str]:
    if waits is None:
        return frozenset(writers)
    return frozenset(each for each in writers if each in waits or (waits and each.startswith(_PREPARED)))
