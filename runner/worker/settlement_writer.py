"""The settler: writes down what became of deliveries, single ones many at a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import structlog
from msgspec.structs import replace

from ..delivery import DeliveryState
from ..errors import StorageError, StorageHeld, StorageRefused, StorageUnavailable
from ..halves import in_halves
from ..service import Backoff, spawn
from ..storage.base import AttemptRecord, DeliveryRecord, Settled, WorkQueue
from .dead_letters import DeadLetters
from .settlement import apart, milder, part

__all__ = ["Settler"]

log = structlog.get_logger(__name__)

T = TypeVar("T")

Key = tuple[int, int]  # seq of the event, id of the subscription

_HELD = 1.0  # seconds until what another session holds is tried again


class Settler:
    """
    Gather settlements while one write is in flight, and write them together.

    While the store is unavailable it tries again and again: every write is fenced, so the worst that can
    come of a late one is nothing.
    """

    def __init__(
        self, queue: WorkQueue, dead_letters: DeadLetters, written: Callable[[Sequence[DeliveryRecord]], object]
    ) -> None:
        """Args: written is told what of single deliveries has been written."""
        self._queue = queue
        self._dead_letters = dead_letters
        self._written = written
        self._records: list[DeliveryRecord] = []
        self._attempts: list[AttemptRecord] = []
        self._flushing: asyncio.Task[None] | None = None
        self._patient = True
        self.ordered: frozenset[int] = frozenset()  # subscriptions whose finished deliveries leave their line

    def start(self) -> None:
        """Begin to be patient with a store that is away."""
        self._patient = True

    def submit(self, record: DeliveryRecord, attempt: AttemptRecord | None) -> None:
        """Write `record`, and `attempt` with it, soon."""
        self._submit(record, () if attempt is None else (attempt,))

    def _submit(self, record: DeliveryRecord, attempts: Sequence[AttemptRecord]) -> None:
        self._records.append(record)
        self._attempts += attempts
        if self._flushing is None:
            self._flushing = spawn(self._flush(), "settle")

    async def settle(self, settled: Settled) -> Sequence[DeliveryRecord]:
        """Write down the end of a claim; return its records as they were written."""
        complete = replace(settled, records=self._dead_letters.addressed(settled.records))

        async def write(indexes: Sequence[int]) -> Sequence[int]:
            some = complete if len(indexes) == len(complete.works) else part(complete, indexes)
            return [await self.patiently(lambda: self._queue.settle(some), wait=False)]

        counts, refused = await in_halves(range(len(complete.works)), write)
        late = len(complete.works) - len(refused) - sum(counts)
        if late > 0:
            log.warning("late settlements dropped", count=late)
        if not refused:
            return complete.records
        seqs = {complete.works[index].seq for index, _ in refused}
        records = [each for each in complete.records if each.seq not in seqs]
        for index, error in refused:
            records += await self._settle_apart(part(complete, [index]), error)
        return records

    async def _settle_apart(self, settled: Settled, refusal: StorageError) -> Sequence[DeliveryRecord]:
        """
        Write down the end of one event apart from the others.

        One that another session holds is waited for; of one that was refused each delivery is settled by itself.
        Returns what was written, but for what is about to be.
        """
        if isinstance(refusal, StorageHeld):
            with contextlib.suppress(StorageRefused):  # which was not known before
                await self.patiently(lambda: self._queue.settle(settled))
                return settled.records
        held, ended = apart(settled)
        try:
            await self.patiently(lambda: self._queue.settle(held))
        except StorageRefused as error:  # its lease ends, and the event is dispatched again, a few times
            log.error("settlement refused", seq=settled.works[0].seq, detail=str(error))
            return ()
        for record in ended:
            key = (record.seq, record.subscription_id)
            self._submit(record, [each for each in settled.attempts if (each.seq, each.subscription_id) == key])
        return [each for each in held.records if each.state is DeliveryState.PENDING]

    async def written(self) -> None:
        """Return once everything submitted so far is written."""
        while self._flushing is not None:
            await asyncio.wait({self._flushing})

    async def stop(self, timeout: float = 5.0) -> None:
        """Write what is left, at most `timeout` seconds; what is not written by then returns when its lease ends."""
        if self._flushing is not None:
            await asyncio.wait({self._flushing}, timeout=timeout)
        self._patient = False

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
                if not self._patient or (isinstance(error, StorageHeld) and not wait):
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
        """Write records, and apart from the others each that is refused or held by another session."""

        async def write(some: Sequence[DeliveryRecord]) -> Sequence[Key]:
            theirs = [each for record in some for each in attempts.get((record.seq, record.subscription_id), ())]
            settle = partial(self._queue.settle_deliveries, some, theirs, self.ordered)
            return await self.patiently(settle, wait=False)

        written, refused = await in_halves(records, write)
        apart = {id(record) for record, _ in refused}
        late = len(records) - len(refused) - len(written)
        for record, error in refused:
            theirs = attempts.get((record.seq, record.subscription_id), ())
            if isinstance(error, StorageHeld):
                log.warning("cannot settle", seq=record.seq, detail=str(error), retry_in=_HELD)
                asyncio.get_running_loop().call_later(_HELD, self._again, record, theirs)
            else:
                await self._write_milder(record, theirs, error)
        self._written([each for each in records if id(each) not in apart])
        if late:
            log.warning("late settlements dropped", count=late)

    def _again(self, record: DeliveryRecord, attempts: Sequence[AttemptRecord]) -> None:
        if self._patient:
            self._submit(record, attempts)

    async def _write_milder(
        self, record: DeliveryRecord, attempts: Sequence[AttemptRecord], refusal: StorageError
    ) -> None:
        """Write of a delivery whose settlement was refused what the store does take."""
        for mild, theirs in milder(record, attempts, str(refusal)):
            for each in dict.fromkeys([*self._dead_letters.addressed([mild]), mild]):
                settle = partial(self._queue.settle_deliveries, [each], theirs, self.ordered)
                try:
                    await self.patiently(settle)
                except StorageRefused as error:
                    refusal = error
                    continue
                self._note(record, refusal, recorded_as=each.state.value)
                self._written([each])
                return
        self._note(record, refusal)  # its lease ends; until its attempts are used up it is delivered again

    @staticmethod
    def _note(record: DeliveryRecord, refusal: StorageError, **more: str) -> None:
        place = {"seq": record.seq, "subscription_id": record.subscription_id, "state": record.state.value}
        log.error("settlement refused", **place, detail=str(refusal), **more)
