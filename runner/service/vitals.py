"""Vitals: the phase of this process, and whether its loops run."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from enum import StrEnum
from time import monotonic
from typing import Protocol

__all__ = ["INTERVAL", "STUCK", "Loop", "Phase", "Vitals", "faults"]

INTERVAL = 10.0
"""Seconds between two beats of an instance, the slowest rhythm of a loop that does not sleep for want of work."""

STUCK = 2 * INTERVAL
"""Seconds for which a step may hang: less than three intervals, so that a probe that comes with the third sees it."""


class Phase(StrEnum):
    """The phases in the life of a process."""

    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    STOPPED = "stopped"


class Loop(Protocol):
    """A loop that must run while the process does."""

    @property
    def name(self) -> str:
        """The name, a word or two."""

    @property
    def alive(self) -> bool:
        """Whether its task runs."""

    @property
    def stalled(self) -> float:
        """Seconds for which a step has hung, or failed again and again."""


class Vitals:
    """
    How one process is.

    A loop that fails because the store is unreachable still runs, and a restart would not help. So a loop counts as
    stuck only for the time in which the store has answered the heartbeat.

    Attributes:
        draining: set when a stop begins, which ends streams.
    """

    def __init__(self) -> None:
        self.phase = Phase.STOPPED
        self.draining = asyncio.Event()
        self._loops: Sequence[Loop] = ()
        self._answering: float | None = None  # since when the store answers without a break

    def starting(self) -> None:
        """Note that the process starts."""
        self.phase = Phase.STARTING
        self.draining.clear()

    def running(self, loops: Iterable[Loop]) -> None:
        """Note that everything has started; these loops are to go round from now on."""
        self._loops = tuple(loops)
        self.phase = Phase.RUNNING

    def stopping(self) -> None:
        """Note that a stop has begun."""
        self.phase = Phase.DRAINING
        self.draining.set()

    def stopped(self) -> None:
        """Note that everything has stopped."""
        self.phase = Phase.STOPPED
        self._loops = ()

    def answered(self) -> None:
        """Note that the store has answered a beat."""
        if self._answering is None:
            self._answering = monotonic()

    def unanswered(self) -> None:
        """Note that it has not."""
        self._answering = None

    def stalls(self) -> dict[str, float]:
        """Return for how many seconds each loop has hung or failed, by its name."""
        return {loop.name: loop.stalled for loop in self._loops}

    def faults(self) -> list[str]:
        """Return the names of the loops that have ended or are stuck, while the process is in the phase of running."""
        if self.phase is not Phase.RUNNING:
            return []
        answering = None if self._answering is None else monotonic() - self._answering
        return faults(self._loops, answering)


def faults(loops: Iterable[Loop], answering: float | None) -> list[str]:
    """
    Return the names of the loops that have ended, or hang while the store answers.

    Args:
        answering: seconds for which the store has answered without a break; None while it does not.
    """
    patience = 0.0 if answering is None else answering
    return [loop.name for loop in loops if not loop.alive or min(loop.stalled, patience) > STUCK]
