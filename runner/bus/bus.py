"""The bus: events go in, durably, and the workers hear of it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from time import monotonic
from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary

from sqlalchemy import event as sqlalchemy_event

from ..errors import EventError, RunnerError, StorageHeld, StorageUnavailable
from ..event import Event, new_id, weigh
from ..service.background import spawn
from ..service.backoff import doubling
from ..service.clock import utcnow
from ..service.home import Home
from ..storage.base import Claim, EventStore, Publication, Receipt, due_at_once
from ..storage.halves import IN_A_ROW
from ..strategies.base import NotifyStrategy, Wake

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session, SessionTransaction

__all__ = ["EventBus", "LocalWorker"]

MAX_DELAY = timedelta(days=366)  # how far ahead an event may be scheduled
MAX_BATCH = 500  # events in one commit
MAX_BATCH_BYTES = 8 * 1024 * 1024  # of their data
SHARE = 4  # events that make a second commit beside the first worth it: fewer gain more from company
PATIENCE = 5.0  # seconds for which an event is tried again that another session is recording
SPACING = 0.001  # seconds from one signal to the next, doubled up to the longest while publishes go on and on:
LONGEST_SPACING = 0.005  # who hears has work at hand then, and a signal costs every process more than a publish does

_Caller = tuple[Sequence[Publication], asyncio.Future[Sequence[Receipt]]]


class LocalWorker(Protocol):
    """A worker in the publisher's own process, which takes events that are recorded as leased to it."""

    def lease_for(self, count: int, weight: int) -> timedelta | None:
        """Return the lease under which it would take `count` events now that weigh so much; None if it has no room."""

    def take(self, claim: Claim, until: float) -> None:
        """
        Dispatch these events; not refused any more once a lease was given.

        Args:
            until: when that lease ends, on the monotonic clock.
        """


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


