"""Where `events tail` has got to in a sequence that does not become visible in order."""

from __future__ import annotations

__all__ = ["Cursor"]


class Cursor:
    """
    What has been seen of a growing sequence in which a number may appear after a later one.

    Numbers are given out before the commit that makes them visible, so a gap may fill; it may also stay
    for ever, after a rollback. Reading resumes at a gap until the number behind it is `patience` old.
    """

    def __init__(self, after: int, *, patience: float = 2.0) -> None:
        """Args: patience is in seconds."""
        self.after = after
        self._patience = patience
        self._seen: dict[int, float] = {}  # numbers above `after` -> when

    def fresh(self, number: int, now: float) -> bool:
        """Return whether `number` is seen for the first time; `now` in seconds of a monotonic clock."""
        if number <= self.after or number in self._seen:
            return False
        self._seen[number] = now
        return True

    def advance(self, now: float) -> None:
        """Move `after`, where to read on, past all that is complete or has waited long enough."""
        for number in sorted(self._seen):
            if number != self.after + 1 and now - self._seen[number] < self._patience:
                return
            self.after = number
            del self._seen[number]
