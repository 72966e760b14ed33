"""Write settlements to the store: those of single deliveries in batches."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from functools import partial
from time import monotonic
from typing import TypeVar

import structlog
from msgspec.structs import replace

from ..delivery import DeliveryState, Lease
from ..errors import StorageError, StorageLocked, StorageRefused, StorageUnavailable
from ..service.background import spawn
from ..service.backoff import Backoff
from ..service.tally import Tally
from ..storage.contract.claims import Work
from ..storage.contract.queue import WorkQueue
from ..storage.contract.settlements import AttemptRecord, DeliveryRecord, Settled
from ..storage.halves import IN_A_ROW, in_halves
from .accounts import Accounts
from .budget import SPENT
from .dead_letters import DeadLetters
from .settlement import apart, milder, part

__all__ = ["SettlementWriter"]

log = structlog.get_logger(__name__)

T = TypeVar("T")

Key = tuple[int, int]  # seq of the event, id of the subscription

_HELD = 1.0  # seconds until what another session holds is tried again
_PAUSE = 0.05  # seconds between retries, each of which waits for a lock


class SettlementWriter:
    """
    Gather settlements while one write is in flight, and write them together.

    While the store is unavailable it tries again and again: every write is fenced by its lease token, so a late one has
    no effect.
    """

    def __init__(
        self,
        queue: WorkQueue,
        dead_letters: DeadLetters,
        written: Callable[[Sequence[DeliveryRecord]], object],
        dispatched: Callable[[Sequence[DeliveryRecord]], object] | None = None,
        *,
        tally: Tally | None = None,
    ) -> None:
        """
        Write to `queue`.

        Args:
            written: called with the records of single deliveries once they are written.
            dispatched: called with those of claims that another session had locked; `written` by default.
            tally: counts what is written.
        """
        self._queue = queue
        self._dead_letters = dead_letters
        self._written = written
        self._dispatched = dispatched or written
        self._accounts = Accounts(tally or Tally())
        self._records: list[DeliveryRecord] = []
        self._attempts: list[AttemptRecord] = []
        self._flushing: asyncio.Task[None] | None = None
        self._delayed: deque[Settled] = deque()  # what another session holds
        self._parked: dict[tuple[int, int], list[tuple[DeliveryRecord, Sequence[AttemptRecord]]]] = {}
        self._insisting: asyncio.Task[None] | None = None
        self._patient = True
        self.ordered: frozenset[int] = frozenset()  # subscriptions whose finished deliveries leave their line

    def start(self) -> None:
        """Retry from now on while the store is unavailable."""
        self._patient = True

    def submit(self, record: DeliveryRecord, attempt: AttemptRecord | None, recorded: float | None = None) -> None:
        """Write `record`, and `attempt` with it, soon."""
        self._accounts.expect(record, recorded)
        self._submit(record, () if attempt is None else (attempt,))

    def _submit(self, record: DeliveryRecord, attempts: Sequence[AttemptRecord]) -> None:
        if self._parked and (parked := self._parked.get((record.seq, record.token))) is not None:
            parked.append((record, attempts))
            return
        self._records.append(record)
        self._attempts += attempts
        if self._flushing is None:
            self._flushing = spawn(self._flush(), "settle")

    async def settle(self, settled: Settled) -> Sequence[DeliveryRecord]:
        """
        Settle a claim; return its records as they were written.

        While another session holds one of its events, it is settled in the background, and the caller gets no records.
        """
        complete = replace(settled, records=self._dead_letters.addressed(settled.records))
        try:
            count = await self.patiently(lambda: self._queue.settle(complete), wait=False)
        except StorageLocked as error:
            if not self._patient:
                raise
            log.warning("cannot settle", events=len(complete.works), detail=str(error))
            self._delay(complete)
            return ()
        except StorageRefused:
            records, locked = await self._settle_in_parts(complete)
            for each in locked:
                self._delay(each)
            return records
        self._accounts.ended(complete, count)
        return complete.records

    def awaits(self, lease: Lease) -> bool:
        """Return whether the dispatch of the event is still unwritten, so that the delivery is not on record yet."""
        return (lease.seq, lease.token) in self._parked

    @property
    def delayed(self) -> int:
        """The number of dispatched events whose settlement waits for another session."""
        return len(self._parked)

    def _delay(self, settled: Settled) -> None:
        """Settle these events once no other session holds them, and their deliveries after that."""
        works = [replace(work, event=SPENT) if isinstance(work, Work) else work for work in settled.works]
        for work in works:
            self._parked.setdefault((work.seq, settled.token), [])
        self._delayed.append(replace(settled, works=works))
        if self._insisting is None:
            self._insisting = spawn(self._insist(), "settle what is locked")

    async def _insist(self) -> None:
        """Retry locked settlements one after the other, so that together they use one connection at most."""
        try:
            while self._delayed and self._patient:
                settled = self._delayed.popleft()
                try:
                    records, locked = await self._settle_in_parts(settled)
                except Exception as error:  # their leases end, and they are dispatched again
                    log.error("settling failed", error=type(error).__name__, detail=str(error))
                    records, locked = (), ()
                self._delayed.extend(locked)
                self._resume(settled, {work.seq for each in locked for work in each.works})
                self._dispatched(records)
                await asyncio.sleep(_PAUSE)
        finally:
            self._insisting = None
            if not self._patient:
                self._delayed.clear()
                self._parked.clear()

    def _resume(self, settled: Settled, but: Set[int] = frozenset()) -> None:
        """Write the parked records of the deliveries of these events, except those with the seqs in `but`."""
        for work in settled.works:
            if work.seq not in but:
                for record, attempts in self._parked.pop((work.seq, settled.token), ()):
                    self._submit(record, attempts)

    async def _settle_in_parts(self, settled: Settled) -> tuple[Sequence[DeliveryRecord], Sequence[Settled]]:
        """
        Settle the events that are neither refused nor locked by another session.

        Returns:
            what was written, but for what is about to be; and the parts that are locked.
        """

        async def write(indexes: Sequence[int]) -> Sequence[int]:
            some = settled if len(indexes) == len(settled.works) else part(settled, indexes)
            count = await self.patiently(lambda: self._queue.settle(some), wait=False)
            self._accounts.ended(some, count)
            self._resume(some)
            return [count]

        _, refused = await in_halves(range(len(settled.works)), write)
        seqs = {settled.works[index].seq for index, _ in refused}
        records = [each for each in settled.records if each.seq not in seqs]
        locked = []
        for index, error in refused:
            if isinstance(error, StorageLocked):
                locked.append(index)
            else:
                records += await self._settle_apart(part(settled, [index]))
        # The first ones were tried alone; the ones behind them may be free.
        groups = [*([index] for index in locked[:IN_A_ROW]), locked[IN_A_ROW:]]
        return records, [part(settled, group) for group in groups if group]

    async def _settle_apart(self, settled: Settled) -> Sequence[DeliveryRecord]:
        """
        Settle one refused event by settling each of its deliveries separately.

        Returns what was written, but for what is about to be.
        """
        leased, ended = apart(settled)
        try:
            await self.patiently(lambda: self._queue.settle(leased))
        except StorageRefused as error:  # its lease ends, and the event is dispatched again, a few times
            log.error("settlement refused", seq=settled.works[0].seq, detail=str(error))
            return ()
        self._accounts.settled(leased)
        self._resume(settled)
        for record in ended:
            key = (record.seq, record.subscription_id)
            self._submit(record, [each for each in settled.attempts if (each.seq, each.subscription_id) == key])
        return [each for each in leased.records if each.state is DeliveryState.PENDING]

    async def written(self) -> None:
        """Return once everything submitted so far is written."""
        while self._flushing is not None:
            await asyncio.wait({self._flushing})

    async def stop(self, timeout: float = 5.0) -> None:
        """Write the rest within `timeout` seconds; deliveries not written by then return when their leases end."""
        ends = monotonic() + timeout
        while (
            tasks := {task for task in (self._flushing, self._insisting) if task is not None}
        ) and monotonic() < ends:
            await asyncio.wait(tasks, timeout=ends - monotonic(), return_when=asyncio.FIRST_COMPLETED)
        self._patient = False
        if self._insisting is not None:
            self._insisting.cancel()
            await asyncio.wait({self._insisting}, timeout=1)

    async def patiently(self, write: Callable[[], Awaitable[T]], *, wait: bool = True) -> T:
        """
        Return the result of `write`, which must be safe to repeat, tried again while the store is unavailable.

        Args:
            wait: also while another session holds what is to be written.
        """
        backoff = Backoff(0.05, 1.0)
        while True:
            try:
                return await write()
            except StorageUnavailable as error:
                if not self._patient or (isinstance(error, StorageLocked) and not wait):
                    raise
                pause = backoff.failed("cannot settle", error)
            await asyncio.sleep(pause)

    async def _flush(self) -> None:
        try:
            while self._records:
                records, self._records = self._dead_letters.addressed(self._records), []
                attempts: dict[Key, list[AttemptRecord]] = {}
                for attempt in self._attempts:
                    attempts.setdefault((attempt.seq, attempt.subscription_id), []).append(attempt)
                self._attempts = []
                try:
                    await self._write(records, attempts)
                except Exception as error:  # their leases end, and they are delivered again
                    log.error("settling failed", error=type(error).__name__, detail=str(error), count=len(records))
        finally:
            self._flushing = None

    async def _write(self, records: Sequence[DeliveryRecord], attempts: Mapping[Key, Sequence[AttemptRecord]]) -> None:
        """Write records; separately those that are refused or locked by another session."""

        async def write(some: Sequence[DeliveryRecord]) -> Sequence[Key]:
            theirs = [each for record in some for each in attempts.get((record.seq, record.subscription_id), ())]
            settle = partial(self._queue.settle_deliveries, some, theirs, self.ordered)
            return await self.patiently(settle, wait=False)

        written, refused = await in_halves(records, write)
        apart = {id(record) for record, _ in refused}
        late = len(records) - len(refused) - len(written)
        for record, error in refused:
            theirs = attempts.get((record.seq, record.subscription_id), ())
            if isinstance(error, StorageLocked):
                log.warning("cannot settle", seq=record.seq, detail=str(error), retry_in=_HELD)
                asyncio.get_running_loop().call_later(_HELD, self._again, record, theirs)
            else:
                await self._write_milder(record, theirs, error)
        settled = [each for each in records if id(each) not in apart]
        self._written(settled)
        if late > 0:
            keys = set(written)
            settled = [each for each in settled if (each.seq, each.subscription_id) in keys]
            self._accounts.late(late)
        self._accounts.written(settled)

    def _again(self, record: DeliveryRecord, attempts: Sequence[AttemptRecord]) -> None:
        if self._patient:
            self._submit(record, attempts)

    async def _write_milder(
        self, record: DeliveryRecord, attempts: Sequence[AttemptRecord], refusal: StorageError
    ) -> None:
        """Write the part of a refused settlement that the store accepts."""
        for mild, theirs in milder(record, attempts, str(refusal)):
            for each in dict.fromkeys([*self._dead_letters.addressed([mild]), mild]):
                settle = partial(self._queue.settle_deliveries, [each], theirs, self.ordered)
                try:
                    await self.patiently(settle)
                except StorageRefused as error:
                    refusal = error
                    continue
                self._note(record, refusal, recorded_as=each.state.value)
                self._accounts.written([each])
                self._written([each])
                return
        self._note(record, refusal)  # its lease ends; until its attempts are used up it is delivered again

    @staticmethod
    def _note(record: DeliveryRecord, refusal: StorageError, **more: str) -> None:
        place = {"seq": record.seq, "subscription_id": record.subscription_id, "state": record.state.value}
        log.error("settlement refused", **place, detail=str(refusal), **more)
