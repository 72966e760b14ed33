"""The low-water mark: where in the queue a claim begins to look."""

from __future__ import annotations

__all__ = ["LowWaterMark"]


class LowWaterMark:
    """
    A position below which everything was claimed a while ago.

    Rows that were claimed and deleted leave dead index entries at the head of the queue, which a claim
    from the very start steps over again and again while some old transaction keeps them from being
    cleaned away. Starting at the mark skips them. A transaction may commit late, though, with a position
    below the mark; so the mark trails the newest claim by up to two `trail`s, every `sweep` one claim
    looks at everything, and so does the one after a claim that brought nothing from above the mark, or locked more
    than it brought: claims side by side pass over what is locked.

    Times are seconds on any monotonic clock.
    """

    def __init__(self, *, trail: float = 0.1, sweep: float = 1.0) -> None:
        self._trail = trail
        self._sweep = sweep
        self._marks = (0, 0)  # what the newest claim was one and two trails ago
        self._newest = 0
        self._turned_at = float("-inf")
        self._swept_at = float("-inf")
        self._again = False  # whether the next claim looks at everything

    def start(self, now: float) -> int:
        """Return the position after which the next claim begins to look; 0 looks at everything."""
        if self._again or now - self._swept_at >= self._sweep:
            self._again, self._swept_at = False, now
            return 0
        return self._marks[0]

    def saw(self, newest: int | None, now: float, *, cut: bool = False) -> None:
        """Note the newest position a claim brought, None for none; `cut` if it locked more than it brought."""
        self._again = self._again or cut or newest is None or newest <= self._marks[0]
        if newest is not None:
            self._newest = max(self._newest, newest)
        if now - self._turned_at >= self._trail:
            self._turned_at = now
            self._marks = (self._marks[1], self._newest)

    def sweep_in(self, now: float) -> float | None:
        """Return the seconds until a look at everything is worth it; None if the last claim was one."""
        return None if self._swept_at == now else max(0.0, self._swept_at + self._sweep - now)
