"""Calls to a connection's thread: those that wait for it at the same time share one commit."""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from .rows import sharing, transaction

__all__ = ["Call", "work_off"]

_MOST = 16  # calls that share a commit


class Call:
    """
    A function to run on the connection's thread.

    Attributes:
        writes: whether it is a transaction that writes, whatever it finds.
        result: what it returned.
        error: what it raised; until it has been run, that it has not.
    """

    __slots__ = ("_arguments", "_function", "error", "result", "writes")

    def __init__(self, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
        """Run `function` with the connection and `arguments`."""
        self._function = function
        self._arguments = arguments
        self.writes = function is transaction
        self.result: Any = None
        self.error: BaseException | None = sqlite3.OperationalError("the connection is busy with what has failed")

    def __call__(self, db: sqlite3.Connection) -> Any:
        """Run it, and return its result."""
        return self._function(db, *self._arguments)

    def run(self, db: sqlite3.Connection) -> None:
        """Run it, and keep its result, or its error."""
        try:
            self.keep(self(db))
        except BaseException as error:
            self.error = error

    def keep(self, result: Any) -> None:
        """Keep its result."""
        self.result, self.error = result, None

    def outcome(self) -> Any:
        """Return its result, or raise its error."""
        if self.error is not None:
            raise self.error
        return self.result


def work_off(db: sqlite3.Connection, calls: deque[Call]) -> None:
    """
    Run the calls that wait, in their order.

    If several wait, and one of them writes, they are one transaction, with one commit, which costs more than what most
    of them write. Should any of them fail, or that commit, all is rolled back, and each is run by itself.
    """
    group = [calls.popleft() for _ in range(min(len(calls), _MOST))]
    writers = [call for call in group if call.writes]
    if writers and len(group) > 1:
        try:
            db.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:  # another process holds the lock beyond the timeout: fail all of them at once
            for call in writers:
                call.error = error
            group = [call for call in group if not call.writes]
        else:
            if _run_together(db, group):
                return
    for call in group:
        call.run(db)


def _run_together(db: sqlite3.Connection, group: Sequence[Call]) -> bool:
    """Run calls in the transaction that has begun; return whether it was committed, or else rolled back."""
    try:
        with sharing(db):
            results = [call(db) for call in group]
        db.execute("COMMIT")
    except Exception:
        if db.in_transaction:  # SQLite itself rolls back on some errors, such as a full disk
            db.execute("ROLLBACK")
        return False
    for call, result in zip(group, results, strict=True):
        call.keep(result)
    return True
