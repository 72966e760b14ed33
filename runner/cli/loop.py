"""The event loop that verbs run on when they do the work of a runner."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["loop_factory"]


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes the loop; None, for Python's own, where uvloop is not built for the platform."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
