"""The retirement of sinks that have been replaced: each is stopped once its last delivery has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence

import structlog

from ..service.background import Service, spawn
from ..service.ending import end
from ..sinks.base import Sink
from .outlet import Outlet

__all__ = ["Retirement"]

log = structlog.get_logger(__name__)

STOP_TIMEOUT = 5.0  # seconds a sink gets, which may be a third party's


class Retirement:
    """
    Stop sinks that get no more deliveries, after those that they have begun.

    A delivery ends with the sink it began with: accepted, failed, or cancelled at its subscription's timeout.
    """

    def __init__(self, serving: Callable[[], Iterable[Outlet]]) -> None:
        """Args: serving returns the outlets of the subscriptions as they were last read."""
        self._serving = serving
        self._replaced: set[Outlet] = set()  # outlets with deliveries that run
        self._changed = asyncio.Event()
        self._stopping = asyncio.Event()
        self._retiring: set[asyncio.Task[None]] = set()

    def replaced(self, outlets: Iterable[Outlet]) -> None:
        """Take outlets that others have replaced; those that run nothing are forgotten."""
        self._replaced = {each for each in (*self._replaced, *outlets) if each.running}
        self._changed.set()

    def retire(self, sinks: Mapping[str, Sink], then: Sequence[Service] = ()) -> None:
        """Stop `sinks` once their last deliveries have ended, and `then` what they work with."""
        if sinks or then:
            task = spawn(self._retire(sinks, then), "retire sinks")
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    def lane_ended(self) -> None:
        """Note that a delivery has ended."""
        if self._retiring:
            self._changed.set()

    async def stop(self) -> None:
        """Stop the remaining sinks, without waiting for deliveries."""
        self._stopping.set()
        self._changed.set()
        if self._retiring:
            await asyncio.wait(self._retiring)
        self._stopping.clear()

    async def _retire(self, sinks: Mapping[str, Sink], then: Sequence[Service]) -> None:
        for name, sink in sinks.items():
            while self._is_used(sink) and not self._stopping.is_set():
                self._changed.clear()
                await self._changed.wait()
            await end(f"sink {name}", sink.stop, STOP_TIMEOUT)
            log.info("sink retired", sink=name)
        for each in then:
            await end("broker", each.stop)

    def _is_used(self, sink: Sink) -> bool:
        """Return whether deliveries are given to `sink`, or it has some that run."""
        self._replaced = {each for each in self._replaced if each.running}
        return any(each.sink is sink for each in self._serving()) or any(each.sink is sink for each in self._replaced)
