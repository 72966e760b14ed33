"""Driver connections, held for the statements that run all the time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from ...errors import StorageError, StorageLocked, StorageUnavailable
from ..errors import mapped_errors

if TYPE_CHECKING:
    import asyncpg

__all__ = ["DriverConnections"]

_Run = Callable[..., Awaitable["list[asyncpg.Record]"]]


@dataclass(frozen=True, slots=True)
class _Held:
    driver: asyncpg.Connection
    # functions that run a statement, without the look-up of the driver
    known: dict[str, _Run] = field(default_factory=dict)


class DriverConnections:
    """
    A few asyncpg connections, kept for the statements that run all the time.

    A statement on a held driver connection has no overhead beyond the driver's; through SQLAlchemy's connection it has
    0.2 to 0.6 ms. A broken connection is discarded, and the next use opens another.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[asyncpg.Connection]],
        size: int,
        settings: str = "",
        *,
        pgbouncer: bool = False,
    ) -> None:
        """
        Hold up to `size` connections that `connect` makes; none is opened yet.

        Args:
            settings: what to run on each new connection.
            pgbouncer: the server process behind a connection changes, so that none knows a statement.
        """
        self._new = connect
        self._settings = settings
        self._prepares = not pgbouncer
        self._size = size
        self._slots = asyncio.Semaphore(size)
        self._idle: list[_Held] = []

    async def open(self, count: int) -> None:
        """
        Have `count` connections idle, or as many as there may be.

        If the server is unreachable, connections are opened when they are needed; other errors as with `take()`.
        """

        async def one() -> None:
            async with self._slots:
                with contextlib.suppress(StorageUnavailable):
                    self._idle.append(await self._connect())

        missing = min(count, self._size) - len(self._idle)
        for ended in await asyncio.gather(*[one() for _ in range(missing)], return_exceptions=True):
            if ended is not None:
                raise ended

    async def fetch(self, sql: str, *arguments: Any) -> list[asyncpg.Record]:
        """
        Run one statement, which is its own transaction, and return its rows; errors as with `take()`.

        Written for the shortest path: while the process waits for the server its caches go cold, so code around a
        statement costs several times what it costs in a loop.
        """
        await self._slots.acquire()
        try:
            held = await self._open()
            try:
                rows = await (held.known.get(sql) or await self._learn(held, sql))(*arguments)
            except BaseException as error:
                rows = await self._again(held, sql, arguments, error)
            self._idle.append(held)
            return rows
        finally:
            self._slots.release()

    @contextlib.asynccontextmanager
    async def take(self) -> AsyncIterator[asyncpg.Connection]:
        """Lend a connection; errors of the driver come out as a `StorageError`."""
        async with self._slots:
            held = await self._open()
            try:
                yield held.driver
            except BaseException as error:
                await self._part(held, error)
            self._idle.append(held)

    async def close(self) -> None:
        """End every idle connection."""
        while self._idle:
            self._idle.pop().driver.terminate()

    async def _open(self) -> _Held:
        while self._idle:
            held = self._idle.pop()
            if not held.driver.is_closed():
                return held
        return await self._connect()

    async def _connect(self) -> _Held:
        with mapped_errors():
            driver = await self._new()
            try:
                if self._settings:
                    await driver.execute(self._settings)
            except BaseException:
                driver.terminate()
                raise
            return _Held(driver)

    async def _learn(self, held: _Held, sql: str) -> _Run:
        """Return what runs `sql` on the connection."""
        run: _Run = (await held.driver.prepare(sql)).fetch if self._prepares else partial(held.driver.fetch, sql)
        held.known[sql] = run
        return run

    async def _again(
        self, held: _Held, sql: str, arguments: Sequence[Any], error: BaseException
    ) -> list[asyncpg.Record]:
        """Run a statement once more if it failed only because the tables have changed since it was prepared."""
        import asyncpg

        if not isinstance(error, asyncpg.InvalidCachedStatementError):
            await self._part(held, error)
        try:
            held.known.clear()
            rows: list[asyncpg.Record] = await held.driver.fetch(sql, *arguments)
            return rows
        except BaseException as failure:
            await self._part(held, failure)

    async def _part(self, held: _Held, error: BaseException) -> NoReturn:
        """Keep or drop the connection on which `error` happened, and raise its `StorageError`."""
        try:
            with mapped_errors():
                raise error
        except StorageLocked:
            self._idle.append(held)
            raise
        except StorageUnavailable:
            held.driver.terminate()
            if isinstance(error, TimeoutError):
                await self.close()  # the server is silent, and each of these would wait for its own timeout
            raise
        except StorageError:
            self._idle.append(held)
            raise
        except BaseException:
            # Cancelled, for example: the state of the server on this connection is unknown.
            held.driver.terminate()
            raise
