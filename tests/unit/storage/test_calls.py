"""Calls that wait for the thread of an SQLite connection at the same time."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.storage.sqlite.calls import Call, work_off
from runner.storage.sqlite.rows import transaction

_TABLE = """
CREATE TABLE t (n INTEGER PRIMARY KEY CHECK (n < 100), other INTEGER REFERENCES t DEFERRABLE INITIALLY DEFERRED);
PRAGMA foreign_keys = ON;
"""


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.executescript(_TABLE)
        yield connection


def _insert(db: sqlite3.Connection, n: int, other: int | None = None) -> int:
    db.execute("INSERT INTO t VALUES (?, ?)", (n, other))
    return n


def _count(db: sqlite3.Connection) -> int:
    [(count,)] = db.execute("SELECT count(*) FROM t").fetchall()
    return int(count)


def write(n: int, other: int | None = None) -> Call:
    return Call(transaction, (_insert, n, other))


def traced(db: sqlite3.Connection, *calls: Call) -> list[str]:
    """Work off the calls; return the first word of each statement."""
    seen: list[str] = []
    db.set_trace_callback(lambda statement: seen.append(statement.split()[0]))
    waiting = deque(calls)
    while waiting:
        work_off(db, waiting)
    db.set_trace_callback(None)
    return seen


def test_those_that_wait_share_one_commit(db: sqlite3.Connection) -> None:
    calls = (write(1), Call(_count, ()), write(2))
    assert traced(db, *calls) == ["BEGIN", "INSERT", "SELECT", "INSERT", "COMMIT"]
    assert [call.outcome() for call in calls] == [1, 1, 2]


def test_readers_by_themselves_begin_nothing(db: sqlite3.Connection) -> None:
    assert traced(db, Call(_count, ()), Call(_count, ())) == ["SELECT", "SELECT"]


@pytest.mark.parametrize("wrong", [write(100), write(3, other=9)], ids=["at once", "at the commit"])
def test_one_that_fails_takes_no_other_with_it(db: sqlite3.Connection, wrong: Call) -> None:
    first, last = write(1), write(2)
    traced(db, first, wrong, last)
    assert (first.outcome(), last.outcome(), _count(db)) == (1, 2, 2)
    with pytest.raises(sqlite3.IntegrityError):
        wrong.outcome()
    assert not db.in_transaction


def test_those_that_write_wait_for_a_lock_once(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.executescript(_TABLE)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as db:
            other.execute("BEGIN IMMEDIATE")
            calls = (write(1), Call(_count, ()), write(2))
            assert traced(db, *calls) == ["BEGIN", "SELECT"]
            assert calls[1].outcome() == 0
            for call in (calls[0], calls[2]):
                with pytest.raises(sqlite3.OperationalError, match="locked"):
                    call.outcome()
