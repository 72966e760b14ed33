"""The held connections of the store on PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text

from runner.config.dsn import Dsn
from runner.delivery import DeliveryState
from runner.errors import StorageError, StorageUnavailable
from runner.event import Event
from runner.storage import open_storage
from runner.storage.contract.events import Publication
from runner.storage.contract.settlements import DeliveryRecord, Run, Settled
from runner.storage.postgres.connections import DriverConnections
from runner.storage.postgres.database import PostgresDatabase
from tests.contract.storage_contract import LEASE, Database
from tests.support.eventually import eventually
from tests.support.postgres import PostgresServer
from tests.support.proxy import Proxy


@pytest.fixture
async def proxy(postgres_dsn: str) -> AsyncIterator[Proxy]:
    async with Proxy(postgres_dsn) as proxy:
        yield proxy


@pytest.fixture
def database(proxy: Proxy) -> PostgresDatabase:
    return PostgresDatabase(Dsn.parse(proxy.url, base=Path()))


async def used_at_once(connections: DriverConnections, count: int) -> set[int]:
    """Return the server processes behind `count` statements that run side by side."""
    rows = await asyncio.gather(*[connections.fetch("SELECT pg_backend_pid(), pg_sleep(0.2)") for _ in range(count)])
    return {row[0][0] for row in rows}


async def test_what_was_opened_is_what_is_used(proxy: Proxy, database: PostgresDatabase) -> None:
    connections = DriverConnections(database.connect, 3, "SET enable_seqscan = off; SET enable_sort = off")
    await connections.open(3)
    assert proxy.connections == 3
    assert len(await used_at_once(connections, 3)) == 3
    assert proxy.connections == 3
    [[seqscan]] = await connections.fetch("SELECT current_setting('enable_seqscan')")
    [[sort]] = await connections.fetch("SELECT current_setting('enable_sort')")
    assert (seqscan, sort) == ("off", "off")
    await connections.close()


async def test_to_open_them_again_opens_no_more(proxy: Proxy, database: PostgresDatabase) -> None:
    connections = DriverConnections(database.connect, 3)
    for _ in range(2):
        await connections.open(3)
        assert proxy.connections == 3
    await connections.close()


async def test_a_store_that_publishes_makes_no_engine(tables_dsn: str) -> None:
    storage = open_storage(Dsn.parse(tables_dsn, base=Path()))
    await storage.events.append([Publication(Event.new("t", source="/s"))])
    assert "engine" not in vars(storage._database)
    await storage.close()


async def test_no_more_are_opened_than_there_may_be(database: PostgresDatabase) -> None:
    connections = DriverConnections(database.connect, 2)
    await connections.open(4)
    assert len(await used_at_once(connections, 4)) == 2
    await connections.close()


async def test_a_server_with_few_left_keeps_one_for_everything_else(
    postgres: PostgresServer, postgres_dsn: str
) -> None:
    role = f"few_{uuid.uuid4().hex[:8]}"
    postgres.psql(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 3")
    dsn = postgres_dsn.replace("postgres@", f"{role}@")
    storage = open_storage(Dsn.parse(dsn, base=Path()))
    await storage.open()
    held = postgres.psql(f"SELECT count(*) FROM pg_stat_activity WHERE usename = '{role}'")
    assert held in ("2", "3")  # the server may still count one that has just been closed
    async with storage.engine.connect() as connection:
        assert await connection.scalar(text("SELECT 1")) == 1
    await storage.close()
    postgres.psql(f"DROP ROLE {role}")


async def test_what_cannot_be_opened_is_opened_when_it_is_needed(proxy: Proxy, database: PostgresDatabase) -> None:
    connections = DriverConnections(database.connect, 3)
    await proxy.set_mode("refuse")
    await connections.open(3)
    with pytest.raises(StorageUnavailable):
        await connections.fetch("SELECT 1")
    await proxy.set_mode("pass")
    assert len(await used_at_once(connections, 3)) == 3
    await connections.close()


async def test_a_statement_outlives_a_change_of_its_tables(
    database: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a migration of a newer version does under a runner that goes on must cost it nothing."""
    connections = DriverConnections(database.connect, 1)
    await connections.fetch("CREATE TABLE public.changing (number int)")
    await connections.fetch("INSERT INTO public.changing VALUES (1)")
    assert [tuple(row) for row in await connections.fetch("SELECT * FROM public.changing")] == [(1,)]
    other = await database.connect()
    await other.execute("ALTER TABLE public.changing ADD COLUMN name text DEFAULT 'x'")
    await other.close()
    assert [tuple(row) for row in await connections.fetch("SELECT * FROM public.changing")] == [(1, "x")]
    monkeypatch.delattr(DriverConnections, "_again")  # it is prepared anew, and not tried twice for ever
    assert [tuple(row) for row in await connections.fetch("SELECT * FROM public.changing")] == [(1, "x")]
    await connections.close()


async def test_a_statement_that_fails_can_be_run_again(database: PostgresDatabase) -> None:
    connections = DriverConnections(database.connect, 1)
    for _ in range(2):
        with pytest.raises(StorageError):
            await connections.fetch("SELECT 1 / $1::int", 0)
        assert [tuple(row) for row in await connections.fetch("SELECT 1 / $1::int", 1)] == [(1,)]
    with pytest.raises(StorageError):
        await connections.fetch("SELECT * FROM nowhere")
    assert [tuple(row) for row in await connections.fetch("SELECT 2")] == [(2,)]
    await connections.close()


@pytest.mark.parametrize("pgbouncer", [True, False])
async def test_through_a_pooler_no_statement_is_left_in_the_session(postgres_dsn: str, pgbouncer: bool) -> None:
    connections = PostgresDatabase(Dsn.parse(postgres_dsn, base=Path()), held=1, pgbouncer=pgbouncer).connections
    for number in range(3):
        assert [tuple(row) for row in await connections.fetch("SELECT $1::int", number)] == [(number,)]
    [[left]] = await connections.fetch("SELECT count(*) FROM pg_prepared_statements")
    assert (left == 0) == pgbouncer
    await connections.close()


async def test_a_settlement_outlives_a_change_of_its_tables(tables_dsn: str) -> None:
    """Within a transaction nothing can be prepared anew: it counts as a loss of that connection, and is tried again."""
    database = Database(tables_dsn)
    try:
        store = database.open()
        for number in range(3):
            await store.events.append([Publication(Event.new("t", source="/s", id=f"{number} {n}")) for n in range(2)])
            claim = await store.queue.claim(2, LEASE)
            records = [
                DeliveryRecord(work.seq, 1, DeliveryState.DEAD, 1, claim.token, error="no") for work in claim.works
            ]
            settled = Settled(claim.token, claim.works, [Run((), 2)], records)
            await database.execute(text(f"ALTER TABLE dispatch ALTER event_seq TYPE {('int', 'bigint')[number % 2]}"))

            async def settle(settled: Settled = settled) -> int:
                with contextlib.suppress(StorageUnavailable):
                    return await store.queue.settle(settled)
                return 0

            assert await eventually(settle) == 2
    finally:
        await database.close()
