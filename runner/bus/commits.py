"""Group commit: while as many commits as help are in flight, the next callers gather and go together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from ..errors import StorageHeld, StorageUnavailable
from ..service.background import spawn
from ..storage.base import Publication, Receipt
from ..storage.halves import IN_A_ROW
from .callers import Answer, Caller, fail
from .held import Held

__all__ = ["Commits"]

MAX_BATCH = 500  # events in one commit
MAX_BATCH_BYTES = 8 * 1024 * 1024  # of their data
SHARE = 4  # events that make a second commit beside the first worth it: fewer gain more from company


class _Flush:
    """Commits in a row, and who waits for the one that is in flight."""

    __slots__ = ("_onlookers", "task")

    task: asyncio.Task[None]

    def __init__(self) -> None:
        self._onlookers: list[asyncio.Future[None]] = []

    def look_on(self) -> asyncio.Future[None]:
        """Return what is done with the commit in flight."""
        over = asyncio.get_running_loop().create_future()
        self._onlookers.append(over)
        return over

    def committed(self) -> None:
        """Say that a commit is over."""
        while self._onlookers:
            over = self._onlookers.pop()
            if not over.done():
                over.set_result(None)


class Commits:
    """Gather callers, and record what they gave, many in one transaction; each by itself where one spoils it."""

    def __init__(self, record: Callable[[list[Caller]], Awaitable[None]], *, at_once: int) -> None:
        """
        Gather for `record`.

        Args:
            record: records the events of callers in one transaction, and answers them.
            at_once: how many transactions side by side are faster than one after the other.
        """
        self._record = record
        self._at_once = at_once
        self._stopped = False
        self._waiting: list[Caller] = []
        self._gathered = 0  # events of those who wait
        self._flushing: set[_Flush] = set()
        self._starting = 0  # of those, how many have not taken any callers yet
        self._held = Held(record)

    async def add(self, publications: Sequence[Publication]) -> Sequence[Receipt]:
        """Have events recorded with the next commit; return their receipts when that is over."""
        answer: Answer = asyncio.get_running_loop().create_future()
        if self._held and self._held.has_any(publications):
            self._held.add([(publications, answer)])
            return await answer
        self._waiting.append((publications, answer))
        self._gathered += len(publications)
        if not self._flushing or (
            len(self._flushing) < self._at_once
            and self._gathered >= SHARE * (self._starting + 1)
            and len(self._waiting) > self._starting
        ):
            self._starting += 1
            flush = _Flush()
            flush.task = spawn(self._flush(flush), "publish")
            self._flushing.add(flush)
        return await answer

    def start(self) -> None:
        """Let callers wait for other sessions again after a `stop()`."""
        self._stopped = False

    async def done(self) -> None:
        """Return once the commits that are in flight now are over."""
        await asyncio.gather(*[flush.look_on() for flush in self._flushing])

    async def stop(self) -> None:
        """Return once every caller has its answer; from now on none begins to wait for another session."""
        self._stopped = True
        while under_way := [each.task for each in self._flushing if not each.task.done()]:
            await asyncio.wait(under_way)
        await self._held.stop()

    async def _flush(self, flush: _Flush) -> None:
        """Commit what waits, batch by batch, until nothing does."""
        callers: list[Caller] = []
        try:
            callers = self._take(self._share(self._starting))
            self._starting -= 1
            while callers:
                await self._commit(callers)
                flush.committed()
                await asyncio.sleep(0)  # who was answered may have more, and goes along
                callers = self._take(self._share(self._starting + 1))
        except BaseException:
            fail(callers, StorageUnavailable("the publish was interrupted; the same call again is safe"))
            raise
        finally:
            self._flushing.remove(flush)
            flush.committed()

    def _share(self, takers: int) -> int:
        """Return how many callers one takes of those who wait, so that commits at once do not follow each other."""
        return -(-len(self._waiting) // takers)

    def _take(self, share: int) -> list[Caller]:
        """Return the callers of the next commit: no more than `share`, and than a batch holds, but one if there is."""
        if len(self._waiting) <= 1:
            taken, self._waiting, self._gathered = self._waiting, [], 0
            return taken
        count = size = bytes_ = 0
        for publications, _ in self._waiting[:share]:
            size += len(publications)
            for each in publications:
                bytes_ += len(each.event.data or b"")
            if count and (size > MAX_BATCH or bytes_ > MAX_BATCH_BYTES):
                break
            count += 1
            self._gathered -= len(publications)
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return taken

    async def _commit(self, callers: list[Caller]) -> bool:
        """
        Record what callers gave, and answer them; each by itself where one of them spoils it.

        Returns:
            whether another session held it.
        """
        held = False
        try:
            await self._record(callers)
        except Exception as error:
            held = isinstance(error, StorageHeld)
            if len(callers) > 1 and (held or not isinstance(error, StorageUnavailable)):
                await self._commit_apart(callers)  # the others must not hear of it
            elif held and not self._stopped:
                self._held.add(callers)
            else:
                fail(callers, error)
        except BaseException:
            fail(callers, StorageUnavailable("the publish was cut off; whether it was recorded is unknown"))
            raise
        return held

    async def _commit_apart(self, callers: list[Caller]) -> None:
        """Record what each gave by itself; the rest is set aside once it seems that all of it is held."""
        held = 0
        for index, caller in enumerate(callers):
            if held == IN_A_ROW and not self._stopped:
                self._held.add(callers[index:])
                return
            held = held + 1 if await self._commit([caller]) else 0
