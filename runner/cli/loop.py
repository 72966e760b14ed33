"""The event loop and the garbage collector of verbs that do the work of a runner."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

__all__ = ["loop_factory", "tune_gc"]

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
