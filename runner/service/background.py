"""The contract of long-lived parts, and their background loops and tasks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from time import monotonic
from typing import Any, Protocol, TypeVar

import structlog

from ..errors import text_of
from .backoff import Backoff

__all__ = ["Background", "Errands", "Service", "meant_for_task", "spawn"]

log = structlog.get_logger(__name__)

T = TypeVar("T")


class Service(Protocol):
    """
    A part that is started and stopped.

    `start()` returns once the service is ready, which never depends on a peer that may be down.
    `stop()` may be called twice, and without `start()`.
    """

    async def start(self) -> None:
        """Return once ready; run in the background from then on."""

    async def stop(self) -> None:
        """Return once stopped, in bounded time."""


class Background:
    """
    Run a step for ever in a background task, survive its errors, stop on request.

    `step` is awaited again and again. When it raises, whatever that is, the error is logged and the next try waits
    `pause`, doubled at each further error up to `longest`; one success resets it. A task that ends without a
    `stop()`, because something cancelled it, is replaced after `longest`, and counts as stalled until then.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[], Awaitable[None]],
        *,
        every: float = 0.0,
        nudge: Callable[[], None] | None = None,
        pause: float = 0.1,
        longest: float = 2.0,
    ) -> None:
        """
        Prepare to run `step`.

        Args:
            every: seconds to wait before each step; `stop()` ends the wait, and lets a step finish.
            nudge: makes a step that sleeps return, so that `stop()` need not cancel it; a cancelled database
                call leaves behind whatever it was doing.
            pause, longest: seconds.
        """
        self._name = name
        self._step = step
        self._every = every
        self._nudge = nudge
        self._pause = pause
        self._longest = longest
        self._task: asyncio.Task[None] | None = None
        self._ending = asyncio.Event()
        self._began: float | None = None  # when the current step, or the first of the failed ones, began; None at rest

    def start(self) -> None:
        """Begin; a second call does nothing while the first one's task runs."""
        if self._task is None or self._task.done():
            self._ending.clear()
            self._task = asyncio.create_task(self._repeat(), name=self._name)
            self._task.add_done_callback(self._ended)

    async def stop(self, timeout: float = 5.0) -> None:
        """Wait for the end of the step, at most `timeout` seconds; cancel one without `every` and `nudge` at once."""
        self._ending.set()
        task, self._task = self._task, None
        if task is None:
            return
        if self._nudge is not None:
            self._nudge()
        if self._every or self._nudge is not None:
            await asyncio.wait({task}, timeout=timeout)
        if not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=timeout)
        self._began = None

    @property
    def name(self) -> str:
        """Name of the loop, in the log and in metrics."""
        return self._name

    @property
    def alive(self) -> bool:
        """Whether its task runs."""
        return self._task is not None and not self._task.done()

    @property
    def stalled(self) -> float:
        """Seconds for which the step has hung or kept failing; zero between two steps and at rest."""
        return 0.0 if self._began is None else monotonic() - self._began

    def progressed(self) -> None:
        """Note that the step has done a part of its work: one of many parts may take long, and is not stuck."""
        if self._began is not None:
            self._began = monotonic()

    async def rest(self, wait: Awaitable[T]) -> T:
        """Await `wait` without counting as stalled."""
        self._began = None
        try:
            return await wait
        finally:
            self._began = monotonic()

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Replace a task that ended without `stop()`."""
        if not self._ending.is_set():
            self._began = self._began or monotonic()
            # Later, because `asyncio.run()` cancels all tasks at its end and must not find a new one.
            task.get_loop().call_later(self._longest, self._replace, task)

    def _replace(self, ended: asyncio.Task[None]) -> None:
        if self._task is ended:
            error = None if ended.cancelled() else ended.exception()
            log.error(
                "loop ended, starting it again", loop=self._name, error=type(error).__name__ if error else "cancelled"
            )
            self.start()

    async def _repeat(self) -> None:
        wait, backoff = self._every, Backoff(self._pause, self._longest)
        while not await self._ends_within(wait):
            self._began = self._began or monotonic()
            try:
                await self._step()
                self._began = None
                wait = self._every
                backoff.reset()
            except BaseException as error:
                if meant_for_task(error):
                    raise
                wait = backoff.failed("loop failed", error, loop=self._name)

    async def _ends_within(self, seconds: float) -> bool:
        """Return whether `stop()` was called, after waiting for it at most `seconds`."""
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._ending.wait()
        else:
            await asyncio.sleep(0)  # a step that never waits must not starve other tasks
        return self._ending.is_set()


def spawn(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """Run `work` in the background; its error is logged, and kept in the task."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_log_failure)
    return task


class Errands:
    """Work in the background for which a stop waits, because it needs what is closed then."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run `work` in the background; its error is logged."""
        task = spawn(work, name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self, timeout: float = 5.0) -> None:
        """Wait at most `timeout` seconds for what runs, then as long again for what is cancelled. Idempotent."""
        if self._tasks:
            _, late = await asyncio.wait(set(self._tasks), timeout=timeout)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=timeout)


def _log_failure(task: asyncio.Task[None]) -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        log.error("task failed", task=task.get_name(), error=type(error).__name__, detail=text_of(error))


def meant_for_task(error: BaseException) -> bool:
    """Return whether `error` must end the current task, and not only its current step."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # the loop is gone, and its coroutines are being closed
        return True
    if isinstance(error, KeyboardInterrupt) or task is None:
        return True
    return isinstance(error, asyncio.CancelledError) and task.cancelling() > 0
