"""How PostgreSQL reads the tables when it knows nothing of them yet: a plan made then stays for a while."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import timedelta

import asyncpg
import pytest
from sqlalchemy import Dialect
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg

from runner.storage import overview, throughput
from runner.storage.postgres.statements import statement, statement_for


@pytest.fixture
async def connection(tables_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(tables_dsn)
    for setting in ("enable_seqscan = off", "enable_sort = off", "plan_cache_mode = force_generic_plan"):
        await connection.execute(f"SET {setting}")
    yield connection
    await connection.close()


async def plan_of(connection: asyncpg.Connection, name: str) -> list[str]:
    """Return the lines of the plan of a statement."""
    text = statement_for(16, name, None) if "few" in name else statement(name, None, 1000)
    count = len(set(re.findall(r"\$\d+", text)))
    await connection.execute(f"PREPARE it AS {text}")
    rows = await connection.fetch(f"EXPLAIN EXECUTE it ({', '.join(['NULL'] * count)})")
    return [row[0] for row in rows]


@pytest.mark.parametrize("name", ["settle_deliveries", "settle_ordered", "renew", "claim_regulated"])
async def test_single_deliveries_are_found_by_their_key(connection: asyncpg.Connection, name: str) -> None:
    """And not by reading all that are due, of which there may be a hundred thousand."""
    plan = await plan_of(connection, name)
    assert [line for line in plan if "Index Cond: ((event_seq = " in line], plan
    assert not [line for line in plan if "Filter" in line and "event_seq = " in line], plan
    assert not [line for line in plan if "Hash Cond" in line or "Merge Cond" in line], plan


@pytest.mark.parametrize(
    "name",
    [
        "append",
        "append_leased",
        "append_few",
        "append_few_leased",
        "append_each",
        "claim",
        "settle",
        "settle_few",
        "settle_runs",
        "record",
        "recorded",
        "deaths",
        "content",
    ],
)
async def test_no_table_that_grows_is_read_from_end_to_end(connection: asyncpg.Connection, name: str) -> None:
    plan = await plan_of(connection, name)
    assert not [line for line in plan if re.search(r"Seq Scan on (events|dispatch|deliveries)", line)], plan
    # That something is pending or leased is asked of the index of what is, which holds nothing else.
    scans = [n for n, line in enumerate(plan) if re.search(r"Index.* Scan .*(events|deliveries)", line)]
    scans = [n for n in scans if "deliveries_due" not in plan[n]]
    assert all("Cond:" in plan[n + 1] for n in scans), plan


async def test_what_sums_a_deployment_up_reads_no_table_that_grows_from_end_to_end(
    connection: asyncpg.Connection,
) -> None:
    """Each scan of one is by an index, for what stands in it, or for the first so many of it."""
    dialect: Dialect = PGDialect_asyncpg()  # type: ignore[no-untyped-call]  # of SQLAlchemy
    summaries = (overview._queue(), overview._loads(), overview._recent(), overview._tried(), overview._recorded(1000))
    for summary in summaries:
        text = str(summary.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))
        plan = [row[0] for row in await connection.fetch(f"EXPLAIN {text}")]
        assert not [line for line in plan if re.search(r"Seq Scan on (events|deliveries|attempts|scheduled)", line)]
        scans = [n for n, line in enumerate(plan) if re.search(r"Scan .*(events|deliveries|attempts|dispatch)", line)]
        assert scans
        for n in scans:
            around = plan[n - 2 : n + 2]
            assert any("Cond:" in line or "Limit" in line for line in around), (around, plan)


async def test_counters_are_found_by_their_minute(connection: asyncpg.Connection) -> None:
    """Both those of the last minutes and those that are too old, of which there may be none."""
    dialect: Dialect = PGDialect_asyncpg()  # type: ignore[no-untyped-call]  # of SQLAlchemy
    for each in (throughput._sums(5, "postgresql"), throughput._older(timedelta(days=7), 1000)):
        text = str(each.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))
        plan = [row[0] for row in await connection.fetch(f"EXPLAIN {text}")]
        scans = [n for n, line in enumerate(plan) if re.search(r"Scan .*throughput", line)]
        assert scans, plan
        for n in scans:
            assert any("Cond: " in line and "minute" in line for line in plan[n + 1 : n + 3]), plan
