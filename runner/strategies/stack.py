"""The stack: all strategies of a deployment as one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import structlog

from ..service.background import meant_for_task
from .base import NotifyStrategy, PushStrategy, Wake

__all__ = ["StrategyStack", "StrategyState", "compose"]

log = structlog.get_logger(__name__)

START_TIMEOUT = 2.0  # seconds
NOTIFY_TIMEOUT = 0.25  # seconds; ours return at once
STOP_TIMEOUT = 4.0  # seconds


@runtime_checkable
class Described(Protocol):
    """A strategy with a text about its state."""

    @property
    def detail(self) -> str:
        """A short text for health reports, without secrets."""


@runtime_checkable
class Signalling(Protocol):
    """A strategy that knows whether its last signal went out."""

    @property
    def unsent(self) -> bool:
        """Whether a signal was given up when it stopped."""


@dataclass(frozen=True, slots=True)
class StrategyState:
    """The state of one strategy. `hears` is None if it does not apply (polling)."""

    name: str
    hears: bool | None
    detail: str


class StrategyStack:
    """
    Call every strategy, and isolate the others and the caller from its faults.

    `failures` counts, for each name, the calls that raised or took too long.
    """

    def __init__(self, *strategies: NotifyStrategy) -> None:
        self.failures: dict[str, int] = {}
        self.wakes: dict[str, int] = {}
        self._strategies = strategies

    @property
    def deaf(self) -> bool:
        """Whether there are push strategies and none is proven to hear, so that polling must tighten."""
        push = [hears for strategy in self._strategies if (hears := self._hears(strategy)) is not None]
        return bool(push) and not any(push)

    def unsent(self) -> list[str]:
        """Return the names of strategies that gave up a signal at their stop; empty if another may have sent it."""
        push = [each for each in self._strategies if self._hears(each) is not None]
        gave_up = [_name(each) for each in push if isinstance(each, Signalling) and each.unsent]
        return gave_up if len(gave_up) == len(push) else []

    def states(self) -> list[StrategyState]:
        """Return the state of each strategy, in the order of the configuration."""
        return [
            StrategyState(
                _name(strategy),
                self._hears(strategy),
                strategy.detail if isinstance(strategy, Described) else "",
            )
            for strategy in self._strategies
        ]

    async def start(self, wake: Wake) -> None:
        """Start all at once; log those that cannot start."""
        async with asyncio.TaskGroup() as group:
            for strategy in self._strategies:
                counting = partial(self._woken, _name(strategy), wake)
                group.create_task(self._guard(strategy, "start", partial(strategy.start, counting), START_TIMEOUT))

    async def notify(self, event_id: str) -> None:
        """Signal through all at once: one that hangs holds up no other."""
        async with asyncio.TaskGroup() as group:
            for strategy in self._strategies:
                group.create_task(self._guard(strategy, "notify", partial(strategy.notify, event_id), NOTIFY_TIMEOUT))

    async def stop(self) -> None:
        """Stop all at once."""
        async with asyncio.TaskGroup() as group:
            for strategy in self._strategies:
                group.create_task(self._guard(strategy, "stop", strategy.stop, STOP_TIMEOUT))

    def _woken(self, name: str, wake: Wake) -> None:
        self.wakes[name] = self.wakes.get(name, 0) + 1
        wake()

    async def _guard(
        self, strategy: NotifyStrategy, action: str, call: Callable[[], Awaitable[None]], timeout: float
    ) -> None:
        try:
            async with asyncio.timeout(timeout):
                await call()
        except BaseException as error:  # also what a strategy has cancelled itself
            if meant_for_task(error):
                raise
            self._failed(strategy, action, error)

    def _hears(self, strategy: NotifyStrategy) -> bool | None:
        try:
            return bool(strategy.hears) if isinstance(strategy, PushStrategy) else None
        except Exception as error:
            self._failed(strategy, "hears", error)
            return False

    def _failed(self, strategy: NotifyStrategy, action: str, error: BaseException) -> None:
        name = _name(strategy)
        self.failures[name] = count = self.failures.get(name, 0) + 1
        # What fails at every publish is reported at 1, 2, 4, 8, … failures.
        if action in ("start", "stop") or count & (count - 1) == 0:
            log.warning("strategy failed", strategy=name, action=action, error=type(error).__name__, failures=count)


def compose(*strategies: NotifyStrategy) -> StrategyStack:
    """Return the strategies as one."""
    return StrategyStack(*strategies)


def _name(strategy: NotifyStrategy) -> str:
    return type(strategy).__name__.lower()
