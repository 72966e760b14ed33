"""
Events that are scheduled for next year cost those that are due now nothing.

Shown by what the databases read, not by time: pages on PostgreSQL, steps of its virtual machine on SQLite. An index
of a million entries is at most one page deeper than one of the fifty thousand here.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from runner.storage.postgres.statements import statement
from runner.storage.sqlite.rows import sql
from tests.contract.storage_contract import LEASE, Store, StoreTests, publish

MANY = 50_000
SLACK = 12  # pages, or steps: what a deeper index, and a page that is split, may cost a statement


class Postgres:
    """A connection as the store has it, and what statements read on it."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection

    async def plan(self, name: str, *arguments: str) -> Any:
        """Run a statement and undo it; return its plan with what it touched."""
        text = statement(name, None, 100)
        transaction = self.connection.transaction()
        await transaction.start()
        await self.connection.execute(f"PREPARE it AS {text}")
        explained = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE it ({', '.join(arguments)})"
        plan = json.loads(await self.connection.fetchval(explained if arguments else explained.replace(" ()", "")))
        await self.connection.execute("DEALLOCATE it")
        await transaction.rollback()
        return plan[0]["Plan"]

    async def pages(self, name: str, *arguments: str) -> int:
        plan = await self.plan(name, *arguments)
        return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


CLAIM = ("claim", "1", "0", "interval '30 s'", "8000000")
STATEMENTS = {
    "claim": CLAIM,
    "promote": ("promote",),
    "claim_expired": ("claim_expired", "1", "interval '30 s'"),
    "append": ("append", "'a'", "'/s'", "'t'", *["NULL"] * 6),
    "append_each": (
        *("append_each", "'{a}'", "'{/s}'", "'{t}'", *["NULL"] * 6, "1"),
        *("ARRAY[clock_timestamp() + interval '1 hour']", "ARRAY[NULL::interval]", "ARRAY[NULL::timestamptz]"),
    ),
}


@pytest.fixture
async def postgres_now(tables_dsn: str) -> AsyncIterator[Postgres]:
    connection = await asyncpg.connect(tables_dsn)
    for setting in ("enable_seqscan = off", "enable_sort = off", "plan_cache_mode = force_generic_plan"):
        await connection.execute(f"SET {setting}")
    await connection.execute(
        "INSERT INTO events (id, source, type, created_at)"
        " SELECT i, '/s', 't', now() FROM generate_series(1, 30) i;"
        "INSERT INTO dispatch (event_seq) SELECT i FROM generate_series(1, 10) i;"
        "INSERT INTO scheduled SELECT i, now() - interval '1 s' FROM generate_series(11, 30) i"
    )
    yield Postgres(connection)
    await connection.close()


async def test_statements_of_postgresql_read_no_more(postgres_now: Postgres) -> None:
    before = {name: await postgres_now.pages(*each) for name, each in STATEMENTS.items()}
    await postgres_now.connection.execute(
        "INSERT INTO scheduled SELECT 1000000 + i, now() + interval '1 year' + i * interval '1 s'"
        f" FROM generate_series(1, {MANY}) i"
    )
    # Once for what the inserts left to be done by the first reader: hints, and entries that are to be looked at once.
    for each in STATEMENTS.values():
        await postgres_now.pages(*each)
    after = {name: await postgres_now.pages(*each) for name, each in STATEMENTS.items()}
    assert {name: (before[name], pages) for name, pages in after.items() if pages > before[name] + SLACK} == {}
    moved = await postgres_now.plan(*STATEMENTS["promote"])
    assert "Seq Scan on scheduled" not in json.dumps(moved)


def steps(db: sqlite3.Connection, name: str, *arguments: object) -> int:
    """Return how many steps a statement takes; it is undone."""
    count = 0

    def note() -> int:
        nonlocal count
        count += 1
        return 0

    db.execute("BEGIN")
    db.set_progress_handler(note, 1)
    db.execute(sql(name), arguments).fetchall()
    db.set_progress_handler(None, 1)
    db.execute("ROLLBACK")
    return count


async def test_statements_of_sqlite_take_no_more_steps(tables_file: str) -> None:
    path = Path(tables_file.removeprefix("sqlite:///"))
    db = sqlite3.connect(path, isolation_level=None)
    now = db.execute(sql("now")).fetchone()[0]
    year = now + timedelta(days=365) // timedelta(microseconds=1)
    db.executemany("INSERT INTO scheduled VALUES (?, ?)", [(seq, now - 1) for seq in range(1, 21)])
    asked: dict[str, tuple[object, ...]] = {
        "outlook": (),
        "any_scheduled": (now,),
        "unschedule": (now, 100),
        "schedule": (77, now + 1),
        "any_due": (now,),
        "any_expired": (now, now),
        "queue": (77,),
    }
    before = {name: steps(db, name, *arguments) for name, arguments in asked.items()}
    db.execute("BEGIN")
    db.executemany("INSERT INTO scheduled VALUES (?, ?)", [(1_000_000 + n, year + n) for n in range(MANY)])
    db.execute("COMMIT")
    after = {name: steps(db, name, *arguments) for name, arguments in asked.items()}
    db.close()
    assert {name: (before[name], count) for name, count in after.items() if count > before[name] + SLACK} == {}
    assert before["unschedule"] > 20  # it does read what is due


class TestAmongThem(StoreTests):
    async def test_what_is_due_is_found(self, store: Store) -> None:
        later = await publish(store, 400, delay=timedelta(days=365))
        due = await publish(store, 3, delay=timedelta(microseconds=1))
        assert await store.queue.promote(1000) == 3
        claim = await store.queue.claim(1000, LEASE)
        assert [work.seq for work in claim.works] == due
        assert claim.scheduled_in is not None
        assert claim.scheduled_in > timedelta(days=364)
        assert len(later) == 400
