"""The watchdog: detects a blocked event loop, and logs where it is stuck."""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback
from collections.abc import Callable
from datetime import timedelta
from time import monotonic

import structlog

__all__ = ["Watchdog"]

log = structlog.get_logger(__name__)

_TICK = 0.25  # seconds between two signs of life of the loop
_LOOK = 1.0  # seconds between two looks of the thread
_FRAMES = 20  # of the stack, the innermost ones
_BLOCKED = 3 * _LOOK  # seconds without a sign of life after which others are told
_OFTEN = 0.1  # seconds between two looks from then on
_RECENT = 15.0  # seconds of each of the two stretches that `recent_lag` covers


class Watchdog:
    """
    A thread that looks every second whether the event loop still runs.

    While code blocks the loop nothing else happens in this process: no delivery, no renewal of a lease, no heartbeat.
    So the log says once where the loop is stuck, and once more when it goes on. Code that never releases the
    interpreter's lock stops the thread, too; then nothing is logged.

    Attributes:
        on_blocked: called in the thread again and again while the loop has been blocked for three looks or longer.
    """

    def __init__(self, limit: timedelta = timedelta(seconds=5)) -> None:
        """Args: limit is how long the loop may be blocked before the log says so."""
        self._limit = limit.total_seconds()
        self._due = 0.0  # when the loop is to give its next sign of life
        self._lag = 0.0
        self._stretch = (0.0, 0.0, 0.0)  # when the present one ends, and the longest lag in it and in the last one
        self.on_blocked: Callable[[], object] | None = None
        self._reported = False  # whether the log has been told of this blockage
        self._timer: asyncio.TimerHandle | None = None
        self._ended = threading.Event()

    async def start(self) -> None:
        """Watch the running loop from now on; a second call does nothing."""
        if self._timer is not None:
            return
        loop = asyncio.get_running_loop()
        self._ended = threading.Event()
        self._schedule(loop)
        arguments = (loop, threading.get_ident(), self._ended)
        threading.Thread(target=self._watch, args=arguments, name="watchdog", daemon=True).start()

    async def stop(self) -> None:
        """Stop watching. Idempotent."""
        self._ended.set()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def lag(self) -> timedelta:
        """Return the longest block of the loop since the last call, to a quarter of a second."""
        lag, self._lag = self._lag, 0.0
        return timedelta(seconds=lag)

    @property
    def recent_lag(self) -> timedelta:
        """The longest the loop was held up in the last 15 to 30 seconds, to a quarter of a second."""
        ends, present, last = self._stretch
        return timedelta(seconds=max(present, last) if monotonic() < ends + _RECENT else 0.0)

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = monotonic() + _TICK
        self._timer = loop.call_later(_TICK, self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        late = monotonic() - self._due
        self._schedule(loop)
        self._lag = max(self._lag, late)
        ends, present, last = self._stretch
        now = self._due - _TICK
        self._stretch = (ends, max(present, late), last) if now < ends else (now + _RECENT, late, present)
        if self._reported:
            self._reported = False
            log.warning("event loop goes on", blocked_for=round(late, 1))

    def _watch(self, loop: asyncio.AbstractEventLoop, thread: int, ended: threading.Event) -> None:
        looked = monotonic()
        wait = _LOOK
        while not ended.wait(wait):
            before, looked = looked, monotonic()
            if looked - before > 2 * _LOOK:
                continue  # this thread did not run either: the whole process was paused
            late = looked - self._due
            wait = _LOOK
            if late >= _BLOCKED and (tell := self.on_blocked) is not None:
                tell()
                wait = _OFTEN
            if late >= self._limit and not self._reported:
                self._reported = True
                task = asyncio.current_task(loop)
                log.error(
                    "event loop blocked",
                    blocked_for=round(late, 1),
                    task=task and task.get_name(),
                    stack=_stack(thread),
                )


def _stack(thread: int) -> str:
    """Return the stack of a thread, the innermost call first."""
    frame = sys._current_frames().get(thread)
    calls = reversed(traceback.extract_stack(frame)[-_FRAMES:]) if frame else ()
    return " < ".join(f"{call.filename}:{call.lineno} in {call.name}" for call in calls)
