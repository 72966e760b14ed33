"""How a connection to SQLite is made: what it is told, and how it ends."""

from __future__ import annotations

import sqlite3
import weakref
from collections.abc import Sequence
from typing import Any

__all__ = ["TidyConnection", "pragmas", "wal_is_safe"]


def wal_is_safe(version: tuple[int, ...]) -> bool:
    """
    Return whether this SQLite has the fix of the WAL-reset bug, which can corrupt a file in WAL mode.

    All of 3.7.0-3.51.2 have the bug, but for the backports (https://sqlite.org/wal.html#walresetbug).
    """
    return version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51) or (3, 44, 6) <= version < (3, 45)


def pragmas(version: tuple[int, ...]) -> Sequence[str]:
    """
    Return what every new connection is to execute, in this order, given the linked SQLite's version.

    FULL makes a commit survive a power cut in both journal modes: the WAL, or the truncation of the
    journal, is synced before COMMIT returns. (EXTRA only adds a sync for journals that are deleted.)
    """
    return (
        "PRAGMA busy_timeout = 5000",  # milliseconds; first, because the change of mode needs a lock
        f"PRAGMA journal_mode = {'WAL' if wal_is_safe(version) else 'TRUNCATE'}",
        "PRAGMA synchronous = FULL",
        "PRAGMA foreign_keys = ON",
    )


class TidyConnection(sqlite3.Connection):
    """
    A connection that ends its statements when it is closed: the `factory` of every connection to the store.

    SQLAlchemy closes a connection whose call was cancelled, while the call's cursor lives on in a traceback.
    SQLite keeps a closed connection that has a live statement, and with it the lock, for everybody.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._cursors: weakref.WeakSet[sqlite3.Cursor] = weakref.WeakSet()

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        """Return a new cursor; `execute()` of the connection itself makes others, which nobody here keeps."""
        cursor = super().cursor(*args, **kwargs)
        self._cursors.add(cursor)
        return cursor

    def close(self) -> None:
        """End every statement and the transaction, then close."""
        for cursor in list(self._cursors):
            cursor.close()
        super().close()
