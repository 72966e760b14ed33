"""Examine a file of SQLite over a connection that cannot write."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from ..contract.examination import FileFacts
from ..errors import mapped_errors
from .connection import wal_is_safe
from .rows import clock, sql, time_of

__all__ = ["examine"]

_PATIENCE = 2.0  # seconds for the lock of another process


def examine(path: Path, patience: float) -> FileFacts:
    """Return what is found; see `storage.examination.examine_file()`."""
    safe = wal_is_safe(sqlite3.sqlite_version_info)
    with mapped_errors(), contextlib.closing(_open(path)) as db:
        [(journal,)] = db.execute("PRAGMA journal_mode").fetchall()
        [(pages,)], [(page,)] = db.execute("PRAGMA page_count").fetchall(), db.execute("PRAGMA page_size").fetchall()
        checked, fault = _check(db, patience)
        return FileFacts(
            version=sqlite3.sqlite_version,
            safe=safe,
            journal=journal,
            usual=(journal == "wal") == safe or pages == 0,
            size=pages * page,
            fault=fault,
            checked=checked,
            since=None if fault else _oldest(db),
            now=time_of(clock(db)),
        )


def _open(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(
        f"file:{quote(str(path))}?mode=ro", uri=True, timeout=_PATIENCE, isolation_level=None, check_same_thread=False
    )
    try:
        db.execute("SELECT count(*) FROM sqlite_schema")  # only now is the file looked at
    except BaseException:
        db.close()
        raise
    return db


def _check(db: sqlite3.Connection, patience: float) -> tuple[bool, str | None]:
    """Return whether the structure of the file was checked in time, and the first fault of it."""
    timer = threading.Timer(patience, db.interrupt)
    timer.daemon = True
    timer.start()
    try:
        [(first,), *_] = db.execute("PRAGMA quick_check(1)").fetchall()
    except sqlite3.OperationalError as error:
        if "interrupted" in str(error):
            return False, None
        raise
    except sqlite3.DatabaseError as error:
        return True, str(error)
    finally:
        timer.cancel()
    return True, None if first == "ok" else " ".join(str(first).replace("*** in database main ***", "").split())


def _oldest(db: sqlite3.Connection) -> datetime | None:
    """Return when the oldest event was recorded; None without any, or without tables."""
    try:
        rows = db.execute(sql("oldest_event")).fetchall()
    except sqlite3.OperationalError as error:
        if str(error).startswith(("no such table", "no such column")):
            return None
        raise
    return time_of(rows[0][0]) if rows else None
