"""Connections to SQLite: their pragmas, and their end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import aiosqlite

__all__ = ["Opened", "TidyConnection", "connect", "pragmas", "prepare", "wal_is_safe"]

_LARGE = 4 * 1024 * 1024  # bytes of a WAL worth copying back; about what SQLite itself does it at
_PATIENCE = 5.0  # seconds for a thread to end: a statement can wait as long for a lock


def wal_is_safe(version: tuple[int, ...]) -> bool:
    """
    Return whether this SQLite has the fix of the WAL-reset bug, which can corrupt a file in WAL mode.

    All of 3.7.0-3.51.2 have the bug, but for the backports (https://sqlite.org/wal.html#walresetbug).
    """
    return version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51) or (3, 44, 6) <= version < (3, 45)


def pragmas(version: tuple[int, ...]) -> Sequence[str]:
    """
    Return the statements that every new connection executes, by the version of SQLite.

    FULL makes a commit survive a power cut in both journal modes: the WAL, or the journal whose header is no more
    valid, is synced before COMMIT returns. (EXTRA only adds a sync for journals that are deleted.) A journal that
    persists keeps its blocks, so that its syncs write no metadata of the file system.
    """
    safe = wal_is_safe(version)
    return (
        "PRAGMA busy_timeout = 5000",  # milliseconds; first, because the change of mode needs a lock
        f"PRAGMA journal_mode = {'WAL' if safe else 'PERSIST'}",
        "PRAGMA synchronous = FULL",
        "PRAGMA foreign_keys = ON",
        f"PRAGMA journal_size_limit = {_LARGE}",
        *(() if safe else ("PRAGMA wal_autocheckpoint = 0",)),  # `copy_back()` does it
    )


def prepare(cursor: sqlite3.Cursor) -> None:
    """
    Execute `pragmas()` on a new connection; keep the journal mode if another program decides it.

    Programs that have it open keep it in WAL mode, or out of it. Out of it our own journal persists all the same.
    """
    statements = pragmas(sqlite3.sqlite_version_info)
    for statement in statements:
        if not statement.startswith("PRAGMA journal_mode"):
            cursor.execute(statement)
            continue
        cursor.execute("PRAGMA journal_mode")
        [(mode,)] = cursor.fetchall()
        wanted = statement.rpartition(" ")[2].lower()
        if mode != wanted:
            try:
                if mode == "wal":
                    cursor.execute("PRAGMA busy_timeout = 0")  # waiting would not help while the other program runs
                cursor.execute(statement)
            except sqlite3.OperationalError:
                if mode != "wal" and wanted != "wal":
                    raise
                if mode != "wal":
                    cursor.execute("PRAGMA journal_mode = PERSIST")
            cursor.execute(statements[0])


async def connect(*args: Any, **kwargs: Any) -> aiosqlite.Connection:
    """Open a connection. If it fails or is cancelled, end its thread first, so that it calls no closed loop."""
    import aiosqlite

    connection = aiosqlite.connect(*args, **kwargs)
    thread = connection._thread
    thread.daemon = True
    try:
        return await connection
    except BaseException:
        await asyncio.shield(asyncio.to_thread(thread.join, _PATIENCE))
        raise


class Opened:
    """
    The connections that an engine opened, to be ended with it.

    SQLAlchemy forgets a connection whose first use was cancelled, without closing it: its thread would wait
    for the garbage collector, and then call a loop that may be closed by then.
    """

    def __init__(self) -> None:
        self._connections: weakref.WeakSet[aiosqlite.Connection] = weakref.WeakSet()
        self._threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()

    async def connect(self, *args: Any, **kwargs: Any) -> aiosqlite.Connection:
        """Open a connection; see `connect()`."""
        connection = await connect(*args, **kwargs)
        self._connections.add(connection)
        self._threads.add(connection._thread)
        return connection

    async def close(self) -> None:
        """End what is open, and wait a few seconds for the threads."""
        for connection in self._connections:
            connection.stop()
        for thread in [each for each in self._threads if each.is_alive()]:
            await asyncio.shield(asyncio.to_thread(thread.join, _PATIENCE))


def _make_private(file: str) -> None:
    """Make the file, where there is none, for its owner alone; its -wal, -shm and -journal get the same rights."""
    with contextlib.suppress(OSError):  # it exists, or SQLite reports why it cannot be created
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


class TidyConnection(sqlite3.Connection):
    """
    A connection that ends its statements when it is closed: the `factory` of every connection to the store.

    SQLAlchemy closes a connection whose call was cancelled, while the call's cursor lives on in a traceback.
    SQLite keeps a closed connection that has a live statement, and with it the lock, for everybody.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._file = str(args[0] if args else kwargs["database"])
        _make_private(self._file)
        super().__init__(*args, **kwargs)
        self._cursors: weakref.WeakSet[sqlite3.Cursor] = weakref.WeakSet()
        self._copied = 0  # bytes of the WAL when it was last copied back

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        """Return a new cursor, and keep track of it."""
        cursor = super().cursor(*args, **kwargs)
        self._cursors.add(cursor)
        return cursor

    def copy_back(self) -> None:
        """
        Copy a large WAL, which only another program can have asked for, back into the file.

        Where SQLite has the WAL-reset bug, which is a commit in the middle of that copy, no connection of ours does
        it by itself; here the write lock is held meanwhile.
        """
        try:
            size = os.stat(f"{self._file}-wal").st_size
        except OSError:
            return
        self._copied = min(self._copied, size)
        if size - self._copied < _LARGE or wal_is_safe(sqlite3.sqlite_version_info):
            return
        self._copied = size
        with contextlib.suppress(sqlite3.OperationalError), contextlib.closing(sqlite3.connect(self._file)) as other:
            self.execute("BEGIN IMMEDIATE")
            try:
                other.execute("PRAGMA wal_checkpoint(PASSIVE)")
            finally:
                self.execute("ROLLBACK")

    def close(self) -> None:
        """End every statement and the transaction, then close."""
        for cursor in list(self._cursors):
            cursor.close()
        super().close()
