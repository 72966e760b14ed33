"""Signals through the database file: SQLite's equivalent of LISTEN."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import time
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import structlog
from pydantic import Field
from typing_extensions import override

from ..config.duration import Duration
from ..config.fields import Context
from ..config.plugin import Options
from ..errors import ConfigError
from ..service.background import Background
from .base import StrategyContext, Wake

__all__ = ["Sqlite", "SqliteOptions"]

log = structlog.get_logger(__name__)

IDENTITY_EVERY = 1.0  # seconds between two looks at whether the path still leads to the file we opened


class SqliteOptions(Options):
    """Watch the database file for commits of other processes."""

    main = "every"

    every: Duration = Field(
        default=timedelta(milliseconds=25),
        ge=timedelta(milliseconds=1),
        description="Time between two looks at the file.",
    )

    @override
    def check(self, context: Context) -> None:
        if context.dsn is not None and context.dsn.scheme != "sqlite":
            raise ValueError(
                "strategy 'sqlite' needs a store on SQLite; use 'postgres' with storage.dsn postgresql://…"
            )

    @override
    def build(self, context: StrategyContext) -> Sqlite:
        if context.dsn.path is None:
            raise ConfigError("strategy 'sqlite' needs a store on SQLite; use 'postgres'")
        return Sqlite(context.dsn.path, self.every)


class Sqlite:
    """
    Wake this process when any process has committed to the database file.

    SQLite keeps a number that changes with every commit of another connection (`PRAGMA data_version`);
    it is read through a connection of our own that never writes, never waits for a lock, and is quick
    enough to be used on the event loop. The file need not exist yet.
    """

    def __init__(self, path: Path, every: timedelta) -> None:
        self._path = path
        self._every = every.total_seconds()
        self._wake: Wake | None = None
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._identified_at = 0.0
        self._version: int | None = None
        self._reason = "not opened yet"
        self._loop = Background("sqlite watcher", self._step)

    @property
    def hears(self) -> bool:
        """Whether the file is open and can be read."""
        return self._version is not None

    @property
    def detail(self) -> str:
        """The state of the strategy, as `health` shows it."""
        return f"watching {self._path.name}" if self.hears else f"not watching {self._path.name}: {self._reason}"

    async def start(self, wake: Wake) -> None:
        """Begin to watch; the file is opened when it is there."""
        self._wake = wake
        self._loop.start()

    async def notify(self, event_id: str) -> None:
        """Do nothing: the commit was the signal."""

    async def stop(self) -> None:
        """Stop watching and close the file."""
        await self._loop.stop()
        self._close("stopped")

    async def _step(self) -> None:
        await asyncio.sleep(self._every)
        self.look()

    def look(self) -> None:
        """Wake if there was a commit since the last look."""
        try:
            version = self._read()
        except (sqlite3.Error, OSError) as error:
            if _is_locked(error):
                return  # the holder of the lock is about to commit; the next look sees it
            if self.hears:
                log.warning("sqlite watcher failed", error=type(error).__name__)
            self._close("there is no such file" if isinstance(error, FileNotFoundError) else type(error).__name__)
            return
        changed, self._version = version != self._version, version
        if changed and self._wake is not None:
            self._wake()

    def _read(self) -> int:
        """Return the number of the last commit; open the file if it is not open."""
        now = time.monotonic()
        if self._connection is None or now - self._identified_at >= IDENTITY_EVERY:
            self._identified_at = now
            status = os.stat(self._path)
            identity = (status.st_dev, status.st_ino)
            if identity != self._identity:
                self._close("replaced")
            if self._connection is None:
                self._connection = sqlite3.connect(
                    f"file:{quote(str(self._path))}?mode=ro", uri=True, timeout=0, isolation_level=None
                )
                self._identity = identity
        version: int = self._connection.execute("PRAGMA data_version").fetchone()[0]
        return version

    def _close(self, reason: str) -> None:
        self._reason = reason
        self._version = self._identity = None
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()


def _is_locked(error: Exception) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
