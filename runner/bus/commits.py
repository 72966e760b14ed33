"""Group commit: while enough commits are in flight, further callers gather and share the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from ..errors import StorageLocked, StorageUnavailable
from ..service.background import spawn
from ..storage.contract.events import Publication, Receipt
from ..storage.halves import IN_A_ROW
from .callers import Answer, Caller, fail
from .locked import Locked

__all__ = ["Commits"]

MAX_BATCH = 500  # events in one commit
MAX_BATCH_BYTES = 8 * 1024 * 1024  # of their data
MANY = 16  # callers that were answered together, and are worth waiting for where there is one commit at a time
PAUSE = 0.001  # seconds that these are waited for, again and again while more of them come back
PAUSES = 5
SHARE = 4  # events for which a second commit beside the first pays off; fewer are faster in a shared one


class _Flush:
    """A series of commits, and the observers of the one in flight."""

    __slots__ = ("_onlookers", "task")

    task: asyncio.Task[None]

    def __init__(self) -> None:
        self._onlookers: list[asyncio.Future[None]] = []

    def look_on(self) -> asyncio.Future[None]:
        """Return a future that is done when the commit in flight has ended."""
        over = asyncio.get_running_loop().create_future()
        self._onlookers.append(over)
        return over

    def committed(self) -> None:
        """Complete the futures of the observers."""
        while self._onlookers:
            over = self._onlookers.pop()
            if not over.done():
                over.set_result(None)


class Commits:
    """Gather callers and record their events, many in one transaction; separately if one of them makes it fail."""

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
        self._gathered = 0  # events of the callers that wait
        self._flushing: set[_Flush] = set()
        self._starting = 0  # of those, how many have not taken any callers yet
        self._locked = Locked(record)

    async def add(self, publications: Sequence[Publication]) -> Sequence[Receipt]:
        """Record events with the next commit; return their receipts once it has ended."""
        answer: Answer = asyncio.get_running_loop().create_future()
        if self._locked and self._locked.has_any(publications):
            self._locked.add([(publications, answer)])
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
        """Allow callers to wait for other sessions again after `stop()`."""
        self._stopped = False

    async def done(self) -> None:
        """Return once the commits that are in flight now have ended."""
        await asyncio.gather(*[flush.look_on() for flush in self._flushing])

    async def stop(self) -> None:
        """Return once every caller has its answer; from now on none begins to wait for another session."""
        self._stopped = True
        while under_way := [each.task for each in self._flushing if not each.task.done()]:
            await asyncio.wait(under_way)
        await self._locked.stop()

    async def _flush(self, flush: _Flush) -> None:
        """Commit waiting callers, batch by batch, until none is left."""
        callers: list[Caller] = []
        try:
            callers = self._take(self._share(self._starting))
            self._starting -= 1
            while callers:
                await self._commit(callers)
                flush.committed()
                await asyncio.sleep(0)  # a caller that was answered may publish more, in the same commit
                if self._at_once == 1 and len(callers) >= MANY:
                    await self._gather_again(len(callers))
                callers = self._take(self._share(self._starting + 1))
        except BaseException:
            fail(callers, StorageUnavailable("the publish was interrupted; the same call again is safe"))
            raise
        finally:
            self._flushing.remove(flush)
            flush.committed()

    async def _gather_again(self, answered: int) -> None:
        """
        Return once as many callers wait as were answered, no more of them come back, or the last pause is over.

        Clients come back one after the other: the first few would have a commit of their own, for which all the others
        would wait.
        """
        for _ in range(PAUSES):
            before = len(self._waiting)
            if before >= answered:
                return
            await asyncio.sleep(PAUSE)
            if len(self._waiting) == before:
                return

    def _share(self, takers: int) -> int:
        """Return how many of the waiting callers one commit takes, so that concurrent commits share them."""
        return -(-len(self._waiting) // takers)

    def _take(self, share: int) -> list[Caller]:
        """Return the callers of the next commit: at most `share` and one batch, at least one if any waits."""
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
        Record the events of callers and answer them; separately if one of them makes the commit fail.

        Returns:
            whether another session had locked it.
        """
        locked = False
        try:
            await self._record(callers)
        except Exception as error:
            locked = isinstance(error, StorageLocked)
            if len(callers) > 1 and (locked or not isinstance(error, StorageUnavailable)):
                await self._commit_apart(callers)  # an error of one caller must not reach the others
            elif locked and not self._stopped:
                self._locked.add(callers)
            else:
                fail(callers, error)
        except BaseException:
            fail(callers, StorageUnavailable("the publish was cut off; whether it was recorded is unknown"))
            raise
        return locked

    async def _commit_apart(self, callers: list[Caller]) -> None:
        """Record the events of each caller separately; set the rest aside after two that are locked in a row."""
        locked = 0
        for index, caller in enumerate(callers):
            if locked == IN_A_ROW and not self._stopped:
                self._locked.add(callers[index:])
                return
            locked = locked + 1 if await self._commit([caller]) else 0
