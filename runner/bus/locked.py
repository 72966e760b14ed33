"""Events that another session is recording at the moment, retried apart from the others."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic

from ..errors import StorageLocked, StorageUnavailable
from ..storage.contract.events import Publication
from .callers import Caller, fail, halves, keys

__all__ = ["Locked"]

PATIENCE = 5.0  # seconds for which an event that another session is recording is retried
_PAUSE = 0.02  # seconds between two tries


class Locked:
    """
    Retry locked events one after the other, so that together they use one connection at most.

    A caller is answered once its events are recorded, or with `StorageLocked` after `PATIENCE`.
    """

    def __init__(self, record: Callable[[list[Caller]], Awaitable[None]]) -> None:
        """Args: record records the events of callers, and answers them."""
        self._record = record
        self._waiting: deque[tuple[list[Caller], float]] = deque()  # and until when
        self._task: asyncio.Task[None] | None = None

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def has_any(self, publications: Sequence[Publication]) -> bool:
        """Return whether one of these events waits already."""
        wanted = keys(publications)
        return not all(wanted.isdisjoint(keys(each)) for callers, _ in self._waiting for each, _ in callers)

    def add(self, callers: list[Caller]) -> None:
        """Add callers whose events another session is recording, or may be."""
        self._waiting.append((callers, monotonic() + PATIENCE))
        if self._task is None:
            self._task = asyncio.create_task(self._insist(), name="publish what is locked")

    async def stop(self) -> None:
        """Return once every caller has its answer."""
        if self._task is not None:
            await asyncio.wait({self._task})

    async def _insist(self) -> None:
        try:
            while self._waiting:
                callers, until = self._waiting[0]
                callers = [caller for caller in callers if not caller[1].done()]
                try:
                    if callers:
                        await self._record(callers)
                except Exception as error:
                    if isinstance(error, StorageLocked):
                        self._waiting.extend((half, until) for half in halves(callers))
                        self._lose_patience(error)
                    elif len(callers) > 1 and not isinstance(error, StorageUnavailable):
                        self._waiting.extend(([caller], until) for caller in callers)
                    else:
                        fail(callers, error)
                self._waiting.popleft()
                await asyncio.sleep(_PAUSE if callers else 0)
        finally:
            self._task = None
            fail(
                [caller for callers, _ in self._waiting for caller in callers],
                StorageUnavailable("the publish was cut off"),
            )
            self._waiting.clear()

    def _lose_patience(self, error: StorageLocked) -> None:
        """Answer every caller past its patience; a single try may take as long as the lock timeout."""
        for callers, ends in self._waiting:
            if ends <= monotonic():
                for caller in callers:
                    fail([caller], _still_locked(caller[0], error))


def _still_locked(publications: Sequence[Publication], error: StorageLocked) -> StorageLocked:
    event = publications[0].event
    which = f"event {event.id!r} of source {event.source!r}"
    if len(publications) > 1:
        which = f"one of {len(publications)} events, the first of them {which},"
    locked = StorageLocked(f"{which} is being recorded by another session, which has not ended; publish it again")
    locked.__cause__ = error
    return locked
