"""
The bus for synchronous programs, such as those of Flask and Django: publish from any thread.

    bus = runner.sync.load("bus.yaml")
    bus.publish(Event.new("order.placed", {"order": 17}, source="/shop"), session=db.session)

An event loop runs in a thread behind it, from the first use on, and again in every process that is forked.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from .builder import open_bus, read
from .bus.bus import EventBus
from .config import Config
from .errors import RunnerError, StorageUnavailable
from .event import Event
from .storage.contract.events import Publication, Receipt

__all__ = ["Bus", "load"]

T = TypeVar("T")

_CLOSING = 10.0  # seconds for the last signals
_CLOSED = "the bus is closed, nothing was recorded; load() another one"


def load(path: str | Path, environ: Mapping[str, str] | None = None) -> Bus:
    """
    Return the bus of the configuration file at `path`; nothing connects before its first use.

    Logs go to stderr as the file's `log` says, unless the program has configured structlog itself.

    Args:
        environ: what `${VAR}` in the file stands for; the process's environment by default.

    Raises:
        ConfigError: every fault of the file, one per line.
    """
    return Bus(read(path, environ, imports=False))


class Bus:
    """
    Publish events, and wait until they are durable. Another process, `runner start`, delivers them.

    One is enough for a process: all threads share its connections, and publishes at the same time share commits.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._loop: _Loop | None = None
        self._closed = False
        atexit.register(self.close)
        os.register_at_fork(after_in_child=self._forget)

    def publish(
        self,
        event: Event,
        *,
        delay: timedelta | None = None,
        deliver_at: datetime | None = None,
        expires_in: timedelta | None = None,
        session: object = None,
    ) -> Receipt:
        """
        Record one event; return its receipt. The same as `EventBus.publish()`, for a thread without an event loop.

        Args:
            delay: from now, on the store's clock, until it is due.
            deliver_at: the time at which it is due instead; aware.
            expires_in: from now, on the store's clock, until it is of no use: what has not been delivered by then is
                dead.
            session: record it inside this transaction of the caller's. A SQLAlchemy `Session` or `Connection`, a
                connection of Django, or one of psycopg, psycopg2 or sqlite3; after the commit of one of the last
                three call `notify()`, because drivers do not report it.

        Raises:
            EventError: the event breaks CloudEvents 1.0 or a limit.
            EventConflict: the same (source, id) is recorded with other content.
            StorageUnavailable: whether it was recorded is unknown; the same call again is safe.
        """
        return self.publish_many([Publication(event, delay, deliver_at, expires_in)], session=session)[0]

    def publish_many(self, events: Iterable[Event | Publication], *, session: object = None) -> Sequence[Receipt]:
        """Record events, all or none, in one transaction; return their receipts in order."""
        loop = self._running()
        events = list(events)
        if session is None:
            return loop.call(loop.bus.publish_many(events))
        record = loop.call(loop.bus.recorder(events))
        return record(session)

    def notify(self) -> None:
        """Signal the workers that there may be work, after the commit of a connection that does not report it."""
        loop = self._running()
        loop.soon(loop.bus.announce)

    def close(self) -> None:
        """Send the last signals and close the connections; safe to call twice."""
        with self._lock:
            loop, self._loop, self._closed = self._loop, None, True
        if loop is not None:
            loop.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _running(self) -> _Loop:
        with self._lock:
            if self._closed:
                raise RunnerError(_CLOSED)
            if self._loop is None:
                self._loop = _Loop(self._config)
            return self._loop

    def _forget(self) -> None:
        """Begin anew in a forked child, which has neither the thread nor a right to the connections."""
        self._lock = threading.Lock()
        self._loop = None


class _Loop:
    """An event loop in a thread, with the bus open in it."""

    bus: EventBus

    def __init__(self, config: Config) -> None:
        """Return once the bus is open; raise what keeps it from that."""
        self._config = config
        self._loop = asyncio.new_event_loop()
        self._ending = asyncio.Event()
        self._opened = threading.Event()
        self._failure: BaseException | None = None
        self._lock = threading.Lock()
        self._calls: set[Future[Any]] = set()
        self._ended = False  # from then on the loop begins nothing
        self._thread = threading.Thread(target=self._run, name="runner bus", daemon=True)
        self._thread.start()
        self._opened.wait()
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """
        Run a coroutine in the loop, and return what it returns.

        Raises:
            RunnerError: the loop has ended, and the coroutine was not begun.
            StorageUnavailable: the loop ended meanwhile.
        """
        with self._lock:
            if self._ended:
                work.close()
                raise RunnerError(_CLOSED)
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
            self._calls.add(future)
        try:
            return future.result()
        except CancelledError:
            raise StorageUnavailable("the bus was closed meanwhile; the same call again is safe") from None
        finally:
            self._calls.discard(future)

    def soon(self, function: Callable[[], object]) -> None:
        """Call a function in the loop, unless that has ended."""
        with self._lock:
            if not self._ended:
                self._loop.call_soon_threadsafe(function)

    def stop(self) -> None:
        """Close the bus and end the thread."""
        self.soon(self._ending.set)
        self._thread.join(_CLOSING)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            try:
                runner.run(self._serve())
            except BaseException as error:
                self._failure = error
            finally:
                with self._lock:
                    self._ended = True
                self._opened.set()
        for call in list(self._calls):  # the loop may have ended before it began one
            call.cancel()

    async def _serve(self) -> None:
        async with open_bus(self._config) as self.bus:
            self._opened.set()
            await self._ending.wait()
