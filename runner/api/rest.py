"""The rest of a connection between two requests, which ends with the next one or with the connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

__all__ = ["Rest"]


def _nothing() -> None:
    """Do nothing."""


class Rest:
    """
    A timer that is begun and cancelled with every request, and costs a comparison then.

    To the server it is a `TimerHandle`. The loop's own timer is left alone while it is cancelled and begun again: once
    it fires, it looks how much is left.
    """

    __slots__ = ("_loop", "_on_end", "_running", "_timer", "_when")

    def __init__(self, loop: asyncio.AbstractEventLoop, on_end: Callable[[], object]) -> None:
        """Call `on_end` when a rest is over."""
        self._loop = loop
        self._on_end = on_end
        self._when = 0.0
        self._running = False
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, when: float) -> asyncio.TimerHandle:
        """Begin a rest until `when` on the clock of the loop, which is no earlier than the one before; return it."""
        self._when, self._running = when, True
        if self._timer is None:
            self._timer = self._loop.call_at(when, self._look)
        return cast("asyncio.TimerHandle", self)

    def when(self) -> float:
        """Return when it ends, or would have ended."""
        return self._when

    def cancel(self) -> None:
        """End it without a call."""
        self._running = False

    def close(self) -> None:
        """End it for good, and forget whom to call."""
        self._running, self._on_end = False, _nothing
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        if not self._running:
            return
        if self._loop.time() < self._when:
            self._timer = self._loop.call_at(self._when, self._look)
        else:
            self._running = False
            self._on_end()
