"""
The connections of one process to an SQLite file.

A transaction is one plain function that runs on the connection's thread, in one hop: it cannot be cut
in the middle by a cancelled coroutine, which would leave the file locked for everybody. Those that wait
for the thread at the same time share one commit (`calls.py`). SQLite has one writer at a time, so a claim
needs no `SKIP LOCKED`: a transaction that has begun is alone. What finds nothing to do has only read, so that idle
polls neither wait for a lock nor look like a change to those who watch the file.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import structlog

from ...errors import StorageRefused
from ..errors import is_unavailable, mapped_errors
from ..home import Home
from ..standing import Standing
from ..subscription_rows import SubscriptionRow, compilable, spec_in
from .calls import Call, work_off
from .connection import Opened, TidyConnection, connect, prepare
from .rows import clock, sql, time_of

if TYPE_CHECKING:
    from pathlib import Path

    import aiosqlite
    from sqlalchemy.ext.asyncio import AsyncEngine

    from ...config.dsn import Dsn
    from ..contract.registry import Registered
    from ..contract.schedules import Due, Fired, Firing

__all__ = ["SqliteDatabase"]

log = structlog.get_logger(__name__)

R = TypeVar("R")

_PATIENCE = 2.0  # seconds to wait for the end of an unusable connection


class _Held(NamedTuple):
    """A connection, and the calls that its thread has not begun."""

    connection: aiosqlite.Connection
    calls: deque[Call]


class SqliteDatabase:
    """
    The connections of one process to one SQLite file.

    One is held from the first call of `run()` until `close()`.

    Attributes:
        home: what text the file can hold, which is any.
    """

    def __init__(self, path: Path, *, pool: int = 1) -> None:
        """Args: pool is how many connections the engine may have beside the one that is held."""
        self.home = Home(encoding="UTF8")
        self._path = path
        self._pool = pool
        self._held: _Held | None = None
        self._opened = Opened()
        self._opening = asyncio.Lock()

    @cached_property
    def engine(self) -> AsyncEngine:
        """The engine, made on demand: to publish, none is needed."""
        from .engine import sqlite_engine

        return sqlite_engine(self._path, self.home, pool=self._pool, opened=self._opened)

    def renew_login(self, dsn: Dsn) -> None:
        """Do nothing: a file has no login."""

    async def open(self) -> None:
        """Open nothing: the first call does, and there is no second connection."""

    async def close(self) -> None:
        """End every connection, the engine's after it was disposed of. Idempotent; a later call opens another one."""
        await self._end_held()
        await self._opened.close()

    async def run(self, function: Callable[..., R], *args: Any) -> R:
        """Run `function` on the connection's thread, to its end even if the caller is cancelled."""
        with mapped_errors():
            held = await self._open()
            call = Call(function, args)
            try:
                # aiosqlite has no public way to run a function on its thread; it is pinned, and a test guards this.
                hop = held.connection._execute(_tidily, held.connection._conn, held.calls)  # type: ignore[no-untyped-call]  # untyped there
                held.calls.append(call)
                await asyncio.shield(hop)  # by its end the call has been run, perhaps by the hop of an earlier one
                result: R = call.outcome()
                return result
            except (OverflowError, UnicodeEncodeError) as error:  # the driver cannot bind it
                raise StorageRefused(f"the store refused: {type(error).__name__}") from error
            except sqlite3.OperationalError as error:
                # Whatever the error (a rollback that failed, a file that was replaced), the next call is better off
                # with a new connection; what waits in its thread's queue still runs.
                if is_unavailable(error):
                    log.warning("connection dropped", reason=str(error))
                    await asyncio.shield(self._discard(held))
                raise

    async def standing(self) -> Standing | None:
        """Return where the tables stand; None where they are not there."""
        return await self.run(_standing) if self._path.exists() else None  # connecting would create an empty file

    async def subscriptions(self) -> tuple[int, Sequence[Registered]]:
        """Return the version of the set, and the active subscriptions; see `Registry.subscriptions()`."""
        version, rows = await self.run(_subscriptions)
        return version, [compilable(row) for row in rows]

    async def due_schedules(self, limit: int) -> Due:
        """Return at most `limit` schedules that are due; see `Schedules.due()`."""
        from .schedules import due_schedules

        return await self.run(due_schedules, limit)

    async def fire_schedules(self, firings: Sequence[Firing]) -> Fired:
        """Record occurrences with their events; see `Schedules.fire()`."""
        from .schedules import fire_schedules

        return await self.run(fire_schedules, firings)

    async def _open(self) -> _Held:
        async with self._opening:
            if self._held is None:
                self._held = _Held(await _connection(self._path), deque())
            return self._held

    async def _discard(self, held: _Held) -> None:
        if held is self._held:
            await asyncio.wait({asyncio.ensure_future(self._end_held())}, timeout=_PATIENCE)

    async def _end_held(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            with contextlib.suppress(Exception):
                await held.connection.close()


async def _connection(path: Path) -> aiosqlite.Connection:
    connection = await connect(str(path), factory=TidyConnection, check_same_thread=False, isolation_level=None)
    try:
        await connection._execute(_prepare, connection._conn)  # type: ignore[no-untyped-call]  # untyped there
    except BaseException:
        with contextlib.suppress(Exception):
            await connection.close()
        raise
    return connection


def _standing(db: sqlite3.Connection) -> Standing | None:
    try:
        rows = db.execute(sql("standing")).fetchall()
    except sqlite3.OperationalError as error:
        if str(error).startswith(("no such table", "no such column")):
            return None
        raise
    return Standing(*rows[0]) if rows else None


def _subscriptions(db: sqlite3.Connection) -> tuple[int, Sequence[SubscriptionRow]]:
    now = time_of(clock(db))
    rows = db.execute(sql("subscriptions")).fetchall()
    found = [
        SubscriptionRow(now, id, name, spec_in(spec), origin, bool(paused), _time(until), trips, _time(at), by)
        for _, id, name, spec, origin, paused, until, trips, at, by in rows
        if id is not None
    ]
    return rows[0][0], found


def _time(instant: int | None) -> datetime | None:
    return None if instant is None else time_of(instant)


def _prepare(db: TidyConnection) -> None:
    with contextlib.closing(db.cursor()) as cursor:
        prepare(cursor)


def _tidily(db: TidyConnection, calls: deque[Call]) -> None:
    work_off(db, calls)
    db.copy_back()
