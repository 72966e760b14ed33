"""What of the SQLite store can be said without its file: pragmas, plans, and the private door of aiosqlite."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path

import aiosqlite
import pytest
from sqlalchemy import literal, select
from sqlalchemy.dialects import sqlite as dialect
from sqlalchemy.schema import CreateIndex, CreateTable

from runner.storage.expressions import Among, Keys
from runner.storage.sqlite.connection import TidyConnection, pragmas, wal_is_safe
from runner.storage.tables import metadata

SQL = files("runner.storage.sqlite") / "sql"


class TestPragmas:
    @pytest.mark.parametrize(
        "version",
        [(3, 44, 6), (3, 44, 7), (3, 50, 7), (3, 50, 8), (3, 51, 3), (3, 51, 10), (3, 52, 0), (4, 0, 0)],
        ids=str,
    )
    def test_wal_is_used_where_its_bug_is_fixed(self, version: tuple[int, ...]) -> None:
        assert wal_is_safe(version)
        assert "PRAGMA journal_mode = WAL" in pragmas(version)

    @pytest.mark.parametrize(
        "version",
        [(3, 40, 1), (3, 44, 5), (3, 45, 0), (3, 49, 9), (3, 50, 6), (3, 51, 0), (3, 51, 2)],
        ids=str,
    )
    def test_a_rollback_journal_is_used_where_it_is_not(self, version: tuple[int, ...]) -> None:
        assert not wal_is_safe(version)
        assert "PRAGMA journal_mode = PERSIST" in pragmas(version)

    @pytest.mark.parametrize("version", [(3, 40, 1), (3, 51, 3)], ids=str)
    def test_a_commit_is_synced_and_a_lock_waited_for_in_both(self, version: tuple[int, ...]) -> None:
        first, *others = pragmas(version)
        assert first == "PRAGMA busy_timeout = 5000"
        assert {"PRAGMA synchronous = FULL", "PRAGMA foreign_keys = ON"} <= set(others)


def test_many_keys_are_looked_up_by_the_index() -> None:
    """A condition that is compared with 1, as booleans are on SQLite, would read the whole table."""
    wanted = select(metadata.tables["events"].c.seq).where(Among(metadata.tables["events"].c.seq, literal([1], Keys())))
    for statement in (wanted, wanted.where(metadata.tables["events"].c.type == "a")):
        text = str(statement.compile(dialect=dialect.dialect()))
        with contextlib.closing(sqlite3.connect(":memory:")) as db:
            db.execute(str(CreateTable(metadata.tables["events"]).compile(dialect=dialect.dialect())))
            plan = db.execute(f"EXPLAIN QUERY PLAN {text}", ("[1]", "a")[: text.count("?")]).fetchall()
        assert "SEARCH events USING" in plan[0][3], (text, plan)


class TestPrivateDoor:
    """`aiosqlite.Connection._execute` is private; when this fails, a new version has moved it."""

    async def test_a_function_runs_on_the_thread_of_the_connection(self) -> None:
        async with aiosqlite.connect(":memory:") as connection:
            door = connection._execute(lambda db: (type(db), threading.current_thread()), connection._conn)  # type: ignore[no-untyped-call]  # untyped there
            kind, thread = await door
        assert kind is sqlite3.Connection
        assert thread is not threading.current_thread()

    async def test_it_runs_to_its_end_though_nobody_waits_for_it(self) -> None:
        started, go_on, ended = threading.Event(), threading.Event(), threading.Event()

        def work(db: sqlite3.Connection) -> None:
            started.set()
            go_on.wait(5)
            ended.set()

        async with aiosqlite.connect(":memory:") as connection:
            task = asyncio.create_task(connection._execute(work, connection._conn))  # type: ignore[no-untyped-call]  # untyped there
            await asyncio.to_thread(started.wait, 5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            go_on.set()
        assert ended.is_set()  # closing waits for what came before

    async def test_what_it_raises_comes_out(self) -> None:
        async with aiosqlite.connect(":memory:") as connection:
            with pytest.raises(sqlite3.OperationalError, match="no such table"):
                await connection._execute(lambda db: db.execute("SELECT * FROM missing"), connection._conn)  # type: ignore[no-untyped-call]  # untyped there


class TestTidyConnection:
    @pytest.mark.parametrize("statement", ["SELECT * FROM t", "INSERT INTO t VALUES (3), (4) RETURNING n"])
    def test_a_live_cursor_does_not_keep_the_lock_of_a_closed_connection(self, tmp_path: Path, statement: str) -> None:
        path = tmp_path / "t.db"
        with contextlib.closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other:
            other.executescript("CREATE TABLE t (n); INSERT INTO t VALUES (1), (2)")
            connection = sqlite3.connect(path, isolation_level=None, factory=TidyConnection)
            connection.execute("BEGIN")
            cursor = connection.cursor().execute(statement)
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                other.execute("DELETE FROM t")
            connection.close()
            assert other.execute("DELETE FROM t").rowcount == 2
            del cursor


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) PRIMARY KEY)")
    for table in metadata.sorted_tables:
        connection.execute(str(CreateTable(table).compile(dialect=dialect.dialect())))
        for index in table.indexes:
            connection.execute(str(CreateIndex(index).compile(dialect=dialect.dialect())))
    yield connection
    connection.close()


WHOLE = {"subscriptions"}  # what it is for: the set of them, read at the start and after a change of it
STATEMENTS = sorted({each.name.removesuffix(".sql") for each in SQL.iterdir()} - WHOLE)
ONE_ROW = {
    "SCAN CONSTANT ROW",
    "SCAN alembic_version",
    "SCAN alembic_version USING COVERING INDEX sqlite_autoindex_alembic_version_1",
}
# Read in the order of the key up to a limit, or only where what is left is leased: in both cases no backlog.
IN_ORDER = {"any_due", "due_works", "next_expiry", "oldest_event"}
SORTS_A_FEW = {"claimed_delivery"}  # the attempts of one delivery


class TestPlans:
    @pytest.mark.parametrize("name", STATEMENTS)
    def test_no_statement_reads_a_table_from_end_to_end_or_sorts(self, db: sqlite3.Connection, name: str) -> None:
        text = (SQL / f"{name}.sql").read_text(encoding="utf-8")
        plan = db.execute(f"EXPLAIN QUERY PLAN {text}", ["[]"] * text.count("?")).fetchall()
        steps = [step for *_, step in plan if "VIRTUAL TABLE" not in step and step not in ONE_ROW]
        if name in IN_ORDER:
            steps = [step for step in steps if step not in ("SCAN dispatch", "SCAN events", "SCAN (subquery-1)")]
        assert not [step for step in steps if step.startswith("SCAN") and "USING" not in step], steps
        if name not in SORTS_A_FEW:
            assert not [step for step in steps if "USE TEMP B-TREE FOR ORDER BY" in step], steps

    def test_whether_anything_waits_is_read_from_the_small_index(self, db: sqlite3.Connection) -> None:
        text = (SQL / "outlook.sql").read_text(encoding="utf-8")
        plan = " ".join(step for *_, step in db.execute(f"EXPLAIN QUERY PLAN {text}").fetchall())
        assert "deliveries USING INDEX deliveries_due" in plan


class TestClock:
    def test_the_clock_of_the_file_is_in_microseconds_and_right(self, db: sqlite3.Connection) -> None:
        text = (SQL / "now.sql").read_text(encoding="utf-8")
        [(now,)] = db.execute(text).fetchall()
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=now)
        assert abs(moment - datetime.now(UTC)) < timedelta(seconds=1)
