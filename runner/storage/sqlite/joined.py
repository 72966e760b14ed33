"""Recording events on a connection to SQLite that is in a transaction of the caller's."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

from ...errors import EventError, StorageError
from ..contract.events import Receipt
from ..errors import mapped_errors
from .rows import transaction

__all__ = ["record_on"]

_SAVEPOINT = "runner_publish"
_LEGACY = -1  # sqlite3.LEGACY_TRANSACTION_CONTROL, of Python 3.12


def record_on(connection: Any, record: Callable[[Any], Sequence[Receipt]]) -> Sequence[Receipt]:
    """
    Have `record` work on the caller's connection: in its transaction, or in one of its own where there is none.

    After an error that transaction may go on.

    Raises:
        EventError: it is no connection to SQLite.
        StorageError: it leads to another file, or the file refuses.
    """
    if not isinstance(connection, sqlite3.Connection):
        raise EventError("session: expected one on SQLite, where storage.dsn leads; this is another database's")
    with mapped_errors(), contextlib.closing(connection.cursor()) as cursor:
        cursor.row_factory = None  # the caller may have rows of its own kind
        try:
            if not connection.in_transaction and not _begins_by_itself(connection):
                return transaction(connection, lambda _: record(cursor))
            return _apart(connection, cursor, record)
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):
                raise StorageError(
                    "the tables are not there: the session has to use the file of storage.dsn"
                ) from error
            raise


def _begins_by_itself(connection: sqlite3.Connection) -> bool:
    """Return whether what is written becomes part of a transaction that the caller ends."""
    autocommit = getattr(connection, "autocommit", _LEGACY)
    return connection.isolation_level is not None if autocommit == _LEGACY else not autocommit


def _apart(
    connection: sqlite3.Connection, cursor: sqlite3.Cursor, record: Callable[[Any], Sequence[Receipt]]
) -> Sequence[Receipt]:
    """Record all or none within a transaction, which the driver would begin with the first row."""
    if not connection.in_transaction:
        cursor.execute("BEGIN IMMEDIATE")
    cursor.execute(f"SAVEPOINT {_SAVEPOINT}")
    try:
        receipts = record(cursor)
    except BaseException:
        if connection.in_transaction:  # SQLite itself rolls back on some errors, such as a full disk
            cursor.execute(f"ROLLBACK TO {_SAVEPOINT}")
            cursor.execute(f"RELEASE {_SAVEPOINT}")
        raise
    cursor.execute(f"RELEASE {_SAVEPOINT}")
    return receipts
