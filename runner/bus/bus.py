"""The event bus: record events durably, then signal workers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timedelta
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from ..errors import EventError, RunnerError
from ..event import Event, new_id
from ..service.loop_guard import LoopGuard
from ..service.tally import Tally
from ..storage.contract.events import EventStore, Publication, Receipt
from ..strategies.base import NotifyStrategy, Wake
from ..tracing.base import Tracing
from .checks import check, expiring, linked
from .commits import Commits
from .recording import LocalWorker, Recording
from .signals import Signals
from .transactions import TransactionSignals, driver_connection, is_committed, resolved

if TYPE_CHECKING:
    from .transactions import AnySession
    from .type_schemas import TypeSchemas

__all__ = ["EventBus"]


class EventBus:
    """
    Publish events.

    An event is recorded, with its one row of work, before `publish()` returns; only then are workers signalled.
    Concurrent calls share commits: while as many commits as help throughput are in flight, further calls gather for the
    next one (group commit).
    """

    def __init__(
        self,
        store: EventStore,
        strategy: NotifyStrategy,
        *,
        wake: Wake | None = None,
        local_worker: LocalWorker | None = None,
        schemas: TypeSchemas | None = None,
        tally: Tally | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        """
        Publish into `store`, and signal through `strategy`.

        Args:
            wake: called for work in this process, in place of a signal through the strategy.
            local_worker: takes events straight from the publisher while it has room for them.
            schemas: what the data of events has to fit.
            tally: counts the events recorded, except in sessions of callers, which may still roll back.
            tracing: makes spans; None for none.
        """
        self._store = store
        self._tracing = tracing
        self._wake = wake
        self._schemas = schemas
        self._tally = tally or Tally()
        self._loop_guard = LoopGuard("bus")
        self._stopped = False
        self._commits = Commits(Recording(store, self.announce, local_worker), at_once=store.appends_at_once)
        self._signals = Signals(strategy)
        self._transaction_signals = TransactionSignals(self.announce)

    async def publish(
        self,
        event: Event,
        *,
        delay: timedelta | None = None,
        deliver_at: datetime | None = None,
        expires_in: timedelta | None = None,
        session: AnySession | None = None,
    ) -> Receipt:
        """
        Record one event; return its receipt.

        Publishing the same (source, id) again changes nothing and returns the first receipt with
        `duplicate` set, so that a publisher that got no answer may simply try again. While a handler runs, the event
        is given `causationid` and `correlationid` of the event it handles, unless it has its own.

        Args:
            delay: from now, on the store's clock, until it is due.
            deliver_at: the time at which it is due instead; aware. A past one is due at once.
            expires_in: from now, on the store's clock, until it expires: a delivery not made by then is dead. It
                becomes the extension `expirytime`, which may be given instead.
            session: record it inside this transaction of the caller: the event exists once that commits, and workers
                are signalled then. A SQLAlchemy `AsyncSession`, or (blocking the event loop as that does itself) a
                `Session` or `Connection`, a connection of Django, or one of psycopg, psycopg2 or sqlite3.

        Raises:
            EventError: the event breaks CloudEvents 1.0 or a limit.
            SchemaViolation: its data does not fit the schema of its type.
            EventConflict: the same (source, id) is recorded with other content.
            StorageUnavailable: whether it was recorded is unknown; the same call again is safe.
            StorageLocked: the same, but it certainly was not recorded, because for 5 s another session had the same
                event in its transaction.
        """
        publication = Publication(event, delay, deliver_at, expires_in)
        if session is not None:
            receipts = await self.publish_many([publication], session=session)
        else:
            self._check_running()
            self.check([publication])
            if expires_in is not None:
                publication = expiring(publication, await self._store.now())
            publications = linked([publication])
            if self._tracing is None:
                receipts = await self._committed(publications)
            else:
                receipts = await self._traced(self._tracing, publications, self._committed)
        return receipts[0]

    async def publish_many(
        self, events: Iterable[Event | Publication], *, session: AnySession | None = None
    ) -> Sequence[Receipt]:
        """
        Record events, all or none, in one transaction; return their receipts in order.

        Args:
            events: at most a few thousand at a time; a `Publication` carries its own due time and expiry.
            session: as in `publish()`.
        """
        publications = await self._prepared(events)
        if not publications:
            return []
        add = self._committed if session is None else partial(self._add_in, resolved(session))
        if self._tracing is None:
            return await add(publications)
        return await self._traced(self._tracing, publications, add)

    async def recorder(self, events: Iterable[Event | Publication]) -> Callable[[Any], Sequence[Receipt]]:
        """Return a function, for any thread, that records events in a synchronous `session`, as for `publish()`."""
        return await self._recorder(await self._prepared(events))

    async def _recorder(self, publications: Sequence[Publication]) -> Callable[[Any], Sequence[Receipt]]:
        record = await self._store.recorder(publications)
        loop = asyncio.get_running_loop()

        def record_in(session: Any) -> Sequence[Receipt]:
            session = resolved(session)
            connection = driver_connection(session)
            receipts = record(connection)
            if publications:
                ended = is_committed(connection)
                self._transaction_signals.add(session, publications[-1].event.id, loop, ended=ended)
            return receipts

        return record_in

    async def _add_in(self, session: Any, publications: Sequence[Publication]) -> Sequence[Receipt]:
        """Record events in the transaction of a session, and signal after its commit."""
        if not hasattr(session, "sync_session"):
            return (await self._recorder(publications))(session)
        receipts = await self._store.append_in(session, publications)
        loop = asyncio.get_running_loop()
        self._transaction_signals.add(session.sync_session, publications[-1].event.id, loop)
        return receipts

    async def _traced(
        self,
        tracing: Tracing,
        publications: Sequence[Publication],
        add: Callable[[Sequence[Publication]], Awaitable[Sequence[Receipt]]],
    ) -> Sequence[Receipt]:
        """Record events within a span, and give them its trace."""
        with tracing.publishing([each.event for each in publications]) as events:
            return await add([each._replace(event=event) for each, event in zip(publications, events, strict=True)])

    def continuing(self, headers: Mapping[str, str]) -> AbstractContextManager[None]:
        """
        Continue the trace of a request: events published in this block belong to it, if tracing is on.

        Args:
            headers: of the request, with names in lower case.
        """
        return nullcontext() if self._tracing is None else self._tracing.incoming(headers)

    async def _committed(self, publications: Sequence[Publication]) -> Sequence[Receipt]:
        started = monotonic()
        receipts = await self._commits.add(publications)
        new = [each.event.source for each, receipt in zip(publications, receipts, strict=True) if not receipt.duplicate]
        self._tally.add_published(new, monotonic() - started)
        return receipts

    def check(self, publications: Sequence[Publication]) -> None:
        """Raise the `EventError` that `publish_many()` would raise without asking the store."""
        for index, publication in enumerate(publications):
            try:
                check(publication)
            except EventError as error:
                if len(publications) == 1:
                    raise
                raise error.in_batch(index, len(publications)) from error
        if self._schemas is not None:
            self._schemas.check(publications)

    def use_schemas(self, schemas: TypeSchemas | None) -> None:
        """Check the data of events against these schemas from now on."""
        self._schemas = schemas

    def announce(self, event_id: str | None = None) -> None:
        """Wake the worker of this process and notify the others: there may be work."""
        if self._wake is not None:
            self._wake()
        # Each signal has its own id, because a strategy recognises its own signals by it.
        self.notify(event_id or new_id())

    def notify(self, event_id: str) -> None:
        """
        Signal the other processes.

        Signals are sent in the background, since a strategy may be slow; those that wait are merged into one.
        """
        self._signals.notify(event_id)

    def start(self) -> None:
        """Accept events again after a `stop()`."""
        self._stopped = False
        self._commits.start()

    async def commits_done(self) -> None:
        """Return once the commits that are in flight now have ended."""
        await self._commits.done()

    async def stop(self) -> None:
        """Accept no more events, and return once the accepted ones are recorded and signalled."""
        self._stopped = True
        await self._commits.stop()
        await self._signals.stop()

    async def _prepared(self, events: Iterable[Event | Publication]) -> list[Publication]:
        """Return the events as publications, checked and linked."""
        self._check_running()
        publications = [each if isinstance(each, Publication) else Publication(each) for each in events]
        self.check(publications)
        publications = linked(publications)
        if any([each.expires_in is not None for each in publications]):
            now = await self._store.now()
            publications = [expiring(each, now) for each in publications]
        return publications

    def _check_running(self) -> None:
        self._loop_guard.enter()
        if self._stopped:
            raise RunnerError("the bus has stopped, nothing was recorded; publish before it does, or start it again")
