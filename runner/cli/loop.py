"""The event loop, the signals and the garbage collector of verbs that do the work of a runner."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from time import monotonic

__all__ = ["TOGETHER", "StopRequests", "loop_factory", "tune_gc"]

TOGETHER = 0.05  # seconds within which stop signals are one request
_THRESHOLDS = (50_000, 20, 50)  # objects, and collections of the next younger generation


def tune_gc() -> None:
    """
    Run the garbage collector less often, and exclude the objects that exist already.

    A claim is a few thousand objects, none of them in a cycle, and at Python's own threshold of 700 the
    collector takes a quarter of the process's CPU time to find that out (docs/decisions/0026).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return the factory of the event loop: uvloop's, or None for Python's own where uvloop is not available."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


class StopRequests:
    """
    Tell the copies of one stop signal from a second request.

    `timeout` signals its child and then the group that the child is in; wrappers forward what a terminal has sent to
    both. So a stop begins, and is announced, no sooner than `TOGETHER` after its first signal.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        """Args: clock returns seconds."""
        self._clock = clock
        self._first: float | None = None

    def is_another(self) -> bool:
        """Return whether a signal that has just come is a further request, and no copy of the first."""
        now = self._clock()
        if self._first is None:
            self._first = now
        return now - self._first >= TOGETHER
