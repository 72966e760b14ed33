"""A lane: a task of an outlet that delivers one after the other, and the reason of its cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from typing_extensions import override

from ..delivery import Failed
from ..errors import described
from .flight import Flight

__all__ = ["LOST", "Lane"]

LOST = Failed("its lease was lost")  # which does not count against the receiver


class _Task(asyncio.Task[None]):
    """A task that knows its lane, and the end of the event loop from any other cancellation."""

    lane: Lane

    @override
    def cancel(self, msg: Any = None) -> bool:
        if asyncio._get_running_loop() is None:  # `asyncio.run()` is about to end, and cancels what is left
            self.lane.ending = self.lane.abandoned = True
        if self.lane.flight is not None:
            self.lane.flight.turn = None
        return super().cancel(msg)


class Lane:
    """One of the concurrent deliveries, or batches, of an outlet."""

    __slots__ = ("abandoned", "count", "ending", "flight", "index", "lost", "since", "task", "verdict")

    task: _Task

    def __init__(self) -> None:
        self.flight: Flight[Any] | None = None
        self.index = 0
        self.count = 1  # of deliveries, from `index` on
        self.lost: set[int] = set()  # those of a batch that are no longer ours
        self.since = 0.0
        self.verdict: Failed | None = None  # why the delivery was cancelled
        self.ending = False  # whether the lane itself was
        self.abandoned = False  # whether the whole event loop ends: then there is no caller to report to

    def begin(self, run: Coroutine[Any, Any, None], name: str) -> None:
        """Start the task that runs `run`."""
        self.task = _Task(run, name=name)
        self.task.lane = self

    @property
    def indexes(self) -> range:
        """The indexes of its flight that it runs."""
        return range(self.index, self.index + self.count)

    @property
    def tainted(self) -> bool:
        """Whether its task was cancelled, also by a handler; that could surface in another delivery."""
        return self.verdict is not None or self.task.cancelling() > 0

    def lose(self, index: int) -> None:
        """Give up one delivery; cancel the call once all of its batch are given up."""
        self.lost.add(index)
        if self.lost.issuperset(self.indexes):
            self.interrupt(LOST)

    def interrupt(self, verdict: Failed) -> None:
        """Cancel the current delivery; another lane continues."""
        if self.verdict is None:
            self.verdict = verdict
            self.task.cancel()

    def end(self) -> None:
        """Cancel the lane and its current delivery."""
        self.ending = True
        self.task.cancel()

    def outcome_of(self, error: BaseException) -> Failed:
        """Return the outcome of a delivery that raised; re-raise what ends the lane itself."""
        if isinstance(error, GeneratorExit) and not self._current():  # no handler raised it: the task is thrown away
            self.ending = self.abandoned = True
        if self.ending and isinstance(error, asyncio.CancelledError | GeneratorExit):
            raise error
        return self.verdict or Failed(described(error))

    def _current(self) -> bool:
        try:
            return asyncio.current_task() is self.task
        except RuntimeError:  # no loop runs
            return False