class EventBus:
    """
    Publish events.

    An event is recorded, with its one row of work, before `publish()` returns; only then are workers
    signalled. Concurrent calls share commits: while as many as help are in flight, the next ones gather and go
    together (group commit).
    """

    def __init__(
        self,
        store: EventStore,
        strategy: NotifyStrategy,
        *,
        wake: Wake | None = None,
        local_worker: LocalWorker | None = None,
    ) -> None:
        """
        Publish into `store`, and signal through `strategy`.

        Args:
            wake: called for work in this process, without a detour over the strategy.
            local_worker: takes events straight from the publisher while it has room for them.
        """
        self._store = store
        self._strategy = strategy
        self._wake = wake
        self._local_worker = local_worker
        self._home = Home("bus")
        self._stopped = False
        self._waiting: list[_Caller] = []
        self._gathered = 0  # events of those who wait
        self._flushing: set[_Flush] = set()
        self._starting = 0  # of those, how many have not taken any callers yet
        self._held: deque[tuple[list[_Caller], float]] = deque()  # whose events others are recording, and until when
        self._insisting: asyncio.Task[None] | None = None
        self._unsent: str | None = None  # the id the next signal carries
        self._signalling: asyncio.Task[None] | None = None
        self._unsignalled: WeakKeyDictionary[Session, str] = WeakKeyDictionary()

    async def publish(
        self,
        event: Event,
        *,
        delay: timedelta | None = None,
        deliver_at: datetime | None = None,
        session: AsyncSession | None = None,
    ) -> Receipt:
        """
        Record one event; return its receipt.

        Publishing the same (source, id) again changes nothing and returns the first receipt with
        `duplicate` set, so that a publisher that got no answer may simply try again.

        Args:
            delay: from now, on the store's clock, until it is due.
            deliver_at: the time at which it is due instead; aware. A past one is due at once.
            session: record it inside this session's transaction: it exists if and when that commits, and
                workers are signalled then.

        Raises:
            EventError: the event breaks CloudEvents 1.0 or a limit.
            EventConflict: the same (source, id) is recorded with other content.
            StorageUnavailable: whether it was recorded is unknown; the same call again is safe.
            StorageHeld: of these, one that is certain: it was not recorded, because for 5 s another session had the
                same event in its transaction.
        """
        publication = Publication(event, delay, deliver_at)
        if session is not None:
            receipts = await self.publish_many([publication], session=session)
        else:
            self._check_running()
            _check(publication)
            receipts = await self._committed([publication])
        return receipts[0]

    async def publish_many(
        self, events: Iterable[Event | Publication], *, session: AsyncSession | None = None
    ) -> Sequence[Receipt]:
        """
        Record events, all or none, in one transaction; return their receipts in order.

        Args:
            events: at most a few thousand at a time; a `Publication` carries its own due time.
            session: as in `publish()`.
        """
        self._check_running()
        publications = [each if isinstance(each, Publication) else Publication(each) for each in events]
        for publication in publications:
            _check(publication)
        if not publications:
            return []
        if session is not None:
            receipts = await self._store.append_in(session, publications)
            self._signal_after(session.sync_session, publications[-1].event.id)
            return receipts
        return await self._committed(publications)

    def _check_running(self) -> None:
        self._home.enter()
        if self._stopped:
            raise RunnerError("the bus has stopped, nothing was recorded; publish before it does, or start it again")

    async def _committed(self, publications: Sequence[Publication]) -> Sequence[Receipt]:
        """Have them recorded with the next commit; return when that is over."""
        answer: asyncio.Future[Sequence[Receipt]] = asyncio.get_running_loop().create_future()
        if self._held and self._holds(_keys(publications)):
            self._set_aside([(publications, answer)])
            return await answer
        self._waiting.append((publications, answer))
        self._gathered += len(publications)
        if not self._flushing or (
            len(self._flushing) < self._store.appends_at_once
            and self._gathered >= SHARE * (self._starting + 1)
            and len(self._waiting) > self._starting
        ):
            self._starting += 1
            flush = _Flush()
            flush.task = spawn(self._flush(flush), "publish")
            self._flushing.add(flush)
        return await answer

    def announce(self, event_id: str | None = None) -> None:
        """Wake the worker of this process and notify the others: there may be work."""
        if self._wake is not None:
            self._wake()
        # Signals differ, because a strategy knows its own by what they carry.
        self.notify(event_id or new_id())

    def notify(self, event_id: str) -> None:
        """
        Signal the other processes.

        Behind the back of whoever calls: a strategy may take its time. What piles up meanwhile is one signal.
        """
        self._unsent = event_id
        if self._signalling is None:
            self._signalling = spawn(self._send(), "notify")

    def start(self) -> None:
        """Take events again after a `stop()`."""
        self._stopped = False

    async def commits_done(self) -> None:
        """Return once the commits that are in flight now are over."""
        await asyncio.gather(*[flush.look_on() for flush in self._flushing])

    async def stop(self) -> None:
        """Take no more events, and return once what was given is recorded and signalled."""
        self._stopped = True
        while under_way := [each.task for each in self._flushing if not each.task.done()]:
            await asyncio.wait(under_way)
        for task in (self._insisting, self._signalling):
            if task is not None:
                await asyncio.wait({task})

    async def _flush(self, flush: _Flush) -> None:
        """Commit what waits, batch by batch, until nothing does."""
        callers: list[_Caller] = []
        try:
            callers = self._take(self._share(self._starting))
            self._starting -= 1
            while callers:
                await self._commit(callers)
                flush.committed()
                await asyncio.sleep(0)  # who was answered may have more, and goes along
                callers = self._take(self._share(self._starting + 1))
        except BaseException:
            for _, answer in callers:
                if not answer.done():
                    answer.set_exception(StorageUnavailable("the publish was interrupted; the same call again is safe"))
            raise
        finally:
            self._flushing.remove(flush)
            flush.committed()

    def _share(self, takers: int) -> int:
        """Return how many callers one takes of those who wait, so that commits at once do not follow each other."""
        return -(-len(self._waiting) // takers)

    def _take(self, share: int) -> list[_Caller]:
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

    async def _commit(self, callers: list[_Caller]) -> bool:
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
                self._set_aside(callers)
            else:
                _fail(callers, error)
        except BaseException:
            _fail(callers, StorageUnavailable("the publish was cut off; whether it was recorded is unknown"))
            raise
        return held

    async def _commit_apart(self, callers: list[_Caller]) -> None:
        """Record what each gave by itself; the rest is set aside once it seems that all of it is held."""
        held = 0
        for index, caller in enumerate(callers):
            if held == IN_A_ROW and not self._stopped:
                self._set_aside(callers[index:])
                return
            held = held + 1 if await self._commit([caller]) else 0

    async def _record(self, callers: list[_Caller]) -> None:
        events = callers[0][0] if len(callers) == 1 else [each for publications, _ in callers for each in publications]
        receipts, handed_over = await self._append(events)
        start = 0
        for publications, answer in callers:
            if not answer.done():  # a caller that was cancelled has its event recorded all the same
                answer.set_result(receipts[start : start + len(publications)])
            start += len(publications)
        if not handed_over:
            self.announce(receipts[-1].id)

    def _holds(self, keys: set[tuple[str, str]]) -> bool:
        """Whether one of these events waits for another session already."""
        return not all(keys.isdisjoint(_keys(each)) for callers, _ in self._held for each, _ in callers)

    def _set_aside(self, callers: list[_Caller]) -> None:
        """Let callers wait whose events another session is recording, or seems to."""
        self._held.append((callers, monotonic() + PATIENCE))
        if self._insisting is None:
            self._insisting = asyncio.create_task(self._insist(), name="publish what is held")

    async def _insist(self) -> None:
        """Try again what other sessions hold, one after the other: together they take one connection at most."""
        try:
            while self._held:
                callers, until = self._held[0]
                callers = [caller for caller in callers if not caller[1].done()]
                try:
                    if callers:
                        await self._record(callers)
                except Exception as error:
                    if isinstance(error, StorageHeld):
                        self._held.extend((half, until) for half in _halves(callers))
                        self._lose_patience(error)
                    elif len(callers) > 1 and not isinstance(error, StorageUnavailable):
                        self._held.extend(([caller], until) for caller in callers)
                    else:
                        _fail(callers, error)
                self._held.popleft()
                await asyncio.sleep(0.02 if callers else 0)
        finally:
            self._insisting = None
            _fail(
                [caller for callers, _ in self._held for caller in callers],
                StorageUnavailable("the publish was cut off"),
            )
            self._held.clear()

    def _lose_patience(self, error: StorageHeld) -> None:
        """Answer those who have waited long enough: all of them, for each turn takes as long as a lock is tried."""
        for callers, ends in self._held:
            if ends <= monotonic():
                for caller in callers:
                    _fail([caller], _still_held(caller[0], error))

    async def _append(self, publications: Sequence[Publication]) -> tuple[Sequence[Receipt], bool]:
        """Record the events; return their receipts, and whether the work went to the worker in this process."""
        lease = None
        if self._local_worker is not None and due_at_once(publications):
            lease = self._local_worker.lease_for(len(publications), weigh([each.event for each in publications]))
        if self._local_worker is None or lease is None:
            return await self._store.append(publications), False
        until = monotonic() + lease.total_seconds()
        receipts, claim = await self._store.append_leased(publications, lease)
        if claim is None or monotonic() >= until:
            return receipts, False  # what took so long may have changed hands; it is found like any other
        self._local_worker.take(claim, until)
        return receipts, True

    async def _send(self) -> None:
        """Send signals until none is left to send."""
        spacings = doubling(SPACING, LONGEST_SPACING)
        try:
            while self._unsent is not None:
                latest, self._unsent = self._unsent, None
                await self._strategy.notify(latest)
                await asyncio.sleep(next(spacings))
        finally:
            self._signalling = None

    def _signal_after(self, session: Session, event_id: str) -> None:
        """Signal once the outermost transaction of `session` has ended; after a rollback that wakes for nothing."""
        self._unsignalled[session] = event_id
        if not sqlalchemy_event.contains(session, "after_transaction_end", self._ended):
            # It stays: a listener must not be removed while the event is being handled.
            sqlalchemy_event.listen(session, "after_transaction_end", self._ended)

    def _ended(self, session: Session, transaction: SessionTransaction) -> None:
        event_id = self._unsignalled.pop(session, None) if transaction.parent is None else None
        if event_id is not None:
            self.announce(event_id)


def _halves(callers: list[_Caller]) -> list[list[_Caller]]:
    middle = -(-len(callers) // 2)
    return [half for half in (callers[:middle], callers[middle:]) if half]


def _fail(callers: Iterable[_Caller], error: Exception) -> None:
    for _, answer in callers:
        if not answer.done():
            answer.set_exception(error)


def _keys(publications: Sequence[Publication]) -> set[tuple[str, str]]:
    return {(each.event.source, each.event.id) for each in publications}


def _still_held(publications: Sequence[Publication], error: StorageHeld) -> StorageHeld:
    event = publications[0].event
    which = f"event {event.id!r} of source {event.source!r}"
    if len(publications) > 1:
        which = f"one of {len(publications)} events, the first of them {which},"
    held = StorageHeld(f"{which} is being recorded by another session, which has not ended; publish it again")
    held.__cause__ = error
    return held


def _check(publication: Publication) -> None:
    if not isinstance(publication.event, Event):
        raise EventError(f"expected an Event, got {type(publication.event).__name__}; Event.new() makes one")
    publication.event.validate()
    if publication.delay is not None or publication.deliver_at is not None:
        _check_due(publication)


def _check_due(publication: Publication) -> None:
    if publication.delay is not None and publication.deliver_at is not None:
        raise EventError("give either delay or deliver_at, not both")
    if publication.deliver_at is not None:
        if not isinstance(publication.deliver_at, datetime) or publication.deliver_at.utcoffset() is None:  # type: ignore[redundant-expr]  # callers need not check their types
            raise EventError(f"deliver_at: expected a datetime with an offset, got {publication.deliver_at!r}")
        if publication.deliver_at - utcnow() > MAX_DELAY:
            raise EventError(f"deliver_at: at most {MAX_DELAY.days} days from now, got {publication.deliver_at}")
    if publication.delay is not None:
        if not isinstance(publication.delay, timedelta):
            raise EventError(f"delay: expected a timedelta, got {publication.delay!r}")
        if not timedelta(0) <= publication.delay <= MAX_DELAY:
            raise EventError(f"delay: expected 0 to {MAX_DELAY.days} days, got {publication.delay}")
